"""How transformers stacks the experts of a block in a few tensors, and the linear layers of one of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layout:
    """How a module of transformers stacks its experts, in the words of its `use_experts_implementation`."""

    has_gate: bool
    has_bias: bool
    is_transposed: bool
    is_concatenated: bool

    @classmethod
    def of(cls, module: nn.Module) -> "Layout | None":
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

    def stacked(self, experts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The inverse of `expert` for weights [out, in] or biases [out]. Each expert has them by the names of its layers."""
        words = ("gate_proj", "up_proj") if self.has_gate else ("up_proj",)
        join = torch.cat if self.is_concatenated else lambda parts: torch.stack(parts, 1).flatten(0, 1)
        first = torch.stack([join([expert[word] for word in words]) for expert in experts])
        down = torch.stack([expert["down_proj"] for expert in experts])
        if self.is_transposed and down.dim() == 3:
            first, down = first.mT.contiguous(), down.mT.contiguous()
        return {self.first: first, "down_proj": down}


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
