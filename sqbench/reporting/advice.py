"""A recommendation for the terminal: what to use, a table of the choices, the ties, and the commands."""

import shlex
from collections.abc import Iterator, Mapping, Sequence

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from sqbench.records.again import again
from sqbench.records.record import Record
from sqbench.reporting.candidates import Candidate, Candidates
from sqbench.reporting.recommendation import Recommendation, megabytes, nearest, sentence
from sqbench.reporting.terminal import as_text
from sqbench.reporting.timings import WORKLOADS
from sqbench.reporting.units import number

# Keys and groups of a command that choose model and data.
_KEPT = ("experiment", "model", "head", "data", "device", "results_dir", "cache_dir", "tracker")
_LIMITS = {
    "max_mb": "take more than max_mb",
    "max_loss": "may lose more than max_loss: the far end of the interval counts",
    "min_speed": "are slower than min_speed",
    "min_speed (not timed)": "have no measured speed",
}


def advice(found: Candidates, chosen: Recommendation, records: Mapping[str, Record]) -> Iterator[RenderableType]:
    """The parts of the answer, in the order of reading."""
    if chosen.use is None:
        yield as_text("No point satisfies all limits.")
    else:
        yield as_text(f"Use {sentence(found, chosen.use)}")
        yield from _choices(found, chosen)
        yield from _tied(found, chosen)
        yield from _again(found.items[chosen.use], records)
    for why, count in chosen.left_out.items():
        yield as_text(f"{count} of {len(found.items)} points {_LIMITS[why]}.")
    if found.failed:
        yield as_text(f"{found.failed} more did not finish: python -m sqbench.points where.status=failed lists them.")
    yield from _untimed(found, records)
    yield Text("")


def _choices(found: Candidates, chosen: Recommendation) -> Iterator[RenderableType]:
    roles: dict[int, list[str]] = {}
    for role, at in (("most accurate", chosen.best), ("smallest", chosen.smallest), ("fastest", chosen.fastest)):
        if at is not None:
            roles.setdefault(at, []).append(role)
    timed = [name for name in WORKLOADS if any(name in found.items[at].speeds for at in roles)]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for title in ("", "bits", "method"):
        table.add_column(title, overflow="fold")
    for title in (
        f"{found.metric.name} {found.metric.unit}".strip(),
        "change against float",
        "MB",
        *(WORKLOADS[name] for name in timed),
    ):
        table.add_column(title, justify="right", overflow="fold")
    value, size = number(found.floating, found.metric), megabytes(found.float_megabytes) or "--"
    table.add_row("float", "", "", value, "", size, *("x1" for _ in timed), style="bold")
    for at, named in roles.items():
        one = found.items[at]
        speeds = (f"x{one.speeds[name]:.2f}" if name in one.speeds else "--" for name in timed)
        value, size = number(one.value, found.metric), megabytes(one.megabytes) or "--"
        cells = map(as_text, (one.bits, one.name, value, one.change or "--", size, *speeds))
        table.add_row(Text("\n".join(named)), *cells)
    yield table


def _tied(found: Candidates, chosen: Recommendation) -> Iterator[RenderableType]:
    if chosen.ties is None:
        yield as_text("What is tied with it is not known: its examples are not kept, or the points are too many to compare.")
    elif not chosen.ties:
        yield as_text("Nothing else is as accurate." if len(found.items) > 1 else "Nothing else was tried.")
    else:
        names = [f"{found.items[tie.at].bits} with {found.items[tie.at].name}" for tie in chosen.ties]
        yield as_text(f"Tied with it in {found.metric.name}: {', '.join(names)}.")
        told = nearest(found, chosen.ties)
        yield from [as_text(told)] if told else []


def _again(one: Candidate, records: Mapping[str, Record]) -> Iterator[RenderableType]:
    commands = [command for name in one.ids[:1] if (command := again(records[name]))]
    yield from (as_text(f"Make it again: {command}") for command in commands)
    if one.timed:
        yield as_text(f"Its speed: {one.timed}.")


def _untimed(found: Candidates, records: Mapping[str, Record]) -> Iterator[RenderableType]:
    """The command that times the formats without a known speed."""
    bits = list(dict.fromkeys(one.bits for one in found.items if not one.speeds))
    if bits:
        record = next(records[one.ids[0]] for one in found.items if not one.speeds)
        yield as_text(f"No speed is known of {', '.join(bits)}. This measures it: {timing_command(bits, record)}")


def timing_command(bits: Sequence[str], record: Record) -> str:
    """The command that times formats of a point's model. It repeats the model and data of the point, with `eval=latency`.

    >>> timing_command(["w8a8"], {"provenance": {"command": "python -m sqbench.run -m model=vit_nano method=rtn seed=1"}})
    'python -m sqbench.run model=vit_nano method=rtn bits=w8a8 eval=latency backend=int'
    """
    words = shlex.split(record.provenance.get("command", ""))
    kept = [word for word in words if word.partition("=")[0].partition(".")[0] in _KEPT]
    line = [*kept, "method=rtn", f"bits={','.join(bits)}", "eval=latency", "backend=int"]
    return shlex.join(["python", "-m", "sqbench.run", *(["-m"] if len(bits) > 1 else []), *line])
