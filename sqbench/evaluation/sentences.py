"""What an encoder says about texts, held against what is true, and its divergence from the float model.

The model's own task decides on the metrics. A row of a table is an example.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, log_softmax

from sqbench.comparison import HIGHER, LOWER, SIZE, Metric, Outcome
from sqbench.console.progress import track
from sqbench.data.sentences import Inputs, SentenceExamples
from sqbench.evaluation.base import Evaluation, Result, require_finite
from sqbench.evaluation.fill_mask import losses
from sqbench.models.encoder import EncoderModel

BATCH = 32  # texts of one length at once
BY = ("sentence",)
METRICS = (
    Metric("spearman", HIGHER, place=22, outcome=Outcome("spearman", "score", BY, target="target")),
    Metric("pearson", HIGHER, place=23, outcome=Outcome("pearson", "score", BY, target="target")),
    Metric("accuracy", HIGHER, "%", 0.01, 2, place=24, outcome=Outcome("proportion", "correct", BY)),
    Metric("f1", HIGHER, place=25, outcome=Outcome("f1", "predicted", BY, target="label")),
    Metric("mcc", HIGHER, place=26, outcome=Outcome("mcc", "predicted", BY, target="label")),
    Metric("pseudo_perplexity", LOWER, decimals=2, place=27, outcome=Outcome("perplexity", "nll", BY, weights="tokens")),
    Metric("kl_to_fp", LOWER, place=50, outcome=Outcome("mean", "kl", BY)),
    Metric("agreement", HIGHER, decimals=3, place=51, outcome=Outcome("mean", "same", BY)),
    Metric("cosine_to_fp", HIGHER, place=52, outcome=Outcome("mean", "cosine", BY)),
    SIZE,
)
MEANS = {"accuracy": "correct", "kl_to_fp": "kl", "agreement": "same", "cosine_to_fp": "cosine"}  # metric -> its column


@dataclass(frozen=True)
class Answers:
    """What a model says about all rows.

    Attributes:
        samples: a row for each row of the table, without its number.
        kept: name -> tensor, [texts, ...] or [rows, ...], that a later comparison needs.
    """

    samples: pd.DataFrame
    kept: dict[str, Tensor]


@torch.no_grad()
def sentences(model: EncoderModel, examples: SentenceExamples, reference: Result | None = None) -> Result:
    """The metrics of the model's task over labelled texts.

    `similarity`: `spearman` and `pearson` between the cosine of the vectors of a row's two texts and its score. `regression`: the
    same for the model's own score. `classification`, and `features` under a fitted head: `accuracy`, `f1` and `mcc`. `fill_mask`:
    `pseudo_perplexity` (Salazar et al. 2020), exp of the mean loss of every token when it alone is masked.

    A reference (the float model's result) adds `cosine_to_fp`, the mean cosine between the vectors of both models. Of classes it
    adds `kl_to_fp` and `agreement`.

    Raises:
        EvaluationError: an output is NaN or infinite.
    """
    said = TASKS[model.task](model, examples)
    samples = said.samples
    samples.insert(0, "sentence", np.arange(len(samples)))
    if reference is not None:
        floats = {f"{name}_fp": reference.samples[name] for name in ("score", "predicted", "correct", "nll") if name in samples}
        samples = samples.assign(**floats, **_against(said, reference, examples))
    return Result(_metrics(samples, model), samples, model, said.kept if reference is None else None)


def outputs(model: EncoderModel, inputs: Inputs) -> Tensor:
    """The model's outputs [texts, ...] for texts of any length, float32 on the CPU."""
    found: list[Tensor] = []
    places: list[Tensor] = []
    for numbers, batch in track(list(inputs.batches(BATCH)), "evaluate"):
        output = model.forward(batch).float().cpu()
        require_finite(float(output.sum()), f"row {inputs.rows[int(numbers[0])]} or one of its length", model, batch)
        found.append(output)
        places.append(numbers)
    return torch.cat(found)[torch.cat(places).argsort()]


def _similarity(model: EncoderModel, examples: SentenceExamples) -> Answers:
    vectors = outputs(model, examples.evaluation)
    first, second = vectors.double().chunk(2)
    return Answers(
        pd.DataFrame({"target": examples.targets, "score": cosine_similarity(first, second).numpy()}), {"vectors": vectors}
    )


def _regression(model: EncoderModel, examples: SentenceExamples) -> Answers:
    score = outputs(model, examples.evaluation).squeeze(1).double().numpy()
    return Answers(pd.DataFrame({"target": examples.targets, "score": score}), {})


def _classification(model: EncoderModel, examples: SentenceExamples) -> Answers:
    logits = outputs(model, examples.evaluation)
    predicted = logits.argmax(1).numpy()
    table = {"label": examples.targets, "predicted": predicted, "correct": predicted == examples.targets}
    return Answers(pd.DataFrame(table), {"logits": logits})


def _fill_mask(model: EncoderModel, examples: SentenceExamples) -> Answers:
    rows = [losses(model, one) for one in track(examples.evaluation.tensors, "evaluate")]
    for row, one in zip(rows, examples.evaluation.tensors, strict=True):
        require_finite(float(row.sum()), "a text", model, one.unsqueeze(0))
    return Answers(pd.DataFrame({"tokens": [len(row) for row in rows], "nll": [float(row.mean()) for row in rows]}), {})


TASKS: dict[str, Callable[[EncoderModel, SentenceExamples], Answers]] = {
    "similarity": _similarity,
    "regression": _regression,
    "classification": _classification,
    "features": _classification,
    "fill_mask": _fill_mask,
}


def _against(said: Answers, reference: Result, examples: SentenceExamples) -> dict[str, np.ndarray]:
    """The columns that compare a model with the float model, row by row."""
    if "vectors" in said.kept:
        assert reference.kept is not None
        each = cosine_similarity(said.kept["vectors"].double(), reference.kept["vectors"].double()).numpy()
        return {"cosine": np.bincount(examples.evaluation.rows, weights=each) / np.bincount(examples.evaluation.rows)}
    if "logits" in said.kept:
        assert reference.kept is not None
        logp, logp_fp = (log_softmax(one["logits"].double(), dim=1) for one in (said.kept, reference.kept))
        kl = (logp_fp.exp() * (logp_fp - logp)).sum(1).clamp(min=0).numpy()
        return {"kl": kl, "same": (said.samples["predicted"] == reference.samples["predicted"]).to_numpy()}
    return {}


def _metrics(samples: pd.DataFrame, model: EncoderModel) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for metric in METRICS:
        outcome = metric.outcome
        if outcome is None or outcome.column not in samples:
            continue
        if not outcome.averages:
            metrics[metric.name] = outcome.value(samples)
        elif metric.name in MEANS:
            metrics[metric.name] = float(samples[MEANS[metric.name]].mean())
        else:
            metrics[metric.name] = float(np.exp(np.average(samples["nll"], weights=samples["tokens"])))
    metrics["weight_bytes"] = float(model.stored_bytes)
    return metrics


def _as_reference(result: Result) -> Result:
    """A float result in the form of a comparison. Its divergence from itself is 0."""
    samples = result.samples
    own = {f"{name}_fp": samples[name] for name in ("score", "predicted", "correct", "nll") if name in samples}
    kept = result.kept or {}
    equal: dict[str, float] = {"cosine": 1.0} if "vectors" in kept else {"kl": 0.0, "same": True} if "logits" in kept else {}
    samples = samples.assign(**own, **equal)
    return Result(_metrics(samples, result.model), samples, result.model, result.kept)


SENTENCES = Evaluation(("sentences",), METRICS, sentences, _as_reference, single_pass=True)
