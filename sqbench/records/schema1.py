"""Records of schema 1, as records of today. Such a record has `outcomes` and does not declare its metrics.

The tables below are the facts that the first version knew of metrics by their names. They are frozen, and nothing else reads them.
"""

import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

# The order of tables. The numbers are places (`sqbench.comparison.Metric`).
_PLACES = {
    **{"perplexity": 10, "bits_per_byte": 11, "word_perplexity": 12, "byte_perplexity": 13, "top1": 20, "top5": 21},
    **{"acc": 30, "acc_norm": 31, "exact_match": 40, "prefix": 41, "kl_to_fp": 50, "agreement": 51, "sqnr_db": 52},
    **{"loglik": 53, "repetition": 54, "tokens_per_s": 60, "decode_tokens_per_s": 61, "images_per_s": 62, "latency_ms": 63},
    **{"weight_bytes": 900, "resident_bytes": 901},
}
_LOWER = (
    *("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "kl_to_fp", "repetition", "latency_ms"),
    *("weight_bytes", "resident_bytes", "peak_rss_bytes", "brier_score", "ter"),
)
_HIGHER = (
    *("top1", "top5", "agreement", "sqnr_db", "exact_match", "prefix", "loglik"),
    *("tokens_per_s", "decode_tokens_per_s", "images_per_s"),
    *("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "acc_all", "mcc", "f1", "bleu", "chrf", "chrf++", "likelihood"),
    *("rouge1", "rouge2", "rougeL"),
)
_DECIMALS = {
    **dict.fromkeys(("perplexity", "word_perplexity", "top1", "top5", "acc", "acc_norm", "latency_ms"), 2),
    **dict.fromkeys(("exact_match", "prefix", "repetition", "sqnr_db", "weight_bytes", "resident_bytes"), 1),
    **dict.fromkeys(("tokens_per_s", "decode_tokens_per_s", "images_per_s"), 1),
    **dict.fromkeys(("agreement", "loglik"), 3),
}  # else 4
_UNITS = {
    **dict.fromkeys(("weight_bytes", "resident_bytes"), ("MB", 1e6)),
    **dict.fromkeys(("top1", "top5", "acc", "acc_norm", "exact_match", "repetition"), ("%", 0.01)),
}
_EXACT = ("weight_bytes", "resident_bytes", "peak_rss_bytes")
_TIMED = {"tokens_per_s": "first_s", "decode_tokens_per_s": "decode_s", "images_per_s": "batch_s", "latency_ms": "first_s"}
_HEADLINES = {"perplexity": "perplexity", "top1": "top1", "latency": "latency_ms", "generation": "exact_match", "lm_eval": "acc"}
_SHARED = ("name", "resamples", "level")  # the keys of `eval` that every evaluation had
_OWN = {
    "latency": ("repetitions", "warmup", "batch", "prompt", "decode"),
    "generation": ("prompt", "decode", "beams", "batch"),
    "lm_eval": ("tasks", "limit", "fewshot", "batch"),
}


def upgraded(content: Mapping[str, Any], members: Collection[str]) -> dict[str, Any]:
    """The members of a record of schema 1 in the form of today. Its `schema` stays 1. Members that are not known today go.

    `config.eval` had the settings of all evaluations. Those of others are left out.
    """
    told = {name: value for name, value in content.items() if name in members}
    outcomes = content.get("outcomes", {})
    names = {**content.get("metrics", {}), **content.get("delta", {}), **outcomes} or dict.fromkeys(_headline(content))
    told["declared"] = {name: _with(declared(name), outcomes.get(name)) for name in names}
    if (chosen := content.get("config", {}).get("eval")) is not None:
        keys = (*_SHARED, *_OWN.get(chosen.get("name"), ()))
        kept = {key: value for key, value in chosen.items() if key in keys}
        told["config"] = {**content["config"], "eval": kept}
    return told


def _headline(content: Mapping[str, Any]) -> list[str]:
    name = _HEADLINES.get(content.get("identity", {}).get("eval", {}).get("name", ""))
    return [name] if name else []


def _with(told: dict[str, Any], outcome: Mapping[str, Any] | None) -> dict[str, Any]:
    return told if outcome is None else {**told, "outcome": outcome}


@lru_cache(maxsize=4096)
def declared(name: str) -> dict[str, Any]:
    """What the first version knew of a metric, in the form of `Metric.as_dict`. Do not change the result.

    A metric of a task was known by the name of its kind: `passive_1/acc` is `acc`, and so is `a/acc,strict`.
    """
    kind = name.rpartition("/")[2].partition(",")[0]
    measured = re.sub(r"_p(10|90)$", "", kind)  # percentiles of a measurement
    better = "lower" if measured in _LOWER else "higher" if measured in _HIGHER else None
    told: dict[str, Any] = {} if better is None else {"better": better}
    if kind in _UNITS:
        told["unit"], told["scale"] = _UNITS[kind]
    known = {"decimals": _DECIMALS.get(kind), "place": _PLACES.get(kind), "timed": _TIMED.get(name)}
    told |= {key: value for key, value in known.items() if value is not None}
    if "/" in name:
        told["part"] = True
    if name in _EXACT:
        told["exact"] = True
    return told
