"""Topology: found on the shapes of real families, proven, and refused where a fold would change the function."""

import pytest
import torch
from families import build, gemma, gpt2, llama, opt
from torch import nn

from sqbench.errors import UserError
from sqbench.models.folding import Group, fold, random_scale, share
from sqbench.models.language import LanguageModel
from sqbench.models.topology import discover
from sqbench.models.tracing import common_parent
from sqbench.quant.access import weight_of


@pytest.mark.parametrize(
    ("make", "groups", "pairs"),
    [
        (
            llama,
            {"input_layernorm -> q_proj, k_proj, v_proj", "post_attention_layernorm -> gate_proj, up_proj"},
            {"v_proj -> o_proj", "up_proj -> down_proj"},
        ),
        (opt, {"self_attn_layer_norm -> q_proj, k_proj, v_proj", "final_layer_norm -> fc1"}, {"v_proj -> out_proj", "fc1 -> fc2"}),
        (gpt2, {"ln_1 -> c_attn", "ln_2 -> c_fc"}, set()),  # GELU between c_fc and c_proj; v is a third of c_attn
        (
            gemma,
            {"input_layernorm -> q_proj, k_proj, v_proj", "pre_feedforward_layernorm -> gate_proj, up_proj"},
            {"v_proj -> o_proj", "up_proj -> down_proj"},
        ),
    ],
)
def test_groups_and_pairs_of_real_families(make: object, groups: set[str], pairs: set[str]) -> None:
    topology = make().topology  # type: ignore[operator]

    def short(found: tuple[Group, ...]) -> list[str]:
        return [f"{group.source.rpartition('.')[2]} -> {str(group).rpartition(' -> ')[2]}" for group in found]

    assert set(short(topology.groups)) == groups
    assert len(topology.groups) == 2 * len(groups)
    assert set(short(topology.pairs)) == pairs
    assert len(topology.pairs) == 2 * len(pairs)
    assert not topology.refused


@pytest.mark.parametrize("make", [llama, gpt2, opt, gemma], ids=lambda make: make.__name__)
def test_folding_every_group_and_pair_leaves_the_function(make: object) -> None:
    model = make()  # type: ignore[operator]
    module = share(model.module)
    for seed, group in enumerate([*model.topology.groups, *model.topology.pairs]):
        source = module.get_submodule(group.source)
        channels = source.weight.shape[0] if group.kind == "norm" else weight_of(source).shape[0]
        fold(module, group, random_scale(channels, seed=seed, device=torch.device("cpu")))
    before, after = model.forward(model.example()), model.with_module(module, None).forward(model.example())
    assert not torch.equal(before, after)
    assert (before - after).abs().max() <= 1e-5 * before.abs().max()


def test_grouped_query_attention_repeats_channels_of_v() -> None:
    pair = next(pair for pair in llama().topology.pairs if pair.source.endswith("v_proj"))
    heads = [list(range(start, start + 8)) for start in (0, 0, 8, 8)]  # 4 heads read 2 key-value heads of 8 channels
    assert pair.origin is not None
    assert pair.origin.tolist() == [channel for head in heads for channel in head]
    assert torch.equal(
        pair.spread(torch.arange(16.0)), torch.tensor([channel for head in heads for channel in head], dtype=torch.float32)
    )
    assert torch.equal(pair.gather(torch.arange(32.0)), torch.tensor([*range(8, 16), *range(24, 32)], dtype=torch.float32))


@pytest.mark.parametrize(
    "model",
    [
        opt(do_layer_norm_before=False),
        build("Bert", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, is_decoder=True),
    ],
    ids=["OPT post-norm", "BERT"],
)
def test_post_norm_groups_are_refused_by_name(model: LanguageModel) -> None:
    topology = discover(model.module, lambda: model.forward(model.example()), keep=model.pinned_layers())
    groups = [str(group) for group in topology.groups]  # nothing but BERT's head, which reads the last norm through a slice
    assert groups == ["bert.encoder.layer.1.output.LayerNorm -> dense"] * (model.name == "Bert")
    assert topology.refused
    for name, reason in topology.refused:
        assert " -> " in name
        assert "folding random scales changes the output" in reason
        assert "something else reads it" in reason


def test_layers_that_share_an_input_share_a_site() -> None:
    topology = llama().topology
    assert len(topology.layers) == 14
    assert len(topology.sites) == 8
    assert topology.site["model.layers.0.self_attn.v_proj"] == "model.layers.0.self_attn.q_proj"
    assert "lm_head" not in topology.layers


def test_float_models_are_not_written_to() -> None:
    model = llama()
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    module = share(model.module)
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(model.module.parameters(), module.parameters(), strict=True))
    for group in model.topology.groups:
        fold(module, group, torch.full((32,), 3.0))
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())


class Shared(nn.Module):
    """One linear that runs twice, and a norm whose output is also added back."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.twice, self.once = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        return self.once(self.twice(self.twice(x)))


def test_layers_that_run_twice_are_refused() -> None:
    torch.manual_seed(0)
    module = Shared()
    topology = discover(module, lambda: module(torch.randn(4, 8)))
    assert not topology.groups


def test_kept_layers_take_their_group_with_them() -> None:
    model = llama()
    topology = discover(
        model.module, lambda: model.forward(model.example()), keep=model.pinned_layers(), patterns=("*.0.mlp.up_proj",)
    )
    assert "model.layers.0.mlp.up_proj" not in topology.layers
    assert ("model.layers.0.post_attention_layernorm -> gate_proj", "a layer that stays in float reads it too") in topology.refused


def test_a_model_without_layers_is_an_error() -> None:
    module = nn.Sequential(nn.AvgPool2d(3))
    with pytest.raises(UserError, match="ran no layer"):
        discover(module, lambda: module(torch.randn(1, 3, 8, 8)))


def test_common_parent() -> None:
    called = {"", "a", "a.b", "a.b.q", "a.b.k", "a.c"}
    assert common_parent(("a.b.q", "a.b.k"), called) == "a.b"
    assert common_parent(("a.b.q", "a.c"), called) == "a"
    assert common_parent(("a.b.q",), called) == "a.b.q"
    assert common_parent(("x.y", "a.c"), called) == ""
    assert common_parent(("a.list.0", "a.list.1"), called) == "a"
