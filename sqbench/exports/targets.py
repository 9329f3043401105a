"""Writing a quantized model as a folder. The folder takes its place when it is whole."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sqbench.errors import UserError, known
from sqbench.exports.compressed import TARGET as COMPRESSED
from sqbench.exports.decoded import TARGET as DECODED
from sqbench.exports.gguf import TARGET as GGUF
from sqbench.exports.runtimes import ONNX, OPENVINO
from sqbench.exports.target import Target
from sqbench.models.base import Model
from sqbench.quant.layers import QuantLayer
from sqbench.storage.locks import Busy, claim

TARGETS: Mapping[str, Target] = {target.name: target for target in (COMPRESSED, GGUF, ONNX, OPENVINO, DECODED)}


def save(model: Model, folder: Path | str, *, format: str = COMPRESSED.name, card: str = "", force: bool = False) -> None:
    """Write a quantized model as a folder that other programs load.

    Args:
        model: as `sqbench.quantize` returns it. It may have computed, but not in integers (`lower`).
        folder: is made. It must not exist, or be empty, unless `force`.
        format: the kind of folder, a key of `TARGETS`.
        card: the content of README.md, in Markdown.

    Raises:
        UserError: the format is unknown, lacks a package or cannot express the model (which layer, which field, what would fit), or
            the folder is not empty.
    """
    target = target_of(format)
    if not any(isinstance(module, QuantLayer) for module in model.module.modules()):
        raise UserError(f"format={format}: {model.name} has no quantized layer")
    with _whole(Path(folder), force) as place:
        target.write(model, place)
        (place / "README.md").write_text(card, encoding="utf-8")


def target_of(name: str) -> Target:
    """The export format of a name. Raises UserError if there is none, or a package that it needs is missing."""
    if name not in TARGETS:
        raise UserError(f"format={name}: {known(name, TARGETS)}")
    TARGETS[name].require()
    return TARGETS[name]


def check_free(folder: Path, *, force: bool) -> None:
    """Raise UserError if something is in the place of a new folder, unless `force`."""
    if folder.exists() and not force and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"out={folder}: is there and not empty; use another folder, or force=true to replace it")


@contextmanager
def _whole(folder: Path, force: bool) -> Iterator[Path]:
    """A folder to fill. It takes its place when it is whole. After an error nothing of it remains.

    What a killed process has left of it is removed.

    Raises:
        UserError: something is in its place, or a live process fills it.
    """
    check_free(folder, force=force)
    place = folder.with_name(f".{folder.name}.part")
    try:
        with claim(folder.with_name(f".{folder.name}.claim")):
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            try:
                yield place
                if folder.exists():
                    shutil.rmtree(folder)
                place.rename(folder)
            finally:
                shutil.rmtree(place, ignore_errors=True)
    except Busy as reason:
        raise UserError(f"out={folder}: {reason}; wait for it, or use another folder") from reason
