"""How an encoder's folder says that sentences become vectors: the files of sentence-transformers beside its weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional

from sqbench.errors import UserError, known

# Value of the key of 1_Pooling/config.json that is true -> the name of the pooling here.
MODES = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_max_tokens": "max"}
KNOWN = ("Transformer", "Pooling", "Normalize")  # the kinds of modules that are read here


@dataclass(frozen=True)
class Pooling:
    """The way from the hidden states of a text to its vector.

    Attributes:
        mode: `mean` over the tokens, `cls` (the first token), or `max` over the tokens.
        normalize: whether vectors get the length 1.
        tokens: the most tokens of a text; None leaves that to the tokenizer and the model.
        lower: whether a text is turned into lower case first.
    """

    mode: str = "mean"
    normalize: bool = False
    tokens: int | None = None
    lower: bool = False

    def __call__(self, hidden: Tensor) -> Tensor:
        """Vectors [texts, width] of hidden states [texts, tokens, width] without padding."""
        vector = hidden[:, 0] if self.mode == "cls" else hidden.amax(1) if self.mode == "max" else hidden.mean(1)
        return self._finished(vector)

    def padded(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """The same vectors of hidden states with padding. The mask [texts, tokens] is 0 there."""
        there = mask.unsqueeze(-1)
        if self.mode == "max":
            hidden = hidden.masked_fill(there == 0, float("-inf"))
        if self.mode != "mean":
            return self(hidden)
        there = there.to(hidden.dtype)
        return self._finished((hidden * there).sum(1) / there.sum(1))

    def _finished(self, vector: Tensor) -> Tensor:
        return functional.normalize(vector, dim=-1) if self.normalize else vector


MEAN = Pooling()


def files_of(folder: Path) -> list[Path]:
    """The files of sentence-transformers that lie in folders below an encoder's own. Files beside its weights are not listed."""
    return sorted(folder.glob("*/config.json"))


def pooling_of(folder: Path, place: str) -> Pooling:
    """The pooling of a folder: what its sentence-transformers files say, else the mean.

    Args:
        place: the folder's name in errors: a key and its value.

    Raises:
        UserError: the files ask for something that is not known here, such as a dense layer behind the pooling.
    """
    modules = _read(folder / "modules.json", place)
    if modules is None:
        return Pooling()
    own = _read(folder / "sentence_bert_config.json", place) or {}
    whole = _read(folder / "config_sentence_transformers.json", place) or {}
    if (prompt := whole.get("default_prompt_name")) is not None:
        raise UserError(f"{place}: config_sentence_transformers.json puts the prompt {prompt!r} before every text; remove it there")
    if (score := whole.get("similarity_fn_name") or "cosine") != "cosine":
        raise UserError(f"{place}: config_sentence_transformers.json compares vectors by {score}; must be cosine")
    mode, normalize = "mean", False
    for module in modules:
        kind, path = str(module.get("type")).rpartition(".")[2], str(module.get("path", ""))
        if kind not in KNOWN:
            raise UserError(f"{place}: modules.json holds a module {kind}, which is not read; {known(kind, KNOWN)}")
        if ".." in Path(path).parts or Path(path).is_absolute():
            raise UserError(f"{place}: modules.json names {path}, which is outside of its folder")
        if kind == "Transformer" and path:
            raise UserError(f"{place}: modules.json has its weights in {path}; use model.name={folder / path}")
        if kind == "Pooling":
            mode = _mode(_read(folder / path / "config.json", place) or {}, place)
        normalize |= kind == "Normalize"
    return Pooling(mode, normalize, own.get("max_seq_length"), bool(own.get("do_lower_case")))


def write(pooling: Pooling, width: int, folder: Path) -> None:
    """Write the files of sentence-transformers that `pooling_of` reads. `width` is that of hidden states."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if pooling.normalize else [])]
    paths = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds) if number)]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    for path in paths:
        (folder / path).mkdir(exist_ok=True)
    modes = {key: name == pooling.mode for key, name in MODES.items()}
    own = {"max_seq_length": pooling.tokens, "do_lower_case": pooling.lower}
    for name, content in (
        ("modules.json", modules),
        (f"{paths[1]}/config.json", {"word_embedding_dimension": width, **modes}),
        ("sentence_bert_config.json", own),
    ):
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")


def _mode(told: dict[str, Any], place: str) -> str:
    chosen = [told["pooling_mode"]] if "pooling_mode" in told else [key for key, value in told.items() if _asked(key, value)]
    names = [MODES.get(str(key), str(key)) for key in chosen]
    if len(names) != 1 or names[0] not in MODES.values():
        raise UserError(f"{place}: its pooling is {' and '.join(names) or 'not said'}; must be one of {', '.join(MODES.values())}")
    return names[0]


def _asked(key: str, value: Any) -> bool:
    return key.startswith("pooling_mode_") and value is True


def _read(path: Path, place: str) -> Any:
    """The content of a JSON file. None if there is none."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{place}: {path} cannot be read as JSON ({error})") from error
