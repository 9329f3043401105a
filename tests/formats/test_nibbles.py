"""Two codes of 4 bits in a byte."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from sqbench.formats.nibbles import nibbles, of_nibbles


@given(seed=st.integers(0, 99))
def test_two_nibbles_are_a_byte_and_the_first_is_low(seed: int) -> None:
    codes = torch.randint(0, 16, (3, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(of_nibbles(nibbles(codes)), codes)
    assert nibbles(torch.tensor([[1, 2]], dtype=torch.uint8)).tolist() == [[0x21]]
