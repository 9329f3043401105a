"""A test of whether a language model predicts each token from earlier tokens alone. Perplexity and decoding need such a model."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from sqbench.evaluation.base import EvaluationError
from sqbench.models.language import LanguageModel

TOKENS = 16  # of the tested window; the fewer there are, the more each of them changes the others
LEAST = 1e-4  # relative change of the outputs (eps if larger); kernels may add in another order when other tokens follow


def causal(
    model: LanguageModel, run: Callable[[Iterable[Tensor]], Iterator[Tensor]], windows: Tensor, batches: Sequence[Tensor]
) -> Iterator[Tensor]:
    """The outputs of `run` for the batches, after a test of a float model with two windows that differ in their ends.

    The test and the batches share one call of `run`, because each call may read a model from disk. A quantized model is not
    tested. It is as causal as its float model, except for dynamic ranges of whole tensors, which depend on every token.

    Args:
        windows: [N, tokens]. The test uses the beginning of the first.

    Raises:
        EvaluationError: outputs of a float model differ before the place where the two windows differ.
    """
    if model.report is not None:
        yield from run(batches)
        return
    one, vocabulary = windows[:1, :TOKENS], model.vocabulary
    same = one.shape[1] // 2
    other = torch.cat([one[:, :same], (one[:, same:] + vocabulary // 2) % vocabulary], dim=1)
    outputs = run((one, other, *batches))
    ours, theirs = (next(outputs)[:, :same] for _ in range(2))
    moved = float((ours.double() - theirs.double()).norm() / ours.double().norm())
    if moved > max(LEAST, torch.finfo(ours.dtype).eps):  # NaN passes here, and the loss will report it
        raise EvaluationError(
            f"model.name={model.name}: its predictions depend on later tokens. Other tokens after the first {same} change what it"
            f" predicts there by {moved:.2g} of its size. Every evaluation of text needs a causal language model,"
            " such as GPT-2 or Llama"
        )
    yield from outputs


def require_causal(model: LanguageModel, windows: Tensor) -> None:
    """Raise EvaluationError if predictions of a float model depend on later tokens. The message names the model."""
    next(causal(model, model.forwards, windows, ()), None)
