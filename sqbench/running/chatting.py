"""The chat template that a point uses. It is found before anything is loaded, and is part of the identity."""

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


def chat_of(resolved: Resolved, source: Source, corpus: Corpus, *, calibrated: bool) -> tuple[dict[str, str], dict[str, str]]:
    """`chat`, the sha256 of the model's chat template, for the evaluation and for the calibration of an identity.

    Each is empty if it uses no template.

    Args:
        calibrated: whether the point is calibrated.

    Raises:
        UserError: the tokenizer has no chat template, a checkpoint and its parent differ in it, or the model is in no folder.
    """
    evaluated = "eval.chat=true" if resolved.evaluation.settings.chats else None
    read = None
    if calibrated and isinstance(corpus, TextCorpus) and resolved.calibration.source == "data" and corpus.conversations is not None:
        read = f"calibration.path={corpus.conversations}"
    first, second = (_used(resolved, source, asked) for asked in (evaluated, read))
    return first, second


def _used(resolved: Resolved, source: Source, asked: str | None) -> dict[str, str]:
    """See `chat_of`. `asked` is the key and the value that ask for a template, None if nothing does."""
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


def _state(folder: Path) -> tuple[tuple[Path, int, int], ...]:
    """Size and time of change of the files that a tokenizer and its template come from."""
    return tuple(stamp(path) for pattern in ("*.json", TEMPLATE) for path in sorted(folder.glob(pattern)))


@lru_cache(maxsize=8)
def _fingerprint(folder: Path, state: tuple[tuple[Path, int, int], ...], trust_remote_code: bool, asked: str) -> str:
    """See `sqbench.data.chat.fingerprint`. The tokenizer of a folder that does not change is read once per process."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    return fingerprint(tokenizer, asked, str(folder))
