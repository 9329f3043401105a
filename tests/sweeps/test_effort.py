"""What a plan foresees of a model that it has never seen: its size from headers, its data, and what its method does."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from cli import Ended
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from sqbench.models.extent import of_images, of_language
from sqbench.models.folder import stored
from sqbench.models.language import LanguageModel
from sqbench.recipes.configured import named
from sqbench.rounding.trained import Qat
from sqbench.sweeps import effort, plan
from sqbench.sweeps.effort import Machine
from sqbench.training.fit import split

Command = Callable[..., Ended]


def shapes(folder: Path) -> list[tuple[int, ...]]:
    return [tensor.shape for tensor in stored(sorted(folder.glob("*.safetensors")), "model.name=tiny").values()]


W4 = {"weights": {"bits": 4}, "activations": None}


def test_the_size_of_a_language_model_stands_in_its_headers(tiny_folder: Path, tiny: LanguageModel) -> None:
    extent = of_language(shapes(tiny_folder), json.loads((tiny_folder / "config.json").read_text()))
    assert extent is not None
    assert extent.weights == sum(parameter.numel() for parameter in tiny.module.parameters())  # tied: once
    matrices = [parameter for parameter in tiny.module.parameters() if parameter.dim() == 2]
    with FlopCounterMode(display=False) as counter:
        tiny.forward(torch.zeros(1, 8, dtype=torch.long))
    attention = counter.get_total_flops() - 8 * extent.flops
    assert extent.flops == 2 * sum(parameter.numel() for parameter in matrices)
    assert 0 <= attention < 0.1 * counter.get_total_flops()  # of eight tokens
    read = sum(tiny.module.get_submodule(site).weight.shape[1] for site in tiny.topology.sites)
    assert read == pytest.approx(extent.channels, rel=0.2)
    assert extent.outputs == 256


def test_untied_embeddings_are_read_row_by_row_and_an_unknown_layout_is_unknown(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {"embed": torch.zeros(50, 8), "head": torch.zeros(50, 8), "layer": torch.zeros(16, 8), "norm": torch.zeros(8)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    extent = of_language(shapes(tmp_path), {"text_config": {"hidden_size": 8, "vocab_size": 50}})
    assert extent is not None
    assert (extent.weights, extent.flops) == (936, 2 * (50 * 8 + 16 * 8))
    assert of_language(shapes(tmp_path), {"model_type": "strange"}) is None


@pytest.mark.parametrize(("architecture", "size"), [("resnet10t", 64), ("vit_tiny_patch16_224", 224)])
def test_the_size_of_an_image_model_comes_from_a_pass_that_computes_nothing(architecture: str, size: int) -> None:
    extent = of_images(lambda: timm.create_model(architecture), (3, size, size))
    module = timm.create_model(architecture)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.zeros(1, 3, size, size))
    assert extent is not None
    assert extent.weights == sum(parameter.numel() for parameter in module.parameters())
    assert extent.flops == pytest.approx(counter.get_total_flops(), rel=0.2)  # without the products inside attention
    assert extent.outputs == 1000


def test_what_no_meta_device_runs_is_unknown() -> None:
    assert of_images(lambda: torch.nn.Linear(3, 3), (3, 8, 9)) is None


def test_searches_say_how_often_they_replay_the_sample() -> None:
    fixed = named("awq", alpha=0.5, clip=False).effort(W4)
    assert (fixed.roundings, fixed.replays) == (1, 0)
    searching = named("awq", pairs=False).effort(W4)
    assert searching.replays == 20 / 4 + 4 * 3 / 4  # a quarter of the sample for all twenty, the rest for four
    assert searching.roundings > named("awq", alpha=0.5).effort(W4).roundings > named("mse", steps=10).effort(W4).roundings > 1
    assert named("awq").effort({"weights": None}).replays == 0
    assert named("smoothquant").effort(W4).replays == 0 < named("smoothquant", alpha="auto").effort(W4).replays
    assert named("gptq").effort(W4).roundings > named("rtn").effort(W4).roundings == 1


def test_the_images_of_a_training_are_those_of_its_part() -> None:
    assert named("qat", epochs=2).effort(W4).learnt(1000) == Qat(epochs=2).effort(W4).learnt(1000) != (0, 0)
    assert named("awq").effort(W4).learnt(1000) == (0, 0)


@given(images=st.integers(10, 300), taken=st.none() | st.integers(8, 400), batch=st.integers(2, 64), share=st.floats(0, 0.5))
def test_gradient_steps_are_those_that_training_takes(images: int, taken: int | None, batch: int, share: float) -> None:
    method = Qat(epochs=3, images=taken, batch=batch, validation=share)
    _, learnt = split(range(images), method, 0)  # type: ignore[arg-type]
    used = min(batch, len(learnt))
    seen, steps = method.effort(W4).learnt(images)
    assert (seen, steps) == (3 * (len(learnt) // used) * used, 3 * (len(learnt) // used))


def test_a_plan_tells_seconds_and_memory_of_a_model_never_seen(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effort, "machine", lambda device, threads: Machine(1e7, 1e5, 1e6, 1e6))  # a slow one
    ended = command("-m", "plan=true", "method=rtn,awq", "bits=w4a16", "alpha=auto", "bits.weights.group_size=32")
    assert ended.code == 0
    rows = {words[1]: words for line in ended.out.splitlines() if "to do" in line and (words := re.findall(r"[\w.]+", line))}
    seconds = {name: float(words[-2]) for name, words in rows.items()}
    assert 5 * seconds["rtn"] < seconds["awq"]
    assert all(0.1 <= float(words[-1]) < 20 for words in rows.values())  # gigabytes: what this process holds is among them
    assert "estimated from the size of the model: 2 points" in ended.out
    told = command("-m", "plan=true", "method=rtn,awq", "bits=w4a16", "eval=latency", "eval.prompt=16", "eval.decode=4")
    assert "2 points of unknown cost (no finished point like it, and its length is not known before)" in told.out


def test_a_plan_marks_the_points_that_train(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def point(name: str, steps: int) -> Any:
        identity = {"scheme": {"name": "w4a4"}, "method": {"name": name}}
        resolved = SimpleNamespace(options=SimpleNamespace(force=False))
        return SimpleNamespace(id=name * 2, identity=identity, resolved=resolved, steps=steps, first="")

    monkeypatch.setattr(plan, "gradient_steps", lambda one: (0, one.steps))
    monkeypatch.setattr(plan.History, "predict", lambda self, one: None)
    plan.show_plan([point("rtn", 0), point("qat", 560)], tmp_path)
    said = capsys.readouterr().out
    assert "trains" in said
    assert "560 steps" in next(line for line in said.splitlines() if "qat" in line)
    assert "steps" not in next(line for line in said.splitlines() if "rtn" in line)
    plan.show_plan([point("rtn", 0)], tmp_path)
    assert "trains" not in capsys.readouterr().out
