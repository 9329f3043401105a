"""Perplexity over fixed windows, and how far a quantized model's predictions moved from the float model's."""

import math

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from sqbench.data.text import Windows
from sqbench.evaluation.base import Evaluation, EvaluationError, Result, require_finite
from sqbench.evaluation.statistics import Difference, perplexity_difference
from sqbench.models.language import LanguageModel
from sqbench.progress import track
from sqbench.quant.layers import stored_bytes

CHUNK = 128  # tokens whose logits exist at once: a vocabulary of 49,152 makes 25 MB of them
MOST_NATS = 100.0  # per token and window: a perplexity of 1e43 says no more than "broken", and exp overflows soon after
KEEP_BYTES = 2**30  # of a reference's hidden states; beyond that the float model runs again beside every point


@torch.no_grad()
def perplexity(model: LanguageModel, windows: Windows, reference: Result | None = None) -> Result:
    """exp of the mean negative log-likelihood over all predicted tokens of the evaluation windows, one window at a time.

    Samples have a row per window: `window, tokens, nll` (mean nats per token), and against a reference `nll_fp, kl, agreement`.

    Against a reference (the float model's result) also `kl_to_fp`, the mean KL(float || model) over predicted tokens in nats, and
    `agreement`, the share of tokens whose most likely prediction is the same.

    Raises:
        EvaluationError: a loss is NaN or infinite; names the first layer that wrote such a value.
    """
    rows, kept = [], []
    keep = reference is None and model.head is not None
    expected = windows.evaluation.numel() * model.module.config.hidden_size * 4
    for number, ids in enumerate(track(windows.evaluation, "evaluate")):
        outputs = _outputs(model, ids)
        row = {"window": number, "tokens": len(ids) - 1, **_compare(model, outputs, ids, reference, number)}
        require_finite(row["nll"], f"window {number}", model, ids.unsqueeze(0))
        if row["nll"] > MOST_NATS:
            raise EvaluationError(f"the loss of window {number} is {row['nll']:.3g} nats per token: no perplexity worth the name")
        rows.append(row)
        if keep and expected <= KEEP_BYTES:
            kept.append(outputs.cpu())
    samples = pd.DataFrame(rows)
    return Result(_metrics(samples, windows, model), samples, model, torch.stack(kept) if kept else None)


def _outputs(model: LanguageModel, ids: Tensor) -> Tensor:
    """What the head reads [tokens, width]; the logits themselves [tokens, vocabulary] where the head is not separate."""
    return (model.forward if model.head is None else model.body)(ids.unsqueeze(0))[0]


def _compare(model: LanguageModel, outputs: Tensor, ids: Tensor, reference: Result | None, number: int) -> dict[str, float]:
    """Mean negative log-likelihood of a window, and against the reference its own, the KL divergence and the agreement."""
    target = ids[1:].to(outputs.device)
    base = None
    if reference is not None:
        base = _outputs(reference.model, ids) if reference.kept is None else reference.kept[number].to(outputs.device)
    sums = torch.zeros(4, dtype=torch.float64)
    for start in range(0, len(target), CHUNK):
        piece = slice(start, min(start + CHUNK, len(target)))
        logp = _log_probabilities(model, outputs[piece])
        wanted = target[piece].unsqueeze(1)
        sums[0] -= logp.gather(1, wanted).double().sum().item()
        if reference is not None and base is not None:
            logp_fp = _log_probabilities(reference.model, base[piece])
            sums[1] -= logp_fp.gather(1, wanted).double().sum().item()
            sums[3] += (logp.argmax(1) == logp_fp.argmax(1)).sum().item()
            sums[2] += logp_fp.exp().mul_(logp_fp - logp).sum(1).double().sum().item()
    sums[2].clamp_(min=0)  # rounding can take the divergence of equal models a hair below
    nll, nll_fp, kl, agreement = (sums / len(target)).tolist()
    return {"nll": nll} if reference is None else {"nll": nll, "nll_fp": nll_fp, "kl": kl, "agreement": agreement}


def _log_probabilities(model: LanguageModel, outputs: Tensor) -> Tensor:
    logits = outputs if model.head is None else model.head(outputs)
    return log_softmax(logits.float(), dim=-1)


def _metrics(samples: pd.DataFrame, windows: Windows, model: LanguageModel) -> dict[str, float]:
    nats = float((samples["nll"] * samples["tokens"]).sum())
    metrics = {
        "perplexity": math.exp(nats / float(samples["tokens"].sum())),
        "bits_per_byte": nats / math.log(2) / windows.evaluation_bytes,
    }
    if "kl" in samples:
        metrics["kl_to_fp"] = float(samples["kl"].mean())
        metrics["agreement"] = float(samples["agreement"].mean())
    metrics["weight_bytes"] = float(stored_bytes(model.module))
    return metrics


def as_reference(result: Result) -> Result:
    """A float result with what every comparison has: no divergence from itself."""
    samples = result.samples.assign(nll_fp=result.samples["nll"], kl=0.0, agreement=1.0)
    return Result({**result.metrics, "kl_to_fp": 0.0, "agreement": 1.0}, samples, result.model, result.kept)


def differences(samples: pd.DataFrame, resamples: int, level: float) -> dict[str, Difference]:
    """The change of perplexity, paired by window."""
    nll, nll_fp = samples["nll"].to_numpy(), samples["nll_fp"].to_numpy()
    return {"perplexity": perplexity_difference(nll, nll_fp, resamples=resamples, level=level)}


PERPLEXITY = Evaluation({"text": ()}, "perplexity", perplexity, as_reference, differences)
