"""Accuracy and its paired difference, against plain definitions."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sqbench.data.images import Batch
from sqbench.data.preprocessing import Preprocessing
from sqbench.evaluation import EVALUATIONS, EvaluationError
from sqbench.evaluation.baseline import reference
from sqbench.models.image import ImageModel

CLASSES = 7
PLAIN = Preprocessing((3, 4, 4), (0.5,) * 3, (0.25,) * 3)


class Images:
    """Labelled noise; every `skip`-th image is corrupt."""

    def __init__(self, count: int = 50, skip: int = 0) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(count, 3, 4, 4, generator=generator)
        self.labels = torch.randint(CLASSES, (count,), generator=generator)
        self.index = torch.tensor([i for i in range(count) if not skip or i % skip])

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int, order: object = None) -> Iterator[Batch]:
        for part in self.index.split(size):
            yield Batch(self.images[part], self.labels[part], part)


def examples(**options: int) -> Any:
    return SimpleNamespace(evaluation=Images(**options), fingerprint=lambda: "noise")


def classifier(seed: int) -> ImageModel:
    torch.manual_seed(seed)
    return ImageModel(nn.Sequential(nn.Flatten(), nn.Linear(48, CLASSES)), "noise", f"{seed}", preprocessing=PLAIN, classes=CLASSES)


TOP1 = EVALUATIONS["top1"]


def logits_of(model: ImageModel, data: Images) -> Tensor:
    with torch.no_grad():
        return model.module(data.images[data.index]).double()


@pytest.mark.parametrize("skip", [0, 5])
def test_metrics_are_their_definitions(skip: int) -> None:
    data, model, other = examples(skip=skip), classifier(0), classifier(1)
    base = TOP1.as_reference(TOP1.run(model, data))
    result = TOP1.run(other, data, base)
    mine, floats = logits_of(other, data.evaluation), logits_of(model, data.evaluation)
    labels = data.evaluation.labels[data.evaluation.index]
    assert result.metrics["top1"] == pytest.approx((mine.argmax(1) == labels).double().mean().item())
    ranks = (mine > mine.gather(1, labels.unsqueeze(1))).sum(1)
    assert result.metrics["top5"] == pytest.approx((ranks < 5).double().mean().item())
    assert result.metrics["agreement"] == pytest.approx((mine.argmax(1) == floats.argmax(1)).double().mean().item())
    p, q = floats.softmax(1), mine.softmax(1)
    assert result.metrics["kl_to_fp"] == pytest.approx((p * (p / q).log()).sum(1).mean().item(), rel=1e-5)
    assert base.metrics["top1"] == pytest.approx((floats.argmax(1) == labels).double().mean().item())
    assert result.samples["image"].tolist() == data.evaluation.index.tolist()
    difference = TOP1.differences(result.samples, 1000, 0.95)["top1"]
    assert difference.value == pytest.approx(result.metrics["top1"] - base.metrics["top1"])
    assert difference.n == len(labels)


def test_the_float_model_does_not_differ_from_itself() -> None:
    data, model = examples(), classifier(0)
    base = TOP1.as_reference(TOP1.run(model, data))
    again = TOP1.run(model, data, base)
    assert again.metrics == base.metrics
    difference = TOP1.differences(again.samples, 1000, 0.95)["top1"]
    assert (difference.value, difference.p, difference.flip_rate) == (0, 1, 0)
    assert difference.low == -difference.high


def test_images_are_paired_by_what_they_are_not_by_their_turn() -> None:
    """An image that only one of the two could read must never shift the others."""
    whole, model = examples(), classifier(0)
    base = TOP1.as_reference(TOP1.run(model, whole))
    fewer = examples(skip=7)
    with pytest.raises(EvaluationError, match=r"8 images cannot be read now, and could for the float model"):
        TOP1.run(model, fewer, base)
    short = TOP1.as_reference(TOP1.run(model, fewer))
    with pytest.raises(EvaluationError, match=r"image 0 of the draw can be read now, and could not for the float model"):
        TOP1.run(model, whole, short)


def test_the_baseline_comes_back_from_disk_as_it_was(tmp_path: Any) -> None:
    data, model = examples(), classifier(0)
    first, again = (reference(model, data, "top1", tmp_path) for _ in range(2))
    assert first.metrics == again.metrics
    assert first.samples.equals(again.samples)
    assert first.kept is not None
    assert again.kept is not None
    assert torch.equal(first.kept["logits"], again.kept["logits"])
    assert len(list(tmp_path.iterdir())) == 1


def test_nan_names_the_layer() -> None:
    model = classifier(0)
    model.module[1].weight.data[0, 0] = float("nan")
    with pytest.raises(EvaluationError, match="the first layer that wrote NaN or infinity is 1"):
        TOP1.run(model, examples())
