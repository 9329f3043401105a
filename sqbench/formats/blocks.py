"""Blocks of GGUF that are more than codes with one scale: scales of scales, or rows of a codebook. Data only, no tensors.

Their bytes stay as they are stored, and the package gguf decodes them (`codec.decode`). Weights are never rounded to them here.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    """A type of blocks: how many values one holds, and in how many bytes."""

    values: int
    bytes: int

    @property
    def bits(self) -> int:
        """Whole bits of a value: the number in the type's name, where it has one."""
        return 8 * self.bytes // self.values


# Types of gguf 0.19.0 by their names in small letters.
BLOCKS = {
    "q2_k": Block(256, 84),
    "q3_k": Block(256, 110),
    "q4_k": Block(256, 144),
    "q5_k": Block(256, 176),
    "q6_k": Block(256, 210),
    "iq1_s": Block(256, 50),
    "iq1_m": Block(256, 56),
    "iq2_xxs": Block(256, 66),
    "iq2_xs": Block(256, 74),
    "iq2_s": Block(256, 82),
    "iq3_xxs": Block(256, 98),
    "iq3_s": Block(256, 110),
    "iq4_nl": Block(32, 18),
    "iq4_xs": Block(256, 136),
    "tq1_0": Block(256, 54),
    "tq2_0": Block(256, 66),
    "nvfp4": Block(64, 36),
}
