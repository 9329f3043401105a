"""Weights that no format holds, and scales that their dtype does not hold, are refused by the name of the layer."""

import pytest
import torch

from sqbench.errors import UserError
from sqbench.formats.codec import encode
from sqbench.formats.format import Format
from sqbench.formats.scale import Scale
from sqbench.pipeline.finite import check_scales, check_weight


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_weight_that_is_not_finite(value: float) -> None:
    weight = torch.ones(4, 8)
    check_weight("blocks.0.fc1", weight)
    weight[1, 2] = value
    with pytest.raises(UserError, match=r"blocks\.0\.fc1: its weight has 1 values that are NaN or infinite"):
        check_weight("blocks.0.fc1", weight)


def test_a_scale_beyond_its_dtype() -> None:
    weight = torch.full((4, 8), 1e7)
    check_scales("blocks.0.fc1", encode(weight, Format(4, granularity="channel")))
    with pytest.raises(
        UserError, match=r"blocks\.0\.fc1: a scale of int4 sym channel is too large for float16; use scale\.dtype=float32"
    ):
        check_scales("blocks.0.fc1", encode(weight, Format(4, granularity="channel", scale=Scale("float16"))))
