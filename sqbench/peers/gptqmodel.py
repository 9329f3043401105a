"""GPTQModel: GPTQ, as its own configuration does it."""

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sqbench.errors import known
from sqbench.formats.scheme import Scheme
from sqbench.peers.tool import Order, Tool, register

WIDTHS = (2, 3, 4, 8)  # those that `sqbench.checkpoints.integers` reads
SIZES = (16, 32, 64, 128, 256, 512, 1024)  # of groups, that its kernels for every processor have
OURS = ("bits", "group_size", "sym", "dynamic", "lm_head", "device")
LAYOUT = ("quant_method", "format", "checkpoint_format", "pack_dtype", "activation", "rotation", "adapter")
SHORTEST = 11  # tokens of a window: it leaves out shorter ones without a word


@register
class GptqModel(Tool):
    """`GPTQModel.load(folder, QuantizeConfig(**arguments))` with its own defaults, and its `quantize`."""

    name = "gptqmodel"
    package = "gptqmodel"
    install = "`pip install gptqmodel` installs it, and compiles a package in C"

    def refusal(self, scheme: Scheme, arguments: Mapping[str, Any]) -> str | None:
        if taken := [key for key in arguments if key in OURS]:
            return f"method.arguments.{taken[0]}: is chosen by bits and device; leave it out"
        if taken := [key for key in arguments if key in LAYOUT]:
            return f"method.arguments.{taken[0]}: changes what its checkpoint holds; leave it out"
        if (method := arguments.get("method", "gptq")) != "gptq":
            return f"method.arguments.method={method}: must be gptq; its AWQ takes no float32, and others are not read"
        fmt = scheme.weights
        if fmt is None or scheme.activations is not None or not fmt.is_integer or fmt.has_minimum or fmt.bits not in WIDTHS:
            return f"makes integer weights of 2, 3, 4 and 8 bits with float inputs here, not bits={scheme.name}; use bits=w4a16"
        if fmt.granularity not in ("channel", "group") or (fmt.group_size or SIZES[0]) not in SIZES:
            sizes = ", ".join(map(str, SIZES))
            return f"has a scale for each channel, or for each group of {sizes}; bits.weights are {fmt}"
        return None

    def quantize(self, module: Any, tokenizer: Any, windows: Tensor, order: Order, folder: str) -> None:
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # on two cores or less it takes 1, and then asks itself for 2
        import torch
        from gptqmodel import GPTQModel
        from gptqmodel.quantization import QuantizeConfig

        fmt = order.scheme.weights
        assert fmt is not None
        if windows.shape[1] < SHORTEST:
            raise ValueError(f"it leaves out windows of less than {SHORTEST} tokens, and these have {windows.shape[1]}")
        chosen: dict[str, Any] = {"offload_to_disk_path": str(Path("offloaded").resolve())}
        if not torch.cuda.is_available():
            chosen["pack_impl"] = "original"  # the other one first compiles itself for half a minute
        if fmt.group_size is None:
            chosen["act_group_aware"] = False  # its default is an order of groups, which channels do not have
        config = QuantizeConfig(
            bits=fmt.bits,
            group_size=fmt.group_size or -1,
            sym=fmt.symmetric,
            dynamic={f"-:^{re.escape(name)}$": {} for name in order.ignore} or None,
            **{**chosen, **order.arguments},
        )
        fields = [field.name for field in dataclasses.fields(config)]
        if strange := [key for key in order.arguments if key not in fields]:  # it takes any, and leaves out what it does not know
            raise ValueError(f"method.arguments.{strange[0]}: {known(strange[0], fields)}")
        made = GPTQModel.load(module.name_or_path, config, dtype=module.dtype)
        made.quantize([{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in windows.split(1)])
        made.save(folder)
        tokenizer.save_pretrained(folder)
