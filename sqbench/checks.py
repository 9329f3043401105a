"""Checks of a configuration. They run before anything is loaded, and an error names similar values."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from sqbench.config import EACH, device_of
from sqbench.errors import UserError, known

if TYPE_CHECKING:
    from sqbench.quant.formats import Scheme
    from sqbench.recipes.recipe import Recipe


def check(cfg: DictConfig) -> None:
    """Raise UserError for any value that cannot work, without loading anything."""
    from sqbench.data import SOURCES
    from sqbench.data.base import CALIBRATES
    from sqbench.evaluation import evaluation_of
    from sqbench.execution import BACKENDS
    from sqbench.models import LOADERS
    from sqbench.models.image import HEADS
    from sqbench.recipes.configured import methods_at_hand, recipe_of, scheme_of

    def choose(key: str, names: object) -> None:
        value = OmegaConf.select(cfg, key)
        if value not in names:  # type: ignore[operator]
            raise UserError(f"{key}={value}: {known(str(value), names)}")

    def at_least(key: str, least: int) -> None:
        value = OmegaConf.select(cfg, key)
        if value < least:
            raise UserError(f"{key}={value}: must be {least} or more")

    _refuse_unknown(cfg)
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        hint = "give a hub id or a local folder" if missing[0] == "model.name" else "it has no default"
        raise UserError(f"{missing[0]}=???: needs a value; {hint}")
    if cfg.bits.name == "auto" and (cfg.bits.weights is not None or cfg.bits.activations is not None):
        changed = "bits.weights" if cfg.bits.weights is not None else "bits.activations"
        raise UserError(
            f"{changed}: bits=auto is the method's own scheme and has no fields; name the scheme to change, for example bits=w4a16"
            f" {changed}.bits=3"
        )
    choose("method.name", methods_at_hand())
    choose("model.loader", LOADERS)
    choose("data.source", SOURCES)
    kind, found = LOADERS[cfg.model.loader].kind, SOURCES[cfg.data.source].kind
    if kind != found:
        fitting = sorted(name for name, source in SOURCES.items() if source.kind == kind)
        raise UserError(f"data={cfg.data.name}: {cfg.model.name} reads {kind}, and this is {found}; use data={', '.join(fitting)}")
    judged = evaluation_of(cfg.eval, kind, cfg.model.name)
    judged.check()
    recipe = recipe_of(cfg)
    if recipe.trains and kind != "images":
        raise UserError(f"method={cfg.method.name}: trains on labelled images, and {cfg.model.name} reads {kind}; use a PTQ method")
    if cfg.head is not None:
        choose("head", HEADS)
    choose("model.head", HEADS)
    choose("model.dtype", ("float32", "bfloat16", "float16"))
    choose("calibration.source", CALIBRATES)
    choose("tracker.mode", ("offline", "online", "disabled"))
    choose("backend", BACKENDS)
    at_least("retry", 0)
    if cfg.noise != 0:
        at_least("noise", 2)
        if judged.evaluation.beside is not None:
            raise UserError(f"noise={cfg.noise}: eval={judged.name} measures time, which has its own spread; use noise=0")
    if cfg.threads is not None:
        at_least("threads", 1)
    for key in ("limits.seconds", "limits.memory_gb"):
        if (limit := OmegaConf.select(cfg, key)) is not None and limit <= 0:
            raise UserError(f"{key}={limit:g}: must be more than 0, or null for no limit")
        if limit is not None and cfg.isolate is False:
            raise UserError(f"{key}={limit:g}: only a child process can be ended; leave out isolate=false")
    at_least("data.window", 2)
    at_least("data.windows", 1)
    if cfg.data.bos != "auto" and not isinstance(cfg.data.bos, bool):
        raise UserError(f"data.bos={cfg.data.bos}: must be auto, true or false")
    if cfg.data.images is not None:
        at_least("data.images", 1)
    if (samples := cfg.calibration.samples) is not None:
        at_least("calibration.samples", 1)
        size = {"text": "windows", "images": "images"}[kind]
        if (count := cfg.calibration[size]) != samples:
            raise UserError(f"calibration.samples={samples}: calibration.{size}={count} says otherwise; use one of the two")
    at_least("calibration.images", 1)
    at_least("calibration.search_images", 1)
    at_least("model.head_images", 1)
    at_least("calibration.windows", 1)
    at_least("calibration.search_windows", 1)
    for key in ("seed", "calibration.seed"):
        if not -(2**63) <= OmegaConf.select(cfg, key) < 2**63:
            raise UserError(f"{key}={OmegaConf.select(cfg, key)}: must be a number of 64 bits")
    if cfg.layers == EACH:
        raise UserError(f"layers={EACH}: stands for many points, one for each group of layers; a sweep (-m) runs them")
    scheme = scheme_of(cfg)
    scheme.check()
    recipe.check(scheme)
    if cfg.calibration.source == "weights" and scheme.ops != "linear":
        raise UserError(f"bits.ops={scheme.ops}: calibration.source=weights says nothing of what is between layers; use linear")
    check_mixed(cfg)
    check_blockwise(cfg, kind)
    check_propagate(cfg, recipe, scheme)
    device_of(cfg.device)
    if kind == "images" and cfg.calibration.path is not None:
        raise UserError(f"calibration.path={cfg.calibration.path}: images calibrate from the training split; use null")
    takes = {"data.path": SOURCES[cfg.data.source].takes, "data.train_path": SOURCES[cfg.data.source].takes}
    for key in ("data.path", "data.train_path", "calibration.path", "model.checkpoint"):
        path, allowed = OmegaConf.select(cfg, key), takes.get(key, ("file",))
        if path is None or (Path(path).is_file() and "file" in allowed) or (Path(path).is_dir() and "folder" in allowed):
            continue
        works = " or ".join({"file": "a file", "folder": "a folder"}[item] for item in allowed)
        works = "a UTF-8 text file" if kind == "text" and key != "model.checkpoint" else works or "null"
        there = "a folder" if Path(path).is_dir() else "a file" if Path(path).exists() else None
        raise UserError(f"{key}={path}: " + (f"is {there}; use {works}" if there else f"no such file (from {Path.cwd()})"))


def _refuse_unknown(node: DictConfig, place: str = "") -> None:
    """Raise UserError for a key that nothing reads. Hydra accepts any key after a `+`."""
    kind = OmegaConf.get_type(node)
    names = [field.name for field in fields(kind)] if is_dataclass(kind) else None  # a method's are checked by the method
    for key in map(str, node):
        if names is not None and key not in names:
            raise UserError(f"{place}{key}: {known(key, names)}")
        if not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig):
            _refuse_unknown(node[key], f"{place}{key}.")


def check_blockwise(cfg: DictConfig, kind: str) -> None:
    """Raise UserError for settings of `blockwise=true` that need the whole model in memory."""
    from sqbench.evaluation import natural_evaluation
    from sqbench.recipes.configured import scheme_of

    if not cfg.blockwise:
        return
    if kind != "text":
        raise UserError(f"blockwise=true: is for language models, {cfg.model.name} reads {kind}; use blockwise=false")
    if (name := natural_evaluation(cfg.eval.name, kind)) != "perplexity":
        raise UserError(f"eval={name}: runs the model many times over, and blockwise=true reads it each time; use eval=perplexity")
    if cfg.mixed is not None:
        raise UserError(f"mixed={cfg.mixed}: measures the whole model once for each group of layers; use blockwise=false")
    if (ops := scheme_of(cfg).ops) != "linear":
        raise UserError(f"bits.ops={ops}: tensors between layers are not told apart block by block; use bits.ops=linear")
    if cfg.calibration.source == "weights":
        raise UserError("calibration.source=weights: is not made for blockwise=true; use data or random")


def check_propagate(cfg: DictConfig, recipe: "Recipe", scheme: "Scheme") -> None:
    """Raise UserError for settings that do not go with `calibration.propagate=true`."""
    if not cfg.calibration.propagate or recipe.is_float or scheme.is_float:
        return
    asked, instead = "calibration.propagate=true", "use calibration.propagate=false"
    if recipe.trains:
        raise UserError(f"{asked}: method={recipe.name} trains the whole model at once; {instead}")
    if scheme.ops != "linear":
        raise UserError(f"{asked}: tensors between layers are not told apart block by block; use bits.ops=linear")
    if cfg.calibration.source == "weights":
        raise UserError(f"{asked}: calibration.source=weights reads no input; {instead}")
    if cfg.mixed is not None:
        raise UserError(f"{asked}: mixed={cfg.mixed} chooses widths from what the float model reads; {instead}")


def check_mixed(cfg: DictConfig) -> None:
    """Raise UserError for a mixed-precision choice that cannot work."""
    from sqbench.recipes.configured import is_float, scheme_of

    if cfg.mixed not in (None, "auto"):
        raise UserError(f"mixed={cfg.mixed}: must be auto, or null for one width in all layers")
    if not cfg.widths or not all(2 <= bits <= 8 for bits in cfg.widths):
        raise UserError(f"widths={cfg.widths}: must be numbers of bits from 2 to 8, [2,3,4,6,8] for example")
    least, most = min(cfg.widths), max(cfg.widths)
    if cfg.budget is not None and not least <= cfg.budget <= most:
        raise UserError(f"budget={cfg.budget}: must be an average of widths={cfg.widths}, from {least} to {most}")
    if cfg.mixed is None or is_float(cfg):
        return
    if cfg.budget is None:
        raise UserError("mixed=auto: needs budget=..., the bits per weight on average, 4.5 for example")
    scheme = scheme_of(cfg)
    if scheme.weights is None:
        raise UserError(f"mixed=auto: bits={scheme.name} leaves weights in float; use bits=w4a16, for example")
    if scheme.edge_bits is not None:
        raise UserError(f"mixed=auto: chooses the bits of every layer; bits.edge_bits={scheme.edge_bits} does not go with it")
