"""Parameters of the training methods, from the command line to the dataclass, and what may be asked of them."""

from dataclasses import asdict
from typing import Any

import pytest
import torch

from sqbench import api
from sqbench.errors import UserError
from sqbench.formats.format import Format
from sqbench.quant.trainable import LearnedStep, MovingRange, OwnRange
from sqbench.recipes.configured import method_names, named, recipe_of, scheme_of
from sqbench.rounding.trained import STARTS, Qat, QatLsq
from sqbench.statistics.inputs import InputStatistics

DYNAMIC = Format(bits=4, granularity="token", dynamic=True)
STATIC = Format(bits=4, symmetric=False)
WEIGHT = Format(bits=4, granularity="channel")


@pytest.fixture(scope="module")
def seen() -> InputStatistics:
    """Of a skewed activation."""
    stats = InputStatistics.empty(8)
    stats.update(torch.randn(64, 8, generator=torch.Generator().manual_seed(0)).relu() - 0.1)
    return stats


@pytest.mark.parametrize("name", ["qat", "qat_lsq"])
def test_yaml_and_dataclass_agree(name: str) -> None:
    cfg = api.configure(f"method={name}", "model=vit_nano")
    method = recipe_of(cfg)
    assert asdict(method) == asdict(named(name))
    assert method.trains
    scheme = scheme_of(cfg)
    assert scheme.weights == WEIGHT
    assert scheme.activations == STATIC


def test_the_methods_that_do_not_train_say_so() -> None:
    assert [name for name in method_names() if named(name).trains] == ["qat", "qat_lsq"]


@pytest.mark.parametrize(
    ("parameters", "key"),
    [
        ({"epochs": 0}, "epochs"),
        ({"images": 1}, "images"),
        ({"batch": 1}, "batch"),
        ({"lr": 0.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"distill": 1.5}, "distill"),
        ({"temperature": 0.0}, "temperature"),
        ({"freeze": 2.0}, "freeze"),
        ({"patience": 0}, "patience"),
        ({"validation": 0.9}, "validation"),
        ({"patience": 3, "validation": 0.0}, "patience"),
        ({"start": "mode"}, "start"),
        ({"step_lr": -1.0}, "step_lr"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_its_key(parameters: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=rf"^{key}={parameters[key]}: .*(must be|needs|known)"):
        QatLsq(**parameters)


def test_min_max_ranges_follow_weights_and_batches(seen: InputStatistics) -> None:
    method = Qat()
    assert isinstance(method.weight_range(torch.randn(3, 8), WEIGHT), OwnRange)
    assert isinstance(method.activation_range(seen, DYNAMIC), OwnRange)
    moving = method.activation_range(seen, STATIC)
    assert isinstance(moving, MovingRange)
    assert [float(limit) for limit in moving.limits()] == [float(seen.low.min()), float(seen.high.max())]


@pytest.mark.parametrize("start", STARTS)
def test_learned_steps_start_as_asked(start: str, seen: InputStatistics) -> None:
    method, weight = QatLsq(start=start), torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    assert isinstance(method.activation_range(seen, DYNAMIC), OwnRange)
    of_weight, of_input = method.weight_range(weight, WEIGHT), method.activation_range(seen, STATIC)
    assert isinstance(of_weight, LearnedStep)
    assert isinstance(of_input, LearnedStep)
    assert of_weight.log_step.shape == (3, 1)
    assert of_input.log_step.shape == (1, 1)
    minmax = QatLsq(start="minmax")
    steps = [of_weight.log_step, of_input.log_step]
    widest = [minmax.weight_range(weight, WEIGHT).log_step, minmax.activation_range(seen, STATIC).log_step]
    for step, wide in zip(steps, widest, strict=True):
        assert start == "mean" or bool((step <= wide + 1e-6).all())  # type: ignore[operator]
        assert torch.equal(step, wide) == (start == "minmax")  # type: ignore[arg-type]
    expected = 2 * weight.abs().mean(1, keepdim=True) / 7**0.5
    assert torch.allclose(of_weight.log_step.exp(), expected) == (start == "mean")
