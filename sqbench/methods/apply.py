"""From a float model to a quantized one: fold, then round. Only this module replaces layers."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sqbench.errors import UserError
from sqbench.methods.base import Method, Move, Task
from sqbench.methods.layer_formats import check_widths, formats_of, narrow_layers
from sqbench.methods.replay import sound
from sqbench.models.base import Model
from sqbench.models.batchnorm import fold_batchnorm
from sqbench.models.folding import Group, fold, share
from sqbench.models.parameters import ROLES
from sqbench.progress import track
from sqbench.quant import operations
from sqbench.quant.codec import encode
from sqbench.quant.formats import Format
from sqbench.quant.layers import ActivationQuantizer, QuantLayer, kind_of, sqnr_db, weight_of
from sqbench.quant.operations import Point
from sqbench.quant.outliers import describe
from sqbench.quant.statistics import InputStatistics

log = logging.getLogger(__name__)


@torch.no_grad()
def quantize(task: Task, method: Method) -> Model:
    """The model of a task, quantized by a method. The float model does not change and shares all parts that are not replaced.

    The result's `report` has the layers with their signal-to-noise ratios and outliers, the groups with their exponents, the
    refused groups with reasons, and the number of training steps (0).

    Raises:
        UserError: a group size does not divide a layer, or the method finds nothing to work on.
    """
    scheme, topology = task.scheme, task.topology
    if method.is_float:
        return task.model.with_module(task.model.module, empty_report())
    check_widths(task)
    module = share(task.model.module)
    stats = dict(task.statistics.inputs)
    points = quantized_points(task)
    crossing = f"its channels cross a tensor that bits.ops={scheme.ops} quantizes, and whose range after scaling is not known"
    refused = list(topology.refused)
    wanted = method.moves(task)
    refused += [(str(move.group), crossing) for move in wanted if _crosses(move.group, points)]
    moves, batchnorms, moving = sound(task, [move for move in wanted if not _crosses(move.group, points)], topology.batchnorms)
    refused += moving
    for move in moves:
        fold(module, move.group, move.scale)
        for site in task.sites(move.group):
            stats[site] = stats[site].scaled(move.group.spread(move.scale))
    fold_batchnorms(module, batchnorms)  # after the moves, because a norm that is folded away can be the source of a move
    report = empty_report()
    report.update(
        groups=[_move(move) for move in moves],
        refused=[{"group": name, "reason": reason} for name, reason in refused],
    )
    if scheme.is_float:
        return task.model.with_module(module, report)
    formats = formats_of(task)
    readers = Counter((topology.site[name], activations) for name, (_, activations) in formats.items())
    quantizers: dict[tuple[str, Format | None], ActivationQuantizer | None] = {}
    for name, (weights, activations) in track(formats.items(), "quantize"):
        layer, site = module.get_submodule(name), topology.site[name]
        if (site, activations) not in quantizers:
            quantizers[site, activations] = _activation(method, activations, stats[site], readers[site, activations], layer)
        limits = None if weights is None else method.weight_limits(name, weight_of(layer), stats[site], weights)
        encoded = None if weights is None else encode(weight_of(layer), weights, limits)
        quantized = QuantLayer(layer, encoded, quantizers[site, activations])
        module.set_submodule(name, quantized)
        report["per_layer"].append(describe_layer(name, weight_of(layer), quantized, stats[site]))
    place_points(module, points, lambda point: _point(method, task, point))
    report.update(sizes(task))
    warn_of_floats(task)
    if guessed := guessed_ranges(task):
        report["guessed"] = guessed
        log.warning(
            "%s: the input ranges of %d of %d layers are a guess, that of N(0, 1): nothing is known of what %s reads, for example",
            *(task.model.name, len(guessed), len(formats), guessed[0]),
        )
    return task.model.with_module(module, report)


def empty_report() -> dict[str, Any]:
    """The report of a model that was not changed."""
    return {
        "layers": 0,
        "weights": 0,
        "coverage": 0.0,
        "parameters": {},
        "narrow": [],
        "points": 0,
        "gradient_steps": 0,
        "groups": [],
        "refused": [],
        "floating": [],
        "per_layer": [],
    }


def sizes(task: Task) -> dict[str, Any]:
    """How much is quantized, and which matrices stay in float without being asked to."""
    return {
        "layers": len(task.topology.layers),
        "weights": count_weights(task),
        "coverage": coverage(task),
        "parameters": count_parameters(task),
        "narrow": narrow_layers(task),
        "points": len(quantized_points(task)),
        "floating": [{"layer": name, "reason": reason, "weights": _held(task, name)} for name, reason in task.topology.floating],
    }


def share_of(report: dict[str, Any]) -> dict[str, Any]:
    """The part of a report that tables show: layers, layers narrower than a group, the share of weights left in float unasked."""
    parameters = report.get("parameters")
    if not parameters:
        return {}
    left = parameters["floating"] / sum(parameters.values())
    return {"layers": report["layers"], "narrow": len(report["narrow"]), "floating": left}


def count_parameters(task: Task) -> dict[str, int]:
    """How many parameters are quantized, and how many have each other role. The sum is the whole model, tied ones once."""
    roles = task.model.topology.roles
    chosen = {f"{name}.weight" for name in task.topology.layers}
    counts = dict.fromkeys(("quantized", *(role for role in ROLES if role != "layer")), 0)
    for name, parameter in task.model.module.named_parameters():
        role = roles[name]
        counts["quantized" if name in chosen else "kept" if role == "layer" else role] += parameter.numel()
    return counts


def _held(task: Task, name: str) -> int:
    """The number of weights of an entry of `floating`, which is a layer or a bare parameter."""
    parameters = dict(task.model.module.named_parameters())
    found = parameters.get(name, parameters.get(f"{name}.weight"))
    return 0 if found is None else found.numel()


def warn_of_floats(task: Task) -> None:
    """Log a warning if matrices stay in float without being asked to, because a table would not show which."""
    if floating := task.topology.floating:
        name, reason = max(floating, key=lambda entry: _held(task, entry[0]))
        counts = count_parameters(task)
        share = 100 / sum(counts.values())
        log.warning(
            "%s: %.1f %% of the weights stay in float though nobody asked for it, and %.1f %% are quantized; the largest is %s: %s",
            *(task.model.name, share * counts["floating"], share * counts["quantized"], name, reason),
        )


def guessed_ranges(task: Task) -> list[str]:
    """Layers whose static input range is a guess: no input was seen, and no norm writes the tensor."""
    static = [name for name, (_, activations) in formats_of(task).items() if activations is not None and not activations.dynamic]
    return [name for name in static if task.topology.site[name] in task.statistics.guessed]


def fold_batchnorms(module: nn.Module, batchnorms: Iterable[tuple[str, str]]) -> None:
    """Fold (layer, BatchNorm) pairs in a module that shares its tensors."""
    for layer, norm in batchnorms:
        fold_batchnorm(module, layer, norm)


def quantized_points(task: Task) -> list[Point]:
    """The tensors that the scheme's op set quantizes, besides inputs of layers."""
    if task.scheme.activations is None:
        return []
    points = [point for point in task.topology.points if point.kind in operations.KINDS[task.scheme.ops]]
    if any(point.site not in task.statistics.inputs for point in points):
        raise UserError(f"bits.ops={task.scheme.ops}: the statistics hold no points; use calibrate(model, inputs, points=True)")
    return points


def _crosses(group: Group, points: list[Point]) -> bool:
    """Whether channels moved between two layers may cross a quantized tensor: v -> o does, norm -> linears does not."""
    parent = os.path.commonpath([name.replace(".", "/") for name in (group.source, *group.readers)]).replace("/", ".")
    return group.kind == "pair" and any(f"{point.owner}.".startswith(f"{parent}." if parent else "") for point in points)


def place_points(module: nn.Module, points: list[Point], make: Callable[[Point], nn.Module]) -> None:
    """Put the quantizers that `make(point)` returns into the owners of points."""
    for owner in dict.fromkeys(point.owner for point in points):
        own = [point for point in points if point.owner == owner]
        operations.QuantizedOwner(module.get_submodule(owner), own, [make(point) for point in own])


def _activation(
    method: Method, fmt: Format | None, stats: InputStatistics, readers: int, layer: nn.Module
) -> ActivationQuantizer | None:
    if fmt is None:
        return None
    kind = kind_of(layer)
    limits = None if fmt.dynamic else method.activation_limits(stats, fmt)
    return ActivationQuantizer(fmt, limits, readers, axis=-1 if kind is None else kind.axis)


def _point(method: Method, task: Task, point: Point) -> ActivationQuantizer:
    assert task.scheme.activations is not None
    fmt = task.scheme.activations.ungrouped("token")
    return ActivationQuantizer(fmt, None if fmt.dynamic else method.activation_limits(task.statistics.inputs[point.site], fmt))


def describe_layer(name: str, weight: Tensor, layer: QuantLayer, stats: InputStatistics) -> dict[str, Any]:
    """The effect on one layer: outliers of its input, noise of its weight and (on the sample rows) of its input."""
    entry: dict[str, Any] = {
        "layer": name,
        "format": str(layer.format or "float"),
        "weight_sqnr_db": round(sqnr_db(weight, weight_of(layer.simulated())), 3),
        **{name: float(f"{value:.6g}") for name, value in describe(stats).items()},  # short: there can be hundreds of layers
    }
    if isinstance(layer.activation, ActivationQuantizer):
        entry["input_sqnr_db"] = round(sqnr_db(stats.rows, layer.activation(stats.rows)), 3)
    return entry


def count_weights(task: Task) -> int:
    """How many weights are quantized."""
    return sum(weight_of(task.model.module.get_submodule(name)).numel() for name in task.topology.layers)


def coverage(task: Task) -> float:
    """The quantized share of all weights in layers and embeddings. Tied weights count once."""
    return count_weights(task) / sum(parameter.numel() for parameter in task.model.module.parameters() if parameter.dim() >= 2)


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
