"""Write a random Llama of any size and a tokenizer to a folder, for measurements without downloaded weights.

    python -m benchmarks.llama folder=./llama layers=4 width=8192 heads=64

Blocks are drawn and written one by one, so that the model may be larger than memory.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.timing import arguments
from sqbench.errors import UserError


def save_byte_tokenizer(folder: Path) -> None:
    """Write a tokenizer whose tokens are bytes. No vocabulary is learnt or downloaded."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def save_llama(folder: Path, layers: int, width: int, heads: int) -> int:
    """Write a random float32 Llama over bytes in Hugging Face layout, one file per block. Return the bytes of its weights."""
    save_byte_tokenizer(folder)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=heads,
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


def main() -> None:
    try:
        own, others = arguments(sys.argv[1:], folder="llama", layers=4, width=512, heads=8)
        if others:
            raise UserError(f"{others[0]}: folder=..., layers=..., width=... and heads=... work")
        if own["width"] % own["heads"]:
            raise UserError(f"heads={own['heads']} does not divide width={own['width']}")
    except UserError as error:
        sys.exit(f"error: {error}")
    folder = Path(own["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{save_llama(folder, own['layers'], own['width'], own['heads']) / 1e9:.2f} GB in {folder}")


if __name__ == "__main__":
    main()
