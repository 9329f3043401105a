"""A model of ours as lm-eval asks it. Imports lm-eval, which takes seconds: nothing imports this before it is needed."""

import copy
import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sqbench.evaluation.base import EvaluationError, require_finite
from sqbench.models.language import LanguageModel
from sqbench.progress import track

log = logging.getLogger(__name__)

LOGITS_BYTES = 2**30  # of a batch of requests: float32 logits and their logarithms, which lm-eval holds both


class Served(HFLM):
    """Answers requests with the module itself, float or quantized; results do not depend on other points or earlier requests.

    Every text begins with the prefix, which takes the place of whatever special tokens the tokenizer adds.
    """

    def __init__(self, model: LanguageModel, batch: int, prefix: tuple[int, ...] = ()) -> None:
        """`batch` requests run at once at most, those of similar length together."""
        self.network, self.prefix, self.most = model, list(prefix), batch
        module = model.module
        # Not the module: HFLM would tie its weights, which puts float weights into layers that were replaced.
        face = SimpleNamespace(config=module.config, device=model.device, generate=module.generate)
        super().__init__(pretrained=face, backend="causal", tokenizer=_tokenizer(model), batch_size=batch)

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        return self.network.forward(inps)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **options: Any
    ) -> list[int]:
        """Tokens of a text after the prefix, or alone if lm-eval asks for no special tokens; a long text loses its beginning."""
        ids = list(self.tokenizer.encode(string, add_special_tokens=False, **options))
        prefix = self.prefix if add_special_tokens is not False and ids[: len(self.prefix)] != self.prefix else []
        most = (left_truncate_len or len(prefix) + len(ids)) - len(prefix)
        return prefix + ids[max(0, len(ids) - most) :]

    def tok_batch_encode(
        self, strings: list[str], padding_side: str = "left", left_truncate_len: int | None = None, truncation: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Tokens of several texts [texts, tokens], padded, and where they are no padding."""
        rows = [torch.tensor(self.tok_encode(string, left_truncate_len=left_truncate_len)) for string in strings]
        ids = pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.pad_token_id, padding_side=padding_side)
        return ids, pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side=padding_side)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood in nats of each continuation, and whether greedy decoding would write it."""
        with self._progress(requests):
            return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood in nats of each text, in windows as long as the context; the first begins with BOS or the prefix.

        lm-eval's own would add the prefix to the text, and predict it. Text by text: a batch of windows is gigabytes of logits.
        """
        with self._progress(requests):
            return [self._of_text(*request.args) for request in requests]

    def _of_text(self, text: str) -> float:
        sizes = {"prefix_token": self.prefix_token_id, "max_seq_len": self.max_length - len(self.prefix), "context_len": 1}
        windows = get_rolling_token_windows(self.tok_encode(text, add_special_tokens=False), **sizes)
        found = self._loglikelihood_tokens([(None, *make_disjoint_window(window)) for window in windows])
        self.cache_hook.add_partial()
        return sum(value for value, _ in found)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each prompt."""
        with self._progress(requests):
            return super().generate_until(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        most = self.max_length + 1 - max(1, len(self.prefix))
        for text, _, continuation in requests:
            if not 0 < len(continuation) <= most:
                asked = "" if text is None else f" of {text[1][:40]!r}"
                raise EvaluationError(f"{len(continuation)} tokens{asked} to predict: the model takes 1 to {most}")
        if longer := sum(len(context) + len(continuation) > self.max_length + 1 for _, context, continuation in requests):
            log.warning(
                "%d of %d requests are longer than the model's %d tokens: their beginning is cut",
                longer,
                len(requests),
                self.max_length,
            )
        requests = [(text, self._begun(context, len(continuation)), continuation) for text, context, continuation in requests]
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for batch, places in self._batches(requests):
            self.batch_size_per_gpu = batch
            part = super()._loglikelihood_tokens([requests[place] for place in places], disable_tqdm=True)
            for place, answer in zip(places, part, strict=True):
                answers[place] = answer
        self.batch_size_per_gpu = self.most
        for (text, context, continuation), (value, _) in zip(requests, answers, strict=True):
            ids = torch.tensor([(context + continuation)[-self.max_length :]])
            # A task would score NaN as the first choice, which in minimal pairs is the right one.
            require_finite(value, "a window" if text is None else repr("".join(text)[-40:]), self.network, ids)
        return answers

    def _begun(self, context: list[int], further: int) -> list[int]:
        """A context after the prefix, cut behind it to what a request of so many further tokens has room for."""
        if not self.prefix:
            return context
        if context[: len(self.prefix)] == self.prefix:
            rest = context[len(self.prefix) :]
        else:  # of an empty context and of rolling windows lm-eval makes one token
            rest = context[1:] if context[0] == self.prefix_token_id else context
        room = self.max_length + 1 - len(self.prefix) - further
        return self.prefix + rest[max(0, len(rest) - room) :]

    def _batches(self, requests: Sequence[Any]) -> list[tuple[int, list[int]]]:
        """Requests by place, with how many of them run at once: half as many as often as their logits are too large.

        Requests of one context, which lm-eval answers together, are equally long and stay together.
        """
        of_token = 2 * 4 * self.network.vocabulary

        def batch(place: int) -> int:
            _, context, continuation = requests[place]
            size, allowed = of_token * (len(context) + len(continuation) - 1), self.most
            while allowed > 1 and allowed * size > LOGITS_BYTES:
                allowed //= 2
            return allowed

        places = sorted(range(len(requests)), key=batch)
        return [(allowed, list(group)) for allowed, group in itertools.groupby(places, batch)]

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
