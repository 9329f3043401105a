"""The predicted cost of a sweep before it starts, and the error of the prediction when it is over."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from sqbench.console.progress import output
from sqbench.records.fields import called
from sqbench.records.outcome import Outcome
from sqbench.records.store import Store
from sqbench.sweeps.cost import Cost, History, wall_clock
from sqbench.sweeps.effort import gradient_steps

if TYPE_CHECKING:
    from sqbench.running.point import Point

WIDTHS = (1, 2, 4, 8, 16, 32, 64)  # workers of a launcher


def show_plan(points: Sequence["Point"], results_dir: str | Path) -> None:
    """Print the points with their state and predicted cost. Finished points predict it, else the size of the model.

    A point whose model or data is missing has no id yet. Its state names the step that makes them.
    """
    store = Store(results_dir)
    history = History(store.records(brief=True))
    some = any("layers" in point.identity["scheme"] for point in points)
    table = Table(title="plan: nothing is computed", title_justify="left")
    steps = {point.id: gradient_steps(point)[1] for point in points}
    train = any(steps.values())
    for column in ("point", "method", "bits", "alpha", *["layers"] * some, *["trains"] * train, "state", "seconds", "GB"):
        table.add_column(column, justify="right" if column in ("seconds", "GB") else "left")
    costs: list[Cost] = []
    unknown = 0
    waiting = Counter(point.first for point in points if point.first)
    for point in points:
        state = f"to do, {point.first}" if point.first else _state(point, store)
        cost = Cost(0.0) if state == "finished" else None if point.first else history.predict(point)
        unknown += cost is None and not point.first
        costs += [cost] if cost is not None and state != "finished" else []
        scheme, method = point.identity["scheme"], point.identity["method"]
        layers = [", ".join(scheme.get("layers", ()))] * some
        layers += [f"{steps[point.id]} steps" if steps[point.id] else ""] * train
        seconds = "?" if cost is None else f"{cost.seconds:.0f}"
        memory = "--" if cost is None or cost.memory is None else f"{cost.memory / 1e9:.1f}"
        named = ("" if point.first else point.id, called(point.identity), scheme["name"], str(method.get("alpha", "")))
        table.add_row(*named, *layers, state, seconds, memory)
    output.print(table)
    if costs or unknown or not waiting:
        output.print(summary(costs, unknown), soft_wrap=True)
    for first, count in waiting.items():
        output.print(f"{count} point{'s' * (count > 1)} of unknown cost: {first}", soft_wrap=True)


def summary(costs: Sequence[Cost], unknown: int) -> str:
    """The predicted seconds as text: with one worker, with more workers if there are several points, and their basis."""
    learn = f"{unknown} point{'s' * (unknown > 1)} of unknown cost (no finished point like it, and its length is not known before)"
    if not costs:
        return learn if unknown else "about 0 s"
    shared = sum({key: seconds for cost in costs for key, seconds in cost.shared.items()}.values())
    once = f", of which {shared:.0f} s once: calibration and the float model" if shared >= 1 else ""
    bases = Counter(cost.basis for cost in costs)
    widths = [width for width in WIDTHS if 1 < width < 2 * len(costs)]
    more = ", ".join(f"{width}: {wall_clock(costs, width):.0f} s" for width in widths)
    return (
        f"about {wall_clock(costs, 1):.0f} s{once}"
        + (f"; with more workers, each as fast as one alone, {more}" if more else "")
        + (f"; and {learn}" if unknown else "")
        + "".join(f"\nestimated from {basis}: {count} point{'s' * (count > 1)}" for basis, count in bases.items() if basis)
    )


def _state(point: "Point", store: Store) -> str:
    record = store.read(point.id, brief=True)
    if record is None or point.resolved.options.force:
        return "to do"
    return "finished" if record.finished else "failed, to do again"


def forecast(points: Sequence["Point"], store: Store) -> dict[str, float]:
    """Point id -> predicted seconds, in the order of the sweep. Finished and unpredictable points are left out."""
    history = History(store.records(brief=True))
    found: dict[str, float] = {}
    ahead: set[str] = set()  # shared work that an earlier point of the sweep pays for
    for number, point in enumerate(points):
        if _state(point, store) != "finished" and (cost := history.predict(point)) is not None:
            found[point.id] = cost.seconds + (cost.load if number == 0 else 0.0)
            found[point.id] += sum(seconds for key, seconds in cost.shared.items() if key not in ahead)
            ahead |= cost.shared.keys()
    return found


def verdict(predicted: dict[str, float], outcomes: Sequence[Outcome]) -> str | None:
    """One line on the error of the forecast. None if no computed point had a forecast."""
    took = {outcome.point_id: outcome.seconds for outcome in outcomes if outcome.state == "done" and outcome.point_id in predicted}
    if not took:
        return None
    expected, actual = sum(predicted[name] for name in took), sum(took.values())
    worst = max(took, key=lambda name: abs(predicted[name] - took[name]))
    return (
        f"predicted {expected:.0f} s for {len(took)} points, they took {actual:.0f} s ({(expected - actual) / actual:+.0%}); "
        f"farthest off: {worst}, predicted {predicted[worst]:.0f} s, took {took[worst]:.0f} s"
    )
