"""The report on a quantized model: how much is quantized, what is left in float, and the effect on every layer."""

import logging
from typing import Any

from torch import Tensor

from sqbench.calibration.routed import FEW, expert_of
from sqbench.models.parameters import ROLES
from sqbench.parts.layer_formats import formats_of, narrow_layers
from sqbench.parts.task import Task
from sqbench.pipeline.points import quantized_points
from sqbench.pipeline.slots import slots_of
from sqbench.quant.access import weight_of
from sqbench.quant.layers import ActivationQuantizer, QuantLayer, sqnr_db
from sqbench.statistics.inputs import InputStatistics
from sqbench.statistics.outliers import describe

log = logging.getLogger(__name__)


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


def begin_report(task: Task) -> dict[str, Any]:
    """The report on a model before its blocks are quantized. It warns of layers left in float, and of guessed ranges."""
    report = empty_report()
    report["refused"] = [{"group": name, "reason": reason} for name, reason in task.topology.refused]
    if task.scheme.is_float:
        return report
    report |= sizes(task)
    warn_of_floats(task)
    if guessed := guessed_ranges(task):
        report["guessed"] = guessed
        log.warning(
            "%s: the input ranges of %d of %d layers are a guess, that of N(0, 1): nothing is known of what %s reads, for example",
            *(task.model.name, len(guessed), len(formats_of(task)), guessed[0]),
        )
    return report


def unreached_experts(task: Task) -> list[dict[str, Any]]:
    """Experts of a mixture to which calibration routed too few tokens (`sqbench.calibration.routed`), with their tokens."""
    found: dict[str, int] = {}
    for name in task.topology.layers:
        stats = task.statistics.inputs.get(task.topology.site[name])
        if stats is not None and stats.routed is not None:
            found[expert_of(name)] = stats.routed
    return [{"expert": name, "tokens": tokens} for name, tokens in found.items()]


def warn_of_unreached(name: str, report: dict[str, Any]) -> None:
    """Log a warning if a report names experts that too few calibration tokens reached."""
    if unreached := report.get("unreached"):
        least = min(unreached, key=lambda entry: entry["tokens"])
        log.warning(
            "%s: %d experts were reached by fewer than %d calibration tokens, and are calibrated on all tokens of their block;"
            " the first of the least reached is %s, by %d",
            *(name, len(unreached), FEW, least["expert"], least["tokens"]),
        )


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
    chosen = {f"{name}.weight" for name in (*task.topology.layers, *(name for _, name, _ in slots_of(task.model, task.scheme)))}
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
    """How many weights are quantized, in layers, the embedding and the head."""
    slots = (name for _, name, _ in slots_of(task.model, task.scheme))
    return sum(task.model.module.get_submodule(name).weight.numel() for name in (*task.topology.layers, *slots))


def coverage(task: Task) -> float:
    """The quantized share of all weights in layers and embeddings. Tied weights count once."""
    return count_weights(task) / sum(parameter.numel() for parameter in task.model.module.parameters() if parameter.dim() >= 2)
