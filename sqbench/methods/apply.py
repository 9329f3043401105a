"""From a float model to a quantized one: fold, then round. The only place that replaces layers."""

from typing import Any

import torch
from torch import Tensor

from sqbench.methods.base import Method, Move, Task
from sqbench.models.folding import fold, share
from sqbench.models.language import LanguageModel
from sqbench.progress import track
from sqbench.quant.linear import ActivationQuantizer, QuantLinear, sqnr_db, weight_of
from sqbench.quant.statistics import InputStatistics


@torch.no_grad()
def quantize(task: Task, method: Method) -> LanguageModel:
    """The model of a task, quantized by a method. The float model is left as it is and shares what is not replaced.

    The result's `report` says what was done: the layers with their signal-to-noise ratios, the groups with their exponents, and
    the refused groups with reasons.

    Raises:
        UserError: a group size does not divide a layer, or the method finds nothing to work on.
    """
    layers = task.topology.layers
    scheme = task.scheme
    report: dict[str, Any] = {"layers": 0, "coverage": 0.0, "groups": [], "refused": [], "per_layer": []}
    if method.is_float:
        return task.model.with_module(task.model.module, report)
    for name in layers:
        if scheme.weights is not None:
            scheme.weights.check_width(name, weight_of(task.model.module.get_submodule(name)).shape[1])
    module = share(task.model.module)
    stats = dict(task.statistics.inputs)
    moves = method.moves(task)
    for move in moves:
        fold(module, move.group, move.scale)
        site = task.topology.site[move.group.readers[0]]
        stats[site] = stats[site].scaled(move.group.spread(move.scale))
    if not scheme.is_float:
        quantizers: dict[str, ActivationQuantizer | None] = {}
        for name in track(layers, "quantize"):
            site = task.topology.site[name]
            linear = module.get_submodule(name)
            seen = stats[site]
            if site not in quantizers:
                quantizers[site] = _activation(method, task, seen, readers=list(task.topology.site.values()).count(site))
            limits = None
            if scheme.weights is not None:
                limits = method.weight_limits(name, weight_of(linear), seen, scheme.weights)
            quantized = QuantLinear(linear, scheme.weights, limits, quantizers[site])
            module.set_submodule(name, quantized)
            report["per_layer"].append(_describe(name, weight_of(linear), quantized, seen))
    report.update(
        layers=0 if scheme.is_float else len(layers),
        coverage=0.0 if scheme.is_float else _coverage(task),
        groups=[_move(move) for move in moves],
        refused=[{"group": name, "reason": reason} for name, reason in task.topology.refused],
    )
    return task.model.with_module(module, report)


def _activation(method: Method, task: Task, stats: InputStatistics, readers: int) -> ActivationQuantizer | None:
    fmt = task.scheme.activations
    if fmt is None:
        return None
    return ActivationQuantizer(fmt, None if fmt.dynamic else method.activation_limits(stats, fmt), readers)


def _describe(name: str, weight: Tensor, layer: QuantLinear, stats: InputStatistics) -> dict[str, Any]:
    """What quantization did to one layer: noise of its weight and (on the calibration's sample rows) of its input."""
    absmax = stats.absmax
    entry: dict[str, Any] = {
        "layer": name,
        "weight_sqnr_db": round(sqnr_db(weight, layer.weight), 3),
        "absmax": float(absmax.max()),
        "outlier_ratio": float(absmax.max() / absmax.median().clamp(min=1e-12)),  # largest channel against the typical one
    }
    if layer.activation is not None:
        rows = stats.rows
        entry["input_sqnr_db"] = round(sqnr_db(rows, layer.activation(rows)), 3)
    return entry


def _coverage(task: Task) -> float:
    """Share of all weights in linear layers and embeddings that is quantized, tied ones once."""
    sizes = {p.data_ptr(): p.numel() for p in task.model.module.parameters() if p.dim() >= 2}
    return sum(weight_of(task.model.module.get_submodule(name)).numel() for name in task.topology.layers) / sum(sizes.values())


def _move(move: Move) -> dict[str, Any]:
    scale = move.scale
    return {
        "source": move.group.source,
        "readers": list(move.group.readers),
        "alpha": move.alpha,
        "scale_min": float(scale.min()),
        "scale_median": float(scale.median()),
        "scale_max": float(scale.max()),
        **move.about,
    }
