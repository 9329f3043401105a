"""Split GGUF files: their parts are one model, found by their keys, and refused where one is missing or foreign."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints.gguf_files import all_of, llama, written
from cli import Ended
from gguf import GGMLQuantizationType as Kind
from transformers import AutoModelForCausalLM

from sqbench.checkpoints.gguf import GGUFFile
from sqbench.checkpoints.gguf_config import configuration
from sqbench.checkpoints.gguf_parts import Part
from sqbench.checkpoints.source import locate
from sqbench.config import ModelConfig
from sqbench.errors import UserError
from sqbench.models.language import LanguageModel
from sqbench.records.store import Store

PLACE = "model.name=x"


def split(folder: Path, *, tied: bool = False, layers: int = 2, parts_of: int = 9) -> list[Path]:
    """The parts of a model, with names that say nothing of their order."""
    folder.mkdir()
    written(llama(tied=tied, layers=layers), folder / "model.gguf", all_of(Kind.Q8_0), parts_of=parts_of)
    return [path.rename(folder / f"{9 - number}.bin") for number, path in enumerate(sorted(folder.iterdir()))]


def load(file: Path) -> LanguageModel:
    return GGUFFile.of(file, PLACE).load(torch.device("cpu"), name="x", fingerprint="x", dtype="float32")


def fingerprint(path: Path) -> str:
    return locate(ModelConfig(name=str(path), loader="checkpoint")).fingerprint


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_parts_are_the_model_of_the_whole_file(tied: bool, tmp_path: Path) -> None:
    parts = split(tmp_path / "parts", tied=tied)
    assert len(parts) == 3
    whole = load(written(llama(tied=tied), tmp_path / "model.gguf", all_of(Kind.Q8_0)))
    for part in parts:  # the output matrix of one that is not tied is in the last part
        ours = load(part)
        assert ours.module.config.tie_word_embeddings == tied
        assert torch.equal(ours.forward(ours.example()), whole.forward(whole.example()))
        assert ours.stored_bytes == whole.stored_bytes
        assert GGUFFile.of(part, PLACE).vocabulary() == GGUFFile.of(tmp_path / "model.gguf", PLACE).vocabulary()


def test_any_part_and_the_folder_are_one_checkpoint_whose_fingerprint_covers_all(tmp_path: Path) -> None:
    parts = split(tmp_path / "parts")
    (tmp_path / "parts" / "README.md").write_text("# model")
    one = {fingerprint(path) for path in (*parts, tmp_path / "parts")}
    assert len(one) == 1
    for part in parts:
        data = bytearray(before := part.read_bytes())
        data[-1] ^= 1
        part.write_bytes(data)
        assert fingerprint(parts[0]) not in one
        part.write_bytes(before)


def refused(path: Path, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        locate(ModelConfig(name=str(path), loader="checkpoint"))
    assert str(caught.value).startswith(f"model.name={path}: ")


def test_missing_parts_are_named(tmp_path: Path) -> None:
    parts = split(tmp_path / "parts")
    parts[1].unlink()
    for path in (parts[0], parts[2], tmp_path / "parts"):
        refused(path, r"parts lacks 1 parts \(2 of 3\) of \d\.bin")


def test_files_of_the_same_part_are_named(tmp_path: Path) -> None:
    parts = split(tmp_path / "parts")
    shutil.copy(parts[1], tmp_path / "parts" / "copy")
    for path in (parts[0], tmp_path / "parts"):
        refused(path, r"holds 2 files of the same parts of 3 \(8\.bin, copy\); leave one model there")


def test_a_part_of_another_model_is_refused(tmp_path: Path) -> None:
    parts, others = split(tmp_path / "parts"), split(tmp_path / "others", tied=True)
    shutil.copy(others[1], parts[1])  # of another count of tensors
    refused(parts[0], r"lacks 1 parts \(2 of 3\)")
    parts, others = split(tmp_path / "again"), split(tmp_path / "more", parts_of=8)
    shutil.copy(others[1], parts[1])  # with other tensors
    refused(parts[0], r"have 20 tensors with \d+ names, and split\.tensors\.count=21; a part is of another model")


def test_an_architecture_that_transformers_derives_from_all_tensors_is_refused_in_parts(tmp_path: Path) -> None:
    keys = {"general.architecture": "stablelm", "split.count": 2, "split.no": 0}
    with pytest.raises(UserError, match=r"x: is a stablelm in parts, and transformers needs all its names; merge them"):
        configuration(Part(tmp_path, keys, {}), "stablelm", (), None, "x")


def test_other_files_of_the_folder_are_left_alone_if_a_part_is_named(tmp_path: Path) -> None:
    parts = split(tmp_path / "parts")
    before = fingerprint(parts[0])
    written(llama(), tmp_path / "parts" / "single", all_of(Kind.Q4_0))
    for number, part in enumerate(split(tmp_path / "others", parts_of=4)):
        shutil.copy(part, tmp_path / "parts" / f"other {number}")
    assert fingerprint(parts[0]) == before
    refused(tmp_path / "parts", r"holds 10 GGUF files \(7\.bin, 8\.bin, 9\.bin, \.\.\.\); name one of them as model\.name")


def test_a_split_file_is_judged_from_the_command_line(
    command: Callable[..., Ended], tiny_folder: Path, results: Path, tmp_path: Path
) -> None:
    module = AutoModelForCausalLM.from_pretrained(tiny_folder)
    written(module, tmp_path / "model.gguf", all_of(Kind.Q8_0), parts_of=8)
    assert len(list(tmp_path.glob("model-0000*-of-0000*.gguf"))) > 1
    ended = command("model=checkpoint", f"model.name={tmp_path}", f"model.parent={tiny_folder}")
    assert ended.code == 0, ended.err
    (record,) = Store(results).records()
    assert abs(record.delta["perplexity"]["value"]) < 0.1
