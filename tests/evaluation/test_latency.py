"""Latency: what is counted, that both sides take turns, and that its numbers reach records and tables."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from labs import Lab
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from sqbench import api
from sqbench.calibration import Statistics
from sqbench.collect import main as collect
from sqbench.comparison import speedup
from sqbench.data import Windows
from sqbench.data.images import ImageExamples
from sqbench.errors import UserError
from sqbench.evaluation import Result, natural_evaluation
from sqbench.evaluation import latency as module
from sqbench.evaluation.baseline import in_dtype, reference
from sqbench.evaluation.decoding import Decoder, greedy
from sqbench.evaluation.latency import LATENCY, LatencySettings, latency
from sqbench.evaluation.memory import resident_bytes
from sqbench.models.language import LanguageModel
from sqbench.records.store import Store
from sqbench.reporting.cells import cell_text
from sqbench.reporting.frame import results_frame
from sqbench.reporting.grid import lay_out
from sqbench.reporting.series import shown_cells
from sqbench.reporting.tables import to_markdown

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
SMALL = {"repetitions": 3, "warmup": 1, "prompt": 20, "decode": 4}


class Clock:
    """Time that passes only where a test lets it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(module.time, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def slowed(model: Any, clock: Clock, seconds: float, calls: list[str], name: str) -> Any:
    """The model, every forward pass of which takes so long by the clock."""

    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model.module
            self.config = getattr(model.module, "config", None)
            self.get_input_embeddings = getattr(model.module, "get_input_embeddings", None)

        @functools.wraps(type(model.module).forward)  # a decoder looks at what it takes
        def forward(self, *args: Any, **options: Any) -> Any:
            clock.now += seconds
            calls.append(name)
            return self.inner(*args, **options)

    return model.with_module(Slow(), None)


def test_greedy_decoding_is_that_of_generate(tiny: LanguageModel, windows: Windows) -> None:
    ids = windows.evaluation[:1, :30]
    expected = tiny.module.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert torch.equal(greedy(tiny.module, ids, 12), expected[0, 30:])


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_model_that_gives_all_logits_decodes_the_same(name: str, tiny: LanguageModel, windows: Windows) -> None:
    """Whatever its forward calls the cache: transformers renamed it in 5.24."""

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = tiny.module.config

        def run(self, input_ids: torch.Tensor, cache: Any, use_cache: bool) -> Any:
            known = Decoder(tiny.module).options.keys() - {"logits_to_keep"}
            return tiny.module(input_ids=input_ids, use_cache=use_cache, **dict.fromkeys(known, cache))

    class Current(Whole):
        def forward(self, input_ids: torch.Tensor, cache: Any, use_cache: bool) -> Any:
            return self.run(input_ids, cache, use_cache)

    class Earlier(Whole):
        def forward(self, input_ids: torch.Tensor, past_key_values: Any, use_cache: bool) -> Any:
            return self.run(input_ids, past_key_values, use_cache)

    module = {"cache": Current, "past_key_values": Earlier}[name]()
    ids = windows.evaluation[:1, :30]
    assert Decoder(module).options.keys() == {name}
    assert torch.equal(greedy(module, ids, 6), greedy(tiny.module, ids, 6))


def test_a_past_that_stays_in_its_place_changes_no_token(tiny: LanguageModel, windows: Windows) -> None:
    ids = windows.evaluation[:1, :20]
    decoder = Decoder(tiny.module)
    with torch.no_grad():
        written = [decoder.prefill(ids)]
        assert decoder.keep_in_place(7)
        written += [decoder.step() for _ in range(7)]
    assert torch.equal(torch.cat(written, 1)[0], greedy(tiny.module, ids, 8))
    assert not decoder.record(1)  # there is no GPU


def test_a_model_that_forgets_decodes_from_the_cache_it_has() -> None:
    config = MistralConfig(**SIZES, sliding_window=8)
    module = MistralForCausalLM(config).eval()
    decoder, ids = Decoder(module), torch.arange(12).unsqueeze(0)
    with torch.no_grad():
        decoder.prefill(ids)
        assert not decoder.keep_in_place(4)
        decoder.step()
    assert decoder.cache.get_seq_length() == 13


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: SQBENCH_TEST_GPU=1 lets the tests see one")
@pytest.mark.parametrize("waits", [False, True])
def test_a_recorded_step_writes_what_a_step_writes(waits: bool) -> None:
    torch.manual_seed(0)
    module = LlamaForCausalLM(LlamaConfig(**SIZES)).eval().cuda()
    if waits:  # as a mixture of experts does
        module.model.layers[0].mlp.register_forward_hook(lambda layer, given, output: output * float(output.abs().max() >= 0))
    ids = torch.randint(0, 97, (1, 9), device="cuda")
    decoder = Decoder(module)
    with torch.no_grad():
        written = [decoder.prefill(ids).clone()]
        assert decoder.record(6) is not waits
        written += [decoder.token.clone(), *(decoder.step() for _ in range(6))]
    assert torch.equal(torch.cat(written, 1)[0], greedy(module, ids, 8))


def test_figures_are_work_through_seconds_and_both_sides_take_turns(tiny: LanguageModel, windows: Windows, clock: Clock) -> None:
    calls: list[str] = []
    fast, slow = slowed(tiny, clock, 0.1, calls, "A"), slowed(tiny, clock, 0.4, calls, "B")
    result = latency(fast, windows, Result({}, pd.DataFrame(), slow, None), **SMALL)
    assert calls[:2] == ["B", "B"]  # whether the float model is causal
    assert calls[2:] == (["A"] * 5 + ["B"] * 5) * 4  # one prefill and four tokens each; the first round warms up
    assert len(result.samples) == 3
    assert result.baseline is not None
    for metrics, seconds in ((result.metrics, 0.1), (result.baseline.metrics, 0.4)):
        assert metrics["latency_ms"] == pytest.approx(1000 * seconds)
        assert metrics["tokens_per_s"] == pytest.approx(20 / seconds)
        assert metrics["decode_tokens_per_s"] == pytest.approx(1 / seconds)
    for difference in LATENCY.differences(result.samples, 200, 0.95).values():
        assert (difference.value, difference.low, difference.high) == pytest.approx((4, 4, 4))
        assert difference.n == 3


def test_quantiles_are_of_the_metric_not_of_the_seconds(tiny: LanguageModel, windows: Windows) -> None:
    metrics = latency(tiny, windows, **SMALL).metrics
    for name in ("latency_ms", "tokens_per_s", "decode_tokens_per_s"):
        assert 0 < metrics[f"{name}_p10"] <= metrics[name] <= metrics[f"{name}_p90"]


@pytest.mark.slow
def test_images_are_timed_alone_and_in_batches(vit: Lab, clock: Clock) -> None:
    calls: list[str] = []
    examples = ImageExamples(vit.test, vit.test.inputs(8), vit.train, ("0",), ())
    model = slowed(vit.model, clock, 0.5, calls, "A")
    result = latency(model, examples, repetitions=2, warmup=0, batch=600)  # more than there are
    assert result.metrics["latency_ms"] == pytest.approx(500)
    assert result.metrics["images_per_s"] == pytest.approx(1200)
    assert list(result.samples) == ["repetition", "first_s", "batch_s"]


def test_the_float_model_is_measured_once_and_as_fast_as_itself(tiny: LanguageModel, windows: Windows, tmp_path: Path) -> None:
    base = reference(tiny, windows, "latency", tmp_path)
    assert not list(tmp_path.iterdir())  # nothing to be worth another day
    result = latency(tiny, windows, base, **SMALL)
    assert result.baseline is None
    assert LATENCY.differences(result.samples, 200, 0.95)["tokens_per_s"].value == 1


def test_every_point_is_compared_with_float32(tiny: LanguageModel, windows: Windows, tmp_path: Path) -> None:
    half = in_dtype(tiny, torch.bfloat16)
    assert next(half.module.parameters()).dtype == torch.bfloat16
    assert next(tiny.module.parameters()).dtype == torch.float32
    result = latency(half, windows, reference(half, windows, "latency", tmp_path), **SMALL)
    assert result.baseline is not None
    assert result.baseline.metrics["weight_bytes"] == 2 * result.metrics["weight_bytes"]


def test_resident_bytes_count_every_storage_once() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 4)  # 4 * 36
            self.twin = self.layer
            self.half = self.layer.weight[:2]  # a view
            self.register_buffer("codes", torch.zeros(10, dtype=torch.int8), persistent=False)  # 10
            self.plain = torch.zeros(3, dtype=torch.float64)  # 24
            self.deep = {"a": [(torch.zeros(5, dtype=torch.int16), None)]}  # 10
            self.hidden = [nn.Linear(2, 1, bias=False)]  # 8

    assert resident_bytes(Holder()) == 144 + 10 + 24 + 10 + 8


def test_resident_bytes_see_packed_weights() -> None:
    holder = nn.Module()
    holder.packed = torch.zeros(64, 32).to_mkldnn()
    assert resident_bytes(holder) == 4 * 64 * 32


def test_simulation_saves_no_memory(tiny: LanguageModel, statistics: Statistics) -> None:
    quantized = api.quantize(tiny, statistics, "rtn", bits="w4a16")
    assert resident_bytes(quantized.module) < resident_bytes(tiny.module)  # codes, before anything is computed
    quantized.forward(tiny.example())
    assert resident_bytes(quantized.module) >= resident_bytes(tiny.module)


def test_a_drift_of_the_machine_cancels_in_a_speedup() -> None:
    rng = np.random.default_rng(0)
    slower = np.linspace(1, 5, 15)  # the machine's load, far larger than the gain
    found = speedup(slower * rng.normal(1, 0.01, 15), 1.2 * slower * rng.normal(1, 0.01, 15))
    assert found.value == pytest.approx(1.2, rel=0.02)
    assert 1.15 < found.low <= found.value <= found.high < 1.25
    assert speedup(np.array([1.0, 2.0]), np.array([3.0, 6.0])) == dataclasses.replace(found, value=3.0, low=3.0, high=3.0, n=2)
    assert math.isnan(speedup(np.array([1.0]), np.array([2.0])).low)


def test_settings_that_a_kind_does_not_have_are_no_part_of_its_points() -> None:
    chosen = LatencySettings(repetitions=5, warmup=1, batch=8, prompt=128, decode=16)
    assert chosen.used("images") == {"repetitions": 5, "warmup": 1, "batch": 8}
    assert chosen.used("text") == {"repetitions": 5, "warmup": 1, "prompt": 128, "decode": 16}
    assert chosen.used("sentences") == chosen.used("images")
    assert {natural_evaluation("auto", kind) for kind in LATENCY.kinds} == {"perplexity", "top1", "sentences"}  # never latency


RUN = ("eval=latency", "eval.prompt=16", "eval.decode=2", "eval.repetitions=2", "eval.warmup=0")


@pytest.mark.slow
def test_from_the_command_line_to_a_table(command: Any, results: Path, monkeypatch: Any, capsys: Any) -> None:
    ended = command("-m", *RUN, "method=fp,rtn", "bits=w8a16", "model.dtype=float32,bfloat16")
    assert ended.code == 0, ended.err
    records = {r.identity["method"]["name"] + r.identity["model"]["dtype"]: r for r in Store(results).records()}
    assert len(records) == 4
    for name, record in records.items():
        identity = record.identity["eval"]
        assert identity.items() >= {"prompt": 16, "decode": 2, "repetitions": 2, "warmup": 0, "beside": "float32"}.items()
        assert record.metrics.keys() == record.baseline.keys() >= {"latency_ms", "tokens_per_s", "resident_bytes"}
        assert record.delta["tokens_per_s"]["n"] == 2
        assert (record.delta["tokens_per_s"]["value"] == 1) == (name == "fpfloat32")
        assert {"threads", "cpu_capability"} <= record.provenance["hardware"].keys()
        assert len(pd.read_parquet(results / "runs" / record.point_id / "samples.parquet")) == 2
    assert records["fpbfloat16"].baseline["weight_bytes"] == records["fpfloat32"].metrics["weight_bytes"]
    frame = results_frame(records.values())
    grid = lay_out(frame, ["bits"], [], "tokens_per_s")
    assert len(grid.cells) == 4  # one float32 baseline, which is the point that was run
    text = to_markdown(grid)
    assert "how many times as fast as the float model" in text
    assert text.count("(x") == 3
    monkeypatch.setattr(
        "sys.argv", ["sqbench.collect", f"results_dir={results}", "rows=[bits]", "columns=[]", "metric=resident_bytes"]
    )
    collect()
    assert "resident_bytes (MB)" in (results / "tables" / "resident_bytes.md").read_text()


def test_a_baseline_that_was_no_point_is_float32(command: Any, results: Path) -> None:
    assert command(*RUN, "method=rtn", "bits=w8a16", "model.dtype=bfloat16").code == 0
    frame = results_frame(Store(results).records())
    (row,) = frame[(frame["method"] == "fp") & (frame["metric"] == "tokens_per_s")].to_dict("records")
    assert (row["weights"], row["point_id"], row["n"]) == ("float32", "", 2)


def test_cells_and_curves_of_a_speed(command: Any, results: Path) -> None:
    assert command(*RUN, "method=rtn", "bits=w8a16").code == 0
    frame = results_frame(Store(results).records())
    for metric in ("tokens_per_s", "latency_ms"):
        grid = lay_out(frame, ["method", "bits"], [], metric)
        cell = next(cell for cell in grid.cells.itertuples() if cell.method == "rtn")
        assert f"(x{cell.delta:.2f} [{cell.low:.2f}, {cell.high:.2f}], float " in cell_text(cell, grid.metric)
        shown = shown_cells(grid).set_index("method").loc["rtn"]
        assert shown["low"] <= shown["value"] <= shown["high"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eval.repetitions=0", "eval.repetitions=0: must be 1 or more"),
        ("eval.warmup=-1", "eval.warmup=-1: must be 0 or more"),
        ("eval.prompt=0", "eval.prompt=0: must be 1 or more"),
        ("eval.decode=-1", "eval.decode=-1: must be 0 or more"),
        ("eval.batch=0", "eval.batch=0: must be 1 or more"),
        ("eval.repetitions=two", "two"),
        ("eval.prompt=125", "eval.prompt=125 eval.decode=4: .* takes at most 128 tokens; use fewer"),
    ],
)
def test_sizes_that_cannot_work_are_refused(override: str, message: str, tiny_folder: Path, text_file: Path) -> None:
    from cli import tiny_run
    from hydra.errors import ConfigCompositionException

    from sqbench.running.point import identify
    from sqbench.running.resolved import resolve

    overrides = tiny_run(tiny_folder, text_file, Path("results"), "eval=latency", "eval.decode=4", override)
    with pytest.raises((UserError, ConfigCompositionException), match=message):
        identify(resolve(api.configure(*overrides)))
