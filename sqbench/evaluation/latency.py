"""Speed and memory of a model beside the float model. Both run alternately in one process, so that times are comparable."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sqbench.comparison import HIGHER, LOWER, SIZE, Metric
from sqbench.console.progress import track
from sqbench.data import Examples
from sqbench.data.images import ImageExamples
from sqbench.data.sentences import SentenceExamples
from sqbench.data.text import Windows
from sqbench.evaluation.base import Evaluation, Result, Settings, require
from sqbench.evaluation.causality import require_causal
from sqbench.evaluation.decoding import Decoder, check_context, first_token
from sqbench.evaluation.memory import resident_bytes
from sqbench.models.base import Model
from sqbench.models.computed import Computed

QUANTILES = {"": 0.5, "_p10": 0.1, "_p90": 0.9}
# Metric -> its column of seconds, and the key of `eval` for the amount of work in them. None makes a metric in milliseconds.
FIGURES: dict[str, dict[str, tuple[str, str | None]]] = {
    "text": {
        "latency_ms": ("first_s", None),
        "tokens_per_s": ("first_s", "prompt"),
        "decode_tokens_per_s": ("decode_s", "decode"),
    },
    "images": {"latency_ms": ("first_s", None), "images_per_s": ("batch_s", "batch")},
    "sentences": {"latency_ms": ("first_s", None), "sentences_per_s": ("batch_s", "batch")},
}
SPEEDS = (
    Metric("latency_ms", LOWER, decimals=2, place=63, timed="first_s"),
    Metric("tokens_per_s", HIGHER, decimals=1, place=60, timed="first_s"),
    Metric("decode_tokens_per_s", HIGHER, decimals=1, place=61, timed="decode_s"),
    Metric("images_per_s", HIGHER, decimals=1, place=62, timed="batch_s"),
    Metric("sentences_per_s", HIGHER, decimals=1, place=62, timed="batch_s"),
)
METRICS = (
    *SPEEDS,
    *(Metric(f"{speed.name}{suffix}", speed.better) for speed in SPEEDS for suffix in QUANTILES if suffix),
    SIZE,
    Metric("resident_bytes", LOWER, "MB", 1e6, 1, place=901, exact=True),
)


@dataclass(frozen=True)
class LatencySettings(Settings):
    """The settings of eval=latency.

    Attributes:
        repetitions: measurements. Each times both models, one after the other.
        warmup: repetitions before the measurements, which do not count.
        batch: images or sentences at once.
        prompt: tokens that are read at once.
        decode: tokens that are written after the prompt, one by one. 0 times the prompt alone.
    """

    repetitions: int
    warmup: int
    batch: int
    prompt: int
    decode: int

    def check(self) -> None:
        require(self, {"repetitions": 1, "warmup": 0, "batch": 1, "prompt": 1, "decode": 0})

    def check_fit(self, window: int, context: int | None, model: str) -> None:
        check_context(self.prompt, self.decode, context, model)

    def used(self, kind: str) -> dict[str, Any]:
        others = ("batch",) if kind == "text" else ("prompt", "decode")
        return {key: value for key, value in asdict(self).items() if key not in others}


@torch.no_grad()
def latency(
    model: Model,
    examples: Examples,
    reference: Result | None = None,
    *,
    repetitions: int,
    warmup: int,
    **sizes: int,
) -> Result:
    """Medians over repetitions, and their 10 % and 90 % quantiles (`_p10`, `_p90`).

    Text runs one sequence at a time. `latency_ms` is the time from a prompt to the first token. `tokens_per_s` is the speed of the
    prompt in that time (with the logits of its last token alone). `decode_tokens_per_s` is the speed of the greedy decoding after
    it, with a KV cache. For images, `latency_ms` is the time of one image, and `images_per_s` the speed in batches. Sentences are
    timed like images. Each is the text of median length among those that evaluate. `weight_bytes` are the bytes of the format, and
    `resident_bytes` the allocated bytes, which another program does not tell.

    Samples have a row per repetition, in seconds: `repetition`, `first_s`, and `decode_s` (text) or `batch_s` (the others). Against
    a reference, whose model runs in turn with this one, the same columns with `_fp` are added. `baseline` then holds the
    reference's metrics of these repetitions.

    Args:
        sizes: `prompt` and `decode` in tokens for text, `batch` for images. The prompt includes the tokens that begin every window
            (`data.bos`).

    Raises:
        EvaluationError: predictions of a language model depend on later tokens. It then cannot be decoded with a cache.
    """
    if isinstance(examples, Windows):
        require_causal(model if reference is None else reference.model, examples.evaluation)  # type: ignore[arg-type]
    other = None if reference is None or reference.model.module is model.module else reference.model
    run = _runner(model, examples, sizes)
    run_fp = run if other is None else _runner(other, examples, sizes)
    rows = []
    for number in track(range(-warmup, repetitions), "evaluate", total=warmup + repetitions):
        row = {"repetition": number, **run()}
        if other is not None:
            row |= {f"{stage}_fp": seconds for stage, seconds in run_fp().items()}
        rows.append(row)
    samples = pd.DataFrame(rows[warmup:])
    if other is None:
        alone = Result(_metrics(model, samples, sizes, ""), samples, model, None)
        return alone if reference is None else _as_reference(alone)
    baseline = Result(_metrics(other, samples, sizes, "_fp"), samples, other, None)
    return Result(_metrics(model, samples, sizes, ""), samples, model, None, baseline)


def _runner(model: Model, examples: Any, sizes: dict[str, int]) -> Callable[[], dict[str, float]]:
    """A function that runs a model once and returns the seconds of each stage."""
    if isinstance(examples, Windows):
        ids = _repeated(examples.evaluation.flatten(), sizes["prompt"]).unsqueeze(0).to(model.device)
        return lambda: _generate(model, ids, sizes["decode"])
    if isinstance(examples, SentenceExamples):
        texts = sorted(examples.evaluation.tensors, key=lambda text: text.shape[1])
        found = texts[len(texts) // 2].unsqueeze(0)
    else:
        assert isinstance(examples, ImageExamples)
        found = next(examples.evaluation.batches(sizes["batch"])).images
    inputs = _repeated(found, sizes["batch"]).to(model.device)
    return lambda: _classify(model, inputs)


def _repeated(inputs: Tensor, count: int) -> Tensor:
    """`count` rows, made by repeating the inputs. Time does not depend on their content."""
    return inputs[torch.arange(count) % len(inputs)]


def _generate(model: Model, ids: Tensor, count: int) -> dict[str, float]:
    seconds: dict[str, float] = {}
    if not count:
        with _timed(seconds, "first_s", model.device):
            first_token(model.module, ids)
        return seconds
    decoder = Decoder(model.module)
    with _timed(seconds, "first_s", model.device):
        decoder.prefill(ids)
    decoder.record(count)
    with _timed(seconds, "decode_s", model.device):
        for _ in range(count):
            decoder.step()
    return seconds


def _classify(model: Model, inputs: Tensor) -> dict[str, float]:
    seconds: dict[str, float] = {}
    with _timed(seconds, "first_s", model.device):
        model.forward(inputs[:1])
    with _timed(seconds, "batch_s", model.device):
        model.forward(inputs)
    return seconds


@contextmanager
def _timed(seconds: dict[str, float], stage: str, device: torch.device) -> Iterator[None]:
    """Write the seconds of a block to `seconds`, including all work on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds[stage] = time.perf_counter() - start


def _metrics(model: Model, samples: pd.DataFrame, sizes: dict[str, int], side: str) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name, (stage, amount) in FIGURES[model.kind].items():
        if stage + side not in samples:
            continue  # no token was decoded
        seconds = samples[stage + side].to_numpy()
        values = 1000 * seconds if amount is None else sizes[amount] / seconds
        metrics |= {f"{name}{suffix}": float(np.quantile(values, share)) for suffix, share in QUANTILES.items()}
    known = {} if isinstance(model.module, Computed) else {"resident_bytes": float(resident_bytes(model.module))}
    return {**metrics, "weight_bytes": float(model.stored_bytes), **known}


def _as_reference(result: Result) -> Result:
    """A float result in the form of a comparison. Its `_fp` columns are its own seconds."""
    own = {f"{name}_fp": result.samples[name] for name in result.samples if name != "repetition"}
    return Result(result.metrics, result.samples.assign(**own), result.model, None, result.baseline)


LATENCY = Evaluation(("text", "sentences", "images"), METRICS, latency, _as_reference, LatencySettings, size={}, beside="float32")
