"""Renewal of a record's intervals from its samples. A better interval costs no new run."""

from dataclasses import replace
from typing import TYPE_CHECKING

from sqbench.comparison import differences
from sqbench.records.record import Record

if TYPE_CHECKING:
    import pandas as pd


def renewed(record: Record, samples: "pd.DataFrame") -> Record:
    """A record with the changes against the float model, and their intervals and tests, as this version makes them.

    Speeds keep their intervals, because they are measured in turns and are no mean of examples.

    Args:
        record: the whole record of a finished point.
        samples: its per-example outcomes.
    """
    outcomes = {name: metric.outcome for name, metric in record.declared.items() if metric.outcome is not None}
    how = record.config["eval"]
    made = differences(samples, outcomes, how["resamples"], how["level"])
    return replace(record, delta={**record.delta, **{metric: difference.as_dict() for metric, difference in made.items()}})
