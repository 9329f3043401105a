"""Rules of scales that are powers of two, and scales of two levels. Numbers of other tools have their source beside them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sqbench.formats.codec import decode, encode, from_blocks, of_tensor, round_trip, to_blocks
from sqbench.formats.format import Format
from sqbench.formats.scale import ORDERS, POWERS, Scale

RULES = {rule: Scale("e8m0", rule) for rule in POWERS}
FLOATS = ["e4m3", "e5m2", "e3m2", "e2m3", "e2m1"]


def mx(rule: str, element: str = "e2m1", size: int = 8) -> Format:
    return Format.from_dict(
        {"element": element, "granularity": "group", "group_size": size, "scale": {"dtype": "e8m0", "rule": rule}}
    )


def nvfp4(order: str = "modelopt") -> Format:
    scale = {"dtype": "e4m3", "second": "float32", "order": order}
    return Format.from_dict({"element": "e2m1", "granularity": "group", "group_size": 16, "scale": scale})


def exponent(amax: float, rule: str, element: str = "e2m1") -> int:
    x = torch.zeros(1, 8)
    x[0, 3] = amax
    return int(math.log2(encode(x, mx(rule, element)).scale))


def outlying(seed: int, rows: int = 6, columns: int = 64) -> Tensor:
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    x[0], x[1, 5] = 0, 60
    x[2] *= 1e-6
    return x


@pytest.mark.parametrize(
    ("amax", "floor", "ceil", "even", "rceil"),
    [
        (6.0, 0, 1, 0, 0),
        (4.0, 0, 0, 0, 0),
        (6.5, 0, 1, 0, 1),
        (7.0, 0, 1, 1, 1),
        (6.99, 0, 1, 0, 1),
        (8.0, 1, 1, 1, 1),
        (3.1, -1, 0, -1, 0),
    ],
)
def test_the_rules_for_e2m1(amax: float, floor: int, ceil: int, even: int, rceil: int) -> None:
    """Worked by hand: floor(log2 a) - 2, ceil(log2 a) - 2, the first after a is rounded to one bit, and ceil(log2(a / 6))."""
    assert [exponent(amax, rule) for rule in ("floor", "ceil", "even", "rceil")] == [floor, ceil, even, rceil]
    assert exponent(amax, "even_m1") == even


def test_one_mantissa_bit_carries_earlier_than_three() -> None:
    """448 x 0.9 = 1.575 * 2^8, 480 = 1.875 * 2^8: compressed-tensors' rule carries at 1.75, torchao's for e4m3 at 1.9375."""
    assert (exponent(480.0, "even", "e4m3"), exponent(480.0, "even_m1", "e4m3")) == (0, 1)
    assert (exponent(500.0, "even", "e4m3"), exponent(500.0, "even_m1", "e4m3")) == (1, 1)


def test_ceil_is_not_rceil() -> None:
    """448 is the largest e4m3 number."""
    assert (exponent(448.0, "ceil", "e4m3"), exponent(448.0, "rceil", "e4m3")) == (1, 0)


@given(st.sampled_from(POWERS), st.sampled_from(FLOATS), st.integers(0, 99))
def test_powers_of_two_for_any_data(rule: str, element: str, seed: int) -> None:
    fmt, x = mx(rule, element), outlying(seed)
    encoded = encode(x, fmt)
    assert (torch.frexp(encoded.scale)[0] == 0.5).all()
    assert torch.equal(decode(encoded), round_trip(x, fmt))
    assert (decode(encoded)[0] == 0).all()
    blocks, steps = to_blocks(x, fmt), to_blocks(x, fmt).abs() / encoded.scale
    if rule in ("ceil", "rceil"):  # nothing is clipped
        assert (steps <= fmt.largest).all()
    if rule == "rceil":  # and half the scale would clip
        assert (2 * steps.amax(-1)[blocks.abs().amax(-1) > 0] > fmt.largest).all()


@pytest.mark.parametrize("rule", POWERS)
def test_ends_of_the_exponents(rule: str) -> None:
    tiny, huge = torch.full((1, 8), 1e-44), torch.full((1, 8), torch.finfo(torch.float32).max)
    assert encode(tiny, mx(rule)).scale.item() == 2.0**-127
    assert torch.isfinite(decode(encode(huge, mx(rule)))).all() or rule in ("ceil", "rceil", "even", "even_m1")
    wrong = huge.clone()
    wrong[0, 2] = torch.nan
    assert torch.isnan(decode(encode(wrong, mx(rule)))).all()


@given(st.sampled_from(ORDERS), st.integers(0, 99))
def test_two_levels_for_any_data(order: str, seed: int) -> None:
    fmt, x = nvfp4(order), outlying(seed)
    encoded = encode(x, fmt)
    assert encoded.format.amax == 60
    assert torch.equal(decode(encoded), round_trip(x, fmt))
    assert (decode(encoded)[0] == 0).all()
    loud = decode(encoded)[1]
    assert loud[5].item() == pytest.approx(60, rel=1e-6)
    stored = encoded.scale[1:2] * 2688 / 60
    torch.testing.assert_close(stored, stored.to(torch.float8_e4m3fn).float(), rtol=1e-6, atol=0)


def test_the_orders_differ_by_single_codes_as_documented() -> None:
    apart = dict.fromkeys(ORDERS, 0.0)
    generator = torch.Generator().manual_seed(0)
    for grid in (8, 16, 32, 64):  # coarse numbers, so that there are ties
        x = torch.randn(800, 256, generator=generator).mul(grid).round() / grid
        codes = {order: encode(x, nvfp4(order)).codes & 7 for order in ORDERS}  # without signs: only one tool keeps that of -0
        for order in ORDERS[1:]:
            apart[order] += float((codes["modelopt"] != codes[order]).float().mean()) / 4
    assert all(0 < apart[order] < 1e-2 for order in ORDERS[1:]), apart


def test_orders_of_tiny_blocks_differ_by_design() -> None:
    """A block whose scale rounds to 0: modelopt and torchao keep a smallest scale, compressed-tensors takes 0.125."""
    x = torch.zeros(1, 32)
    x[0, 0], x[0, 16] = 2688.0, 1e-3
    scales = {order: encode(x, nvfp4(order)).scale[0, 1].item() for order in ORDERS}
    assert scales["modelopt"] == 2.0**-9
    assert scales["torchao"] == 2.0**-6
    assert scales["compressed-tensors"] == pytest.approx(0.125)
    assert decode(encode(x, nvfp4("auto-round")))[0, 16] == 0


def test_parts_of_a_tensor_are_rounded_by_the_scale_of_the_whole() -> None:
    x = outlying(3)
    whole = of_tensor(nvfp4(), x)
    assert torch.equal(encode(x[2:], whole).codes, encode(x, nvfp4()).codes[2:])
    assert not torch.equal(encode(x[2:], nvfp4()).scale, encode(x, nvfp4()).scale[2:])
    assert of_tensor(mx("floor"), x) == mx("floor")


def test_bytes_as_stored() -> None:
    """NVFP4 has 4.5 bits a weight and one float32 more, MXFP4 4.25."""
    assert nvfp4().stored_bytes(64, 1024) * 8 == 64 * 1024 * 4.5 + 32
    assert mx("floor", size=32).stored_bytes(64, 1024) * 8 == 64 * 1024 * 4.25
    blocks = Format.from_dict({"element": "e4m3", "granularity": "block", "block_rows": 128, "group_size": 128})
    assert blocks.stored_bytes(256, 512) == 256 * 512 + 8 * 4


@pytest.mark.parametrize("element", ["int", "e4m3"])
def test_two_dimensional_blocks_have_a_scale_each(element: str) -> None:
    fmt = Format.from_dict({"element": element, "granularity": "block", "block_rows": 2, "group_size": 16})
    x = outlying(0)
    blocks = to_blocks(x, fmt)
    assert blocks.shape == (3, 4, 32)
    assert torch.equal(blocks[1, 2], x[2:4, 32:48].flatten())
    assert torch.equal(from_blocks(blocks, fmt, x.shape), x)
    encoded = encode(x, fmt)
    assert encoded.scale.shape == (3, 4, 1)
    assert torch.equal(decode(encoded), round_trip(x, fmt))
    tile = Format.from_dict({"element": element})
    assert torch.equal(decode(encoded)[2:4, 32:48], round_trip(x[2:4, 32:48], tile))


def test_no_clipping_reaches_both_ends_exactly() -> None:
    """torchao's SYMMETRIC_NO_CLIPPING_ERR: max(-min / 8, max / 7)."""
    fmt = Format(4, granularity="channel", convention="no_clipping")
    encoded = encode(torch.tensor([[-8.0, 3.5], [-4.0, 7.0], [-1.0, 7.0]]), fmt)
    assert encoded.scale.flatten().tolist() == [1, 1, 1]
    assert encoded.codes.tolist() == [[-8, 4], [-4, 7], [-1, 7]]


def test_a_range_of_one_sign_saturates_if_it_is_not_widened() -> None:
    """AutoAWQ's group of positive weights: scale (max - min) / 15, and the zero-point is clamped to a code."""
    x = torch.tensor([[1.0, 2.0, 4.0]])
    own = encode(x, Format(4, symmetric=False, granularity="channel", range="own"))
    assert own.scale.item() == pytest.approx(0.2)
    assert decode(own).tolist() == [[pytest.approx(1.0), pytest.approx(2.0), pytest.approx(3.0)]]
    assert decode(encode(x, Format(4, symmetric=False, granularity="channel")))[0, 2] == 4


def test_ties_of_a_zero_point_that_is_added_before_rounding() -> None:
    """2.5 + 1 rounds to 4, round(2.5) + 1 is 3: an odd zero-point moves ties."""
    x = torch.tensor([[-9.0, 2.5, 6.0]])
    after, before = (encode(x, Format(4, symmetric=False, granularity="channel", shift=shift)) for shift in ("after", "before"))
    assert (after.scale.item(), after.zero_point.item()) == (1, 1)
    assert (after.codes[0, 1].item(), before.codes[0, 1].item()) == (3, 4)


def test_codes_by_the_scale_before_it_was_rounded() -> None:
    """NNCF finds codes by the float32 scale and stores it in float16."""
    x = torch.tensor([[1.0, 0.49975, -0.3]])
    fmt = Format(8, granularity="channel", scale=Scale("bfloat16", times="unrounded"))
    exact = encode(x, Format(8, granularity="channel"))
    assert torch.equal(encode(x, fmt).codes, exact.codes)
    assert encode(x, fmt).scale.item() == exact.scale.bfloat16().item()
