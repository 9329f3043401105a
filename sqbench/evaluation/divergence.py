"""The divergence of a language model's predictions from the float model's, per token, in a few passes over the logits.

With float logits z = W h + b, probabilities p and another model's z' = W h' + b,

    KL(p || p') = logsumexp(z') - E_p[z'] - (logsumexp(z) - E_p[z]),        E_p[W h' + b] = E_p[W] h' + E_p[b].

Only E_p[W] (as wide as a hidden state) and one number are therefore needed from the float model. Its head need not be applied again
beside every point, and no probability is kept.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from sqbench.models.language import LanguageModel

CHUNK = 128  # tokens whose logits exist at once: 25 MB for 49,152 words. Above 32 MB, malloc maps new pages every time

Columns = dict[str, Tensor]  # name -> [tokens, ...]


def predict(model: LanguageModel, outputs: Tensor, target: Tensor) -> tuple[Columns, Columns]:
    """A model's own losses, and the columns of a float model that a comparison needs.

    Args:
        outputs: the head's inputs [tokens, width], or the logits [tokens, vocabulary] if the head is not separate.
        target: [tokens] the words that follow.

    Returns:
        First, `nll` [tokens]. Second, the columns for `compare`: `row` [tokens, width], E_p[W]; `rest` [tokens] float64,
        logsumexp(z) - E_p[W] h; `top` [tokens], the most likely word. If the head is not a float32 linear layer, the second has
        only `outputs`, because half precision rounds the logits. If the head is not separate, the second is empty.
    """
    weight = _head_weight(model)
    losses, parts = [], []
    for h, word in zip(outputs.split(CHUNK), target.split(CHUNK), strict=True):
        logits = _logits(model, h)
        logp = log_softmax(logits, dim=-1)
        wanted = logp.gather(1, word.unsqueeze(1))
        losses.append(-wanted.squeeze(1))
        if weight is not None:
            lse = (logits.gather(1, word.unsqueeze(1)) - wanted).squeeze(1)
            p = logp.exp_()
            row = p @ weight / p.sum(1, keepdim=True)  # rounding: the sum of p is not exactly 1, and E_p[W] h may be large
            parts.append({"row": row, "rest": lse - _products(row, h), "top": logits.argmax(1)})
    summary = {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {"outputs": outputs}
    return {"nll": torch.cat(losses)}, summary if model.head is not None else {}


def compare(model: LanguageModel, outputs: Tensor, target: Tensor, known: Columns) -> Columns:
    """`nll`, `kl` and `agreement` [tokens] of a model with the float model's head. `known` comes from `predict`."""
    found = []
    for h, word, row, rest, top in zip(
        *(part.split(CHUNK) for part in (outputs, target, known["row"], known["rest"], known["top"])), strict=True
    ):
        logits = _logits(model, h)
        at = logits.gather(1, torch.stack([word, top], dim=1))
        logp = log_softmax(logits, dim=-1).gather(1, word.unsqueeze(1)).squeeze(1)
        kl = at[:, 0] - logp - _products(row, h) - rest
        found.append({"nll": -logp, "kl": kl, "agreement": at[:, 1] == logits.amax(1)})
    return {name: torch.cat([part[name] for part in found]) for name in found[0]}


def compare_logits(model: LanguageModel, outputs: Tensor, target: Tensor, floats: LanguageModel, base: Tensor) -> Columns:
    """`nll`, `kl` and `agreement` [tokens] of any two models by definition, from the inputs of both heads."""
    found = []
    for h, h_fp, word in zip(outputs.split(CHUNK), base.split(CHUNK), target.split(CHUNK), strict=True):
        logp, logp_fp = (log_softmax(_logits(*pair), dim=-1) for pair in ((model, h), (floats, h_fp)))
        same = logp.argmax(1) == logp_fp.argmax(1)
        nll = -logp.gather(1, word.unsqueeze(1)).squeeze(1)
        found.append({"nll": nll, "kl": logp_fp.exp().mul_(logp_fp - logp).sum(1), "agreement": same})
    return {name: torch.cat([part[name] for part in found]) for name in found[0]}


def same_head(model: LanguageModel, floats: LanguageModel) -> bool:
    """Whether two heads are the same linear map, and the float head is float32. A random vector shows any difference."""
    weight = _head_weight(floats)
    if weight is None or model.head is None or floats.head is None:
        return False
    probe = torch.randn(1, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
    ours, theirs = model.head(probe), floats.head(probe)
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def _head_weight(model: LanguageModel) -> Tensor | None:
    """The weight W [vocabulary, width] of a head that is a float32 linear layer, else None."""
    head = model.head
    return head.weight if isinstance(head, nn.Linear) and head.weight.dtype == torch.float32 else None


def _logits(model: LanguageModel, outputs: Tensor) -> Tensor:
    return (outputs if model.head is None else model.head(outputs)).float()


def _products(rows: Tensor, h: Tensor) -> Tensor:
    """Inner products [tokens] in float64, because the divergence is a small difference of large numbers."""
    return (rows.double() * h.double()).sum(1)
