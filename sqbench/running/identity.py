"""The identity of a point. It holds everything that can change a number, and nothing that cannot."""

from collections.abc import Mapping
from typing import Any

from sqbench.config import device_of
from sqbench.data import Corpus
from sqbench.data.images import ImageCorpus
from sqbench.data.labelled_text import LabelledText
from sqbench.models import Source
from sqbench.rounding.peer import Peer
from sqbench.rounding.trained import Qat
from sqbench.running.chatting import chat_of
from sqbench.running.deployable import runtime_of
from sqbench.running.resolved import Resolved
from sqbench.runtimes import RUNTIMES
from sqbench.storage.files import digest

REVISION = 6  # of the code; raised when a change of sqbench changes results
GRAPHS = 2  # of the graphs that are written for runtimes; raised when a change of them changes results there, and nowhere else


def identity(resolved: Resolved, source: Source, corpus: Corpus) -> dict[str, Any]:
    """The identity of a configured point, as plain data.

    A method without alpha has no alpha here. The float model has neither scheme nor calibration. A sweep over a setting that is
    not here is one point. `noise` changes no number of a record and adds others to it. It is part of the identity where it is asked
    for, because a record without noise lacks these numbers.

    Raises:
        UserError: the tool that quantizes is not installed, so it has no version. Or a chat template is needed and missing.
    """
    recipe = resolved.recipe
    calibrated = not (recipe.is_float or recipe.stored)
    evaluated_on, calibrated_on = corpus.identity(resolved.data, resolved.calibration)
    if resolved.propagate:
        calibrated_on["propagate"] = True
    judged_in, calibrated_in = chat_of(resolved, source, corpus, calibrated=calibrated)
    calibrated_on |= calibrated_in
    model: dict[str, Any] = {"weights": source.fingerprint, "dtype": resolved.model.dtype, "keep": sorted(resolved.model.keep)}
    if resolved.kind != "text":
        assert isinstance(corpus, ImageCorpus | LabelledText)
        fitted = {"on": corpus.trained_on(resolved.model.head_images)} if resolved.head != "own" else {}
        model["head"] = {"name": resolved.head, **fitted}
    chosen = {"how": resolved.mixed, "budget": resolved.budget, "widths": sorted(set(resolved.widths))}
    mixed = {"mixed": chosen} if calibrated and resolved.mixed else {}
    training = {}
    if isinstance(recipe.rounding, Qat) and isinstance(corpus, ImageCorpus):
        training = {"training": corpus.trained_on(recipe.rounding.images, resolved.seed)}
    tool = {"tool": dict(recipe.rounding.about())} if isinstance(recipe.rounding, Peer) else {}
    return {
        **training,
        "revision": REVISION,
        "model": model,
        **({"checkpoint": source.quantized.fingerprint} if source.quantized is not None else {}),
        "data": evaluated_on,
        **recipe.about(),
        **tool,
        "scheme": resolved.scheme.as_dict(),
        **mixed,
        "calibration": calibrated_on if calibrated else None,
        "eval": resolved.evaluation.identity() | judged_in,
        "seed": resolved.seed if calibrated else 0,
        **({"noise": resolved.noise} if resolved.noise else {}),
        "backend": resolved.backend if not recipe.is_float else "sim",
        **({"graphs": GRAPHS} if runtime_of(resolved) is not None else {}),
        "device": device_of(resolved.device).type,
    }


def outdated(identity: Mapping[str, Any]) -> str | None:
    """What says that other code computed a point, as a phrase. None if a point of today would have the same numbers."""
    today = {"revision": REVISION, **({"graphs": GRAPHS} if identity.get("backend") in RUNTIMES else {})}
    told = (f"{key} {identity.get(key, 1)}, the code's is {now}" for key, now in today.items() if identity.get(key) != now)
    return next(told, None)


def point_id(identity: dict[str, Any]) -> str:
    """The first 12 hex digits of the sha256 of the canonical identity."""
    return digest(identity)[:12]
