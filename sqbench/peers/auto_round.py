"""AutoRound: roundings and ranges learnt by signed gradients, block after block."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sqbench.formats.scheme import Scheme
from sqbench.peers.tool import Order, Tool, register

WIDTHS = (2, 3, 4, 8)
OURS = ("bits", "group_size", "sym", "dataset", "nsamples", "seqlen", "seed", "layer_config", "scheme")


@register
class AutoRound(Tool):
    """`AutoRound(model, tokenizer, **arguments)` with its own defaults, saved in its own format."""

    name = "auto-round"
    package = "auto-round"
    install = "`pip install --no-deps auto-round py-cpuinfo` installs it"

    def refusal(self, scheme: Scheme, arguments: Mapping[str, Any]) -> str | None:
        if taken := [key for key in arguments if key in OURS]:
            return f"method.arguments.{taken[0]}: is chosen by bits, calibration and seed; leave it out"
        fmt = scheme.weights
        if fmt is None or scheme.activations is not None or not fmt.is_integer or fmt.bits not in WIDTHS:
            return f"makes integer weights of 2, 3, 4 and 8 bits with float inputs here, not bits={scheme.name}; use bits=w4a16"
        if fmt.granularity not in ("channel", "group"):
            return f"has a scale for each channel or group, not for each {fmt.granularity}; use bits.weights.granularity=channel"
        return None

    def quantize(self, module: Any, tokenizer: Any, windows: Tensor, order: Order, folder: str) -> None:
        from auto_round import AutoRound

        fmt = order.scheme.weights
        assert fmt is not None
        rounds = AutoRound(
            module,
            tokenizer,
            bits=fmt.bits,
            group_size=fmt.group_size or -1,
            sym=fmt.symmetric,
            dataset=list(windows.split(1)),
            nsamples=len(windows),
            seqlen=windows.shape[1],
            seed=order.seed,
            layer_config={name: {"bits": 16, "data_type": "float"} for name in order.ignore},
            **order.arguments,
        )
        _, made = rounds.quantize_and_save(folder, format="auto_round")
        for path in Path(made).iterdir():  # a folder in the folder
            path.rename(Path(folder) / path.name)
