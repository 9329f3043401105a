"""SmoothQuant and AWQ with other tools, from the float module to perplexities on the same windows."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.peers_layers import GROUP, body_linears
from benchmarks.plain import perplexity
from sqbench import api
from sqbench.data import Windows
from sqbench.execution import lower
from sqbench.models.language import LanguageModel


@dataclass(frozen=True)
class Task:
    """A float model, and the windows for calibration and evaluation of every tool."""

    model: LanguageModel
    windows: Windows
    backend: str
    alphas: Sequence[float]


def sqbench_smoothquant(task: Task) -> list[float]:
    """Perplexities of W8A8 dynamic per token. One calibration serves all alphas."""
    statistics = api.calibrate(task.model, task.windows.calibration, search=1)
    found = []
    for alpha in task.alphas:
        quantized = api.quantize(task.model, statistics, "smoothquant", bits="w8a8_dynamic", alpha=alpha)
        found.append(api.evaluate(lower(quantized, task.backend), task.windows).metrics["perplexity"])
    return found


def torchao_smoothquant(task: Task) -> list[float]:
    """W8A8 dynamic per token; calibrates anew for every alpha."""
    from torchao.prototype.smoothquant import SmoothQuantConfig
    from torchao.prototype.smoothquant.core import SmoothQuantObservedLinear
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    found, base = [], Int8DynamicActivationInt8WeightConfig()
    for alpha in task.alphas:
        # Running maxima, because its other observer keeps every activation: 23 GB for 64 windows of SmolLM2-135M.
        options = {"base_config": base, "alpha": alpha, "use_running_absmax": True}
        module = copy.deepcopy(task.model.module)
        quantize_(module, SmoothQuantConfig(step="prepare", **options), body_linears)
        for ids in task.windows.calibration.split(1):
            module(input_ids=ids, use_cache=False, logits_to_keep=1)
        quantize_(
            module, SmoothQuantConfig(step="convert", **options), lambda layer, _: isinstance(layer, SmoothQuantObservedLinear)
        )
        found.append(perplexity(module, task.windows.evaluation))
    return found


def llmcompressor_smoothquant(task: Task) -> list[float]:
    """W8A8 dynamic per token; calibrates anew for every alpha."""
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    found = []
    for alpha in task.alphas:
        rounding = QuantizationModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"])
        module = oneshot(task, [SmoothQuantModifier(smoothing_strength=alpha), rounding])
        found.append(perplexity(module, task.windows.evaluation))
    return found


def sqbench_awq(task: Task) -> nn.Module:
    """W4 in groups of 64. Exponents are searched over all calibration windows, and ranges are clipped."""
    windows = task.windows.calibration
    statistics = api.calibrate(task.model, windows, search=len(windows))
    return api.quantize(task.model, statistics, "awq", bits="w4a16", alpha="auto").module  # type: ignore[no-any-return]


def llmcompressor_awq(task: Task) -> nn.Module:
    """W4 in groups of 64. Exponents are searched; this tool does not clip."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.pipelines.cache import IntermediatesCache

    if not torch.cuda.is_available():  # without a GPU its pinning of memory fails, and is not needed
        IntermediatesCache.pin_memory = lambda self, *arguments: None
    weights = QuantizationArgs(num_bits=4, type="int", symmetric=False, strategy="group", group_size=GROUP)
    groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    return oneshot(task, [AWQModifier(), QuantizationModifier(config_groups=groups, ignore=["lm_head"])])


def oneshot(task: Task, recipe: list[Any]) -> nn.Module:
    """A copy of the float module, compressed by llm-compressor."""
    from datasets import Dataset
    from llmcompressor import oneshot as compress

    windows = task.windows.calibration
    rows = {"input_ids": windows.tolist(), "attention_mask": torch.ones_like(windows).tolist()}
    module = copy.deepcopy(task.model.module)
    sizes = {"max_seq_length": windows.shape[1], "num_calibration_samples": len(windows), "shuffle_calibration_samples": False}
    compress(model=module, processor=task.model.tokenizer, dataset=Dataset.from_dict(rows), recipe=recipe, **sizes)
    return module  # type: ignore[no-any-return]


SMOOTHQUANT: dict[str, Callable[[Task], list[float]]] = {  # return perplexities, whose evaluation is part of the time
    "sqbench": sqbench_smoothquant,
    "torchao SmoothQuant": torchao_smoothquant,
    "llm-compressor SmoothQuant": llmcompressor_smoothquant,
}
AWQ: dict[str, Callable[[Task], nn.Module]] = {  # return a module, whose perplexity is computed afterwards
    "sqbench": sqbench_awq,
    "llm-compressor AWQ": llmcompressor_awq,
}
