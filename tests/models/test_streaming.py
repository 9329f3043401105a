"""A model that is read block by block: the same function as the whole one, and never more of it in memory than a block."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build, gemma, gpt2, llama, opt
from torch import nn

from benchmarks.llama import save_byte_tokenizer
from sqbench import api
from sqbench.calibration import Statistics, collect
from sqbench.data import Batches, Windows
from sqbench.errors import UserError
from sqbench.evaluation.baseline import reference
from sqbench.evaluation.perplexity import perplexity
from sqbench.execution import lower
from sqbench.models import checkpoint
from sqbench.models.checkpoint import Checkpoint
from sqbench.models.language import LanguageModel, load_language_model
from sqbench.models.stream_loading import stream_language_model
from sqbench.models.streaming import StreamedModel
from sqbench.recipes.configured import named

SAID = {"name": "tiny", "fingerprint": "tiny", "dtype": "float32", "trust_remote_code": False, "keep": ()}


def streamed(folder: Path, **said: Any) -> StreamedModel:
    return stream_language_model(folder, torch.device("cpu"), **{**SAID, **said})


def same(a: Statistics, b: Statistics) -> bool:
    return a.inputs.keys() == b.inputs.keys() and all(
        torch.equal(value, b.inputs[site].tensors()[name])
        for site, stats in a.inputs.items()
        for name, value in stats.tensors().items()
    )


@pytest.mark.parametrize("make", [llama, gpt2, opt, gemma])
def test_is_the_same_function_with_the_same_topology(make: Callable[[], LanguageModel], tmp_path: Path) -> None:
    model = make()
    model.module.save_pretrained(tmp_path)
    save_byte_tokenizer(tmp_path)
    blocks = streamed(tmp_path)
    batches = [model.example()[:1, :7], model.example(), model.example()[1:]]
    for ours, whole in zip(blocks.forwards(batches), batches, strict=True):
        assert torch.equal(ours, model.forward(whole))
    for ours, whole in zip(blocks.bodies(batches), batches, strict=True):
        assert torch.equal(ours, model.body(whole))
    assert blocks.topology == replace(model.topology, points=())
    assert (blocks.head is None) == (model.head is None)
    assert blocks.stored_bytes == model.stored_bytes


def test_calibrates_and_shares_the_cache_with_the_whole_model(
    tiny: LanguageModel, tiny_folder: Path, windows: Windows, tmp_path: Path
) -> None:
    blocks = lower(streamed(tiny_folder), "sim")
    found = api.calibrate(blocks, windows.calibration, folder=tmp_path)
    assert same(found, api.calibrate(lower(tiny, "sim"), windows.calibration))
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert kept
    assert same(found, api.calibrate(tiny, windows.calibration, folder=tmp_path))
    assert kept == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


@pytest.mark.parametrize("backend", ["sim", pytest.param("int", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("method", "bits", "parameters"),
    [
        ("rtn", "w4a16", {}),
        ("minmax", "w8a8", {}),
        ("smoothquant", "w8a8", {"alpha": "auto"}),
        ("awq", "w4a16", {"group_size": 32}),
    ],
)
def test_quantizes_to_the_same_numbers_and_says_the_same_of_it(
    method: str, bits: str, parameters: dict[str, Any], backend: str, tiny: LanguageModel, tiny_folder: Path, windows: Windows
) -> None:
    overrides = [f"method={method}", f"bits={bits}", *(["alpha=auto"] if "alpha" in parameters else [])]
    if "group_size" in parameters:
        overrides.append(f"bits.weights.group_size={parameters['group_size']}")
    cfg = api.configure("model.name=.", "model.loader=hf", *overrides)
    chosen, scheme = api.recipe_of(cfg), api.scheme_of(cfg)
    results = []
    for model in (tiny, streamed(tiny_folder)):
        statistics = api.calibrate(model, windows.calibration)
        quantized = lower(api.quantize(model, statistics, chosen, scheme), backend)
        results.append(perplexity(quantized, windows, perplexity(model, windows)))
    whole, ours = results
    assert ours.metrics == whole.metrics
    assert ours.samples.equals(whole.samples)
    for key, said in whole.model.report.items():
        assert _sorted(ours.model.report[key]) == _sorted(said), key
    again = perplexity(ours.model, windows)  # inputs go through it once more: nothing is said twice
    assert _sorted(again.model.report["per_layer"]) == _sorted(whole.model.report["per_layer"])


def _sorted(said: Any) -> Any:
    return sorted(said, key=str) if isinstance(said, list) else said


def test_layers_of_one_block_alone(tiny: LanguageModel, tiny_folder: Path, windows: Windows) -> None:
    scheme = replace(
        api.scheme_of(api.configure("model.name=.", "model.loader=hf", "bits=w8a8", "bits.edge_bits=4")), layers=("*.1.mlp",)
    )
    found = []
    for model in (tiny, streamed(tiny_folder)):
        quantized = api.quantize(model, api.calibrate(model, windows.calibration), named("minmax"), scheme)
        found.append(perplexity(quantized, windows))
    assert found[0].metrics == found[1].metrics
    assert [entry["layer"] for entry in found[1].model.report["per_layer"]] == [
        entry["layer"] for entry in found[0].model.report["per_layer"]
    ]


@pytest.mark.slow
def test_one_block_is_in_memory_at_a_time(tiny_folder: Path, windows: Windows, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[nn.Module]] = []
    most = 0
    load = Checkpoint.load

    def counted(self: Checkpoint, names: Any, into: nn.Module, *args: Any) -> None:
        nonlocal most
        gc.collect()
        load(self, names, into, *args)
        alive.append(weakref.ref(into))
        most = max(most, sum(ref() is not None for ref in alive))

    model = streamed(tiny_folder)
    monkeypatch.setattr(checkpoint.Checkpoint, "load", counted)
    statistics = api.calibrate(lower(model, "sim"), windows.calibration)
    quantized = lower(api.quantize(model, statistics, "awq", "w8a16"), "int")
    perplexity(quantized, windows)
    assert len(alive) >= 3 * len(model.places)
    assert most == 1


def test_a_float_result_is_kept_as_that_of_the_whole_model(
    tiny: LanguageModel, tiny_folder: Path, windows: Windows, tmp_path: Path
) -> None:
    ours = reference(streamed(tiny_folder), windows, "perplexity", tmp_path)
    whole = reference(tiny, windows, "perplexity", tmp_path / "other")
    assert ours.metrics == whole.metrics
    assert [path.name for path in tmp_path.glob("*.safetensors")] == [path.name for path in (tmp_path / "other").iterdir()]


def test_blocks_that_tell_each_other_more_are_refused(tiny_folder: Path) -> None:
    model = streamed(tiny_folder)
    told: list[torch.Tensor] = []

    class Gossip(type(model.module.model.layers[0])):  # type: ignore[misc]
        def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            out = super().forward(hidden, *args, **kwargs)
            told.append(out)
            return out + told[len(told) // 2]

    for layer in model.module.model.layers:
        layer.__class__ = Gossip
    with pytest.raises(UserError, match="tell each other more than hidden states; use blockwise=false"):
        _ = model.topology


def test_blocks_that_return_more_than_hidden_states_are_refused(tmp_path: Path) -> None:
    build("Bloom", hidden_size=32, n_layer=2, n_head=4).module.save_pretrained(tmp_path)
    save_byte_tokenizer(tmp_path)
    model = streamed(tmp_path)
    for use in (lambda: model.topology, lambda: model.head, lambda: model.forward(model.example())):
        with pytest.raises(UserError, match=r"^blockwise=true: blocks of tiny do not go from .*; use blockwise=false where"):
            use()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_buffers_are_those_of_the_whole_model(dtype: str, tmp_path: Path) -> None:
    """GPT-J computes its positions in the dtype that it is built in."""
    build("GPTJ", n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=64).module.save_pretrained(tmp_path)
    save_byte_tokenizer(tmp_path)
    whole = load_language_model(tmp_path, torch.device("cpu"), **{**SAID, "dtype": dtype})
    blocks = streamed(tmp_path, dtype=dtype)
    expected = dict(whole.module.named_buffers())
    assert expected
    for name, buffer in blocks.module.named_buffers():
        assert buffer.dtype == expected[name].dtype
        assert torch.equal(buffer, expected[name])
    assert torch.equal(blocks.forward(whole.example()), whole.forward(whole.example()))


def test_a_block_that_writes_nan_is_named(tiny_folder: Path, windows: Windows) -> None:
    model = streamed(tiny_folder)

    def broken(block: Any) -> Any:
        with torch.no_grad():
            for parameter in block.module.parameters():
                parameter.data = parameter.data * (float("nan") if block.number == 1 else 1.0)
        return block

    with pytest.raises(FloatingPointError, match=r"model\.layers\.1 of tiny writes NaN or infinity"):
        list(model.then(broken).bodies(windows.evaluation.split(1)))


def test_patterns_of_layers_that_stay_in_float(tiny_folder: Path) -> None:
    kept = streamed(tiny_folder, keep=("model.layers.0.*", "*.down_proj"))
    names = set(kept.topology.layers)
    assert names == {
        f"model.layers.1.{part}"
        for part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj")
    }
    with pytest.raises(UserError, match=r"model\.keep=\*\.nothing: matches no layer"):
        _ = streamed(tiny_folder, keep=("*.nothing",)).topology


def test_a_collector_that_sees_batches_once(tiny: LanguageModel, tiny_folder: Path, windows: Windows) -> None:
    asked: list[int] = []

    def make(number: int) -> torch.Tensor:
        asked.append(number)
        return windows.calibration[number : number + 1]

    batches = Batches(4, make, "four")
    found = api.calibrate(streamed(tiny_folder), batches, search=2)
    assert same(found, collect(tiny.module, tiny.body, tiny.topology.sites, windows.calibration[:4], 2))
    assert asked == [0, 1, 2, 3, 0, 1]  # once for all blocks, and the replay sample
