"""The identity of a point. It holds everything that can change a number, and nothing that cannot."""

from typing import Any

from omegaconf import DictConfig

from sqbench.config import device_of
from sqbench.data import Corpus
from sqbench.data.images import ImageCorpus
from sqbench.evaluation import evaluation_of
from sqbench.models import LOADERS, Source
from sqbench.recipes.configured import recipe_of, scheme_of
from sqbench.rounding.trained import Qat
from sqbench.storage import digest

REVISION = 4  # of the code; raised when a change of sqbench changes results


def identity(cfg: DictConfig, source: Source, corpus: Corpus) -> dict[str, Any]:
    """The identity of a configured point, as plain data.

    A method without alpha has no alpha here. The float model has neither scheme nor calibration. A sweep over a setting that is
    not here is one point. `noise` changes no number of a record and adds others to it. It is part of the identity where it is asked
    for, because a record without noise lacks these numbers.
    """
    recipe = recipe_of(cfg)
    calibrated = not recipe.is_float
    kind = LOADERS[cfg.model.loader].kind
    evaluated_on, calibrated_on = corpus.identity(cfg.data, cfg.calibration)
    if cfg.calibration.propagate:
        calibrated_on["propagate"] = True
    model: dict[str, Any] = {"weights": source.fingerprint, "dtype": cfg.model.dtype, "keep": sorted(cfg.model.keep)}
    if kind == "images":
        chosen = cfg.head or cfg.model.head
        assert isinstance(corpus, ImageCorpus)
        fitted = {"on": corpus.trained_on(cfg.model.head_images)} if chosen != "own" else {}
        model["head"] = {"name": chosen, **fitted}
    chosen = {"how": cfg.mixed, "budget": cfg.budget, "widths": sorted(set(cfg.widths))}
    mixed = {"mixed": chosen} if calibrated and cfg.mixed else {}
    training = {}
    if isinstance(recipe.rounding, Qat) and isinstance(corpus, ImageCorpus):
        training = {"training": corpus.trained_on(recipe.rounding.images, cfg.seed)}
    return {
        **training,
        "revision": REVISION,
        "model": model,
        "data": evaluated_on,
        **recipe.about(),
        "scheme": scheme_of(cfg).as_dict(),
        **mixed,
        "calibration": calibrated_on if calibrated else None,
        "eval": evaluation_of(cfg.eval, kind).identity(),
        "seed": cfg.seed if calibrated else 0,
        **({"noise": cfg.noise} if cfg.noise else {}),
        "backend": cfg.backend if calibrated else "sim",
        "device": device_of(cfg.device).type,
    }


def point_id(identity: dict[str, Any]) -> str:
    """The first 12 hex digits of the sha256 of the canonical identity."""
    return digest(identity)[:12]
