"""The record of a point: everything that is stored about it, in one type."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from sqbench.comparison import Metric, Outcome
from sqbench.errors import UserError
from sqbench.records import schema1
from sqbench.storage.files import CorruptFile

SCHEMA = 2  # of record.json; raised when readers must know of a change
Data = Mapping[str, Any]


class UnknownSchema(UserError):
    """A record of a schema that this version cannot read. `content` is the plain data."""

    def __init__(self, content: Data) -> None:
        self.content = content
        point, schema = content.get("point_id", "?"), content.get("schema", "none")
        super().__init__(f"point {point}: its record has schema={schema}, and this sqbench reads 1 to {SCHEMA}; update sqbench")


@dataclass(frozen=True)
class Record:
    """A finished or failed point.

    Attributes:
        point_id: the id, a digest of the identity.
        identity: everything that can change a number.
        config: the whole configuration.
        status: `ok` or `failed`.
        error: `type`, `message` and `traceback` of a failed point.
        metrics: name -> value.
        declared: name -> what is known of the metric. A failed point has the declarations that hold before it runs.
        baseline: the float model's metrics.
        delta: metric -> change against the float model, with interval and test (`sqbench.comparison.Difference`).
        share: how much of the model is quantized.
        quantized: the effect of quantization on every layer. Empty in a brief record.
        noise: the spread of the metrics under tiny changes of the inputs. Empty if it was not asked for.
        cost: seconds by stage, and bytes.
        provenance: versions, hardware, command and time.
        samples: sha256 of `samples.parquet`. None if there is none, or if the record is older than this checksum.
        schema: of the file that it was read from.
        brief: whether it was read without `quantized`.
    """

    point_id: str
    identity: Data
    config: Data
    status: str = "ok"
    error: Data | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    declared: Mapping[str, Metric] = field(default_factory=dict)
    baseline: Mapping[str, float] = field(default_factory=dict)
    delta: Mapping[str, Data] = field(default_factory=dict)
    share: Data = field(default_factory=dict)
    quantized: Data = field(default_factory=dict)
    noise: Data = field(default_factory=dict)
    cost: Data = field(default_factory=dict)
    provenance: Data = field(default_factory=dict)
    samples: str | None = None
    schema: int = SCHEMA
    brief: bool = False

    @property
    def finished(self) -> bool:
        return self.status == "ok"

    @property
    def seconds(self) -> float | None:
        """Seconds that the point took. None if unknown."""
        return self.cost.get("seconds", {}).get("total")

    @property
    def reason(self) -> str:
        """The error of a failed point in one line: its type and message."""
        error = self.error or {}
        return f"{error.get('type', 'Error')}: {error.get('message', '')}"

    def metric(self, name: str) -> Metric:
        """What is known of a metric. Nothing is known of one that is not declared."""
        return self.declared.get(name) or Metric(name)

    def outcome(self, metric: str) -> Outcome | None:
        """How a metric follows from the samples. None if it is no mean over them."""
        return self.metric(metric).outcome

    def to_json(self) -> dict[str, Any]:
        """Plain data for `record.json`, in the current schema. Members that are empty by nature are left out.

        Raises:
            ValueError: the record is brief. To write it would lose its layers.
        """
        if self.brief:
            raise ValueError(f"point {self.point_id}: its record was read without its layers and cannot be written")
        told = {name: getattr(self, name) for name in _MEMBERS}
        told |= {"schema": SCHEMA, "declared": {name: metric.as_dict() for name, metric in self.declared.items()}}
        return {name: value for name, value in told.items() if value or name not in _OPTIONAL}

    @classmethod
    def from_json(cls, content: Data, *, brief: bool = False) -> "Record":
        """The record in plain data of schema 1 or 2. A checksum in it is ignored.

        Raises:
            UnknownSchema: another schema.
            CorruptFile: a member is missing or unknown.
        """
        schema = content.get("schema")
        if schema not in (1, SCHEMA):
            raise UnknownSchema(content)
        told = schema1.upgraded(content, _MEMBERS) if schema == 1 else dict(content)
        told.pop("checksum", None)
        if brief:
            told.pop("quantized", None)
        if unknown := sorted(told.keys() - _MEMBERS):
            raise CorruptFile(f"unknown member {unknown[0]}")
        if lacking := [name for name in ("point_id", "identity", "config", "status") if name not in told]:
            raise CorruptFile(f"no {lacking[0]}")
        try:
            declared = {name: Metric.of(name, known) for name, known in told.pop("declared", {}).items()}
        except (TypeError, ValueError) as error:
            raise CorruptFile(f"a declaration that is none: {error}") from error
        return cls(**told, declared=declared, brief=brief)


_MEMBERS = tuple(member.name for member in fields(Record) if member.name != "brief")
_OPTIONAL = ("noise", "samples")
