"""Text, tokenised once and cut into windows. Calibration windows never overlap evaluation windows."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sqbench import planning
from sqbench.config import CalibrationConfig, DataConfig
from sqbench.data.base import Batches, DataSource, calibrated_on
from sqbench.data.hub import split_of
from sqbench.data.mixes import Mix, asks_for_mix, draw_mix, read_mix
from sqbench.data.synthetic import random_tokens
from sqbench.data.text_files import read
from sqbench.data.tokens import begun, prefix_of, tokenise
from sqbench.errors import UserError
from sqbench.storage.files import digest


@dataclass(frozen=True)
class Text:
    """A text and the sha256 of its UTF-8 bytes."""

    text: str
    fingerprint: str


@dataclass(frozen=True)
class Windows:
    """Token ids cut for one sweep.

    Attributes:
        evaluation: [E, prefix + window] int64, the first E windows of the text, each after the prefix.
        calibration: [C, prefix + window] int64, drawn without replacement from the windows after these (or from another text), or
            `Batches` of random tokens or of documents.
        evaluation_bytes: UTF-8 bytes of the predicted text. The first token of each window is not predicted.
        at: [C] numbers of the calibration windows in their text. Empty if no text calibrates.
        prefix: the tokens that begin every window; see `prefix_of`.
        mix: what was drawn from each of several calibration files, for the record. Empty if there are not several.
    """

    evaluation: Tensor
    calibration: Tensor | Batches
    evaluation_bytes: int
    at: tuple[int, ...]
    prefix: tuple[int, ...] = ()
    mix: tuple[dict[str, Any], ...] = ()

    def inputs(self) -> Iterator[Tensor]:
        """The evaluation windows, one by one."""
        return iter(self.evaluation.split(1))

    def fingerprint(self) -> str:
        """sha256 of the evaluation windows and of the length of their prefix."""
        return digest([len(self.prefix), self.evaluation.tolist()])

    def about(self) -> dict[str, Any]:
        """The numbers of the calibration windows, or what was drawn from each calibration file, for the record."""
        return {"calibration_windows": list(self.at), **({"calibration_mix": list(self.mix)} if self.mix else {})}


def from_file(cfg: DataConfig) -> str:
    """The text of the UTF-8 file `data.path`."""
    if cfg.path is None:
        raise UserError("data.path=null: data=text needs a file, for example data=text data.path=my.txt")
    return read(cfg.path, "data.path")


def from_pydoc(cfg: DataConfig) -> str:
    """The Python language reference that every interpreter contains, about 465,000 characters of English and code.

    The text differs between Python versions. Every record has its sha256. `data.path` replaces it by a file.
    """
    if cfg.path is not None:
        return read(cfg.path, "data.path")
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def from_wikitext2(cfg: DataConfig) -> str:
    """The test split of WikiText-2 raw, from `data.path` if given, else from Hugging Face `datasets` (cache or network)."""
    if cfg.path is not None:
        return read(cfg.path, "data.path")
    instead = "use data.path=wiki.test.raw with a local copy, or data=pydoc"
    split = split_of("Salesforce/wikitext", "wikitext-2-raw-v1", "test", key="data=wikitext2", instead=instead)
    return "".join(split["text"])


@dataclass(frozen=True)
class TextCorpus:
    """The text to evaluate on, and the text or the mix of files to calibrate on if it is different."""

    text: Text
    other: Text | None
    kind: str = "text"
    first: str = ""
    mix: Mix | None = None

    @property
    def conversations(self) -> str | None:
        """The calibration file with conversations, which need a chat template. None if there is none."""
        return None if self.mix is None else self.mix.conversations

    def identity(self, data: DataConfig, calibration: CalibrationConfig) -> tuple[dict[str, Any], dict[str, Any]]:
        """The properties of the evaluation data, and those of the calibration data, that can change a number."""
        used = (self.other or self.text).fingerprint if self.mix is None else self.mix.fingerprint(calibration.windows)
        return (
            # `bos` is the setting. The tokenizer decides on the tokens, and the model's fingerprint covers its files.
            {"text": self.text.fingerprint, "window": data.window, "windows": data.windows, "bos": data.bos},
            calibrated_on("windows", calibration, {"text": used}),
        )

    def fingerprints(self) -> dict[str, str]:
        """sha256 of the text."""
        return {"text": self.text.fingerprint}

    def examples(self, model: Any, data: DataConfig, calibration: CalibrationConfig) -> Windows:
        """Windows of the model's tokens.

        Raises:
            UserError: a text is too short for the windows, or the tokenizer cannot give the prefix.
        """
        if calibration.source == "data" and self.mix is None:
            return cut(model.tokenizer, self.text, self.other, data, calibration)
        windows = cut(model.tokenizer, self.text, None, data, CalibrationConfig(windows=0))
        if calibration.source == "data" and self.mix is not None:
            texts = [model.tokenizer.decode(window[len(windows.prefix) :]) for window in windows.evaluation]
            self.mix.refuse(texts)
            inputs, told = draw_mix(model.tokenizer, self.mix, windows.prefix, data.window, calibration)
            return replace(windows, calibration=inputs, mix=told)
        vocabulary = min(len(model.tokenizer), model.vocabulary)
        return replace(windows, calibration=random_tokens(vocabulary, data.window, calibration, windows.prefix))


TEXTS: dict[str, Callable[[DataConfig], str]] = {"pydoc": from_pydoc, "text": from_file, "wikitext2": from_wikitext2}


def fetch(cfg: DataConfig, calibration: CalibrationConfig) -> TextCorpus:
    """Read the texts. In a plan, the name of a text stands for a text that would be downloaded."""

    def sealed(text: str) -> Text:
        return Text(text, hashlib.sha256(text.encode()).hexdigest())

    try:
        text, first = sealed(TEXTS[cfg.source](cfg)), ""
    except planning.Absent as absent:
        text, first = sealed(cfg.source), str(absent)
    if asks_for_mix(calibration):
        return TextCorpus(text, None, first=first, mix=read_mix(calibration))
    other = None if calibration.path is None else sealed(read(calibration.path, "calibration.path"))
    if other == text:  # the same text in two files; its windows must not overlap either
        other = None
    return TextCorpus(text, other, first=first)


SOURCES = {name: DataSource("text", fetch) for name in TEXTS}


def cut(tokenizer: Any, evaluation: Text, other: Text | None, cfg: DataConfig, calibration: CalibrationConfig) -> Windows:
    """Evaluation windows from the start of the text, and calibration windows from the rest of it (or from `other`).

    `data.window` does not count the prefix. The predicted text is therefore the same for every prefix.

    Raises:
        UserError: a text is too short, `other` holds text of the evaluation, or the tokenizer cannot give the prefix.
    """
    ids = tokenise(tokenizer, evaluation.text)
    total = len(ids) // cfg.window
    needed = cfg.windows + (calibration.windows if other is None else 0)
    if total < 1 or (total < needed and needed <= 2):
        works = len(ids) // needed
        advice = f"use data.window={works} or less" if works > 1 else "use a longer text"
        raise UserError(f"data.window={cfg.window}: the text has only {len(ids)} tokens; {advice} for {needed} windows")
    if cfg.windows > total:
        raise UserError(f"data.windows={cfg.windows}: the text has {total} windows of {cfg.window} tokens; use at most {total}")
    pool = ids if other is None else tokenise(tokenizer, other.text)
    first = cfg.windows if other is None else 0
    spare = len(pool) // cfg.window - first
    if calibration.windows > spare:
        left = f"the text has {total} windows of {cfg.window} tokens, {cfg.windows} of them evaluate, {spare} are left"
        there = left if other is None else f"{calibration.path} has {spare} windows of {cfg.window} tokens"
        raise UserError(
            f"calibration.windows={calibration.windows}: {there}; use fewer calibration.windows or data.windows,"
            " or calibration.path=another-text.txt"
        )
    generator = torch.Generator().manual_seed(calibration.seed)
    at = first + torch.randperm(spare, generator=generator)[: calibration.windows].sort().values
    table = pool[: len(pool) // cfg.window * cfg.window].view(-1, cfg.window)
    chosen = ids[: cfg.windows * cfg.window].view(-1, cfg.window)
    if other is not None and any(tokenizer.decode(window) in other.text for window in chosen):
        raise UserError(
            f"calibration.path={calibration.path}: holds text that evaluation uses; use another text, or"
            " calibration.path=null (windows of the same text that evaluation does not use)"
        )
    predicted = sum(len(tokenizer.decode(window[1:]).encode()) for window in chosen)
    prefix = prefix_of(tokenizer, cfg.bos)
    return Windows(begun(prefix, chosen), begun(prefix, table[at]), predicted, tuple(at.tolist()), prefix)
