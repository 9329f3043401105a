"""Checks of a parsed configuration. They run before anything is loaded, and an error names similar values."""

from collections.abc import Iterable
from pathlib import Path

from sqbench.config import SIZES, CalibrationConfig, DataConfig, RunOptions, device_of
from sqbench.data import SOURCES
from sqbench.data.base import CALIBRATES
from sqbench.data.mixes import check_mix
from sqbench.data.transforms import Transform
from sqbench.errors import UserError, known
from sqbench.execution import BACKENDS
from sqbench.models.image import HEADS
from sqbench.recipes.configured import methods_at_hand
from sqbench.running.deployable import check_runtime
from sqbench.running.resolved import Resolved

CHECKPOINT = "checkpoint"  # the loader of quantized checkpoints


def check(resolved: Resolved) -> None:
    """Raise UserError for any value that cannot work, without loading anything."""
    recipe, scheme, judged = resolved.recipe, resolved.scheme, resolved.evaluation
    model, data, calibration, options = resolved.model, resolved.data, resolved.calibration, resolved.options
    kind = resolved.kind
    _choose("method.name", recipe.name, methods_at_hand())
    judged.check()
    if recipe.trains and kind != "images":
        raise UserError(f"method={recipe.name}: trains on labelled images, and {model.name} reads {kind}; use a PTQ method")
    _choose("model.head", model.head, HEADS)
    _choose("head", resolved.head, HEADS)
    _choose("model.dtype", model.dtype, ("float32", "bfloat16", "float16"))
    _choose("calibration.source", calibration.source, CALIBRATES)
    _choose("tracker.mode", options.tracker.mode, ("offline", "online", "disabled"))
    _choose("backend", resolved.backend, BACKENDS)
    if resolved.noise != 0:
        _at_least("noise", resolved.noise, 2)
        if judged.evaluation.beside is not None:
            raise UserError(f"noise={resolved.noise}: eval={judged.name} measures time, which has its own spread; use noise=0")
    _check_options(options)
    _check_data(data)
    _check_calibration(calibration, kind)
    _at_least("model.head_images", model.head_images, 1)
    for key, seed in (("seed", resolved.seed), ("calibration.seed", calibration.seed)):
        if not -(2**63) <= seed < 2**63:
            raise UserError(f"{key}={seed}: must be a number of 64 bits")
    scheme.check()
    for slot, fmt in (("embedding", scheme.embedding), ("head", scheme.head)):
        if fmt is not None and kind == "images":
            raise UserError(f"bits.{slot}: must be null; a model of images has no tokens, and its own head is one of its layers")
    recipe.check(scheme)
    if calibration.source == "weights" and scheme.ops != "linear":
        raise UserError(f"bits.ops={scheme.ops}: calibration.source=weights says nothing of what is between layers; use linear")
    check_runtime(resolved)
    _check_stored(resolved)
    _check_foreign(resolved)
    _check_mixed(resolved)
    _check_blockwise(resolved)
    _check_propagate(resolved)
    device_of(resolved.device)
    _check_paths(resolved)


def _choose(key: str, value: str, names: Iterable[str]) -> None:
    if value not in names:
        raise UserError(f"{key}={value}: {known(value, names)}")


def _at_least(key: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"{key}={value}: must be {least} or more")


def _check_options(options: RunOptions) -> None:
    _at_least("retry", options.retry, 0)
    if options.threads is not None:
        _at_least("threads", options.threads, 1)
    for key, limit in (("limits.seconds", options.limits.seconds), ("limits.memory_gb", options.limits.memory_gb)):
        if limit is not None and limit <= 0:
            raise UserError(f"{key}={limit:g}: must be more than 0, or null for no limit")
        if limit is not None and options.isolate is False:
            raise UserError(f"{key}={limit:g}: only a child process can be ended; leave out isolate=false")


def _check_data(data: DataConfig) -> None:
    _at_least("data.window", data.window, 2)
    _at_least("data.windows", data.windows, 1)
    if data.bos != "auto" and not isinstance(data.bos, bool):
        raise UserError(f"data.bos={data.bos}: must be auto, true or false")
    Transform.of(data.transform)
    for key in ("images", "sentences"):
        if (count := getattr(data, key)) is not None:
            _at_least(f"data.{key}", count, 1)


def _check_calibration(calibration: CalibrationConfig, kind: str) -> None:
    if (samples := calibration.samples) is not None:
        _at_least("calibration.samples", samples, 1)
        size = SIZES[kind]
        if (count := getattr(calibration, size)) != samples:
            raise UserError(f"calibration.samples={samples}: calibration.{size}={count} says otherwise; use one of the two")
    for key in SIZES.values():
        _at_least(f"calibration.{key}", getattr(calibration, key), 1)
        _at_least(f"calibration.search_{key}", getattr(calibration, f"search_{key}"), 1)


def _check_paths(resolved: Resolved) -> None:
    """Raise UserError for a path where nothing fitting is."""
    if resolved.kind != "text" and resolved.calibration.path is not None:
        raise UserError(
            f"calibration.path={resolved.calibration.path}: {resolved.kind} calibrate from the training split; use null"
        )
    takes = SOURCES[resolved.data.source].takes
    for key, path, allowed in (
        ("data.path", resolved.data.path, takes),
        ("data.train_path", resolved.data.train_path, takes),
        *(("calibration.path", path, ("file",)) for path in check_mix(resolved.calibration)),
        ("model.checkpoint", resolved.model.checkpoint, ("file",)),
    ):
        if path is None or (Path(path).is_file() and "file" in allowed) or (Path(path).is_dir() and "folder" in allowed):
            continue
        works = " or ".join({"file": "a file", "folder": "a folder"}[item] for item in allowed)
        works = "a UTF-8 text file" if resolved.kind == "text" and key != "model.checkpoint" else works or "null"
        there = "a folder" if Path(path).is_dir() else "a file" if Path(path).exists() else None
        raise UserError(f"{key}={path}: " + (f"is {there}; use {works}" if there else f"no such file (from {Path.cwd()})"))


def _check_stored(resolved: Resolved) -> None:
    """Raise UserError if only one of model and method is of a checkpoint, or if a choice is asked for that it holds."""
    recipe, model = resolved.recipe, resolved.model
    if model.loader != CHECKPOINT:
        if recipe.stored:
            raise UserError(f"method={recipe.name}: reads codes that are stored; use model=checkpoint model.name=FOLDER")
        if model.parent is not None:
            raise UserError(f"model.parent={model.parent}: must be null; it is for model=checkpoint")
        return
    chosen = {
        **dict.fromkeys(recipe.chosen, "..."),
        **({"blockwise": "true"} if resolved.blockwise else {}),
        **{key: "..." for key in ("mixed", "layers", "corrections") if resolved.config[key]},
    }
    if chosen:
        key, value = next(iter(chosen.items()))
        raise UserError(f"{key}={value}: must be left out; a checkpoint is taken as it is")
    if resolved.noise and model.parent is None:
        raise UserError(f"noise={resolved.noise}: compares with a float model; use model.parent=..., or noise=0")
    if not recipe.stored:
        raise UserError(f"method={recipe.name}: {model.name} is quantized already; use method=checkpoint")
    if not resolved.scheme.is_float or resolved.scheme.embedding or resolved.scheme.head:
        raise UserError(f"bits={resolved.scheme.name}: must be auto; a checkpoint has its own formats")


def _check_foreign(resolved: Resolved) -> None:
    """Raise UserError if another tool quantizes the model, and something is asked for that only our own recipes have."""
    recipe, scheme = resolved.recipe, resolved.scheme
    if recipe.rounding is None or not recipe.foreign:
        return
    if resolved.kind != "text":
        raise UserError(f"{recipe.rounding.key}: is for language models, and {resolved.model.name} reads {resolved.kind}")
    if scheme.is_float:
        raise UserError(f"bits={scheme.name}: must have formats of layers; a float model needs no {recipe.rounding.key}")
    chosen = {
        "corrections": bool(recipe.corrections),
        "mixed": resolved.mixed is not None,
        "blockwise": resolved.blockwise,
        "calibration.propagate": resolved.calibration.propagate,
        "calibration.pack": not resolved.calibration.pack,
        "calibration.source": resolved.calibration.source == "weights",
        "bits.ops": scheme.ops != "linear",
        "bits.edge_bits": scheme.edge_bits is not None,
        "bits.embedding": scheme.embedding is not None,
        "bits.head": scheme.head is not None,
        "model.trust_remote_code": resolved.model.trust_remote_code,
    }
    if asked := [key for key, value in chosen.items() if value]:
        raise UserError(
            f"{asked[0]}: must be left out; {recipe.rounding.key} quantizes linear layers of a whole model, nothing else"
        )


def _check_blockwise(resolved: Resolved) -> None:
    """Raise UserError for settings of `blockwise=true` that need the whole model in memory."""
    if not resolved.blockwise:
        return
    if resolved.kind != "text":
        raise UserError(f"blockwise=true: is for language models, {resolved.model.name} reads {resolved.kind}; use blockwise=false")
    if (name := resolved.evaluation.name) != "perplexity":
        raise UserError(f"eval={name}: runs the model many times over, and blockwise=true reads it each time; use eval=perplexity")
    if resolved.mixed is not None:
        raise UserError(f"mixed={resolved.mixed}: measures the whole model once for each group of layers; use blockwise=false")
    if (ops := resolved.scheme.ops) != "linear":
        raise UserError(f"bits.ops={ops}: tensors between layers are not told apart block by block; use bits.ops=linear")
    if resolved.calibration.source == "weights":
        raise UserError("calibration.source=weights: is not made for blockwise=true; use data or random")


def _check_propagate(resolved: Resolved) -> None:
    """Raise UserError for settings that do not go with `calibration.propagate=true`."""
    if not resolved.propagate:
        return
    asked, instead = "calibration.propagate=true", "use calibration.propagate=false"
    if resolved.recipe.trains:
        raise UserError(f"{asked}: method={resolved.recipe.name} trains the whole model at once; {instead}")
    if resolved.scheme.ops != "linear":
        raise UserError(f"{asked}: tensors between layers are not told apart block by block; use bits.ops=linear")
    if resolved.calibration.source == "weights":
        raise UserError(f"{asked}: calibration.source=weights reads no input; {instead}")
    if resolved.mixed is not None:
        raise UserError(f"{asked}: mixed={resolved.mixed} chooses widths from what the float model reads; {instead}")


def _check_mixed(resolved: Resolved) -> None:
    """Raise UserError for a mixed-precision choice that cannot work."""
    budget, widths = resolved.budget, list(resolved.widths)
    if resolved.mixed not in (None, "auto"):
        raise UserError(f"mixed={resolved.mixed}: must be auto, or null for one width in all layers")
    if not widths or not all(2 <= bits <= 8 for bits in widths):
        raise UserError(f"widths={widths}: must be numbers of bits from 2 to 8, [2,3,4,6,8] for example")
    least, most = min(widths), max(widths)
    if budget is not None and not least <= budget <= most:
        raise UserError(f"budget={budget}: must be an average of widths={widths}, from {least} to {most}")
    if resolved.mixed is None or resolved.recipe.is_float:
        return
    if budget is None:
        raise UserError("mixed=auto: needs budget=..., the bits per weight on average, 4.5 for example")
    scheme = resolved.scheme
    if scheme.weights is None:
        raise UserError(f"mixed=auto: bits={scheme.name} leaves weights in float; use bits=w4a16, for example")
    if scheme.edge_bits is not None:
        raise UserError(f"mixed=auto: chooses the bits of every layer; bits.edge_bits={scheme.edge_bits} does not go with it")
    if not scheme.weights.is_integer:
        raise UserError(f"mixed=auto: chooses widths of integers, and weights are {scheme.weights.element} here; use bits=w4a16")
