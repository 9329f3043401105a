"""Heads that classify images: a model's own classifier, or a head fitted once on float features and shared by all points."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from sqbench.console.progress import track
from sqbench.data.images import LabelledImages
from sqbench.errors import UserError
from sqbench.models.folding import share
from sqbench.models.image import ImageModel
from sqbench.storage import tensorfile
from sqbench.storage.files import digest

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

REVISION = 1  # of the code that fits heads
BATCH = 50  # images
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # C of scikit-learn's logistic regression; the score on every fifth image chooses one


class Probe(nn.Linear):
    """Logits [B, classes] of features [B, width] of any dtype. Its weights include the standardisation."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.to(self.weight.dtype))


class Neighbours(nn.Module):
    """Weighted nearest neighbours of Caron et al. 2021 (DINO), section 4.1: the k closest images vote with exp(cosine / T).

    Attributes:
        bank: [N, width] float32 features of length 1.
        labels: [N] int64.
    """

    bank: Tensor
    labels: Tensor

    def __init__(self, bank: Tensor, labels: Tensor, classes: int, k: int = 20, temperature: float = 0.07) -> None:
        super().__init__()
        assert bank.dim() == 2, bank.shape
        assert labels.shape == bank.shape[:1], labels.shape
        self.register_buffer("bank", functional.normalize(bank.float(), dim=1))
        self.register_buffer("labels", labels)
        self.classes, self.k, self.temperature = classes, min(k, len(bank)), temperature

    def forward(self, features: Tensor) -> Tensor:
        """Log shares of the vote [B, classes] for features [B, width]. A class without a vote has a share of 1e-6."""
        near = (functional.normalize(features.float(), dim=1) @ self.bank.T).topk(self.k, dim=1)
        votes = (near.values / self.temperature).softmax(dim=1)
        shares = votes.new_zeros(len(features), self.classes).scatter_add(1, self.labels[near.indices], votes)
        return shares.clamp(min=1e-6).log()


def attach(
    model: ImageModel, head: str, training: LabelledImages, classes: tuple[str, ...], folder: Path | None, count: int
) -> ImageModel:
    """The model with the head that a run asks for. A head is fitted on float features once, and is kept in `folder`.

    Args:
        head: own, probe (logistic regression) or knn.
        training: the images to fit it on, as the model reads them.
        folder: where fitted heads are kept; None keeps none.
        count: how many of these images to use.

    Raises:
        UserError: the model's own classifier has another number of classes, or cannot be removed, or a class is not among the
            images.
    """
    if head == "own":
        _check_own(model, classes, training)
        return model
    if not hasattr(model.module, "reset_classifier"):
        raise UserError(
            f"head={head}: {model.name} has no reset_classifier(0), by which timm's networks give features; use head=own"
        )
    backbone = without_classifier(model)
    drawn = training.take(count)
    key = digest([model.fingerprint, str(_dtype(model)), model.device.type, drawn.fingerprint, head, len(classes), REVISION])

    def fit() -> tensorfile.Content:
        features, labels = read_features(backbone, drawn)
        _check_labels(labels, classes, head, drawn)
        about = {"model": model.fingerprint, "training": drawn.fingerprint, "head": head, "images": len(labels)}
        return FITS[head](features, labels), about

    tensors, _ = fit() if folder is None else tensorfile.cached(folder / f"{head}-{key[:16]}.safetensors", fit)
    fitted = BUILDS[head](tensors, len(classes)).eval().requires_grad_(False).to(model.device)
    return replace(backbone, head=fitted, head_fingerprint=key)


def without_classifier(model: ImageModel) -> ImageModel:
    """A model over the same tensors that returns features. The given model does not change."""
    module = share(model.module)
    module.reset_classifier(0)  # type: ignore[operator]
    return replace(model, module=module, classes=0, head=None)


def _dtype(model: ImageModel) -> torch.dtype:
    return next(model.module.parameters()).dtype


@torch.no_grad()
def read_features(backbone: ImageModel, images: LabelledImages) -> tuple[Tensor, Tensor]:
    """Features [N, width] float32 and labels [N] of all images that can be decoded, on the CPU."""
    features, labels = [], []
    parts = torch.arange(len(images)).split(BATCH)
    for part in track(parts, f"features of {backbone.name}"):
        for batch in images.batches(BATCH, part):
            features.append(backbone.body(batch.images).float().cpu())
            labels.append(batch.labels)
    return torch.cat(features), torch.cat(labels)


def fit_probe(features: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Multinomial logistic regression on standardised features, as one linear layer: weight [classes, width], bias [classes]."""
    mean, std = features.mean(0), features.std(0)
    std = torch.where(std > 0, std, 1.0)
    inputs, targets = ((features - mean) / std).double().numpy(), labels.numpy()
    held = np.zeros(len(targets), dtype=bool)
    held[np.argsort(targets, kind="stable")[4::5]] = True

    def score(strength: float) -> float:
        return float(_regression(inputs[~held], targets[~held], strength).score(inputs[held], targets[held]))

    best = max(STRENGTHS, key=score) if held.any() and len(set(targets[~held])) > 1 else STRENGTHS[1]
    fitted = _regression(inputs, targets, best)
    weight, bias = torch.from_numpy(fitted.coef_), torch.from_numpy(fitted.intercept_)
    if len(weight) == 1:  # for two classes scikit-learn keeps only the difference
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    weight = weight / std.double()
    return {"weight": weight.float(), "bias": (bias - weight @ mean.double()).float()}


def _regression(inputs: NDArray[np.float64], targets: NDArray[np.int64], strength: float) -> "LogisticRegression":
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():  # after 500 steps the head is good, and the same each time
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=strength, max_iter=500).fit(inputs, targets)


def fit_neighbours(features: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The bank: the features and labels as they are."""
    return {"bank": features, "labels": labels}


def build_probe(tensors: dict[str, Tensor], classes: int) -> nn.Module:
    """The fitted linear layer."""
    weight = tensors["weight"]
    probe = nn.utils.skip_init(Probe, weight.shape[1], classes)
    probe.load_state_dict(tensors)
    return probe


def build_neighbours(tensors: dict[str, Tensor], classes: int) -> nn.Module:
    """The nearest-neighbour head of a bank."""
    return Neighbours(tensors["bank"], tensors["labels"], classes)


FITS: dict[str, Callable[[Tensor, Tensor], dict[str, Tensor]]] = {"probe": fit_probe, "knn": fit_neighbours}
BUILDS: dict[str, Callable[[dict[str, Tensor], int], nn.Module]] = {"probe": build_probe, "knn": build_neighbours}


def _unused(images: LabelledImages) -> str:
    """A message about labels that begin above 0, such as labels that count from 1. Empty for other labels."""
    labels = images.split.labels
    first = int(labels.min()) if len(labels) else 0
    if first <= 0:  # labels below 0 have an error of their own
        return ""
    empty = "class 0 has" if first == 1 else f"classes 0 to {first - 1} have"
    return f"the labels of {images.split.title} go from {first} to {labels.max()}, so {empty} no image"


def _check_own(model: ImageModel, classes: tuple[str, ...], training: LabelledImages) -> None:
    if model.classes == 0:
        raise UserError(f"head=own: {model.name} has no classifier; use head=probe or head=knn")
    if model.classes != len(classes):
        unused = _unused(training)
        if unused and model.classes == len(classes) - int(training.split.labels.min()):
            raise UserError(f"head=own: {unused}; {model.name} takes labels from 0 to {model.classes - 1}")
        raise UserError(
            f"head=own: the data has {len(classes)} classes, the classifier of {model.name} has {model.classes};"
            " use head=probe or head=knn, or data of its classes"
        )


def _check_labels(labels: Tensor, classes: tuple[str, ...], head: str, drawn: LabelledImages) -> None:
    seen = set(labels.tolist())
    if outside := sorted(label for label in seen if not 0 <= label < len(classes)):
        raise UserError(f"data: {drawn.split.title} has the label {outside[0]}; use labels from 0 to {len(classes) - 1}")
    if unused := _unused(drawn):
        raise UserError(f"head={head}: {unused}; number the labels from 0")
    absent = [name for index, name in enumerate(classes) if index not in seen]
    if absent:
        listed = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
        raise UserError(
            f"model.head_images={len(drawn)}: head={head} saw no image of {len(absent)} of {len(classes)} classes ({listed});"
            " use more images, where the training split has these classes"
        )
