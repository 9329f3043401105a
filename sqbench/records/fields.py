"""The fields by which points are told apart. Tables, selection, order, report and search derive their lists of fields from here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqbench.config import checkpoint_of, label_of, size_of
from sqbench.formats.format import Format
from sqbench.records.record import Record


@dataclass(frozen=True)
class Field:
    """A field of a point.

    Attributes:
        name: its name, a column of the long frame.
        read: record -> value. None fills it elsewhere.
        column: its place among the columns of the long frame. The list below is in the order of sorting.
        cell: whether it separates results. Only results that differ in nothing but their seeds share a cell.
        basis: whether a point shares it with its float baseline.
        examples: whether it decides the examples or operations, so that one table holds one value of it.
        series: whether it names a line of a picture.
        formats: whether it describes a format that `bits` names.
        speed: whether it decides the speed of a layer.
        integer: whether its values are integers.
        numeric: whether its texts sort by number.
    """

    name: str
    read: Callable[[Record], Any] | None
    column: int
    cell: bool = True
    basis: bool = False
    examples: bool = False
    series: bool = False
    formats: bool = False
    speed: bool = False
    integer: bool = False
    numeric: bool = False


def _alpha(record: Record) -> str:
    alpha = record.identity["method"].get("alpha")
    return "" if alpha is None else alpha if isinstance(alpha, str) else format(alpha, ".10g")


def _weights(record: Record) -> str:
    weights = record.identity["scheme"].get("weights")
    if "mixed" in record.identity:  # several widths: their average
        weights = {**weights, "bits": format(record.identity["mixed"]["budget"], "g")}
    return describe_format(weights) or _dtype(record)


def _activations(record: Record) -> str:
    return describe_format(record.identity["scheme"].get("activations")) or _dtype(record)


def _dtype(record: Record) -> str:
    return str(record.identity["model"].get("dtype", "float"))


def _samples(record: Record) -> int | None:
    calibration = _calibration(record)
    found: int | None = size_of(calibration)
    return found


def _source(record: Record) -> str:
    """The source of the calibration: `data`, `other`, `random` or `weights`. Empty for the float model.

    `data` are other examples of the evaluation's data set. `other` is another text.
    """
    if not (calibration := _calibration(record)):
        return ""
    same = calibration.get("text") in (None, record.identity["data"].get("text"))
    return str(calibration.get("source", "data" if same else "other"))


def _calibration(record: Record) -> Mapping[str, Any]:
    return record.identity.get("calibration") or {}


def _checkpoint(record: Record) -> str:
    """The name of a quantized checkpoint. Empty for other points, and for the float model that it is compared with."""
    return checkpoint_of(record.config["model"]) if "checkpoint" in record.identity else ""


def _tool(record: Record) -> str:
    """The tool that quantized the model, its version, and the arguments that it got. Empty for our own methods."""
    if (tool := record.identity.get("tool")) is None:
        return ""
    given = (f"{key}={value}" for key, value in sorted((record.identity["method"]["arguments"] or {}).items()))
    return " ".join([tool["name"], tool["version"], *given])


def _of_data(name: str) -> Callable[[Record], Any]:
    return lambda record: record.identity["data"].get(name)


def _part(axis: str) -> Callable[[Record], str]:
    """The name of a part that was chosen in place of the method's own. Empty for the method's own."""
    return lambda record: str(record.identity.get(axis, {}).get("name", ""))


def called(identity: Mapping[str, Any]) -> str:
    """The method of an identity, with the parts that were chosen in place of its own.

    >>> called({"method": {"name": "awq"}, "rounding": {"name": "gptq"}})
    'awq + gptq'
    """
    chosen = [identity[axis]["name"] for axis in ("ranges", "rounding") if axis in identity]
    return " + ".join([identity["method"]["name"], *chosen])


TABLE = (
    Field("method", lambda record: record.identity["method"]["name"], 6, series=True),
    Field("bits", lambda record: record.identity["scheme"]["name"], 8, series=True, speed=True),
    Field("alpha", _alpha, 7, series=True, numeric=True),
    Field("rounding", _part("rounding"), 23),
    Field("ranges", _part("ranges"), 24),
    Field("propagate", lambda record: "true" if _calibration(record).get("propagate") else "", 25),
    Field("checkpoint", _checkpoint, 26),
    Field("tool", _tool, 27),
    Field("model", lambda record: label_of(record.config["model"]), 2, basis=True),
    Field("head", lambda record: record.identity["model"].get("head", {}).get("name", ""), 3, basis=True),
    Field("data", lambda record: record.config["data"]["name"], 4, basis=True, examples=True),
    Field("eval", lambda record: record.identity["eval"].get("name", ""), 5, basis=True, examples=True),
    Field("window", _of_data("window"), 16, basis=True, examples=True, integer=True, numeric=True),
    Field("windows", _of_data("windows"), 17, basis=True, examples=True, integer=True, numeric=True),
    Field("images", _of_data("images"), 18, basis=True, examples=True, integer=True, numeric=True),
    Field("sentences", _of_data("sentences"), 27, basis=True, examples=True, integer=True, numeric=True),
    Field("beams", lambda record: record.identity["eval"].get("beams"), 19, basis=True, integer=True, numeric=True),
    Field("samples", _samples, 20, integer=True, numeric=True),
    Field("source", _source, 21),
    Field("layers", lambda record: ", ".join(record.identity["scheme"].get("layers", ())), 13, speed=True),
    Field("ops", lambda record: record.identity["scheme"].get("ops", ""), 11, examples=True, speed=True),
    Field("weights", _weights, 9, formats=True, speed=True),
    Field("activations", _activations, 10, formats=True, speed=True),
    Field("backend", lambda record: record.identity.get("backend", ""), 14),
    Field("device", lambda record: record.identity.get("device", ""), 15, basis=True),
    Field("variant", None, 22),
    Field("seed", lambda record: record.identity.get("seed"), 12, cell=False, integer=True, numeric=True),
    Field("point_id", lambda record: record.point_id, 0, cell=False),
    Field("status", lambda record: record.status, 1, cell=False),
)


def named(choose: Callable[[Field], bool]) -> tuple[str, ...]:
    """The names of the fields of a kind, in the order of sorting."""
    return tuple(field.name for field in TABLE if choose(field))


CELLS = named(lambda field: field.cell)
SERIES = named(lambda field: field.series)
FORMATS = named(lambda field: field.formats)
GROUPABLE = (*CELLS, "seed", "point_id")  # allowed as rows and columns of a table
FILTERS = (*GROUPABLE, "status")  # allowed in where.NAME
BASIS = named(lambda field: field.basis)
EXAMPLES = named(lambda field: field.examples)
SIDES = (*(name for name in CELLS if name not in (*SERIES, *FORMATS)), "seed")  # told beside a point where points differ
COLUMNS = tuple(field.name for field in sorted(TABLE, key=lambda field: field.column))


def point_fields(record: Record) -> dict[str, Any]:
    """The fields of a record, without those that need other records (`variant`)."""
    return {field.name: field.read(record) for field in TABLE if field.read is not None}


def float_basis(record: Record) -> dict[str, Any]:
    """The settings that decide the float result of a point. Points with equal settings saw the same examples."""
    identity = record.identity
    # The settings of the interval are left out. Speed is compared with one dtype for all.
    basis = {name: identity.get(name) for name in ("model", "data", "eval", "device")}
    if beside := identity["eval"].get("beside"):
        basis["model"] = {**identity["model"], "dtype": beside}
    basis["eval"] = {key: value for key, value in identity["eval"].items() if key not in ("resamples", "level")}
    return basis


def describe_format(told: Mapping[str, Any] | None) -> str:
    """A format in a few words, from the plain data of a record. The words are those of `sqbench.formats.format.Format`.

    >>> describe_format({"bits": 4, "symmetric": False, "granularity": "group", "group_size": 64})
    'int4 asym group 64'
    """
    return "" if told is None else str(Format.from_dict(told))
