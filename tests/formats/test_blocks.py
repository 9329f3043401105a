"""Blocks, their parameters and codes: laws that hold for every format, and the lecture-note form of the same map, code for code."""

import itertools

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from sqbench.formats.codec import dequantize, fake_quantize, from_blocks, quantize, round_trip, to_blocks
from sqbench.formats.format import Format
from sqbench.formats.params import block_range, qparams
from sqbench.formats.scale import Scale

FORMATS = [
    Format(
        bits=bits,
        symmetric=symmetric,
        granularity=granularity,
        group_size=8 if granularity == "group" else None,
        convention=convention,
    )
    for bits, symmetric, granularity, convention in itertools.product(
        (2, 3, 4, 6, 8), (True, False), ("tensor", "channel", "group"), ("qmax", "half_range", "signed")
    )
    if symmetric or convention != "signed"
]


def sample(seed: int, rows: int = 6, columns: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64) * torch.logspace(
        -3, 2, rows, dtype=torch.float64
    ).unsqueeze(1)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: f"{fmt} {fmt.convention}")
class TestEveryFormat:
    def test_codes_stay_in_range_and_zero_stays_zero(self, fmt: Format) -> None:
        blocks = to_blocks(sample(0), fmt)
        params = qparams(*block_range(blocks, fmt), fmt)
        codes = quantize(blocks, params, fmt)
        assert codes.dtype == torch.int8
        assert fmt.code_min <= codes.min()
        assert codes.max() <= fmt.code_max
        assert torch.equal(dequantize(quantize(torch.zeros_like(blocks), params, fmt), params, fmt), torch.zeros_like(blocks))

    def test_fake_quantization_is_the_round_trip_through_codes(self, fmt: Format) -> None:
        blocks = to_blocks(sample(1), fmt)
        params = qparams(*block_range(blocks, fmt), fmt)
        torch.testing.assert_close(
            fake_quantize(blocks, params, fmt), dequantize(quantize(blocks, params, fmt), params, fmt), rtol=0, atol=1e-12
        )

    def test_error_is_at_most_half_a_step_inside_the_range(self, fmt: Format) -> None:
        blocks = to_blocks(sample(2), fmt)
        params = qparams(*block_range(blocks, fmt), fmt)
        error = (fake_quantize(blocks, params, fmt) - blocks).abs()
        # The rounded zero-point shifts an asymmetric range by up to half a step, and half_range clips half a step at its top.
        slack = 0.5 if fmt.symmetric and fmt.convention == "qmax" else 1.0
        assert (error <= slack * params.scale.abs() * (1 + 1e-9)).all()

    def test_quantizing_twice_changes_nothing(self, fmt: Format) -> None:
        blocks = to_blocks(sample(3).float(), fmt)
        params = qparams(*block_range(blocks, fmt), fmt)
        once = fake_quantize(blocks, params, fmt)
        assert torch.equal(fake_quantize(once, params, fmt), once)


@given(seed=st.integers(0, 2**16), low=st.floats(-100, -0.01), high=st.floats(0.01, 100))
def test_lecture_notes_form_gives_the_same_codes(seed: int, low: float, high: float) -> None:
    """S = 255 / (max - min), Z = -round(S min) - 128, q = round(S x + Z), x^ = (q - Z) / S."""
    fmt = Format(bits=8, symmetric=False)
    x = low + (high - low) * torch.rand(500, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x[:2] = torch.tensor([low, high])
    inverse = 255 / (high - low)
    assume(abs(inverse * low % 1 - 0.5) > 1e-9)  # at a tie, S * min and min / scale may differ in the last bit
    zero = -round(inverse * low) - 128
    notes = (inverse * x + zero).round().clamp(-128, 127)
    params = qparams(torch.tensor([low], dtype=torch.float64), torch.tensor([high], dtype=torch.float64), fmt)
    codes = quantize(x.unsqueeze(0), params, fmt)
    assert params.zero_point.item() == zero
    assert torch.equal(codes.double(), notes.unsqueeze(0))
    torch.testing.assert_close(dequantize(codes, params, fmt), ((notes - zero) / inverse).unsqueeze(0))


@given(seed=st.integers(0, 2**16), bits=st.integers(2, 7))
def test_one_more_bit_is_never_worse_on_uniform_data(seed: int, bits: int) -> None:
    x = torch.rand(64, 64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    coarse, fine = (round_trip(x, Format(bits=b, symmetric=False)) for b in (bits, bits + 1))
    assert (fine - x).square().mean() <= (coarse - x).square().mean()


def test_conventions_differ_as_documented() -> None:
    x = torch.tensor([[-1.0, 1.0]], dtype=torch.float64)
    for bits, percent in ((8, 0.4), (4, 7.1)):
        full, half = (
            qparams(*block_range(x, Format()), Format(bits=bits, convention=c)).scale.item() for c in ("qmax", "half_range")
        )
        assert full == 1 / (2 ** (bits - 1) - 1)
        assert half == 2 / (2**bits - 1)
        assert 100 * (full / half - 1) == pytest.approx(percent, rel=0.05)


def test_dead_blocks_and_subnormal_ranges_stay_finite() -> None:
    x = torch.zeros(3, 8)
    x[1] = 1e-42
    x[2, 0] = 5.0
    for fmt in FORMATS:
        result = round_trip(x, fmt)
        assert torch.isfinite(result).all()
        assert result[0].abs().max() == 0


def test_dynamic_per_token_sees_each_row_alone() -> None:
    fmt = Format(bits=8, granularity="token", dynamic=True)
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    louder = x.clone()
    louder[1, 4] *= 1000
    same = torch.ones(2, 5, dtype=torch.bool)
    same[1, 4] = False
    assert torch.equal(round_trip(x, fmt)[same], round_trip(louder, fmt)[same])


def test_half_precision_tensors_keep_their_dtype_but_not_their_scales() -> None:
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    fmt = Format(bits=8, granularity="channel")
    assert qparams(*block_range(to_blocks(x, fmt), fmt), fmt).scale.dtype == torch.float32
    assert round_trip(x, fmt).dtype == torch.bfloat16


def test_scales_are_stored_in_their_dtype() -> None:
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float16, torch.bfloat16):
        fmt = Format(bits=4, granularity="channel", scale=Scale(str(dtype).removeprefix("torch.")))
        scale = qparams(*block_range(to_blocks(x, fmt), fmt), fmt).scale
        assert torch.equal(scale, scale.to(dtype).float())


@given(rows=st.integers(1, 9), size=st.integers(1, 5))
def test_blocks_of_rows_that_do_not_divide_come_back(rows: int, size: int) -> None:
    x = torch.arange(rows * 4.0).reshape(rows, 4) + 1
    fmt = Format(8, granularity="block", group_size=2, block_rows=size)
    blocks = to_blocks(x, fmt)
    assert blocks.shape == (-(-rows // size), 2, size * 2)
    assert torch.equal(from_blocks(blocks, fmt, x.shape), x)
    assert blocks.count_nonzero() == x.numel()
    assert fmt.stored_bytes(rows, 4) == x.numel() + 4 * blocks.shape[0] * 2
