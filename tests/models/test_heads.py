"""Heads: fitted once on float features, kept, and the same for every quantized model."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from sqbench.data.image_splits import Split, in_memory
from sqbench.data.images import LabelledImages
from sqbench.data.preprocessing import Preprocessing
from sqbench.errors import UserError
from sqbench.models import heads
from sqbench.models.heads import Neighbours, attach, build_probe, fit_probe
from sqbench.models.image import ImageModel

SIDE = 32
GRAY = Preprocessing((1, SIDE, SIDE), (0.5,), (0.25,), interpolation="bilinear")
CLASSES = ("horizontal", "vertical", "flat")


def stripes(count: int, seed: int, classes: int = 3) -> Split:
    """Stripes across, stripes down, or none, under noise."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    wave = np.tile([60.0, 60.0, 180.0, 180.0], SIDE // 4)
    clean = np.stack([np.tile(wave[:, None], SIDE), np.tile(wave, (SIDE, 1)), np.full((SIDE, SIDE), 120.0)])
    pixels = clean[labels] + random.normal(0, 15, (count, SIDE, SIDE))
    return in_memory(pixels.clip(0, 255).astype(np.uint8), labels, f"stripes {seed}")


def images(split: Split) -> LabelledImages:
    return LabelledImages(split, range(len(split)), GRAY)


@pytest.fixture(params=["vit", "resnet"])
def model(request: pytest.FixtureRequest) -> ImageModel:
    """An untrained network with a classifier of five classes: random features tell stripes apart."""
    torch.manual_seed(0)
    options = {"vit": {"img_size": SIDE, "patch_size": 8}, "resnet": {}}[request.param]
    module = timm.create_model(f"test_{request.param}", in_chans=1, num_classes=5, **options).eval().requires_grad_(False)
    return ImageModel(module, request.param, request.param, preprocessing=GRAY, classes=5)


def accuracy(model: ImageModel, split: Split) -> float:
    batches = list(images(split).batches(32))
    return sum(int((model.forward(batch.images).argmax(1) == batch.labels).sum()) for batch in batches) / len(split)


@pytest.mark.parametrize("head", ["probe", "knn"])
def test_a_fitted_head_classifies(model: ImageModel, head: str, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    logits = model.forward(model.example())
    fitted = attach(model, head, images(stripes(120, 0)), CLASSES, tmp_path, 90)
    assert accuracy(fitted, stripes(60, 1)) > 0.9
    assert fitted.forward(model.example()).shape == (2, 3)
    assert fitted.classes == 0
    assert fitted.body(model.example()).dim() == 2
    assert fitted.head is not None
    assert not any(parameter.requires_grad for parameter in fitted.head.parameters())
    assert torch.equal(model.forward(model.example()), logits)  # the float model keeps its classifier
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())
    shared = fitted.module.state_dict()
    assert all(shared[name].data_ptr() == value.data_ptr() for name, value in model.module.state_dict().items() if name in shared)
    assert not any("head" in name or name.startswith("fc") for name in shared)


@pytest.mark.parametrize("head", ["probe", "knn"])
def test_fitted_once(model: ImageModel, head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = images(stripes(60, 0))
    first = attach(model, head, training, CLASSES, tmp_path, 45)
    alone = attach(model, head, training, CLASSES, None, 45)
    monkeypatch.setattr(heads, "read_features", None)
    again = attach(model, head, training, CLASSES, tmp_path, 45)
    logits = first.forward(model.example())
    assert torch.equal(again.forward(model.example()), logits)
    assert torch.equal(alone.forward(model.example()), logits)
    for changed, count in ((replace(model, fingerprint="another"), 45), (model, 46)):
        with pytest.raises(TypeError):  # it would have to be fitted again
            attach(changed, head, training, CLASSES, tmp_path, count)


@pytest.mark.parametrize("head", ["probe", "knn"])
def test_half_precision(model: ImageModel, head: str) -> None:
    half = replace(model, module=model.module.bfloat16())
    fitted = attach(half, head, images(stripes(60, 0)), CLASSES, None, 60)
    assert fitted.forward(half.example()).dtype == torch.float32
    assert accuracy(fitted, stripes(60, 1)) > 0.8


def test_the_models_own_head(model: ImageModel, tmp_path: Path) -> None:
    training = images(stripes(9, 0))
    assert attach(model, "own", training, ("a", "b", "c", "d", "e"), tmp_path, 9) is model
    with pytest.raises(
        UserError, match=r"head=own: the data has 3 classes, the classifier of .* has 5; use head=probe or head=knn"
    ):
        attach(model, "own", training, CLASSES, tmp_path, 9)
    with pytest.raises(UserError, match="has no classifier; use head=probe or head=knn"):
        attach(replace(model, classes=0), "own", training, CLASSES, tmp_path, 9)


@pytest.mark.parametrize("head", ["probe", "knn"])
def test_every_class_must_be_seen(model: ImageModel, head: str) -> None:
    with pytest.raises(UserError, match=r"model.head_images=30: .* saw no image of 1 of 3 classes \(flat\); use more images"):
        attach(model, head, images(stripes(30, 0, classes=2)), CLASSES, None, 40)
    with pytest.raises(UserError, match="has the label 2; use labels from 0 to 1"):
        attach(model, head, images(stripes(30, 0)), CLASSES[:2], None, 40)


def test_labels_that_count_from_1_are_named(model: ImageModel) -> None:
    split = stripes(60, 0)
    shifted = images(replace(split, labels=split.labels + 1))
    said = "the labels of stripes 0 go from 1 to 3, so class 0 has no image"
    three = replace(model, classes=3)
    with pytest.raises(UserError, match=f"head=own: {said}; {model.name} takes labels from 0 to 2"):
        attach(three, "own", shifted, ("0", "1", "2", "3"), None, 60)
    with pytest.raises(UserError, match="head=own: the data has 4 classes"):  # by more than where they begin
        attach(model, "own", shifted, ("0", "1", "2", "3"), None, 60)
    for head in ("probe", "knn"):
        with pytest.raises(UserError, match=f"head={head}: {said}; number the labels from 0"):
            attach(model, head, shifted, ("0", "1", "2", "3"), None, 60)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_probe_is_the_regression_on_standardised_features(classes: int) -> None:
    from sklearn.linear_model import LogisticRegression

    torch.manual_seed(0)
    labels = torch.arange(60) % classes
    features = torch.randn(60, 6) * torch.tensor([1.0, 10.0, 0.1, 1.0, 1.0, 0.0]) + 3.0  # the last channel is dead
    features[:, 0] += labels
    tensors = fit_probe(features, labels)
    standard = ((features - features.mean(0)) / features.std(0).where(features.std(0) > 0, torch.ones(6))).double().numpy()
    found = build_probe(tensors, classes)(features).softmax(1).detach()
    fitted = [LogisticRegression(C=strength, max_iter=500).fit(standard, labels.numpy()) for strength in heads.STRENGTHS]
    errors = [float((found - torch.from_numpy(one.predict_proba(standard))).abs().max()) for one in fitted]
    assert min(errors) < 1e-5
    assert found.shape == (60, classes)


def voted(bank: torch.Tensor, labels: torch.Tensor, query: torch.Tensor, classes: int, k: int) -> list[float]:
    """The vote of the k nearest, one image at a time."""
    cosines = sorted(
        ((float(functional.cosine_similarity(query, other, dim=0)), int(label)) for other, label in zip(bank, labels, strict=True)),
        reverse=True,
    )[:k]
    weights = [sum(math.exp(cosine / 0.07) for cosine, label in cosines if label == one) for one in range(classes)]
    return [weight / sum(weights) for weight in weights]


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 5))
def test_neighbours_vote_as_in_the_paper(seed: int, count: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    bank, queries = torch.randn(count, 7, generator=generator) * 3, torch.randn(4, 7, generator=generator)
    labels = torch.randint(0, classes, (count,), generator=generator)
    logits = Neighbours(bank, labels, classes)(queries)
    expected = torch.tensor([voted(bank, labels, query, classes, 20) for query in queries])
    torch.testing.assert_close(logits, expected.clamp(min=1e-6).log(), rtol=1e-3, atol=1e-3)
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(Neighbours(bank * 5, labels, classes)(queries * 0.1), logits, rtol=1e-3, atol=1e-3)
