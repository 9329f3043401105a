"""Models of text and of images as files of ONNX Runtime and OpenVINO, and the proof by these runtimes."""

from functools import partial
from pathlib import Path

import torch

from sqbench.data import Examples
from sqbench.exports.proof import Proof, compared
from sqbench.exports.target import Target
from sqbench.models.base import Model
from sqbench.models.computed import computed
from sqbench.models.functions import whole, write_preparation
from sqbench.runtimes import RUNTIMES, Runtime
from sqbench.runtimes.deployment import check, parts_of


@torch.no_grad()
def write(format: str, runtime: Runtime, model: Model, place: Path) -> None:
    """Fill a folder with the model file, and with what prepares its inputs: tokenizer and configuration, or preprocessing.

    Raises:
        UserError: the runtime cannot express a layer (which layer, which field, what would fit).
    """
    check(model, runtime, f"format={format}")
    function = whole(model)
    runtime.save(runtime.write(function, parts_of(function.module)), place)
    write_preparation(model, place)


def prove(runtime: Runtime, simulated: Model, folder: Path, examples: Examples) -> Proof:
    """Load an exported file with its runtime, and compare it on all evaluation examples."""
    session = runtime.start(runtime.read(folder / runtime.file))
    foreign = computed(simulated, session, headless=False)
    return compared(simulated, foreign, examples, program=runtime.version(), dtype="float32")


def _target(format: str, runtime: Runtime) -> Target:
    return Target(
        format,
        runtime.title,
        partial(write, format, runtime),
        partial(prove, runtime),
        partial(runtime.require, f"format={format}"),
    )


ONNX = _target("onnx", RUNTIMES["onnxruntime"])
OPENVINO = _target("openvino", RUNTIMES["openvino"])
