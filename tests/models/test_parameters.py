"""Every parameter has one role, the sum is the model, and what stays in float unasked has a name: language and image models."""

import families
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sqbench.calibration import Statistics
from sqbench.data.preprocessing import Preprocessing
from sqbench.formats.format import Format
from sqbench.formats.scheme import Scheme
from sqbench.models.base import Model
from sqbench.models.experts import split_experts
from sqbench.models.image import ImageModel
from sqbench.models.plain import make_plain
from sqbench.models.topology import discover
from sqbench.parts.task import Task
from sqbench.pipeline.report import count_parameters, sizes
from sqbench.quant.access import weight_of

LLAMA = families.LLAMA
MOE = LLAMA | {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
EXPERTS = {"num_experts": 4}
W8 = Scheme("w8", Format(8, granularity="channel"))
# Family -> its options, and what of it stays in float, by the ends of names.
LANGUAGE = {
    "Llama": (LLAMA, ()),
    "Gemma2": (LLAMA | {"head_dim": 8}, ()),
    "OPT": (families.OPT, ()),
    "GPT2": ({"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}, ()),
    "Falcon": ({"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": False}, ()),
    "Mamba": ({"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, ("conv1d", "dt_proj")),
    "Mixtral": (LLAMA | {"num_local_experts": 4}, ("gate.weight",)),
    "Qwen2Moe": (MOE | EXPERTS | {"shared_expert_intermediate_size": 24}, ("gate.weight",)),
    "Qwen3Moe": (MOE | EXPERTS | {"head_dim": 8}, ("gate.weight",)),
    "GptOss": (LLAMA | {"num_local_experts": 4, "head_dim": 8}, ("router.weight",)),
    "GraniteMoe": (LLAMA | {"num_local_experts": 4}, ("router.weight",)),
    "Dbrx": (
        {
            **{"d_model": 32, "n_heads": 4, "n_layers": 2, "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4}},
            "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
        },
        ("w1", "v1", "w2"),
    ),
}
IMAGES = {
    "vit_tiny_patch16_224": ({"img_size": 32, "embed_dim": 24, "depth": 2}, ()),
    "resnet18": ({}, ()),
    "swin_tiny_patch4_window7_224": ({"img_size": 56, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2)}, ()),
    "beit_base_patch16_224": ({"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2}, ("attn.qkv",)),
    "nf_resnet26": ({}, ()),
}


def task_of(model: Model, layers: tuple[str, ...] | None = None) -> Task:
    return Task(model, Statistics({}, torch.empty(0)), Scheme(W8.name, W8.weights, layers=layers))


def language(family: str, **changes: object) -> Model:
    model = families.build(family, **{**LANGUAGE[family][0], **changes})
    make_plain(model.module)
    split_experts(model.module)
    return model


def image(name: str) -> Model:
    torch.manual_seed(0)
    module = timm.create_model(name, num_classes=5, **IMAGES[name][0]).eval().requires_grad_(False)
    make_plain(module)
    side = IMAGES[name][0].get("img_size", 32)
    return ImageModel(module, name, name, preprocessing=Preprocessing((3, side, side), (0.5,) * 3, (0.5,) * 3), classes=5)


def check(model: Model, ends: tuple[str, ...]) -> dict[str, int]:
    """The laws, for one model; its counts."""
    task = task_of(model)
    counts, parameters = count_parameters(task), dict(model.module.named_parameters())
    assert sum(counts.values()) == sum(parameter.numel() for parameter in parameters.values())
    layers = {id(layer.weight): weight_of(layer).numel() for layer in map(model.module.get_submodule, task.topology.layers)}
    assert counts["quantized"] == sum(layers.values())
    said = sizes(task)
    assert said["parameters"] == counts
    assert counts["floating"] == sum(entry["weights"] for entry in said["floating"])
    for entry in said["floating"]:
        assert entry["reason"]
        assert entry["layer"].endswith(ends), entry
    assert bool(said["floating"]) == bool(ends)
    matrices = {name for name, value in parameters.items() if value.dim() > 1 and value.numel() > 2 * max(value.shape)}
    unread = {name for name in matrices if model.topology.roles[name] == "other"}
    assert all(any(word in name for word in ("pos", "token", "bias", "A_log")) for name in unread), unread
    return counts


@pytest.mark.parametrize("family", LANGUAGE)
def test_every_parameter_of_a_language_model_has_a_role(family: str) -> None:
    counts = check(language(family), LANGUAGE[family][1])
    assert counts["embedding"] >= 101 * 32
    assert counts["norm"] > 0


@pytest.mark.parametrize("name", IMAGES)
def test_every_parameter_of_an_image_model_has_a_role(name: str) -> None:
    check(image(name), IMAGES[name][1])


@given(
    st.sampled_from(["Llama", "GPT2", "Mixtral", "Falcon", "Mamba", "OPT"]),
    st.booleans(),
    st.integers(1, 3),
    st.sampled_from([None, "*.0.*", "*proj*"]),
)
@settings(max_examples=12, deadline=None)
def test_the_sum_holds_whatever_is_tied_chosen_or_kept(family: str, tied: bool, blocks: int, chosen: str | None) -> None:
    depth = "n_layer" if family == "GPT2" else "num_hidden_layers"
    model = language(family, tie_word_embeddings=tied, **{depth: blocks})
    whole = count_parameters(task_of(model))
    total = sum(parameter.numel() for parameter in model.module.parameters())
    assert sum(whole.values()) == total
    if chosen is not None and any(model.topology.restricted([name]) for name in model.topology.layers[:1] if chosen in name):
        part = count_parameters(task_of(model, (chosen,)))
        assert sum(part.values()) == total
        assert part["quantized"] + part["kept"] == whole["quantized"] + whole["kept"]


def test_a_layer_of_the_head_is_a_layer() -> None:
    model = families.build(
        "Roberta", is_decoder=True, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48
    )
    assert "lm_head.dense" in model.topology.layers
    assert sum(count_parameters(task_of(model)).values()) == sum(parameter.numel() for parameter in model.module.parameters())


def test_a_layer_that_calibration_does_not_run_is_named() -> None:
    module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).requires_grad_(False)
    x = torch.randn(2, 8)
    found = discover(module, lambda: module(x), body=lambda: module[0](x))
    assert found.layers == ("0",)
    assert dict(found.floating)["1"].startswith("it belongs to the head")


class Hidden(nn.Module):
    """Weights that hide from a look at modules, and tensors that only look like weights."""

    def __init__(self) -> None:
        super().__init__()
        self.cast, self.masked, self.picked = (nn.Parameter(torch.randn(4, 4)) for _ in range(3))
        self.experts = nn.Parameter(torch.randn(3, 4, 4))
        self.unused = nn.Linear(4, 4)
        self.position, self.scale = nn.Parameter(torch.randn(1, 6, 4)), nn.Parameter(torch.randn(4, 1))
        self.register_buffer("mask", torch.ones(4, 4))
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer(x + self.position) @ self.cast.double().float() @ (self.masked * self.mask)
        x = torch.einsum("btc,dc->btd", x * self.scale.mean(), torch.cat([self.picked[:2], self.picked[2:]]))
        return torch.bmm(x, self.experts[torch.tensor([2, 0])])


def test_matrices_are_found_by_what_is_done_with_them() -> None:
    torch.manual_seed(0)
    module = Hidden().eval().requires_grad_(False)
    model = ImageModel(module, "hidden", "hidden", preprocessing=Preprocessing((6, 4, 4), (0.5,), (0.5,)))
    object.__setattr__(model, "example", lambda: torch.randn(2, 6, 4))
    topology = model.topology
    assert set(dict(topology.floating)) == {"cast", "masked", "picked", "experts", "unused"}
    assert dict(topology.floating)["unused"] == "the example does not reach it"
    assert {name for name, role in topology.roles.items() if role == "other"} == {"position", "scale", "unused.bias", "layer.bias"}
