"""Codes and their meaning: encode, decode, and the one step that equals both."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sqbench.quant.affine import round_trip
from sqbench.quant.codec import decode, encode
from sqbench.quant.formats import Format

FORMATS = st.builds(
    Format,
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    granularity=st.sampled_from(("tensor", "channel")),
    convention=st.sampled_from(("qmax", "half_range")),
    scale_dtype=st.sampled_from(("float32", "bfloat16", "float16")),
)
GROUPS = FORMATS.map(lambda fmt: Format(fmt.bits, fmt.symmetric, "group", 8, False, fmt.convention, fmt.scale_dtype))


@given(fmt=st.one_of(FORMATS, GROUPS), seed=st.integers(0, 99), dtype=st.sampled_from((torch.float32, torch.bfloat16)))
def test_decoding_gives_what_the_round_trip_gives(fmt: Format, seed: int, dtype: torch.dtype) -> None:
    x = torch.randn(6, 16, generator=torch.Generator().manual_seed(seed)).to(dtype)
    x[0] = 0  # a dead channel
    x[1, 3] = 40  # an outlier
    encoded = encode(x, fmt)
    assert encoded.codes.shape == x.shape
    assert int(encoded.codes.min()) >= fmt.code_min
    assert int(encoded.codes.max()) <= fmt.code_max
    assert torch.equal(decode(encoded).to(dtype), round_trip(x, fmt))


def test_limits_over_blocks_clip() -> None:
    x = torch.tensor([[-4.0, 1.0, 2.0, 3.0]])
    encoded = encode(x, Format(8, granularity="channel"), (torch.full((1, 1), -2.0), torch.full((1, 1), 2.0)))
    assert decode(encoded).tolist() == [[-2.0, pytest.approx(1.0, abs=0.01), 2.0, 2.0]]


@pytest.mark.parametrize(("granularity", "size", "groups"), [("tensor", None, 1), ("channel", None, 1), ("group", 4, 2)])
def test_parameters_by_row(granularity: str, size: int | None, groups: int) -> None:
    encoded = encode(torch.randn(3, 8), Format(4, granularity=granularity, group_size=size))
    found = encoded.by_row(encoded.scale)
    assert found.shape == (3, groups)
    assert torch.equal(found.flatten().unique(), encoded.scale.float().flatten().unique())
