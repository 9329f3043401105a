"""The roles of a network's parameters: a layer's weight, an embedding, a norm, part of the head, or an unquantized matrix.

Each parameter has exactly one role. Roles come from what one forward pass does with the parameters, not from their names. A matrix
that a product reads is a weight, wherever the model keeps it (experts of a mixture as one tensor, a router without a module).
"""

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from sqbench.models.batchnorm import is_batchnorm
from sqbench.models.plain import is_foreign
from sqbench.models.tracing import Trace
from sqbench.quant.access import kind_of

# Role -> the parameters that have it.
ROLES = {
    "layer": "weights of linear and convolution layers that are called",
    "kept": "layers that stay in float because somebody asked",
    "head": "the output embedding, or what takes its place",
    "embedding": "tables that are looked up",
    "norm": "weights and biases of norms",
    "other": "biases, class tokens, position embeddings, scales: no product reads them",
    "floating": "matrices that a product reads, or that were not seen at work, outside the layers",
}
PRODUCTS = ("mm", "mv", "dot", "conv", "attention", "rnn", "lstm", "gru", "matmul", "einsum")  # parts of names of operations


class Uses(TorchDispatchMode):
    """Follows a network's parameters, and tensors computed from them alone, through a forward pass.

    Attributes:
        seen: names of the parameters that any operation read.
        products: names of the parameters that a matrix product read, or an operation that is not torch's own.
        tables: names of the parameters that an embedding looked up.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.products: set[str] = set()
        self.tables: set[str] = set()
        # Tensor -> the parameters that it is computed from. Tensors that depend on the model's input are left out.
        self._from: Any = WeakTensorKeyDictionary()
        for buffer in module.buffers():
            self._from[buffer] = frozenset()
        for name, parameter in module.named_parameters():
            self._from[parameter] = frozenset((name,))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        space, _, operation = func.name().partition("::")
        operation = operation.partition(".")[0]
        product = space != "aten" or operation == "linear" or any(part in operation for part in PRODUCTS)
        table = operation.startswith("embedding")
        factors = args[:3] if "scaled_dot_product" in operation else given  # the mask is added, so it is no factor
        names, read = self._names(given), self._names(factors)
        self.seen |= names
        self.products |= read if product else frozenset()
        self.tables |= names if table else frozenset()
        activation = product or table or any(x.is_floating_point() and x not in self._from for x in given)
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and not activation:
                self._from[x] = names
            elif isinstance(x, Tensor):
                self._from.pop(x, None)  # written in place
        return result

    def _names(self, tensors: Iterable[Any]) -> frozenset[str]:
        """The parameters that tensors are computed from. Tensors that depend on the model's input have none."""
        return frozenset().union(*(self._from.get(x, frozenset()) for x in tensors if isinstance(x, Tensor)))


def roles_of(
    module: nn.Module, uses: Uses, layers: Collection[str], kept: Collection[str], head: Collection[str]
) -> dict[str, str]:
    """The role of every parameter: name -> a key of `ROLES`.

    Args:
        layers: layers that may be quantized.
        kept: layers that stay in float on request.
        head: modules of the head.
    """
    return {name: _role(module, name, parameter, uses, layers, kept, head) for name, parameter in module.named_parameters()}


def _role(
    module: nn.Module,
    name: str,
    parameter: Tensor,
    uses: Uses,
    layers: Collection[str],
    kept: Collection[str],
    head: Collection[str],
) -> str:
    place, _, own = name.rpartition(".")
    owner = module.get_submodule(place)
    if place in layers and own == "weight":
        return "layer"
    if place in kept or place in head:
        return "head" if place in head else "kept"
    if isinstance(owner, nn.Embedding | nn.EmbeddingBag) or name in uses.tables:
        return "embedding"
    if name in uses.products and place not in layers and parameter.dim() > 1:  # a product reads its bias, too
        return "floating"
    if parameter.numel() == max(parameter.shape, default=1):  # a vector, with any number of axes of length 1
        return "norm" if is_norm(owner) else "other"
    return "floating" if name not in uses.seen or _is_layer(owner) else "other"


def is_norm(module: nn.Module) -> bool:
    """Whether a module has one weight per channel and no children. A BatchNorm of timm may hold an activation."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 1 and (not list(module.children()) or is_batchnorm(module))


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.modules.conv._ConvNd) or kind_of(module) is not None


def floating(
    module: nn.Module, roles: dict[str, str], uses: Uses, trace: Trace, outside: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Yield (name, reason) of every matrix that stays in float without a request. The name is the layer's or the parameter's.

    Args:
        outside: layers that the model's body does not run.
    """
    for name in (name for name, role in roles.items() if role == "floating"):
        place, _, own = name.rpartition(".")
        owner = module.get_submodule(place)
        if _is_layer(owner) and own == "weight":
            yield place, _reason(place, owner, name in uses.seen, trace, outside)
        else:
            shape = "x".join(map(str, module.get_parameter(name).shape))
            yield (
                name,
                f"a parameter of {shape} outside linear and convolution layers"
                + ("" if name in uses.seen else ", which the example does not reach"),
            )


def _reason(name: str, layer: nn.Module, seen: bool, trace: Trace, outside: Collection[str]) -> str:
    if name in outside:
        return "it belongs to the head: the model's body, which calibration runs, does not call it"
    if not seen:
        return "the example does not reach it"
    if name not in trace.calls:
        return "its weight is used without calling it"
    if kind_of(layer) is not None:
        return "its input is not the first argument of its call"
    if is_foreign(layer):
        return f"layers of class {type(layer).__name__} do not compute a product with one fixed weight"
    return f"a {type(layer).__name__} is neither a linear layer nor a two-dimensional convolution"
