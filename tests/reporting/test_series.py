"""What pictures of records show, as numbers."""

import math
from collections.abc import Callable

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqbench.errors import UserError
from sqbench.records.fields import SERIES
from sqbench.records.record import Record
from sqbench.reporting.frame import results_frame
from sqbench.reporting.grid import Grid, lay_out
from sqbench.reporting.series import apart, curves, front, layers_frame, sized

Make = Callable[..., Record]


def grid(*records: Record, metric: str = "perplexity") -> Grid:
    return lay_out(results_frame(records), SERIES, (), metric)


def test_a_curve_is_a_method_and_bits_with_its_alphas_in_order(make_record: Make) -> None:
    reference, found = curves(
        grid(
            make_record(alpha="auto", perplexity=15.0),
            make_record(alpha=1.0, perplexity=15.4),
            make_record(alpha=0.5, perplexity=15.1),
            make_record("awq", "w4a16", 0.5, perplexity=16.0),
            make_record("rtn", perplexity=15.9),
        )
    )
    assert reference == 14.86
    assert [(curve.label, curve.alphas) for curve in found] == [
        ("rtn w8a8", ()),
        ("smoothquant w8a8", ("0.5", "1", "auto")),
        ("awq w4a16", ("0.5",)),
    ]
    assert found[1].values == (15.1, 15.4, 15.0)
    assert found[1].low == pytest.approx((15.0, 15.3, 14.9))  # the paired difference is +-0.1
    assert found[1].high == pytest.approx((15.2, 15.5, 15.1))


def test_a_percentage_is_shown_as_one(make_record: Make) -> None:
    top1 = {"value": -0.02, "low": -0.03, "high": -0.01, "level": 0.95, "n": 500}
    record = make_record(alpha=0.5, metrics={"top1": 0.78}, baseline={"top1": 0.8}, delta={"top1": top1})
    reference, found = curves(grid(record, metric="top1"))
    assert reference == pytest.approx(80)
    assert (*found[0].values, *found[0].low, *found[0].high) == pytest.approx((78, 77, 79))


def test_the_mean_over_seeds_has_no_interval(make_record: Make) -> None:
    _, found = curves(grid(*(make_record(alpha=0.5, perplexity=15 + seed, identity__seed=seed) for seed in (0, 1))))
    assert found[0].values == (15.5,)
    assert math.isnan(found[0].low[0])


def test_failed_points_are_not_in_a_curve(make_record: Make) -> None:
    _, found = curves(grid(make_record(alpha=0.5), make_record(alpha=0.8, status="failed")))
    assert found[0].alphas == ("0.5",)


def test_results_of_two_models_are_no_picture(make_record: Make) -> None:
    records = [make_record(alpha=0.5, config__model__name=name, identity__model__weights=name * 64) for name in "ab"]
    with pytest.raises(UserError, match=r"2 models \(a, b\) in one picture; use where.model=a"):
        curves(grid(*records))
    with pytest.raises(UserError, match=r"2 models \(a, b\) in one picture; use where.model=a"):
        layers_frame(records)


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=12), st.booleans())
def test_no_point_beats_the_front_and_the_front_beats_all_others(points: list[tuple[int, int]], lower: bool) -> None:
    sizes, values = zip(*points, strict=True)
    found = front(sizes, values, lower=lower)

    def beats(a: int, b: int) -> bool:
        better = values[a] < values[b] if lower else values[a] > values[b]
        as_good = values[a] <= values[b] if lower else values[a] >= values[b]
        return (sizes[a] <= sizes[b] and better) or (sizes[a] < sizes[b] and as_good)

    assert not any(beats(a, b) for a in range(len(points)) for b in found)
    for other in set(range(len(points))) - set(found):
        assert any(beats(a, other) or points[a] == points[other] for a in found)
    assert [sizes[a] for a in found] == sorted(sizes[a] for a in found)


def test_points_and_their_sizes(make_record: Make) -> None:
    def record(method: str, bits: str, perplexity: float, size: float) -> Record:
        return make_record(method, bits, perplexity=perplexity, metrics={"perplexity": perplexity, "weight_bytes": size})

    frame = results_frame(
        [record("rtn", "w4a16", 17.0, 9e7), record("awq", "w4a16", 16.0, 9e7), record("rtn", "w8a8", 16.5, 1.3e8)]
    )
    _, cells = sized(frame, "perplexity")
    assert list(zip(cells["label"], cells["size"], cells["front"], strict=True)) == [
        ("float", 400.0, True),
        ("rtn w8a8", 130.0, False),
        ("rtn w4a16", 90.0, False),
        ("awq w4a16", 90.0, True),
    ]


def test_a_size_against_itself_is_refused(make_record: Make) -> None:
    with pytest.raises(UserError, match="metric=weight_bytes"):
        sized(results_frame([make_record()]), "weight_bytes")


def test_of_what_nobody_knows_better_from_worse_nothing_is_circled() -> None:
    assert front([1.0, 2.0], [5.0, 4.0], lower=None) == []


LAYERS = [{"layer": "a", "weight_sqnr_db": 40.0, "input_sqnr_db": 30.0}, {"layer": "b", "weight_sqnr_db": 41.0}]


def test_layers_keep_their_order_and_their_gaps(make_record: Make) -> None:
    found = layers_frame(
        [make_record(alpha=0.5, quantized={"per_layer": LAYERS}), make_record("fp", "fp", quantized={"per_layer": []})]
    )
    assert list(found["layer"]) == ["a", "b"]
    assert list(found["index"]) == [0, 1]
    assert set(found["label"]) == {"smoothquant w8a8 α=0.5"}
    assert math.isnan(found["input_sqnr_db"][1])


def test_points_that_are_alike_are_told_apart(make_record: Make) -> None:
    records = [make_record("rtn", quantized={"per_layer": LAYERS}, identity__seed=seed) for seed in (0, 1)]
    assert sorted(set(layers_frame(records)["label"])) == ["rtn w8a8 seed=0", "rtn w8a8 seed=1"]
    records = [make_record("rtn", quantized={"per_layer": LAYERS}, identity__calibration={"windows": count}) for count in (8, 16)]
    assert layers_frame(records)["label"].nunique() == 2


def test_too_many_lines_and_none_are_refused(make_record: Make) -> None:
    many = [make_record(alpha=step / 20, quantized={"per_layer": LAYERS}) for step in range(20)]
    with pytest.raises(UserError, match=r"20 lines.*where.method"):
        layers_frame(many)
    with pytest.raises(UserError, match="no finished point has quantized layers"):
        layers_frame([make_record(status="failed")])


def test_apart_names_only_what_differs_among_the_same() -> None:
    cells = pd.DataFrame(
        {
            "method": ["rtn", "rtn", "rtn", "awq"],
            "bits": ["w4", "w4", "w8", "w4"],
            "alpha": ["", "", "", "0.5"],
            "weights": ["group 32", "group 64", "channel", "group 64"],
            "head": ["", "", "", ""],
        }
    )
    assert apart(cells, ["weights", "head"]).tolist() == ["weights=group 32", "weights=group 64", "", ""]
    assert apart(cells, []).tolist() == [""] * 4
