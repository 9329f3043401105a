"""Lowering of a quantized model to the one that is executed. Every simulated layer gets the first kernel that takes its formats."""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from sqbench.execution.base import IntegerLayer, Part
from sqbench.execution.block_scaled import CudaMxfp8, CudaNvfp4
from sqbench.execution.cuda import CudaFloat8, CudaInt4Weight, CudaInt8
from sqbench.execution.floats import FloatLinear, prefers_onednn
from sqbench.execution.flow import Flow, watch
from sqbench.execution.fusion import fuse
from sqbench.execution.native_layers import NativeInt4Weight, NativeInt8, NativeInt8Weight
from sqbench.execution.onednn import OneDnnConv, OneDnnLinear
from sqbench.execution.simulated import SimulatedLayer, quicken
from sqbench.execution.torch_packed import TorchInt4Weight, TorchInt8Weight
from sqbench.models.base import Model
from sqbench.models.block import BlockModel
from sqbench.models.experts import everyone, feeding
from sqbench.models.folding import share
from sqbench.models.streaming import StreamedModel
from sqbench.quant.access import is_linear, weight_of
from sqbench.quant.layers import QuantLayer, StandIn
from sqbench.runtimes import RUNTIMES
from sqbench.runtimes.deployment import deployed

log = logging.getLogger(__name__)

KERNELS: tuple[type[IntegerLayer], ...] = (  # of two kernels for the same layers, the faster comes first
    OneDnnLinear,
    NativeInt8,
    OneDnnConv,
    TorchInt4Weight,
    TorchInt8Weight,
    NativeInt4Weight,
    NativeInt8Weight,
    CudaInt8,
    CudaFloat8,
    CudaMxfp8,
    CudaNvfp4,
    CudaInt4Weight,
)
BY_BACKEND: dict[str, tuple[type[IntegerLayer], ...]] = {"sim": (), "int": KERNELS}
BACKENDS = (*BY_BACKEND, *RUNTIMES)


@torch.no_grad()
def lower(model: Model, backend: str) -> Model:
    """The model that computes the same function as the backend executes it. The given model stays as it is.

    `sim` computes in float with simulated rounding, in as few passes over memory as this machine's kernels allow. `int` multiplies
    codes. A layer whose formats have no kernel is simulated. The other backends compute in a runtime. The report's `execution`
    lists kernels with layers and reasons.
    """
    if isinstance(model, StreamedModel):
        return model.then(lambda block: lower(block, backend))
    if backend in RUNTIMES:
        return deployed(model, RUNTIMES[backend])
    if not any(isinstance(part, QuantLayer) for part in model.module.modules()):
        if not prefers_onednn(next(model.module.parameters())):
            return model
        _ = model.topology  # traced now, because the layers get other classes below
    module = share(model.module)
    report = dict(model.report or {})

    def run() -> Tensor:
        return model.with_module(module, None).forward(model.example())

    with feeding(module, everyone):  # an example reaches few experts of a mixture, and all are executed
        flow = watch(module, run)
        if flow.readers:
            report["execution"] = _place(module, flow, BY_BACKEND[backend])
            report["fused"] = fuse(module, flow.chains, run)
    if flow.readers and (not isinstance(model, BlockModel) or model.number == 0):  # other blocks are like the first
        _warn_of_simulation(model.name, backend, report["execution"])
    quicken(module)
    _prepack_floats(module)
    return model.with_module(module, report or None)


def _warn_of_simulation(name: str, backend: str, execution: list[dict[str, Any]]) -> None:
    """Warn if an integer backend had to simulate layers. A table would not show it."""
    simulated = [entry for entry in execution if entry["kernel"] == "simulated"]
    if backend == "int" and simulated:
        count, whole = (sum(len(entry["layers"]) for entry in entries) for entries in (simulated, execution))
        log.warning("%s: %d of %d layers are simulated (%s)", name, count, whole, simulated[0]["reason"])


def choose(layer: QuantLayer, kernels: tuple[type[IntegerLayer], ...]) -> tuple[type[IntegerLayer] | None, str]:
    """The first kernel that can execute a layer, and why none before it in the list can.

    The kernel is None for simulation.
    """
    reasons: list[str] = []
    for kernel in kernels:
        if kernel.takes(layer):
            if (reason := kernel.refusal(layer)) is None:
                return kernel, "; ".join(dict.fromkeys(reasons))
            reasons.append(reason)
    if kernels and not reasons:
        reasons = [f"no kernel takes {type(layer.layer).__name__} with weights {layer.format} on {layer.weight.device.type}"]
    return None, "; ".join(dict.fromkeys(reasons))


def _place(module: nn.Module, flow: Flow, kernels: tuple[type[IntegerLayer], ...]) -> list[dict[str, Any]]:
    """Replace every quantized layer. Layers that read one tensor become one where their kernel merges.

    Return entries of kernel, reason and layers for the record.
    """
    executed: dict[tuple[str, str], list[str]] = {}
    for group in flow.readers:
        alike: dict[Any, list[str]] = {}
        for name in group:
            layer = module.get_submodule(name)
            assert isinstance(layer, QuantLayer)
            kernel, reason = choose(layer, kernels)
            executed.setdefault(("simulated" if kernel is None else kernel.kernel, reason), []).append(name)
            alone = name if kernel is None or not kernel.merges else None
            alike.setdefault((kernel, layer.format, layer.activation, alone), []).append(name)
        for (kernel, *_), names in alike.items():
            _replace(module, names, kernel)
    return [{"kernel": kernel, "reason": reason, "layers": names} for (kernel, reason), names in executed.items()]


def _replace(module: nn.Module, names: list[str], kernel: type[IntegerLayer] | None) -> None:
    """Put a kernel in the place of layers, which it computes as one. None simulates a single layer."""
    layers: list[Any] = [module.get_submodule(name) for name in names]
    if kernel is None:
        module.set_submodule(names[0], SimulatedLayer(layers[0]))
        return
    whole = kernel(layers)
    if len(names) == 1:
        module.set_submodule(names[0], whole)
        return
    start = 0
    for name, layer in zip(names, layers, strict=True):
        module.set_submodule(name, Part(whole, start, start + layer.shape[0]))
        start += layer.shape[0]


def _prepack_floats(module: nn.Module) -> None:
    """Give linear layers that stay in float this machine's faster kernel, in place."""
    for name, layer in list(module.named_modules()):
        parent = module.get_submodule(name.rpartition(".")[0])
        if is_linear(layer) and not isinstance(parent, StandIn) and prefers_onednn(weight_of(layer)):
            module.set_submodule(name, FloatLinear(layer))
