"""The same work with other tools, where they install: whole models in integer formats, SmoothQuant and AWQ.

    python -m benchmarks.peers                             # vit, prefill, decode
    python -m benchmarks.peers work=smoothquant            # three alphas, 64 calibration and 16 evaluation windows: long
    python -m benchmarks.peers work=awq                    # 8 calibration windows: long
    python -m benchmarks.peers work=smoothquant tools=llm-compressor,torchao
    python -m benchmarks.peers work=smoothquant data=wikitext2 data.path=wiki.test.raw

`pip install -e .[peers]` installs torchao, optimum-quanto and ONNX Runtime. llm-compressor asks for an older transformers than
sqbench does. `pip install --no-deps llmcompressor compressed-tensors loguru` works beside it. A tool that is missing or fails has a
row with the reason. The models are those of benchmarks.latency. Linear layers are converted, the output embedding is not. The last
column is the speedup of sqbench over the tool. The long work runs once per tool.
"""

import logging
import statistics
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import latency
from benchmarks.peers_layers import DECODE, PREFILL, VIT, reason
from benchmarks.peers_methods import AWQ, SMOOTHQUANT, Task
from benchmarks.plain import perplexity
from benchmarks.timing import Work, alternate, arguments, chosen, medians, seconds, show, speedups
from sqbench.console.progress import console
from sqbench.console.quiet import quiet
from sqbench.errors import UserError
from sqbench.models import Model

OURS = "sqbench"
Row = list[str]
Make = Callable[[], Work]


def asked(own: Mapping[str, Any], tools: Mapping[str, Any]) -> dict[str, Any]:
    """sqbench, and the tools whose names contain one of `tools=`. The default is all of them."""
    return {name: tool for name, tool in tools.items() if name == OURS or any(part in name for part in own["tools"])}


def attempt(makers: Mapping[str, Make]) -> tuple[dict[str, Work], dict[str, str]]:
    """The work of every tool that has run once, and the reason for each other tool."""
    works, failed = {}, {}
    for name, make in makers.items():
        console.print(f"{name} ...", style="dim", highlight=False)  # some take minutes for their first call
        try:
            work = make()
            work()
        except Exception as error:  # noqa: BLE001 (a tool that is missing or broken is a row of the table)
            failed[name] = reason(error)
        else:
            works[name] = work
    return works, failed


def compared(work: str, unit: str, amount: int, base: Work, ours: Work, peers: Mapping[str, Make], repetitions: int) -> list[Row]:
    """A row for each of: the base, sqbench, every tool that runs, and every tool that does not."""
    works, failed = attempt({latency.BASE: lambda: base, OURS: lambda: ours, **peers})
    if broken := {latency.BASE, OURS} & failed.keys():
        raise RuntimeError(f"{work}: {', '.join(f'{name} ({failed[name]})' for name in broken)}")
    times = alternate(works, repetitions, warmup=0)  # each has already run once
    faster = speedups(times, latency.BASE)
    rows = []
    for name, spent in medians(times).items():
        lead = statistics.median(other / own for other, own in zip(times[name], times[OURS], strict=True))
        rows.append([work, name, f"{amount / spent:.1f} {unit}", f"{faster[name]:.2f}", f"{lead:.2f}"])
    return rows + [[work, name, f"does not run here: {why}", "--", "--"] for name, why in failed.items()]


def vit(own: dict[str, Any], others: list[str]) -> list[Row]:
    model, examples = latency.load(*latency.VIT, *others)
    images = torch.randn(own["batch"], *model.example().shape[1:], generator=torch.Generator().manual_seed(0))
    quantized = latency.executed(model, examples, "minmax", "w8a8", own["backend"])
    return vit_rows(model, quantized, images, own["repetitions"], asked(own, VIT))


def vit_rows(
    model: Model, quantized: Model, images: Tensor, repetitions: int, tools: Mapping[str, Callable[..., Work]] = VIT
) -> list[Row]:
    """The rows of a batch of images through the backbone."""
    peers = {name: lambda make=make: make(model.module, images) for name, make in tools.items()}  # type: ignore[misc]
    sides = (lambda: model.body(images), lambda: quantized.body(images))
    return compared(f"{model.name} {images.shape[-1]}", "images/s", len(images), *sides, peers, repetitions)


def prefill(own: dict[str, Any], others: list[str]) -> list[Row]:
    model, windows = latency.load(*latency.TEXT, *others)
    quantized = latency.executed(model, windows, "rtn", "w8a8_dynamic", own["backend"])
    ids = windows.evaluation.flatten()[: own["prompt"]].unsqueeze(0)
    return text_rows(
        "prefill",
        model,
        quantized,
        asked(own, PREFILL),
        lambda sides: latency.prefill_sides(sides, ids),
        ids.shape[1],
        own["repetitions"],
    )


def decode(own: dict[str, Any], others: list[str]) -> list[Row]:
    model, windows = latency.load(*latency.TEXT, *others)
    quantized = latency.executed(model, windows, "rtn", "w4a16", own["backend"])
    ids, count = windows.evaluation[:1, :16], own["decode"]
    return text_rows(
        "decode",
        model,
        quantized,
        asked(own, DECODE),
        lambda sides: latency.decode_sides(sides, ids, count),
        count,
        own["repetitions"],
    )


def text_rows(
    work: str,
    model: Model,
    quantized: Model,
    tools: Mapping[str, Callable[[nn.Module], nn.Module]],
    sides: Callable[[dict[str, nn.Module]], dict[str, Work]],
    amount: int,
    repetitions: int,
) -> list[Row]:
    """The rows of tokens through a language model. `sides` turns modules into work."""

    def one(module: nn.Module) -> Work:
        return sides({"it": module})["it"]

    peers = {name: lambda convert=convert: one(convert(model.module)) for name, convert in tools.items()}  # type: ignore[misc]
    return compared(work, "tokens/s", amount, one(model.module), one(quantized.module), peers, repetitions)


def smoothquant(own: dict[str, Any], others: list[str]) -> list[Row]:
    return method_rows("smoothquant", task(own, ["calibration.windows=64", *others]), asked(own, SMOOTHQUANT))


def awq(own: dict[str, Any], others: list[str]) -> list[Row]:
    return method_rows("awq", task(own, ["calibration.windows=8", *others]), asked(own, AWQ))


def task(own: dict[str, Any], others: list[str]) -> Task:
    model, windows = latency.load("model=smollm2_135m", "data=pydoc", *others)
    return Task(model, windows, own["backend"], [float(alpha) for alpha in own["alphas"]])  # type: ignore[arg-type]


def method_rows(work: str, task: Task, methods: Mapping[str, Callable[[Task], Any]]) -> list[Row]:
    """The rows with seconds and perplexities of every tool. Each tool runs once."""
    rows, spent = [], {}
    for name, method in methods.items():
        console.print(f"{name} ...", style="dim", highlight=False)
        found: list[Any] = []
        try:
            spent[name] = seconds(lambda method=method, found=found: found.append(method(task)))  # type: ignore[misc]
        except Exception as error:  # noqa: BLE001 (as above)
            rows.append([work, name, f"does not run here: {reason(error)}", "--", "--"])
            continue
        (result,) = found
        values = result if isinstance(result, list) else [perplexity(result, task.windows.evaluation)]
        texts = " ".join(f"{value:.2f}" for value in values)
        lead = f"{spent[name] / spent[OURS]:.2f}" if OURS in spent else "--"
        rows.append([work, name, f"{spent[name]:.1f} s, perplexity {texts}", "--", lead])
    return rows


WORK: dict[str, Callable[[dict[str, Any], list[str]], list[Row]]] = {
    "vit": vit,
    "prefill": prefill,
    "decode": decode,
    "smoothquant": smoothquant,
    "awq": awq,
}


@torch.no_grad()
def main() -> None:
    quiet()
    warnings.filterwarnings("ignore")  # the tools warn about themselves
    logging.disable(logging.WARNING)
    defaults = {"work": ["vit", "prefill", "decode"], "backend": "int", "batch": 16, "prompt": 512, "decode": 32, "repetitions": 5}
    try:
        own, others = arguments(sys.argv[1:], **defaults, alphas=["0.3", "0.5", "0.8"], tools=[""])
        rows = [row for name in chosen(own["work"], WORK) for row in WORK[name](own, others)]
    except UserError as error:
        sys.exit(f"error: {error}")
    how = "sides took turns, medians; tools of smoothquant and awq ran once each, one after another"
    show(["work", "tool", "median", "x float32", "sqbench is x it"], rows, how=how)


if __name__ == "__main__":
    main()
