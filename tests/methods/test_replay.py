"""Folds with the scales that were chosen, on what calibration saw: undone and named where they move the float function."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from timm.models.cait import Cait
from torch import Tensor, nn

from sqbench import api
from sqbench.calibration import Statistics, collect
from sqbench.data.preprocessing import Preprocessing
from sqbench.formats.scheme import Scheme
from sqbench.models.folding import divide_norm, multiply_inputs
from sqbench.models.image import ImageModel
from sqbench.models.language import LanguageModel
from sqbench.models.stream_loading import stream_language_model
from sqbench.parts.task import Task
from sqbench.recipes.configured import named
from sqbench.recipes.recipe import Recipe
from sqbench.transforms.base import Move
from sqbench.transforms.proof import sound
from sqbench.transforms.smoothing import Smooth


class Block(nn.Module):
    """A norm, two linears, and something between the second and the third."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(12), nn.Linear(12, 16), nn.Linear(16, 12)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.between(self.up(self.norm(x))))


class Net(nn.Module):
    def __init__(self, *between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(map(Block, between))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x.flatten(1)


def bounded(limit: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x.clamp(-limit, limit)


def prepared(module: nn.Module, factor: float = 1.0) -> tuple[ImageModel, Statistics]:
    """A model of images [1, 4, 12] and statistics of some that are `factor` times as large as its example."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
    module = module.eval().requires_grad_(False)
    model = ImageModel(module, "net", "net", preprocessing=Preprocessing((1, 4, 12), (0.5,), (0.25,)), classes=48)
    inputs = factor * torch.randn(8, 1, 4, 12, generator=torch.Generator().manual_seed(3))
    return model, collect(module, model.body, model.topology.sites, inputs)


def moves(model: ImageModel, statistics: Statistics, scales: dict[str, float]) -> list[Move]:
    """All groups and pairs with random scales around these, by source; 1 elsewhere."""
    found = []
    for group in (*model.topology.groups, *model.topology.pairs):
        source = model.module.get_submodule(group.source)
        steps = torch.rand(len(source.weight), generator=torch.Generator().manual_seed(1)) + 0.5  # type: ignore[arg-type]
        found.append(Move(group, steps * scales.get(group.source, 1.0), 0.5, {}))
    return found


def test_a_fold_that_meets_a_clamp_is_undone_and_named() -> None:
    """The clamp is too far away for the proof of discovery, and binds with the scales of one block alone."""
    model, statistics = prepared(Net(torch.relu, bounded(1e5), torch.relu))
    assert len(model.topology.pairs) == 3
    task = Task(model, statistics, Scheme("fp"))
    kept, refused = sound(task, moves(model, statistics, {}))
    assert (len(kept), refused) == (6, [])
    kept, refused = sound(task, moves(model, statistics, {"blocks.1.up": 1e-6}))
    assert len(kept) == 5
    ((name, reason),) = refused
    assert name == "blocks.1.up -> down"
    assert reason.startswith("folding changes ")
    assert "blocks.1 on calibration inputs, with the scales that the method chose, by " in reason


def test_the_record_says_what_was_undone_and_the_function_stays() -> None:
    class Tiny(Smooth):
        def changes(self, task: Task) -> list[Move]:
            return moves(model, statistics, {"blocks.1.up": 1e-6})

    model, statistics = prepared(Net(torch.relu, bounded(1e5)))
    folded = api.quantize(model, statistics, Recipe("tiny", (Tiny(),)), Scheme("fp"))
    assert [group["source"] for group in folded.report["groups"]] == ["blocks.0.norm", "blocks.1.norm", "blocks.0.up"]
    assert [entry["group"] for entry in folded.report["refused"]] == ["blocks.1.up -> down"]
    before, after = model.forward(statistics.sample), folded.forward(statistics.sample)
    assert (before - after).abs().max() <= 1e-5 * before.abs().max()


class Gated(Block):
    """Another reader of the norm that only large inputs reach."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.down(self.between(self.up(y))) + y * (x.abs() > 50)


def test_real_inputs_decide_and_not_the_example() -> None:
    net = Net(torch.relu)
    net.blocks.append(Gated(torch.relu))
    model, statistics = prepared(net)
    assert len(model.topology.groups) == 2
    assert not sound(Task(model, statistics, Scheme("fp")), moves(model, statistics, {}))[1]
    large = replace(statistics, sample=100 * statistics.sample)
    kept, refused = sound(Task(model, large, Scheme("fp")), moves(model, statistics, {}))
    assert [str(move.group) for move in kept] == ["blocks.0.norm -> up", "blocks.0.up -> down", "blocks.1.up -> down"]
    assert [name for name, _ in refused] == ["blocks.1.norm -> up"]


def test_an_empty_sample_leaves_the_example() -> None:
    model, statistics = prepared(Net(bounded(1e5)))
    empty = replace(statistics, sample=torch.empty(0))
    assert sound(Task(model, empty, Scheme("fp")), moves(model, statistics, {"blocks.0.up": 1e-6}))[1]


def test_batchnorms_are_held_against_the_sample_too() -> None:
    class Bounded(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).clamp(-1e5, 1e5)

    class Convnet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4))
            self.rest = nn.Sequential(nn.Conv2d(4, 1, 1), Bounded(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.rest(self.stem(x)).flatten(1)

    model, statistics = prepared(Convnet())
    assert len(model.topology.batchnorms) == 2
    quantized = api.quantize(model, replace(statistics, sample=1e7 * statistics.sample), "minmax", bits="w8a8")
    (entry,) = quantized.report["refused"]
    assert entry["group"] == "rest.0 -> rest.1"
    assert isinstance(quantized.module.rest[1], Bounded)
    assert isinstance(quantized.module.stem[1], nn.Identity)


def test_factors_outside_float16_are_applied_in_float32() -> None:
    norm, linear = nn.RMSNorm(4).half(), nn.Linear(4, 4, bias=False).half()
    norm.weight.data = torch.tensor([20000.0, 1, 1, 1]).half()
    linear.weight.data[:, 0] = 1e-5
    scale = torch.tensor([1e5, 1e-3, 1, 2])
    columns = linear.weight.data.float()
    divide_norm(norm, scale)
    multiply_inputs(linear, scale)
    assert norm.weight.dtype == linear.weight.dtype == torch.float16
    torch.testing.assert_close(norm.weight.float(), torch.tensor([0.2, 1000, 1, 0.5]), rtol=1e-3, atol=0)
    torch.testing.assert_close(linear.weight.float(), columns * scale, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("alpha", [0.5, "auto"])
def test_smoothing_in_float16_stays_finite_beyond_its_range(tiny: LanguageModel, statistics: Statistics, alpha: object) -> None:
    """One channel is large in the norm and tiny in the columns that read it: its factor passes 65504."""
    module = copy.deepcopy(tiny.module)
    with torch.no_grad():
        layer = module.model.layers[0]
        layer.post_attention_layernorm.weight[5] = 5000.0
        for linear in (layer.mlp.gate_proj, layer.mlp.up_proj):
            linear.weight[:, 5] = 1e-6
    half = LanguageModel(module.half(), "half", "half", tokenizer=tiny.tokenizer)
    seen = api.calibrate(half, statistics.sample)
    quantized = api.quantize(half, seen, "smoothquant", bits="w8a8", alpha=alpha)
    assert quantized.report["refused"] == []
    if alpha == 0.5:
        assert max(group["scale_max"] for group in quantized.report["groups"]) > 10000
    assert quantized.forward(statistics.sample).isfinite().all()


def test_a_fold_that_overflows_float16_is_undone(tiny: LanguageModel, statistics: Statistics) -> None:
    half = LanguageModel(copy.deepcopy(tiny.module).half(), "half", "half", tokenizer=tiny.tokenizer)
    group, other = half.topology.groups[:2]
    width = len(half.module.get_submodule(group.source).weight)
    scales = torch.full((width,), 1e-7), torch.full((width,), 2.0)
    wanted = [Move(one, scale, 0.5, {}) for one, scale in zip((group, other), scales, strict=True)]
    kept, refused = sound(Task(half, statistics, Scheme("fp")), wanted)
    assert [move.group for move in kept] == [other]
    ((name, reason),) = refused
    assert name == str(group)
    assert reason.startswith("in float16 folding changes the output of model.layers.0 ")
    assert reason.endswith("numbers leave its range")


def test_a_model_in_blocks_undoes_and_names_the_same_folds(tiny_folder: Path, tiny: LanguageModel, statistics: Statistics) -> None:
    class Far(Smooth):
        def changes(self, task: Task) -> list[Move]:
            return [Move(group, torch.full_like(task.stats(group).absmax, 1e-40), 0.5, {}) for group in task.topology.groups[:1]]

    blocks = stream_language_model(
        tiny_folder, torch.device("cpu"), name="t", fingerprint="t", dtype="float32", trust_remote_code=False, keep=()
    )
    whole, streamed = (api.quantize(model, statistics, Recipe("far", (Far(),)), "w8a8_dynamic") for model in (tiny, blocks))
    assert whole.report["refused"]
    ours = streamed.forward(statistics.sample)
    assert [entry["group"] for entry in streamed.report["refused"]] == [
        "model.layers.0.input_layernorm -> q_proj, k_proj, v_proj",
        "model.layers.1.input_layernorm -> q_proj, k_proj, v_proj",
    ]
    assert streamed.report["refused"][0] == whole.report["refused"][0]
    assert ours.isfinite().all()


def test_readers_at_two_sites_are_smoothed_as_one_group() -> None:
    """Class attention: q reads one token of what k and v read, and each site keeps the range of what is read there."""
    module = Cait(img_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2, depth_token_only=1, num_classes=5)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    module = module.eval().requires_grad_(False)
    model = ImageModel(module, "net", "net", preprocessing=Preprocessing((3, 16, 16), (0.5,), (0.25,)), classes=5)
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    statistics = collect(module, model.body, model.topology.sites, images)
    folded = api.quantize(model, statistics, named("smoothquant", alpha=0.5), Scheme("fp"))
    assert ["q", "k", "v"] in [[name.rpartition(".")[2] for name in group["readers"]] for group in folded.report["groups"]]
    before, after = model.forward(images), folded.forward(images)
    assert (before - after).abs().max() <= 1e-5 * before.abs().max()
    quantized = api.quantize(model, statistics, named("smoothquant", alpha=1.0), "w8a8").module.blocks_token_only[0].attn
    assert quantized.k.activation.static.scale.item() == pytest.approx(2 / 255, rel=0.35)  # at alpha = 1 channels lie in [-1, 1]
    assert quantized.q.activation.static.scale.item() <= quantized.k.activation.static.scale.item()
