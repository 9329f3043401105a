"""Pictures are whole files, readable, and the same bytes every time."""

import contextlib
import itertools
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.figure import Figure
from PIL import Image

from sqbench import plot
from sqbench.errors import UserError
from sqbench.records.record import Record
from sqbench.records.store import Store
from sqbench.reporting import divisions, looks, plots, series, style, surfaces
from sqbench.reporting.frame import results_frame
from sqbench.reporting.grid import lay_out

Make = Callable[..., Record]


def layer_noise(count: int, top: float) -> dict[str, Any]:
    return {"per_layer": [{"layer": f"l.{i}", "weight_sqnr_db": top + i % 3, "input_sqnr_db": top - i % 5} for i in range(count)]}


@pytest.fixture
def records(make_record: Make) -> list[Record]:
    made = [make_record(alpha=alpha, perplexity=15 + i / 10) for i, alpha in enumerate((0.3, 0.5, 0.8, "auto"))]
    made += [make_record("awq", "w4a16", alpha, perplexity=16.0) for alpha in (0.3, 0.5)]
    made += [
        make_record("rtn", perplexity=16.4),
        make_record("mse", perplexity=900.0),
        make_record("rtn", "w4a16", status="failed"),
    ]
    return [replace(record, quantized=record.quantized and layer_noise(6, 30 + place)) for place, record in enumerate(made)]


def tensors(name: str, scale: float) -> surfaces.Tensors:
    generator = np.random.default_rng(0)
    x, weight = generator.normal(size=(40, 30)), generator.normal(size=(30, 20))
    x[:, 3] *= scale
    weight[5] = 0  # a dead channel
    return surfaces.Tensors(name, x, weight, np.abs(x).max(0), np.abs(weight).max(1), (-scale, scale))


def division() -> divisions.Division:
    generator = np.random.default_rng(0)
    scale, norm, ranges = generator.uniform(0.5, 20, 30), generator.normal(size=30), generator.uniform(1, 50, 30)
    return divisions.Division(
        scale, (norm, norm / scale), (norm, norm / scale), (ranges, ranges / scale), (1 / ranges, scale / ranges)
    )


def drawn(records: list[dict[str, Any]]) -> dict[str, Callable[[], Figure]]:
    frame = results_frame(records)
    two = [tensors("original", 30.0), tensors("smoothed", 2.0)]
    return {
        "alpha": lambda: plots.alpha_picture(lay_out(frame, series.SERIES, (), "perplexity")),
        "pareto": lambda: plots.pareto_picture(frame, "perplexity"),
        "layers": lambda: plots.layers_picture(series.layers_frame(records)),
        "two": lambda: surfaces.distributions_picture(two, "t", "c", channel="channel", tokens=8, channels=8),
        "one": lambda: surfaces.distributions_picture(two[:1], "t", "c", channel="channel", tokens=8, channels=8),
        "divided": lambda: divisions.divided_picture(division(), "t", "c"),
    }


@pytest.mark.parametrize(
    "name",
    ["alpha", "pareto", "layers", pytest.param("two", marks=pytest.mark.slow), pytest.param("divided", marks=pytest.mark.slow)],
)
def test_files_open_and_are_the_same_twice(
    name: str, records: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(style, "DPI", 80)  # a size in whole pixels
    saved = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        with style.applied():
            figure = drawn(records)[name]()
            saved.append(style.save(figure, folder, name, ["png", "svg"]))
    assert [path.name for path in saved[0]] == [f"{name}.png", f"{name}.svg"]
    assert [path.read_bytes() for path in saved[0]] == [path.read_bytes() for path in saved[1]]
    size = tuple(round(inches * style.DPI) for inches in figure.get_size_inches())
    with Image.open(saved[0][0]) as image:
        assert image.size == pytest.approx(size, abs=1)
        assert len(set(image.convert("L").resize((64, 64)).tobytes())) > 10  # no empty sheet
    assert ElementTree.parse(saved[0][1]).getroot().tag.endswith("svg")
    assert saved[0][1].stat().st_size < 2_000_000
    assert b"2026" not in saved[0][1].read_bytes()[:2000]  # no date
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [f"{name}.png", f"{name}.svg"]


@pytest.mark.parametrize("name", ["alpha", "pareto", "layers", "two", "one", "divided"])
def test_all_text_is_inside_the_sheet_and_large_enough(name: str, records: list[dict[str, Any]]) -> None:
    with style.applied():
        figure = drawn(records)[name]()
        figure.draw_without_rendering()
        width, height = figure.bbox.size
        texts = [text for text in figure.findobj(mpl.text.Text) if text.get_visible() and text.get_text().strip()]
        assert len(texts) > 10
        for text in texts:
            assert text.get_fontsize() >= 8 or "mathdefault" in text.get_text()
        for text in (figure._suptitle, figure._supxlabel, *(axes.title for axes in figure.axes)):
            box = text.get_window_extent()
            assert box.x0 >= -1, text
            assert box.x1 <= width + 1, text
            assert box.y0 >= -1, text
            assert box.y1 <= height + 1, text


def look_at(figure: Figure) -> None:
    """Fail if a text is cut off or hidden by another name, or a legend is larger than its plot."""
    figure.draw_without_rendering()
    sheet = figure.bbox.padded(1)
    undrawn = set()  # labels of ticks beyond the ends of an axis
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            undrawn |= set() if low <= tick.get_loc() <= high else {tick.label1, tick.label2}
    for text in figure.findobj(mpl.text.Text):
        if text.get_visible() and text.get_text().strip() and text not in undrawn:
            box = text.get_window_extent()
            assert sheet.containsx(box.x0), text
            assert sheet.containsx(box.x1), text
            assert sheet.containsy(box.y0), text
            assert sheet.containsy(box.y1), text
    for axes in figure.axes:
        plot = axes.get_window_extent()
        if (legend := axes.get_legend()) is not None:
            box = legend.get_window_extent()
            assert box.height < plot.height
            assert box.width <= figure.bbox.width
            assert not box.overlaps(plot.shrunk(0.99, 0.99))
        boxes = [text.get_window_extent() for text in axes.texts]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    labels = [axes.yaxis.label.get_window_extent() for axes in figure.axes if axes.yaxis.label.get_text()]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(labels, 2))


@pytest.mark.parametrize("name", ["alpha", "pareto", "layers"])
def test_no_text_is_cut_and_no_legend_larger_than_its_plot(name: str, records: list[dict[str, Any]]) -> None:
    with style.applied():
        look_at(drawn(records)[name]())


@pytest.mark.slow
@pytest.mark.parametrize("study", ["methods", "vision", "claims"])
def test_the_pictures_of_the_committed_results_are_whole(study: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(__file__).parents[2] / "results" / "reference" / study
    seen = []

    def look(config: Any, figure: Figure, *stem: str) -> list[Path]:
        look_at(figure)
        seen.append(stem[0])
        return []

    monkeypatch.setattr(plot, "_save", look)
    models = {record.config["model"]["name"] for record in Store(folder).records(brief=True)}
    for model, make in itertools.product(sorted(models), (plot.alpha, plot.pareto, plot.layers)):
        for bits in (None, ["w8a8"], ["w4a16"]):
            with contextlib.suppress(UserError):  # no such points, or too many lines for one picture
                make(plot.RecordsConfig(results_dir=str(folder), where={"model": [model], "bits": bits}), [])
    assert {"pareto"} < set(seen)


@pytest.mark.parametrize("name", ["alpha", "pareto"])
def test_every_series_is_named_beside_its_marks_or_else_in_the_legend(name: str, records: list[dict[str, Any]]) -> None:
    with style.applied():
        (axes,) = drawn(records)[name]().axes
    legend = axes.get_legend()
    listed = [] if legend is None else [text.get_text() for text in legend.get_texts()]
    beside = [text.get_text() for text in axes.texts]
    assert len(beside) > 2
    for label in axes.get_legend_handles_labels()[1]:
        assert (label in listed) != any(text == label or text.startswith(f"{label} α") for text in beside), label


def test_two_series_never_look_alike() -> None:
    for bits in looks.SHAPES:
        same = style.Series()  # a method and a format: the hardest case
        found = [same.look("smoothquant", bits) for _ in range(10)]
        assert len({(one["linestyle"], one.get("markerfacecolor")) for one in found}) == len(found)
    many = style.Series()
    apart = [many.look(method, bits) for method in looks.COLOURS for bits in looks.SHAPES]
    assert len({(one["color"], one["marker"]) for one in apart}) == len(apart)


def test_a_point_looks_the_same_in_every_picture() -> None:
    alone, beside = style.Series(), style.Series()
    beside.look("rtn", "w8a8")
    assert alone.look("awq", "w4a16") == beside.look("awq", "w4a16")


def test_the_users_own_settings_change_nothing_and_come_back(records: list[dict[str, Any]], tmp_path: Path) -> None:
    files = []
    for size in (5, 20):
        with mpl.rc_context({"font.size": size, "axes.facecolor": "red"}):
            with style.applied():
                files += style.save(drawn(records)["pareto"](), tmp_path / str(size), "p", ["png"])
            assert mpl.rcParams["font.size"] == size
    assert files[0].read_bytes() == files[1].read_bytes()


def test_an_axis_that_spans_much_is_logarithmic(records: list[dict[str, Any]]) -> None:
    with style.applied():
        wide = drawn(records)["pareto"]()
        narrow = drawn([record for record in records if record.identity["method"]["name"] != "mse"])["pareto"]()
    assert (wide.axes[0].get_yscale(), narrow.axes[0].get_yscale()) == ("log", "linear")


def test_without_any_alpha_there_is_no_alpha_picture(make_record: Make) -> None:
    with pytest.raises(UserError, match="no finished point has an alpha"), style.applied():
        drawn([make_record("rtn")])["alpha"]()


def test_names_of_files_are_plain_and_failures_leave_none(tmp_path: Path) -> None:
    class Broken(Figure):
        def savefig(self, *args: Any, **options: Any) -> None:
            raise OSError("full")

    (path,) = style.save(Figure(figsize=(1, 1)), tmp_path, "alpha-../a b/c,none", ["png"])
    assert path == tmp_path / "alpha-..-a-b-c,none.png"
    with pytest.raises(OSError, match="full"):
        style.save(Broken(), tmp_path, "x", ["png"])
    assert list(tmp_path.iterdir()) == [path]


@given(
    arrays(np.float64, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.floats(-100, 100)),
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_decimation_keeps_every_peak(values: np.ndarray, rows: int, columns: int) -> None:
    heights, row_starts, column_starts = surfaces.decimate(values, rows, columns)
    assert heights.shape == (min(rows, values.shape[0]), min(columns, values.shape[1]))
    assert heights.max() == np.abs(values).max()
    owners = [
        np.searchsorted(starts, range(size), side="right") - 1
        for starts, size in zip((row_starts, column_starts), values.shape, strict=True)
    ]
    assert (np.abs(values) <= heights[np.ix_(*owners)]).all()
    if heights.shape == values.shape:
        assert np.array_equal(heights, np.abs(values))


def test_ratio_leaves_dead_channels_out() -> None:
    assert surfaces.ratio(np.array([0.0, 0.0, 0.0, 2.0, 2.0, 50.0])) == 25
    assert surfaces.ratio(np.zeros(3)) == 1


def test_both_states_share_axes_and_colours(records: list[dict[str, Any]]) -> None:
    with style.applied():
        figure = drawn(records)["two"]()
    for first, second in (figure.axes[:2], figure.axes[2:4]):
        assert first.get_zlim() == second.get_zlim()
        assert first.collections[0].get_clim() == second.collections[0].get_clim()
    assert figure.axes[0].get_zlim()[1] == np.abs(tensors("original", 30.0).activation).max()


def test_the_table_has_the_channels_with_the_largest_input() -> None:
    shown = division()
    table = divisions.division_table(shown, "t")
    channels = [str(channel) for channel in np.argsort(-shown.activation[0])[: divisions.TOP]]
    assert [*table.columns[0].cells] == [*channels, "median |.|"]
    assert [column.header for column in table.columns] == [
        "channel",
        "s",
        "norm weight",
        "norm bias",
        "input absmax",
        "weight column absmax",
    ]
    bare = divisions.Division(shown.scale, shown.norm, None, shown.activation, shown.columns)
    assert len(divisions.division_table(bare, "t").columns) == 5  # an RMSNorm has no bias
