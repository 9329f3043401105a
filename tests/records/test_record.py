"""Records as a type: nothing is lost on the way to a file and back, and records of schema 1 are records."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from examples import build
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sqbench import points
from sqbench.collect import CollectConfig, collect
from sqbench.comparison import Metric, Outcome
from sqbench.records.record import Record, UnknownSchema
from sqbench.records.store import Store
from sqbench.reporting.html.page import render
from sqbench.storage.files import CorruptFile, canonical_json

# Three records of results/reference as schema 1 wrote them, cut to two layers. Never write them anew.
SCHEMA1 = Path(__file__).parent / "data" / "schema1"
EVALUATIONS = ("latency", "perplexity", "top1")

names = st.text("abc/_,", min_size=1, max_size=6)
numbers = st.floats(allow_nan=False, allow_infinity=False)
plain = st.none() | st.booleans() | st.integers() | numbers | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
members = st.dictionaries(names, plain, max_size=2)
outcomes = st.builds(
    Outcome,
    st.sampled_from(["proportion", "mean", "perplexity"]),
    names,
    st.lists(names, min_size=1, max_size=2).map(tuple),
    st.none() | names,
    st.none() | names,
    st.lists(st.tuples(names, names), max_size=2, unique_by=lambda pair: pair[0]).map(lambda pairs: tuple(sorted(pairs))),
)
metrics = st.builds(
    Metric,
    names,
    st.sampled_from([None, "lower", "higher"]),
    st.sampled_from(["", "%", "MB"]),
    st.sampled_from([1.0, 0.01, 1e6]),
    st.integers(0, 6),
    st.integers(0, 1000),
    st.booleans(),
    st.booleans(),
    st.none() | outcomes,
    st.none() | names,
)
records = st.builds(
    Record,
    names,
    members,
    members,
    st.sampled_from(["ok", "failed"]),
    st.none() | members,
    st.dictionaries(names, numbers, max_size=2),
    st.lists(metrics, max_size=2).map(lambda found: {metric.name: metric for metric in found}),
    st.dictionaries(names, numbers, max_size=2),
    st.dictionaries(names, members, max_size=2),
    *[members] * 5,
    st.none() | names,
)


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)
@given(records)
def test_a_record_is_the_same_after_its_way_through_a_file(record: Record) -> None:
    assert Record.from_json(json.loads(canonical_json(record.to_json()))) == record


@given(metrics)
def test_a_declaration_holds_only_what_is_not_by_default(metric: Metric) -> None:
    told = metric.as_dict()
    assert Metric.of(metric.name, told) == metric
    assert Metric(metric.name).as_dict() == {}
    assert "name" not in told


def test_a_direction_is_lower_or_higher() -> None:
    with pytest.raises(ValueError, match="better=less: must be lower, higher or None"):
        Metric("loss", "less")


@pytest.mark.parametrize("schema", [0, 3, "2", None])
def test_an_unknown_schema_is_refused_by_a_sentence_that_helps(schema: object) -> None:
    with pytest.raises(UnknownSchema, match=rf"has schema={schema}, and this sqbench reads 1 to 2; update sqbench"):
        Record.from_json({**build(), "schema": schema})


@pytest.mark.parametrize(("change", "said"), [({"more": 1}, "unknown member more"), ({"identity": ...}, "no identity")])
def test_a_record_that_is_none_is_damaged(change: dict[str, object], said: str) -> None:
    content = {**Record.from_json(build()).to_json(), **change}
    with pytest.raises(CorruptFile, match=said):
        Record.from_json({name: value for name, value in content.items() if value is not ...})


# ---------------------------------------------------------------- schema 1


def old(evaluation: str) -> Record:
    return next(record for record in Store(SCHEMA1).records() if record.identity["eval"]["name"] == evaluation)


def test_old_records_are_read_with_what_was_known_of_their_metrics() -> None:
    found = list(Store(SCHEMA1).records())
    assert sorted(record.identity["eval"]["name"] for record in found) == list(EVALUATIONS)
    assert {record.schema for record in found} == {1}
    assert all(record.finished and record.metrics and record.delta for record in found)
    perplexity = Metric("perplexity", "lower", decimals=2, place=10, outcome=Outcome("perplexity", "nll", ("window",), "tokens"))
    assert old("perplexity").metric("perplexity") == perplexity
    assert (old("top1").metric("top1").better, old("top1").metric("top1").unit) == ("higher", "%")
    assert (old("latency").metric("tokens_per_s").timed, old("latency").metric("latency_ms_p90").lower) == ("first_s", True)
    assert old("perplexity").metric("nobody_knows") == Metric("nobody_knows")


@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_the_configuration_of_an_old_record_keeps_the_settings_of_its_own_evaluation(evaluation: str) -> None:
    content = json.loads((SCHEMA1 / "runs" / old(evaluation).point_id / "record.json").read_text(encoding="utf-8"))
    kept = old(evaluation).config["eval"]
    assert kept.items() <= content["config"]["eval"].items()
    assert ("repetitions" in kept, "tasks" in kept) == (evaluation == "latency", False)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    shutil.copytree(SCHEMA1, tmp_path / "results")
    return tmp_path / "results"


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.glob("runs/*/*")}


def test_tables_and_the_page_show_old_records_and_reading_changes_no_file(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(copied)
    for metric, said in (("perplexity", "perplexity by method"), ("top1", "top1 (%) by method"), ("tokens_per_s", "as fast as")):
        where = {"eval": {"perplexity": "perplexity", "top1": "top1", "tokens_per_s": "latency"}[metric]}
        table, _ = collect(CollectConfig(str(copied), metric=metric, where=where))
        assert said in table
    assert points.main(["list", f"results_dir={copied}"]) == 0
    listed = capsys.readouterr().out
    assert all(point in listed for point in (path.name for path in (copied / "runs").iterdir()))
    text = render(copied, now=0.0)
    assert "update sqbench" not in text
    assert contents(copied) == before


def test_intervals_of_old_records_are_made_again_and_written_in_the_new_schema(
    copied: Path, capsys: pytest.CaptureFixture[str], worsened: Callable[[Path], str]
) -> None:
    point = worsened(copied)
    assert points.main(["intervals", f"results_dir={copied}"]) == 2  # the images have no samples here
    assert "points have other intervals now" in capsys.readouterr().out
    again = Store(copied).read(point)
    assert again is not None
    assert (again.schema, again.delta["perplexity"]["low"]) == (2, old("perplexity").delta["perplexity"]["low"])
    assert again.declared == old("perplexity").declared
    assert Store(copied).finished(point)


@pytest.fixture
def worsened() -> Callable[[Path], str]:
    """Gives the perplexity record of a folder an interval that no version has made, in schema 1."""

    def worsen(folder: Path) -> str:
        from sqbench.storage.files import digest

        path = folder / "runs" / old("perplexity").point_id / "record.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        content["delta"]["perplexity"]["low"] = -99.0
        del content["checksum"]
        path.write_text(json.dumps({**content, "checksum": digest(content)}), encoding="utf-8")
        return path.parent.name

    return worsen
