"""Times of work in turns, A B A B in one process, and a table of ratios. A slow phase of the machine then hits every side."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from sqbench.errors import UserError, known
from sqbench.reporting.tables import markdown_table

Work = Callable[[], object]


def seconds(work: Work) -> float:
    """Seconds of one call, including the work that it left running on a GPU."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def alternate(sides: Mapping[str, Work], repetitions: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of every side, one list entry per round. A round calls all sides. The `warmup` rounds do not count."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(-warmup, repetitions):
        for name, work in sides.items():
            spent = seconds(work)
            if turn >= 0:
                times[name].append(spent)
    return times


def speedups(times: Mapping[str, Sequence[float]], base: str) -> dict[str, float]:
    """Side -> speedup over `base`: the median over rounds of the ratio inside a round."""
    return {
        name: statistics.median(other / own for other, own in zip(times[base], values, strict=True))
        for name, values in times.items()
    }


def medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in times.items()}


def child(*arguments: str) -> tuple[float, int, str]:
    """Seconds, peak resident bytes and output of a Python process.

    The kernel also counts the memory of the starting process. Call it where nothing large is loaded.

    Raises:
        SystemExit: it failed.
    """
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as output:
        said = output.read()
    _, status, usage = os.wait4(process.pid, 0)  # of this child alone
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{' '.join(arguments)}: exit status {process.returncode}\n{said}")
    return time.perf_counter() - start, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), said


def arguments(given: Sequence[str], **defaults: Any) -> tuple[dict[str, Any], list[str]]:
    """The benchmark's own settings, with the types of their defaults, and the other words, which are overrides of sqbench.run.

    Raises:
        UserError: a word is no `key=value`, or a value has another type than the default.
    """
    own, others = dict(defaults), []
    for item in given:
        key, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"{item}: key=value works; {known(key, defaults)}")
        if key not in defaults:
            others.append(item)
            continue
        kind = type(defaults[key])
        try:
            own[key] = value.split(",") if kind is list else kind(value)
        except ValueError as error:
            raise UserError(f"{item}: a value of the kind of {defaults[key]} works") from error
    return own, others


def chosen(work: Sequence[str], there: Mapping[str, object]) -> list[str]:
    """The names in `work`, checked.

    Raises:
        UserError: one is unknown.
    """
    for name in work:
        if name not in there:
            raise UserError(f"work={name}: {known(name, there)}")
    return list(work)


def machine() -> str:
    """The machine that the numbers hold for, as text."""
    from sqbench.records.provenance import _processor

    capability = torch.backends.cpu.get_cpu_capability()
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return f"{gpu}{_processor()}, {capability}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def show(head: Sequence[str], rows: Sequence[Sequence[str]], sides: int = 2, how: str = "sides took turns, medians") -> None:
    """Print the table, and below it the machine and the way of measuring."""
    print(markdown_table(head, rows, sides))
    print(f"\n{machine()}; {how}")
