"""Experts of a mixture, split from stacked tensors into linear layers. A split is kept only if it is proven to compute the same.

transformers keeps all experts of a block in a few three-dimensional parameters. A layer is the unit of this package. So a stand-in
holds linear layers for every expert. Their weights are views of the stacked tensors. It routes tokens as the original does.
Experts of other layouts stay as they are, in float, and the report names them.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sqbench.models.tracing import is_half, relative_difference

TOLERANCE = 1e-5  # relative, in float32; the same products in another order differ by less
SCALES = (1.0, 100.0, 0.01)  # of the inputs that a split is tried on; a clamp shows at one of them

Rule = Callable[[str, int], bool]  # (name of an expert, tokens routed to it) -> whether it reads all tokens


@dataclass(frozen=True)
class _Layout:
    """How a module of transformers stacks its experts, in the words of its `use_experts_implementation`."""

    has_gate: bool
    has_bias: bool
    is_transposed: bool
    is_concatenated: bool

    @classmethod
    def of(cls, module: nn.Module) -> "_Layout | None":
        """The layout of a module. None if it says nothing of one, or holds other tensors than such a layout has."""
        said = [getattr(module, name, None) for name in ("has_gate", "has_bias", "is_transposed", "is_concatenated")]
        if not all(isinstance(flag, bool) for flag in said):
            return None
        found = cls(*said)  # type: ignore[arg-type]  # all are bool
        parameters = dict(module.named_parameters())
        held = {name: parameter.dim() for name, parameter in parameters.items()}
        expected = {found.first: 3, "down_proj": 3} | ({f"{found.first}_bias": 2, "down_proj_bias": 2} if found.has_bias else {})
        same = held == expected and len({len(parameter) for parameter in parameters.values()}) == 1
        return found if same and not list(module.buffers()) else None

    @property
    def first(self) -> str:
        """The name of the parameter that reads the hidden states."""
        return "gate_up_proj" if self.has_gate else "up_proj"

    def expert(self, module: nn.Module, number: int) -> "Expert":
        """The layers of one expert. Their weights are views."""

        def matrix(name: str) -> tuple[Tensor, Tensor | None]:
            weight = module.get_parameter(name).detach()[number]
            bias = module.get_parameter(f"{name}_bias").detach()[number] if self.has_bias else None
            return (weight.t() if self.is_transposed else weight), bias

        weight, bias = matrix(self.first)
        down = _linear(*matrix("down_proj"))
        if not self.has_gate:
            return Expert(None, _linear(weight, bias), down, interleaved=False)
        half = len(weight) // 2
        rows = (slice(half), slice(half, None)) if self.is_concatenated else (slice(0, None, 2), slice(1, None, 2))
        gate, up = (_linear(weight[part], None if bias is None else bias[part]) for part in rows)
        return Expert(gate, up, down, interleaved=not self.is_concatenated)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer over a weight [out, in] and a bias [out]."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
    return layer


class Expert(nn.Module):
    """One expert: products, and a function between them.

    Attributes:
        gate_proj: None if the expert has no gate.
        interleaved: whether the function takes outputs of gate and up in turn, and not one after the other.
    """

    def __init__(self, gate: nn.Linear | None, up: nn.Linear, down: nn.Linear, *, interleaved: bool) -> None:
        super().__init__()
        self.gate_proj = gate
        self.up_proj = up
        self.down_proj = down
        self.interleaved = interleaved

    def forward(self, rows: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Outputs [1, tokens, width] of the hidden states [1, tokens, width] that are routed to this expert."""
        if self.gate_proj is None:
            joined = self.up_proj(rows)
        else:
            both = self.gate_proj(rows), self.up_proj(rows)
            joined = torch.stack(both, -1).flatten(-2) if self.interleaved else torch.cat(both, -1)
        result: Tensor = self.down_proj(function(joined))
        return result


class _Between(nn.Module):
    """The function between the products of an expert: gate and activation. It is the original's own."""

    def __init__(self, module: nn.Module, layout: _Layout) -> None:
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

    def __init__(self, module: nn.Module, layout: _Layout) -> None:
        super().__init__()
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
        if name and (layout := _Layout.of(part)) is not None and _may_split(part, layout, outline):
            module.set_submodule(name, Experts(part, layout))


def stack_experts(module: nn.Module) -> None:
    """The inverse of `split_experts(module, outline=True)`, in place, for weights to be read into."""
    for name, part in list(module.named_modules()):
        if isinstance(part, Experts) and part._stacked:
            module.set_submodule(name, part._stacked[0])


def _is_outline(module: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in module.parameters())


def _may_split(module: nn.Module, layout: _Layout, outline: bool) -> bool:
    """Whether a split computes the same as stacked experts in float32. Half precision cannot tell two functions apart."""
    if _is_outline(module):
        return outline
    try:
        wide = copy.deepcopy(module).float() if is_half(module) else module
        split = Experts(wide, layout)
        return all(relative_difference(wide(*given), split(*given)) <= TOLERANCE for given in _inputs(wide, layout, split.count))
    except Exception:  # noqa: BLE001 (a module of somebody else's may raise anything, and is left alone then)
        return False


def _inputs(module: nn.Module, layout: _Layout, experts: int) -> list[tuple[Any, ...]]:
    """Random hidden states of several scales, routed so that every expert has tokens."""
    weight = module.get_parameter(layout.first)
    width = weight.shape[1 if layout.is_transposed else 2]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.arange(experts)
    chosen = torch.stack([(tokens + step) % experts for step in range(min(2, experts))], 1)
    weights = torch.rand(chosen.shape, generator=generator)
    states = [torch.randn(experts, width, generator=generator) * scale for scale in SCALES]
    return [tuple(x.to(weight.device) for x in (hidden, chosen, weights)) for hidden in states]
