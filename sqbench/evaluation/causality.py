"""Whether a language model predicts a token from those before it alone: else it has no perplexity, and no text of its own."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from sqbench.evaluation.base import EvaluationError
from sqbench.models.language import LanguageModel

TOKENS = 16  # of a window that is looked at: the fewer, the more each of them counts for the others
LEAST = 1e-4  # relative change of the outputs, or one rounding: kernels may add up in another order when other tokens follow


def causal(
    model: LanguageModel, run: Callable[[Iterable[Tensor]], Iterator[Tensor]], windows: Tensor, batches: Sequence[Tensor]
) -> Iterator[Tensor]:
    """`run` of the batches; before them, in the same call of it, it runs the beginning of a window with two different ends.

    A call of `run` is one reading of a model on disk. Of a quantized model nothing is asked: it is as causal as its float model,
    but for ranges of whole tensors at run time, which every token has a say in.

    Args:
        windows: [N, tokens], of which the first is looked at.

    Raises:
        EvaluationError: outputs of a float model before the place where the two differ are not the same.
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
    if moved > max(LEAST, torch.finfo(ours.dtype).eps):  # of NaN it is neither: the loss will name it
        raise EvaluationError(
            f"model.name={model.name}: its predictions depend on later tokens. Other tokens after the first {same} change what it"
            f" predicts there by {moved:.2g} of its size. Every evaluation of text needs a causal language model,"
            " such as GPT-2 or Llama"
        )
    yield from outputs


def require_causal(model: LanguageModel, windows: Tensor) -> None:
    """Raise EvaluationError, naming the model, if predictions of a float model depend on later tokens."""
    next(causal(model, model.forwards, windows, ()), None)
