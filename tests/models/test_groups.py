"""Groups behind rolls, partitions and slices are found by what they do; every norm that a linear reads is grouped or refused."""

import pytest
import timm
import torch
from families import build
from timm.models.davit import DaVit
from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitTransformerCfg
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from sqbench.models.folding import fold, random_scale, share
from sqbench.models.topology import Topology, discover


def random(module: nn.Module) -> nn.Module:
    """Norms that are not the identity."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(torch.randn_like(parameter) * 0.2 + 0.1)
    return module.eval().requires_grad_(False)


def swin() -> nn.Module:
    return SwinTransformer(
        img_size=24, patch_size=4, window_size=4, embed_dim=16, depths=(2, 1), num_heads=(2, 4), num_classes=5
    )  # 6 x 6 tokens in windows of 4: padded; the second block is shifted


def davit() -> nn.Module:
    return DaVit(depths=(1, 1), embed_dims=(16, 32), num_heads=(2, 4), window_size=4, num_classes=5)


def maxvit() -> nn.Module:
    transformer = MaxxVitTransformerCfg(dim_head=8, window_size=(2, 2), grid_size=(2, 2))
    cfg = MaxxVitCfg(embed_dim=(16, 32), depths=(1, 1), block_type=("M", "M"), stem_width=(8, 16), transformer_cfg=transformer)
    return MaxxVit(cfg, img_size=32, num_classes=5)


def cait() -> nn.Module:
    return timm.models.cait.Cait(img_size=32, embed_dim=16, depth=1, num_heads=2, depth_token_only=1, num_classes=5)


def settled(topology: Topology) -> set[str]:
    return {group.source for group in topology.groups} | {name.partition(" -> ")[0] for name, _ in topology.refused}


@pytest.mark.parametrize("make", [swin, davit, maxvit, cait], ids=lambda make: make.__name__)
def test_a_view_does_not_hide_a_reader(make: object) -> None:
    module = random(make())  # type: ignore[operator]
    side = 24 if make is swin else 32
    images = torch.randn(2, 3, side, side)
    topology = discover(module, lambda: module(images))
    norms = {
        name for name, layer in module.named_modules() if name.endswith(("norm1", "norm2")) and isinstance(layer, nn.LayerNorm)
    }
    sources = {group.source for group in topology.groups}
    assert len(norms) >= 4
    assert norms <= sources
    folded = share(module)
    for seed, group in enumerate(topology.groups):
        fold(folded, group, random_scale(len(module.get_submodule(group.source).weight), seed, torch.device("cpu")))  # type: ignore[arg-type]
    before, after = module(images), folded(images)
    assert not torch.equal(before, after)
    assert (before - after).abs().max() <= 1e-5 * before.abs().max()


def test_readers_of_a_part_join_those_of_the_whole() -> None:
    """Class attention: q reads one token of what k and v read; without q the fold would change the function."""
    module = random(cait())
    images = torch.randn(2, 3, 32, 32)
    topology = discover(module, lambda: module(images))
    group = next(group for group in topology.groups if group.source == "blocks_token_only.0.norm1")
    assert str(group) == "blocks_token_only.0.norm1 -> q, k, v"
    assert len({topology.site[name] for name in group.readers}) == 2


def test_a_norm_that_heads_share_is_a_group_with_an_origin() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.out = nn.RMSNorm(4), nn.Linear(12, 12)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.norm(x.unflatten(-1, (3, 4))).flatten(-2))

    module = random(Heads())
    (group,) = discover(module, lambda: module(torch.randn(5, 12))).groups
    assert group.origin is not None
    assert group.origin.tolist() == [0, 1, 2, 3] * 3


class Between(nn.Module):
    """A norm, something, and a linear."""

    def __init__(self, between: object) -> None:
        super().__init__()
        self.norm, self.fc, self.between = nn.LayerNorm(8), nn.Linear(8, 8), between

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.between(self.norm(x)))  # type: ignore[operator]


@pytest.mark.parametrize(
    "between",
    [torch.nn.functional.gelu, torch.tanh, lambda x: x.cumsum(-1), lambda x: x.transpose(1, 2), lambda x: x * x.flip(-1)],
    ids=["gelu", "tanh", "mixed", "tokens", "product"],
)
def test_what_is_not_grouped_is_refused_by_name(between: object) -> None:
    module = random(Between(between))
    topology = discover(module, lambda: module(torch.randn(2, 8, 8)))
    assert not topology.groups
    assert topology.refused == (("norm -> fc", "a function that mixes or bends channels lies between them"),)


@pytest.mark.parametrize("between", [lambda x: x.roll(3, 1), lambda x: x[:, ::2] * 2, torch.relu, lambda x: x.flip(-1)])
def test_what_keeps_channels_apart_is_a_group(between: object) -> None:
    module = random(Between(between))
    topology = discover(module, lambda: module(torch.randn(2, 8, 8)))
    assert [str(group) for group in topology.groups] == ["norm -> fc"]
    assert settled(topology) == {"norm"}


def test_query_and_key_norms_are_named() -> None:
    """Their linear is behind a softmax: neither is a group, and both are told."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = build("Qwen3", head_dim=8, intermediate_size=48, **sizes)
    refused = dict(model.topology.refused)
    assert set(refused) == {f"model.layers.0.self_attn.{name}_norm -> o_proj" for name in "qk"}
    assert len(model.topology.groups) == 2


class Two(nn.Module):
    """A norm that two linears read, each in its own order."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(8), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.a(x.roll(1, 1)) + self.b(x.flip(1))


def test_a_kept_reader_behind_a_view_keeps_the_group_in_float() -> None:
    module = random(Two())
    topology = discover(module, lambda: module(torch.randn(2, 6, 8)), patterns=("b",))
    assert topology.refused == (("norm -> a", "a layer that stays in float reads it too"),)
    assert [str(group) for group in discover(module, lambda: module(torch.randn(2, 6, 8))).groups] == ["norm -> a, b"]
