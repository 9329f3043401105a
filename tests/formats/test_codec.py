"""Codes and their meaning: encode, decode, and the one step that equals both."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sqbench.formats import codec
from sqbench.formats.codec import decode, encode, fake_quantize, round_trip, to_blocks
from sqbench.formats.element import ELEMENTS
from sqbench.formats.format import CONVENTIONS, Format
from sqbench.formats.named import schemes
from sqbench.formats.params import QParams, block_range, bounds
from sqbench.formats.scale import FLOAT32, Scale

SHARING = [("tensor", None), ("channel", None), ("group", 8), ("group", 16)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@st.composite
def formats(draw: st.DrawFn) -> Format:
    """Any format of a weight."""
    symmetric, (granularity, size) = draw(st.booleans()), draw(st.sampled_from(SHARING))
    convention = draw(st.sampled_from(CONVENTIONS if symmetric else CONVENTIONS[:2]))
    scale = Scale(draw(st.sampled_from(["float32", "float16", "bfloat16"])))
    return Format(draw(st.integers(2, 8)), symmetric, granularity, size, False, convention, scale)


def sample(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows of zeros, with an outlier, of subnormal numbers, of one sign, and constant. Every group of a row is like its row."""
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(seed))
    x[0] = 0
    x[1, 3] = 40
    x[2] *= 1e-40
    x[3], x[4] = x[3].abs(), -x[4].abs()
    x[5], x[6] = 0.3, -0.3
    return x.to(dtype)


@settings(max_examples=300)
@given(fmt=formats(), seed=st.integers(0, 99), dtype=st.sampled_from(DTYPES))
def test_decoding_gives_what_fake_quantization_gives(fmt: Format, seed: int, dtype: torch.dtype) -> None:
    fmt.check("fmt", activations=False)
    x = sample(seed, dtype)
    encoded = encode(x, fmt)
    assert encoded.codes.shape == x.shape
    assert encoded.codes.dtype == torch.int8
    assert int(encoded.codes.min()) >= fmt.code_min
    assert int(encoded.codes.max()) <= fmt.code_max
    stored = encoded.scale.to(getattr(torch, fmt.scale.dtype)).to(encoded.scale.dtype)
    assert torch.equal(encoded.scale, stored) or (dtype == torch.float64 and fmt.scale == FLOAT32)
    assert torch.isfinite(decode(encoded)).all()
    blocks = to_blocks(x, fmt)
    assert torch.equal(decode(encoded), fake_quantize(blocks, encoded.params, fmt).view(x.shape))
    assert torch.equal(decode(encoded).to(dtype), round_trip(x, fmt))
    assert decode(encoded)[0].abs().max() == 0 or fmt.granularity == "tensor"


@given(fmt=formats(), seed=st.integers(0, 99), shrink=st.floats(0.1, 1.5))
def test_chosen_limits_make_no_difference_to_that(fmt: Format, seed: int, shrink: float) -> None:
    x = sample(seed)
    lo, hi = block_range(to_blocks(x, fmt), fmt)
    limits = lo * shrink, hi * shrink**2
    encoded = encode(x, fmt, limits)
    assert torch.equal(decode(encoded), round_trip(x, fmt, limits))
    low, high = bounds(encoded.params, fmt)
    values = to_blocks(decode(encoded), fmt)
    assert (low <= values).all()
    assert (values <= high).all()


@given(bits=st.integers(2, 8), seed=st.integers(0, 99), sharing=st.sampled_from(SHARING))
def test_signed_gives_the_larger_end_the_smallest_code(bits: int, seed: int, sharing: tuple[str, int | None]) -> None:
    fmt = Format(bits, granularity=sharing[0], group_size=sharing[1], convention="signed")
    x = sample(seed)[[1, 3, 4, 5, 6, 7]]
    encoded = encode(x, fmt)
    blocks, codes, values = (to_blocks(part, fmt) for part in (x, encoded.codes, decode(encoded)))
    at = blocks.abs().argmax(-1, keepdim=True)
    extreme = blocks.gather(-1, at)
    assert (codes.gather(-1, at) == -(2 ** (bits - 1))).all()
    assert torch.equal(values.gather(-1, at), extreme)
    assert torch.equal(encoded.scale.sign(), -extreme.sign())


def test_of_two_equal_ends_the_lower_one_gets_the_smallest_code() -> None:
    encoded = encode(torch.tensor([[-2.0, 2.0]]), Format(4, granularity="channel", convention="signed"))
    assert (encoded.scale.item(), encoded.codes.tolist()) == (0.25, [[-8, 7]])


@pytest.mark.parametrize(
    ("x", "scale", "codes"),
    [
        ([-0.600969135761261, 0.8842262029647827, -0.26977965237140656], -0.11053466796875, [5, -8, 2]),
        ([-0.32776588201522827, -0.6994410753250122, -0.09932126849889755], 0.08740234375, [-4, -8, -1]),
    ],
)
def test_signed_is_what_nncf_computes(x: list[float], scale: float, codes: list[int]) -> None:
    """Two groups of NNCF's own test data (tests/openvino/native/data/2024.1, IntegerModel int4_sym; scales in float16)."""
    encoded = encode(torch.tensor([x]), Format(4, granularity="group", group_size=3, convention="signed", scale=Scale("float16")))
    assert encoded.scale.item() == scale
    assert encoded.codes.tolist() == [codes]


def test_half_range_is_what_compressed_tensors_computes() -> None:
    """The first row of compressed-tensors 0.20.1, tests/test_quantization/lifecycle/test_static_lifecycle.py, in float32."""
    encoded = encode(torch.arange(6.0).view(1, 6), Format(4, granularity="channel", convention="half_range"))
    assert encoded.scale.item() == 0.6666666865348816
    assert encoded.codes.tolist() == [[0, 2, 3, 4, 6, 7]]


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


@pytest.mark.parametrize("name", sorted(schemes()))
def test_a_large_tensor_in_pieces_is_what_it_is_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = sample(0).repeat(32, 16) + torch.randn(256, 256, generator=torch.Generator().manual_seed(1))
    for fmt in {one for one in (schemes()[name].weights, schemes()[name].activations) if one is not None}:
        whole = round_trip(x, fmt)
        monkeypatch.setattr(codec, "IN_CACHE", 1000)  # no number of rows has so many values
        assert torch.equal(round_trip(x, fmt), whole)
        monkeypatch.undo()


@pytest.mark.parametrize("element", ELEMENTS)
def test_nan_stays_nan(element: str) -> None:
    fmt = Format(ELEMENTS[element].widths[0], element=element)
    params = QParams(torch.ones(1, 1), torch.zeros(1, 1))
    values = fake_quantize(torch.tensor([[torch.nan, 0.0]]), params, fmt)
    assert values.isnan().tolist() == [[True, False]]
