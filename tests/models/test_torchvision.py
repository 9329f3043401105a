"""torchvision's classifiers: their own weights, sizes and preprocessing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision import models

from sqbench.config import ModelConfig
from sqbench.errors import UserError
from sqbench.models.image import ImageModel
from sqbench.models.torchvision_models import from_torchvision


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(models.squeezenet1_1(weights=None).state_dict(), path)
    return path


def config(name: str, **values: Any) -> ModelConfig:
    return ModelConfig(name=name, loader="torchvision", **values)


def test_a_model_computes_what_torchvision_computes(weights: Path) -> None:
    model = from_torchvision(config("squeezenet1_1", checkpoint=str(weights), image_size=64)).load(torch.device("cpu"))
    assert isinstance(model, ImageModel)
    theirs = models.squeezenet1_1(weights=None).eval()
    theirs.load_state_dict(torch.load(weights, weights_only=True))
    assert torch.equal(model.forward(model.example()), theirs(model.example()))
    assert (model.classes, model.preprocessing.input_size) == (1000, (3, 64, 64))


@pytest.mark.parametrize("name", ["resnet50", "resnet50.IMAGENET1K_V1", "vit_b_16", "efficientnet_b1", "convnext_tiny", "swin_t"])
def test_preprocessing_is_that_of_the_published_weights(name: str, weights: Path) -> None:
    """The pixels are torchvision's, up to its antialiasing of tensors."""
    architecture, _, tag = name.partition(".")
    found = models.get_model_weights(architecture)
    theirs = (found[tag] if tag else found.DEFAULT).transforms()
    from sqbench.models.torchvision_models import _preprocessing

    ours = _preprocessing(theirs, None)
    image = Image.effect_noise((300, 400), 80).convert("RGB")
    made = ours.normalize(ours.pixels(image).unsqueeze(0))[0]
    expected = theirs(image)
    assert made.shape == expected.shape
    assert torch.allclose(made, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet51", r"model\.name=resnet51: "),
        ("resnet50.V9", r"model\.name=resnet50\.V9: known: IMAGENET1K_V1, IMAGENET1K_V2|IMAGENET1K_V2"),
    ],
)
def test_unknown_names_are_refused(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        from_torchvision(config(name))


def test_weights_of_another_network_are_refused(weights: Path) -> None:
    source = from_torchvision(config("alexnet", checkpoint=str(weights)))
    with pytest.raises(UserError, match=r"no weights of this AlexNet: "):
        source.load(torch.device("cpu"))


def test_a_size_that_does_not_fit_is_refused(weights: Path) -> None:
    source = from_torchvision(config("squeezenet1_1", checkpoint=str(weights), image_size=4))
    with pytest.raises(UserError, match=r"model\.name=squeezenet1_1: its network does not take an image of \[3, 4, 4\]"):
        source.load(torch.device("cpu"))


def test_weights_that_cannot_be_downloaded_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=r"resnet18-.*\.pth is not there, and cannot be downloaded \(no network\)"):
        from_torchvision(config("resnet18"))
