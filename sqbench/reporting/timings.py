"""The speeds of the formats of a study. Points with eval=latency are joined to the points that measured the loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sqbench.records.fields import named
from sqbench.reporting.order import labels
from sqbench.reporting.studies import Study

# Metric -> timed work.
WORKLOADS = {"tokens_per_s": "prompts", "decode_tokens_per_s": "decoding", "images_per_s": "images", "sentences_per_s": "sentences"}
# The fields that decide the speed of a layer. A method changes only the values of weights and scales.
_FORMATS = named(lambda field: field.speed)


@dataclass(frozen=True)
class Timing:
    """A point with eval=latency.

    Attributes:
        speeds: how many times as fast as the float model, by metric.
    """

    method: str
    alpha: str
    backend: str
    device: str
    speeds: Mapping[str, float]


def timings(frame: pd.DataFrame, study: Study, device: str | None) -> dict[tuple[str, ...], list[Timing]]:
    """The timed points of a study's model, by their formats. With `device` None, every device counts."""
    rows = frame[frame["metric"].isin([f"delta_{name}" for name in WORKLOADS]) & (frame["method"] != "fp")]
    rows = rows[rows["model"].isin(set(study.frame["model"]))]
    names = ("point_id", *_FORMATS, "method", "alpha", "backend", "device")
    texts = pd.DataFrame({name: labels(rows[name]) for name in names}, index=rows.index)
    found: dict[tuple[str, ...], dict[str, float]] = {}
    for key, metric, value in zip(texts.itertuples(index=False, name=None), rows["metric"], rows["value"], strict=True):
        if device is None or key[-1].startswith(device):
            found.setdefault(key, {})[metric.removeprefix("delta_")] = float(value)
    by_formats: dict[tuple[str, ...], list[Timing]] = {}
    for (_, *formats, method, alpha, backend, at), speeds in found.items():
        by_formats.setdefault(tuple(formats), []).append(Timing(method, alpha, backend, at, speeds))
    return by_formats


def speeds_of(timings: Mapping[tuple[str, ...], Sequence[Timing]], fields: Mapping[str, Any]) -> tuple[Mapping[str, float], str]:
    """The speeds of the formats of a point, and what they were measured on. A timing of the point's own method is preferred."""
    same = timings.get(tuple(str(fields[name]) for name in _FORMATS), ())
    own = [timing for timing in same if (timing.method, timing.alpha) == (fields["method"], fields["alpha"])]
    if not same:
        return {}, ""
    best = max(own or same, key=lambda timing: max(timing.speeds.values()))
    with_ = "" if own else f", timed with {best.method}"
    return best.speeds, f"backend={best.backend} on {best.device}{with_}"
