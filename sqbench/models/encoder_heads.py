"""Classifiers on the vectors of a frozen encoder: fitted once on float vectors, and shared by all points."""

from dataclasses import replace
from pathlib import Path

import torch

from sqbench.console.progress import track
from sqbench.data.sentences import SentenceExamples
from sqbench.errors import UserError
from sqbench.models.encoder import EncoderModel
from sqbench.models.heads import BUILDS, FITS, REVISION
from sqbench.storage import tensorfile
from sqbench.storage.files import digest

BATCH = 32  # texts of one length at once


def for_head(model: EncoderModel, head: str) -> EncoderModel:
    """The encoder as it stands under a head: own, or a fitted one on its vectors.

    Raises:
        UserError: the model makes no vectors.
    """
    if head == "own":
        return model
    if model.task != "similarity":
        raise UserError(f"head={head}: {model.name} is for {model.task} and has its own head; use head=own, or a model of vectors")
    return replace(model, task="features")


def attach_to_encoder(model: EncoderModel, head: str, examples: SentenceExamples, folder: Path | None, count: int) -> EncoderModel:
    """The encoder with the head that a run asks for. A head is fitted on float vectors once, and is kept in `folder`.

    Args:
        head: own, probe (logistic regression) or knn.
        folder: where fitted heads are kept; None keeps none.
        count: how many texts of the training split to use.

    Raises:
        UserError: the model makes no vectors, or a class is not among the texts.
    """
    backbone = for_head(model, head)
    if head == "own":
        return model
    fitting, labels = examples.fitting(count)
    assert labels is not None
    if absent := [name for number, name in enumerate(examples.classes) if number not in set(labels.tolist())]:
        raise UserError(
            f"model.head_images={len(labels)}: head={head} saw no text of the class {absent[0]}; use more texts, or"
            " data.train_path=..."
        )
    content = [[one.tolist() for one in fitting.tensors], labels.tolist()]
    key = digest([model.fingerprint, str(next(model.module.parameters()).dtype), model.device.type, content, head, REVISION])

    @torch.no_grad()
    def fit() -> tensorfile.Content:
        vectors, numbers = [], []
        for at, batch in track(list(fitting.batches(BATCH)), f"vectors of {model.name}"):
            vectors.append(backbone.forward(batch).float().cpu())
            numbers.append(at)
        found, order = torch.cat(vectors), torch.cat(numbers)
        return FITS[head](found[order.argsort()], torch.from_numpy(labels)), {"model": model.fingerprint, "head": head}

    tensors, _ = fit() if folder is None else tensorfile.cached(folder / f"{head}-{key[:16]}.safetensors", fit)
    fitted = BUILDS[head](tensors, len(examples.classes)).eval().requires_grad_(False).to(model.device)
    return replace(backbone, head=fitted, head_fingerprint=key)
