"""One sweep point, from configuration to record. Read `run_point` top to bottom: it is the data flow of sqbench."""

import logging
import math
import time
import traceback
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf

from sqbench import api, data, models
from sqbench.calibration import Statistics
from sqbench.config import device_of
from sqbench.data import Text, Windows
from sqbench.evaluation import EVALUATIONS, Result
from sqbench.evaluation.baseline import reference
from sqbench.evaluation.statistics import perplexity_difference
from sqbench.methods import configured, scheme_of
from sqbench.models import Source
from sqbench.models.language import LanguageModel
from sqbench.records.claims import Busy
from sqbench.records.identity import identity, point_id
from sqbench.records.outcome import Outcome
from sqbench.records.provenance import Stopwatch, peak_rss_bytes, provenance, reset_peak_rss
from sqbench.records.store import SCHEMA, Store
from sqbench.tracking.wandb import mirror

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Point:
    """A configured point whose files are found and fingerprinted; nothing is loaded yet."""

    cfg: DictConfig
    source: Source
    text: Text
    other: Text | None
    identity: dict[str, Any]

    @property
    def id(self) -> str:
        return point_id(self.identity)

    def __str__(self) -> str:
        method = self.identity["method"]
        alpha = f" alpha={method['alpha']}" if "alpha" in method else ""
        return f"{method['name']} {self.identity['scheme']['name']}{alpha}"


def identify(cfg: DictConfig) -> Point:
    """Find a point's model and text, and work out what it is.

    Raises:
        UserError: either cannot be had, or they do not fit each other.
    """
    source = models.locate(cfg.model)
    api.check_window(cfg, source)
    text, other = data.fetch(cfg.data, cfg.calibration)
    return Point(cfg, source, text, other, identity(cfg, source, text, other))


def run_point(cfg: DictConfig, overrides: list[str], sweep: str | None = None) -> Outcome:
    """Compute one point, unless its record is there, and write the record, whether it succeeds or fails."""
    start = time.perf_counter()
    store, point = Store(cfg.results_dir), identify(cfg)
    if not cfg.force and store.finished(point.id):
        return Outcome(point.id, "skipped", overrides, summary=str(point))
    try:
        with store.claim(point.id):
            if not cfg.force and store.finished(point.id):  # by another process, while we came here
                return Outcome(point.id, "skipped", overrides, summary=str(point))
            with log_file(store.folder(point.id) / "stdout.log"):
                record, samples = compute(point, store, overrides, sweep)
            store.write(record, samples)
    except Busy as reason:
        return Outcome(point.id, "busy", overrides, summary=f"{point}: {reason}")
    except OSError as error:  # a full disk or a folder gone: no record can say so
        return Outcome(
            point.id, "failed", overrides, time.perf_counter() - start, f"cannot write: {error}", f"{point}: cannot write: {error}"
        )
    mirror(
        record,
        samples,
        mode=cfg.tracker.mode,
        project=cfg.tracker.project,
        entity=cfg.tracker.entity,
        results_dir=store.root,
        sweep=sweep or "single",
    )
    seconds = time.perf_counter() - start
    if record["status"] == "failed":
        message = record["error"]["message"]
        return Outcome(point.id, "failed", overrides, seconds, message, f"{point}: {message}")
    return Outcome(point.id, "done", overrides, seconds, summary=f"{point}: perplexity {record['metrics']['perplexity']:.2f}")


def compute(point: Point, store: Store, overrides: list[str], sweep: str | None) -> tuple[dict[str, Any], pd.DataFrame | None]:
    """The record and per-example outcomes of a point; an error inside becomes a failed record."""
    watch = Stopwatch()
    reset_peak_rss()
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "point_id": point.id,
        "status": "ok",
        "error": None,
        "identity": point.identity,
        "config": OmegaConf.to_container(point.cfg, resolve=True),
        "metrics": {},
        "baseline": {},
        "delta": {},
        "quantized": {},
    }
    samples = None
    fingerprints: dict[str, Any] = {"model": point.source.fingerprint, "text": point.text.fingerprint}
    try:
        result, float_result, windows = flow(point, store, watch)
        samples = result.samples
        record.update(
            metrics=result.metrics,
            baseline=float_result.metrics,
            delta={"perplexity": _difference(point.cfg, samples)},
            quantized=result.model.report or {},
        )
        _refuse_nonfinite(record)
        fingerprints["calibration_windows"] = list(windows.at)
    except Exception as error:  # noqa: BLE001 (whatever breaks a point must not break the sweep; it is in the record)
        log.debug("%s", traceback.format_exc())
        trouble = {"type": type(error).__name__, "message": str(error), "traceback": traceback.format_exc()}
        record.update(status="failed", error=trouble, metrics={}, baseline={}, delta={}, quantized={})
        samples = None
    record["cost"] = {
        "seconds": watch.total(),
        "peak_rss_bytes": peak_rss_bytes(),
        "weight_bytes": record["metrics"].get("weight_bytes"),
    }
    record["provenance"] = provenance(fingerprints, overrides, sweep)
    return record, samples


def _refuse_nonfinite(record: dict[str, Any]) -> None:
    """Raise ArithmeticError, naming the place, if a result is NaN or infinite: no record holds such a number."""

    def walk(value: Any, place: str) -> None:
        if isinstance(value, float) and not math.isfinite(value):
            raise ArithmeticError(f"{place} is {value}")
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
            walk(inner, f"{place}.{key}")

    for part in ("metrics", "baseline", "delta", "quantized"):
        walk(record[part], part)


def flow(point: Point, store: Store, watch: Stopwatch) -> tuple[Result, Result, Windows]:
    """Load, calibrate, quantize, evaluate: the result, the float model's, and the windows both saw."""
    cfg, cache = point.cfg, store.root / "cache"
    torch.manual_seed(cfg.seed)
    same_model = (point.source.fingerprint, cfg.model.dtype, str(device_of(cfg.device)), tuple(cfg.model.keep))
    same_windows = (*same_model, point.text, point.other, *cfg.data.values(), *cfg.calibration.values())
    with watch.stage("load"):
        model: LanguageModel = _shared("model", same_model, lambda: models.load(cfg.model, point.source, device_of(cfg.device)))
        windows: Windows = _shared(
            "windows", same_windows, lambda: data.cut(model.tokenizer, point.text, point.other, cfg.data, cfg.calibration)
        )
    with watch.stage("baseline"):
        float_result: Result = _shared("baseline", (*same_windows, cache), lambda: reference(model, windows, cache / "baselines"))
    method = configured(cfg)
    if method.is_float:
        return float_result, float_result, windows
    with watch.stage("calibrate"):
        search = cfg.calibration.search_windows
        statistics: Statistics = _shared(
            "statistics",
            (*same_windows, cache),
            lambda: api.calibrate(model, windows.calibration, search=search, folder=cache / "calibration"),
        )
    with watch.stage("quantize"):
        quantized = api.quantize(model, statistics, method, scheme_of(cfg))
    with watch.stage("evaluate"):
        result = EVALUATIONS[cfg.eval.name](quantized, windows, float_result)
    return result, float_result, windows


def _difference(cfg: DictConfig, samples: pd.DataFrame) -> dict[str, Any]:
    nll, nll_fp = samples["nll"].to_numpy(), samples["nll_fp"].to_numpy()
    return perplexity_difference(nll, nll_fp, resamples=cfg.eval.resamples, level=cfg.eval.level).as_dict()


_slots: dict[str, tuple[Hashable, Any]] = {}


def _shared(slot: str, key: Hashable, make: Callable[[], Any]) -> Any:
    """What points of one process share: the latest value of each slot, made anew when what it depends on changes."""
    if slot not in _slots or _slots[slot][0] != key:
        _slots.pop(slot, None)  # free the old one before the new one is made
        _slots[slot] = (key, make())
    return _slots[slot][1]


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Everything sqbench logs inside the block also goes to a file."""
    handler = logging.FileHandler(path, mode="w", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logger = logging.getLogger("sqbench")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def estimate(point: Point, records: Sequence[dict[str, Any]]) -> float | None:
    """Seconds that a point may take: the median of finished points of its model and method, else of its model; None without any."""
    same_model = [r for r in records if r["status"] == "ok" and r["identity"]["model"] == point.identity["model"]]
    same_method = [r for r in same_model if r["identity"]["method"]["name"] == point.identity["method"]["name"]]
    seconds = sorted(r["cost"]["seconds"]["total"] for r in same_method or same_model)
    return seconds[len(seconds) // 2] if seconds else None
