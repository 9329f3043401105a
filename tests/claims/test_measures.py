import math

import numpy as np
import pandas as pd
import pytest
from examples import made

from sqbench.claims.measures import Effect, Side, change, layers, number, speed
from sqbench.errors import UserError

NLL = {"kind": "perplexity", "column": "nll", "by": ["window"], "weights": "tokens"}


def text_side(*losses: np.ndarray, fp: np.ndarray) -> Side:
    """Points over the same windows, one per array of losses."""
    frames = [pd.DataFrame({"window": range(len(nll)), "tokens": 511, "nll": nll, "nll_fp": fp}) for nll in losses]
    return Side([made(outcomes={"perplexity": NLL}) for _ in losses], frames)


@pytest.fixture
def losses() -> np.ndarray:
    return np.random.default_rng(0).normal(2.7, 0.3, 16)


def test_change_of_perplexity_is_relative_and_paired(losses):
    found = change(text_side(losses + 0.1, fp=losses), None, metric="perplexity")
    assert found.value == pytest.approx(math.expm1(0.1))
    assert found.low == pytest.approx(found.high)  # the windows differ a lot, their differences not at all
    assert (found.n, found.spread) == (16, None)


def test_seeds_are_averaged_by_example_and_their_spread_is_told(losses):
    of = text_side(losses + 0.1, losses + 0.3, fp=losses)
    found = change(of, text_side(losses, fp=losses), metric="perplexity")
    assert found.value == pytest.approx(math.expm1(0.2))
    assert found.spread == pytest.approx(np.std(np.expm1([0.1, 0.3]), ddof=1))
    assert found.low == pytest.approx(found.high)


def test_different_examples_are_refused(losses):
    with pytest.raises(UserError, match="different examples"):
        change(text_side(losses, fp=losses), text_side(losses[:8], fp=losses[:8]), metric="perplexity")


def test_numbers_of_a_record():
    side = Side([made(cost__seconds={"quantize": 4.0})], [])
    other = Side([made(cost__seconds={"quantize": 2.0})], [])
    assert number(side, None, path="cost.seconds.quantize") == Effect(4.0, 4.0, 4.0, 1, "as recorded")
    assert number(side, other, path="cost.seconds.quantize").value == 2.0
    with pytest.raises(UserError, match="did you mean quantize"):
        number(side, None, path="cost.seconds.quantise")


def test_layers_are_compared_one_by_one():
    def side(*ratios: float) -> Side:
        rows = [{"layer": f"{number}.q_proj", "ratio": ratio} for number, ratio in enumerate(ratios)]
        return Side([made(quantized={"per_layer": [*rows, {"layer": "down_proj", "ratio": 900.0}]})], [])

    found = layers(side(5.0, 20.0, 3.0), side(9.0, 25.0, 6.0), field="ratio", where="*q_proj")
    assert (found.value, found.n) == (-4.0, 3)
    assert (found.low, found.high) == (-5.0, -3.0)
    assert layers(side(5.0, 2.0), None, field="ratio", statistic="max").value == 900.0
    with pytest.raises(UserError, match="no layer"):
        layers(side(1.0), None, field="ratio", where="*k_proj")


def test_speed_is_a_ratio_inside_each_repetition():
    def side(seconds: float) -> Side:
        drift = np.array([1.0, 1.5, 3.0])
        frame = pd.DataFrame({"repetition": range(3), "first_s": seconds * drift, "decode_s": drift, "first_s_fp": drift})
        return Side([made(identity__eval={"name": "latency"}, metrics={"tokens_per_s": 100.0})], [frame])

    found = speed(side(0.5), None, metric="tokens_per_s")
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.0)
    assert speed(side(0.5), side(0.25), metric="tokens_per_s").value == 0.5
