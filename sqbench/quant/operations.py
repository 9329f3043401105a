"""Tensors that no layer reads: operands of attention's two matrix products, softmax inputs, the residual stream.

They have no module that could be replaced. Instead, the forward pass of the module that computes with them (their *owner*) is
watched. Every call of a product, an addition or fused attention there goes through `visit`, which finds, observes or quantizes
tensors. The scheme's op set says which tensors are quantized. PTQ4ViT (Yuan et al., 2022) quantizes the products, FQ-ViT (Lin et
al., 2022) every tensor.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

# Op set (see Scheme.ops) -> the kinds of points that are quantized besides the inputs of layers.
KINDS: dict[str, tuple[str, ...]] = {"linear": (), "linear+matmul": ("matmul",), "full": ("matmul", "stream")}

Visit = Callable[[str, str, Tensor], Tensor]  # (name, kind, tensor) -> the tensor that replaces it


@dataclass(frozen=True)
class Point:
    """One tensor inside a module.

    Attributes:
        owner: name of the module that computes with it.
        name: which of its tensors: `q`, `k`, `v`, `probs`, `scores`, `add`, `matmul.a`, `input`. A second one is `q1`, `matmul1.a`.
        kind: `matmul` (an operand of a product) or `stream` (softmax inputs, sums, inputs of norms).
        channels: whether the last axis holds channels. Otherwise that axis has no fixed meaning.
    """

    owner: str
    name: str
    kind: str
    channels: bool

    @property
    def site(self) -> str:
        """The name of the point among all sites of a model."""
        return f"{self.owner}:{self.name}"

    def rows(self, x: Tensor) -> Tensor:
        """The tensor in the shape that statistics take: [examples, ..., channels]."""
        return x if self.channels else x.flatten(1).unsqueeze(-1)


def has_channels(name: str, x: Tensor) -> bool:
    """Whether the last axis of a tensor at a point means the same for every input."""
    return x.dim() <= 3 if name.startswith(("add", "input")) else name.startswith(("q", "k", "v"))


def attention(
    visit: Visit,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention` in separate steps, softmax(q k^T scale + mask) v. Every operand is visited."""
    query, key, value = visit("q", "matmul", query), visit("k", "matmul", key), visit("v", "matmul", value)
    if enable_gqa:
        times = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(times, -3), value.repeat_interleave(times, -3)
    factor = int(query.shape[-1]) ** -0.5 if scale is None else scale  # a constant also in a graph that is traced
    scores = query @ key.transpose(-2, -1) * factor
    scores = visit("scores", "stream", scores)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    probs = torch.nn.functional.dropout(scores.softmax(-1), dropout_p, training=dropout_p > 0)
    return visit("probs", "matmul", probs) @ value


def _fused(visit: Visit, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return attention(visit, *args, **kwargs)


def _product(visit: Visit, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if len(args) < 2 or not all(_is_activation(operand) for operand in args[:2]):
        return function(*args, **kwargs)
    return function(visit("matmul.a", "matmul", args[0]), visit("matmul.b", "matmul", args[1]), *args[2:], **kwargs)


def _sum(visit: Visit, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    result = function(*args, **kwargs)
    both = len(args) > 1 and all(isinstance(operand, Tensor) and operand.dim() > 1 for operand in args[:2])
    return visit("add", "stream", result) if both and _is_activation(result) else result


def _is_activation(x: Any) -> bool:
    return isinstance(x, Tensor) and not isinstance(x, nn.Parameter) and x.is_floating_point() and x.dim() > 2


Handler = Callable[[Visit, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
HANDLERS: dict[str, Handler] = {
    "scaled_dot_product_attention": _fused,
    **dict.fromkeys(("matmul", "__matmul__", "bmm"), _product),
    **dict.fromkeys(("add", "__add__", "__radd__", "add_", "__iadd__"), _sum),
}


def handlers_of(points: Iterable[Point]) -> dict[str, Handler]:
    """The operations that an owner of these points must intercept. Attention without a point of this owner stays fused."""
    needed = {_sum if point.name.startswith("add") else _product if point.name.startswith("matmul") else _fused for point in points}
    return {name: handler for name, handler in HANDLERS.items() if handler in needed}


class _Intercept(TorchFunctionMode):
    """Sends operations through a visitor while it is entered. By default these are the operations of `HANDLERS`."""

    def __init__(self, visit: Visit, handlers: dict[str, Handler] = HANDLERS) -> None:
        super().__init__()
        self.visit, self.handlers = visit, handlers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        handler = self.handlers.get(getattr(func, "__name__", ""))
        if handler is None:
            return func(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunction():  # an enclosing owner must not see these calls as its own
            return handler(self.visit, func, args, kwargs or {})


class _Names:
    """Makes equal names within one call of an owner unique by numbers: add, add1, add2."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}

    def __call__(self, name: str) -> str:
        count = self.seen.get(name, 0)
        self.seen[name] = count + 1
        stem, dot, operand = name.partition(".")
        return name if not count else f"{stem}{count}{dot}{operand}"


class Owner(nn.Module):
    """Replaces a module's `forward` and sends every tensor of its points through `take`.

    A copy of the module copies its owner too. An exception, also Ctrl-C, leaves no changed state in torch.
    """

    def __init__(self, module: nn.Module, points: list[Point], visit: Callable[[Point, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.points = {point.name: point for point in points}
        self.handlers = handlers_of(point for point in points if point.name != "input")
        self.visit = visit
        self._module = [module]  # in a list, so that torch does not register the module as a submodule
        self._before = module.__dict__.get("forward")
        module.forward = self.run

    def take(self, point: Point, x: Tensor) -> Tensor:
        """The tensor that replaces x."""
        assert self.visit is not None
        return self.visit(point, x)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own forward pass, watched."""
        (module,), names = self._module, _Names()

        def visit(name: str, kind: str, x: Tensor) -> Tensor:
            point = self.points.get(names(name))
            return x if point is None else self.take(point, x)

        if (own := self.points.get("input")) is not None:
            args = (self.take(own, args[0]), *args[1:])
        with _Intercept(visit, self.handlers):
            return type(module).forward(module, *args, **kwargs) if self._before is None else self._before(*args, **kwargs)

    def remove(self) -> None:
        """Give the module its own forward back."""
        (module,) = self._module
        if self._before is None:
            module.__dict__.pop("forward", None)
        else:
            module.forward = self._before


class QuantizedOwner(Owner):
    """An owner whose points go through quantizers. They are submodules of the module, so they move and are copied with it."""

    def __init__(self, module: nn.Module, points: list[Point], quantizers: list[nn.Module]) -> None:
        super().__init__(module, points)
        self.places = {point.name: place for place, point in enumerate(points)}
        module.add_module("quantized_points", nn.ModuleList(quantizers))

    def take(self, point: Point, x: Tensor) -> Tensor:
        """The quantized tensor."""
        return self._module[0].quantized_points[self.places[point.name]](x)  # type: ignore[index, operator]


@contextmanager
def visiting(root: nn.Module, points: list[Point], visit: Callable[[Point, Tensor], Tensor]) -> Iterator[None]:
    """Send these points of a model through `visit` inside a `with` block."""
    owners: dict[str, list[Point]] = {}
    for point in points:
        owners.setdefault(point.owner, []).append(point)
    entered = [Owner(root.get_submodule(name), own, visit) for name, own in owners.items()]
    try:
        yield
    finally:
        for owner in reversed(entered):
            owner.remove()


def find_points(root: nn.Module, forward: Callable[[], Any]) -> tuple[Point, ...]:
    """Every point of one forward pass, in order of execution.

    Inputs of norms and activation functions are points too. The output of a sum is already a point, and is not added again.
    """
    found: dict[str, Point] = {}
    stack: list[tuple[str, _Names]] = []
    summed: list[Tensor] = []  # kept alive, so that `is` compares reliably

    def visit(name: str, kind: str, x: Tensor) -> Tensor:
        owner, names = stack[-1]
        point = Point(owner, names(name), kind, has_channels(name, x))
        found.setdefault(point.site, point)
        if name == "add":
            summed.append(x)
        return x

    def enter(name: str, pointwise: bool) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            stack.append((name, _Names()))
            if pointwise and args and _is_activation(args[0]) and not any(args[0] is x for x in summed):
                visit("input", "stream", args[0])

        return hook

    handles = []
    for name, module in root.named_modules():
        leaf = not list(module.children())
        weight = getattr(module, "weight", None)
        norm = leaf and isinstance(weight, Tensor) and weight.dim() == 1 and not isinstance(module, _BatchNorm)  # will be folded
        activation = leaf and type(module).__module__.startswith(("torch.nn.modules.activation", "timm.layers.activations"))
        handles.append(module.register_forward_pre_hook(enter(name, norm or activation)))
        handles.append(module.register_forward_hook(lambda *_: stack.pop() and None, always_call=True))
    try:
        with _Intercept(visit):
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return tuple(found.values())
