"""The tokenizer of a GGUF file: byte pair encoding over bytes, as most language models have it, or over characters."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqbench.errors import UserError
from sqbench.exports.gguf_sentencepiece import BYTES, add_sentencepiece

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False}
# llama.cpp's names of ways to cut text before merges, for transformers' own table of their patterns.
SPLITS = ("llama-bpe", "qwen2", "tekken", "gpt-4o")


def add_tokenizer(writer: Any, tokenizer: Any, size: int) -> None:
    """Add a tokenizer to a file.

    Args:
        writer: a GGUFWriter.
        tokenizer: of transformers.
        size: how many tokens have an embedding. Those without a name are unused.

    Raises:
        UserError: it is no byte pair encoding, or llama.cpp has no name for the way in which it cuts text.
    """
    from gguf import SpecialVocab

    told = json.loads(tokenizer.backend_tokenizer.to_str())
    if told["model"]["type"] != "BPE":
        raise UserError(f"format=gguf: its tokenizer is {told['model']['type']}, and only BPE is written")
    pieces = bool(told["model"].get("byte_fallback"))
    names = {number: token for token, number in tokenizer.get_vocab().items()}
    tokens = [names.get(number, f"[PAD{number}]") for number in range(size)]
    if pieces:
        add_sentencepiece(writer, told, tokens)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(cut_by(told.get("pre_tokenizer")))
    writer.add_token_list(tokens)
    writer.add_token_types(_kinds(names, told, size))
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        special = SpecialVocab(Path(folder), load_merges=bool(told["model"]["merges"]) and not pieces, n_vocab=size)
    if not special.merges and not pieces:  # readers then derive merges from scores, and there are none
        writer.add_token_scores([0.0] * size)
    special.add_special_token.setdefault("bos", False)
    special.add_to_gguf(writer, quiet=True)


def _kinds(names: Mapping[int, str], told: Mapping[str, Any], size: int) -> list[Any]:
    """llama.cpp's types of tokens."""
    from gguf import TokenType

    kinds = {token["id"]: TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED for token in told["added_tokens"]}
    if told["model"].get("byte_fallback"):
        of_model = {**dict.fromkeys(BYTES, TokenType.BYTE), told["model"].get("unk_token"): TokenType.UNKNOWN}
        kinds |= {number: of_model[token] for number, token in names.items() if token in of_model}
    return [kinds.get(number, TokenType.NORMAL if number in names else TokenType.UNUSED) for number in range(size)]


def cut_by(told: Mapping[str, Any] | None) -> str:
    """llama.cpp's name of the way in which a tokenizer cuts text, from tokenizer.json.

    Raises:
        UserError: it has none.
    """
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    steps = [] if told is None else told.get("pretokenizers", [told])
    *before, last = steps or [{}]
    if BYTE_LEVEL.items() <= last.items():
        if last.get("use_regex", True):
            if not before:
                return "gpt-2"
            if before == [{"type": "Digits", "individual_digits": True}]:
                return "smollm"
        elif len(before) == 1 and before[0].get("type") == "Split" and before[0].get("behavior") == "Isolated":
            pattern = before[0]["pattern"].get("Regex")
            for name in SPLITS:
                if GGUF_PRE_TOKENIZER_SPLITS[name] == pattern:
                    return name
    words = re.sub(r"\s+", " ", json.dumps(told))[:200]
    raise UserError(f"format=gguf: its tokenizer cuts text by {words}, for which llama.cpp has no name that sqbench knows")
