"""Points of a quantized model by paths, and which two are multiplied."""

import copy

import torch
from quant.test_operations import Explicit, points_of, vit
from torch import nn

from sqbench.pipeline.points import place_points
from sqbench.quant.products import owner_of, placed, products


def quantized(module: nn.Module, *images: torch.Tensor) -> nn.Module:
    place_points(module, list(points_of(module, *images)), lambda point: nn.Identity())
    return copy.deepcopy(module)


def test_every_quantizer_has_its_point_and_every_product_its_name() -> None:
    module = vit()
    sites = [point.site for point in points_of(module)]
    found = placed(quantized(module))
    assert sorted(point.site for point in found.values()) == sorted(sites)
    assert all(owner_of(path) == point.owner for path, point in found.items())
    assert {(found[a].site, found[b].site): name for (a, b), name in products(found).items()} == {
        (f"blocks.{number}.attn:{first}", f"blocks.{number}.attn:{second}"): f"blocks.{number}.attn:{first}@{second}"
        for number in (0, 1)
        for first, second in (("q", "k"), ("probs", "v"))
    }


def test_products_that_are_written_out_are_told_apart_by_numbers() -> None:
    found = placed(quantized(Explicit(), torch.randn(2, 3, 4)))
    assert list(products(found).values()) == [":matmul.a@matmul.b", ":matmul1.a@matmul1.b"]
    assert placed(Explicit()) == {}
