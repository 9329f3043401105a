"""Models trained on first use: once, the same each time, and never a half of one in the cache."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from sqbench.config import CONF_DIR, ModelConfig
from sqbench.data import images
from sqbench.data.image_splits import Split, Splits, in_memory
from sqbench.data.images import LabelledImages
from sqbench.errors import UserError
from sqbench.models import nano
from sqbench.models.image import ImageModel
from sqbench.models.nano import Recipe, from_recipe, moved, train
from sqbench.storage import tensorfile

SIDE = 16
VIT = {"img_size": SIDE, "in_chans": 1, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
RESNET = {"in_chans": 1, "layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}
RECIPE: dict[str, Any] = {
    "architecture": "vit_tiny_patch16_224",
    "options": VIT,
    "data": "quadrants",
    "input_size": [1, SIDE, SIDE],
    "mean": 0.25,
    "std": 0.25,
    "epochs": 5,
    "batch": 16,
    "learning_rate": 4e-3,
    "weight_decay": 0.01,
    "shift": 0.5,
}


def quadrants(count: int, seed: int) -> Split:
    """Images whose class is the quadrant that is bright in every patch, under noise."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    pixels = random.integers(0, 120, (count, SIDE, SIDE))
    rows, columns = np.indices((SIDE, SIDE)) // 4 % 2
    pixels += 130 * ((rows == labels[:, None, None] // 2) & (columns == labels[:, None, None] % 2))
    return in_memory(pixels.astype(np.uint8), labels, f"quadrants {seed}")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModelConfig:
    """A model that is trained in a second, with a cache of its own."""
    found = Splits(("a", "b", "c", "d"), quadrants(320, 0), quadrants(80, 1))
    monkeypatch.setitem(images.FINDERS, "quadrants", (lambda cfg: found, ()))
    monkeypatch.setitem(images.SOURCES, "quadrants", images.SOURCES["mnist5k"])
    monkeypatch.setenv("SQBENCH_CACHE", str(tmp_path))
    return ModelConfig(name="quick", loader="nano", recipe=dict(RECIPE))


def loaded(cfg: ModelConfig) -> ImageModel:
    model = from_recipe(cfg).load(torch.device("cpu"))
    assert isinstance(model, ImageModel)
    return model


@pytest.mark.parametrize("changes", [{}, {"architecture": "resnet18", "options": RESNET}], ids=["vit", "resnet"])
def test_training_learns(quick: ModelConfig, changes: dict[str, Any]) -> None:
    assert quick.recipe is not None
    quick.recipe.update(changes)
    model = loaded(quick)
    test = LabelledImages(quadrants(80, 1), range(80), model.preprocessing)
    accuracy = [float((model.forward(batch.images).argmax(1) == batch.labels).float().mean()) for batch in test.batches(80)]
    assert accuracy[0] > 0.9
    assert (model.classes, model.name) == (4, "quick")
    assert not model.module.training
    assert not any(parameter.requires_grad for parameter in model.module.parameters())


def test_trained_once_and_the_same_each_time(quick: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = from_recipe(quick)
    (kept,) = tmp_path.glob("models/quick-*.safetensors")
    weights, _ = tensorfile.load(kept)
    kept.unlink()
    torch.manual_seed(7)  # somebody else's random numbers
    assert from_recipe(quick).fingerprint == first.fingerprint
    again, _ = tensorfile.load(kept)
    assert all(torch.equal(again[name], value) for name, value in weights.items())
    monkeypatch.setattr(nano, "train", None)
    assert from_recipe(quick).fingerprint == first.fingerprint


def test_a_damaged_file_is_trained_again(quick: ModelConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fingerprint = from_recipe(quick).fingerprint
    (kept,) = tmp_path.glob("models/quick-*.safetensors")
    kept.write_bytes(kept.read_bytes()[:-8])
    assert from_recipe(quick).fingerprint == fingerprint
    assert len(list(tmp_path.glob("models/*.corrupt"))) == 1


def test_what_the_recipe_says_is_in_the_fingerprint_and_the_file(quick: ModelConfig, tmp_path: Path) -> None:
    assert quick.recipe is not None
    quick.recipe["epochs"] = 1
    fingerprints = {from_recipe(quick).fingerprint}
    for change in ({"seed": 1}, {"learning_rate": 1e-3}, {"shift": 0}):
        changed = ModelConfig(name="quick", loader="nano", recipe={**quick.recipe, **change})
        fingerprints.add(from_recipe(changed).fingerprint)
    assert len(fingerprints) == 4
    abouts = [tensorfile.load(path)[1] for path in tmp_path.glob("models/*.safetensors")]
    assert len(abouts) == 4
    assert {about["recipe"]["seed"] for about in abouts} == {0, 1}


def test_training_leaves_the_random_state(quick: ModelConfig) -> None:
    recipe = replace(Recipe.of(quick), epochs=1)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(recipe, LabelledImages(quadrants(16, 0), range(16), recipe.preprocessing), 4, "quick")
    assert torch.equal(torch.rand(3), expected)


def test_the_test_split_is_never_read(quick: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(index: int) -> Any:
        raise AssertionError("a test image was read")

    found = Splits(("a", "b", "c", "d"), quadrants(320, 0), replace(quadrants(80, 1), load=refuse))
    monkeypatch.setitem(images.FINDERS, "quadrants", (lambda cfg: found, ()))
    loaded(quick)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lerning_rate": 1.0}, "model.recipe.lerning_rate: did you mean learning_rate"),
        ({"data": "mnist6k"}, "model.recipe.data=mnist6k: did you mean mnist5k"),
        ({"architecture": "resnet19"}, "model.recipe.architecture=resnet19: .*resnet18"),
        ({"options": {"patch_sise": 4}}, "model.recipe.options=.*patch_sise"),
    ],
)
def test_recipes_that_cannot_work(quick: ModelConfig, change: dict[str, Any], message: str) -> None:
    assert quick.recipe is not None
    quick.recipe.update(change)
    with pytest.raises(UserError, match=message):
        from_recipe(quick)


def test_what_is_not_there_is_named(quick: ModelConfig) -> None:
    assert quick.recipe is not None
    quick.recipe.pop("epochs")
    with pytest.raises(UserError, match=r"model.recipe.epochs: needs a value"):
        from_recipe(quick)
    with pytest.raises(UserError, match=r"model.recipe.architecture: needs a value"):
        from_recipe(replace(quick, recipe=None))
    for change, message in (
        ({"image_size": 32}, "model.image_size=32: .* 16; use null"),
        ({"checkpoint": "x"}, "model.checkpoint=x"),
    ):
        with pytest.raises(UserError, match=message):
            Recipe.of(replace(quick, recipe=RECIPE | {"data": "mnist5k"}, **change))  # type: ignore[arg-type]


def test_images_move_by_whole_pixels_and_no_further(quick: ModelConfig) -> None:
    recipe = replace(Recipe.of(quick), shift=2.0)
    point = torch.full((200, 1, SIDE, SIDE), -recipe.mean / recipe.std)
    point[:, :, 8, 8] += 4.0
    torch.manual_seed(0)
    light = moved(point, recipe) + recipe.mean / recipe.std
    total = light.sum(dim=(1, 2, 3))
    torch.testing.assert_close(total, torch.full_like(total, 4.0), rtol=1e-4, atol=1e-4)  # bilinear weights sum to one
    rows = (light.sum(dim=(1, 3)) * torch.arange(SIDE)).sum(1) / 4.0
    assert 1.5 < (rows - 8).abs().max() <= 2.001
    assert rows.std() > 0.9
    still = replace(recipe, shift=0.0)
    torch.testing.assert_close(moved(point, still), point, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["vit_nano", "resnet_nano"])
def test_the_presets(name: str) -> None:
    preset = OmegaConf.load(CONF_DIR / "model" / f"{name}.yaml")
    recipe = Recipe.of(ModelConfig(name=name, loader="nano", recipe=preset.recipe))
    module = recipe.build(10)
    assert module(torch.zeros(2, *recipe.input_size)).shape == (2, 10)
    if name == "vit_nano":  # groups of 64 divide every linear's input, but the first's
        linears = [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
        assert all(linear.in_features % 64 == 0 for linear in linears)
