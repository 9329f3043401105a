"""A mix of files to calibrate on: which share comes from each, and which windows or documents are drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sqbench.config import CalibrationConfig
from sqbench.data.base import Batches, commonest_first
from sqbench.data.documents import KEY, Documents, documents_of
from sqbench.data.tokens import begun, tokenise
from sqbench.errors import UserError
from sqbench.storage.files import digest

LONG = 64  # characters from which on a document inside the evaluation text is no chance


@dataclass(frozen=True)
class Mix:
    """Files, and how the calibration windows are divided between them.

    Attributes:
        shares: of each file; their sum is 1.
        pack: whether a window is cut out of the joined documents. Otherwise it is one document.
    """

    files: tuple[Documents, ...]
    shares: tuple[float, ...]
    pack: bool

    @property
    def conversations(self) -> str | None:
        """The first file with conversations. None if there is none."""
        return next((file.path for file in self.files if file.conversations), None)

    def counts(self, windows: int) -> list[int]:
        """How many windows come from each file. Their sum is `windows`: the largest remainders get what rounding down leaves.

        Raises:
            UserError: a file gets none.
        """
        exact = [windows * share for share in self.shares]
        found = [int(one) for one in exact]
        for place in sorted(range(len(exact)), key=lambda at: (found[at] - exact[at], at))[: windows - sum(found)]:
            found[place] += 1
        if 0 in found:
            name = self.files[found.index(0)].path
            raise UserError(f"calibration.windows={windows}: the share of {name} is no window; use more windows, or more weight")
        return found

    def fingerprint(self, windows: int) -> str:
        """sha256 of the files' content and of how many windows come from each."""
        return digest(
            [[[file.fingerprint, count] for file, count in zip(self.files, self.counts(windows), strict=True)], self.pack]
        )

    def refuse(self, evaluated: Sequence[str]) -> None:
        """Raise UserError if a file holds a text that evaluates, or if such a text holds a long document of a file."""
        together = "".join(evaluated)  # windows follow each other
        for file in self.files:
            for said in file.content():
                if any(text in said for text in evaluated) or (len(said) >= LONG and said in together):
                    raise UserError(f"{KEY}={file.path}: holds text that evaluation uses; use another file")


def asks_for_mix(calibration: CalibrationConfig) -> bool:
    """Whether the calibration reads documents or several files, and not one plain text or the rest of the evaluation's."""
    path = calibration.path
    return not isinstance(path, str | None) or not calibration.pack or (path is not None and path.lower().endswith(".jsonl"))


def check_mix(calibration: CalibrationConfig) -> list[str]:
    """The calibration files.

    Raises:
        UserError: a path, the weights or `pack` cannot work.
    """
    path, weights = calibration.path, calibration.weights
    paths = [] if path is None else path if isinstance(path, list) else [path]
    if not all(isinstance(one, str) and one for one in paths) or path == []:
        raise UserError(f"{KEY}={path}: must be a file, or a list of files")
    if twice := [one for one in paths if paths.count(one) > 1]:
        raise UserError(f"{KEY}={path}: names {twice[0]} twice; use each file once, and calibration.weights")
    if weights is not None:
        numbers = isinstance(weights, list) and all(isinstance(one, int | float) and one is not True for one in weights)
        if not numbers or len(weights) != len(paths) or not all(0 < one < float("inf") for one in weights):
            raise UserError(
                f"calibration.weights={weights}: must have a number above 0 for each file of {KEY}, and there are {len(paths)}"
            )
    if not calibration.pack and not (paths and all(Path(one).suffix.lower() == ".jsonl" for one in paths)):
        raise UserError(
            f"calibration.pack=false: needs files that end in .jsonl as {KEY}; a plain text says not where a document ends"
        )
    return paths


def read_mix(calibration: CalibrationConfig) -> Mix:
    """The files of a mix.

    Raises:
        UserError: as `check_mix`, or a file is no text or has a line that is no document.
    """
    files = tuple(map(documents_of, check_mix(calibration)))
    weights = calibration.weights or [1] * len(files)
    return Mix(files, tuple(weight / sum(weights) for weight in weights), calibration.pack)


def draw_mix(
    tokenizer: Any, mix: Mix, prefix: tuple[int, ...], window: int, calibration: CalibrationConfig
) -> tuple[Tensor | Batches, tuple[dict[str, Any], ...]]:
    """The calibration inputs, and for each file what was drawn from it.

    Windows of packed documents are [windows, prefix + window]. Documents are batches of one, each as long as its tokens or cut to
    the window. None is padded, so padding enters no range and no error. Files take turns, so that a search sees all of them.

    Raises:
        UserError: a file has fewer windows or documents than its share.
    """
    rows: list[tuple[float, int, Tensor]] = []
    told = []
    for place, (file, count) in enumerate(zip(mix.files, mix.counts(calibration.windows), strict=True)):
        take = _windows if mix.pack else _documents
        chosen, at = take(tokenizer, file, count, window, prefix, calibration)
        rows += [((number + 0.5) / count, place, row) for number, row in enumerate(chosen)]
        told.append({"file": file.path, "sha256": file.fingerprint, "windows": count, "at": at})
    inputs = [row for _, _, row in sorted(rows, key=lambda one: one[:2])]
    if mix.pack:
        return torch.stack(inputs), tuple(told)
    inputs = [inputs[at] for at in commonest_first([len(row) for row in inputs])]
    batches = Batches(len(inputs), lambda number: inputs[number].unsqueeze(0), digest([row.tolist() for row in inputs]))
    return batches, tuple(told)


def _windows(
    tokenizer: Any, file: Documents, count: int, window: int, prefix: tuple[int, ...], calibration: CalibrationConfig
) -> tuple[list[Tensor], list[int]]:
    ids = tokenise(tokenizer, file.joined(tokenizer))
    total = len(ids) // window
    at = _draw(file, total, count, f"windows of {window} tokens", calibration)
    table = ids[: total * window].view(-1, window)
    return list(begun(prefix, table[at])), at


def _documents(
    tokenizer: Any, file: Documents, count: int, window: int, prefix: tuple[int, ...], calibration: CalibrationConfig
) -> tuple[list[Tensor], list[int]]:
    at = _draw(file, len(file), count, "documents", calibration)
    start = torch.tensor(prefix, dtype=torch.long)
    rows = []
    for number in at:
        ids = tokenise(tokenizer, file.written(tokenizer, number))
        if not torch.equal(ids[: len(start)], start):  # many templates begin with the BOS token themselves
            ids = torch.cat([start, ids])
        rows.append(ids[: len(start) + window])
    return rows, at


def _draw(file: Documents, total: int, count: int, what: str, calibration: CalibrationConfig) -> list[int]:
    """`count` of the numbers below `total`, in order, drawn without replacement."""
    if count > total:
        raise UserError(
            f"calibration.windows={calibration.windows}: the share of {file.path} is {count}, and it has {total} {what};"
            " use fewer windows, or less weight"
        )
    generator = torch.Generator().manual_seed(calibration.seed)
    return torch.randperm(total, generator=generator)[:count].sort().values.tolist()
