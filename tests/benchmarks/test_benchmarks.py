"""The benchmarks at a size of seconds: what they time is what they say, and their ratios are those of the times."""

import json
from pathlib import Path

import pytest
import torch
from cli import tiny_run
from labs import Lab

from benchmarks import kernels, latency, llama, plain, runtimes, sweep, timing
from sqbench import api
from sqbench.calibration import Statistics
from sqbench.data import Windows
from sqbench.errors import UserError
from sqbench.evaluation import Result
from sqbench.evaluation.decoding import greedy
from sqbench.models.language import LanguageModel


def test_sides_take_turns_and_warming_up_does_not_count() -> None:
    calls: list[str] = []
    times = timing.alternate({name: lambda name=name: calls.append(name) for name in "AB"}, repetitions=3, warmup=2)  # type: ignore[misc]
    assert "".join(calls) == "AB" * 5
    assert [len(values) for values in times.values()] == [3, 3]


def test_a_ratio_is_taken_inside_its_round() -> None:
    times = {"base": [1.0, 10.0, 100.0], "fast": [0.5, 5.0, 50.0], "noisy": [1.0, 1.0, 100.0]}
    assert timing.speedups(times, "base") == {"base": 1.0, "fast": 2.0, "noisy": 1.0}
    assert timing.medians(times)["fast"] == 5.0


def test_a_child_tells_its_time_memory_and_output() -> None:
    spent, peak, said = timing.child(
        "-c", "block = bytearray(200_000_000); block[::4096] = b'x' * len(block[::4096]); print('done')"
    )
    assert spent > 0.01
    assert peak > 200e6
    assert said == "done\n"
    with pytest.raises(SystemExit, match="exit status 3"):
        timing.child("-c", "import sys; sys.exit(3)")


def test_writing_begins_behind_the_prompt_every_time(tiny: LanguageModel, windows: Windows) -> None:
    ids = windows.evaluation[:1, :16]
    work = runtimes.writing(tiny.module, ids, 5)
    for _ in range(3):
        assert torch.cat(work(), dim=1)[0].tolist() == greedy(tiny.module, ids, 6)[1:].tolist()  # type: ignore[arg-type]


def test_arguments_are_told_from_overrides() -> None:
    own, others = timing.arguments(["work=a,b", "model=x", "repetitions=3"], work=["all"], repetitions=5, backend="int")
    assert own == {"work": ["a", "b"], "repetitions": 3, "backend": "int"}
    assert others == ["model=x"]
    with pytest.raises(UserError, match="repetitions=two: a value of the kind of 5 works"):
        timing.arguments(["repetitions=two"], repetitions=5)
    with pytest.raises(UserError, match=r"fast: key=value works"):
        timing.arguments(["fast"], repetitions=5)
    with pytest.raises(UserError, match=r"work=vti: did you mean vit\?"):
        timing.chosen(["vti"], {"vit": 0})


def test_a_random_model_has_the_size_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["llama", f"folder={tmp_path / 'model'}", "layers=3", "width=64", "heads=4"])
    llama.main()
    assert f"GB in {tmp_path / 'model'}" in capsys.readouterr().out
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["num_hidden_layers"], config["hidden_size"], config["num_attention_heads"]) == (3, 64, 4)
    monkeypatch.setattr("sys.argv", ["llama", "heads=3"])
    with pytest.raises(SystemExit, match="heads=3 does not divide width=512"):
        llama.main()


def test_kernels_are_timed_by_shape() -> None:
    rows = kernels.table(["8x64x32"], repetitions=2)
    assert rows[0][:2] == ["8x64x32", "torch float32"]
    assert rows[0][3] == "1.00"
    assert all(float(row[2]) > 0 for row in rows)
    with pytest.raises(UserError, match="shapes=8x64: ROWSxINxOUT works"):
        kernels.table(["8x64"], repetitions=2)


def test_integer_layers_that_are_timed_compute_the_layer() -> None:
    with torch.no_grad():
        results = {name: work() for name, work in kernels.sides(8, 64, 32).items() if name != "onednn u8s8 alone"}
    expected = results.pop("torch float32")
    for name, found in results.items():
        error = 0.15 if "w4" in name or "bfloat16" in name else 0.03  # of the largest value: the noise of the format
        assert torch.allclose(found.float(), expected, atol=error * float(expected.abs().max())), name  # type: ignore[attr-defined]


@torch.no_grad()
def test_whole_models_take_turns(tiny: LanguageModel, vit: Lab, windows: Windows, statistics: Statistics) -> None:
    quantized = latency.lower(api.quantize(tiny, statistics, "rtn", bits="w8a8_dynamic"), "int")
    sides = {latency.BASE: tiny.module, "W8A8": quantized.module}
    ids = windows.evaluation[:1, :16]
    for work, amount in ((latency.prefill_sides(sides, ids), 16), (latency.decode_sides(sides, ids, 3), 3)):
        rows = latency.measured("work", "tokens/s", amount, work, repetitions=2)
        assert [row[1] for row in rows] == [latency.BASE, "W8A8"]
        assert rows[0][3] == "1.00"
    assert torch.equal(latency.decode_sides(sides, ids, 3)[latency.BASE](), latency.greedy(tiny.module, ids, 3))  # type: ignore[arg-type]
    pictures = latency.vit_sides(vit.model, {}, vit.model.example())
    assert len(latency.measured("vit", "images/s", 2, pictures, repetitions=1)) == 2


def test_resident_bytes_are_those_of_the_quantized_layers(tiny: LanguageModel, statistics: Statistics) -> None:
    rows = latency.resident_rows(tiny, {"same": tiny})
    weights = sum(tiny.module.get_submodule(name).weight.numel() for name in tiny.topology.layers)
    assert rows[0][2] == f"{4 * weights / 1e6:.1f} MB"
    assert rows[1][3] == "1.000"


def test_the_plain_evaluation_has_the_perplexity_of_a_run(
    tiny: LanguageModel, windows: Windows, baseline: Result, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    tiny.module.save_pretrained(tmp_path)
    save_file({"windows": windows.evaluation.contiguous()}, tmp_path / "windows.safetensors")
    found = plain.evaluate(tmp_path)
    assert found["perplexity"] == pytest.approx(baseline.metrics["perplexity"], rel=1e-5)
    assert found["seconds"] > 0
    json.dumps(found)


@pytest.mark.slow
def test_a_sweep_is_measured_beside_plain_evaluations(tiny_folder: Path, text_file: Path, tmp_path: Path) -> None:
    overrides = [item for item in tiny_run(tiny_folder, text_file, tmp_path) if not item.startswith(("tracker=", "results_dir="))]
    rows = sweep.measure({"repetitions": 1, "backend": "sim"}, overrides, tmp_path)
    assert [row[0] for row in rows] == ["six points / six plain evaluations", "peak memory"]
    assert all(float(row[3]) > 0 for row in rows)
