"""The rules of llama.cpp: codes and scales are those of the package gguf, whose functions are llama.cpp's own in numpy."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from hypothesis import given
from hypothesis import strategies as st

from sqbench.checkpoints.blocks import encoded
from sqbench.formats.codec import decode, encode, round_trip
from sqbench.formats.format import Format
from sqbench.formats.named import schemes
from sqbench.formats.params import bounds
from sqbench.formats.scale import Scale

FORMATS = {name: scheme.weights for name, scheme in schemes().items()}  # reading the files takes longer than a test may


def of(name: str) -> Format:
    fmt = FORMATS[name]
    assert fmt is not None
    return fmt


def drawn(seed: int, dtype: torch.dtype) -> torch.Tensor:
    """Weights of a dtype. Those of bfloat16 are often half way between two codes."""
    return torch.randn(16, 256, generator=torch.Generator().manual_seed(seed)).to(dtype).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["q4_0", "q5_0", "q8_0"])
@given(seed=st.integers(0, 20))
def test_codes_and_scales_are_those_of_the_package(name: str, dtype: torch.dtype, seed: int) -> None:
    values = drawn(seed, dtype)
    kind = name.upper()
    ours = encode(values, of(name))
    theirs = encoded(torch.from_numpy(quantize(values.numpy(), GGMLQuantizationType[kind])), kind)
    ends = values.view(16, 8, 32).abs()
    alone = (ends == ends.amax(-1, keepdim=True)).sum(-1) == 1  # of two ends, the package takes the first, and we the lower one
    assert alone.float().mean() > 0.8
    if name == "q8_0":
        alone[:] = True
    assert torch.equal(ours.scale[alone], theirs.scale[alone])
    assert torch.equal(ours.codes.view(16, 8, 32)[alone], theirs.codes.view(16, 8, 32)[alone])


def test_ties_are_in_these_numbers() -> None:
    """Else the test above would not see the rule of ties."""
    values, fmt = drawn(0, torch.bfloat16), of("q4_0")
    even = Format(**{**vars(fmt), "ties": "even"})
    assert not torch.equal(encode(values, fmt).codes, encode(values, even).codes)


@pytest.mark.parametrize(
    ("ties", "expected"), [("even", [-2, -2, 0, 0, 2, 2]), ("up", [-2, -1, 0, 1, 2, 3]), ("away", [-3, -2, -1, 1, 2, 3])]
)
def test_half_an_integer(ties: str, expected: list[int]) -> None:
    fmt = Format(4, granularity="channel", ties=ties)
    values = torch.tensor([[-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 7.0]])
    assert encode(values, fmt).codes[0, :-1].tolist() == expected
    assert round_trip(values, fmt)[0, :-1].tolist() == expected
    below = torch.tensor([[np.nextafter(np.float32(0.5), np.float32(0)), 7.0]])
    assert encode(below, Format(4, granularity="channel", ties="away")).codes[0, 0] == 0


@pytest.mark.parametrize("name", ["q4_1", "q5_1"])
@given(seed=st.integers(0, 20), shift=st.sampled_from([0.0, 5.0, -3.0]))
def test_a_minimum_is_stored_and_codes_are_the_nearest_above_it(name: str, seed: int, shift: float) -> None:
    values, fmt = drawn(seed, torch.float32) + shift, of(name)
    ours = encode(values, fmt)
    blocks = values.view(16, 8, 32)
    assert torch.equal(ours.zero_point, blocks.amin(-1, keepdim=True).half().float())
    span = (blocks.amax(-1, keepdim=True) - blocks.amin(-1, keepdim=True)) / (2**fmt.bits - 1)
    assert torch.equal(ours.scale, span.half().float())
    numbers = torch.arange(2**fmt.bits, dtype=torch.float64) * span.double().unsqueeze(-1) + ours.zero_point.double().unsqueeze(-1)
    nearest = (blocks.double().unsqueeze(-1) - numbers).abs().amin(-1)
    chosen = numbers.expand(16, 8, 32, -1).gather(-1, (ours.codes.view(16, 8, 32, 1).long() - int(fmt.smallest))).squeeze(-1)
    assert torch.allclose((blocks.double() - chosen).abs(), nearest, rtol=0, atol=1e-6)
    assert torch.equal(round_trip(values, fmt), decode(ours))
    low, high = bounds(ours.params, fmt)
    decoded = decode(ours).view(16, 8, 32)
    assert bool(((decoded >= low) & (decoded <= high)).all())
    assert torch.equal(low, ours.zero_point)


def test_a_block_of_one_value_is_its_minimum() -> None:
    ours = encode(torch.full((1, 32), 0.75), of("q4_1"))
    assert decode(ours).unique().tolist() == [0.75]


@given(seed=st.integers(0, 20))
def test_a_minimum_costs_no_more_than_in_the_package(seed: int) -> None:
    values = drawn(seed, torch.float32)
    theirs = decode(encoded(torch.from_numpy(quantize(values.numpy(), GGMLQuantizationType.Q4_1)), "Q4_1"))
    assert (round_trip(values, of("q4_1")) - values).square().sum() <= 1.0001 * (theirs - values).square().sum()


def test_a_product_with_the_reciprocal_of_the_unrounded_scale() -> None:
    fmt = Format(8, granularity="channel", scale=Scale("float16", times="unrounded_reciprocal"))
    values = drawn(3, torch.float32)
    exact = values.abs().amax(1, keepdim=True) / 127
    ours = encode(values, fmt)
    assert torch.equal(ours.scale, exact.half().float())
    assert torch.equal(ours.codes, (values * (1 / exact)).round().to(torch.int8))
