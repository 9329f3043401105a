import io

import pytest
from rich.console import Console

from sqbench.records.outcome import Outcome
from sqbench.reporting.terminal import print_failures, sweep_table


def rendered(thing, width=120, **options):
    out = io.StringIO()
    Console(file=out, width=width, **options).print(thing)
    return out.getvalue()


def line(text, *words):
    """The one line that holds all of these words, as words."""
    (found,) = [one.split() for one in text.splitlines() if set(words) <= set(one.split())]
    return found


def test_a_sweep_shows_the_baseline_then_its_points(make_record):
    done = make_record("smoothquant", "w8a8", 0.5)
    before, failed = make_record("rtn", "w8a8", perplexity=16.0), make_record("awq", "w4a16", status="failed")
    text = rendered(sweep_table([failed, done, before], skipped={before.point_id}))
    header, _, *rows = [one.split() for one in text.splitlines() if one.strip()]
    assert header == ["method", "bits", "alpha", "ppl", "Δ", "fp", "[95%]", "KL", "agree", "MB", "s", "state"]
    assert rows == [
        ["fp", "fp", "14.86", "--", "--", "--", "400.0", "--", "float"],
        ["rtn", "w8a8", "16.00", "+1.14", "[1.04,", "1.24]", "0.0123", "0.930", "100.0", "12.3", "skipped"],
        ["smoothquant", "w8a8", "0.5", "15.10", "+0.240", "[0.140,", "0.340]", "0.0123", "0.930", "100.0", "12.3", "done"],
        ["awq", "w4a16", "--", "--", "--", "--", "--", "12.3", "FAILED"],
    ]


def test_a_baseline_that_was_a_point_has_its_state(make_record):
    text = rendered(sweep_table([make_record("fp", "fp", perplexity=14.86), make_record("rtn")]))
    assert line(text, "fp", "14.86")[-2:] == ["12.3", "done"]


def test_what_points_differ_in_stands_below_the_method(make_record):
    records = [make_record("rtn"), make_record("rtn", identity__seed=1), make_record("rtn", identity__data__windows=64)]
    text = rendered(sweep_table(records))
    rows = [line.split()[0] for line in text.splitlines()[2:] if line.strip()]
    fp = ["fp", "windows=16", "fp", "windows=64"]
    seeds = ["rtn", "windows=16", "seed=0", "rtn", "windows=16", "seed=1", "rtn", "mean"]
    assert rows == [*fp, *seeds, "rtn", "windows=64", "seed=0"]
    assert "model" not in text


def test_formats_are_named_where_a_schemes_name_is_not_enough(make_record):
    coarse = make_record("rtn", identity__scheme__weights__granularity="tensor")
    text = rendered(sweep_table([make_record("rtn"), coarse, make_record("rtn", "w4a16"), make_record("x", identity__method__p=1)]))
    assert text.count("weights=int8 sym channel") == 2
    assert text.count("weights=int8 sym tensor") == 1
    assert "int4" not in text


def test_a_variant_needs_no_name(make_record):
    text = rendered(sweep_table([make_record("rtn", identity__method__p=value) for value in (1, 2)]))
    assert "\np=1 " in text
    assert "\np=2 " in text


def test_the_metric_is_the_one_that_there_is(make_record):
    changes = {"metrics": {"top1": 0.8}, "baseline": {"top1": 0.81}, "delta": {}}
    text = rendered(sweep_table([make_record("rtn", **changes)]))
    assert text.split()[3] == "top1"
    assert line(text, "rtn")[2] == "80.00"


def test_another_metric_can_be_asked_for(make_record):
    text = rendered(sweep_table([make_record("rtn")], metric="kl_to_fp"))
    assert text.split()[3] == "KL"
    assert text.split().count("KL") == 1


@pytest.mark.parametrize("width", [40, 72, 80, 100])
def test_a_narrow_terminal_loses_nothing(make_record, width):
    records = [make_record("mean_minmax"), make_record("smoothquant", "w4a16", "auto", 1234.5), make_record("awq", status="failed")]
    records += [make_record("rtn", identity__scheme__name="w8a8_dynamic", identity__data__windows=64)]
    text, wide = rendered(sweep_table(records), width), rendered(sweep_table(records), 200)
    assert max(map(len, text.splitlines())) <= width
    # Cells may fold, but every character of the wide table is there.
    assert sorted("".join(text.split()).replace("─", "")) == sorted("".join(wide.split()).replace("─", ""))


def test_eighty_columns_keep_numbers_and_names_whole(make_record):
    hard = make_record("smoothquant", "w8a8", 0.5, 215.86, identity__scheme__name="w8a8_dynamic", identity__method__pairs=True)
    words = rendered(sweep_table([hard, make_record("smoothquant", "w8a8", 0.5, 16.0), make_record("mean_minmax")]), 80).split()
    assert {"smoothquant", "mean_minmax", "215.86", "+201.00", "[200.90,", "201.10]", "0.0123", "100.0", "done"} <= set(words)


def test_output_that_is_no_terminal_is_plain(make_record):
    assert "\x1b" not in rendered(sweep_table([make_record("rtn")]))
    assert "\x1b" in rendered(sweep_table([make_record("rtn")]), force_terminal=True, color_system="standard")


def test_names_are_neither_markup_nor_escape_sequences(make_record):
    text = rendered(sweep_table([make_record("[red]x[/red]\x1b[2J"), make_record("[/]")]), force_terminal=True, color_system=None)
    assert "[red]x[/red] [2J" in text
    assert "[/]" in text
    assert "\x1b[2J" not in text


def test_no_records_make_an_empty_table():
    assert "method" in rendered(sweep_table([]))


def test_failures_come_with_the_line_that_runs_them_again():
    error = "no [bold]range[/bold]\nfor\x1b[2J q_proj"
    outcomes = [
        Outcome("aaaaaaaaaaaa", "done", ["method=rtn"]),
        Outcome("bbbbbbbbbbbb", "failed", ["method=awq", "data.path=a b.txt", "alpha=0.5"], 1.0, error),
        Outcome("cccccccccccc", "failed"),
    ]
    out = io.StringIO()
    print_failures(outcomes, Console(file=out, width=40))
    assert out.getvalue().splitlines() == [
        "2 failed:",
        "  bbbbbbbbbbbb  no [bold]range[/bold] for [2J q_proj",
        "    python -m sqbench.run method=awq 'data.path=a b.txt' alpha=0.5",
        "  cccccccccccc  unknown error",
        "    python -m sqbench.run",
    ]


def test_without_failures_nothing_is_printed():
    out = io.StringIO()
    print_failures([Outcome("aaaaaaaaaaaa", "done"), Outcome("bbbbbbbbbbbb", "busy")], Console(file=out))
    assert out.getvalue() == ""


def test_failures_go_to_stderr_by_default(capsys):
    print_failures([Outcome("cccccccccccc", "failed")])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "cccccccccccc" in captured.err


def test_an_outcome_has_a_known_state():
    with pytest.raises(ValueError, match="state=crashed: must be one of done, skipped, failed, busy, planned"):
        Outcome("aaaaaaaaaaaa", "crashed")
