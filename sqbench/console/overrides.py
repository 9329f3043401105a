"""Overrides as text: quoting of values for Hydra and for a shell, parsing, and messages for wrong ones."""

import difflib
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from itertools import takewhile
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sqbench.errors import UserError, known

TROUBLE = (HydraException, OmegaConfBaseException, AssertionError)  # OmegaConf raises the last for a key below null


def written(key: str, value: str | Path) -> str:
    """`key=value` for Hydra. Hydra reads any value back as this text.

    >>> written("results_dir", "/data/results"), written("results_dir", "/data/seed=1, a"), written("layers", "3")
    ('results_dir=/data/results', 'results_dir="/data/seed=1, a"', 'layers="3"')
    """
    return f"{key}={quoted(str(value))}"


def quoted(text: str) -> str:
    """A text quoted for Hydra. It is never read as a number, a list, several values or an interpolation."""
    if re.fullmatch(r"[A-Za-z_/][\w./-]*", text) and text.lower() not in ("null", "true", "false", "nan", "inf"):
        return text
    return QuotedString(literal(text), Quote.double).with_quotes()


def literal(text: str) -> str:
    """A text in which OmegaConf reads no interpolation: its way to write a literal `${`."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def pasted(key: str, value: str | Path) -> str:
    """`written`, as one word of a POSIX shell."""
    return shlex.quote(written(key, value))


def read(words: Sequence[str]) -> list[Override]:
    """The overrides of a command line.

    Raises:
        UserError: a word is no override.
    """
    parser = OverridesParser.create()
    found = []
    for at, word in enumerate(words):
        if word.endswith(",") and "=" in word:
            parts = [word, *takewhile(lambda later: "=" not in later, words[at + 1 :])]
            raise UserError(f"{' '.join(parts)}: no space may follow a comma; write {''.join(parts).rstrip(',')}")
        try:
            found.append(parser.parse_override(word))
        except HydraException as error:
            if "=" not in word:
                raise UserError(f"{word}: must be KEY=VALUE") from error
            reason = f"a value that has one of ()[]{{}}:= needs quotes ({str(error).splitlines()[0]})"
            raise UserError(f"{word}: must be KEY=VALUE, and {reason}") from error
    return found


def put(cfg: DictConfig, overrides: Iterable[Override]) -> None:
    """Set keys of a configuration, in order.

    Raises:
        UserError: there is no such key, or its value is of another type.
    """
    for override in overrides:
        key = override.key_or_group
        added = override.is_add() or override.is_force_add()
        if override.is_delete():
            continue
        if missing(cfg, key) and not added:
            raise UserError(f"{override.input_line}: {unknown(cfg, key)}")
        try:
            OmegaConf.update(cfg, key, override.value(), merge=True, force_add=True)  # later ones may lie below it
        except TROUBLE as error:
            reason = unknown(cfg, key) if missing(cfg, key) else must_be(cfg, key, override.value())
            raise UserError(f"{override.input_line}: {reason}") from error


def missing(cfg: DictConfig, key: str) -> str | None:
    """The first part of a key that is missing in a configuration, or that is null above the last part. None if all is there."""
    parts = key.split(".")
    node: Any = cfg
    for depth, part in enumerate(parts, start=1):
        if not isinstance(node, DictConfig) or part not in list(node):  # a key whose value is ??? is there
            return ".".join(parts[:depth])
        node = OmegaConf.select(node, part, throw_on_missing=False)
        if node is None and depth < len(parts):
            return ".".join(parts[:depth])
    return None


def unknown(cfg: DictConfig, key: str) -> str:
    """The tail of an "unknown key" message: keys of the same name, else similar ones, and all keys beside it."""
    first = missing(cfg, key) or key
    parent, _, name = first.rpartition(".")
    beside = OmegaConf.select(cfg, parent) if parent else cfg
    names = [str(item) for item in beside if item != "hydra"] if isinstance(beside, DictConfig) else []
    if not names:
        return f"{parent} has no keys below it"
    below = f"{parent}." if parent else ""
    near = [f"{below}{item}" for item in difflib.get_close_matches(name, names, n=1)]
    plain = OmegaConf.to_container(OmegaConf.masked_copy(cfg, [str(item) for item in cfg if item != "hydra"]))
    assert isinstance(plain, dict)
    last, paths = key.rpartition(".")[2], list(_paths(plain))
    alike = difflib.get_close_matches(last, {path.rpartition(".")[2] for path in paths}, n=1)
    same, elsewhere = ([path for path in paths if path.rpartition(".")[2] in wanted] for wanted in ([last], alike))
    close = same or near or elsewhere
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{hint}known: {', '.join(sorted(names))}"


def _paths(nodes: Mapping[Any, Any], above: str = "") -> Iterator[str]:
    for name, value in nodes.items():
        yield f"{above}{name}"
        if isinstance(value, dict):
            yield from _paths(value, f"{above}{name}.")


def must_be(cfg: DictConfig, key: str, value: Any) -> str:
    """The tail of a message on a wrong value: the values that a key takes, by its type in the schema."""
    parent, _, name = key.rpartition(".")
    node: Any = (OmegaConf.select(cfg, parent) if parent else cfg)._get_node(name)
    kind, optional = node._metadata.ref_type, node._metadata.optional
    if isinstance(kind, type) and issubclass(kind, Enum):
        return known(str(value), [item.name for item in kind])
    what = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}.get(kind)
    if what is None and (OmegaConf.is_list(node) or "list" in str(kind)):
        what = f"a list, {name}=[a,b] for example"
    return f"must be {what or 'a group of keys'}{' or null' if optional else ''}"
