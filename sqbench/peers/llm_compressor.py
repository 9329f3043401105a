"""llm-compressor: round to nearest, AWQ or GPTQ, as its own recipes do it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sqbench.errors import known
from sqbench.formats.format import Format
from sqbench.formats.scheme import Scheme
from sqbench.peers.tool import Order, Tool, register

ALGORITHMS = ("awq", "gptq", "rtn")
KINDS = {"int": "int", "e4m3": "float"}


@register
class LlmCompressor(Tool):
    """Its modifiers with their own defaults. `algorithm` names one, and the other arguments are those of that modifier."""

    name = "llm-compressor"
    package = "llmcompressor"
    install = "`pip install --no-deps llmcompressor loguru` installs it beside a newer transformers"

    def refusal(self, scheme: Scheme, arguments: Mapping[str, Any]) -> str | None:
        if (algorithm := arguments.get("algorithm", "rtn")) not in ALGORITHMS:
            return f"method.arguments.algorithm={algorithm}: {known(str(algorithm), ALGORITHMS)}"
        for slot, fmt in (("weights", scheme.weights), ("activations", scheme.activations)):
            if fmt is not None and (fmt.element not in KINDS or fmt.bits not in (4, 8) or fmt.granularity == "block"):
                return f"makes integers of 4 and 8 bits and FP8 here, and bits.{slot} are {fmt}; use bits=w4a16"
        if scheme.weights is None:
            return f"bits={scheme.name} leaves weights in float; use bits=w4a16, for example"
        return None

    def quantize(self, module: Any, tokenizer: Any, windows: Tensor, order: Order, folder: str) -> None:
        from datasets import Dataset
        from llmcompressor import oneshot
        from llmcompressor.modifiers.gptq import GPTQModifier
        from llmcompressor.modifiers.quantization import QuantizationModifier
        from llmcompressor.modifiers.transform.awq import AWQModifier
        from llmcompressor.pipelines.cache import IntermediatesCache

        if not torch.cuda.is_available():  # without a GPU its pinning of memory fails, and is not needed
            IntermediatesCache.pin_memory = lambda self, *arguments: None
        given = {key: value for key, value in order.arguments.items() if key != "algorithm"}
        assert order.scheme.weights is not None
        scheme: dict[str, Any] = {"targets": ["Linear"], "weights": _arguments(order.scheme.weights)}
        if order.scheme.activations is not None:
            scheme["input_activations"] = _arguments(order.scheme.activations)
        formats = {"config_groups": {"group_0": scheme}, "ignore": list(order.ignore)}
        recipe = {
            "rtn": lambda: [QuantizationModifier(**formats, **given)],
            "awq": lambda: [AWQModifier(**given), QuantizationModifier(**formats)],
            "gptq": lambda: [GPTQModifier(**formats, **given)],
        }[order.arguments.get("algorithm", "rtn")]()
        rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in windows.tolist()]
        sizes = {"num_calibration_samples": len(windows), "max_seq_length": windows.shape[1], "shuffle_calibration_samples": False}
        oneshot(model=module, processor=tokenizer, recipe=recipe, dataset=Dataset.from_list(rows), **sizes)
        module.save_pretrained(folder, save_compressed=True)
        tokenizer.save_pretrained(folder)


def _arguments(fmt: Format) -> dict[str, Any]:
    """A format as llm-compressor's configuration has it."""
    told = {"num_bits": fmt.bits, "type": KINDS[fmt.element], "symmetric": fmt.symmetric, "strategy": fmt.granularity}
    return {**told, "group_size": fmt.group_size, "dynamic": fmt.dynamic}
