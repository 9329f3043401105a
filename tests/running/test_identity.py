"""What makes two points the same: every key that can change a number, and none that cannot."""

import hashlib
import json
import logging
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from sqbench import api
from sqbench.config import ModelConfig
from sqbench.data.text import Text, TextCorpus
from sqbench.errors import UserError
from sqbench.models import Source
from sqbench.models.text_sources import describe
from sqbench.parts.part import parse_alpha
from sqbench.recipes.configured import method_names, named
from sqbench.running.identity import identity, point_id
from sqbench.running.resolved import resolve
from sqbench.storage.files import canonical_json
from sqbench.sweeps import sweep

OF_TEXT = [  # methods of any language model; that of a tool needs the tool
    name for name in method_names() if not (named(name).trains or named(name).stored or named(name).foreign)
]
SOURCE = Source("a" * 64, lambda device: pytest.fail("nothing is loaded"), 2048)
TEXT = Text("some text", "b" * 64)
BASE = ("model=hf", "model.name=some/model", "bits=w4a8", "method=awq", "device=cpu")


@cache
def known_as(*overrides: str, source: Source = SOURCE, text: Text = TEXT, other: Text | None = None) -> str:
    return point_id(identity(resolve(api.configure(*BASE, *overrides)), source, TextCorpus(text, other)))


# Every key of the configuration, with values other than the base's. A key that is in no table fails a test below.
CHANGES = {
    "model.dtype": ["bfloat16", "float16"],
    "model.keep": ["['*o_proj']", "[lm_head]"],
    "data.window": ["128", "511"],
    "data.windows": ["15"],
    "data.bos": ["true", "false"],
    "calibration.windows": ["31"],
    "calibration.samples": ["33"],
    "calibration.source": ["random", "weights"],
    "calibration.seed": ["1"],
    "calibration.search_windows": ["3"],
    "corrections": ["[bias]"],
    "rounding.name": ["gptq"],
    "ranges.name": ["mse"],
    "method.transforms": ["['awq','smooth']"],
    "method.alpha": ["0.25", "0"],
    "method.grid": ["10"],
    "method.pairs": ["false"],
    "method.duo": ["true"],
    "method.clip": ["false"],
    "method.no_clip": ["[]", "['*q_proj']"],
    "bits.weights.bits": ["3"],
    "bits.weights.symmetric": ["true"],
    "bits.weights.group_size": ["32"],
    "bits.weights.convention": ["half_range"],
    "bits.weights.scale_dtype": ["float16"],
    "bits.weights.scale.dtype": ["bfloat16"],
    "bits.weights.scale.times": ["reciprocal", "unrounded", "unrounded_reciprocal"],
    "bits.weights.range": ["own"],
    "bits.weights.shift": ["before"],
    "bits.weights.zero_point": ["minimum"],
    "bits.weights.ties": ["up", "away"],
    "bits.as": ["torchao", "compressed-tensors"],
    "bits.embedding": ["w8a16"],
    "bits.head": ["w8a16"],
    "bits.activations.bits": ["4"],
    "bits.activations.symmetric": ["false"],
    "bits.activations.dynamic": ["false bits.activations.granularity=tensor"],
    "bits.activations.convention": ["half_range"],
    "bits.activations.scale_dtype": ["bfloat16"],
    "bits.activations.scale.dtype": ["float16"],
    "bits.activations.scale.times": ["reciprocal"],
    "bits.ops": ["linear+matmul", "full"],
    "bits.edge_bits": ["8"],
    "eval.resamples": ["999"],
    "eval.level": ["0.9"],
    "noise": ["3", "5"],
    "alpha": ["0.5", "0.25", "1", "0"],
    "layers": ["model.layers.0", "['*mlp']", "[a,b]", "[a]"],
    "seed": ["1", "-1"],
    "calibration.propagate": ["true"],
}
CHANGES_TOGETHER = {  # with a second key, because alone they are refused
    "bits.weights.granularity": "channel bits.weights.group_size=null",
    "bits.activations.granularity": "tensor bits.activations.dynamic=false",
    "mixed": "auto budget=4",
}
NOTHING = {
    "model.name": ["another/name"],  # the fingerprint says which weights
    "model.label": ["short"],  # what tables call it
    "model.revision": ["main"],
    "model.parent": [],  # of checkpoints alone, whose points hold both fingerprints: tests/checkpoints
    "model.trust_remote_code": ["true"],
    "data.name": ["mine"],
    "data.source": ["text"],  # so does the text's
    "data.path": ["{file}"],
    "calibration.path": ["{file}"],
    "eval.name": ["perplexity"],  # what auto stands for here
    "isolate": ["true"],
    "blockwise": ["true"],  # the same numbers, one block at a time
    "limits.seconds": ["7"],
    "limits.memory_gb": ["7"],
    "retry": ["1"],
    "threads": ["1"],
    "model.checkpoint": ["{file}"],  # from here on: of images, and this is a language model
    "model.arguments": ["{{depth: 20}}"],
    "model.image_size": ["98"],
    "model.head": ["probe"],
    "model.head_images": ["10"],
    "data.images": ["10", "null"],
    "data.sentences": ["10", "null"],
    "data.columns": ["{{text:a,label:b}}"],
    "data.train_path": ["{file}"],
    "data.labels": ["{file}"],
    "data.image_column": ["pixels"],
    "data.label_column": ["class"],
    "data.transform": ["{{resize:256}}"],
    "data.hub": ["{{repository:a}}"],
    "calibration.images": ["10"],
    "calibration.search_images": ["2"],
    "calibration.sentences": ["10"],
    "calibration.search_sentences": ["2"],
    "head": ["knn"],
    "budget": ["4"],  # of mixed=auto, and this is not
    "widths": ["[4,8]"],
    "tracker.mode": ["disabled", "online"],
    "tracker.project": ["mine"],
    "tracker.entity": ["me"],
    "results_dir": ["/elsewhere"],
    "cache_dir": ["/elsewhere"],
    "force": ["true"],
    "plan": ["true"],
}
REFUSED = {  # there is nothing else to choose yet, or it means something only beside another key
    *("backend", "method.name", "model.loader", "model.recipe", "bits.weights.dynamic", "bits.activations.group_size"),
    *("method.natural", "method.ranges", "bits.name", "device", "calibration.weights", "calibration.pack"),
    *(f"bits.weights.{key}" for key in ("scale.rule", "scale.second", "scale.order", "element", "block_rows")),
    *(f"bits.activations.{key}" for key in ("scale.rule", "scale.second", "scale.order", "element", "block_rows")),
    *(f"bits.activations.{key}" for key in ("range", "shift", "ties", "zero_point")),
}


@pytest.mark.parametrize("change", [f"{key}={value}" for key, values in CHANGES.items() for value in values])
def test_what_can_change_a_number_changes_the_id(change: str) -> None:
    assert known_as(*change.split(" ")) != known_as()


@pytest.mark.parametrize("change", [f"{key}={value}" for key, value in CHANGES_TOGETHER.items()])
def test_what_can_change_a_number_with_another_changes_the_id(change: str) -> None:
    assert known_as(*change.split(" ")) != known_as()


@pytest.mark.parametrize("change", [f"{key}={value}" for key, values in NOTHING.items() for value in values])
def test_what_cannot_change_a_number_does_not_change_the_id(change: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    assert known_as(change.format(file=tmp_path / "file")) == known_as()


@pytest.mark.parametrize("key", ["repetitions", "warmup", "prompt", "decode"])
def test_what_latency_depends_on_changes_its_id_and_no_other(key: str) -> None:
    assert known_as("eval=latency", f"eval.{key}=7") != known_as("eval=latency") != known_as()
    assert known_as("eval=latency", "eval.batch=7") == known_as("eval=latency")  # of images


@pytest.mark.parametrize("key", ["prompt", "decode", "beams", "batch"])
def test_what_generation_depends_on_changes_its_id(key: str) -> None:
    assert known_as("eval=generation", f"eval.{key}=7") != known_as("eval=generation")


def test_samples_are_windows_or_images_in_other_words() -> None:
    assert known_as("calibration.samples=31") == known_as("calibration.windows=31") != known_as()
    assert known_as("calibration.samples=32") == known_as()
    with pytest.raises(UserError, match=r"calibration\.samples=31: calibration\.windows=30 says otherwise"):
        known_as("calibration.samples=31", "calibration.windows=30")


@pytest.mark.parametrize("source", ["random", "weights"])
def test_what_reads_no_text_depends_on_none(source: str) -> None:
    chosen = f"calibration.source={source}"
    assert known_as(chosen, other=Text("", "d" * 64)) == known_as(chosen)
    assert known_as(chosen, "seed=1") != known_as(chosen)


def test_the_older_word_for_the_dtype_of_scales_is_the_same_point() -> None:
    assert known_as("bits.weights.scale_dtype=float16") == known_as("bits.weights.scale.dtype=float16")
    with pytest.raises(UserError, match=r"bits\.weights\.scale_dtype=float16: must be bits\.weights\.scale\.dtype=bfloat16"):
        known_as("bits.weights.scale_dtype=float16", "bits.weights.scale.dtype=bfloat16")


def test_each_change_is_a_point_of_its_own() -> None:
    changes = [f"{key}={value}".split(" ") for key, values in CHANGES.items() for value in values]
    ids = [known_as(*change) for change in changes if "seed=1" not in change and not change[0].startswith("method.alpha")]
    assert len(set(ids)) == len(ids)
    assert known_as("method.alpha=0.25") == known_as("alpha=0.25")  # two ways to say the same


def test_every_key_of_the_configuration_is_known_here() -> None:
    cfg = api.configure(*BASE)
    tables = {*CHANGES, *CHANGES_TOGETHER, *NOTHING, *REFUSED}

    def keys(node: DictConfig, prefix: str = "") -> list[str]:
        found: list[str] = []
        for key in map(str, node):
            name = f"{prefix}{key}"
            if name == "method.natural" or not OmegaConf.is_dict(node._get_node(key)) or node[key] is None:
                found.append(name)
            else:
                found += keys(node[key], f"{name}.")
        return found

    assert sorted(set(keys(cfg)) - tables) == [], "does it change a number? Then it belongs into the identity"
    assert sorted(tables - set(keys(cfg))) == []


def test_weights_and_texts_count_by_content() -> None:
    base = known_as()
    assert known_as(source=Source("a" * 64, SOURCE.load)) == base
    assert known_as(text=Text("", "b" * 64)) == base
    assert known_as(other=Text("the text itself", TEXT.fingerprint)) == base
    different = [
        known_as(source=Source("c" * 64, SOURCE.load, 2048)),
        known_as(text=Text("", "c" * 64)),
        known_as(other=Text("", "d" * 64)),
    ]
    assert len({base, *different}) == 4


def test_a_model_is_the_files_that_can_change_its_numbers(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)

    def fingerprint() -> str:
        return describe(folder, ModelConfig(name="model", loader="hf")).fingerprint

    seen = [fingerprint()]
    (folder / "README.md").write_text("about")
    (folder / "pytorch_model.bin").write_bytes(b"never loaded")
    assert fingerprint() == seen[0]
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text((folder / name).read_text().replace("{", "{ ", 1))
        seen.append(fingerprint())
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(bytes(weights))
    seen.append(fingerprint())
    for name in ("merges.txt", "vocab.txt", "tokenizer.model"):  # what a GPT-2, a BERT and a SentencePiece tokenizer are made of
        (folder / name).write_text("a b")
        seen.append(fingerprint())
    assert len(set(seen)) == len(seen)
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert describe(tmp_path / "elsewhere", ModelConfig(name="another name", loader="hf")).fingerprint == seen[-1]


def test_a_device_counts_by_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert known_as("device=cuda:1") == known_as("device=cuda") == known_as("device=auto") != known_as()
    with pytest.raises(UserError, match=r"device=cuda:2: this machine has 2 CUDA devices"):
        known_as("device=cuda:2")


def test_what_is_left_open_is_not_in_the_identity() -> None:
    """Records from before there was a choice are still found."""
    found = identity(resolve(api.configure(*BASE)), SOURCE, TextCorpus(TEXT, None))
    assert "mixed" not in found
    assert set(found["scheme"]) == {"name", "weights", "activations", "ops", "edge_bits"}


def test_layers_are_a_set() -> None:
    assert known_as("layers=[a,b]") == known_as("layers=[b,a]") != known_as("layers=[a]") == known_as("layers=a")
    assert known_as("layers=['0']") == known_as("layers=0")


def test_mixed_points_differ_by_what_they_may_choose() -> None:
    mixed = ("mixed=auto", "budget=4")
    assert known_as(*mixed) == known_as(*mixed, "widths=[8,6,4,3,2]")
    others = [("mixed=auto", "budget=4.5"), (*mixed, "widths=[3,4,8]"), (*mixed, "bits.weights.bits=3")]
    assert len({known_as(*choice) for choice in (mixed, *others, ())}) == 5


def test_layers_to_keep_are_a_set() -> None:
    assert known_as("model.keep=[a,b]") == known_as("model.keep=[b,a]") != known_as("model.keep=[a]")


@pytest.mark.parametrize(
    "spellings",
    [
        ("alpha=0.5", "alpha=.5", "alpha=0.50", "alpha=5e-1", "alpha=+0.5", 'alpha="0.50"', "alpha='.5'"),
        ("alpha=1", "alpha=1.0", "alpha=1e0", 'alpha="1"'),
        ("alpha=0", "alpha=0.0", "alpha=-0.0"),
        ("alpha=auto", 'alpha="auto"', "alpha=null"),  # AWQ's own default is auto
    ],
)
def test_equal_alphas_are_one_point_however_they_are_written(spellings: tuple[str, ...]) -> None:
    assert len({known_as(spelling) for spelling in spellings}) == 1


@given(st.floats(0, 1))
def test_every_alpha_is_read_as_the_number_that_it_is(alpha: float) -> None:
    assert parse_alpha(alpha) == parse_alpha(str(alpha)) == alpha  # a quoted override arrives as text
    assert canonical_json(parse_alpha(-alpha if alpha == 0 else alpha)) == canonical_json(abs(alpha))


@pytest.mark.parametrize("method", [name for name in OF_TEXT if not named(name).has_alpha])
def test_methods_without_alpha_ignore_it(method: str) -> None:
    choice = f"method={method}"
    assert known_as(choice, "alpha=0.3") == known_as(choice, "alpha=auto") == known_as(choice)
    with pytest.raises(UserError, match=r"alpha=1\.5: must be a number from 0 to 1"):  # but not a typo
        known_as(choice, "alpha=1.5")


@pytest.mark.parametrize("method", [name for name in method_names() if named(name).has_alpha])
def test_methods_with_alpha_have_their_own_default(method: str) -> None:
    choice = f"method={method}"
    assert known_as(choice, "alpha=0.3") != known_as(choice) == known_as(choice, "alpha=null")


@pytest.mark.parametrize("change", ["bits=w8a8", "calibration.windows=3", "calibration.seed=3", "seed=3", "alpha=0.1", "layers=a"])
def test_the_float_model_is_one_point_whatever_would_be_calibrated(change: str) -> None:
    assert known_as("method=fp", change) == known_as("method=fp")
    assert known_as("method=fp", "data.windows=3") != known_as("method=fp")


def test_the_natural_scheme_is_the_same_point_as_its_name() -> None:
    assert known_as("method=smoothquant", "bits=auto") == known_as("method=smoothquant", "bits=w8a8_dynamic")
    assert known_as("method=rtn", "bits=auto") == known_as("method=rtn", "bits=w4a16")


def test_the_id_is_the_sha256_of_the_canonical_identity() -> None:
    value: dict[str, Any] = {"b": [1, 0.5, None], "a": {"ü": "ö"}}
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert point_id(value) == hashlib.sha256(text.encode()).hexdigest()[:12]
    assert point_id(dict(reversed(value.items()))) == point_id(value)


def test_an_identity_survives_its_record() -> None:
    for method in OF_TEXT:
        found = identity(resolve(api.configure(*BASE, f"method={method}")), SOURCE, TextCorpus(TEXT, None))
        assert point_id(json.loads(json.dumps(found))) == point_id(found)


# ---------------------------------------------------------------- sweeps


def test_a_sweep_runs_equal_points_once(tiny_folder: Path, text_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny = ("model=hf", f"model.name={tiny_folder}", "data=text", f"data.path={text_file}", "data.window=64")

    def jobs(*choices: str) -> list[tuple[list[str], DictConfig]]:
        return [(choice.split(), api.configure(*tiny, *choice.split())) for choice in choices]

    caplog.set_level(logging.INFO, "sqbench")
    given = sweep.checked(
        jobs(
            *(
                "method=rtn alpha=0.3",
                "method=rtn alpha=0.8",
                "method=awq alpha=0.3",
                "method=awq alpha=0.30",
                "method=fp bits=w8a8",
            ),
            *("method=fp bits=w4a16", "method=rtn bits=w4a16 alpha=0.9", "method=awq alpha=0.8", "method=rtn bits=w4a16 seed=1"),
        )
    )
    found = sweep.distinct(given)
    assert [" ".join(overrides) for overrides, _ in found] == [
        *(
            "method=rtn alpha=0.3",
            "method=awq alpha=0.3",
            "method=fp bits=w8a8",
            "method=awq alpha=0.8",
            "method=rtn bits=w4a16 seed=1",
        ),
    ]
    assert "9 combinations are 5 points" in caplog.text
    with pytest.raises(UserError, match=r"data\.windows=0: must be 1 or more  \[method=awq data\.windows=0\]"):
        sweep.checked([*jobs("method=rtn"), (["method=awq", "data.windows=0"], _unchecked(tiny, "data.windows=0"))])


def _unchecked(tiny: tuple[str, ...], override: str) -> DictConfig:
    cfg = api.configure(*tiny)
    key, _, value = override.partition("=")
    OmegaConf.update(cfg, key, int(value))
    return cfg
