"""A wrapper that lets lm-eval ask our models. Importing lm-eval takes seconds, so this module is imported only when needed."""

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

from sqbench.console.progress import track
from sqbench.evaluation.base import EvaluationError, require_finite
from sqbench.models.language import LanguageModel

log = logging.getLogger(__name__)

LOGITS_BYTES = 2**30  # of one batch of requests: lm-eval holds float32 logits and log-probabilities together


class Served(HFLM):
    """Answers requests with the module itself, float or quantized. Results do not depend on other points or earlier requests.

    Every text begins with the prefix, which replaces the special tokens that the tokenizer adds.
    """

    def __init__(self, model: LanguageModel, batch: int, prefix: tuple[int, ...] = ()) -> None:
        """Run at most `batch` requests at once. Requests of similar length run together."""
        self.network, self.prefix, self.most = model, list(prefix), batch
        module = model.module
        # HFLM does not get the module: it would tie its weights, and so put float weights into layers that were replaced.
        face = SimpleNamespace(config=module.config, device=model.device, generate=module.generate)
        super().__init__(pretrained=face, backend="causal", tokenizer=_tokenizer(model), batch_size=batch)

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        return self.network.forward(inps)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **options: Any
    ) -> list[int]:
        """The prefix and the tokens of a text. lm-eval may ask for no prefix. A long text loses its beginning."""
        ids = list(self.tokenizer.encode(string, add_special_tokens=False, **options))
        prefix = self.prefix if add_special_tokens is not False and ids[: len(self.prefix)] != self.prefix else []
        most = (left_truncate_len or len(prefix) + len(ids)) - len(prefix)
        return prefix + ids[max(0, len(ids) - most) :]

    def tok_batch_encode(
        self, strings: list[str], padding_side: str = "left", left_truncate_len: int | None = None, truncation: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Padded tokens of several texts [texts, tokens], and their attention mask, 1 for tokens and 0 for padding."""
        rows = [torch.tensor(self.tok_encode(string, left_truncate_len=left_truncate_len)) for string in strings]
        ids = pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.pad_token_id, padding_side=padding_side)
        return ids, pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side=padding_side)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """The log-likelihood in nats of each continuation, and whether greedy decoding would write it."""
        with self._progress(requests):
            return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood in nats of each text, in windows as long as the context. The first begins with BOS or the prefix.

        lm-eval's own method would add the prefix to the text and predict it. Texts run one by one, because the logits of a batch of
        windows take gigabytes.
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
        """The text that the model writes after each prompt."""
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
            # A task would take NaN for the first choice, which is the right one in minimal pairs.
            require_finite(value, "a window" if text is None else repr("".join(text)[-40:]), self.network, ids)
        return answers

    def _begun(self, context: list[int], further: int) -> list[int]:
        """The prefix and the end of a context, cut so that `further` more tokens fit into the model's context."""
        if not self.prefix:
            return context
        if context[: len(self.prefix)] == self.prefix:
            rest = context[len(self.prefix) :]
        else:  # lm-eval puts one token in place of an empty context and before rolling windows
            rest = context[1:] if context[0] == self.prefix_token_id else context
        room = self.max_length + 1 - len(self.prefix) - further
        return self.prefix + rest[max(0, len(rest) - room) :]

    def _batches(self, requests: Sequence[Any]) -> list[tuple[int, list[int]]]:
        """The places of the requests, grouped by how many run at once. That number is halved until the logits are small enough.

        lm-eval answers requests of one context together. They are equally long and stay together.
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
        """Show a progress bar. lm-eval offers each answer to a cache, and a counter takes the place of that cache."""
        steps = track(range(len(requests)), "evaluate")
        self.cache_hook: Any = SimpleNamespace(add_partial=lambda *_: next(steps, None))
        with closing(steps):
            yield


def _tokenizer(model: LanguageModel) -> Any:
    """A copy of the tokenizer that lm-eval may change. Without a token that ends a text, a line break ends it."""
    tokenizer = copy.deepcopy(model.tokenizer)
    if tokenizer.eos_token_id is None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(tokenizer.encode("\n", add_special_tokens=False)[-1])
    return tokenizer
