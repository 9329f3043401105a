"""The outcomes of lm-eval's tasks by document, in one tidy frame beside the float model's, and the metrics made of them."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd

from sqbench.comparison import HIGHER, LOWER, SIZE, Metric, Outcome
from sqbench.evaluation.base import EvaluationError
from sqbench.storage.files import digest

# lm-eval's aggregation -> outcome of a document -> its value, and the value's weight in the mean.
PARTS: dict[str, Callable[[Any], tuple[float, float]]] = {
    "mean": lambda value: (float(value), 1.0),
    "perplexity": lambda loglikelihood: (-loglikelihood, 1.0),
    "weighted_perplexity": lambda outcome: (-outcome[0] / outcome[1], outcome[1]),
    "bits_per_byte": lambda outcome: (-outcome[0] / outcome[1] / math.log(2), outcome[1]),
}
EXPONENTIAL = ("perplexity", "weighted_perplexity")  # these metrics are exp of the mean, the others the mean itself
BY = ("task", "doc_hash", "copy")  # identify a document; `copy` numbers equal ones
PASSAGES = ("passage", "article", "story")  # fields with a text that several questions of a task are about
ACCURACY = Metric("acc", HIGHER, "%", 0.01, 2, place=30)
# lm-eval's own metrics as tables show them. Their direction comes from the task. All others have four decimals and no unit.
SHOWN = {
    "perplexity": Metric("perplexity", decimals=2, place=10),
    "bits_per_byte": Metric("bits_per_byte", place=11),
    "word_perplexity": Metric("word_perplexity", decimals=2, place=12),
    "byte_perplexity": Metric("byte_perplexity", place=13),
    "acc": ACCURACY,
    "acc_norm": Metric("acc_norm", HIGHER, "%", 0.01, 2, place=31),
    "exact_match": Metric("exact_match", HIGHER, "%", 0.01, 1, place=40),
}
_BETTER = {True: HIGHER, False: LOWER}


def metric_name(task: str, key: str) -> str:
    """The name of a task's metric here. lm-eval's `acc,none` becomes `task/acc`."""
    return f"{task}/{key.removesuffix(',none')}"


def samples_of(logged: dict[str, list[dict[str, Any]]], tasks: dict[str, Any]) -> pd.DataFrame:
    """A frame with a row per document and metric. Documents about the same text share a `passage`, and others have their own."""
    rows: list[dict[str, Any]] = []
    for name, documents in logged.items():
        aggregations, better = tasks[name].aggregation(), tasks[name].higher_is_better()
        keys = {_key(metric, document): metric for document in documents for metric in document["metrics"]}
        main = next((key for key in keys if keys[key] == "acc"), next(iter(keys)))
        for document in documents:
            passage = _passage(document["doc"])
            for metric in document["metrics"]:
                how = aggregations[metric].__name__ if metric in aggregations else "mean"  # as lm-eval does
                row = {"task": name, "doc_hash": document["doc_hash"], "passage": passage}
                row["metric"] = metric_name(name, _key(metric, document))
                row |= {"main": metric * (how == "mean" and _key(metric, document) == main), "aggregation": how}
                row["better"] = _BETTER.get(better.get(metric), "")
                rows.append(row | parts(document[metric], how))
    samples = pd.DataFrame(rows)
    samples.insert(2, "copy", samples.groupby(["metric", "doc_hash"]).cumcount())
    alone = samples["doc_hash"] + "-" + samples["copy"].astype(str)
    samples["passage"] = samples["passage"].mask(samples["passage"] == "", alone)
    samples["share"] = 1 / samples.groupby("metric")["value"].transform("size")
    samples.loc[samples["metric"].isin(samples.loc[samples["value"].isna(), "metric"]), "main"] = ""  # it has no mean
    return samples


def _passage(document: dict[str, Any]) -> str:
    """A short name of the text that a document is about. Empty if there is none."""
    text = next((document[name] for name in PASSAGES if isinstance(document.get(name), str) and document[name]), "")
    return digest(text)[:12] if text else ""


def _key(metric: str, document: dict[str, Any]) -> str:
    """lm-eval's key of a metric in its results."""
    return f"{metric},{document['filter']}"


def parts(outcome: Any, aggregation: str) -> dict[str, Any]:
    """The value and weight of a document's outcome. An outcome without a mean is JSON in `outcome`, and its value is NaN."""
    try:
        value, weight = PARTS[aggregation](outcome)
    except (KeyError, TypeError, ValueError):
        return {"value": math.nan, "weight": 1.0, "outcome": json.dumps(outcome, default=str)}
    return {"value": float(value), "weight": float(weight), "outcome": ""}


def paired(samples: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """The samples with `value_fp`, the float model's value of the same metric and document.

    Raises:
        EvaluationError: the two have different documents.
    """
    keys, others = (pd.MultiIndex.from_frame(side[["metric", *BY]]) for side in (samples, other))
    if len(unpaired := keys.symmetric_difference(others)):
        raise EvaluationError(
            f"{unpaired[0][0]}: the documents are not those that the float model answered; with the folder cache/baselines removed"
            " both are read anew"
        )
    return samples.assign(value_fp=other["value"].to_numpy()[others.get_indexer(keys)])


def declared(samples: pd.DataFrame) -> list[Metric]:
    """Every metric of the tasks, and the means over tasks. Metrics that are no mean have no outcome.

    Documents about one passage are drawn together. A mean over tasks weighs a document by 1 over the number of its task's
    documents. Its interval includes the spread between tasks.
    """
    plain = {name: ("main", "share", rows) for name, rows in samples.groupby("main", sort=False) if name}
    tasks = {name: ("metric", "weight", rows) for name, rows in samples.groupby("metric", sort=False)}
    found = [SIZE]
    for name, (column, weights, rows) in {**plain, **tasks}.items():
        shown = SHOWN.get(_kind(str(name)), Metric(""))
        directions = set(rows["better"])  # of a mean over tasks there may be several
        better = directions.pop() if len(directions) == 1 else ""
        outcome = _outcome(rows, column, str(name), weights)
        found.append(replace(shown, name=str(name), better=better or None, part=column == "metric", outcome=outcome))
    return found


def _kind(name: str) -> str:
    """lm-eval's own name of a metric, without task and filter."""
    return name.rpartition("/")[2].partition(",")[0]


def _outcome(rows: pd.DataFrame, column: str, name: str, weights: str) -> Outcome | None:
    """The outcome that a metric averages. None if an outcome of a document is not a number."""
    if rows["value"].isna().any():
        return None
    alike = rows[weights].nunique() == 1
    binary = alike and rows["value"].isin((0, 1)).all()
    kind = "perplexity" if rows["aggregation"].iloc[0] in EXPONENTIAL else "proportion" if binary else "mean"
    clusters = "passage" if rows["passage"].nunique() < len(rows) else None
    return Outcome(kind, "value", BY, None if alike else weights, clusters, ((column, name),))
