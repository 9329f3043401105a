"""Tokenizers of SentencePiece in GGUF files: transformers and llama.cpp cut text as the tokenizer does."""

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from exports.test_gguf_architectures import random
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import generate_merges

from sqbench.errors import UserError
from sqbench.exports.gguf import FILE
from sqbench.exports.gguf_sentencepiece import BYTES
from sqbench.exports.targets import save

SPECIAL = ["<unk>", "<s>", "</s>"]
SIZE = 420
TEXT = "the cat and the hat, that 1984 and 2001 that's the thing: there then, in the end   they sat"
TEXTS = [TEXT, "a", "Ünïcode – 漢字 🙂", "tabs\t\n\n", "\n", "thethethe ththe hehe", "x" * 40, "two  three   spaces  "]
LEADING = "  two spaces before"  # transformers' Metaspace adds no third one, and its Prepend and llama.cpp do
NORMALIZER = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
METASPACE = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="first", split=False)


@cache
def vocabulary() -> dict[str, int]:
    """Tokens that were trained on a text, the most frequent ones first, as SentencePiece has them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581")
    tokenizer.train_from_iterator(
        [TEXT] * 9, trainers.BpeTrainer(vocab_size=SIZE, special_tokens=[*SPECIAL, *BYTES], show_progress=False)
    )
    found: dict[str, int] = tokenizer.get_vocab()
    return found


def pieces(
    *, normalizer: Any = None, cut: Any = None, drop: int | None = None, vocab: dict[str, int] | None = None
) -> PreTrainedTokenizerFast:
    """A tokenizer as transformers converts one of SentencePiece, without one of its merges if told."""
    vocab = vocab or vocabulary()
    merges = generate_merges(vocab, {token: -float(number) for token, number in vocab.items()})
    if drop is not None:
        del merges[drop]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, cut
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def written(tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    from dataclasses import replace

    save(replace(random("mistral", {"sliding_window": None, "vocab_size": SIZE}), tokenizer=tokenizer), folder, format="gguf")
    return folder / FILE


@pytest.mark.parametrize("way", [{"normalizer": NORMALIZER}, {"cut": METASPACE}], ids=["llama 2", "mistral 0.3"])
def test_text_is_cut_as_before(way: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = pieces(**way)
    assert len(vocabulary()) > 300
    assert len(tokenizer(TEXT)["input_ids"]) < len(TEXT) / 2
    file = written(tokenizer, tmp_path / "out")
    back = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for text in TEXTS + [LEADING] * ("cut" in way):
        assert back(text)["input_ids"] == tokenizer(text)["input_ids"], text
    if find_spec("llama_cpp") is not None:
        from llama_cpp import Llama

        runtime = Llama(str(file), vocab_only=True, verbose=False)
        for text in TEXTS + [LEADING] * ("normalizer" in way):
            assert runtime.tokenize(text.encode(), add_bos=True) == tokenizer(text)["input_ids"], text
        assert runtime.tokenize(b"a</s>", add_bos=True, special=True)[-1] == 2


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"cut": METASPACE, "drop": 5}, r"its tokenizer does not merge '.*' and '.*', and llama\.cpp does"),
        ({"cut": pre_tokenizers.Whitespace()}, r"cuts text as no SentencePiece of Llama does: .*Whitespace"),
        ({"cut": METASPACE, "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3}}, r"has byte_fallback, and no token <0x00>"),
    ],
)
def test_what_llama_cpp_would_cut_otherwise_is_refused(more: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        written(pieces(**more), tmp_path / "out")


def test_merges_of_one_token_with_different_ranks_are_refused(tmp_path: Path) -> None:
    vocab = {token: number for number, token in enumerate([*SPECIAL, *BYTES, "a", "b", "c", "ab", "bc", "abc", "cc"])}
    tokenizer = pieces(cut=METASPACE, vocab=vocab)
    written(tokenizer, tmp_path / "out")
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    merges = told["model"]["merges"]
    merges.append(merges.pop(merges.index(["ab", "c"])))  # behind that of cc; a and bc is before it
    moved = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(told)))
    with pytest.raises(UserError, match=r"makes 'abc' by merges of different ranks, and llama\.cpp has one rank"):
        written(moved, tmp_path / "other")
