"""How much memory a point takes with one block of the model in memory at a time, against the whole model.

    python -m benchmarks.blockwise                              # 1.2 billion random float32 weights, 24 blocks of 0.2 GB
    python -m benchmarks.blockwise layers=48 method=awq whole=false

Two points of the same random Llama through the command line, with results folders of their own: their metrics must be equal, and
each says what it held: the peak of GPU memory with device=cuda, else of resident memory, mapped files included (the kernel may drop
those). Keys: layers, width, keep (a folder to leave the model in), whole=false (do not run the whole model); any override of
sqbench.run works as well.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sqbench.reporting.tables import markdown_table

DEFAULTS = {"layers": "24", "width": "2048", "whole": "true", "keep": ""}
POINT = ["data.windows=8", "calibration.windows=8", "data.window=128", "method=smoothquant", "bits=w8a8", "tracker=none"]


def write(folder: Path, layers: int, width: int) -> int:
    """A random Llama in Hugging Face layout, a file per block, never whole in memory; returns its bytes."""
    alphabet = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in LlamaForCausalLM(config).named_parameters()}
    generator = torch.Generator().manual_seed(0)
    by_file: dict[str, list[str]] = {}
    for name in shapes:
        by_file.setdefault(".".join(name.split(".")[:3]) if ".layers." in name else "around", []).append(name)
    total, held = 0, {}
    for number, names in enumerate(by_file.values(), start=1):
        tensors = {}
        for name in names:
            drawn = torch.randn(shapes[name], generator=generator)
            tensors[name] = drawn * 0.1 + 1 if drawn.dim() == 1 else drawn * 0.5 / shapes[name][-1] ** 0.5
        total += sum(tensor.nbytes for tensor in tensors.values())
        file = f"model-{number:05}-of-{len(by_file):05}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        held |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": held}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return total


def record(folder: Path, results: Path, blockwise: bool, overrides: list[str]) -> dict[str, Any]:
    """Of a point in a process of its own."""
    line = [f"model.name={folder}", "model.loader=hf", f"results_dir={results}", f"blockwise={str(blockwise).lower()}"]
    subprocess.run([sys.executable, "-m", "sqbench.run", *line, *POINT, *overrides], check=True)
    found: dict[str, Any] = json.loads(next(results.glob("runs/*/record.json")).read_text(encoding="utf-8"))
    return found


def main() -> None:
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    chosen = {key: given.pop(key, default) for key, default in DEFAULTS.items()}
    overrides = [f"{key}={value}" for key, value in given.items()]
    with tempfile.TemporaryDirectory() as root:
        folder = Path(chosen["keep"] or root) / "model"
        folder.mkdir(parents=True)
        size = write(folder, int(chosen["layers"]), int(chosen["width"]))
        rows, metrics = [], []
        for blockwise in (True, False) if chosen["whole"] == "true" else (True,):
            found = record(folder, Path(root) / f"blockwise_{blockwise}", blockwise, overrides)
            metrics.append(found["metrics"])
            cost = found["cost"]
            peak, seconds = cost.get("peak_gpu_bytes", cost["peak_rss_bytes"]), cost["seconds"]
            rows.append((str(blockwise), f"{peak / 1e9:.2f}", f"{peak / size:.2f}", f"{seconds['total']:.0f}"))
    print(f"{chosen['layers']} blocks, {size / 1e9:.2f} GB of float32 weights, {size / int(chosen['layers']) / 1e9:.2f} GB a block")
    print(markdown_table(["blockwise", "peak GB", "of the weights", "seconds"], rows, 1))
    if metrics[1:]:
        print("metrics are equal" if metrics[0] == metrics[1] else f"METRICS DIFFER: {metrics}")


if __name__ == "__main__":
    main()
