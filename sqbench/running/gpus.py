"""The GPU of each point when several run at once. The environment of its process sets it, before CUDA starts there."""

import os

import torch

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible() -> list[str]:
    """The GPUs of this process, named as in CUDA_VISIBLE_DEVICES: numbers, UUIDs or MIG instances. This does not start CUDA."""
    count = torch.cuda.device_count()
    named = os.environ.get(VISIBLE)
    if not named or count == 0:
        return [str(number) for number in range(count)]
    names = [name.strip() for name in named.split(",")]
    if names[0].startswith("MIG-"):
        return names  # a process sees only one MIG instance, even if more are named
    return names[:count]  # CUDA ends the list at the first missing one


def only(number: int) -> dict[str, str]:
    """The environment in which a process sees one GPU. Numbers go through the GPUs in turn. Empty without GPUs."""
    names = visible()
    return {VISIBLE: names[number % len(names)]} if names else {}


def name(device: torch.device) -> str:
    """The name of a device in a record. For a GPU it has the model and the UUID."""
    if device.type != "cuda":
        return str(device)
    found = torch.cuda.get_device_properties(device)
    return f"{device} {found.name} GPU-{found.uuid}"
