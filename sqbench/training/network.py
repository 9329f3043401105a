"""The network that trains and computes through quantizers, and the quantized network that it becomes."""

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sqbench.formats.codec import encode
from sqbench.formats.format import Format
from sqbench.models.batchnorm import batchnorm_scale, fold_batchnorm, is_batchnorm
from sqbench.models.folding import share
from sqbench.parts.layer_formats import check_widths, formats_of, of_inputs
from sqbench.parts.task import Task
from sqbench.pipeline.points import place_points, quantized_points
from sqbench.pipeline.report import describe_layer, empty_report, sizes, warn_of_floats
from sqbench.quant.access import kind_of, weight_of
from sqbench.quant.layers import ActivationQuantizer, QuantLayer
from sqbench.quant.trainable import LearnedStep, Range, TrainableActivation, TrainableLayer
from sqbench.rounding.trained import Qat


@dataclass
class Network:
    """One trainable copy of a float model.

    Attributes:
        latent: the float network behind the quantizers, in float32 whatever the model's dtype.
        module: a second tree over the same tensors, with quantized layers and points.
        layers: name -> the layer in `module`, in order of execution. Empty for a float scheme.
        points: site -> the quantizer of a tensor that no layer reads.
    """

    latent: nn.Module
    module: nn.Module
    layers: dict[str, TrainableLayer]
    points: dict[str, TrainableActivation]

    @classmethod
    def of(cls, task: Task, method: Qat) -> "Network":
        """A network that starts from calibration and the method's ranges. The task's model stays as it is.

        Raises:
            UserError: a group size does not divide a layer.
        """
        check_widths(task)
        latent = copy.deepcopy(task.model.module).float().eval().requires_grad_(True)
        network = cls(latent, share(latent), {}, {})
        if not task.scheme.is_float:
            network._place_layers(task, method)
            network._place_points(task, method)
        return network

    def _place_layers(self, task: Task, method: Qat) -> None:
        topology, norms = task.topology, dict(task.topology.batchnorms)
        shared: dict[tuple[str, Format | None], TrainableActivation | None] = {}
        formats = formats_of(task)
        readers = Counter((topology.site[name], activations) for name, (_, activations) in formats.items())
        for name, (weights, activations) in formats.items():
            layer, site = self.module.get_submodule(name), topology.site[name]
            if (site, activations) not in shared:
                kind = kind_of(layer)
                stats = task.statistics.inputs[site]
                range_ = None if activations is None else method.activation_range(stats, of_inputs(activations, stats))
                axis = -1 if kind is None else kind.axis
                shared[site, activations] = (
                    None if range_ is None else TrainableActivation(range_, readers[site, activations], axis)
                )
            norm_scale = partial(_scale, self.module.get_submodule(norms[name])) if name in norms else None
            trainable = TrainableLayer(layer, None, shared[site, activations], norm_scale)
            if weights is not None:
                trainable.weights = method.weight_range(trainable.folded()[0].detach(), weights)
            self.module.set_submodule(name, trainable)
            self.layers[name] = trainable

    def _place_points(self, task: Task, method: Qat) -> None:
        points = quantized_points(task)
        for point in points:
            assert task.scheme.activations is not None
            fmt = task.scheme.activations.ungrouped("token")
            self.points[point.site] = TrainableActivation(method.activation_range(task.statistics.inputs[point.site], fmt))
        place_points(self.module, points, lambda point: self.points[point.site])

    def ranges(self) -> Iterator[tuple[str, Range]]:
        """Every range with its name. A shared range comes once."""
        return ((name, module) for name, module in self.module.named_modules() if isinstance(module, Range))

    def parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The parameters of the float network, and the steps that are learned."""
        steps = [range_.log_step for _, range_ in self.ranges() if isinstance(range_, LearnedStep)]
        return list(self.latent.parameters()), steps

    def observe(self, observing: bool) -> None:
        """Set whether BatchNorms use and follow the statistics of batches, and whether moving ranges follow their extremes.

        Nothing else changes.
        """
        for module in self.module.modules():
            if is_batchnorm(module) or isinstance(module, Range):
                module.training = observing

    def state(self) -> dict[str, Tensor]:
        """All tensors that training changes, by name. They are not copied, and tied ones come once."""
        tensors = {f"float/{name}": value for name, value in (*self.latent.named_parameters(), *self.latent.named_buffers())}
        for name, range_ in self.ranges():
            tensors |= {f"range/{name}/{key}": value for key, value in range_.state_dict().items()}
        return tensors

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Copy back the tensors that `state` returned at another time."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])

    @torch.no_grad()
    def settled(self, task: Task) -> tuple[nn.Module, dict[str, Any]]:
        """The quantized network and its report. The network consists of the modules that any method makes.

        Signal-to-noise ratios of weights compare with the trained float weight behind them.
        """
        dtype = next(task.model.module.parameters()).dtype
        module = copy.deepcopy(self.latent).requires_grad_(False).to(dtype)
        for pair in task.topology.batchnorms:
            fold_batchnorm(module, *pair)
        report, settled = empty_report(), {}
        if not self.layers:
            return module, report
        for name, trained in self.layers.items():
            layer, activation = module.get_submodule(name), trained.activation
            if id(activation) not in settled:
                settled[id(activation)] = None if activation is None else activation.settled()
            fmt = None if trained.weights is None else trained.weights.fmt
            encoded = None if fmt is None else encode(weight_of(layer), fmt, trained.weight_limits())
            quantized = QuantLayer(layer, encoded, settled[id(activation)])
            module.set_submodule(name, quantized)
            stats = task.statistics.inputs[task.topology.site[name]]
            report["per_layer"].append(describe_layer(name, weight_of(layer), quantized, stats))
        points = quantized_points(task)
        place_points(module, points, lambda point: self._settled_point(point.site))
        report.update(sizes(task))
        warn_of_floats(task)
        return module, report

    def _settled_point(self, site: str) -> ActivationQuantizer:
        return self.points[site].settled()


def _scale(norm: nn.Module) -> Tensor:
    return batchnorm_scale(norm)[0]
