"""A sweep leaves a list of its points when it starts."""

from pathlib import Path

from examples import build, write

from sqbench.records import sweeps
from sqbench.records.store import Store


def test_the_list_says_what_is_to_do(results: Path) -> None:
    done, failed = build(alpha=0.3), build(alpha=0.5, status="failed")
    write(results, done, failed)
    ids = [done["point_id"], failed["point_id"], "0" * 12]
    first = sweeps.begin(results / "sweeps" / "first", ids, Store(results), force=False, now=10.0)
    assert first.todo == (failed["point_id"], "0" * 12)
    assert sweeps.latest(results) == first
    second = sweeps.begin(results / "sweeps" / "second", ids, Store(results), force=True, now=20.0)
    assert second.todo == tuple(ids)
    assert sweeps.latest(results) == second


def test_a_search_adds_to_its_list(results: Path) -> None:
    done, later = build(alpha=0.3), build(alpha=0.5)
    write(results, done)
    folder, store = results / "sweeps" / "search", Store(results)
    begun = sweeps.begin(folder, [], store, force=False, now=10.0)
    assert (begun.points, begun.todo) == ((), ())
    longer = sweeps.extend(folder, begun, [done["point_id"], later["point_id"]], store, force=False)
    write(results, later)  # what this sweep had to do stays in its list once it is done
    longest = sweeps.extend(folder, longer, ["0" * 12], store, force=False)
    assert longest.points == (done["point_id"], later["point_id"], "0" * 12)
    assert longest.todo == (later["point_id"], "0" * 12)
    assert sweeps.latest(results) == longest


def test_no_list_and_a_broken_one_are_no_sweep(results: Path) -> None:
    assert sweeps.latest(results) is None
    for number, text in enumerate(("", "[]", '{"name": "a"}', '{"name": "a", "started": "soon", "points": [], "todo": []}')):
        path = results / "sweeps" / str(number) / "points.json"
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
    assert sweeps.latest(results) is None
