"""Sizes of groups and blocks against the layers of a model."""

import pytest

from sqbench.errors import UserError
from sqbench.formats.named import schemes
from sqbench.parts.layer_formats import check_groups
from sqbench.quant.access import Widths

LAYERS = {"q_proj": Widths(512, 512, 512), "k_proj": Widths(512, 512, 192), "patches": Widths(3, 3, 100)}


def test_rows_of_a_block_that_do_not_divide_a_layer_are_refused_with_the_sizes_that_do() -> None:
    with pytest.raises(UserError) as refused:
        check_groups(schemes()["fp8_block"], LAYERS)
    said = str(refused.value)
    assert "bits.weights.block_rows=128 does not divide out_features=192 of k_proj (192 % 128 = 64)" in said
    assert said.endswith("sizes for every layer: [2, 4, 8, 16, 32, 64]")  # a layer without a whole group has no blocks


def test_a_scheme_that_fits_passes() -> None:
    check_groups(schemes()["fp8_block"], {name: size for name, size in LAYERS.items() if name != "k_proj"})
    check_groups(schemes()["w4a16_g128"], LAYERS)
