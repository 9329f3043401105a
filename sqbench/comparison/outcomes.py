"""The origin of a metric: the column of a point's samples that it averages, and the test that compares two points.

Evaluations know this and records store it. A reader of records can therefore compare two points by example.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sqbench.comparison.associations import MEASURES, association, association_difference
from sqbench.comparison.differences import (
    Difference,
    mean_difference,
    perplexity_difference,
    proportion_difference,
)
from sqbench.comparison.resampling import by_unit, sign_flips
from sqbench.comparison.significance import mcnemar


@dataclass(frozen=True)
class Outcome:
    """The per-example values of a metric.

    Attributes:
        kind: the kind of metric: `proportion` of right answers, `mean` of numbers, `perplexity` of mean losses, or a measure of how
            predictions go with a target (`associations.MEASURES`), which is no mean over examples.
        column: the column of the samples. The float model's values, where there are any, are in `{column}_fp`.
        by: columns that together name an example.
        weights: a column with the weights of the average. None weighs all examples alike.
        clusters: a column that names what examples share. None if each example stands alone.
        where: column -> value of the rows that belong to the metric. All rows by default.
        target: of a measure, the column of what is true.
    """

    kind: str
    column: str
    by: tuple[str, ...]
    weights: str | None = None
    clusters: str | None = None
    where: tuple[tuple[str, str], ...] = ()
    target: str | None = None

    @property
    def averages(self) -> bool:
        """Whether the metric is a mean over examples."""
        return self.kind not in MEASURES

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a record. `Outcome.of` reads it."""
        named = asdict(self) | {"by": list(self.by), "where": dict(self.where)}
        return {key: value for key, value in named.items() if value}

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Outcome":
        return cls(**{**fields, "by": tuple(fields["by"]), "where": tuple(fields.get("where", {}).items())})

    def columns(self) -> list[str]:
        """The columns of the samples that it needs, without the float model's."""
        named = [*self.by, self.column, self.weights, self.clusters, self.target, *(name for name, _ in self.where)]
        return list(dict.fromkeys(name for name in named if name is not None))

    def rows(self, samples: pd.DataFrame) -> pd.DataFrame:
        """The rows of the metric, one per example, indexed and sorted by `by`. Rows with equal names keep their order."""
        for name, value in self.where:
            samples = samples[samples[name] == value]
        return samples.set_index(list(self.by)).sort_index(kind="stable")

    def p_value(self, rows: pd.DataFrame, values: Any, other: Any, resamples: int) -> float:
        """The p-value of `compare`, without the interval, which takes most of the time."""
        if not self.averages:
            return self.compare(rows, values, other, resamples, 0.95).p
        clusters = None if self.clusters is None else rows[self.clusters].to_numpy()
        if self._answers(values, other) and clusters is None:
            return mcnemar(int((values > other).sum()), int((values < other).sum()))
        weights = 1.0 if self.weights is None else rows[self.weights].to_numpy()
        change = weights * (values.astype(np.float64) - other.astype(np.float64))
        return sign_flips(by_unit([change], clusters)[:, 0], resamples)

    def _answers(self, values: Any, other: Any) -> bool:
        """Whether all values are right or wrong answers. Means over seeds are shares instead."""
        return self.kind == "proportion" and bool(np.isin([values, other], (0, 1)).all())

    def compare(self, rows: pd.DataFrame, values: Any, other: Any, resamples: int, level: float) -> Difference:
        """The difference of a metric between two models, from their values of the same examples.

        Args:
            rows: the rows of the examples, as `rows` gives them.
            values, other: [examples], numpy arrays; of a measure also [seeds, examples].
        """
        if not self.averages:
            return association_difference(self.kind, values, other, rows[self.target], resamples=resamples, level=level)
        shared: dict[str, Any] = {"resamples": resamples, "level": level}
        shared["clusters"] = None if self.clusters is None else rows[self.clusters].to_numpy()
        if self._answers(values, other):
            return proportion_difference(values == 1, other == 1, **shared)
        weights = None if self.weights is None else rows[self.weights].to_numpy()
        test = perplexity_difference if self.kind == "perplexity" else mean_difference
        return test(values, other, weights=weights, **shared)

    def value(self, rows: pd.DataFrame) -> float:
        """A measure over its rows."""
        return association(self.kind, rows[self.column], rows[self.target])

    def over_seeds(self, values: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """The values of several seeds as one: their mean on every example. A measure keeps them apart, [seeds, examples].

        Right and wrong answers of a single point stay as they are.
        """
        if not self.averages:
            return np.stack(list(values))
        return values[0] if len(values) == 1 else np.mean(values, axis=0)


def stderr_name(metric: str) -> str:
    """The name of a metric's standard error in lm-eval: `acc_stderr,none` for `acc,none`."""
    stem, comma, filtered = metric.partition(",")
    return f"{stem}_stderr{comma}{filtered}"


def differences(samples: pd.DataFrame, outcomes: Mapping[str, Outcome], resamples: int, level: float) -> dict[str, Difference]:
    """Metric -> change against the float model, if the samples have the values of both models."""
    found = {}
    for metric, outcome in outcomes.items():
        if f"{outcome.column}_fp" in samples:
            rows = outcome.rows(samples)
            pair = rows[outcome.column].to_numpy(), rows[f"{outcome.column}_fp"].to_numpy()
            found[metric] = outcome.compare(rows, *pair, resamples, level)
    return found
