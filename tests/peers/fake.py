"""A tool that is made of the package compressed-tensors: installed everywhere, and done at once."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from checkpoints.examples import by_compressed_tensors
from torch import Tensor

from sqbench.formats.scheme import Scheme
from sqbench.peers import Order, Tool


class Fake(Tool):
    """Rounds to nearest in a scheme of compressed-tensors. `ask` makes it misbehave."""

    name = "fake"
    package = "compressed-tensors"
    install = "it is there"

    def refusal(self, scheme: Scheme, arguments: Mapping[str, Any]) -> str | None:
        return None if scheme.weights is not None and scheme.weights.bits == 8 else f"makes no bits={scheme.name}"

    def quantize(self, module: Any, tokenizer: Any, windows: Tensor, order: Order, folder: str) -> None:
        ask = order.arguments.get("ask")
        print("noise on stdout")  # noqa: T201
        Path("left").touch()  # in the current folder, as GPTQModel does
        if ask == "fail":
            raise ValueError("no such thing")
        if ask == "die":
            import os

            print("last words", flush=True)  # noqa: T201
            os._exit(3)
        torch.manual_seed(99)
        random.seed(99)
        assert order.ignore == ("lm_head",)
        assert windows.shape == (4, 64)
        Path(folder).rmdir()
        by_compressed_tensors(Path(module.name_or_path), Path(folder), order.arguments.get("scheme", "W8A8"))
