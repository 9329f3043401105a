"""A model folder in Hugging Face layout, described by its JSON files and the headers of its weights. No weight is read."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sqbench.errors import UserError, counted

# Names of the longest window of tokens in config.json. Model families use different ones.
CONTEXTS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "max_sequence_length", "seq_length", "context_length")
# Keys of the language model's part in a configuration that describes several networks.
INNER = ("text_config", "llm_config", "language_config")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Stored:
    """One tensor of a file: its shape, and its dtype as safetensors writes it (F32, BF16, I8, F8_E4M3, ...)."""

    file: Path
    shape: tuple[int, ...]
    dtype: str

    @property
    def is_wide_float(self) -> bool:
        """Whether it holds floating-point numbers of 16 bits or more."""
        return self.dtype in ("F16", "BF16", "F32", "F64")


def read_config(folder: Path, place: str) -> dict[str, Any]:
    """The content of config.json.

    Args:
        place: the folder's name in errors: a key and its value.

    Raises:
        UserError: the file is missing, or holds no JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{place}: {folder} has no config.json, so it is no Hugging Face model folder")
    return _json(path, place, "model configuration")


def configs(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a configuration, and the part for its language model if it describes several networks."""
    yield config
    yield from (config[key] for key in INNER if isinstance(config.get(key), dict))


def context_of(config: dict[str, Any]) -> int | None:
    """The longest window of tokens that the model takes; None if its configuration does not say."""
    said = (part.get(name) for part in configs(config) for name in CONTEXTS)
    return next((length for length in said if isinstance(length, int) and length > 0), None)


def weight_files(folder: Path, config: dict[str, Any], place: str) -> list[Path]:
    """The files that transformers reads weights from.

    Raises:
        UserError: there are no such files, some are missing, or there are two sets of them.
    """
    named = config.get("transformers_weights")
    names = [name for name in ((named,) if named else (SINGLE, INDEX)) if (folder / name).is_file()]
    if len(names) > 1:
        raise UserError(f"{place}: {folder} holds its weights twice, in {SINGLE} and in the files of {INDEX}; use one of the two")
    if not names:
        gguf = " (GGUF files are read by model=checkpoint)" if any(folder.glob("*.gguf")) else ""
        what = f"no {named or f'{SINGLE} and no {INDEX}'}" if any(folder.glob("*.safetensors")) else "no *.safetensors"
        raise UserError(f"{place}: {folder} has {what}{gguf} (pickled .bin weights are not loaded; convert them once)")
    _check_inside(names, place)
    if not names[0].endswith(".json"):
        return [folder / names[0]]
    index = _json(folder / names[0], place, "index of weights").get("weight_map")
    if not isinstance(index, dict) or not index:
        raise UserError(f"{place}: {folder / names[0]} is no index of weights (it has no weight_map)")
    files = sorted({str(file) for file in index.values()})
    _check_inside(files, place)
    if lost := [file for file in files if not (folder / file).is_file()]:
        raise UserError(f"{place}: {folder} lacks {counted(lost, f'of the {len(files)} files that {names[0]} names')}")
    return [folder / file for file in files]


def _check_inside(names: Iterable[str], place: str) -> None:
    """Raise UserError if the name of a file leads out of its folder."""
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{place}: its weights are said to be in {name}, which is outside of its folder")


def stored(files: Iterable[Path], place: str) -> dict[str, Stored]:
    """Name -> tensor, for all tensors in these files.

    Raises:
        UserError: a file is no complete safetensors file, or two of them hold a tensor of the same name.
    """
    found: dict[str, Stored] = {}
    twice: list[str] = []
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (it is no dict)
                    part = opened.get_slice(name)
                    twice += [name] * (name in found)
                    found[name] = Stored(file, tuple(part.get_shape()), part.get_dtype())
        except (OSError, SafetensorError) as error:
            raise UserError(f"{place}: {file} is no complete safetensors file ({error})") from error
    if twice:
        raise UserError(f"{place}: its files hold {counted(twice, 'tensors twice')}; use a folder that save_pretrained wrote")
    return found


def metadata(files: Iterable[Path]) -> dict[str, str]:
    """What the headers of safetensors files say besides their tensors."""
    found: dict[str, str] = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            found |= opened.metadata() or {}
    return found


def _json(path: Path, place: str, what: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{place}: {path} is no {what} ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{place}: {path} is no {what} (it holds a {type(content).__name__})")
    return content
