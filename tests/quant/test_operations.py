"""Tensors that no layer reads: found, named, visited, and left alone afterwards."""

import math

import pytest
import torch
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from sqbench.quant.operations import Point, QuantizedOwner, attention, find_points, visiting


def vit() -> nn.Module:
    torch.manual_seed(0)
    return (
        VisionTransformer(img_size=12, patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=3).eval().requires_grad_(False)
    )


IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def points_of(module: nn.Module, images: Tensor = IMAGES) -> tuple[Point, ...]:
    with torch.no_grad():
        return find_points(module, lambda: module(images))


def test_a_vision_transformer_has_two_products_and_two_sums_a_block() -> None:
    points = points_of(vit())
    per_block = [point.site.removeprefix("blocks.1") for point in points if point.site.startswith("blocks.1")]
    assert per_block == [".attn:q", ".attn:k", ".attn:v", ".attn:scores", ".attn:probs", ":add", ".mlp.act:input", ":add1"]
    assert {point.name for point in points if point.kind == "matmul"} == {"q", "k", "v", "probs"}
    assert points[0].site == ":add"  # the position embedding, where the residual stream begins


def test_a_cnn_has_sums_and_activation_inputs_but_no_batchnorm_inputs() -> None:
    module = ResNet(BasicBlock, (1, 1, 1, 1), num_classes=3, channels=(8, 8, 8, 8)).eval()
    sites = [point.site for point in points_of(module, torch.randn(2, 3, 32, 32))]
    assert "layer1.0:add" in sites
    assert not any("bn" in site for site in sites)
    assert not any(point.kind == "matmul" for point in points_of(module, torch.randn(2, 3, 32, 32)))


def test_visiting_changes_nothing_sees_everything_and_leaves_no_trace() -> None:
    module = vit()
    points, before = points_of(module), module(IMAGES)
    seen: dict[str, torch.Size] = {}

    def visit(point: Point, x: Tensor) -> Tensor:
        seen[point.site] = point.rows(x).shape
        return x

    with visiting(module, list(points), visit):
        torch.testing.assert_close(module(IMAGES), before, rtol=1e-5, atol=1e-6)
    assert set(seen) == {point.site for point in points}
    assert seen["blocks.0.attn:q"][-1] == 16
    assert seen["blocks.0.attn:probs"][-1] == 1  # tokens are no channels
    seen.clear()
    assert torch.equal(module(IMAGES), before)
    assert not seen


def test_what_a_visitor_returns_takes_the_place_of_the_tensor() -> None:
    module = vit()
    (stream,) = (point for point in points_of(module) if point.site == "blocks.1:add1")
    with visiting(module, [stream], lambda point, x: torch.zeros_like(x)):
        after = module(IMAGES)
    zeros = torch.zeros(2, 10, 32)
    assert torch.equal(after, module.forward_head(module.norm(zeros)))


def test_an_exception_inside_leaves_no_mode_behind() -> None:
    module = vit()
    (point,) = (point for point in points_of(module) if point.site == "blocks.0.attn:q")
    before = module(IMAGES)

    def broken(point: Point, x: Tensor) -> Tensor:
        raise ZeroDivisionError

    with visiting(module, [point], broken), pytest.raises(ZeroDivisionError):
        module(IMAGES)
    assert torch.equal(module(IMAGES), before)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"enable_gqa": True},
        {"attn_mask": torch.ones(5, 5, dtype=torch.bool).tril()},
        {"attn_mask": torch.randn(5, 5, generator=torch.Generator().manual_seed(3)).double()},
    ],
    ids=lambda options: ",".join(options) or "plain",
)
def test_attention_in_parts_is_fused_attention(options: dict[str, object]) -> None:
    generator = torch.Generator().manual_seed(2)
    heads = 2 if "enable_gqa" in options else 4
    query = torch.randn(2, 4, 5, 8, generator=generator, dtype=torch.float64)
    key, value = (torch.randn(2, heads, 5, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    ours = attention(lambda name, kind, x: x, query, key, value, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(ours, scaled_dot_product_attention(query, key, value, **options))


def test_probabilities_are_a_matmul_operand_and_scores_are_not() -> None:
    kinds: dict[str, str] = {}

    def visit(name: str, kind: str, x: Tensor) -> Tensor:
        kinds[name] = kind
        if name == "probs":
            torch.testing.assert_close(x.sum(-1), torch.ones(x.shape[:-1]))
        return x

    attention(visit, *(torch.randn(1, 2, 3, 4) for _ in range(3)))
    assert kinds == {"q": "matmul", "k": "matmul", "v": "matmul", "scores": "stream", "probs": "matmul"}


class Explicit(nn.Module):
    """Attention as written before fused kernels, with products by a parameter that are no attention."""

    def __init__(self) -> None:
        super().__init__()
        self.basis = nn.Parameter(torch.eye(4))

    def forward(self, x: Tensor) -> Tensor:
        x = x @ self.basis
        return (x @ x.transpose(-2, -1) / math.sqrt(4)).softmax(-1) @ x


def test_products_of_two_activations_are_points_and_others_are_not() -> None:
    module = Explicit()
    names = [point.name for point in points_of(module, torch.randn(2, 3, 4))]
    assert names == ["matmul.a", "matmul.b", "matmul1.a", "matmul1.b"]


def test_quantizers_are_copied_with_the_module() -> None:
    import copy

    class Zero(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 0

    module = vit()
    before = module(IMAGES)
    own = [point for point in points_of(module) if point.owner == "blocks.0"]
    QuantizedOwner(module.blocks[0], own, [nn.Identity() for _ in own])
    other = copy.deepcopy(module)
    other.blocks[0].quantized_points[1] = Zero()
    assert torch.equal(module(IMAGES), before)  # the copy has its own
    after = other.blocks[1:](torch.zeros(2, 10, 32))
    torch.testing.assert_close(other(IMAGES), other.forward_head(other.norm(after)))


def test_ctrl_c_inside_leaves_nothing_behind_in_torch() -> None:
    module = vit()
    points, before = list(points_of(module)), module(IMAGES)

    def impatient(point: Point, x: Tensor) -> Tensor:
        if point.site == "blocks.1.attn:probs":
            raise KeyboardInterrupt
        return x

    with visiting(module, points, impatient), pytest.raises(KeyboardInterrupt):
        module(IMAGES)
    assert torch._C._len_torch_function_stack() == 0
    assert torch.equal(module(IMAGES), before)
    assert "forward" not in module.blocks[0].__dict__
