"""AWQ against its formulas: scales, search, clipping."""

import pytest
import torch

from sqbench import api
from sqbench.calibration import Statistics
from sqbench.formats.codec import round_trip, to_blocks
from sqbench.formats.format import Format
from sqbench.models.language import LanguageModel
from sqbench.parts.task import Task
from sqbench.ranges.clip import CLIP_RATIOS, clip_limits
from sqbench.recipes.configured import named
from sqbench.transforms.awq import ActivationAware

W3 = Format(bits=3, symmetric=False, granularity="group", group_size=32)


def task(tiny: LanguageModel, statistics: Statistics, *overrides: str) -> Task:
    return Task(tiny, statistics, api.scheme_of(api.configure("method=awq", "bits=w3a16", *overrides)))


def test_scale_is_the_mean_magnitude_to_the_exponent(tiny: LanguageModel, statistics: Statistics) -> None:
    work = task(tiny, statistics)
    group = tiny.topology.groups[0]
    mean = statistics.inputs[group.readers[0]].abs_mean
    for exponent in (0.0, 0.3, 1.0):
        raw = mean.pow(exponent).clamp(min=1e-4)
        scale = ActivationAware().scale(work, group, exponent)
        torch.testing.assert_close(scale, raw / (raw.max() * raw.min()).sqrt())
        assert (scale.max() * scale.min()).item() == pytest.approx(1, rel=1e-4)
    assert torch.equal(ActivationAware().scale(work, group, 0.0), torch.ones(64))


def test_duo_scaling_divides_by_the_weights_share(tiny: LanguageModel, statistics: Statistics) -> None:
    work, group = task(tiny, statistics), tiny.topology.groups[1]
    weight = torch.cat([tiny.module.get_submodule(name).weight for name in group.readers])
    blocks = weight.unflatten(1, (-1, 64)).abs()
    share = (blocks / blocks.amax(-1, keepdim=True)).flatten(1).mean(0)
    raw = statistics.inputs[group.readers[0]].abs_mean.pow(0.4) / share.pow(0.6)
    torch.testing.assert_close(
        ActivationAware(duo=True).scale(work, group, 0.4), raw / (raw.max() * raw.min()).sqrt(), rtol=1e-4, atol=1e-5
    )


def test_search_is_never_worse_than_rounding_in_its_own_loss(tiny: LanguageModel, statistics: Statistics) -> None:
    quantized = api.quantize(tiny, statistics, "awq", bits="w3a16")
    groups = quantized.report["groups"]
    assert len(groups) == 8
    assert all(group["loss"] <= group["loss_rtn"] for group in groups)
    assert sum(group["loss"] for group in groups) < 0.9 * sum(group["loss_rtn"] for group in groups)
    assert len({group["alpha"] for group in groups}) > 1


def test_search_measures_the_block_it_says(tiny: LanguageModel, statistics: Statistics) -> None:
    """The loss of up -> down at r = 0 is the output error of a rounded down_proj on its own float input."""
    quantized = api.quantize(tiny, statistics, "awq", bits="w3a16")
    name = "model.layers.1.mlp.down_proj"
    layer = tiny.module.get_submodule(name)
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        tiny.body(statistics.sample)
        handle.remove()
        fmt = api.scheme_of(api.configure("bits=w3a16")).weights
        rounded = round_trip(layer.weight, fmt)
        expected = (seen[0] @ (rounded - layer.weight).t()).double().square().mean().item()
    loss = next(group["loss_rtn"] for group in quantized.report["groups"] if group["readers"] == [name])
    assert loss == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "fmt", [W3, Format(bits=3, symmetric=False, granularity="channel"), Format(bits=3, granularity="group", group_size=16)], ids=str
)
def test_clipping_row_by_row_is_clipping_at_once(fmt: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(11, 64, generator=generator) ** 3, torch.randn(50, 64, generator=generator)
    gram = (x.t() @ x).unsqueeze(0)
    whole = clip_limits(weight, gram, fmt)
    monkeypatch.setattr("sqbench.ranges.clip.CLIP_ROWS", 4)
    for piece, expected in zip(clip_limits(weight, gram, fmt), whole, strict=True):
        assert torch.equal(piece, expected)


@pytest.mark.parametrize(
    "fmt", [W3, Format(bits=3, symmetric=False, granularity="channel"), Format(bits=3, granularity="group", group_size=16)], ids=str
)
def test_clipping_minimises_the_output_error_per_block(fmt: Format) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 64, generator=generator) ** 3
    x = torch.randn(500, 64, generator=generator) * torch.rand(64, generator=generator)
    group = fmt.group_size or 64
    gram = (x.t() @ x).unsqueeze(0)  # one Gram block as wide as the layer: nothing is left out
    lo, hi = clip_limits(weight, gram, fmt)

    def cost(limits: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        error = (round_trip(weight, fmt, limits) - weight).unflatten(1, (-1, group))
        parts = torch.einsum("tng,ong->ton", x.unflatten(1, (-1, group)), error)
        return parts.square().sum(0)  # [out, groups]

    found = cost((lo, hi))
    blocks = to_blocks(weight, fmt)
    low, high = blocks.amin(-1, keepdim=True).clamp(max=0), blocks.amax(-1, keepdim=True).clamp(min=0)
    largest = torch.maximum(-low, high)
    tried = torch.stack([cost((torch.maximum(low, -largest * r), torch.minimum(high, largest * r))) for r in CLIP_RATIOS])
    torch.testing.assert_close(found, tried.amin(0), rtol=1e-3, atol=1e-3)
    assert found.sum() < 0.95 * tried[0].sum()


def test_query_and_key_are_not_clipped(tiny: LanguageModel, statistics: Statistics) -> None:
    ranges = named("awq").ranges
    stats = statistics.inputs["model.layers.0.self_attn.q_proj"]
    for name, clipped in (("q_proj", False), ("k_proj", False), ("v_proj", True)):
        layer = f"model.layers.0.self_attn.{name}"
        weight = tiny.module.get_submodule(layer).weight
        assert (ranges.weight_limits(layer, weight, stats, W3) is not None) == clipped


def test_fixed_alpha_is_the_exponent_of_every_group(tiny: LanguageModel, statistics: Statistics) -> None:
    quantized = api.quantize(tiny, statistics, "awq", bits="w4a16", alpha=0.3)
    assert {group["alpha"] for group in quantized.report["groups"]} == {0.3}
    norms_only = api.quantize(tiny, statistics, "awq", bits="w4a16", alpha=0.3, pairs=False)
    assert len(norms_only.report["groups"]) == 4


def test_nothing_moves_where_no_weight_is_rounded(tiny: LanguageModel, statistics: Statistics) -> None:
    quantized = api.quantize(tiny, statistics, "awq", bits="fp")
    assert torch.equal(quantized.forward(tiny.example()), tiny.forward(tiny.example()))
