"""A plain evaluation with transformers alone, in its own process. benchmarks.sweep compares with it.

python -m benchmarks.plain evaluate FOLDER           # perplexity of FOLDER's windows: prints seconds, without loading
python -m benchmarks.plain prepare FOLDER [overrides]  # writes model and windows there, as sqbench has them
"""

import json
import math
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn


def prepare(folder: Path, overrides: list[str]) -> None:
    """Write the float model and its evaluation windows."""
    from safetensors.torch import save_file

    from sqbench import api

    model, windows = api.load(*overrides)
    model.module.save_pretrained(folder)
    save_file({"windows": windows.evaluation.contiguous()}, folder / "windows.safetensors")  # type: ignore[union-attr]


@torch.no_grad()
def perplexity(module: nn.Module, windows: Tensor) -> float:
    """Perplexity of windows [N, tokens] by transformers' own loss, one window at a time."""
    losses = [module(input_ids=ids.unsqueeze(0), labels=ids.unsqueeze(0), use_cache=False).loss.item() for ids in windows]
    return math.exp(sum(losses) / len(losses))


def evaluate(folder: Path) -> dict[str, float]:
    """Perplexity of the folder's windows, and the seconds it took after loading."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    windows = load_file(folder / "windows.safetensors")["windows"]
    start = time.perf_counter()
    found = perplexity(module, windows)
    return {"seconds": time.perf_counter() - start, "perplexity": found}


if __name__ == "__main__":
    verb, place, *rest = sys.argv[1:]
    if verb == "prepare":
        prepare(Path(place), rest)
    else:
        print(json.dumps(evaluate(Path(place))))
