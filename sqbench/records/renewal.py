"""Renewal of a record's intervals from its samples. A better interval costs no new run."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sqbench.comparison import Outcome, differences

if TYPE_CHECKING:
    import pandas as pd


def renewed(record: Mapping[str, Any], samples: "pd.DataFrame") -> dict[str, Any]:
    """A record with the changes against the float model, and their intervals and tests, as this version makes them.

    Speeds keep their intervals, because they are measured in turns and are no mean of examples.

    Args:
        record: the whole record of a finished point.
        samples: its per-example outcomes.
    """
    outcomes = {metric: Outcome.of(fields) for metric, fields in record.get("outcomes", {}).items()}
    how = record["config"]["eval"]
    made = differences(samples, outcomes, how["resamples"], how["level"])
    delta = record["delta"] | {metric: difference.as_dict() for metric, difference in made.items()}
    return {**{key: value for key, value in record.items() if key != "checksum"}, "delta": delta}
