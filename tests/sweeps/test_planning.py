"""A plan trains nothing and downloads nothing: what is not there yet is said in the state of its points."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
from cli import Ended, call
from huggingface_hub.errors import LocalEntryNotFoundError

from sqbench.models import nano

Command = Callable[..., Ended]
NANO = ("model=vit_nano", "tracker=none", "data.images=100", "calibration.images=10")


@pytest.fixture
def plan(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """`plan=true` with a cache of its own, in a process that may use the network."""

    def run(*arguments: str) -> Ended:
        monkeypatch.setenv("COLUMNS", "200")
        flags = [one for one in arguments if one.startswith("-")]
        words = [one for one in arguments if not one.startswith("-")]
        return call(*flags, "plan=true", f"results_dir={tmp_path / 'results'}", *words, capsys=capsys)

    monkeypatch.setenv("SQBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    return run


def ids(ended: Ended) -> list[str]:
    return re.findall(r"│ ([0-9a-f]{12}) ", ended.out)


@pytest.mark.slow
def test_a_model_that_is_not_trained_yet_has_points_without_an_id(
    plan: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = ("-m", *NANO, "method=minmax,smoothquant", "bits=w8a8", "alpha=0.3,0.5")
    ended = plan(*sweep)
    assert ended.code == 0, ended.err
    assert ended.out.count("to do, its model is trained first") == 3  # min-max has no alpha
    assert "3 points of unknown cost: its model is trained first" in ended.out
    assert ids(ended) == []
    assert not list((tmp_path / "cache").rglob("*.safetensors*"))
    assert plan(*NANO, "method=minmax", "bits=w8a8").out.count("to do, its model is trained first") == 1

    monkeypatch.setattr(nano, "train", lambda recipe, training, classes, name: recipe.build(classes).state_dict())
    nano.from_recipe(_vit_nano())
    ended = plan(*sweep)
    assert len(set(ids(ended))) == 3
    assert "trained first" not in ended.out
    assert "estimated from the size of the model: 3 points" in ended.out


def _vit_nano() -> Any:
    from sqbench import api

    return api.compose_config(*NANO).model


def test_groups_of_layers_of_a_model_that_is_not_there_are_one_line(plan: Command) -> None:
    ended = plan("-m", *NANO, "method=minmax", "bits=w8a8", "layers=each")
    assert ended.code == 0, ended.err
    assert ended.out.count("to do, its model is trained first") == 1


def test_a_search_over_a_model_that_is_not_there_has_an_unknown_cost(plan: Command) -> None:
    ended = plan("-m", *NANO, "hydra/sweeper=search", "method=smoothquant", "bits=w8a8", "alpha=interval(0,1)")
    assert ended.code == 0, ended.err
    assert "a point is of unknown cost: its model is trained first" in ended.out


@pytest.mark.parametrize(
    "model",
    [("model=hf", "model.name=somebody/model"), ("model=timm", "model.name=vit_tiny_patch16_224", "data=mnist5k")],
    ids=["transformers", "timm"],
)
def test_a_model_of_the_hub_is_looked_for_here_only(plan: Command, monkeypatch: pytest.MonkeyPatch, model: tuple[str, ...]) -> None:
    def nowhere(*names: str, local_files_only: bool, **how: Any) -> str:
        assert local_files_only
        raise LocalEntryNotFoundError("not in the cache")

    for name in ("snapshot_download", "hf_hub_download"):
        monkeypatch.setattr(huggingface_hub, name, nowhere)
    ended = plan("tracker=none", *model, "method=rtn", "bits=w8a16")
    assert ended.code == 0, ended.err
    assert "to do, its model is downloaded first" in ended.out
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # then no download can come first
    assert plan("tracker=none", *model, "method=rtn", "bits=w8a16").code == 2


def test_images_are_not_downloaded(plan: Command, tmp_path: Path) -> None:
    ended = plan("tracker=none", "model=vit_small_focus", "data=cifar10", "method=minmax", "bits=w8a8")
    assert ended.code == 0, ended.err
    assert "to do, its data are downloaded first" in ended.out
    assert not (tmp_path / "cache" / "data").exists()


def test_text_is_not_downloaded(plan: Command, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> None:
    def nowhere(*names: str, **how: Any) -> Any:
        assert datasets.config.HF_HUB_OFFLINE
        raise ConnectionError

    monkeypatch.setattr(datasets, "load_dataset", nowhere)
    ended = plan("tracker=none", "model=hf", f"model.name={tiny_folder}", "data=wikitext2", "data.window=64", "method=rtn")
    assert ended.code == 0, ended.err
    assert "to do, its data are downloaded first" in ended.out
    assert not datasets.config.HF_HUB_OFFLINE
