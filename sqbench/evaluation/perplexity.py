"""Perplexity over fixed windows, and the divergence of a quantized model's predictions from the float model's."""

import math
from collections.abc import Iterator

import pandas as pd
import torch
from torch import Tensor

from sqbench.comparison import HIGHER, LOWER, SIZE, Metric, Outcome
from sqbench.console.progress import track
from sqbench.data.text import Windows
from sqbench.evaluation import divergence
from sqbench.evaluation.base import Evaluation, EvaluationError, Result, require_finite
from sqbench.evaluation.causality import causal
from sqbench.models.language import LanguageModel

MOST_NATS = 100.0  # mean per token of a window; a perplexity of 1e43 means "broken", and exp overflows soon after
KEEP_BYTES = 2**30  # most bytes of float outputs to keep; beyond that the float model runs again beside every point
BY = ("window",)
METRICS = (
    Metric("perplexity", LOWER, decimals=2, place=10, outcome=Outcome("perplexity", "nll", BY, weights="tokens")),
    Metric("bits_per_byte", LOWER, place=11),
    Metric("kl_to_fp", LOWER, place=50, outcome=Outcome("mean", "kl", BY)),
    Metric("agreement", HIGHER, decimals=3, place=51, outcome=Outcome("mean", "agreement", BY)),
    SIZE,
)


@torch.no_grad()
def perplexity(model: LanguageModel, windows: Windows, reference: Result | None = None) -> Result:
    """exp of the mean negative log-likelihood over all predicted tokens of the evaluation windows, one window at a time.

    The first token of a window's text is not predicted, nor are the tokens before it (`data.bos`). The predicted text is therefore
    the same with and without these tokens.

    Samples have a row per window: `window, tokens, nll` (mean nats per token), and against a reference `nll_fp, kl, agreement`.

    A reference (the float model's result) adds two metrics. `kl_to_fp` is the mean KL(float || model) over predicted tokens in
    nats. `agreement` is the share of tokens whose most likely prediction is the same.

    Raises:
        EvaluationError: a loss is NaN, infinite or above `MOST_NATS`, or predictions of the float model depend on later tokens. For
            NaN and infinity the message names the first layer that wrote such a value.
        UserError: a token has no embedding.
    """
    model.check_tokens(windows.evaluation)
    rows, kept = [], []
    keep = reference is None and windows.evaluation.numel() * model.width * 4 <= KEEP_BYTES
    linear = reference is not None and reference.kept is not None and divergence.same_head(model, reference.model)
    floats = iter(()) if reference is None else _float_outputs(reference, windows)
    outputs_of = track(_outputs(model, windows), "evaluate", len(windows.evaluation))
    for number, (ids, outputs) in enumerate(zip(windows.evaluation, outputs_of, strict=True)):
        target = ids[len(windows.prefix) + 1 :].to(outputs.device)
        if reference is None:
            columns, summary = divergence.predict(model, outputs, target)
            if keep:
                kept.append({name: value.cpu() for name, value in summary.items()})
        else:
            known = (
                {} if reference.kept is None else {name: value[number].to(target.device) for name, value in reference.kept.items()}
            )
            if linear and "row" in known:
                columns = divergence.compare(model, outputs, target, known)
            else:
                columns = divergence.compare_logits(model, outputs, target, reference.model, next(floats).to(outputs.device))
        means = {name: value.double().mean().item() for name, value in columns.items()}
        require_finite(means["nll"], f"window {number}", model, ids.unsqueeze(0))
        if means["nll"] > MOST_NATS:
            raise EvaluationError(f"the loss of window {number} is {means['nll']:.3g} nats per token: no perplexity worth the name")
        row = {"window": number, "tokens": len(target), "nll": means["nll"]}
        if reference is not None:
            row["nll_fp"] = float(reference.samples["nll"][number])
            row |= {"kl": max(means["kl"], 0.0), "agreement": means["agreement"]}  # rounding can make it negative
        rows.append(row)
    samples = pd.DataFrame(rows)
    stacked = {name: torch.stack([one[name] for one in kept]) for name in kept[0]} if kept else None
    return Result(_metrics(samples, windows, model), samples, model, stacked or None)


def _outputs(model: LanguageModel, windows: Windows) -> Iterator[Tensor]:
    """The head's inputs [tokens, width] for each window's predicting tokens. Logits [tokens, vocabulary] if no head is separate."""
    run = model.forwards if model.head is None else model.bodies
    outputs_of = causal(model, run, windows.evaluation, windows.evaluation.split(1))
    return (outputs[0, len(windows.prefix) : -1] for outputs in outputs_of)


def _float_outputs(reference: Result, windows: Windows) -> Iterator[Tensor]:
    """The float model's kept outputs. Without them the model runs again, when the first output is read."""
    kept = reference.kept or {}
    return iter(kept["outputs"]) if "outputs" in kept else _outputs(reference.model, windows)


def _metrics(samples: pd.DataFrame, windows: Windows, model: LanguageModel) -> dict[str, float]:
    nats = float((samples["nll"] * samples["tokens"]).sum())
    metrics = {
        "perplexity": math.exp(nats / float(samples["tokens"].sum())),
        "bits_per_byte": nats / math.log(2) / windows.evaluation_bytes,
    }
    if "kl" in samples:
        metrics["kl_to_fp"] = float(samples["kl"].mean())
        metrics["agreement"] = float(samples["agreement"].mean())
    metrics["weight_bytes"] = float(model.stored_bytes)
    return metrics


def as_reference(result: Result) -> Result:
    """A float result in the form of a comparison. Its divergence from itself is 0."""
    samples = result.samples.assign(nll_fp=result.samples["nll"], kl=0.0, agreement=1.0)
    return Result({**result.metrics, "kl_to_fp": 0.0, "agreement": 1.0}, samples, result.model, result.kept)


PERPLEXITY = Evaluation(("text",), METRICS, perplexity, as_reference, single_pass=True)
