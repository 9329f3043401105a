"""Accuracy on labelled images, and the divergence of a quantized model's predictions from the float model's."""

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from sqbench.comparison import HIGHER, LOWER, SIZE, Metric, Outcome
from sqbench.console.progress import track
from sqbench.data.images import ImageExamples
from sqbench.evaluation.base import Evaluation, EvaluationError, Result, require_finite
from sqbench.models.image import ImageModel

BATCH = 32  # images at once
TOP = 5
BY = ("image",)
METRICS = (
    Metric("top1", HIGHER, "%", 0.01, 2, place=20, outcome=Outcome("proportion", "correct", BY)),
    Metric("top5", HIGHER, "%", 0.01, 2, place=21, outcome=Outcome("proportion", "correct5", BY)),
    Metric("kl_to_fp", LOWER, place=50, outcome=Outcome("mean", "kl", BY)),
    Metric("agreement", HIGHER, decimals=3, place=51),
    SIZE,
)
RETRY = "the images have changed, or reading fails now and then: with the folder cache/baselines removed both are read anew"


@torch.no_grad()
def accuracy(model: ImageModel, examples: ImageExamples, reference: Result | None = None) -> Result:
    """The share of images whose label is the most likely class (`top1`) or among the five most likely (`top5`).

    `top5` needs six classes or more. A reference (the float model's result) adds two metrics. `kl_to_fp` is the mean
    KL(float || model) in nats. `agreement` is the share of images with the same most likely class. Corrupt images are left out on
    both sides.

    Raises:
        EvaluationError: a logit is NaN or infinite, or the readable images are not those of the reference.
        UserError: no image could be read.
    """
    rows, kept = [], []
    place = {} if reference is None else {image: row for row, image in enumerate(reference.samples["image"].tolist())}
    batches = examples.evaluation.batches(BATCH)
    for batch in track(batches, "evaluate", total=-(-len(examples.evaluation) // BATCH)):
        logits = model.forward(batch.images).float().cpu()
        require_finite(float(logits.sum()), f"image {int(batch.index[0])} or one after it", model, batch.images)
        base = None
        if reference is not None:
            assert reference.kept is not None
            if unpaired := [image for image in batch.index.tolist() if image not in place]:
                raise EvaluationError(
                    f"image {unpaired[0]} of the draw can be read now, and could not for the float model; {RETRY}"
                )
            base = reference.kept["logits"][[place[image] for image in batch.index.tolist()]]
        rows.append(_compare(logits, batch.labels, batch.index, base))
        if reference is None:
            kept.append(logits)
    samples = pd.concat(rows, ignore_index=True)
    if reference is not None and len(samples) < len(place):
        raise EvaluationError(f"{len(place) - len(samples)} images cannot be read now, and could for the float model; {RETRY}")
    return Result(_metrics(samples, model), samples, model, {"logits": torch.cat(kept)} if kept else None)


def _compare(logits: Tensor, labels: Tensor, index: Tensor, base: Tensor | None) -> pd.DataFrame:
    """One row per image: label, prediction, whether it was correct, and loss. With `base` the float model's columns are added."""
    logp = log_softmax(logits, dim=-1)
    columns = {"image": index, "label": labels, **_outcome(logp, labels, "")}
    if base is not None:
        logp_fp = log_softmax(base, dim=-1)
        columns |= _outcome(logp_fp, labels, "_fp")
        columns["kl"] = (logp_fp.exp() * (logp_fp - logp)).sum(1).double().clamp(min=0)
    return pd.DataFrame({name: value.numpy() for name, value in columns.items()})


def _outcome(logp: Tensor, labels: Tensor, suffix: str) -> dict[str, Tensor]:
    order = logp.topk(min(TOP, logp.shape[1]), dim=1).indices
    outcome = {
        "predicted": order[:, 0],
        "correct": order[:, 0] == labels,
        "nll": -logp.gather(1, labels.unsqueeze(1)).squeeze(1).double(),
    }
    if logp.shape[1] > TOP:
        outcome["correct5"] = (order == labels.unsqueeze(1)).any(1)
    return {name + suffix: value for name, value in outcome.items()}


def _metrics(samples: pd.DataFrame, model: ImageModel) -> dict[str, float]:
    metrics = {"top1": float(samples["correct"].mean())}
    if "correct5" in samples:
        metrics["top5"] = float(samples["correct5"].mean())
    if "kl" in samples:
        metrics["kl_to_fp"] = float(samples["kl"].mean())
        metrics["agreement"] = float((samples["predicted"] == samples["predicted_fp"]).mean())
    metrics["weight_bytes"] = float(model.stored_bytes)
    return metrics


def _as_reference(result: Result) -> Result:
    """A float result in the form of a comparison. Its divergence from itself is 0."""
    own = [name for name in result.samples if name not in ("image", "label")]
    samples = result.samples.assign(**{f"{name}_fp": result.samples[name] for name in own}, kl=0.0)
    return Result({**result.metrics, "kl_to_fp": 0.0, "agreement": 1.0}, samples, result.model, result.kept)


ACCURACY = Evaluation(("images",), METRICS, accuracy, _as_reference, single_pass=True)
