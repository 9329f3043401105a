"""A model of ours as lm-eval asks it. Imports lm-eval, which takes seconds: nothing imports this before it is needed."""

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from sqbench.evaluation.base import EvaluationError, require_finite
from sqbench.models.language import LanguageModel
from sqbench.progress import track

log = logging.getLogger(__name__)


class Served(HFLM):
    """Answers requests with the module itself, float or quantized; results do not depend on other points or earlier requests."""

    def __init__(self, model: LanguageModel, batch: int) -> None:
        """`batch` requests run at once, those of similar length together."""
        self.network = model
        module = model.module
        # Not the module: HFLM would tie its weights, which puts float weights into layers that were replaced.
        face = SimpleNamespace(config=module.config, device=model.device, generate=module.generate)
        super().__init__(pretrained=face, backend="causal", tokenizer=_tokenizer(model), batch_size=batch)

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        return self.network.forward(inps)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood in nats of each continuation, and whether greedy decoding would write it."""
        with self._progress(requests):
            return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood in nats of each text. Text by text: a batch of windows as long as the context is gigabytes of logits."""
        answer = super().loglikelihood_rolling
        with self._progress(requests):
            return [value for request in requests for value in answer([request], disable_tqdm=True)]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each prompt."""
        with self._progress(requests):
            return super().generate_until(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        for text, _, continuation in requests:
            if not 0 < len(continuation) <= self.max_length:
                asked = "" if text is None else f" of {text[1][:40]!r}"
                raise EvaluationError(f"{len(continuation)} tokens{asked} to predict: the model takes 1 to {self.max_length}")
        if longer := sum(len(context) + len(continuation) > self.max_length + 1 for _, context, continuation in requests):
            log.warning(
                "%d of %d requests are longer than the model's %d tokens: their beginning is cut",
                longer,
                len(requests),
                self.max_length,
            )
        answers = super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)
        for (text, context, continuation), (value, _) in zip(requests, answers, strict=True):
            ids = torch.tensor([(context + continuation)[-self.max_length :]])
            # A task would score NaN as the first choice, which in minimal pairs is the right one.
            require_finite(value, "a window" if text is None else repr("".join(text)[-40:]), self.network, ids)
        return answers

    @contextmanager
    def _progress(self, requests: Sequence[Any]) -> Iterator[None]:
        """A bar that goes on with every answer: lm-eval offers each to a cache, and here a counter stands in its place."""
        steps = track(range(len(requests)), "evaluate")
        self.cache_hook: Any = SimpleNamespace(add_partial=lambda *_: next(steps, None))
        with closing(steps):
            yield


def _tokenizer(model: LanguageModel) -> Any:
    """A copy that lm-eval may complete. Where no token ends a text a line break does: every model knows one."""
    tokenizer = copy.deepcopy(model.tokenizer)
    if tokenizer.eos_token_id is None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(tokenizer.encode("\n", add_special_tokens=False)[-1])
    return tokenizer
