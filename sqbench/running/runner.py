"""The life of a point: computed within a claim, or skipped, and its record written whether it succeeds or fails."""

import logging
import math
import time
import traceback
from dataclasses import replace
from typing import Any

import pandas as pd

from sqbench.comparison import shortfall
from sqbench.config import RunOptions, device_of
from sqbench.console.quiet import log_file
from sqbench.pipeline.report import share_of
from sqbench.records.outcome import Outcome
from sqbench.records.provenance import Stopwatch, peaks, provenance, reset_peaks
from sqbench.records.record import Record
from sqbench.records.store import Store
from sqbench.reporting.units import number
from sqbench.running import gpus
from sqbench.running.flow import flow
from sqbench.running.point import Point, identify
from sqbench.running.resolved import Resolved
from sqbench.storage.locks import Busy
from sqbench.tracking.wandb import mirror

log = logging.getLogger(__name__)


def run_point(resolved: Resolved, overrides: list[str], sweep: str | None = None) -> Outcome:
    """Compute one point and write its record, whether it succeeds or fails. A finished point is skipped."""
    start = time.perf_counter()
    options, point = resolved.options, identify(resolved)
    store = Store(options.results_dir)
    if not options.force and store.finished(point.id):
        return Outcome(point.id, "skipped", overrides, summary=str(point))
    try:
        with store.claim(point.id):
            if not options.force and store.finished(point.id):  # by another process in the meantime
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
    mirrored(record, samples, options, sweep)
    seconds = time.perf_counter() - start
    if not record.finished:
        message = (record.error or {})["message"]
        return Outcome(point.id, "failed", overrides, seconds, message, f"{point}: {message}")
    metric = record.metric(resolved.evaluation.evaluation.headline(record.metrics))
    shown = number(record.metrics[metric.name], metric)
    return Outcome(point.id, "done", overrides, seconds, summary=f"{point}: {metric.name} {shown}")


def mirrored(record: Record, samples: pd.DataFrame | None, options: RunOptions, sweep: str | None) -> None:
    """Copy a written record to Weights & Biases, as `tracker` says."""
    how, root = options.tracker, Store(options.results_dir).root
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
        asked, evaluation = point.resolved.evaluation, point.resolved.evaluation.evaluation
        differences = evaluation.differences(samples, asked.resamples, asked.level)
        record = replace(
            record,
            metrics=result.metrics,
            declared={name: metric for name, metric in evaluation.declared(samples).items() if name in result.metrics},
            baseline=float_result.metrics if float_result is not None else {},
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
        provenance=provenance(fingerprints, overrides, sweep, gpus.name(device_of(point.resolved.device))),
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
    declared = {metric.name: metric for metric in point.resolved.evaluation.evaluation.metrics}
    return Record(point.id, point.identity, point.resolved.config, declared=declared)


def _refuse_nonfinite(record: Record) -> None:
    """Raise ArithmeticError, naming the place, if a result is NaN or infinite. No record holds such a number."""

    def walk(value: Any, place: str) -> None:
        if isinstance(value, float) and not math.isfinite(value):
            raise ArithmeticError(f"{place} is {value}")
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
            walk(inner, f"{place}.{key}")

    for part in ("metrics", "baseline", "delta", "quantized", "noise"):
        walk(getattr(record, part), part)
