"""One sweep point, from configuration to record. Read `run_point` top to bottom: it is the data flow of sqbench."""

import gc
import logging
import math
import time
import traceback
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf

from sqbench import api, assembly, data, gpus, models, training
from sqbench.calibration import Statistics, uncollected
from sqbench.comparison import shortfall
from sqbench.config import device_of
from sqbench.data import Corpus, Examples
from sqbench.evaluation import EVALUATIONS, Result, evaluation_of, noise
from sqbench.evaluation.baseline import reference
from sqbench.execution import lower
from sqbench.locks import Busy
from sqbench.models import Model, Source
from sqbench.needs import collected_for
from sqbench.pipeline.report import share_of
from sqbench.planning import planning
from sqbench.quiet import log_file
from sqbench.recipes.configured import recipe_of, scheme_of
from sqbench.recipes.task import Task
from sqbench.records.fields import called
from sqbench.records.identity import identity, point_id
from sqbench.records.outcome import Outcome
from sqbench.records.provenance import Stopwatch, peaks, provenance, reset_peaks
from sqbench.records.record import Record
from sqbench.records.store import Store
from sqbench.reporting.units import number
from sqbench.rounding.trained import Qat
from sqbench.storage import digest
from sqbench.tracking.wandb import mirror

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Point:
    """A configured point. Its files are found and fingerprinted, and nothing is loaded yet."""

    cfg: DictConfig
    source: Source
    corpus: Corpus
    identity: dict[str, Any]

    @property
    def id(self) -> str:
        return point_id(self.identity)

    @property
    def first(self) -> str:
        """The step that must come before the point has an id, for a plan. Empty if there is none."""
        return self.source.first or self.corpus.first

    def __str__(self) -> str:
        method = self.identity["method"]
        alpha = f" alpha={method['alpha']}" if "alpha" in method else ""
        layers = f" layers={','.join(self.identity['scheme'].get('layers', ()))}".removesuffix(" layers=")
        return f"{called(self.identity)} {self.identity['scheme']['name']}{alpha}{layers}"


def identify(cfg: DictConfig) -> Point:
    """Find a point's model and data, and compute its identity. With `plan=true` nothing is trained or downloaded for it.

    Raises:
        UserError: the model or the data is not available, or they do not fit each other.
    """
    with planning(cfg.plan):
        source, corpus = models.locate(cfg.model), data.fetch(cfg.data, cfg.calibration)
    assembly.check_window(cfg, source)
    assembly.check_sizes(cfg, source)
    return Point(cfg, source, corpus, identity(cfg, source, corpus))


def run_point(cfg: DictConfig, overrides: list[str], sweep: str | None = None) -> Outcome:
    """Compute one point and write its record, whether it succeeds or fails. A finished point is skipped."""
    start = time.perf_counter()
    store, point = Store(cfg.results_dir), identify(cfg)
    if not cfg.force and store.finished(point.id):
        return Outcome(point.id, "skipped", overrides, summary=str(point))
    try:
        with store.claim(point.id):
            if not cfg.force and store.finished(point.id):  # by another process in the meantime
                return Outcome(point.id, "skipped", overrides, summary=str(point))
            with log_file(store.folder(point.id) / "stdout.log"):
                record, samples = compute(point, store, overrides, sweep)
            store.write(record, samples)
    except Busy as reason:
        return Outcome(point.id, "busy", overrides, summary=f"{point}: {reason}")
    except OSError as error:  # a full disk or a missing folder: no record can be written
        return Outcome(
            point.id, "failed", overrides, time.perf_counter() - start, f"cannot write: {error}", f"{point}: cannot write: {error}"
        )
    mirrored(record, samples, cfg, sweep)
    seconds = time.perf_counter() - start
    if not record.finished:
        message = (record.error or {})["message"]
        return Outcome(point.id, "failed", overrides, seconds, message, f"{point}: {message}")
    metric = record.metric(EVALUATIONS[point.identity["eval"]["name"]].headline(record.metrics))
    shown = number(record.metrics[metric.name], metric)
    return Outcome(point.id, "done", overrides, seconds, summary=f"{point}: {metric.name} {shown}")


def mirrored(record: Record, samples: pd.DataFrame | None, cfg: DictConfig, sweep: str | None) -> None:
    """Copy a written record to Weights & Biases, as `cfg.tracker` says."""
    how, root = cfg.tracker, Store(cfg.results_dir).root
    mirror(record, samples, mode=how.mode, project=how.project, entity=how.entity, results_dir=root, sweep=sweep or "single")


def compute(point: Point, store: Store, overrides: list[str], sweep: str | None) -> tuple[Record, pd.DataFrame | None]:
    """The record and per-example outcomes of a point. An error inside becomes a failed record."""
    watch = Stopwatch()
    reset_peaks()
    record, samples = _blank(point), None
    fingerprints: dict[str, Any] = {"model": point.source.fingerprint, **point.corpus.fingerprints()}
    try:
        result, float_result, examples = flow(point, store, watch)
        samples = result.samples
        evaluation, how = EVALUATIONS[point.identity["eval"]["name"]], point.identity["eval"]
        differences = evaluation.differences(samples, how["resamples"], how["level"])
        record = replace(
            record,
            metrics=result.metrics,
            declared={name: metric for name, metric in evaluation.declared(samples).items() if name in result.metrics},
            baseline=float_result.metrics,
            delta={metric: difference.as_dict() for metric, difference in differences.items()},
            share=share_of(result.model.report or {}),
            quantized=result.model.report or {},
            noise=result.noise or {},
        )
        _refuse_nonfinite(record)
        if caution := shortfall(record.delta.get(evaluation.headline(result.metrics), {})):
            log.debug("%s", caution)  # in the point's own log: the sweep says it once, at its end
        fingerprints |= {**examples.about(), "evaluated": len(samples)}
    except Exception as error:  # noqa: BLE001 (whatever breaks a point must not break the sweep; it is in the record)
        log.debug("%s", traceback.format_exc())
        trouble = {"type": type(error).__name__, "message": str(error), "traceback": traceback.format_exc()}
        record, samples = replace(_blank(point), status="failed", error=trouble), None
    return replace(
        record,
        cost={"seconds": watch.total(), **peaks(), "weight_bytes": record.metrics.get("weight_bytes")},
        provenance=provenance(fingerprints, overrides, sweep, gpus.name(device_of(point.cfg.device))),
    ), samples


def broken(point: Point, error: dict[str, str], overrides: list[str], sweep: str | None, seconds: float, device: str) -> Record:
    """The failed record of a point whose process could not write one."""
    return replace(
        _blank(point),
        status="failed",
        error=error,
        cost={"seconds": {"total": round(seconds, 3)}, "peak_rss_bytes": None, "weight_bytes": None},
        provenance=provenance({"model": point.source.fingerprint, **point.corpus.fingerprints()}, overrides, sweep, device),
    )


def _blank(point: Point) -> Record:
    """The record of a point before it has any result, with the metrics that its evaluation declares beforehand."""
    config: dict[str, Any] = OmegaConf.to_container(point.cfg, resolve=True)  # type: ignore[assignment]
    declared = {metric.name: metric for metric in EVALUATIONS[point.identity["eval"]["name"]].metrics}
    return Record(point.id, point.identity, config, declared=declared)


def checkpoint_of(store: Store, point: Point) -> Path:
    """The file from which a killed training resumes. It is kept afterwards, because trained weights are costly."""
    return store.folder(point.id) / "checkpoint.safetensors"


def _refuse_nonfinite(record: Record) -> None:
    """Raise ArithmeticError, naming the place, if a result is NaN or infinite. No record holds such a number."""

    def walk(value: Any, place: str) -> None:
        if isinstance(value, float) and not math.isfinite(value):
            raise ArithmeticError(f"{place} is {value}")
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
            walk(inner, f"{place}.{key}")

    for part in ("metrics", "baseline", "delta", "quantized", "noise"):
        walk(getattr(record, part), part)


def flow(point: Point, store: Store, watch: Stopwatch) -> tuple[Result, Result, Examples]:
    """Load, calibrate, quantize or train, and evaluate. Return the result, the float model's result, and the examples of both."""
    cfg = point.cfg
    cache = store.root / "cache" if cfg.cache_dir is None else Path(cfg.cache_dir).expanduser()
    torch.manual_seed(cfg.seed)
    same_examples = (*_same_weights(point), digest([*point.corpus.identity(cfg.data, cfg.calibration)]))
    same_model = (*same_examples, digest(point.identity["model"]), cache)
    with watch.stage("load"):
        bare = _weights(point)
        examples: Examples = _shared("examples", same_examples, lambda: assembly.examples_of(point.corpus, bare, point.source, cfg))
        model: Model = _shared("model", same_model, lambda: assembly.with_head(bare, examples, cfg, cache / "heads"))
    recipe, scheme = recipe_of(cfg), scheme_of(cfg)
    model.topology.restricted(scheme.layers)  # a pattern that names no layer must fail before anything is computed
    name = point.identity["eval"]["name"]
    asked = evaluation_of(cfg.eval, model.kind)
    evaluation, settings = asked.evaluation, asked.used()
    judged = settings | ({"inputs": inputs} if (inputs := asked.settings.inputs()) else {})
    with watch.stage("baseline"):
        swift: Model = _shared("swift", same_model, lambda: lower(model, "sim"))  # the same on this machine's faster float kernel
        beside = swift if evaluation.beside is None else model  # speed is compared with plain torch
        float_result: Result = _shared(
            "baseline",
            (*same_model, name, digest(judged)),
            lambda: reference(beside, examples, name, cache / "baselines", **judged),
        )

    def told(result: Result, quantized: Model | None) -> Result:
        """The result, with the noise of its numbers if `noise` is set."""
        if not cfg.noise:
            return result
        with watch.stage("noise"):
            found = noise.measure(name, judged, examples, swift, float_result, quantized, cfg.noise, cache / "noise")
        return replace(result, noise=found)

    if recipe.is_float and evaluation.beside is None:
        return told(float_result, None), float_result, examples
    if recipe.is_float:
        with watch.stage("evaluate"):
            result = evaluation.run(model, examples, float_result, **settings)
        return result, result.baseline or result, examples
    with watch.stage("calibrate"):
        search, inside, needs = assembly.search_size(cfg, model), scheme.ops != "linear", collected_for(cfg)
        kept = cache / "calibration"
        statistics: Statistics = _shared(
            "statistics",
            (*same_model, search, inside, needs, cfg.calibration.propagate),
            lambda: (
                uncollected(examples.calibration, search)  # each block's are collected when it is quantized
                if cfg.calibration.propagate
                else api.calibrate(swift, examples.calibration, needs=needs, search=search, points=inside, folder=kept)
            ),
        )
    allocation = None
    if cfg.mixed is not None:
        with watch.stage("allocate"):
            folder = cache / "damage"
            allocation = api.allocate(model, statistics, scheme, cfg.budget, cfg.widths, run=swift, folder=folder)
        scheme = allocation.applied(scheme)
    if isinstance(recipe.rounding, Qat):
        with watch.stage("train"):
            checkpoint = checkpoint_of(store, point)
            if cfg.force:
                checkpoint.unlink(missing_ok=True)
            task = Task(model, statistics, scheme)
            images = assembly.training_images(examples, cfg)
            quantized = training.fit(task, recipe.rounding, images, seed=cfg.seed, checkpoint=checkpoint)
    else:
        with watch.stage("quantize"):
            quantized = api.quantize(model, statistics, recipe, scheme, propagate=cfg.calibration.propagate)
    if allocation is not None:
        quantized = quantized.with_module(quantized.module, {**quantized.report, "allocation": allocation.about()})
    with watch.stage("lower"):
        quantized = lower(quantized, cfg.backend)
    with watch.stage("evaluate"):
        result = evaluation.run(quantized, examples, float_result, **settings)
    return told(result, quantized), result.baseline or float_result, examples


def groups_of(point: Point) -> list[tuple[str, ...]]:
    """Patterns that each name one group of sibling layers of the point's model. The model is loaded for this."""
    topology = assembly.backbone(_weights(point), point.cfg).topology
    return [(name,) if topology.chosen((name,)) == layers else layers for name, layers in topology.siblings.items()]


def _same_weights(point: Point) -> tuple[Hashable, ...]:
    cfg = point.cfg
    return point.source.fingerprint, cfg.model.dtype, str(device_of(cfg.device)), tuple(cfg.model.keep), cfg.blockwise


def _weights(point: Point) -> Model:
    """The loaded model, shared by the points of a process that use the same weights."""
    model: Model = _shared("weights", _same_weights(point), lambda: assembly.read(point.source, point.cfg))
    return model


def forget() -> None:
    """Free the objects that the points of this process share, and the GPU memory that torch caches."""
    _slots.clear()
    gc.collect()  # modules with hooks form reference cycles
    torch.cuda.empty_cache()


_slots: dict[str, tuple[Hashable, Any]] = {}


def _shared(slot: str, key: Hashable, make: Callable[[], Any]) -> Any:
    """The value of a slot, which the points of one process share. It is made again when its key changes."""
    if slot not in _slots or _slots[slot][0] != key:
        if slot in _slots:  # first free the old value and those made from it, which hold it too
            for later in list(_slots)[list(_slots).index(slot) :]:
                del _slots[later]
        _slots[slot] = (key, make())
    return _slots[slot][1]
