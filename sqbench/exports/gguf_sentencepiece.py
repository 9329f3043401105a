"""The tokenizer of SentencePiece in a GGUF file: pairs with the best score are merged first, and unknown characters are bytes."""

from collections.abc import Mapping, Sequence, Set
from typing import Any

from sqbench.errors import UserError

SPACE = "\u2581"
BYTES = tuple(f"<0x{number:02X}>" for number in range(256))
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
PREPEND = {"type": "Prepend", "prepend": SPACE}
# (normalizer, pre_tokenizer) of tokenizer.json, after which a text begins with a space, and spaces are visible.
WAYS: Sequence[tuple[Any, Any]] = (
    ({"type": "Sequence", "normalizers": [PREPEND, REPLACE]}, None),
    *(
        (None, {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False})
        for scheme in ("first", "always")
    ),
)


def add_sentencepiece(writer: Any, told: Mapping[str, Any], tokens: Sequence[str]) -> None:
    """Add the way to cut text and the scores of tokens.

    Args:
        writer: a GGUFWriter.
        told: tokenizer.json.
        tokens: by their numbers.

    Raises:
        UserError: llama.cpp would cut text otherwise.
    """
    way = (told.get("normalizer"), told.get("pre_tokenizer"))
    if way not in WAYS:
        raise UserError(f"format=gguf: its tokenizer has byte_fallback, and cuts text as no SentencePiece of Llama does: {way}")
    if absent := [byte for byte in BYTES if byte not in told["model"]["vocab"]]:
        raise UserError(f"format=gguf: its tokenizer has byte_fallback, and no token {absent[0]}")
    merged = _scores(told["model"]["merges"], set(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_add_space_prefix(True)
    writer.add_token_scores([merged.get(token, 0.0) for token in tokens])


def _scores(merges: Sequence[Sequence[str]], vocabulary: Set[str]) -> dict[str, float]:
    """Token -> its score. llama.cpp merges two tokens if both together are one, the best score first.

    Raises:
        UserError: the list of merges says something else.
    """
    found: dict[str, float] = {}
    pairs = [tuple(merge) for merge in merges]
    last = None
    for pair in pairs:
        token = "".join(pair)
        if token != last and token in found:
            raise UserError(f"format=gguf: its tokenizer makes {token!r} by merges of different ranks, and llama.cpp has one rank")
        last = token
        found.setdefault(token, -float(len(found) + 1))
    known = set(pairs)
    for token in sorted(vocabulary):
        for cut in range(1, len(token)):
            pair = (token[:cut], token[cut:])
            if pair not in known and pair[0] in vocabulary and pair[1] in vocabulary:
                raise UserError(f"format=gguf: its tokenizer does not merge {pair[0]!r} and {pair[1]!r}, and llama.cpp does")
    return found
