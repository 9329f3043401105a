"""SmoothQuant against its formula, and what the ends of alpha must do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sqbench import api
from sqbench.calibration import Statistics
from sqbench.errors import UserError
from sqbench.formats.scheme import Scheme
from sqbench.models.folding import fold, share
from sqbench.models.language import LanguageModel
from sqbench.models.topology import Topology
from sqbench.parts.task import Task
from sqbench.recipes.configured import named
from sqbench.transforms.smoothing import smooth_ln_fcs, smoothing_scale


@settings(deadline=None)
@given(alpha=st.floats(0, 1), seed=st.integers(0, 999), bias=st.booleans())
def test_smoothing_a_norm_and_its_linears_keeps_the_function(alpha: float, seed: int, bias: bool) -> None:
    torch.manual_seed(seed)
    norm = nn.LayerNorm(16).double() if bias else nn.RMSNorm(16).double()
    linears = [nn.Linear(16, width, bias=bias).double() for width in (8, 24)]
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(10, 16, dtype=torch.float64)
    before = [linear(norm(x)) for linear in linears]
    act, columns = norm(x).abs().amax(0), torch.cat([linear.weight for linear in linears]).abs().amax(0)
    scale = smooth_ln_fcs(norm, linears, act.detach(), alpha)
    after = [linear(norm(x)) for linear in linears]
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    expected = (act.pow(alpha) / columns.clamp(min=1e-5).pow(1 - alpha)).clamp(min=1e-5)
    torch.testing.assert_close(scale.double(), expected, rtol=1e-5, atol=1e-7)


def test_alpha_one_makes_every_channel_alike_and_alpha_zero_leaves_it_to_the_weights() -> None:
    act, weight = torch.tensor([0.5, 3.0, 200.0]), torch.tensor([0.1, 2.0, 0.7])
    assert torch.equal(act / smoothing_scale(act, weight, 1.0), torch.ones(3))
    torch.testing.assert_close(weight * smoothing_scale(act, weight, 0.0), torch.ones(3))
    torch.testing.assert_close(act / smoothing_scale(act, weight, 0.5), (act * weight).sqrt())
    torch.testing.assert_close(weight * smoothing_scale(act, weight, 0.5), (act * weight).sqrt())


def test_dead_channels_keep_scale_one() -> None:
    scale = smoothing_scale(torch.tensor([0.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0]), 0.5)
    assert scale[0] == scale[2] == 1
    assert torch.isfinite(scale).all()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_folded_float_model_agrees_with_the_original(tiny: LanguageModel, statistics: Statistics, alpha: float) -> None:
    folded = api.quantize(tiny, statistics, named("smoothquant", alpha=alpha, pairs=True), Scheme("fp"))
    before, after = tiny.forward(tiny.example()), folded.forward(tiny.example())
    assert not torch.equal(before, after)
    assert (before - after).abs().max() <= 1e-5 * before.abs().max()


def test_only_norm_groups_are_smoothed_unless_asked(tiny: LanguageModel, statistics: Statistics) -> None:
    plain = api.quantize(tiny, statistics, "smoothquant", bits="w8a8", alpha=0.5)
    paired = api.quantize(tiny, statistics, "smoothquant", bits="w8a8", alpha=0.5, pairs=True, pair_alpha=0.6)
    assert [group["source"].rpartition(".")[2] for group in plain.report["groups"]] == [
        "input_layernorm",
        "post_attention_layernorm",
    ] * 2
    added = paired.report["groups"][4:]
    assert [group["source"].rpartition(".")[2] for group in added] == ["v_proj", "up_proj"] * 2
    assert {group["alpha"] for group in added} == {0.6}


def test_auto_chooses_per_group_and_is_never_worse_than_a_fixed_value(tiny: LanguageModel, statistics: Statistics) -> None:
    from sqbench.transforms.search import block_losses
    from sqbench.transforms.smoothing import AUTO_GRID, column_absmax

    scheme = api.scheme_of(api.configure("bits=w8a8"))
    quantized = api.quantize(tiny, statistics, named("smoothquant", alpha="auto"), scheme)
    chosen = {group["source"]: group for group in quantized.report["groups"]}
    assert len({group["alpha"] for group in chosen.values()}) > 1
    task = Task(tiny, statistics, scheme)

    def half(group: object) -> list[torch.Tensor]:
        readers = [tiny.module.get_submodule(name) for name in group.readers]  # type: ignore[attr-defined]
        return [smoothing_scale(task.stats(group).absmax, column_absmax(readers), 0.5)]  # type: ignore[arg-type]

    def limits(group: object, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        stats = task.stats(group)  # type: ignore[arg-type]
        return (stats.low / scale).min(), (stats.high / scale).max()

    assert 0.5 in AUTO_GRID
    for group, loss in block_losses(task, tiny.topology.groups, half, limits).items():
        assert chosen[group.source]["loss"] <= loss.item() * (1 + 1e-6)


def test_search_leaves_the_float_model_alone(tiny: LanguageModel, statistics: Statistics) -> None:
    before = {name: value.clone() for name, value in tiny.module.state_dict().items()}
    api.quantize(tiny, statistics, "smoothquant", bits="w8a8", alpha="auto", pairs=True, pair_alpha="auto")
    assert all(torch.equal(before[name], value) for name, value in tiny.module.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny.module.modules())


@pytest.mark.parametrize("method", ["smoothquant", "awq"])
def test_a_model_without_groups_is_a_clear_error(tiny: LanguageModel, statistics: Statistics, method: str) -> None:
    import dataclasses

    bare = dataclasses.replace(tiny)
    bare.__dict__["topology"] = Topology(
        tiny.topology.layers, tiny.topology.site, (), (), (("norm -> fc", "something else reads it"),)
    )
    with pytest.raises(UserError, match=rf"method={method}: tiny has no .*group.*norm -> fc: something else reads it"):
        api.quantize(bare, statistics, method, bits="w8a8", alpha=0.5)


def test_static_ranges_follow_the_smoothing(tiny: LanguageModel, statistics: Statistics) -> None:
    """The range of a smoothed input is that of x / s, not the one that was calibrated."""
    quantized = api.quantize(tiny, statistics, "smoothquant", bits="w8a8", alpha=1.0)
    layer = quantized.module.get_submodule("model.layers.0.self_attn.q_proj")
    scale = layer.activation.static.scale.item()
    assert scale == pytest.approx(2 / 255, rel=0.35)  # at alpha = 1 every channel lies in [-1, 1]
    plain = api.quantize(tiny, statistics, "minmax", bits="w8a8").module.get_submodule("model.layers.0.self_attn.q_proj")
    assert plain.activation.static.scale.item() > 5 * scale


def test_group_fold_and_public_function_are_the_same_map(tiny: LanguageModel, statistics: Statistics) -> None:
    group = tiny.topology.groups[0]
    a, b = share(tiny.module), share(tiny.module)
    stats = statistics.inputs[group.readers[0]]
    scale = smooth_ln_fcs(a.get_submodule(group.source), [a.get_submodule(name) for name in group.readers], stats.absmax, 0.7)
    fold(b, group, scale)
    for one, other in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(one, other)
