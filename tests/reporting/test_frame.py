import math
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqbench.comparison import Metric, main_metric
from sqbench.errors import UserError
from sqbench.formats.format import Format
from sqbench.records.fields import describe_format
from sqbench.reporting.frame import COLUMNS, metric_of, metrics_of, results_frame
from sqbench.reporting.order import METHODS, labels, rank
from sqbench.reporting.selection import select


def one(frame, **where):
    """The single row with these values."""
    for name, value in where.items():
        frame = frame[frame[name] == value]
    assert len(frame) == 1
    return frame.iloc[0]


def test_a_record_becomes_one_row_per_metric_and_delta(make_record):
    record = make_record("smoothquant", "w8a8", 0.5)
    frame = results_frame([record])
    assert tuple(frame.columns) == COLUMNS
    point = frame[frame["point_id"] == record.point_id]
    assert list(point["metric"]) == ["perplexity", "delta_perplexity", "kl_to_fp", "agreement", "weight_bytes"]
    row = point.iloc[0]
    assert list(row[["model", "data", "method", "alpha", "bits"]]) == ["smollm2", "pydoc", "smoothquant", "0.5", "w8a8"]
    assert (row["weights"], row["activations"]) == ("int8 sym channel", "int8 sym token dynamic")
    assert (row["ops"], row["backend"], row["device"], row["seed"]) == ("linear", "sim", "cpu", 0)
    assert (row["window"], row["windows"], row["n"]) == (512, 16, 16)
    assert row["value"] == 15.1
    assert math.isnan(row["stderr"])
    delta = one(frame, metric="delta_perplexity")
    assert (delta["value"], delta["low"], delta["high"]) == pytest.approx((0.24, 0.14, 0.34))
    assert delta["level"] == 0.95
    assert pd.isna(one(point, metric="weight_bytes")["n"])  # counted, not sampled


def test_the_baseline_is_there_once_without_a_run_of_its_own(make_record):
    frame = results_frame([make_record(alpha=0.5), make_record(alpha=0.8)])
    row = one(frame, method="fp", metric="perplexity")
    assert (row["point_id"], row["bits"], row["alpha"], row["ops"], row["weights"]) == ("", "fp", "", "", "float32")
    assert row["value"] == 14.86


def test_a_baseline_that_was_run_is_not_repeated(make_record):
    points = [make_record("fp", "fp"), make_record("fp", "fp", identity__seed=1), make_record("rtn")]
    # Records come in any order; which of them is met first must not matter.
    for records in (points, points[::-1]):
        row = one(results_frame(records), method="fp", metric="perplexity")
        assert row["point_id"] == min(points[0].point_id, points[1].point_id)


def test_a_baseline_run_that_failed_stays_visible(make_record):
    frame = results_frame([make_record("fp", "fp", status="failed"), make_record("rtn")])
    assert sorted(frame[frame["method"] == "fp"]["status"].unique()) == ["failed", "ok"]


@pytest.mark.parametrize(
    "change", [{"identity__data__windows": 32}, {"identity__model__dtype": "bfloat16"}, {"identity__device": "cuda"}]
)
def test_each_setting_of_the_float_model_has_its_baseline(make_record, change):
    frame = results_frame([make_record(), make_record(baseline={"perplexity": 15.0}, **change)])
    assert sorted(frame[(frame["method"] == "fp") & (frame["metric"] == "perplexity")]["value"]) == [14.86, 15.0]


def test_the_interval_has_no_say_in_the_baseline(make_record):
    frame = results_frame([make_record(), make_record(identity__eval__resamples=1000, identity__eval__level=0.9)])
    one(frame, method="fp", metric="perplexity")


def test_a_failed_point_is_one_row(make_record):
    frame = results_frame([make_record(status="failed")])
    row = one(frame, status="failed")
    assert (row["metric"], row["error"]) == ("", "ValueError: no range")
    assert math.isnan(row["value"])


def test_a_standard_error_stands_beside_its_metric(make_record):
    metrics = {"acc,none": 0.5, "acc_stderr,none": 0.01, "perplexity": 9.0, "perplexity_stderr": "N/A"}
    frame = results_frame([make_record(metrics=metrics, baseline={}, delta={})])
    assert list(frame["metric"]) == ["perplexity", "acc,none"]
    assert one(frame, metric="acc,none")["stderr"] == 0.01
    assert math.isnan(one(frame, metric="perplexity")["stderr"])


def test_what_no_column_shows_is_named_in_variant(make_record):
    alike = make_record("percentile", identity__method__percentile=99.9)
    other = make_record("percentile", identity__method__percentile=99.99, identity__calibration__search_windows=8)
    frame = results_frame([alike, other, make_record("rtn")])
    variants = set(frame["variant"]) - {""}
    assert variants == {"calibration.search_windows=null, percentile=99.9", "calibration.search_windows=8, percentile=99.99"}
    assert set(frame[frame["method"] == "rtn"]["variant"]) == {""}


def test_what_calibrated_and_how_texts_were_searched_are_columns(make_record):
    text = {"text": "b" * 64}
    calibrations = {"data": text, "other": {"text": "d" * 64}, "random": {"source": "random"}, "weights": {"source": "weights"}}
    records = [make_record(identity__calibration={"windows": 8, "seed": 0, **one}) for one in calibrations.values()]
    generated = {"name": "generation", "prompt": 64, "decode": 32}
    records += [make_record(identity__eval={**generated, "beams": beams}) for beams in (1, 4)]
    frame = results_frame(records)
    assert set(frame["variant"]) == {""}
    points = frame[(frame["metric"] == "perplexity") & (frame["method"] != "fp")]
    own = points[points["eval"] == "perplexity"]
    assert list(zip(own["source"], own["samples"], strict=True)) == [(source, 8) for source in calibrations]
    assert list(points[points["eval"] == "generation"]["beams"]) == [1, 4]
    floats = frame[(frame["metric"] == "perplexity") & (frame["method"] == "fp")]
    assert sorted(labels(floats["beams"])) == ["", "1", "4"]
    assert set(floats["source"]) == {""}


def test_seeds_are_no_variant(make_record):
    frame = results_frame([make_record(), make_record(identity__seed=1), make_record(identity__calibration__seed=2)])
    assert set(frame["variant"]) == {""}
    assert sorted(frame[frame["metric"] == "perplexity"]["seed"].dropna()) == [0, 0, 1]


def test_order_is_that_of_the_field_whatever_the_input(make_record):
    records = [make_record("smoothquant", "w8a8", alpha) for alpha in ("auto", 0.8, 0.05, 0.1, 1.0)]
    records += [make_record("zeta"), make_record("awq", "w4a16"), make_record("rtn", "w4a16"), make_record("rtn")]
    frame, again = results_frame(records), results_frame(records[::-1])
    pd.testing.assert_frame_equal(frame, again)
    points = frame[frame["metric"] == "perplexity"]
    assert list(zip(points["method"], points["bits"], points["alpha"], strict=True)) == [
        ("fp", "fp", ""),
        ("rtn", "w8a8", ""),
        ("rtn", "w4a16", ""),
        *(("smoothquant", "w8a8", alpha) for alpha in ("0.05", "0.1", "0.8", "1", "auto")),
        ("awq", "w4a16", ""),
        ("zeta", "w8a8", ""),
    ]


@given(st.lists(st.sampled_from(["fp", "w8a16", "w8a8", "w8a8_dynamic", "w6a6", "w4a16", "w4a4", "w3a16", "mine"]), unique=True))
def test_schemes_go_from_float_to_narrow(names):
    known = ["fp", "w8a16", "w8a8", "w8a8_dynamic", "w6a6", "w4a16", "w4a4", "w3a16", "mine"]
    assert sorted(names, key=lambda name: rank("bits", name)) == [name for name in known if name in names]


def test_methods_start_with_the_baseline():
    assert sorted(["own", *reversed(METHODS)], key=lambda name: rank("method", name)) == [*METHODS, "own"]
    assert METHODS[0] == "fp"


def test_no_records_make_an_empty_frame():
    frame = results_frame([])
    assert tuple(frame.columns) == COLUMNS
    assert frame.empty


def test_select_keeps_the_baseline_of_what_it_keeps(make_record):
    elsewhere = make_record("rtn", identity__data__text="d" * 64, config__data__name="wiki")
    frame = select(results_frame([make_record("rtn"), make_record(alpha=0.5), elsewhere]), method=["smoothquant"], data=None)
    assert set(zip(frame["method"], frame["data"], strict=True)) == {("fp", "pydoc"), ("smoothquant", "pydoc")}


def test_select_names_what_is_there(make_record):
    with pytest.raises(UserError, match=r"where.method=smothquant: did you mean smoothquant\? known: fp, rtn, smoothquant"):
        select(results_frame([make_record("rtn"), make_record()]), method=["smothquant"])


def test_the_rows_of_a_metric_know_it_and_its_change(make_record):
    frame = results_frame([make_record(), make_record("rtn")])
    assert list(metrics_of(frame)) == ["perplexity", "weight_bytes", "kl_to_fp", "agreement"]  # the float model has two
    assert list(metrics_of(frame, compared=True)) == ["perplexity"]
    assert (metric_of(frame, "perplexity").lower, metric_of(frame, "weight_bytes").unit) == (True, "MB")
    assert metric_of(frame, "nobody_knows") == Metric("nobody_knows")
    assert main_metric(metrics_of(frame).values()).name == "perplexity"


def test_a_frame_of_failed_points_knows_the_metric_that_is_missing(make_record):
    assert list(metrics_of(results_frame([make_record(status="failed")]))) == ["perplexity"]


@pytest.mark.parametrize(("one", "other", "together"), [
    ("lower", "lower", "lower"), (None, "higher", "higher"), ("higher", None, "higher"), ("lower", "higher", None),
])  # fmt: skip
def test_records_that_disagree_on_a_metric_leave_its_direction_open(make_record, one, other, together):
    def declaring(method, better):
        return replace(make_record(method), declared={"perplexity": Metric("perplexity", better, decimals=2)})

    frame = results_frame([declaring("rtn", one), declaring("mse", other)])
    assert {metric.better for metric in frame["declared"][frame["metric"] == "perplexity"]} == {together}


@pytest.mark.parametrize("fields", [
    {"bits": 8, "granularity": "channel"},
    {"bits": 4, "symmetric": False, "granularity": "group", "group_size": 64},
    {"bits": 8, "granularity": "token", "dynamic": True},
])  # fmt: skip
def test_a_format_reads_as_the_quantizer_prints_it(fields):
    assert describe_format(fields) == str(Format(**fields))
