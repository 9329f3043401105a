"""Codes in words: against streams of bits that are written out."""

import compressed_tensors  # noqa: F401  # loads for seconds, which no test is to be timed by
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sqbench.checkpoints.integers import AWQ_ORDER, awq_matrix, gptq_codes, gptq_zero_points
from sqbench.checkpoints.words import packed, unpacked


def drawn(bits: int, rows: int, columns: int, seed: int = 0) -> Tensor:
    half = 2 ** (bits - 1)
    return torch.randint(-half, half, (rows, columns), generator=torch.Generator().manual_seed(seed)).to(torch.int8)


def stream(unsigned: list[int], bits: int) -> list[int]:
    """Words of a stream, bit by bit, as signed integers."""
    every = [number >> place & 1 for number in unsigned for place in range(bits)]
    every += [0] * (-len(every) % 32)
    words = [sum(bit << place for place, bit in enumerate(every[at : at + 32])) for at in range(0, len(every), 32)]
    return [word - 2**32 if word >= 2**31 else word for word in words]


@given(bits=st.integers(2, 8), columns=st.integers(1, 70), seed=st.integers(0, 99))
def test_a_row_is_one_stream_of_bits(bits: int, columns: int, seed: int) -> None:
    codes = drawn(bits, 3, columns, seed)
    words = packed(codes, bits, 1)
    assert words.tolist() == [stream([code + 2 ** (bits - 1) for code in row], bits) for row in codes.tolist()]
    assert torch.equal(unpacked(words, bits, (3, columns), 1), codes)
    assert torch.equal(unpacked(packed(codes, bits, 0), bits, (3, columns), 0), codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_packs_along_the_input_and_stores_zero_points_less_one(bits: int) -> None:
    codes, zeros, half = drawn(bits, 32, 64), drawn(bits, 32, 2, 1), 2 ** (bits - 1)
    columns = [stream([code + half for code in row], bits) for row in codes.tolist()]
    assert torch.equal(gptq_codes(torch.tensor(columns, dtype=torch.int32).t().contiguous(), bits), codes)
    for less_one in (False, True):
        stored = [[(zero + half - less_one) % 2**bits for zero in group] for group in zeros.t().tolist()]
        words = torch.tensor([stream(group, bits) for group in stored], dtype=torch.int32)
        assert gptq_zero_points(words, bits, 32, less_one=less_one).tolist() == zeros.tolist()


def test_awq_packs_eight_outputs_in_an_order_of_its_own() -> None:
    codes = drawn(4, 16, 5)
    words = [
        [stream([int(codes[8 * word + place, column]) + 8 for place in AWQ_ORDER], 4)[0] for word in range(2)]
        for column in range(5)
    ]
    assert torch.equal(awq_matrix(torch.tensor(words, dtype=torch.int32), 4), codes)
