"""Experts of a mixture as linear layers: the same function, every expert a layer of its own, and folds that the router follows."""

from collections.abc import Callable

import pytest
import torch
from mixtures import MIXTURES, experts_of, mixture, stacked
from torch import nn

from sqbench.models.experts import Experts, everyone, feeding, idle, split_experts
from sqbench.models.folding import fold, random_scale, share
from sqbench.models.proofs import channels_of_source
from sqbench.quant.access import weight_of
from sqbench.quant.layers import stored_bytes


@pytest.mark.parametrize("family", MIXTURES)
def test_split_experts_compute_the_same_from_the_same_memory(family: str) -> None:
    model = stacked(family)
    with torch.no_grad():
        before = model.forward(model.example())
    numbers = sum(parameter.numel() for parameter in model.module.parameters())
    places = {parameter.untyped_storage().data_ptr() for parameter in model.module.parameters()}
    size = stored_bytes(model.module)
    split_experts(model.module)
    assert len(experts_of(model.module)) == MIXTURES[family][1]
    with torch.no_grad():
        after = model.forward(model.example())
    torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-6)
    assert sum(parameter.numel() for parameter in model.module.parameters()) == numbers
    assert {parameter.untyped_storage().data_ptr() for parameter in model.module.parameters()} == places
    assert stored_bytes(model.module) == size


@pytest.mark.parametrize("family", MIXTURES)
def test_every_expert_is_a_layer_and_only_routers_stay_in_float(family: str) -> None:
    model = mixture(family)
    topology = model.topology
    for name, experts in experts_of(model.module).items():
        for number in range(experts.count):
            own = [layer for layer in topology.layers if layer.startswith(f"{name}.{number}.")]
            assert len(own) == 3
            sites = {topology.site[layer] for layer in own}
            assert sites == {f"{name}.{number}.gate_proj", f"{name}.{number}.down_proj"}
    assert all(name.rpartition(".")[0].endswith(("gate", "router")) for name, _ in topology.floating)
    assert len(topology.floating) == MIXTURES[family][1]


@pytest.mark.parametrize("family", MIXTURES)
def test_scales_move_from_the_norm_into_experts_and_the_router_follows(family: str) -> None:
    """Also from up to down. gpt-oss clamps up and adds 1, so nothing moves there."""
    model = mixture(family)
    groups = [group for group in model.topology.groups if group.followers]
    assert len(groups) == MIXTURES[family][1]
    assert not [name for name, _ in model.topology.refused if "post_attention" in name]
    for group in groups:
        (router,) = group.followers
        assert {reader.rpartition(".")[2] for reader in group.readers if ".experts." in reader} == {"gate_proj", "up_proj"}
        folded = share(model.module)
        fold(folded, group, random_scale(channels_of_source(folded.get_submodule(group.source), "norm"), 3, model.device))
        assert not torch.equal(weight_of(folded.get_submodule(router)), weight_of(model.module.get_submodule(router)))
        with torch.no_grad():
            plain, after = (model.with_module(module, None).forward(model.example()) for module in (model.module, folded))
        torch.testing.assert_close(after, plain, rtol=1e-4, atol=1e-4)
    pairs = [pair for pair in model.topology.pairs if ".experts." in pair.source]
    assert len(pairs) == (0 if family == "GptOss" else 4 * MIXTURES[family][1])
    assert all(pair.source.replace("up_proj", "down_proj") == pair.readers[0] for pair in pairs)


def test_feeding_changes_who_reads_and_not_what_is_computed() -> None:
    model = mixture("Mixtral")
    seen: dict[str, int] = {}
    for name, layer in model.module.named_modules():
        if name.endswith("up_proj"):
            layer.register_forward_pre_hook(lambda layer, args, name=name: seen.__setitem__(name, args[0].shape[1]))
    ids = model.example()[:1, :3]  # 3 tokens reach at most 6 of 8 experts
    with torch.no_grad():
        plain = model.forward(ids)
        reached = dict(seen)
        with feeding(model.module, idle):
            torch.testing.assert_close(model.forward(ids), plain, rtol=1e-5, atol=1e-6)
        assert len(seen) == 8
        assert {name for name, tokens in seen.items() if tokens == 3} >= seen.keys() - reached.keys()
        with feeding(model.module, everyone):
            torch.testing.assert_close(model.forward(ids), plain, rtol=1e-5, atol=1e-6)
        assert set(seen.values()) == {3}
        with feeding(model.module, everyone, heard=True):
            assert not torch.allclose(model.forward(ids), plain, rtol=1e-3, atol=1e-3)
        assert torch.equal(model.forward(ids), plain)


def _no_flags(part: nn.Module) -> None:
    del part.is_transposed


def _another_function(part: nn.Module) -> None:
    part.forward = lambda hidden, chosen, weights: hidden


def _another_parameter(part: nn.Module) -> None:
    part.scale = nn.Parameter(torch.ones(1))


def _raises(part: nn.Module) -> None:
    part.forward = lambda hidden: hidden


@pytest.mark.parametrize("change", [_no_flags, _another_function, _another_parameter, _raises])
def test_experts_that_are_not_proven_stay_in_float_and_are_named(change: Callable[[nn.Module], None]) -> None:
    model = stacked("Mixtral")
    block = model.module.get_submodule("model.layers.0.mlp.experts")
    change(block)
    split_experts(model.module)
    assert model.module.get_submodule("model.layers.0.mlp.experts") is block
    assert isinstance(model.module.get_submodule("model.layers.1.mlp.experts"), Experts)


def test_stacked_experts_that_stay_are_named_with_their_shape() -> None:
    model = stacked("Mixtral")
    reasons = dict(model.topology.floating)
    assert "4x96x32" in reasons["model.layers.0.mlp.experts.gate_up_proj"]


def test_half_precision_is_proven_in_float32() -> None:
    model = stacked("Qwen3Moe")
    model.module.to(torch.bfloat16)
    split_experts(model.module)
    assert len(experts_of(model.module)) == 2
    assert {parameter.dtype for parameter in model.module.parameters()} == {torch.bfloat16}
