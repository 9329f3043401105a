"""The effect of quantization on generated text, compared with the float model's text after the same prompts."""

from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from sqbench.comparison import HIGHER, LOWER, SIZE, Metric, Outcome
from sqbench.console.progress import track
from sqbench.data.chat import around
from sqbench.data.text import Windows
from sqbench.data.tokens import tokenise
from sqbench.errors import UserError
from sqbench.evaluation.base import Evaluation, Result, Settings, require, require_finite
from sqbench.evaluation.causality import require_causal
from sqbench.evaluation.decoding import beam_search, check_context
from sqbench.models.folder import context_of
from sqbench.models.language import LanguageModel

NGRAM = 4  # tokens in the groups that repetition counts
PAIRED = ("loglik", "repetition")  # columns that are also computed for the float model's text
BY = ("window",)
METRICS = (
    Metric("exact_match", HIGHER, "%", 0.01, 1, place=40, outcome=Outcome("proportion", "exact", BY)),
    Metric("prefix", HIGHER, decimals=1, place=41, outcome=Outcome("mean", "prefix", BY)),
    Metric("agreement", HIGHER, decimals=3, place=51, outcome=Outcome("mean", "agreement", BY)),
    Metric("loglik", HIGHER, decimals=3, place=53, outcome=Outcome("mean", "loglik", BY)),
    Metric("repetition", LOWER, "%", 0.01, 1, place=54, outcome=Outcome("mean", "repetition", BY)),
    SIZE,
)


@dataclass(frozen=True)
class GenerationSettings(Settings):
    """The settings of eval=generation.

    Attributes:
        prompt: tokens that are read at once, from the start of a window.
        decode: tokens that are written after them, one by one.
        beams: width of the beam search. 1 is greedy decoding.
        batch: prompts at once.
        chat: whether the tokenizer's chat template wraps each prompt. Its tokens come on top of `prompt`.
    """

    prompt: int
    decode: int
    beams: int
    batch: int
    chat: bool = False

    @property
    def chats(self) -> bool:
        return self.chat

    def check(self) -> None:
        require(self, {"prompt": 1, "decode": 1, "beams": 1, "batch": 1})
        if self.decode < NGRAM:
            raise UserError(f"eval.decode={self.decode}: must be {NGRAM} or more, repetition counts groups of {NGRAM} tokens")

    def check_fit(self, window: int, context: int | None, model: str) -> None:
        check_context(self.prompt, self.decode, context, model)
        if self.prompt > window:
            raise UserError(f"eval.prompt={self.prompt}: a prompt begins a window; use data.window={window} or less")


@torch.no_grad()
def generation(
    model: LanguageModel,
    windows: Windows,
    reference: Result | None = None,
    *,
    prompt: int,
    decode: int,
    beams: int,
    batch: int,
    chat: bool = False,
) -> Result:
    """Text of `decode` tokens after the first `prompt` tokens of every evaluation window, by greedy decoding or beam search.

    The prompt includes the tokens that begin every window (`data.bos`).

    Samples have a row per window. `loglik` is the float model's mean log-likelihood of the text in nats per token. `repetition` is
    described at the function of that name. `text` is the text. Against a reference (the float model's result) there are more
    columns. `exact` says whether both texts are the same. `prefix` is the number of equal tokens from the start. `agreement` is the
    share of places with the same token. `loglik_fp`, `repetition_fp` and `text_fp` belong to the float model's text. Metrics are
    the means of the columns. The mean of `exact` is called `exact_match`.

    Args:
        beams: width of the beam search. 1 is greedy decoding.
        batch: prompts at once.
        chat: whether the tokenizer's chat template wraps each prompt, as the message of a user.

    Raises:
        EvaluationError: a logit is NaN or infinite, or predictions of the float model depend on later tokens.
        UserError: there are more beams than tokens in the vocabulary, or a wrapped prompt does not fit into the model's context.
    """
    if beams > model.vocabulary:
        raise UserError(f"eval.beams={beams}: {model.name} knows {model.vocabulary} tokens; use at most as many")
    if reference is None:
        require_causal(model, windows.evaluation)
    judge = model if reference is None else reference.model
    prompts = windows.evaluation[:, :prompt].to(model.device)
    if chat:
        prompts = asked_in_chat(model, prompts, windows.prefix)
        check_context(prompts.shape[1], decode, context_of(model.module.config.to_dict()), model.name)
    rows, texts = [], []
    for first in track(range(0, len(prompts), batch), "generate"):
        part = prompts[first : first + batch]
        written, scores = beam_search(model.module, part, decode, beams)
        require_finite(float(scores.sum()), f"what follows prompt {first} or one after it", model, part)
        for number, (read, text) in enumerate(zip(part, written, strict=True), first):
            loglik, written_out = log_likelihood(judge, read, text), model.tokenizer.decode(text)
            rows.append((number, decode, loglik, repetition(text), written_out))
        texts.append(written.cpu())
    samples, text = pd.DataFrame(rows, columns=["window", "tokens", *PAIRED, "text"]), torch.cat(texts)
    if reference is not None:
        assert reference.kept is not None
        samples = samples.assign(**_shared(text, reference.kept["text"]))
        samples = samples.assign(**{f"{name}_fp": reference.samples[name] for name in (*PAIRED, "text")})
    return Result(_metrics(samples, model), samples, model, {"text": text} if reference is None else None)


def asked_in_chat(model: LanguageModel, prompts: Tensor, prefix: tuple[int, ...]) -> Tensor:
    """Prompts [texts, tokens] as messages of a user: [texts, more tokens]. The prefix comes first, once.

    The tokens of a prompt stay as they are, so that all texts remain equally long.
    """
    before, after = (tokenise(model.tokenizer, text).to(prompts) for text in around(model.tokenizer, "eval.chat=true"))
    start = prompts.new_tensor(prefix)
    if not torch.equal(before[: len(start)], start):  # many templates begin with the BOS token themselves
        before = torch.cat([start, before])
    first, last = (part.expand(len(prompts), -1) for part in (before, after))
    return torch.cat([first, prompts[:, len(prefix) :], last], dim=1)


def log_likelihood(model: LanguageModel, prompt: Tensor, text: Tensor) -> float:
    """The mean log-likelihood, in nats per token, of a text [tokens] after a prompt [tokens]."""
    logits = model.forward(torch.cat([prompt, text]).unsqueeze(0))[0, len(prompt) - 1 : -1].float()
    return log_softmax(logits, dim=-1).gather(1, text.to(logits.device).unsqueeze(1)).double().mean().item()


def repetition(text: Tensor) -> float:
    """The share of 4-grams in a text [4 or more tokens] that occurred before: seq-rep-4 of Welleck et al., 2020 (section 6)."""
    grams = [tuple(gram) for gram in text.unfold(0, NGRAM, 1).tolist()]
    return 1 - len(set(grams)) / len(grams)


def _shared(text: Tensor, other: Tensor) -> dict[str, list[object]]:
    """The columns `exact`, `prefix` and `agreement` of the texts [windows, tokens] of two models."""
    same = text == other
    columns = {"exact": same.all(1), "prefix": same.cumprod(1).sum(1), "agreement": same.double().mean(1)}
    return {name: column.tolist() for name, column in columns.items()}


def _metrics(samples: pd.DataFrame, model: LanguageModel) -> dict[str, float]:
    means = {one.name: float(samples[one.column].mean()) for one in METRICS if one.column is not None and one.column in samples}
    return {**means, "weight_bytes": float(model.stored_bytes)}


def _as_reference(result: Result) -> Result:
    """A float result in the form of a comparison. Its text is compared with itself."""
    assert result.kept is not None
    own = {f"{name}_fp": result.samples[name] for name in (*PAIRED, "text")}
    samples = result.samples.assign(**_shared(result.kept["text"], result.kept["text"]), **own)
    return Result(_metrics(samples, result.model), samples, result.model, result.kept)


GENERATION = Evaluation(("text",), METRICS, generation, _as_reference, GenerationSettings)
