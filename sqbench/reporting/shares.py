"""Notes of a table on its points: layers without groups, and weights that stay in float unasked."""

from collections.abc import Iterable

from sqbench.config import label_of
from sqbench.records.record import Record


def share_notes(records: Iterable[Record]) -> list[str]:
    """A sentence for each scheme and model whose groups do not fit all layers, and for each model with unasked float weights.

    Args:
        records: records with or without `quantized`. Older records have no shares and give no sentence.
    """
    notes: dict[str, None] = {}
    for record in records:
        share, model = record.share, label_of(record.config["model"])
        scheme, layers = record.identity["scheme"]["name"], share.get("layers", 0)
        if narrow := share.get("narrow", 0):
            notes[f"{scheme} of {model}: {narrow} of {layers} layers have fewer input channels than a group, and no groups"] = None
        if left := share.get("floating", 0.0):
            notes[f"{model}: {100 * left:.1f} % of the weights stay in float unasked (quantized.floating names them)"] = None
    return list(notes)
