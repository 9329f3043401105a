"""The files of a GGUF model: one, or the parts that llama-gguf-split makes of it. Their keys say which, and their names do not."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqbench.errors import UserError, counted

MAGIC = b"GGUF"


@dataclass(frozen=True)
class Part:
    """A parsed file.

    Attributes:
        keys: without those of the tokenizer. Parts after the first one have those of the split alone.
        tensors: name -> tensor, as the package gguf describes it.
    """

    path: Path
    keys: Mapping[str, Any]
    tensors: Mapping[str, Any]

    @property
    def number(self) -> int:
        """Its number, from 0."""
        return int(self.keys.get("split.no", 0))

    @property
    def split(self) -> tuple[int, int | None]:
        """How many parts there are, and how many tensors they have together."""
        return int(self.keys.get("split.count", 1)), self.keys.get("split.tensors.count")


def gguf_in(folder: Path, place: str) -> Path | None:
    """The GGUF file of a folder, or a part if all its GGUF files are parts of one. None if there is none.

    Raises:
        UserError: there are several, or weights in safetensors beside it.
    """
    found = _files(folder)
    if len(found) > 1 and len(parts_of(found[0], place)) != len(found):
        names = counted([path.name for path in found], "GGUF files")
        raise UserError(f"{place}: {folder} holds {names}; name one of them as model.name")
    if found and any(folder.glob("*.safetensors")):
        raise UserError(f"{place}: {folder} holds {found[0].name} and *.safetensors; name the GGUF file as model.name")
    return found[0] if found else None


def parts_of(file: Path, place: str) -> tuple[Part, ...]:
    """All parts of the model of which a file is a part, in their order. They are in one folder.

    Args:
        place: the file's name in errors: a key and its value.

    Raises:
        UserError: a file is no complete GGUF file, or parts are missing, there twice or of another model.
    """
    own = _parsed(file, place)
    (count, total) = own.split
    if count == 1:
        return (own,)
    beside = (_parsed(path, place) for path in _files(file.parent) if not path.samefile(file))
    found = sorted([own, *(part for part in beside if part.split == own.split)], key=lambda part: part.number)
    numbers = Counter(part.number for part in found)
    if missing := [f"{number + 1} of {count}" for number in range(count) if number not in numbers]:
        raise UserError(f"{place}: {file.parent} lacks {counted(missing, 'parts')} of {file.name}")
    if len(found) > count:
        twice = [part.path.name for part in found if numbers[part.number] > 1 or part.number >= count]
        raise UserError(
            f"{place}: {file.parent} holds {counted(twice, f'files of the same parts of {count}')}; leave one model there"
        )
    owners = Counter(name for part in found for name in part.tensors)
    if (total is not None and owners.total() != total) or len(owners) != owners.total():
        raise UserError(
            f"{place}: the {count} parts in {file.parent} have {owners.total()} tensors with {len(owners)} names, and"
            f" split.tensors.count={total}; a part is of another model"
        )
    return tuple(found)


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_file() and _begins(path) == MAGIC]


def _begins(path: Path) -> bytes:
    with path.open("rb") as opened:
        return opened.read(len(MAGIC))


def _parsed(file: Path, place: str) -> Part:
    from gguf import GGUFEndian, GGUFReader

    if (begins := _begins(file)) != MAGIC:
        raise UserError(f"{place}: {file} is no GGUF file (it begins with {begins!r}, and not with {MAGIC!r})")
    try:
        reader = GGUFReader(file)
        keys = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
    except (OSError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise UserError(f"{place}: {file} is no complete GGUF file that the package gguf can parse ({error})") from error
    if reader.endianess != GGUFEndian.LITTLE:
        raise UserError(f"{place}: {file} is big-endian; convert it with gguf-convert-endian")
    return Part(file, keys, {tensor.name: tensor for tensor in reader.tensors})
