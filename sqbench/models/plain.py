"""Plain layers for layers of unknown classes. A linear layer or convolution is replaced if both are proven to compute the same.

Falcon's linear layers multiply by their weight in a forward pass of their own. A weight-standardised convolution, a parametrization
or a hook computes the weight first. All of them are products with one weight, so a plain layer with that weight takes their place.
It is read, folded and rounded like any other layer. A layer that does something else (an adapter, noise, codes of another library)
stays as it is, and is never quantized.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sqbench.models.tracing import relative_difference
from sqbench.quant.access import kind_of

TOLERANCE = 1e-5  # relative, in float32; the same product in another order differs by less
SCALES = (1.0, 100.0, 0.01)  # of the inputs that a layer is tried on; a clamp or a rounding shows at one of them


@torch.no_grad()
def make_plain(module: nn.Module) -> None:
    """Replace every layer that is proven to compute the same as a plain layer by that layer, in place. Tensors are shared."""
    found = {layer: plain(layer) for layer in module.modules() if layer is not module}
    for name, layer in list(module.named_modules(remove_duplicate=False)):
        if (other := found.get(layer)) is not None:
            module.set_submodule(name, other)


def is_foreign(layer: nn.Module) -> bool:
    """Whether a layer's class is a linear layer or two-dimensional convolution that is not known to compute as one."""
    return isinstance(layer, nn.Linear | nn.Conv2d) and kind_of(layer) is None


def plain(layer: nn.Module) -> nn.Module | None:
    """The plain layer that computes the same as a layer of another class. None if it is plain itself, or if there is none."""
    tensors = [*layer.parameters(), *layer.buffers()]
    if not is_foreign(layer) or not tensors or any(tensor.is_meta for tensor in tensors):
        return None
    try:
        with torch.random.fork_rng(devices=[]):  # a layer that draws noise must not change later random numbers
            return _proven(layer, _inputs(layer))
    except Exception:  # noqa: BLE001 (a layer of somebody else's may raise anything, and is left alone then)
        return None


def _proven(layer: nn.Module, inputs: list[Tensor]) -> nn.Module | None:
    """The first candidate that computes the same as a layer in float32. Half precision cannot tell two functions apart."""
    candidates = _candidates(layer, inputs[0].to(next(layer.parameters()).dtype))
    wide = copy.deepcopy(layer).float()
    wanted = [wide(x) for x in inputs]
    for candidate, widened in zip(candidates, _candidates(wide, inputs[0]), strict=True):
        if all(_same(widened(x), y) for x, y in zip(inputs, wanted, strict=True)):
            return candidate
    return None


def _same(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and relative_difference(y, x) <= TOLERANCE


def _inputs(layer: nn.Module) -> list[Tensor]:
    """Random inputs of several scales. Images also have several sizes, because padding depends on the size."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(layer, nn.Linear):
        shapes: list[tuple[int, ...]] = [(2, 3, layer.in_features)] * len(SCALES)
    else:
        assert isinstance(layer, nn.Conv2d)
        reach = [step * (size - 1) + 1 for step, size in zip(layer.dilation, layer.kernel_size, strict=True)]
        shapes = [(2, layer.in_channels, reach[0] + 4 + more, reach[1] + 5 + more) for more in range(len(SCALES))]
    device = next(layer.parameters()).device
    return [torch.randn(*shape, generator=generator).to(device) * scale for shape, scale in zip(shapes, SCALES, strict=True)]


def _candidates(layer: nn.Module, x: Tensor) -> list[nn.Module]:
    """Plain layers that may compute the same. They have the layer's own weight, or a weight that it multiplies by."""
    with _Products() as seen:
        layer(x)
    own = [(layer.weight, layer.bias)] if isinstance(layer._parameters.get("weight"), Tensor) else []
    return [_twin(layer, cls, weight, bias) for weight, bias in own + seen.operands for cls in _classes(layer)]


def _classes(layer: nn.Module) -> list[type[nn.Module]]:
    if isinstance(layer, nn.Linear):
        return [nn.Linear]
    from timm.layers import Conv2dSame

    return [nn.Conv2d, Conv2dSame]


def _twin(layer: nn.Module, cls: type[nn.Module], weight: Any, bias: Any) -> nn.Module:
    """A layer of class `cls` with the geometry of `layer` and these parameters, and nothing else of `layer`."""
    other = cls.__new__(cls)  # no __init__: it would draw a weight
    kept = {name: value for name, value in layer.__dict__.items() if name not in ("weight", "bias", "forward")}
    other.__dict__.update(kept | nn.Module().__dict__ | {"training": layer.training})  # without its hooks and children
    for name, value in (("weight", weight), ("bias", bias)):
        own = isinstance(value, nn.Parameter) or value is None
        other.register_parameter(name, value if own else nn.Parameter(value.detach().clone(), requires_grad=False))
    return other


class _Products(TorchFunctionMode):
    """Records the weight and the bias of each product that is computed inside its `with` statement."""

    def __init__(self) -> None:
        super().__init__()
        self.operands: list[tuple[Any, Any]] = []

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("linear", "conv2d"):
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            self.operands.append((weight, args[2] if len(args) > 2 else kwargs.get("bias")))
        return func(*args, **kwargs)
