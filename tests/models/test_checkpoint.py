"""A model folder is used only if its tensors are those of the model in its config.json: whatever does not match is named."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import LLAMA, build, gemma, gpt2, opt
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.llama import save_byte_tokenizer
from sqbench.errors import UserError
from sqbench.models.checkpoint import Checkpoint, Origin
from sqbench.models.language import LanguageModel, load_language_model
from sqbench.models.stream_loading import stream_language_model

SAID: dict[str, Any] = {"name": "m", "fingerprint": "m", "dtype": "float32", "trust_remote_code": False, "keep": ()}
UP, DOWN, HEAD = "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight", "lm_head.weight"
MOE: dict[str, Any] = {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}
W = "model.layers.1.block_sparse_moe.experts"


@dataclass(frozen=True)
class Files:
    """What a folder holds, to be changed."""

    tensors: dict[str, Tensor]
    config: dict[str, Any]

    def rename(self, old: str, new: str) -> None:
        """Give tensors another name, wherever a part of theirs is `old`."""
        for name in [name for name in self.tensors if old in name]:
            self.tensors[name.replace(old, new)] = self.tensors.pop(name)

    def lose(self, part: str) -> None:
        """Leave out all tensors with this in their name."""
        for name in [name for name in self.tensors if part in name]:
            del self.tensors[name]


def altered(source: Path, folder: Path, change: Callable[[Files], object]) -> Path:
    """A copy of a model folder, changed."""
    shutil.copytree(source, folder)
    files = Files(load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text()))
    change(files)
    save_file({name: tensor.contiguous() for name, tensor in files.tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(files.config))
    return folder


def saved(model: LanguageModel, folder: Path) -> Path:
    model.module.save_pretrained(folder)
    save_byte_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose head is its own."""
    return saved(build("Llama", **LLAMA, tie_word_embeddings=False), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def mixtral_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts, which are one tensor each in the files and one for all in the model."""
    return saved(build("Mixtral", **MOE), tmp_path_factory.mktemp("mixtral"))


LOADS = {"whole": load_language_model, "blockwise": stream_language_model}
DAMAGE: dict[str, tuple[Callable[[Files], object], str]] = {
    "compiled": (
        lambda files: [files.tensors.update({f"_orig_mod.{name}": files.tensors.pop(name)}) for name in list(files.tensors)],
        r"21 missing \(lm_head\.weight, .*21 unexpected \(_orig_mod\.lm_head\.weight, .*; use the same names without _orig_mod\.",
    ),
    "lost layer": (
        lambda files: files.lose("layers.1.mlp"),
        r"3 missing \(model\.layers\.1\.mlp\.down_proj\.weight, .*\); use a folder that save_pretrained wrote",
    ),
    "lost tensor": (lambda files: files.lose(UP), r"1 missing \(model\.layers\.1\.mlp\.up_proj\.weight\);"),
    "lost head": (lambda files: files.lose(HEAD), r"1 missing \(lm_head\.weight\); use tie_word_embeddings=true in config\.json"),
    "lost embedding": (lambda files: files.lose("embed_tokens"), r"1 missing \(model\.embed_tokens\.weight\);"),
    "another name": (
        lambda files: files.rename("1.mlp.up_proj", "1.mlp.up"),
        r"1 missing \(model\.layers\.1\.mlp\.up_proj\.weight\); 1 unexpected \(model\.layers\.1\.mlp\.up\.weight\)",
    ),
    "another shape": (
        lambda files: files.tensors.update({UP: files.tensors[UP].T}),
        r"1 of another shape \(model\.layers\.1\.mlp\.up_proj\.weight \(32, 48\) for \(48, 32\)\)",
    ),
    "one too many": (lambda files: files.tensors.update(extra=torch.ones(3)), r"1 unexpected \(extra\)"),
    "twice, without the prefix": (
        lambda files: files.tensors.update({UP.removeprefix("model."): files.tensors[UP] + 1}),
        r"2 tensors in each other's place \(layers\.1\.mlp\.up_proj\.weight, model\.layers\.1\.mlp\.up_proj\.weight\)",
    ),
    "no floats": (
        lambda files: files.tensors.update({UP: files.tensors[UP].to(torch.int8)}),
        r"1 weights that are no floats \(model\.layers\.1\.mlp\.up_proj\.weight\)",
    ),
    "a layer more in config.json": (lambda files: files.config.update(num_hidden_layers=3), r"9 missing \(model\.layers\.2\."),
    "a layer less in config.json": (lambda files: files.config.update(num_hidden_layers=1), r"9 unexpected \(model\.layers\.1\."),
    "biases switched on": (lambda files: files.config.update(attention_bias=True), r"8 missing \(model\.layers\.0\.self_attn\."),
    "wider in config.json": (lambda files: files.config.update(intermediate_size=64), r"6 of another shape \("),
    "tied in config.json alone": (
        lambda files: files.config.update(tie_word_embeddings=True),
        r"ties weights that differ in its files: 1 of them \(lm_head\.weight\); use tie_word_embeddings=false",
    ),
}


@pytest.mark.parametrize("mode", LOADS)
@pytest.mark.parametrize("how", DAMAGE)
def test_tensors_that_do_not_match_are_refused_by_name(how: str, mode: str, llama_folder: Path, tmp_path: Path) -> None:
    change, message = DAMAGE[how]
    folder = altered(llama_folder, tmp_path / "damaged", change)
    with pytest.raises(UserError, match=rf"^model\.name=m: .*{message}"):
        LOADS[mode](folder, torch.device("cpu"), **SAID)


@pytest.mark.parametrize("mode", LOADS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda files: files.lose(f"{W}.3.w1"),
            r"cannot convert its tensors: 1 made from lists of unequal length \(.*gate_up_proj",
        ),
        (
            lambda files: files.lose(f"{W}.3."),
            r"of another shape \(model\.layers\.1\.mlp\.experts\.down_proj \(3, 32, 48\) for \(4,",
        ),
        (lambda files: files.rename(f"{W}.2.", f"{W}.9."), r"12 tensors in each other's place \(model\.layers\.1\..*experts\.0\.w"),
    ],
)
def test_a_lost_or_renumbered_expert_is_refused(
    mode: str, change: Callable[[Files], object], message: str, mixtral_folder: Path, tmp_path: Path
) -> None:
    folder = altered(mixtral_folder, tmp_path / "damaged", change)
    with pytest.raises(UserError, match=message):
        LOADS[mode](folder, torch.device("cpu"), **SAID)


@settings(deadline=None, max_examples=8)
@given(st.data())
def test_every_single_tensor_is_needed(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    names = sorted(load_file(llama_folder / "model.safetensors"))
    lost = data.draw(st.sampled_from(names))
    folder = altered(llama_folder, tmp_path_factory.mktemp("lost") / "m", lambda files: files.tensors.pop(lost))
    with pytest.raises(UserError) as refused:
        load_language_model(folder, torch.device("cpu"), **SAID)
    assert f"1 missing ({lost});" in str(refused.value)


# ---------------------------------------------------------------- files


def sharded(source: Path, folder: Path) -> dict[str, str]:
    """The same folder in several files; name -> file."""
    shutil.copytree(source, folder)
    transformers.AutoModelForCausalLM.from_pretrained(source).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    index: dict[str, str] = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 2
    return index


@pytest.mark.parametrize("mode", LOADS)
def test_files_in_shards(mode: str, llama_folder: Path, tmp_path: Path) -> None:
    index = sharded(llama_folder, tmp_path / "m")
    whole = load_language_model(llama_folder, torch.device("cpu"), **SAID)
    found = LOADS[mode](tmp_path / "m", torch.device("cpu"), **SAID)
    assert torch.equal(found.forward(found.example()), whole.forward(whole.example()))
    (tmp_path / "m" / index[UP]).unlink()
    with pytest.raises(UserError, match=rf"model\.name=m: .* lacks 1 of the \d+ files that .* names \({index[UP]}\)"):
        LOADS[mode](tmp_path / "m", torch.device("cpu"), **SAID)


@pytest.mark.parametrize("mode", LOADS)
def test_a_tensor_in_two_files_or_weights_in_two_sets_of_files(mode: str, llama_folder: Path, tmp_path: Path) -> None:
    index = sharded(llama_folder, tmp_path / "m")
    shutil.copy(llama_folder / "model.safetensors", tmp_path / "m")
    with pytest.raises(UserError, match=r"holds its weights twice, in model\.safetensors and in the files of model\.safe"):
        LOADS[mode](tmp_path / "m", torch.device("cpu"), **SAID)
    (tmp_path / "m" / "model.safetensors").unlink()
    other = tmp_path / "m" / next(file for file in index.values() if file != index[UP])
    save_file({**load_file(other), UP: torch.zeros(48, 32)}, other, {"format": "pt"})
    with pytest.raises(UserError, match=r"its files hold 1 tensors twice \(model\.layers\.1\.mlp\.up_proj\.weight\)"):
        LOADS[mode](tmp_path / "m", torch.device("cpu"), **SAID)


def test_a_shard_that_the_index_forgets_is_missing(llama_folder: Path, tmp_path: Path) -> None:
    index = sharded(llama_folder, tmp_path / "m")
    kept = {name: file for name, file in index.items() if file != index[UP]}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": kept}))
    with pytest.raises(UserError, match=r"missing \(.*model\.layers\.1\.mlp\.up_proj\.weight"):
        load_language_model(tmp_path / "m", torch.device("cpu"), **SAID)


# ---------------------------------------------------------------- what is known


def mixtral() -> LanguageModel:
    return build("Mixtral", **MOE)


def tied() -> LanguageModel:
    return build("Llama", **LLAMA, tie_word_embeddings=True)


@pytest.mark.parametrize("make", [tied, gpt2, opt, gemma, mixtral])
def test_what_save_pretrained_wrote_loads(make: Callable[[], LanguageModel], tmp_path: Path) -> None:
    model = make()
    found = load_language_model(saved(model, tmp_path), torch.device("cpu"), **SAID)
    assert torch.equal(found.forward(found.example()), model.forward(model.example()))


KNOWN: dict[str, Callable[[Files], object]] = {
    "a tied head that is stored, too": lambda files: files.tensors.update(
        {HEAD: files.tensors["model.embed_tokens.weight"].clone()}
    ),
    "the head in place of the embedding": lambda files: files.rename("model.embed_tokens.weight", HEAD),
    "buffers of older releases": lambda files: files.tensors.update(
        {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    ),
    "without the prefix of the base model": lambda files: files.rename("model.", ""),
}


@pytest.mark.parametrize("mode", LOADS)
@pytest.mark.parametrize("what", KNOWN)
def test_what_transformers_knows_is_no_mismatch(what: str, mode: str, tmp_path: Path) -> None:
    model = tied()
    folder = altered(saved(model, tmp_path / "a"), tmp_path / "b", KNOWN[what])
    found = LOADS[mode](folder, torch.device("cpu"), **SAID)
    assert torch.equal(found.forward(found.example()), model.forward(model.example()))


def test_experts_that_are_merged_while_they_are_loaded_are_not_read_alone(mixtral_folder: Path) -> None:
    with pytest.raises(UserError, match=r"^blockwise=true: transformers makes 4 tensors of the model .*; use blockwise=false"):
        stream_language_model(mixtral_folder, torch.device("cpu"), **SAID)


def test_buffers_that_are_stored_are_read(tmp_path: Path) -> None:
    stored = {"norm.running_mean": torch.arange(3.0), "norm.weight": torch.arange(3.0) + 5}
    save_file(stored, tmp_path / "some.safetensors")
    origins = {name: Origin(tmp_path / "some.safetensors", name, torch.float32) for name in stored}
    into = nn.Module()
    into.norm = nn.BatchNorm1d(3)
    Checkpoint(origins).load(stored, into, torch.device("cpu"))
    assert torch.equal(into.norm.running_mean, stored["norm.running_mean"])
    assert torch.equal(into.norm.weight, stored["norm.weight"])
    assert "running_mean" in dict(into.norm.named_buffers())


def test_loading_draws_no_random_numbers(llama_folder: Path) -> None:
    before = torch.get_rng_state()
    load_language_model(llama_folder, torch.device("cpu"), **SAID)
    assert torch.equal(before, torch.get_rng_state())
