"""A configuration is parsed once, and its plain data gives the same again."""

import json

import pytest

from sqbench import api
from sqbench.errors import UserError
from sqbench.running.resolved import resolve, restored


@pytest.mark.parametrize(
    "overrides",
    [
        ("model=smollm2_135m", "method=awq", "rounding=gptq", "bits=w4a16", "layers=['*.mlp.*']", "limits.seconds=5"),
        ("model=vit_nano", "method=qat_lsq", "head=knn", "mixed=auto", "budget=4.5", "noise=3"),
        ("model=smollm2_135m", "method=fp", 'results_dir="/data/\\\\\\${HOME}/a\\${b}"', "eval=latency", "calibration.seed=7"),
    ],
)
def test_plain_data_of_a_configuration_resolves_to_the_same(overrides: tuple[str, ...]) -> None:
    resolved = resolve(api.compose_config(*overrides))
    assert restored(json.loads(json.dumps(resolved.config))) == resolved


def test_a_text_that_looks_like_an_interpolation_stays_a_text() -> None:
    resolved = resolve(api.compose_config("model=smollm2_135m", 'results_dir="a\\${b}"'))
    assert resolved.options.results_dir == resolved.config["results_dir"] == "a${b}"


def test_the_head_of_a_point_is_the_asked_one_or_the_models_own() -> None:
    assert resolve(api.compose_config("model=vit_nano")).head == "own"
    assert resolve(api.compose_config("model=vit_nano", "head=probe")).head == "probe"


def test_all_groups_of_layers_are_no_point() -> None:
    with pytest.raises(UserError, match=r"layers=each: stands for many points"):
        resolve(api.compose_config("model=smollm2_135m", "layers=each"))
