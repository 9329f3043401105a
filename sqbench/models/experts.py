"""Experts of a mixture, split from stacked tensors into linear layers. A split is kept only if it is proven to compute the same.

transformers keeps all experts of a block in a few three-dimensional parameters. A layer is the unit of this package. So a stand-in
holds linear layers for every expert. Their weights are views of the stacked tensors. It routes tokens as the original does.
Experts of other layouts stay as they are, in float, and the report names them.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sqbench.models.expert_layout import Layout
from sqbench.models.tracing import is_half, relative_difference

TOLERANCE = 1e-5  # relative, in float32; the same products in another order differ by less
SCALES = (1.0, 100.0, 0.01)  # of the inputs that a split is tried on; a clamp shows at one of them

Rule = Callable[[str, int], bool]  # (name of an expert, tokens routed to it) -> whether it reads all tokens


class _Between(nn.Module):
    """The function between the products of an expert: gate and activation. It is the original's own."""

    def __init__(self, module: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.original = copy.copy(module)
        self.original._parameters = {}
        self.word = "_apply_gate" if layout.has_gate else "act_fn"

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = getattr(self.original, self.word)(x)
        return result


class Experts(nn.Module):
    """Takes the place of a module with stacked experts. Expert `n` is the submodule `n`.

    An expert runs once per call, over the tokens that are routed to it. It does not run if there are none.

    Attributes:
        rule: which experts read all tokens instead; see `feeding`. None: none does.
        heard: whether what these compute for further tokens is part of the output.
    """

    def __init__(self, module: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.count = len(module.get_parameter("down_proj"))
        self.between = _Between(module, layout)
        for number in range(self.count):
            self.add_module(str(number), layout.expert(module, number))
        self.rule: Callable[[int, int], bool] | None = None
        self.heard = False
        # In a list, so that torch does not register it. Weights that are read later have its names.
        self._stacked = [module] if _is_outline(module) else []

    def forward(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """The weighted sum of experts for each token: [tokens, width].

        Args:
            hidden: [tokens, width].
            chosen: [tokens, k], experts of each token. A number that is no expert's stands for none.
            weights: [tokens, k].
        """
        slots = chosen.shape[1]
        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        counts = torch.bincount(flat, minlength=self.count).tolist()
        outputs = hidden.new_zeros(len(flat), hidden.shape[1])
        fed = []
        for number, places in zip(range(self.count), order.split(counts), strict=False):
            if self.rule is not None and self.rule(number, len(places)):
                fed.append(number)
            elif len(places):
                outputs[places] = self._of(number, hidden[places // slots])
        result = (outputs.view(*chosen.shape, -1) * weights.unsqueeze(-1)).sum(1)
        for number in fed:  # each reads a tensor of its own, as it does when tokens are routed
            share = ((chosen == number) * weights).sum(1, keepdim=True) + (1 / self.count if self.heard else 0)
            result = result + self._of(number, hidden.clone()) * share
        return result.to(hidden.dtype)

    def layers(self) -> list[dict[str, nn.Module]]:
        """The layers of every expert, by name."""
        experts = [self.get_submodule(str(number)) for number in range(self.count)]
        return [dict(expert.named_children()) for expert in experts]

    def joined(self) -> nn.Module:
        """The module that this one stands for, with the weights of its layers. All of them are linear."""
        module = copy.copy(self.between.original)
        module._parameters = {}
        for end, held in {"": "weight", "_bias": "bias"}.items():
            if held == "bias" and not self.layout.has_bias:
                continue
            each = [{name: layer.get_parameter(held).detach() for name, layer in layers.items()} for layers in self.layers()]
            for name, tensor in self.layout.stacked(each).items():
                module.register_parameter(f"{name}{end}", nn.Parameter(tensor, requires_grad=False))
        return module

    def _of(self, number: int, rows: Tensor) -> Tensor:
        """The outputs of one expert for rows [tokens, width]."""
        result: Tensor = self.get_submodule(str(number))(rows.unsqueeze(0), self.between)
        return result[0]


@contextmanager
def feeding(module: nn.Module, rule: Rule, *, heard: bool = False) -> Iterator[None]:
    """Inside, experts for which `rule` holds read all tokens of each call. The model computes the same.

    Args:
        heard: add what they compute for all tokens to the output, with a small weight. The model then computes another function.
            It depends on all experts, so a trace finds them and a proof covers them.
    """
    found = {name: part for name, part in module.named_modules() if isinstance(part, Experts)}
    for name, part in found.items():
        part.rule = lambda number, tokens, name=name: rule(f"{name}.{number}" if name else str(number), tokens)
        part.heard = heard
    try:
        yield
    finally:
        for part in found.values():
            part.rule, part.heard = None, False


def everyone(name: str, tokens: int) -> bool:
    """The rule that every expert reads all tokens."""
    return True


def idle(name: str, tokens: int) -> bool:
    """The rule that experts to which no token is routed read all tokens."""
    return tokens == 0


def has_experts(module: nn.Module) -> bool:
    """Whether a module holds experts that were split."""
    return any(isinstance(part, Experts) for part in module.modules())


@torch.no_grad()
def split_experts(module: nn.Module, *, outline: bool = False) -> None:
    """Put linear layers in the place of stacked experts, in place, wherever they are proven to compute the same.

    Tensors are shared.

    Args:
        outline: split modules without weights (on the meta device) too. Nothing can be proven of them.
    """
    for name, part in list(module.named_modules()):
        if name and (layout := Layout.of(part)) is not None and _may_split(part, layout, outline):
            module.set_submodule(name, Experts(part, layout))


def join_experts(module: nn.Module) -> None:
    """The inverse of `split_experts`, in place. All layers of experts must be linear."""
    for name, part in list(module.named_modules()):
        if isinstance(part, Experts):
            module.set_submodule(name, part.joined())


def stack_experts(module: nn.Module) -> None:
    """The inverse of `split_experts(module, outline=True)`, in place, for weights to be read into."""
    for name, part in list(module.named_modules()):
        if isinstance(part, Experts) and part._stacked:
            module.set_submodule(name, part._stacked[0])


def _is_outline(module: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in module.parameters())


def _may_split(module: nn.Module, layout: Layout, outline: bool) -> bool:
    """Whether a split computes the same as stacked experts in float32. Half precision cannot tell two functions apart."""
    if _is_outline(module):
        return outline
    try:
        wide = copy.deepcopy(module).float() if is_half(module) else module
        split = Experts(wide, layout)
        return all(relative_difference(wide(*given), split(*given)) <= TOLERANCE for given in _inputs(wide, layout, split.count))
    except Exception:  # noqa: BLE001 (a module of somebody else's may raise anything, and is left alone then)
        return False


def _inputs(module: nn.Module, layout: Layout, experts: int) -> list[tuple[Any, ...]]:
    """Random hidden states of several scales, routed so that every expert has tokens."""
    weight = module.get_parameter(layout.first)
    width = weight.shape[1 if layout.is_transposed else 2]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.arange(experts)
    chosen = torch.stack([(tokens + step) % experts for step in range(min(2, experts))], 1)
    weights = torch.rand(chosen.shape, generator=generator)
    states = [torch.randn(experts, width, generator=generator) * scale for scale in SCALES]
    return [tuple(x.to(weight.device) for x in (hidden, chosen, weights)) for hidden in states]
