"""Folds through clamps, thresholds and caps are refused though the example reaches none; without them the model keeps all."""

from collections.abc import Callable

import pytest
import torch
from families import LLAMA, build
from torch import Tensor, nn
from torch.nn import functional as F

from sqbench.models.topology import discover

OLMO = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}


def pairs_of(model: object) -> set[str]:
    return {f"{pair.source.rpartition('.')[2]} -> {pair.readers[0].rpartition('.')[2]}" for pair in model.topology.pairs}  # type: ignore[attr-defined]


def test_a_clamp_that_the_example_does_not_reach_is_found() -> None:
    free, clipped = build("Olmo", **OLMO), build("Olmo", **OLMO, clip_qkv=8.0)
    example = free.example()
    assert torch.equal(free.forward(example), clipped.forward(example))  # the proof would see no clamp at these inputs
    assert pairs_of(free) == {"v_proj -> o_proj", "up_proj -> down_proj"}
    assert pairs_of(clipped) == {"up_proj -> down_proj"}
    reasons = [reason for name, reason in clipped.topology.refused if name.endswith("v_proj -> o_proj")]
    assert len(reasons) == 2
    assert all("scales far from 1" in reason and "a clamp or a threshold lies between" in reason for reason in reasons)


def test_a_clamp_behind_the_readers_keeps_the_norm_group() -> None:
    """DBRX clamps q, k and v in one tensor: what the norm writes passes no clamp on its way to them."""
    sizes = {"d_model": 32, "n_heads": 4, "n_layers": 1, "max_seq_len": 64}
    attention = {"clip_qkv": 0.5, "kv_n_heads": 2, "rope_theta": 10000.0}
    feed = {"ffn_hidden_size": 16, "moe_num_experts": 2, "moe_top_k": 1}
    topology = build("Dbrx", **sizes, attn_config=attention, ffn_config=feed).topology
    assert "transformer.blocks.0.norm_attn_norm.norm_1" in {group.source for group in topology.groups}


def test_caps_on_logits_keep_all_groups() -> None:
    """Gemma 2 caps attention scores and logits: no scale passes either of them."""
    caps = [{"attn_logit_softcapping": None, "final_logit_softcapping": None}]
    caps += [{"attn_logit_softcapping": 0.05, "final_logit_softcapping": 0.05}]  # both bind
    free, capped = (build("Gemma2", head_dim=8, **LLAMA, **cap) for cap in caps)
    assert not torch.allclose(free.forward(free.example()), capped.forward(capped.example()))
    for kind in ("groups", "pairs"):
        names = [[str(group) for group in getattr(model.topology, kind)] for model in (free, capped)]
        assert names[0] == names[1]
        assert len(names[0]) == 4


class Mlp(nn.Module):
    """A linear, a function of each value, and a linear."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc1, self.fc2, self.function = nn.Linear(8, 16), nn.Linear(16, 8), function

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.function(self.fc1(x)))


@pytest.mark.parametrize(
    ("function", "legal"),
    [
        (F.relu, True),
        (F.leaky_relu, True),
        (F.relu6, False),
        (F.hardswish, False),
        (F.hardtanh, False),
        (lambda x: x.clamp(-50, 50), False),
        (lambda x: 30 * torch.tanh(x / 30), False),
        (lambda x: F.hardshrink(x, 1e-3), False),
        (lambda x: F.threshold(x, 1e-3, 0.0), False),
    ],
    ids=["relu", "leaky", "relu6", "hardswish", "hardtanh", "clamp", "softcap", "hardshrink", "threshold"],
)
def test_only_what_passes_every_scale_on_is_a_pair(function: Callable[[Tensor], Tensor], legal: bool) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(Mlp(function)).eval().requires_grad_(False)
    topology = discover(module, lambda: module(torch.randn(6, 8, generator=torch.Generator().manual_seed(1))))
    assert [str(pair) for pair in topology.pairs] == ["0.fc1 -> fc2"] * legal


class ClampedNorm(nn.BatchNorm2d):
    """A BatchNorm of a class of its own, whose normalised values have bounds."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-20, 20)


@pytest.mark.parametrize(("norm", "folds"), [(nn.BatchNorm2d, True), (ClampedNorm, False)])
def test_a_batchnorm_with_bounds_is_refused(norm: type[nn.BatchNorm2d], folds: bool) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 1), norm(4)).eval().requires_grad_(False)
    topology = discover(module, lambda: module(torch.randn(2, 3, 4, 4)))
    assert topology.batchnorms == (("0", "1"),) * folds
    assert folds or "on inputs 30 times larger" in dict(topology.refused)["0 -> 1"]
