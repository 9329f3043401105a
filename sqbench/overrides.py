"""Overrides as text: a value as Hydra reads it back, and as a word that a shell leaves alone."""

import re
import shlex
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString


def written(key: str, value: str | Path) -> str:
    """`key=value` for Hydra, whatever is in the value: it comes back as this text.

    >>> written("results_dir", "/data/results"), written("results_dir", "/data/seed=1, a"), written("layers", "3")
    ('results_dir=/data/results', 'results_dir="/data/seed=1, a"', 'layers="3"')
    """
    return f"{key}={quoted(str(value))}"


def quoted(text: str) -> str:
    """A text that Hydra reads back as this text: never as a number, a list, several values or an interpolation."""
    if re.fullmatch(r"[A-Za-z_/][\w./-]*", text) and text.lower() not in ("null", "true", "false", "nan", "inf"):
        return text
    literal = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # OmegaConf's way to write ${ that is no interpolation
    return QuotedString(literal, Quote.double).with_quotes()


def pasted(key: str, value: str | Path) -> str:
    """`written`, as one word of a POSIX shell."""
    return shlex.quote(written(key, value))
