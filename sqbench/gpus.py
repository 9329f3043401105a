"""Which GPU a point gets when several run at once. The environment of its process says so, before CUDA starts there."""

import os

import torch

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible() -> list[str]:
    """GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them: numbers, UUIDs, MIG instances. CUDA does not start."""
    count = torch.cuda.device_count()
    named = os.environ.get(VISIBLE)
    if not named or count == 0:
        return [str(number) for number in range(count)]
    names = [name.strip() for name in named.split(",")]
    if names[0].startswith("MIG-"):
        return names  # a process sees one MIG instance, however many are named
    return names[:count]  # CUDA ends the list at the first that is not there


def only(number: int) -> dict[str, str]:
    """The environment in which a process sees one GPU: the next one for each number, round and round. Nothing without GPUs."""
    names = visible()
    return {VISIBLE: names[number % len(names)]} if names else {}


def name(device: torch.device) -> str:
    """A device as a record says it: which GPU of this machine it is too."""
    if device.type != "cuda":
        return str(device)
    found = torch.cuda.get_device_properties(device)
    return f"{device} {found.name} GPU-{found.uuid}"
