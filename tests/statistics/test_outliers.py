"""Outlier diagnostics against the same numbers from all values at once in float64, on inputs with planted outlier channels."""

import itertools
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sqbench.statistics.inputs import InputStatistics
from sqbench.statistics.outliers import agreement, describe
from sqbench.statistics.rows import top_size

CHANNELS = 400  # 4 of them are an example's largest


def inputs(outliers: str, examples: int = 24, tokens: int = 16, factor: float = 60.0) -> Tensor:
    """[examples, tokens, CHANNELS] normal values; 4 channels of every example are `factor` times larger: the same, or others."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(examples, tokens, CHANNELS, generator=generator) + 0.2
    for example in x if outliers != "none" else ():
        places = range(4) if outliers == "fixed" else torch.randperm(CHANNELS, generator=generator)[:4].tolist()
        example[:, list(places)] *= factor
    return x


def seen(x: Tensor, batch: int = 4, keep_rows: int = 20) -> InputStatistics:
    stats = InputStatistics.empty(x.shape[-1])
    for part in x.split(batch):
        stats.update(part, keep_rows)
    return stats


def largest_sets(x: Tensor) -> list[set[int]]:
    """Of every example [tokens, C], its largest channels."""
    return [set(example.abs().amax(0).topk(top_size(x.shape[-1])).indices.tolist()) for example in x]


@pytest.mark.parametrize("outliers", ["none", "fixed", "moving"])
def test_numbers_are_those_of_all_values(outliers: str) -> None:
    x = inputs(outliers)
    found, values = describe(seen(x)), x.double().flatten()
    absmax = x.double().abs().amax((0, 1))
    assert found["absmax"] == float(absmax.max())
    for name, share in (("channel_median", 0.5), ("channel_p90", 0.9), ("channel_p99", 0.99)):
        assert found[name] == pytest.approx(float(absmax.quantile(share)))
    assert found["ratio"] == pytest.approx(float(absmax.max() / absmax.median()), rel=0.01)
    centred = values - values.mean()
    assert found["kurtosis"] == pytest.approx(float(centred.pow(4).mean() / centred.square().mean() ** 2), rel=2e-3)
    ends = torch.sort(values).values[[round(0.0005 * len(values)), round(0.9995 * len(values))]]
    assert found["range_used"] == pytest.approx(float((ends[1] - ends[0]) / (values.max() - values.min())), rel=0.02)


@pytest.mark.parametrize("outliers", ["none", "fixed", "moving"])
def test_persistence_is_the_agreement_of_all_pairs(outliers: str) -> None:
    x = inputs(outliers)
    stats = seen(x)
    found = describe(stats)
    for name, sets in (("persistence", largest_sets(x)), ("persistence_tokens", largest_sets(stats.rows.unsqueeze(1)))):
        pairs = list(itertools.combinations(sets, 2))
        shared = sum(len(a & b) for a, b in pairs) / len(pairs)
        mean_index = sum(len(a & b) / len(a | b) for a, b in pairs) / len(pairs)
        assert found[name] == pytest.approx(shared / (8 - shared), abs=1e-9)
        assert found[name] <= mean_index + 1e-9


def test_fixed_outliers_persist_and_moving_ones_are_chance() -> None:
    fixed, moving, none = (describe(seen(inputs(kind))) for kind in ("fixed", "moving", "none"))
    assert fixed["persistence"] == 1.0
    assert fixed["persistence_tokens"] > 0.6
    assert moving["persistence"] < 3 * moving["chance"] < 0.02
    assert none["persistence"] < 3 * none["chance"]
    assert fixed["ratio"] > 30 > 3 > none["ratio"]
    assert fixed["kurtosis"] > 100 > 4 > none["kurtosis"] > 2.5
    assert fixed["range_used"] < 0.9 * none["range_used"]


def test_chance_is_what_random_sets_agree_in() -> None:
    generator = torch.Generator().manual_seed(0)
    top = torch.zeros(50, dtype=torch.int64)
    for _ in range(4000):
        top[torch.randperm(50, generator=generator)[:5]] += 1
    assert agreement(top, 4000) == pytest.approx(5 / (2 * 50 - 5), rel=0.02)


@given(st.lists(st.sets(st.integers(0, 9), min_size=3, max_size=3), min_size=2, max_size=12))
def test_agreement_is_between_0_and_1_and_1_only_for_equal_sets(sets: list[set[int]]) -> None:
    top = torch.zeros(10, dtype=torch.int64)
    for channels in sets:
        top[list(channels)] += 1
    found = agreement(top, len(sets))
    shared = [len(a & b) for a, b in itertools.combinations(sets, 2)]
    mean = sum(shared) / len(shared)
    assert found == pytest.approx(mean / (6 - mean), abs=1e-9)
    assert (found == pytest.approx(1.0)) == all(channels == sets[0] for channels in sets)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("x", "absent"),
    [
        (torch.zeros(3, 2, 8), {"persistence", "persistence_tokens"}),
        (torch.full((3, 2, 8), 1.7), set()),
        (torch.full((3, 2, 8), -1e-30), set()),
        (normal(1, 1, 8), {"persistence", "persistence_tokens"}),
        (normal(1, 5, 8), {"persistence"}),
        (normal(5, 3, 1), {"persistence", "persistence_tokens", "chance"}),
        (torch.relu(normal(5, 3, 64) - 2), set()),
        (normal(5, 3, 64) * 1e30, set()),
    ],
    ids=["zeros", "constant", "tiny", "one token", "one example", "one channel", "mostly dead", "huge"],
)
def test_every_value_is_a_number_that_json_has(x: Tensor, absent: set[str]) -> None:
    found = describe(seen(x))
    everything = {"absmax", "channel_median", "channel_p90", "channel_p99", "ratio", "kurtosis", "range_used"}
    assert found.keys() == (everything | {"chance", "persistence", "persistence_tokens"}) - absent
    assert all(type(value) is float and math.isfinite(value) for value in found.values())
    json.dumps(found, allow_nan=False)
    assert 0 <= found["range_used"] <= 1
    assert found["ratio"] >= 1


def test_after_scaling_the_numbers_are_those_of_the_scaled_tensor() -> None:
    x, scale = inputs("fixed"), torch.ones(CHANNELS)
    scale[:4] = 60.0
    scaled, direct = describe(seen(x).scaled(scale)), describe(seen(x / scale))
    for name in ("absmax", "channel_median", "channel_p90", "channel_p99", "ratio", "chance", "persistence_tokens"):
        assert scaled[name] == pytest.approx(direct[name]), name
    assert scaled["kurtosis"] == pytest.approx(direct["kurtosis"], rel=0.1)
    assert scaled["range_used"] == pytest.approx(direct["range_used"], rel=0.1)
    assert scaled["persistence"] == scaled["persistence_tokens"]  # the rows stand for the examples
