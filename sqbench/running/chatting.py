"""The chat template that a point uses: found before anything is loaded, and part of the identity."""

from functools import lru_cache
from pathlib import Path

from sqbench.data import Corpus
from sqbench.data.chat import fingerprint
from sqbench.data.image_splits import stamp
from sqbench.data.text import TextCorpus
from sqbench.errors import UserError
from sqbench.models import Source
from sqbench.models.text_sources import TEMPLATE
from sqbench.running.resolved import Resolved


def chat_of(resolved: Resolved, source: Source, corpus: Corpus) -> dict[str, str]:
    """`chat`: sha256 of the model's chat template, for the identity. Empty if the point uses none.

    Raises:
        UserError: the tokenizer has no chat template, a checkpoint and its parent differ in it, or the model is in no folder.
    """
    asked = _asked(resolved, corpus)
    if asked is None or source.first:  # in a plan, the model may not be there
        return {}
    folders = [] if source.folder is None else [source.folder]
    if source.quantized is not None:
        folders.append(Path(resolved.model.name).expanduser())
    if not folders or not all(folder.is_dir() for folder in folders):
        raise UserError(f"{asked}: needs a model in a folder of Hugging Face layout, and {resolved.model.name} is in none")
    found = {_fingerprint(folder, _state(folder), resolved.model.trust_remote_code, asked) for folder in folders}
    if len(found) > 1:
        raise UserError(f"{asked}: {' and '.join(map(str, folders))} have different chat templates; use one for both")
    return {"chat": found.pop()}


def _asked(resolved: Resolved, corpus: Corpus) -> str | None:
    """The key and the value that ask for a template. None if nothing does."""
    if resolved.evaluation.settings.chats:
        return "eval.chat=true"
    calibrated = not (resolved.recipe.is_float or resolved.recipe.stored) and resolved.calibration.source == "data"
    if calibrated and isinstance(corpus, TextCorpus) and corpus.conversations is not None:
        return f"calibration.path={corpus.conversations}"
    return None


def _state(folder: Path) -> tuple[tuple[Path, int, int], ...]:
    """Size and time of change of the files that a tokenizer and its template come from."""
    return tuple(stamp(path) for pattern in ("*.json", TEMPLATE) for path in sorted(folder.glob(pattern)))


@lru_cache(maxsize=8)
def _fingerprint(folder: Path, state: tuple[tuple[Path, int, int], ...], trust_remote_code: bool, asked: str) -> str:
    """See `sqbench.data.chat.fingerprint`. The tokenizer of a folder that does not change is read once per process."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    return fingerprint(tokenizer, asked, str(folder))
