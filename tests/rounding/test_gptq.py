"""GPTQ against an independent program in float64, exhaustive search, and the laws that it must keep."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sqbench.errors import UserError
from sqbench.formats.codec import EncodedTensor, decode, encode, to_blocks
from sqbench.formats.format import Format
from sqbench.formats.params import block_range, qparams
from sqbench.rounding.gptq import Gptq, cholesky_of_inverse, solve

W4 = Format(4, symmetric=False, granularity="channel")
G8 = Format(4, symmetric=False, granularity="group", group_size=8)
REFERENCE = Gptq(act_order=False, static_groups=False)  # columns from left to right, as in the paper's equations


def problem(rows: int, columns: int, tokens: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight, and second moments of correlated inputs with one loud channel."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, columns, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(columns, columns, generator=generator, dtype=torch.float64) / columns**0.5 + x
    x[:, columns // 2] *= 8
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64), x.t() @ x


def rounded(weight: Tensor, gram: Tensor, fmt: Format, **fields: object) -> Tensor:
    found = solve(weight, gram, fmt, None, Gptq(**fields))  # type: ignore[arg-type]
    return decode(EncodedTensor(found.codes, found.params.scale, found.params.zero_point, fmt))


def cost(weight: Tensor, approximation: Tensor, gram: Tensor) -> float:
    error = weight - approximation
    return float((error @ gram * error).sum())


def by_elimination(weight: Tensor, gram: Tensor, fmt: Format, damping: float) -> Tensor:
    """The paper's equations without a Cholesky factor: after each column, its row and column leave the inverse (eq. 3)."""
    params = qparams(*block_range(to_blocks(weight, fmt), fmt), fmt)
    inverse = torch.linalg.inv(gram + damping * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype))
    left, codes = weight.clone(), []
    for index in range(len(gram)):
        column = left[:, index : index + 1]
        code = (torch.round(column / params.scale) + params.zero_point).clamp(fmt.code_min, fmt.code_max)
        error = (column - (code - params.zero_point) * params.scale) / inverse[index, index]
        left[:, index:] -= error * inverse[index, index:]
        inverse = inverse - inverse[:, index : index + 1] * inverse[index : index + 1] / inverse[index, index]
        codes.append(code)
    return torch.cat(codes, 1).to(torch.int8)


@pytest.mark.parametrize("block", [1, 5, 128])
def test_the_codes_are_those_of_the_papers_equations(block: int) -> None:
    weight, gram = problem(7, 24, 60)
    found = solve(weight, gram, W4, None, replace(REFERENCE, block=block))
    assert torch.equal(found.codes, by_elimination(weight, gram, W4, 0.01))
    assert found.damping == 0.01


def test_float32_gives_the_same_codes() -> None:
    weight, gram = problem(7, 24, 60)
    assert torch.equal(solve(weight.float(), gram.float(), W4, None, REFERENCE).codes, by_elimination(weight, gram, W4, 0.01))


def test_a_published_number() -> None:
    """IST-DASLab/gptq (commit 2d65066) in float64: 2-bit codes of a row, scale 0.3095703125, zero 0, damping 0.01."""
    weight = torch.tensor([[-0.05078125, 0.8779296875, 0.525390625]], dtype=torch.float64)
    gram = torch.tensor([[253.0, -232, -161], [-232, 1027, 93], [-161, 93, 193]], dtype=torch.float64)
    fmt = Format(2, symmetric=False, granularity="channel")
    found = solve(
        weight, gram, fmt, (torch.zeros(1, 1, dtype=torch.float64), torch.full((1, 1), 3 * 0.3095703125).double()), REFERENCE
    )
    assert (found.codes + 2).tolist() == [[0, 3, 2]]


@given(seed=st.integers(0, 50), fmt=st.sampled_from([W4, G8, Format(3, granularity="channel", convention="half_range")]))
@settings(deadline=None, max_examples=20)
def test_uncorrelated_inputs_give_the_nearest_codes(seed: int, fmt: Format) -> None:
    weight = torch.randn(5, 16, generator=torch.Generator().manual_seed(seed))
    found = solve(weight, torch.eye(16), fmt, None, Gptq())
    assert torch.equal(found.codes, encode(weight, fmt).codes)


@given(seed=st.integers(0, 200), fmt=st.sampled_from([W4, G8]), order=st.booleans(), factor=st.sampled_from([1e-6, 1e6]))
@settings(deadline=None, max_examples=20)
def test_the_error_of_outputs_is_below_that_of_the_nearest_codes(seed: int, fmt: Format, order: bool, factor: float) -> None:
    weight, gram = problem(6, 32, 100, seed)
    found = rounded(weight, gram, fmt, act_order=order, static_groups=True)
    assert cost(weight, found, gram) < cost(weight, decode(encode(weight, fmt)), gram)
    assert torch.equal(found, rounded(weight, gram * factor, fmt, act_order=order, static_groups=True))


def test_six_columns_of_two_bits_against_exhaustive_search() -> None:
    fmt = Format(2, symmetric=False, granularity="channel")
    totals = torch.zeros(3, dtype=torch.float64)  # of the optimum, GPTQ and the nearest codes
    for seed in range(16):
        weight, gram = problem(1, 6, 40, seed)
        params = qparams(*block_range(to_blocks(weight, fmt), fmt), fmt)
        codes = torch.tensor(list(itertools.product(range(-2, 2), repeat=6)), dtype=torch.float64)
        errors = weight - (codes - params.zero_point) * params.scale
        best = float(((errors @ gram) * errors).sum(1).min())
        found = [cost(weight, one, gram) for one in (rounded(weight, gram, fmt), decode(encode(weight, fmt)))]
        assert min(found) >= best - 1e-9
        totals += torch.tensor([best, *found])
    optimum, gptq, nearest = totals.tolist()
    assert gptq < 2 * optimum < nearest


def test_a_dead_input_gets_weight_zero_and_moves_nothing() -> None:
    weight, gram = problem(4, 16, 50)
    gram[3], gram[:, 3] = 0, 0
    symmetric = Format(4, granularity="channel")
    found = solve(weight, gram, symmetric, None, Gptq())
    assert (found.codes[:, 3] == 0).all()
    assert torch.isfinite(decode(EncodedTensor(found.codes, found.params.scale, found.params.zero_point, symmetric))).all()


def test_groups_take_their_range_from_the_weights_that_are_left() -> None:
    weight, gram = problem(4, 16, 50)
    updated, static = (solve(weight, gram, G8, None, replace(REFERENCE, block=8, static_groups=static)) for static in (False, True))
    own = qparams(*block_range(to_blocks(weight, G8), G8), G8)
    assert torch.equal(static.params.scale, own.scale)
    assert torch.equal(updated.params.scale[:, 0], own.scale[:, 0])
    assert not torch.equal(updated.params.scale[:, 1], own.scale[:, 1])


def test_the_default_order_withstands_a_loud_token() -> None:
    """The first token of a window is far louder than the rest in many language models. What counts is the error on the others."""
    fmt = Format(4, symmetric=False, granularity="group", group_size=16)
    totals = torch.zeros(2, dtype=torch.float64)
    for seed in range(4):
        weight, quiet = problem(16, 64, 400, seed)
        token = torch.randn(1, 64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 10
        token[0, [40, 55]] = 600
        both = quiet + 8 * token.t() @ token
        orders = (rounded(weight, both, fmt), rounded(weight, both, fmt, act_order=False, static_groups=False))
        totals += torch.tensor([cost(weight, found, quiet) for found in orders])
    loud_first, left_to_right = totals.tolist()
    assert loud_first < left_to_right / 2


@pytest.mark.parametrize("block", [3, 8, 20, 128])
def test_a_group_may_lie_across_blocks(block: int) -> None:
    weight, gram = problem(4, 32, 80)
    found = rounded(weight, gram, G8, block=block, act_order=False, static_groups=False)
    assert cost(weight, found, gram) < cost(weight, decode(encode(weight, G8)), gram)


def test_given_ranges_are_kept() -> None:
    weight, gram = problem(4, 16, 50)
    low, high = block_range(to_blocks(weight, G8), G8)
    found = solve(weight, gram, G8, (low / 2, high / 2), Gptq())
    assert torch.equal(found.params.scale, qparams(low / 2, high / 2, G8).scale)


def test_a_factor_that_fails_raises_the_damping() -> None:
    singular = torch.ones(4, 4, dtype=torch.float64)
    singular[0, 0] = 0.5  # an eigenvalue below 0
    upper, damping = cholesky_of_inverse(singular, 0.01)
    assert damping > 0.01
    again = torch.linalg.inv(upper.t() @ upper)
    torch.testing.assert_close(again, singular + damping * singular.diagonal().mean() * torch.eye(4, dtype=torch.float64))
    with pytest.raises(UserError, match="no Cholesky factor with a damping of 100000; use rounding=nearest"):
        cholesky_of_inverse(torch.full((4, 4), float("nan"), dtype=torch.float64), 0.01)
