"""A point of a sweep: its resolved configuration, the files of its model and data, and its identity."""

from dataclasses import dataclass, replace
from typing import Any

from sqbench import data, models
from sqbench.data import Corpus
from sqbench.models import Source
from sqbench.planning import planning
from sqbench.records.fields import called
from sqbench.running import assembly
from sqbench.running.identity import identity, point_id
from sqbench.running.resolved import Resolved


@dataclass(frozen=True)
class Point:
    """A point. Its files are found and fingerprinted, and nothing is loaded yet."""

    resolved: Resolved
    source: Source
    corpus: Corpus
    identity: dict[str, Any]

    @property
    def id(self) -> str:
        return point_id(self.identity)

    @property
    def first(self) -> str:
        """The step that must come before the point has an id, for a plan. Empty if there is none."""
        return self.source.first or self.corpus.first

    def __str__(self) -> str:
        method = self.identity["method"]
        alpha = f" alpha={method['alpha']}" if "alpha" in method else ""
        layers = f" layers={','.join(self.identity['scheme'].get('layers', ()))}".removesuffix(" layers=")
        return f"{called(self.identity)} {self.identity['scheme']['name']}{alpha}{layers}"


def identify(resolved: Resolved) -> Point:
    """Find a point's model and data, and compute its identity. With `plan=true` nothing is trained or downloaded for it.

    Raises:
        UserError: the model or the data is not available, or they do not fit each other.
    """
    with planning(resolved.options.plan):
        source, corpus = models.locate(resolved.model, resolved.kind), data.fetch(resolved.data, resolved.calibration)
    if source.quantized is not None:
        resolved = replace(resolved, scheme=replace(source.quantized.scheme, layers=None))
    assembly.check_window(resolved, source)
    assembly.check_sizes(resolved, source)
    return Point(resolved, source, corpus, identity(resolved, source, corpus))
