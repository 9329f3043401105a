"""GGUF files: what is read is what the package gguf decodes, and the model is the one that transformers makes of the same file."""

import shutil
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints.gguf_files import FLOATS, Choose, all_of, drawn, llama, written
from cli import Ended
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader
from gguf.quants import _type_traits, dequantize, quantize
from transformers import AutoModelForCausalLM

from sqbench.checkpoints.gguf import GGUFFile
from sqbench.checkpoints.source import locate
from sqbench.config import ModelConfig
from sqbench.errors import UserError
from sqbench.formats.codec import decode
from sqbench.models.language import LanguageModel
from sqbench.quant.tables import TiedLayer
from sqbench.records.store import Store

KINDS = [kind for kind in _type_traits if kind not in FLOATS]
Command = Callable[..., Ended]
PLACE = "model.name=x"


def every_type(module: Any) -> Choose:
    """Each matrix in another type, as random blocks, and some floats of 16 bits."""
    kinds = cycle([*KINDS, Kind.F16, Kind.BF16])

    def choose(name: str, values: Any) -> tuple[Kind, Any]:
        if values.ndim == 1:
            return Kind.F32, values
        kind = next(kinds)
        return kind, quantize(values, kind) if kind in FLOATS else drawn(kind, *values.shape)

    return choose


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-five matrices, so that every type is there."""
    module = llama(tied=False, theta=500000.0, layers=4)
    return written(module, tmp_path_factory.mktemp("mixed") / "every", every_type(module))


def load(file: Path) -> LanguageModel:
    return GGUFFile.of(file, PLACE).load(torch.device("cpu"), name="x", fingerprint="x", dtype="float32")


def by_transformers(file: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()


def test_every_type_is_read_as_the_package_decodes_it(mixed: Path) -> None:
    found = GGUFFile.of(mixed, PLACE)
    assert {tensor.tensor_type for tensor in found.tensors.values()} >= set(KINDS)
    in_file = {tensor.name: tensor for tensor in GGUFReader(mixed).tensors}
    for layer, one in found.layers.items():
        tensor = in_file[found.tensors[f"{layer}.weight"].name]
        values, weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type)), decode(one.encoded(found.read))
        if layer.endswith(("q_proj", "k_proj")):  # neighbouring rows are those of the two halves of a head
            heads = 4 if layer.endswith("q_proj") else 2
            values = torch.cat([torch.cat([head[0::2], head[1::2]]) for head in values.chunk(heads)])
        assert torch.equal(weight, values), layer
        assert one.weight.stored_bytes(*weight.shape) == tensor.n_bytes


def test_the_model_is_that_of_transformers_to_the_last_bit(mixed: Path) -> None:
    ours, theirs = load(mixed), by_transformers(mixed)
    assert theirs.config.rope_parameters["rope_theta"] == ours.module.config.rope_parameters["rope_theta"] == 500000.0
    with torch.no_grad():
        logits = ours.forward(ours.example())
        assert logits.std() > 0.1
        assert torch.equal(logits, theirs(input_ids=ours.example()).logits)
    assert "q6_k" in {entry["format"] for entry in ours.report["per_layer"]}
    in_file = sum(tensor.n_bytes for tensor in GGUFReader(mixed).tensors if tensor.tensor_type not in FLOATS)
    floats = sum(4 * tensor.n_elements for tensor in GGUFReader(mixed).tensors if tensor.tensor_type in FLOATS)
    assert ours.stored_bytes == in_file + floats


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q8_0, Kind.MXFP4, Kind.TQ2_0], ids=lambda kind: kind.name)
def test_quantized_tables_are_slots_and_tied_ones_count_once(kind: Kind, tied: bool, tmp_path: Path) -> None:
    file = written(llama(tied=tied), tmp_path / "model.gguf", all_of(kind))
    found, ours = GGUFFile.of(file, PLACE), load(file)
    assert found.scheme.name == kind.name.lower()
    assert found.scheme.embedding == found.scheme.weights
    assert found.scheme.head == (None if tied else found.scheme.weights)
    assert ours.stored_bytes == sum(tensor.n_bytes for tensor in GGUFReader(file).tensors)
    assert ours.report["coverage"] == 1
    assert isinstance(ours.module.lm_head, TiedLayer) == tied
    with torch.no_grad():
        assert torch.equal(ours.forward(ours.example()), by_transformers(file)(input_ids=ours.example()).logits)


def test_a_folder_with_one_file_is_found_by_its_first_bytes(tmp_path: Path) -> None:
    file = written(llama(), tmp_path / "weights.bin", all_of(Kind.Q8_0))
    (tmp_path / "README.md").write_text("# model")
    source = locate(ModelConfig(name=str(tmp_path), loader="checkpoint"))
    assert source.context == 128
    assert source.quantized is not None
    assert source.quantized.scheme.name == "q8_0"
    assert source.fingerprint == locate(ModelConfig(name=str(file), loader="checkpoint")).fingerprint
    shutil.copy(file, tmp_path / "other")
    with pytest.raises(UserError, match=r"holds 2 GGUF files \(other, weights\.bin\); name one of them as model\.name"):
        locate(ModelConfig(name=str(tmp_path), loader="checkpoint"))
    (tmp_path / "other").unlink()
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match=r"holds weights\.bin and \*\.safetensors; name the GGUF file"):
        locate(ModelConfig(name=str(tmp_path), loader="checkpoint"))


def refused(file: Path, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        GGUFFile.of(file, PLACE)
    assert str(caught.value).startswith(PLACE)


@pytest.fixture(scope="module")
def q8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(llama(), tmp_path_factory.mktemp("q8") / "model.gguf", all_of(Kind.Q8_0))


@pytest.mark.parametrize("kept", [5, 200, 4000, -1])
def test_a_truncated_file_is_refused(q8: Path, kept: int, tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(q8.read_bytes()[:kept])
    refused(tmp_path / "cut.gguf", r"is no complete GGUF file that the package gguf can parse")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"PK\x03\x04")
    refused(tmp_path / "model.gguf", r"is no GGUF file \(it begins with b'PK")


def test_an_unknown_type_is_refused(q8: Path, tmp_path: Path) -> None:
    data, name = bytearray(q8.read_bytes()), b"blk.0.ffn_down.weight"
    place = data.index(name) + len(name) + 4 + 2 * 8  # behind the number of axes and both lengths
    for number, words in (
        (77, r"77\)? is not a valid GGMLQuantizationType"),
        (int(Kind.I8), r"ffn_down\.weight is of type I8, which"),
    ):
        data[place : place + 4] = number.to_bytes(4, "little")
        (tmp_path / "other.gguf").write_bytes(data)
        refused(tmp_path / "other.gguf", words)


def test_an_architecture_that_transformers_does_not_know_is_refused(q8: Path, tmp_path: Path) -> None:
    (tmp_path / "other.gguf").write_bytes(q8.read_bytes().replace(b"llama", b"lemma"))
    refused(tmp_path / "other.gguf", r"GGUF model with architecture lemma is not supported yet")


def test_floats_alone_are_no_checkpoint(tmp_path: Path) -> None:
    refused(written(llama(), tmp_path / "model.gguf", all_of(Kind.F16)), r"holds floats alone; use a Hugging Face folder")


def test_missing_tensors_and_values_that_are_not_finite_are_named(tmp_path: Path) -> None:
    def broken(name: str, values: Any) -> tuple[Kind, Any]:
        kind, data = (
            all_of(Kind.Q6_K if name == "blk.1.ffn_up.weight" else Kind.Q8_0)(name, values)
            if "ffn_up" not in name
            else (
                Kind.Q6_K,
                np.full((512, 210), 255, np.uint8),
            )
        )
        return kind, data

    with pytest.raises(UserError, match=r"model\.layers\.0\.mlp\.up_proj: its weight has \d+ values that are NaN or infinite"):
        load(written(llama(), tmp_path / "model.gguf", broken))


def test_a_file_is_judged_beside_its_parent(command: Command, tiny_folder: Path, results: Path, tmp_path: Path) -> None:
    module = AutoModelForCausalLM.from_pretrained(tiny_folder)
    file = written(module, tmp_path / "model.gguf", all_of(Kind.Q4_1))
    ended = command("model=checkpoint", f"model.name={file}", f"model.parent={tiny_folder}")
    assert ended.code == 0, ended.err
    assert "q4_1" in ended.out
    (record,) = Store(results).records()
    assert record.identity["scheme"]["embedding"]["zero_point"] == "minimum"
    assert record.delta["perplexity"]["value"] > 0
    assert record.quantized["checkpoint"] == {"layout": "gguf"}
    ended = command("model=checkpoint", f"model.name={file}", "backend=int")
    assert ended.code == 0, ended.err
    (executed,) = [record for record in Store(results).records() if record.config["backend"] == "int"]
    (entry,) = executed.quantized["execution"]
    assert entry["kernel"] == "simulated"
    assert "zero_point integer, not minimum" in entry["reason"]


def test_a_parent_of_another_tokenizer_is_refused(command: Command, tiny_folder: Path, tmp_path: Path) -> None:
    module = AutoModelForCausalLM.from_pretrained(tiny_folder)
    file = written(module, tmp_path / "model.gguf", all_of(Kind.Q4_0))
    other = tmp_path / "other"
    shutil.copytree(tiny_folder, other)
    told = (other / "tokenizer.json").read_text().replace('"a":', '"aa":')
    (other / "tokenizer.json").write_text(told)
    ended = command("model=checkpoint", f"model.name={file}", f"model.parent={other}")
    assert "its tokenizer makes 'a' the token None" in ended.err
