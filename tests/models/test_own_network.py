"""A network of the user's own: any function in a file or a package, with any weights that fit."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cli import call
from safetensors.torch import save_file

from sqbench.config import ModelConfig
from sqbench.errors import UserError
from sqbench.models.image import ImageModel
from sqbench.models.own_network import from_function
from sqbench.records.store import Store

SOURCE = """
import torch
from torch import nn

ABOUT = {"input_size": (1, 28, 28), "mean": (0.5,), "std": (0.5,)}


class Small(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 5, 4), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(width * 36, 10)

    def forward(self, x):
        return self.head(self.body(x))


def small(width: int = 4):
    return Small(width), ABOUT


def alone():
    return Small(4)


def unknown_word():
    return Small(4), {**ABOUT, "crop": 1}


def too_few_words():
    return Small(4), {"input_size": (1, 28, 28)}


def features():
    return nn.Conv2d(1, 4, 5), ABOUT


def other_size():
    return Small(4), {**ABOUT, "input_size": (1, 14, 14)}


def restless():
    torch.seed()
    return Small(4), ABOUT


def broken():
    raise KeyError("weights")
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "network.py"
    path.write_text(SOURCE)
    return path


def config(file: Path, function: str = "small", **values: Any) -> ModelConfig:
    return ModelConfig(name=f"{file}:{function}", loader="python", **values)


def loaded(cfg: ModelConfig) -> ImageModel:
    model = from_function(cfg).load(torch.device("cpu"))
    assert isinstance(model, ImageModel)
    return model


def test_a_function_gives_network_and_preprocessing(file: Path) -> None:
    model = loaded(config(file))
    assert model.classes == 10
    assert model.preprocessing.input_size == (1, 28, 28)
    assert not model.module.training
    assert model.forward(model.example()).shape == (2, 10)


def test_the_fingerprint_follows_arguments_weights_and_preprocessing_and_nothing_else(file: Path, tmp_path: Path) -> None:
    first = from_function(config(file))
    assert from_function(config(file)).fingerprint == first.fingerprint
    assert from_function(config(file, arguments={"width": 4})).fingerprint == first.fingerprint
    assert from_function(config(file, arguments={"width": 8})).fingerprint != first.fingerprint
    assert from_function(config(file, image_size=28)).fingerprint == first.fingerprint
    weights = {name: tensor + 1 for name, tensor in loaded(config(file)).module.state_dict().items()}
    save_file(weights, tmp_path / "w.safetensors")
    assert from_function(config(file, checkpoint=str(tmp_path / "w.safetensors"))).fingerprint != first.fingerprint


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "net.backbone."])
def test_a_state_dict_fits_with_and_without_a_prefix(file: Path, tmp_path: Path, prefix: str) -> None:
    weights = {name: torch.rand_like(tensor) for name, tensor in loaded(config(file)).module.state_dict().items()}
    torch.save({"state_dict": {f"{prefix}{name}": tensor for name, tensor in weights.items()}}, tmp_path / "w.pth")
    found = loaded(config(file, checkpoint=str(tmp_path / "w.pth"))).module.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())


def test_a_package_on_the_path_works_too(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(file.parent)
    monkeypatch.delitem(sys.modules, "network", raising=False)
    assert loaded(ModelConfig(name="network:small", loader="python")).classes == 10


@pytest.mark.parametrize(
    ("function", "values", "words"),
    [
        ("smal", {}, r"has no function smal: did you mean small\?|has no function smal: "),
        ("alone", {}, r"returns Small; it must return a network and its preprocessing: return module, \{"),
        ("unknown_word", {}, r"crop: "),
        ("too_few_words", {}, r"its preprocessing lacks mean, std"),
        ("broken", {}, r"fails with KeyError: 'weights'"),
        ("small", {"arguments": 3}, r"model\.arguments=3: must be null, or names and values"),
        ("small", {"arguments": {"depth": 3}}, r"model\.arguments=\{'depth': 3\}: .* does not take them"),
    ],
)
def test_what_is_no_network_is_refused_before_anything_is_computed(
    file: Path, function: str, values: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        from_function(config(file, function, **values))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("features", r"returns shape \[1, 4, 24, 24\] for one image; it must return logits \[images, classes\]"),
        ("other_size", r"does not take an image of \[1, 14, 14\]"),
        ("restless", r"gives other weights each time it is called; use model\.checkpoint"),
    ],
)
def test_a_network_that_does_not_classify_is_named(file: Path, function: str, words: str) -> None:
    source = from_function(config(file, function))
    with pytest.raises(UserError, match=words):
        source.load(torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("network.py", r"must be FILE\.py:FUNCTION or package\.module:FUNCTION"),
        ("nowhere.py:small", r"no such file"),
        ("no_such_package.inside:small", r"Python finds no module no_such_package"),
    ],
)
def test_a_wrong_name_says_what_it_must_be(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        from_function(ModelConfig(name=name, loader="python"))


def test_other_weights_are_named(file: Path, tmp_path: Path) -> None:
    save_file({"body.0.weight": torch.zeros(4, 1, 3, 3), "more": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"no weights of this Small: 3 tensors missing.*1 unexpected.*of another shape"):
        from_function(config(file, checkpoint=str(tmp_path / "w.safetensors")))


def test_it_is_a_model_on_the_command_line(file: Path, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ("data.images=50", "calibration.images=16", "eval.resamples=100", "tracker=none", f"results_dir={results}")
    ended = call("model=python", f"model.name={file}:small", "data=mnist5k", "method=minmax", "bits=w8a8", *few, capsys=capsys)
    assert ended.code == 0, ended.err
    (record,) = Store(results).records()
    assert record.quantized["layers"] == 2
    assert record.metrics["agreement"] > 0.5


def test_a_head_on_a_network_that_gives_no_features_is_refused(
    file: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("data.images=50", "calibration.images=16", "tracker=none", f"results_dir={results}")
    ended = call("model=python", f"model.name={file}:small", "data=mnist5k", "head=probe", "method=rtn", *few, capsys=capsys)
    assert ended.code != 0
    assert "head=probe: " in ended.err + ended.out
    assert "has no reset_classifier(0), by which timm's networks give features; use head=own" in ended.err + ended.out
