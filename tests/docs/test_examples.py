"""The examples that the manual shows: each runs on the command line, as its page says."""

import importlib.util
import json
import subprocess
import sys

import pytest
import torch
from cli import ROOT, call, environment, tiny_run
from conftest import training_text
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

import sqbench
from sqbench import data, models
from sqbench.data import text
from sqbench.formats.format import Format
from sqbench.ranges import RANGES
from sqbench.recipes.recipe import Recipe
from sqbench.records.store import Store
from sqbench.statistics.inputs import InputStatistics

EXAMPLES = ROOT / "docs" / "examples"
CONF = f"--config-dir={EXAMPLES / 'conf'}"


@pytest.fixture
def example(request, monkeypatch):
    """The example that a test is named for, imported; what it makes known is forgotten afterwards."""
    name = request.node.name.removeprefix("test_").partition("_")[0]
    found = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(found)
    monkeypatch.setitem(sys.modules, name, module)  # where dataclasses look for their module
    before = [(registry, set(registry)) for registry in (RANGES, models.LOADERS, data.SOURCES, text.TEXTS)]
    found.loader.exec_module(module)
    yield module
    for registry, names in before:
        for key in set(registry) - names:
            del registry[key]


def records(results):
    return list(Store(results).records())


@pytest.mark.slow
def test_aciq_is_a_method_on_the_command_line(example, command, results):
    assert command("-m", CONF, "method=minmax,aciq", "bits=w8a8,w4a4").code == 0
    found = {(record.identity["method"]["name"], record.identity["scheme"]["name"]): record for record in records(results)}
    assert set(found) == {("minmax", "w8a8"), ("minmax", "w4a4"), ("aciq", "w8a8"), ("aciq", "w4a4")}
    assert {record.status for record in found.values()} == {"ok"}
    at_four = {method: record.metrics["kl_to_fp"] for (method, bits), record in found.items() if bits == "w4a4"}
    assert at_four["aciq"] != at_four["minmax"]


@pytest.mark.parametrize(("bits", "multiple"), [(2, 2.83), (3, 3.89), (4, 5.03)])
def test_aciq_clips_where_the_paper_does(example, bits, multiple):
    stats = InputStatistics.empty(4)
    stats.update(torch.tensor([[[1.0, -1.0, 1.0, -1.0]] * 99 + [[100.0, -100.0, 100.0, -100.0]]]))
    low, high = example.Aciq().activation_limits(stats, Format(bits, symmetric=False))
    mean = (99 + 100) / 100
    assert (-float(low) / mean, float(high) / mean) == pytest.approx((multiple, multiple), abs=0.01)


def test_aciq_is_a_method_in_a_notebook(example, tiny, windows, statistics, baseline):
    quantized = sqbench.quantize(tiny, statistics, Recipe("aciq", ranges=example.Aciq()), bits="w8a8")
    assert sqbench.evaluate(quantized, windows, baseline).metrics["kl_to_fp"] > 0


@pytest.mark.slow
def test_aciq_starts_as_a_script(tmp_path, tiny_folder, text_file, results):
    line = [sys.executable, str(EXAMPLES / "aciq.py"), CONF, *tiny_run(tiny_folder, text_file, results, "method=aciq")]
    done = subprocess.run(line, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (record,) = records(results)
    assert record.identity["method"] == {"name": "aciq"}


CONVNET = f"{EXAMPLES / 'convnet.py'}:convnet"


@pytest.fixture
def weights(tmp_path, example):
    """The network after a hundred steps on digits."""
    torch.manual_seed(0)
    module, _ = example.convnet()
    path = tmp_path / "convnet.safetensors"
    _, examples = sqbench.load("model=python", f"model.name={CONVNET}", "data=mnist5k", "data.images=100")
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    order = torch.randperm(len(examples.training), generator=torch.Generator().manual_seed(0))[: 64 * 60]
    for batch in examples.training.batches(64, order):
        optimizer.zero_grad()
        cross_entropy(module(batch.images), batch.labels).backward()
        optimizer.step()
    save_file(module.state_dict(), path)
    return path


def test_convnet_is_a_model_on_the_command_line(example, weights, results, capsys):
    few = ("data.images=200", "calibration.images=32", "eval.resamples=100", "tracker=none", f"results_dir={results}")
    chosen = ("model=python", f"model.name={CONVNET}", f"model.checkpoint={weights}", "data=mnist5k", "method=fp,minmax")
    assert call("-m", *chosen, "bits=w8a8,w4a4", *few, capsys=capsys).code == 0
    found = {record.identity["scheme"]["name"]: record.metrics for record in records(results)}
    assert found["fp"]["top1"] > 0.8
    assert found["w8a8"]["kl_to_fp"] < found["w4a4"]["kl_to_fp"]
    assert [record.quantized.get("layers", 0) for record in records(results) if record.identity["method"]["name"] == "minmax"] == [
        3,
        3,
    ]


def test_jsonl_is_a_data_set_on_the_command_line(example, tmp_path, command, results):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": part}) + "\n" for part in training_text()[:20_000].split("\n\n")))
    assert command(CONF, "data=jsonl", f"data.path={corpus}", "method=rtn", "bits=w8a16").code == 0
    (record,) = records(results)
    assert (record.status, record.config["data"]["name"]) == ("ok", "jsonl")


def test_jsonl_names_the_line_that_is_wrong(example, tmp_path, command):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"text": "a"}\n{"body": "b"}\n')
    ended = command(CONF, "data=jsonl", f"data.path={corpus}")
    assert ended.code == 2
    assert "line 2 is no" in ended.err + ended.out
