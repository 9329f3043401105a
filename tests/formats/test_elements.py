"""Elements against torch's own dtypes, and rounding against a search through all numbers of an element."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sqbench.formats.element import ELEMENTS
from sqbench.formats.format import Format
from sqbench.formats.grid import by_code, codes_of, grid, nearest_, values_of

FLOATS = ["e4m3", "e5m2", "e3m2", "e2m3", "e2m1"]
ALL = [*FLOATS, "nf4"]


def of(element: str) -> Format:
    return Format.from_dict({"element": element})


def numbers(fmt: Format, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random numbers of every size that the element has and of smaller ones, and all of its numbers."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4000, generator=generator, dtype=torch.float64) * torch.exp2(
        torch.randint(-30, 17, (4000,), generator=generator)
    )
    return torch.cat([x, grid(fmt)]).to(dtype).clamp_(fmt.smallest, fmt.largest)


@pytest.mark.parametrize("element", ["e4m3", "e5m2"])
@pytest.mark.parametrize("seed", range(3))
def test_eight_bit_floats_are_those_of_torch(element: str, seed: int) -> None:
    fmt, dtype = of(element), getattr(torch, ELEMENTS[element].dtype)  # type: ignore[union-attr]
    x = numbers(fmt, seed)
    ours = nearest_(x.clone(), fmt)
    assert torch.equal(ours, x.to(dtype).float())
    assert torch.equal(codes_of(ours, fmt, x), x.to(dtype).view(torch.uint8))


@pytest.mark.parametrize("element", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_finds_the_nearest_number(element: str, dtype: torch.dtype) -> None:
    fmt = of(element)
    x = numbers(fmt, 0, dtype)
    every = grid(fmt).to(dtype)
    found = nearest_(x.clone(), fmt)
    assert torch.isin(found, every).all()
    assert torch.equal((found - x).abs(), (every - x.unsqueeze(1)).abs().amin(1))


@pytest.mark.parametrize("element", FLOATS)
def test_ties_go_to_the_even_code(element: str) -> None:
    fmt = of(element)
    values = grid(fmt).float()
    positive = values[values >= 0]
    between = (positive[1:] + positive[:-1]) / 2
    codes = torch.arange(len(positive))
    expected = torch.where(codes[:-1] % 2 == 0, positive[:-1], positive[1:])
    assert torch.equal(nearest_(between.clone(), fmt), expected)
    assert torch.equal(nearest_(-between, fmt), -expected)


def test_nf4_gives_a_tie_to_the_lower_entry() -> None:
    fmt = of("nf4")
    values = grid(fmt)
    assert torch.equal(nearest_((values[1:] + values[:-1]) / 2, fmt), values[:-1])


@given(st.sampled_from(ALL), st.integers(0, 99))
def test_codes_and_numbers_are_inverse(element: str, seed: int) -> None:
    fmt = of(element)
    x = numbers(fmt, seed)
    values = nearest_(x.clone(), fmt)
    codes = codes_of(values, fmt, x)
    assert torch.equal(values_of(codes, fmt, torch.float32), values)
    if element != "nf4":
        assert torch.equal(codes >> (fmt.bits - 1), x.signbit().to(torch.uint8))


@pytest.mark.parametrize(
    ("element", "count", "smallest", "largest"),
    [
        ("e4m3", 253, 2.0**-9, 448),
        ("e5m2", 247, 2.0**-16, 57344),
        ("e3m2", 63, 2.0**-4, 28),
        ("e2m3", 63, 0.125, 7.5),
        ("e2m1", 15, 0.5, 6),
    ],
)
def test_grids_are_those_of_the_standards(element: str, count: int, smallest: float, largest: float) -> None:
    """OCP OFP8, table 1, and OCP Microscaling Formats, tables 3 to 5."""
    fmt = of(element)
    values = grid(fmt)
    assert (len(values), float(values[values > 0][0]), float(values[-1])) == (count, smallest, largest)
    assert fmt.largest == largest
    assert torch.equal(values, -values.flip(0))
    assert by_code(element)[-1] != 0
