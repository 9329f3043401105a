"""method=peer from the command line: with a tool that is made here, and with real ones where they are installed."""

import json
import random
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from cli import Ended
from examples import made
from peers.fake import Fake

from sqbench import api
from sqbench.calibration import Statistics
from sqbench.errors import UserError
from sqbench.models.language import LanguageModel
from sqbench.peers import TOOLS
from sqbench.records.fields import point_fields
from sqbench.records.record import Record
from sqbench.records.store import Store

Command = Callable[..., Ended]
FAKE = ("method=peer", "method.tool=fake", "bits=w8a8_dynamic", "bits.as=compressed-tensors")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TOOLS, "fake", Fake())


def records(results: Path) -> dict[str, Record]:
    return {record.identity["method"]["name"]: record for record in Store(results).records()}


@pytest.mark.slow  # the process of a tool imports torch and transformers
@pytest.mark.usefixtures("fake")
def test_what_a_tool_makes_is_a_point_with_the_numbers_of_our_own(
    command: Command, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("method=rtn", *FAKE[2:]).code == 0
    before = torch.get_rng_state(), random.getstate()
    ended = command(*FAKE)
    assert ended.code == 0, ended.err
    assert "noise" not in ended.out + ended.err
    assert torch.equal(torch.get_rng_state(), before[0])  # which both runs set themselves
    assert random.getstate() == before[1]
    found = records(results)
    ours, theirs = found["rtn"], found["peer"]
    assert theirs.metrics == ours.metrics
    assert theirs.delta == ours.delta
    assert theirs.baseline == ours.baseline
    assert theirs.identity["scheme"] == ours.identity["scheme"]
    assert theirs.identity["calibration"] == ours.identity["calibration"]
    assert theirs.identity["tool"] == {"name": "fake", "version": Fake().version}
    assert theirs.identity["method"] == {"name": "peer", "tool": "fake", "arguments": None}
    told = theirs.quantized["tool"]
    assert told["seconds"] > 0
    assert theirs.cost["peak_rss_bytes"] >= told["peak_rss_bytes"] > 0
    assert list((results / "cache" / "peers").iterdir()) == []  # its checkpoint is removed
    assert not (tmp_path / "left").exists()


@pytest.mark.parametrize(
    ("arguments", "told"), [(None, "fake 1.0"), ({"scheme": "W8A8", "iters": 2}, "fake 1.0 iters=2 scheme=W8A8")]
)
def test_tables_tell_tools_apart(arguments: dict[str, object] | None, told: str) -> None:
    method = {"name": "peer", "tool": "fake", "arguments": arguments}
    record = made("peer", identity__method=method, identity__tool={"name": "fake", "version": "1.0"})
    assert point_fields(record)["tool"] == told
    assert point_fields(made("rtn"))["tool"] == ""


def test_the_library_has_no_tool_for_a_model_in_memory(tiny: LanguageModel, statistics: Statistics) -> None:
    with pytest.raises(UserError, match=r"another tool quantizes the whole model; use `python -m sqbench\.run method=peer`"):
        api.quantize(tiny, statistics, "peer", bits="w8a8_dynamic")


@pytest.mark.slow  # as above
@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("{ask: fail}", "method.tool=fake: version {} failed: ValueError: no such thing"),
        ("{ask: die}", "method.tool=fake: version {} failed: its process ended with status 3: noise on stdout / last words"),
        ("{scheme: FP8_DYNAMIC}", "method.tool=fake: {} made model.layers.0.self_attn.q_proj as"),
    ],
)
def test_a_tool_that_fails_is_a_failed_record(command: Command, results: Path, arguments: str, said: str) -> None:
    ended = command(*FAKE, f"method.arguments={arguments}")
    assert ended.code == 1
    record = records(results)["peer"]
    assert record.status == "failed"
    assert record.error is not None
    assert said.format(Fake().version) in record.error["message"]


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("bits=w4a16",), "method.tool=fake: makes no bits=w4a16"),
        (("bits=fp",), "bits=fp: must have formats of layers"),
        (("ranges=mse",), "ranges=mse: method.tool=fake chooses its ranges itself; leave ranges out"),
        (("rounding=gptq",), "rounding=gptq: must be left out; method=peer is another tool"),
        (("corrections=[bias]",), "method.tool=fake: quantizes the float model itself, and method=peer also has bias"),
        (("blockwise=true",), "blockwise: must be left out; method.tool=fake quantizes linear layers"),
        (("calibration.propagate=true",), "calibration.propagate: must be left out"),
        (("bits.edge_bits=8",), "bits.edge_bits: must be left out"),
        (
            ("method.tool=fak",),
            "method.tool=fak: did you mean fake? known: auto-round, fake, gptqmodel, llm-compressor, nncf, optimum-quanto, torchao",
        ),
    ],
)
def test_what_a_tool_leaves_no_choice_of_is_refused(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError) as raised:
        api.configure("model=hf", "model.name=x", *FAKE, *words)
    assert said in str(raised.value)


def test_a_tool_that_is_not_installed_is_named_with_its_installation(
    command: Command, monkeypatch: pytest.MonkeyPatch, results: Path
) -> None:
    monkeypatch.setattr(Fake, "package", "not-there")
    monkeypatch.setitem(TOOLS, "fake", Fake())
    ended = command(*FAKE)
    assert ended.code == 2
    assert "method.tool=fake: needs not-there, which is not installed; it is there" in ended.err
    assert not results.exists() or list(Store(results).records()) == []


@pytest.mark.parametrize(
    ("tool", "bits", "said"),
    [
        ("auto-round", "w8a8_dynamic", "makes integer weights of 2, 3, 4 and 8 bits with float inputs here"),
        ("llm-compressor", "mxfp4", "makes integers of 4 and 8 bits and FP8 here"),
        ("gptqmodel", "w8a8_dynamic", "makes integer weights of 2, 3, 4 and 8 bits with float inputs here, not bits=w8a8_dynamic"),
        ("gptqmodel", "q4_1", "makes integer weights of 2, 3, 4 and 8 bits with float inputs here, not bits=q4_1"),
        ("torchao", "nvfp4", "has no configuration for bits=nvfp4 here"),
        ("nncf", "w3a16", "makes integer weights of 4 and 8 bits with float inputs here, not bits=w3a16"),
        ("nncf", "q8_0", "has a scale for each channel at 8 bits, and for each channel or group at 4; bits.weights are int8"),
        ("optimum-quanto", "w8a8", "makes int2, int4, int8 and FP8 weights with float inputs here, not bits=w8a8"),
        ("optimum-quanto", "w4a16", r"has a minimum for each group of 4 bits; use bits\.weights\.zero_point=minimum"),
        ("optimum-quanto", "q8_0", "has symmetric weights with a scale for each channel at 8 bits, not int8"),
    ],
)
def test_a_format_that_a_tool_cannot_make_is_refused_though_it_is_not_installed(tool: str, bits: str, said: str) -> None:
    with pytest.raises(UserError, match=rf"method\.tool={tool}: {said}"):
        api.configure("method=peer", f"method.tool={tool}", f"bits={bits}")


def test_arguments_that_are_chosen_elsewhere_are_refused() -> None:
    with pytest.raises(UserError, match=r"method\.arguments\.bits: is chosen by bits, calibration and seed"):
        api.configure("method=peer/auto-round", "method.arguments={bits: 4}")
    for key, said in {
        "sym: true": "sym: is chosen by bits and device",
        "rotation: hadamard": "rotation: changes what its checkpoint holds",
        "method: awq": "method=awq: must be gptq; its AWQ takes no float32",
    }.items():
        with pytest.raises(UserError, match=rf"method\.arguments\.{said}"):
            api.configure("method=peer/gptqmodel", f"method.arguments={{{key}}}")
    with pytest.raises(UserError, match=r"has a scale for each channel, or for each group of 16, 32, 64, .*; bits\.weights are"):
        api.configure("method=peer/gptqmodel", "bits=w4a16", "bits.weights.group_size=48")
    with pytest.raises(UserError, match=r"method\.arguments\.awq=true: puts factors before layers"):
        api.configure("method=peer/nncf", "bits=w4a16", "method.arguments={awq: true}")
    with pytest.raises(UserError, match=r"method\.arguments\.exclude: is chosen by bits"):
        api.configure("method=peer/optimum-quanto", "method.arguments={exclude: lm_head}")
    with pytest.raises(UserError, match=r"method\.arguments\.algorithm=rtm: did you mean rtn\?"):
        api.configure("method=peer", "method.arguments={algorithm: rtm}")


REAL = [
    ("llm-compressor-rtn", "llmcompressor", "w4a16_g32_sym", {}),
    ("llm-compressor-rtn", "llmcompressor", "w8a8_dynamic", {}),
    ("llm-compressor-gptq", "llmcompressor", "w4a16_g32_sym", {}),
    ("llm-compressor-awq", "llmcompressor", "w4a16_g32_sym", {}),
    ("auto-round", "auto_round", "w4a16_g32_sym", {"iters": 2}),
    ("auto-round", "auto_round", "w4a16_g32", {"iters": 2}),
    ("gptqmodel", "gptqmodel", "w4a16_g32_sym", {}),
    ("gptqmodel", "gptqmodel", "w4a16_g32", {"desc_act": True}),
    ("gptqmodel", "gptqmodel", "w8a16", {}),
    ("torchao", "torchao", "w4a16_g32_sym", {}),
    ("torchao", "torchao", "w8a8_dynamic", {}),
    ("nncf", "nncf", "w8a16", {}),
    ("nncf", "nncf", "w4a16_g32", {}),
    ("nncf", "nncf", "w4a16_g32_sym", {"scale_estimation": True}),
    ("optimum-quanto", "optimum.quanto", "w8a16", {}),
    ("optimum-quanto", "optimum.quanto", "fp8a16", {}),
]


def _words(arguments: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {str(value).lower()}" for key, value in arguments.items()) + "}"


def _need(package: str) -> None:
    if find_spec(package.partition(".")[0]) is None or find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


@pytest.fixture
def padded(tiny_folder: Path, tmp_path: Path) -> Path:
    """The tiny model with a token for padding, which GPTQModel asks for."""
    folder = tmp_path / "padded"
    shutil.copytree(tiny_folder, folder)
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, "pad_token_id": 0}))
    return folder


@pytest.mark.slow  # as above
@pytest.mark.parametrize(("preset", "package", "bits", "arguments"), REAL, ids=lambda value: str(value))
def test_a_real_tool(
    command: Command, padded: Path, results: Path, preset: str, package: str, bits: str, arguments: dict[str, Any]
) -> None:
    _need(package)
    given = [f"method.arguments={_words(arguments)}"] if arguments else []
    assert command(f"model.name={padded}", f"method=peer/{preset}", f"bits={bits}", *given).code == 0
    assert command(f"model.name={padded}", "method=rtn", f"bits={bits}").code == 0
    found = records(results)
    assert found["peer"].share == found["rtn"].share
    assert found["peer"].metrics["weight_bytes"] <= found["rtn"].metrics["weight_bytes"]
    assert found["peer"].metrics["kl_to_fp"] < 5 * found["rtn"].metrics["kl_to_fp"]
    samples = pd.read_parquet(results / "runs" / found["peer"].point_id / "samples.parquet")
    assert len(samples) == 4


@pytest.mark.slow  # as above
@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("method.arguments={dampPercent: 0.1}", "method.arguments.dampPercent: did you mean damp_percent?"),
        ("data.window=10", "it leaves out windows of less than 11 tokens, and these have 10"),
    ],
)
def test_what_gptqmodel_would_leave_out_without_a_word_is_an_error(
    command: Command, padded: Path, results: Path, word: str, said: str
) -> None:
    _need("gptqmodel")
    assert command(f"model.name={padded}", "method=peer/gptqmodel", "bits=w4a16_g32_sym", word).code == 1
    error = records(results)["peer"].error
    assert error is not None
    assert said in error["message"]
