"""`python -m sqbench.recommend`: which format to use, from the records under results_dir. Its values are in conf/recommend.yaml."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from rich.console import RenderableType
from rich.text import Text

from sqbench.collect import chosen, every, records_of
from sqbench.comparison import Metric
from sqbench.console.answer import reader
from sqbench.console.progress import output
from sqbench.errors import UserError, known
from sqbench.records.store import Store
from sqbench.reporting.advice import advice
from sqbench.reporting.candidates import candidates
from sqbench.reporting.frame import metric_of, metrics_of, results_frame
from sqbench.reporting.recommendation import Wanted, recommend
from sqbench.reporting.studies import Study, studies
from sqbench.reporting.timings import WORKLOADS

DEVICES = ("cpu", "cuda")


@dataclass
class RecommendConfig:
    """The settings of `sqbench.recommend`."""

    results_dir: str = "results"
    max_mb: float | None = None  # of the weights as stored
    max_loss: float | None = None  # loss against float at the worse end of the interval, in the units of the tables
    min_speed: float | None = None  # how many times as fast as the float model
    speed: str | None = None  # of prompts, decoding or images; null: prompts, or images
    metric: str | None = None  # the metric that decides; null: the first in the natural order that the records have
    device: str | None = None  # whose speeds count; null: any
    where: dict[str, Any] = field(default_factory=every)


def recommendations(config: RecommendConfig) -> Iterator[RenderableType]:
    """The recommendations, study by study. Points of different models, data or evaluations belong to different studies.

    Raises:
        UserError: a value cannot work, or there is nothing to choose from.
    """
    wanted = _wanted(config)
    records = {record.point_id: record for record in records_of(config.results_dir, "recommend")}
    everything = results_frame(records.values())
    found = [study for study in studies(chosen(everything, config.where)) if _decides(study, config.metric)]
    if not found:
        raise UserError(_nothing(everything, config))
    store = Store(Path(config.results_dir).expanduser())
    for study in found:
        metric = config.metric or study.metric.name
        among = candidates(study, everything, records, store, metric, config.device)
        images = config.speed is None and any("images_per_s" in one.speeds for one in among.items)
        asked = replace(wanted, speed="images_per_s") if images else wanted
        yield Text(study.label, style="bold")
        yield from advice(among, recommend(among, asked), records)


def _wanted(config: RecommendConfig) -> Wanted:
    """The bounds, checked."""
    for name in ("max_mb", "min_speed"):
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise UserError(f"{name}={value}: must be a number above 0")
    names = {told: name for name, told in WORKLOADS.items()}
    if config.speed is not None and config.speed not in names:
        raise UserError(f"speed={config.speed}: {known(config.speed, names)}")
    if config.device not in (None, *DEVICES):
        raise UserError(f"device={config.device}: must be {' or '.join(DEVICES)}, or null for any")
    return Wanted(config.max_mb, config.max_loss, config.min_speed, names.get(config.speed or "", "tokens_per_s"))


def _decides(study: Study, metric: str | None) -> bool:
    """Whether a study has quantized points with a metric that is neither a speed nor a size."""
    quantized = study.frame[study.frame["method"] != "fp"]
    asked = study.metric if metric is None else metric_of(study.frame, metric)
    return _is_accuracy(asked) and bool((quantized["metric"] == asked.name).any())


def _is_accuracy(metric: Metric) -> bool:
    """Whether a metric can lose by quantization. Speeds and sizes are its gains."""
    return not (metric.speed or metric.exact)


def _nothing(frame: pd.DataFrame, config: RecommendConfig) -> str:
    metrics = metrics_of(frame)
    if config.metric is not None and config.metric not in metrics:
        return f"metric={config.metric}: {known(config.metric, metrics)}"
    if config.metric is not None:
        fitting = [name for name, metric in metrics.items() if _is_accuracy(metric)]
        return f"metric={config.metric}: is no metric of accuracy; {known('', fitting)}"
    return (
        f"results_dir={config.results_dir}: no quantized point with a metric of accuracy;"
        " `python -m sqbench.run -m method=smoothquant,awq alpha=0.3,0.5,0.8` makes six"
    )


ConfigStore.instance().store(name="recommend_schema", node=RecommendConfig)


def main() -> int:
    """Run the command line. The answer goes to stdout, errors that the user can fix to stderr, with exit status 2."""
    return reader("recommend", _answer)


def _answer(cfg: DictConfig) -> None:
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, RecommendConfig)
    for part in recommendations(config):
        output.print(part, soft_wrap=isinstance(part, Text))


if __name__ == "__main__":
    sys.exit(main())
