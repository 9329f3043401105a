"""Inputs that are nobody's data: what they are drawn from, and that a seed fixes them."""

import pytest
import torch

from sqbench.config import CalibrationConfig
from sqbench.data.base import Batches, Unseen
from sqbench.data.preprocessing import Preprocessing
from sqbench.data.synthetic import noise, random_tokens

RGB = Preprocessing((3, 32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def chosen(source: str = "random", seed: int = 0, count: int = 20) -> CalibrationConfig:
    return CalibrationConfig(windows=count, images=count, seed=seed, source=source)


def tokens(config: CalibrationConfig) -> Batches:
    return random_tokens(50, 64, config)


def images(config: CalibrationConfig) -> Batches:
    return noise(RGB, config)


@pytest.mark.parametrize("make", [tokens, images])
def test_a_seed_fixes_them_and_another_gives_others(make) -> None:  # type: ignore[no-untyped-def]
    first, again, other = make(chosen()), make(chosen()), make(chosen(seed=1))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    batches = [batch.flatten()[:100].tolist() for batch in first]
    assert len(set(map(tuple, batches))) == len(batches) > 1
    make(chosen(seed=-1))  # any seed that a run may have


def test_every_token_is_as_likely_as_any_other() -> None:
    drawn = torch.cat(list(random_tokens(50, 200, chosen(count=100))))
    assert drawn.shape == (100, 200)
    counts = torch.bincount(drawn.flatten(), minlength=50)
    assert len(counts) == 50
    assert abs(counts - 400).max() < 5 * 20  # five standard deviations of a count


def test_noise_has_the_mean_and_spread_that_preprocessing_takes_away_within_black_and_white() -> None:
    batches = list(noise(RGB, chosen()))
    assert [len(batch) for batch in batches] == [8, 8, 4]
    drawn = torch.cat(batches)
    mean, std = drawn.mean((0, 2, 3)), drawn.std((0, 2, 3))
    assert mean.abs().max() < 0.06
    assert (std - 1).abs().max() < 0.06  # a little less: pixels end at black and white
    lightest, darkest = RGB.normalize(torch.full((1, 3, 1, 1), 255)), RGB.normalize(torch.zeros(1, 3, 1, 1))
    assert bool((drawn <= lightest).all())
    assert bool((drawn >= darkest).all())
    neighbours = torch.corrcoef(torch.stack([drawn[..., :-1].flatten(), drawn[..., 1:].flatten()]))[0, 1]
    assert abs(neighbours) < 0.02


@pytest.mark.parametrize("make", [tokens, images])
def test_for_weights_the_same_inputs_are_there_for_searches_alone(make) -> None:  # type: ignore[no-untyped-def]
    seen, unseen = make(chosen(seed=3)), make(chosen("weights", seed=3))
    assert not isinstance(seen, Unseen)
    assert isinstance(unseen, Unseen)
    assert (unseen.examples, unseen.seed) == (20, 3)
    assert all(torch.equal(a, b) for a, b in zip(seen, unseen, strict=True))
