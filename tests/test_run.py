"""The command line end to end: what a sweep leaves on disk and says, again, by force, in parts, and when a point fails."""

import json
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cli import Ended, call, contents, run, tiny_run
from hydra.core.override_parser.overrides_parser import OverridesParser

import sqbench
from sqbench import points
from sqbench.console.overrides import written
from sqbench.errors import UserError
from sqbench.records.store import Store
from sqbench.running import assembly, flow
from sqbench.storage.files import digest

Command = Callable[..., Ended]

SCHEMA = {
    *("schema", "point_id", "status", "error", "identity", "config", "metrics", "baseline", "delta", "declared"),
    *("samples", "share", "quantized", "cost", "provenance", "checksum"),
}
SWEEP = ("method=smoothquant,awq,rtn", "alpha=0.3,0.8")
FIVE = [("rtn", None), ("smoothquant", 0.3), ("smoothquant", 0.8), ("awq", 0.3), ("awq", 0.8)]


def records(results: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in results.glob("runs/*/record.json")}


def numbers(results: Path) -> dict[str, Any]:
    """All that a run computed, and nothing of when and where."""
    return {
        name: [record[key] for key in ("identity", "metrics", "baseline", "delta", "quantized", "status")]
        for name, record in records(results).items()
    }


def plain(text: str) -> list[list[str]]:
    """The words of each line."""
    return [line.split() for line in text.splitlines()]


def check_record(record: dict[str, Any], results: Path) -> None:
    """Every field of the contract, and that they agree with each other."""
    assert record.keys() == SCHEMA
    assert (record["schema"], record["status"], record["error"]) == (2, "ok", None)
    assert record["point_id"] == digest(record["identity"])[:12]
    assert record["checksum"] == digest({key: value for key, value in record.items() if key != "checksum"})
    assert record["identity"].keys() == {
        *("revision", "model", "data", "method", "recipe", "scheme", "calibration", "eval", "seed", "backend", "device"),
    }
    config = record["config"]
    assert config["data"]["windows"] == 4
    assert config["results_dir"] == str(results)
    assert config["calibration"]["seed"] == 0  # resolved, not ${seed}

    metrics, baseline = record["metrics"], record["baseline"]
    assert metrics.keys() == baseline.keys() == {"perplexity", "bits_per_byte", "kl_to_fp", "agreement", "weight_bytes"}
    assert 1 < metrics["perplexity"] < 2 * baseline["perplexity"]
    assert (baseline["kl_to_fp"], baseline["agreement"]) == (0, 1)
    assert 0 < metrics["kl_to_fp"] < 1
    assert 0.5 < metrics["agreement"] <= 1
    assert metrics["weight_bytes"] < baseline["weight_bytes"]

    delta = record["delta"]["perplexity"]
    assert delta["value"] == pytest.approx(metrics["perplexity"] - baseline["perplexity"])
    assert delta["low"] <= delta["high"]
    assert (delta["level"], delta["n"]) == (0.95, 4)
    assert delta["p"] >= 0.125  # four windows have 2^4 signs, and no test at 5 %
    assert delta["detectable"] > 0
    columns = set(pd.read_parquet(results / "runs" / record["point_id"] / "samples.parquet"))
    outcomes = [metric.get("outcome") for metric in record["declared"].values()]
    assert {outcome["column"] for outcome in outcomes if outcome} == {"nll", "kl", "agreement"} <= columns

    quantized = record["quantized"]
    assert quantized["layers"] == 14  # seven linears in each of two layers
    assert 0 < quantized["coverage"] <= 1
    assert len(quantized["per_layer"]) == 14
    assert {"layer", "weight_sqnr_db", "absmax", "ratio"} <= quantized["per_layer"][0].keys()
    assert isinstance(quantized["refused"], list)
    alpha = record["identity"]["method"].get("alpha")
    assert bool(quantized["groups"]) == (alpha is not None)
    assert all(group["alpha"] == alpha for group in quantized["groups"])

    cost = record["cost"]
    assert cost.keys() == {"seconds", "peak_rss_bytes", "weight_bytes"}
    assert cost["seconds"].keys() == {"load", "baseline", "calibrate", "quantize", "lower", "evaluate", "total"}
    assert sum(cost["seconds"].values()) <= 2 * cost["seconds"]["total"] + 0.01
    assert 50e6 < cost["peak_rss_bytes"] < 50e9
    assert cost["weight_bytes"] == metrics["weight_bytes"]

    provenance = record["provenance"]
    assert {"git", "versions", "hardware", "fingerprints", "command", "time", "sweep"} <= provenance.keys()
    assert provenance["versions"]["sqbench"] == sqbench.__version__
    assert provenance["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"model", "text", "calibration_windows"} <= provenance["fingerprints"].keys()
    assert provenance["fingerprints"]["model"] == record["identity"]["model"]["weights"]
    assert len(provenance["fingerprints"]["calibration_windows"]) == 4
    assert provenance["command"].startswith("python -m sqbench.run model=hf ")

    folder = results / "runs" / record["point_id"]
    assert {path.name for path in folder.iterdir()} == {"record.json", "samples.parquet", "stdout.log"}
    samples = pd.read_parquet(folder / "samples.parquet")
    assert list(samples.columns) == ["window", "tokens", "nll", "nll_fp", "kl", "agreement"]
    assert samples["window"].tolist() == [0, 1, 2, 3]
    assert samples["tokens"].tolist() == [63] * 4
    assert metrics["kl_to_fp"] == pytest.approx(samples["kl"].mean())


@pytest.mark.slow
def test_a_sweep_end_to_end_then_again_then_by_force(
    tiny_folder: Path, text_file: Path, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All is computed, in a process of its own; nothing is touched; all is computed again, to the last bit the same."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    line = ["-m", *tiny_run(tiny_folder, text_file, results, *SWEEP)]
    first = run(*line, cwd=elsewhere)
    assert first.returncode == 0, first.stderr
    found = records(results)
    assert sorted((r["identity"]["method"]["name"], r["identity"]["method"].get("alpha")) for r in found.values() if r) == sorted(
        FIVE, key=lambda point: (point[0], point[1] or 0)
    )
    for record in found.values():
        check_record(record, results)
    assert len({record["provenance"]["sweep"] for record in found.values()}) == 1
    assert len({json.dumps(record["baseline"]) for record in found.values()}) == 1
    assert {path.name for path in results.iterdir()} == {"runs", "cache", "sweeps"}
    assert list(elsewhere.iterdir()) == []

    rows = [words for words in plain(first.stdout) if words and words[-1] in ("done", "float")]
    assert [words[0] for words in rows] == ["fp", "rtn", "smoothquant", "smoothquant", "awq", "awq"]
    by_name = {(r["identity"]["method"]["name"], r["identity"]["method"].get("alpha")): r for r in found.values()}
    for words, point in zip(rows[1:], FIVE, strict=True):
        assert f"{by_name[point]['metrics']['perplexity']:.2f}" in words, words
    assert f"5 done · records in {results / 'runs'}" in " ".join(first.stdout.split())
    assert f"python -m sqbench.collect results_dir={results}" in " ".join(first.stdout.split())
    assert "6 combinations are 5 points" in first.stderr
    for number, record in enumerate(found.values(), 1):  # one line a point
        assert re.search(rf"^\[{number}/5\] done ", first.stderr, re.MULTILINE), first.stderr
        assert len(re.findall(record["point_id"], first.stderr)) == 1
    assert "\x1b" not in first.stdout + first.stderr
    assert "\r" not in first.stdout + first.stderr
    few = "Over 4 examples, 95 % intervals held the true change in 89 of 100 simulated comparisons"
    few += " in which a few changed far more than the rest"
    assert first.stdout.splitlines().count(few) == 1  # once a sweep, and not once a point
    known = r"loading PyTorch, then |6 combinations|\[\d/5\]|\w+: \d+ of \d+"
    unexpected = [text for text in first.stderr.splitlines() if not re.match(known, text)]
    assert unexpected == []  # no library noise

    before = contents(results)
    second = call(*line, capsys=capsys)
    assert second.code == 0, second.err
    assert "5 skipped" in second.out
    assert [words[-1] for words in plain(second.out) if words and words[0] in ("rtn", "smoothquant", "awq")] == ["skipped"] * 5
    after = contents(results)
    assert {name: what for name, what in after.items() if not name.startswith("sweeps/")} == {
        name: what for name, what in before.items() if not name.startswith("sweeps/")
    }

    computed = numbers(results)
    third = call(*line, "force=true", capsys=capsys)
    assert third.code == 0, third.err
    assert "5 done" in third.out
    assert numbers(results) == computed  # floats as they are written: bit for bit
    for name, (modified, content) in contents(results).items():
        if name.startswith("runs/") and not name.endswith("stdout.log"):
            assert modified > before[name][0], name
            if name.endswith(".parquet"):
                assert content == before[name][1], name
        if name.startswith("cache/"):
            assert (modified, content) == before[name], name  # shared, and not made again


def test_help_works_from_any_folder_and_leaves_nothing(tmp_path: Path) -> None:
    done = run("--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("smoothquant", "awq", "smollm2_135m", "w8a8_dynamic", "wikitext2", "alpha_sweep", "results_dir", "force", "plan"):
        assert word in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_details_on_request(command: Command, results: Path) -> None:
    done = command("method=awq", "alpha=auto", "hydra.verbose=true")
    assert done.code == 0, done.err
    lines = [line for line in done.err.splitlines() if re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} sqbench", line)]
    assert len(lines) >= 2, done.err
    log = next(results.glob("runs/*/stdout.log")).read_text()
    for said in (done.err, log):  # the file has the details always
        assert re.search(r"cache/baselines/\S+: computed", said), said
        assert re.search(r"cache/calibration/\S+: computed", said), said


# ---------------------------------------------------------------- one point, and what is the same point


def test_a_point_alone_and_in_a_sweep_is_the_same(command: Command, results: Path) -> None:
    assert command("-m", "method=smoothquant,awq", "alpha=0.3").code == 0
    swept = numbers(results)
    alone = command("method=smoothquant", "alpha=0.3")
    assert alone.code == 0
    assert "1 skipped" in alone.out
    assert numbers(results) == swept
    assert command("method=smoothquant", "alpha=0.3", "force=true").code == 0
    assert numbers(results) == swept  # whatever the process computed before
    assert records(results).keys() == swept.keys()


@pytest.mark.slow
def test_what_cannot_change_a_number_finds_the_finished_point(
    command: Command, results: Path, tmp_path: Path, tiny_folder: Path, text_file: Path
) -> None:
    assert command("method=smoothquant", "alpha=0.5").code == 0
    (point,) = records(results)
    moved = tmp_path / "moved here"
    moved.mkdir()
    for path in tiny_folder.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    (tmp_path / "again.txt").write_bytes(text_file.read_bytes())
    for same in (
        ("alpha=.5",),
        ("alpha=0.50",),
        ("method.alpha=0.5",),
        ("device=cpu",),
        (f"model.name={moved}",),
        (f"data.path={tmp_path / 'again.txt'}",),
        ("bits=w8a8_dynamic",),
    ):
        ended = command("method=smoothquant", "alpha=0.5", *same)
        assert "1 skipped" in ended.out, (same, ended)
    assert list(records(results)) == [point]
    results.rename(tmp_path / "results of yesterday")
    elsewhere = command("method=smoothquant", "alpha=0.5", f"results_dir={tmp_path / 'results of yesterday'}")
    assert "1 skipped" in elsewhere.out


@pytest.mark.slow
def test_the_float_model_is_a_point_like_any_other(command: Command, results: Path) -> None:
    ended = command("-m", "method=fp", "bits=w8a8,w4a16", "alpha=0.3,0.5", "seed=0,1")
    assert ended.code == 0
    assert "8 combinations are 1 points" in ended.err
    ((point, record),) = records(results).items()
    assert record["identity"]["scheme"]["name"] == "fp"
    assert record["metrics"] == record["baseline"]
    assert record["delta"]["perplexity"] == {**record["delta"]["perplexity"], "value": 0, "low": 0, "high": 0}
    assert record["metrics"]["perplexity"] > 1
    assert point in ended.err


@pytest.mark.slow
def test_a_seed_is_another_draw_another_point_and_other_numbers(command: Command, results: Path) -> None:
    assert command("-m", "method=minmax", "seed=0,1").code == 0
    one, two = records(results).values()
    assert one["point_id"] != two["point_id"]
    assert {one["identity"]["seed"], two["identity"]["seed"]} == {0, 1}
    assert one["provenance"]["fingerprints"]["calibration_windows"] != two["provenance"]["fingerprints"]["calibration_windows"]
    assert one["metrics"]["perplexity"] != two["metrics"]["perplexity"]
    assert one["baseline"] == two["baseline"]  # evaluation sees the same windows


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_models_in_half_precision_are_quantized_as_well(command: Command, results: Path, dtype: str) -> None:
    """What moves between layers moves to where it belongs, however coarse the numbers are that show where that is."""
    assert command("-m", f"model.dtype={dtype}", "method=awq,smoothquant", "alpha=0.5", "method.pairs=true").code == 0
    for record in records(results).values():
        assert record["metrics"]["perplexity"] < 1.1 * record["baseline"]["perplexity"], record["identity"]["method"]
        assert sum(group["source"].endswith("_proj") for group in record["quantized"]["groups"]) == 4  # v -> o, up -> down, twice


@pytest.mark.slow
def test_the_same_point_on_two_shelves_has_the_same_numbers(command: Command, results: Path, tmp_path: Path) -> None:
    """Nothing that a process did before, and no cache, has a say in a point's numbers."""
    assert command("-m", "method=awq,smoothquant", "alpha=auto", "calibration.windows=3,4").code == 0
    together = numbers(results)
    for changes in (("method=smoothquant", "calibration.windows=4"), ("method=awq", "calibration.windows=3")):
        shelf = tmp_path / changes[0].removeprefix("method=")
        assert command(*changes, "alpha=auto", f"results_dir={shelf}").code == 0
        ((point, computed),) = numbers(shelf).items()
        assert computed == together[point]


@pytest.mark.slow
def test_models_of_one_sweep_do_not_mix(
    command: Command, results: Path, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What points of a process share is theirs by content: an address that is used again, as ids are, must not bring it back."""
    from safetensors.torch import load_file, save_file

    for name, factor in (("other", 1.5), ("broken", float("nan"))):
        (tmp_path / name).mkdir()
        for path in tiny_folder.iterdir():
            (tmp_path / name / path.name).write_bytes(path.read_bytes())
        tensors = load_file(tiny_folder / "model.safetensors")
        tensors["model.layers.0.mlp.gate_proj.weight"] *= factor
        save_file(tensors, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(flow, "id", lambda _: 0, raising=False)
    folders = f"{tiny_folder},{tmp_path / 'broken'},{tmp_path / 'other'}"
    assert command("-m", "method=minmax", f"model.name={folders}").code == 1
    assert sorted(record["status"] for record in records(results).values()) == ["failed", "ok", "ok"]
    alone = tmp_path / "alone"
    assert command("method=minmax", f"model.name={tmp_path / 'other'}", f"results_dir={alone}").code == 0
    ((point, computed),) = numbers(alone).items()
    assert computed == numbers(results)[point]


# ---------------------------------------------------------------- plans


@pytest.mark.slow
def test_a_plan_computes_nothing_and_tells_the_state_of_every_point(command: Command, results: Path, fails_late: None) -> None:
    empty = command("-m", *SWEEP, "plan=true")
    assert empty.code == 0
    assert not [path for path in results.rglob("*") if path.is_file()]
    assert empty.out.count("to do") == 5
    assert "estimated from the size of the model: 5 points" in empty.out

    assert command("-m", "method=smoothquant,rtn", "alpha=0.3").code == 0
    assert command("method=rtn", "bits=w4a16", "layers=nowhere").code == 1
    before = contents(results)
    ended = command("-m", *SWEEP, "plan=true")
    assert ended.code == 0
    states = {}
    for words in plain(ended.out.replace("│", " ")):
        if words and re.fullmatch(r"[0-9a-f]{12}", words[0]):
            states[words[1], words[3] if words[1] != "rtn" else ""] = " ".join(words[4 if words[1] != "rtn" else 3 : -2])
    assert states == {
        ("smoothquant", "0.3"): "finished",
        ("smoothquant", "0.8"): "to do",
        ("awq", "0.3"): "to do",
        ("awq", "0.8"): "to do",
        ("rtn", ""): "finished",
    }
    assert re.search(r"about \d+ s", ended.out)
    assert "unknown cost" not in ended.out
    assert "failed, to do again" in command("method=rtn", "bits=w4a16", "layers=nowhere", "plan=true").out
    forced = command("-m", *SWEEP, "plan=true", "force=true")
    assert forced.out.count("to do") == 5
    assert contents(results) == before


# ---------------------------------------------------------------- points that fail


@pytest.fixture
def fails_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patterns of layers meet the loaded model alone, as where no architecture tells its layers: `layers=nowhere` fails a point."""
    monkeypatch.setattr(assembly, "check_sizes", lambda resolved, source: None)


@pytest.mark.slow
def test_a_failing_point_is_recorded_the_sweep_goes_on_and_its_line_works_when_pasted(
    tiny_folder: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fails_late: None
) -> None:
    """With spaces, quotes and commas in the paths, which a shell and Hydra each read in their own way."""
    results, text = tmp_path / "my results (2)", tmp_path / "it's a, text=ü.txt"
    text.write_bytes(text_file.read_bytes())
    line = tiny_run(tiny_folder, text_file, results, "method=rtn", "bits=w4a16", "layers=nowhere,null,elsewhere")
    line = [re.sub(r"^data\.path=.*", f'data.path="{text}"', item) for item in line]
    line = [re.sub(r"^results_dir=.*", f"results_dir='{results}'", item) for item in line]
    done = call("-m", *line, capsys=capsys)
    assert done.code == 1, done.err
    assert "Traceback" not in done.out + done.err
    found = records(results)
    assert sorted(record["status"] for record in found.values()) == ["failed", "failed", "ok"]
    assert "1 done, 2 failed" in done.out
    assert "2 failed:" in done.out
    for pattern in ("nowhere", "elsewhere"):
        ((failed,)) = [r for r in found.values() if r["identity"]["scheme"].get("layers") == [pattern]]
        assert (failed["metrics"], failed["quantized"]) == ({}, {})
        assert failed["error"]["type"] == "UserError"
        assert "Traceback" in failed["error"]["traceback"]
        message = f"layers={pattern}: "
        assert message in failed["error"]["message"]
        assert f"{failed['point_id']}  " in done.out
        assert message in done.out
        assert message in (results / "runs" / failed["point_id"] / "stdout.log").read_text()
        assert not (results / "runs" / failed["point_id"] / "samples.parquet").exists()
        assert failed["cost"]["seconds"]["total"] > 0

    commands = [text.strip() for text in done.out.splitlines() if text.strip().startswith("python -m sqbench.run")]
    assert len(commands) == 2
    assert {record["provenance"]["command"] for record in found.values() if record["status"] == "failed"} == set(commands)
    (wanted,) = (text for text in commands if "layers=nowhere" in text)
    times = {name: what for name, what in contents(results).items() if name.endswith("record.json")}
    again = call(*shlex.split(wanted)[3:], capsys=capsys)
    assert again.code == 1, again.err
    assert "layers=nowhere: " in again.out
    retried = {name for name, what in contents(results).items() if name in times and what != times[name]}
    (point,) = (r["point_id"] for r in found.values() if r["identity"]["scheme"].get("layers") == ["nowhere"])
    assert retried == {f"runs/{point}/record.json"}  # this very point, and no other


@pytest.mark.slow
def test_the_line_that_an_experiment_prints_runs_its_point_alone(
    command: Command, results: Path, capsys: pytest.CaptureFixture[str], fails_late: None
) -> None:
    """An experiment asks for a sweep by itself; its points alone must not."""
    ended = command("experiment=awq_int4", "bits=w4a16", "layers=nowhere", "alpha=0.5")
    assert ended.code == 1
    lines = [text.strip() for text in ended.out.splitlines() if text.strip().startswith("python -m sqbench.run")]
    assert len(lines) == len(records(results)) == 2
    (line,) = (text for text in lines if "method=rtn" in text)
    again = call(*shlex.split(line)[3:], capsys=capsys)
    assert again.code == 1
    assert "1 failed ·" in again.out
    assert len(records(results)) == 2


def test_a_failed_point_is_tried_again_and_its_record_replaced(
    command: Command, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from sqbench.evaluation import EVALUATIONS

    def broken(*arguments: object, **options: object) -> None:
        raise MemoryError("not enough of it")

    whole = EVALUATIONS["perplexity"]
    monkeypatch.setitem(EVALUATIONS, "perplexity", replace(whole, run=broken))
    ended = command("-m", "method=rtn,minmax")
    assert ended.code == 1
    assert ended.out.count("not enough of it") == 2
    assert {record["error"]["type"] for record in records(results).values()} == {"MemoryError"}
    monkeypatch.setitem(EVALUATIONS, "perplexity", whole)
    ended = command("-m", "method=rtn,minmax")
    assert ended.code == 0
    assert "2 done" in ended.out
    for record in records(results).values():
        assert (record["status"], record["error"]) == ("ok", None)
    assert len(list(results.glob("runs/*/samples.parquet"))) == 2


def test_a_number_that_no_record_holds_fails_the_point_and_the_sweep_goes_on(
    command: Command, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from sqbench.evaluation import EVALUATIONS

    whole = EVALUATIONS["perplexity"]

    def infinite(model: Any, windows: Any, reference: Any = None) -> Any:
        result = whole.run(model, windows, reference)
        return replace(result, metrics={**result.metrics, "kl_to_fp": float("inf")}) if model.report else result

    monkeypatch.setitem(EVALUATIONS, "perplexity", replace(whole, run=infinite))
    ended = command("-m", "method=rtn,fp")
    assert ended.code == 1
    assert "Traceback" not in ended.err
    assert "1 done, 1 failed" in ended.out
    assert sorted(record["status"] for record in records(results).values()) == ["failed", "ok"]
    (failed,) = (record for record in records(results).values() if record["status"] == "failed")
    assert "kl_to_fp" in failed["error"]["message"]


def test_a_full_disk_fails_the_point_in_words_and_the_sweep_goes_on(
    command: Command, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Store.write

    def full(self: Store, record: dict[str, Any], samples: Any = None) -> Path:
        if record.identity["method"]["name"] == "rtn":
            raise OSError(28, "No space left on device")
        return write(self, record, samples)

    monkeypatch.setattr(Store, "write", full)
    ended = command("-m", "method=rtn,minmax")
    assert ended.code == 1
    assert "Traceback" not in ended.err
    assert "No space left on device" in ended.out
    assert "1 done, 1 failed" in ended.out
    assert list(results.glob("runs/*/claim.json")) == []


def test_the_table_never_breaks_the_command_to_copy(command: Command, tmp_path: Path) -> None:
    long = tmp_path / ('a very long name, it\'s "seed=1" ' * 7).strip()
    ended = command("method=fp", written("results_dir", long))
    assert ended.code == 0, ended.err
    assert [path.name for path in long.iterdir()]
    (line,) = (text for text in ended.out.splitlines() if "sqbench.collect" in text)
    (word,) = shlex.split(line.rpartition("python -m sqbench.collect ")[2])
    (override,) = OverridesParser.create().parse_overrides([word])
    assert (override.key_or_group, override.value()) == ("results_dir", str(long))


@pytest.mark.slow
def test_the_readers_of_a_record_need_no_more_than_the_record(command: Command, results: Path, fails_late: None) -> None:
    """Tables come from what a run left behind, failed points included."""
    from sqbench.collect import CollectConfig, collect

    assert command("-m", "method=rtn,smoothquant", "bits=w4a16", "layers=nowhere,null").code == 1
    table, files = collect(CollectConfig(results_dir=str(results)))
    assert "fail" in next(path for path in files if path.name == "perplexity.csv").read_text()
    assert all(f"| {method}" in table for method in ("rtn", "smoothquant"))


@pytest.mark.slow
def test_points_of_a_run_are_compared_by_window_and_never_over_other_windows(command: Command, results: Path) -> None:
    from sqbench.collect import CollectConfig, collect

    ended = command("-m", "method=rtn,smoothquant", "bits=w4a16,w8a8", "data.windows=8")
    assert ended.code == 0
    short = "Over 8 examples, 95 % intervals held the true change in 91 of 100 simulated comparisons"
    assert ended.out.count(short) == 1
    config = CollectConfig(results_dir=str(results))
    table, files = collect(config)
    assert "sign-flip test by window, Holm over 2 comparisons" in table
    assert short in table
    assert "not compared" not in table
    long = pd.read_csv(files[0])
    changes = long[long["metric"] == "delta_perplexity"]
    assert (changes["p"] >= 2**-7).all()  # of 2^8 signs, two are as uneven as none flipped
    assert (changes["p_holm"] >= changes["p"]).all()
    assert set(changes["test"]) == {"sign-flip test, skew-corrected t interval of the log ratio"}
    assert command("method=rtn", "bits=w4a16", "data.windows=4").code == 0
    with pytest.raises(UserError, match=r"windows=4,8: .* use where.windows=4, or rows=\[method,alpha,windows\]"):
        collect(config)
    collect(CollectConfig(results_dir=str(results), where={"windows": 8}))
    assert files[3].read_text() == table.rstrip("\n") + "\n"
    collect(CollectConfig(results_dir=str(results), rows=["method", "windows"]))


def test_intervals_are_made_again_from_the_samples_of_a_point(
    command: Command, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("method=rtn", "bits=w4a16").code == 0
    store = Store(results)
    (whole,) = store.records()
    path = store.folder(whole.point_id) / "record.json"
    as_run = path.read_bytes()
    capsys.readouterr()
    assert points.main(["intervals", f"results_dir={results}"]) == 0
    assert capsys.readouterr().out == "0 of 1 points have other intervals now\n"
    changed = {**whole.delta["perplexity"], "low": -99.0, "test": "of an earlier version"}
    store.write(replace(whole, delta={**whole.delta, "perplexity": changed}))
    assert path.read_bytes() != as_run
    assert points.main(["intervals", f"results_dir={results}"]) == 0
    assert capsys.readouterr().out == "1 of 1 points have other intervals now\n"
    assert path.read_bytes() == as_run
    (store.folder(whole.point_id) / "samples.parquet").unlink()
    assert points.main(["intervals", f"results_dir={results}"]) == 2
    assert whole.point_id in capsys.readouterr().err
    assert path.read_bytes() == as_run


@pytest.mark.slow
def test_noise_is_in_the_record_and_changes_no_number(command: Command, results: Path) -> None:
    from sqbench.collect import CollectConfig, collect

    line = ("-m", "method=fp,rtn", "bits=w8a8")
    assert command(*line).code == 0
    plain = {record["identity"]["method"]["name"]: record for record in records(results).values() if record}
    assert command(*line, "noise=2").code == 0
    found = [record for record in records(results).values() if record and "noise" in record]
    told = {record["identity"]["method"]["name"]: record for record in found}
    assert told.keys() == plain.keys() == {"fp", "rtn"}
    for name, record in told.items():
        assert "noise" not in plain[name]
        assert record["point_id"] != plain[name]["point_id"]
        assert (record["metrics"], record["delta"]) == (plain[name]["metrics"], plain[name]["delta"])
    noise = told["rtn"]["noise"]
    assert noise["runs"] == 2
    for part in ("metrics", "baseline"):
        spread = noise[part]["perplexity"]
        assert spread["min"] <= told["rtn"][part]["perplexity"] * 1.05
        assert spread["std"] == pytest.approx((spread["max"] - spread["min"]) / 2**0.5)  # of two runs
    assert noise["baseline"]["perplexity"]["std"] > 0
    assert noise["baseline"] == told["fp"]["noise"]["baseline"]
    table, _ = collect(CollectConfig(results_dir=str(results)))
    assert table.count("| rtn") == 1
    assert "Rounding noise: a change of 1e-6 in what the model reads moves perplexity by" in table


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["noise=1"], "noise=1: must be 2 or more"),
        (["noise=3", "eval=latency"], "noise=3: eval=latency measures time, which has its own spread; use noise=0"),
    ],
)
def test_noise_that_cannot_be_told_is_refused(command: Command, overrides: list[str], reason: str) -> None:
    ended = command("method=rtn", *overrides)
    assert ended.code != 0
    assert reason in ended.err
