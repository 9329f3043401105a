"""The formats of each layer. The scheme, the layer's own width, its place (first or last) and its size decide them."""

from collections.abc import Mapping
from dataclasses import replace

from sqbench.errors import UserError
from sqbench.formats.format import Format
from sqbench.formats.scheme import Scheme
from sqbench.parts.task import Task
from sqbench.quant.access import Widths, weight_of, widths_of
from sqbench.statistics.inputs import InputStatistics


def formats_of(task: Task) -> dict[str, tuple[Format | None, Format | None]]:
    """Layer -> formats of its weight and its input.

    The rule is the same for linear layers and convolutions: groups run along the input channels. A layer may have fewer input
    channels than one group, as for images of three colours or in a depthwise convolution. It then has one scale per output channel,
    and its input has one scale per token or pixel.
    """
    formats = {}
    layers, chosen = task.model.topology.layers, set(task.topology.layers)
    for index, name in enumerate(layers):  # over all layers of the model: the first and the last do not depend on the choice
        if name in chosen:
            weights, inputs = task.scheme.of_layer(name, index, len(layers))
            size = widths_of(task.model.module.get_submodule(name))
            formats[name] = (
                weights and weights.for_width(size.reads, "channel"),
                inputs and inputs.for_width(size.channels, "token"),
            )
    return formats


def bound_formats(task: Task) -> dict[str, tuple[Format | None, Format | None]]:
    """`formats_of`, where scales of two levels know the largest magnitude of their tensor.

    Layers that read one tensor, such as q, k and v, share that of their weights. A runtime that fuses them has one number for all.
    That of an input is the largest of calibration.
    """
    formats, largest = formats_of(task), dict[str, float]()
    for name, (weights, _) in formats.items():
        if weights is not None and weights.two_levels:
            site = task.topology.site[name]
            own = float(weight_of(task.model.module.get_submodule(name)).abs().max())
            largest[site] = max(largest.get(site, 0.0), own)
    return {
        name: (
            replace(weights, amax=largest[task.topology.site[name]]) if weights is not None and weights.two_levels else weights,
            inputs and of_inputs(inputs, task.of_layer(name)),
        )
        for name, (weights, inputs) in formats.items()
    }


def of_inputs(fmt: Format, stats: InputStatistics) -> Format:
    """The format of an input. Scales of two levels know the largest magnitude of calibration."""
    return replace(fmt, amax=float(stats.absmax.max())) if fmt.two_levels else fmt


def narrow_layers(task: Task) -> list[str]:
    """Layers that have fewer input channels than a group of the scheme's weights or activations."""
    asked = [fmt and fmt.group_size for fmt in (task.scheme.weights, task.scheme.activations)]
    return [
        name
        for name, own in formats_of(task).items()
        if any(size is not None and fmt is not None and fmt.group_size is None for size, fmt in zip(asked, own, strict=True))
    ]


def check_widths(task: Task) -> None:
    """Raise UserError if groups of weights or activations do not fit the layers (see `check_groups`)."""
    check_groups(task.scheme, {name: widths_of(task.model.module.get_submodule(name)) for name in task.topology.layers})


def check_groups(scheme: Scheme, layers: Mapping[str, Widths]) -> None:
    """Raise UserError if a group or a block does not divide a layer, or if no layer has so many inputs. It says what works."""
    reads, channels = ({name: size[place] for name, size in layers.items()} for place in (0, 1))
    slots = (("bits.weights", scheme.weights, reads, "channel"), ("bits.activations", scheme.activations, channels, "token"))
    for key, fmt, widths, instead in slots:
        if fmt is None or fmt.group_size is None or not layers:
            continue
        for name, width in widths.items():
            fmt.check_width(name, width, key, beside=widths.values())
        if (widest := max(widths.values())) < fmt.group_size:
            raise UserError(
                f"{key}.group_size={fmt.group_size}: no layer has so many input channels, the widest has {widest};"
                f" use {key}.granularity={instead} {key}.group_size=null"
            )
        outputs = {name: layers[name].outputs for name, width in widths.items() if width >= fmt.group_size}
        for name, count in outputs.items():
            fmt.check_rows(name, count, key, beside=outputs.values())
