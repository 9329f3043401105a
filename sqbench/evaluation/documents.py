"""What lm-eval's tasks say of every document: one tidy frame, each beside the float model's, and the metrics that it makes."""

import json
import math
from collections.abc import Callable
from typing import Any

import pandas as pd

from sqbench.comparison import Outcome
from sqbench.evaluation.base import EvaluationError
from sqbench.storage import digest

# lm-eval's aggregation -> what an outcome adds to it: a number, and its weight in their mean.
PARTS: dict[str, Callable[[Any], tuple[float, float]]] = {
    "mean": lambda value: (float(value), 1.0),
    "perplexity": lambda loglikelihood: (-loglikelihood, 1.0),
    "weighted_perplexity": lambda outcome: (-outcome[0] / outcome[1], outcome[1]),
    "bits_per_byte": lambda outcome: (-outcome[0] / outcome[1] / math.log(2), outcome[1]),
}
EXPONENTIAL = ("perplexity", "weighted_perplexity")  # of that mean; else the mean itself
BY = ("task", "doc_hash", "copy")  # a document; equal ones are numbered
PASSAGES = ("passage", "article", "story")  # what tasks call a text that several of their questions are about


def metric_name(task: str, key: str) -> str:
    """A metric's name here: lm-eval's `acc,none` of a task is `task/acc`."""
    return f"{task}/{key.removesuffix(',none')}"


def samples_of(logged: dict[str, list[dict[str, Any]]], tasks: dict[str, Any]) -> pd.DataFrame:
    """A row per document and metric; `passage` is the same in documents about the same text, and else each has its own."""
    rows: list[dict[str, Any]] = []
    for name, documents in logged.items():
        aggregations = tasks[name].aggregation()
        keys = {_key(metric, document): metric for document in documents for metric in document["metrics"]}
        main = next((key for key in keys if keys[key] == "acc"), next(iter(keys)))
        for document in documents:
            passage = _passage(document["doc"])
            for metric in document["metrics"]:
                how = aggregations[metric].__name__ if metric in aggregations else "mean"  # as lm-eval does
                row = {"task": name, "doc_hash": document["doc_hash"], "passage": passage}
                row["metric"] = metric_name(name, _key(metric, document))
                row |= {"main": metric * (how == "mean" and _key(metric, document) == main), "aggregation": how}
                rows.append(row | parts(document[metric], how))
    samples = pd.DataFrame(rows)
    samples.insert(2, "copy", samples.groupby(["metric", "doc_hash"]).cumcount())
    alone = samples["doc_hash"] + "-" + samples["copy"].astype(str)
    samples["passage"] = samples["passage"].mask(samples["passage"] == "", alone)
    samples["share"] = 1 / samples.groupby("metric")["value"].transform("size")
    samples.loc[samples["metric"].isin(samples.loc[samples["value"].isna(), "metric"]), "main"] = ""  # no mean of what is no number
    return samples


def _passage(document: dict[str, Any]) -> str:
    """A short name of the text that a document is about."""
    text = next((document[name] for name in PASSAGES if isinstance(document.get(name), str) and document[name]), "")
    return digest(text)[:12] if text else ""


def _key(metric: str, document: dict[str, Any]) -> str:
    """lm-eval's key of a metric in its results."""
    return f"{metric},{document['filter']}"


def parts(outcome: Any, aggregation: str) -> dict[str, Any]:
    """What a document's outcome adds to the metric, or its text where no mean can tell."""
    try:
        value, weight = PARTS[aggregation](outcome)
    except (KeyError, TypeError, ValueError):
        return {"value": math.nan, "weight": 1.0, "outcome": json.dumps(outcome, default=str)}
    return {"value": float(value), "weight": float(weight), "outcome": ""}


def paired(samples: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """The samples with the float model's value beside each, found by its document."""
    keys, others = (pd.MultiIndex.from_frame(side[["metric", *BY]]) for side in (samples, other))
    if len(unpaired := keys.symmetric_difference(others)):
        raise EvaluationError(
            f"{unpaired[0][0]}: the documents are not those that the float model answered; with the folder cache/baselines removed"
            " both are read anew"
        )
    return samples.assign(value_fp=other["value"].to_numpy()[others.get_indexer(keys)])


def outcomes(samples: pd.DataFrame) -> dict[str, Outcome]:
    """Every metric that is made of a mean, and the means over tasks.

    Documents about one passage are drawn together. A mean over tasks weighs a document by one over those of its task; its interval
    counts the spread between tasks, too.
    """
    plain = {name: ("main", "share", rows) for name, rows in samples.groupby("main", sort=False) if name}
    tasks = {name: ("metric", "weight", rows) for name, rows in samples.groupby("metric", sort=False)}
    found = {}
    for name, (column, weights, rows) in {**plain, **tasks}.items():
        if rows["value"].notna().all():
            alike = rows[weights].nunique() == 1
            binary = alike and rows["value"].isin((0, 1)).all()
            kind = "perplexity" if rows["aggregation"].iloc[0] in EXPONENTIAL else "proportion" if binary else "mean"
            clusters = "passage" if rows["passage"].nunique() < len(rows) else None
            where = ((column, str(name)),)
            found[str(name)] = Outcome(kind, "value", BY, None if alike else weights, clusters, where)
    return found
