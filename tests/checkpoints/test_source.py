"""model=checkpoint from the command line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints.examples import by_compressed_tensors
from cli import Ended

from sqbench.records.store import Store

Command = Callable[..., Ended]


@pytest.fixture(scope="module")
def w8(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return by_compressed_tensors(tiny_folder, tmp_path_factory.mktemp("made") / "w8", "W8A8")


def test_a_checkpoint_has_the_numbers_of_our_own_point(command: Command, w8: Path, tiny_folder: Path, results: Path) -> None:
    ours = command("method=rtn", "bits=w8a8_dynamic", "bits.as=compressed-tensors")
    theirs = command("model=checkpoint", f"model.name={w8}", f"model.parent={tiny_folder}")
    assert (ours.code, theirs.code) == (0, 0)
    records = {record.identity["method"]["name"]: record for record in Store(results).records()}
    made, stored = records["rtn"], records["checkpoint"]
    assert stored.metrics == made.metrics
    assert stored.delta == made.delta
    assert stored.baseline == made.baseline
    assert stored.share == made.share
    assert stored.identity["scheme"]["name"] == "w8a8_dynamic"
    assert stored.identity["calibration"] is None
    assert "checkpoint" in theirs.out
    assert theirs.out.count("float") == 1  # one row of the float model


def test_without_a_parent_the_metrics_stand_alone(command: Command, w8: Path, results: Path) -> None:
    ended = command("model=checkpoint", f"model.name={w8}", "backend=int")
    assert ended.code == 0
    (record,) = Store(results).records()
    assert record.baseline == {}
    assert record.delta == {}
    assert "kl_to_fp" not in record.metrics
    assert {entry["kernel"] for entry in record.quantized["execution"]} != {"simulated"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("bits=w4a16",), "bits=w4a16: must be auto; a checkpoint has its own formats"),
        (("method=rtn",), "is quantized already; use method=checkpoint"),
        (("rounding=gptq",), "rounding=...: must be left out; a checkpoint is taken as it is"),
        (("layers=[0]",), "layers=...: must be left out"),
        (("blockwise=true",), "blockwise=true: must be left out"),
        (("noise=3",), "noise=3: compares with a float model; use model.parent=..., or noise=0"),
    ],
)
def test_what_a_checkpoint_leaves_no_choice_of_is_refused(command: Command, w8: Path, words: tuple[str, ...], message: str) -> None:
    ended = command("model=checkpoint", f"model.name={w8}", *words)
    assert ended.code != 0
    assert message in ended.out + ended.err


def test_a_method_of_checkpoints_needs_one(command: Command) -> None:
    assert "reads codes that are stored; use model=checkpoint model.name=FOLDER" in command("method=checkpoint").err
    assert "model.parent=x: must be null; it is for model=checkpoint" in command("model.parent=x").err


def test_a_parent_of_another_architecture_or_tokenizer_is_refused_by_the_first_difference(
    command: Command, w8: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_folder, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "num_attention_heads": 2}))
    ended = command("model=checkpoint", f"model.name={w8}", f"model.parent={other}")
    assert f"model.parent={other}: has num_attention_heads=2, and model.name={w8} has 4" in ended.err
    (other / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = sorted(vocabulary)[:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    ended = command("model=checkpoint", f"model.name={w8}", f"model.parent={other}")
    assert f"its tokenizer makes {first!r} the token {vocabulary[first]}" in ended.err


def test_a_folder_that_is_not_there_is_named(command: Command) -> None:
    assert "no such file or folder" in command("model=checkpoint", "model.name=nowhere").err


def test_a_quantized_encoder_is_refused_by_name(command: Command, w8: Path, tmp_path: Path) -> None:
    shutil.copytree(w8, tmp_path / "encoder")
    config = json.loads((w8 / "config.json").read_text())
    changed = {**config, "architectures": ["BertForMaskedLM"], "model_type": "bert"}
    (tmp_path / "encoder" / "config.json").write_text(json.dumps(changed))
    ended = command("model=checkpoint", f"model.name={tmp_path / 'encoder'}")
    assert ended.code == 2
    assert "BertForMaskedLM is an encoder, whose predictions see later tokens; use a causal language model" in ended.err
