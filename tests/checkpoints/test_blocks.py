"""Blocks of GGUF: what is read decodes to what the package gguf decodes, and what is written is what was read."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkpoints.gguf_files import FLOATS, drawn
from gguf import GGMLQuantizationType
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import _type_traits, dequantize, quantize

from sqbench.checkpoints.blocks import TYPES, encoded, format_of, stored
from sqbench.formats.blocks import BLOCKS
from sqbench.formats.codec import decode
from sqbench.formats.format import Format
from sqbench.formats.scheme import Scheme
from sqbench.pipeline.finite import check_scales
from sqbench.reporting.html.formats import formats

DECODED = sorted(kind.name for kind in _type_traits if kind not in FLOATS)


def test_every_type_that_the_package_decodes_has_a_format() -> None:
    assert sorted([*TYPES, *(name.upper() for name in BLOCKS)]) == DECODED
    assert {name: (block.values, block.bytes) for name, block in BLOCKS.items()} == {
        name: GGML_QUANT_SIZES[GGMLQuantizationType[name.upper()]] for name in BLOCKS
    }
    assert format_of("Q8_1") is None
    assert [str(format_of(kind)) for kind in ("Q6_K", "Q5_1", "Q4_0")] == ["q6_k", "int5 min group 32", "int4 sym group 32"]


@pytest.mark.parametrize("kind", DECODED)
@pytest.mark.parametrize("seed", [0, 1])
def test_bytes_decode_as_in_the_package_and_come_back(kind: str, seed: int) -> None:
    ggml = GGMLQuantizationType[kind]
    rows = drawn(ggml, 3, 512, seed)
    weight = encoded(torch.from_numpy(rows), kind)
    check_scales(kind, weight)
    assert torch.equal(decode(weight), torch.from_numpy(dequantize(rows, ggml)))
    assert weight.shape == (3, 512)
    assert weight.format.stored_bytes(3, 512) == rows.nbytes
    assert torch.equal(stored(weight), torch.from_numpy(rows))
    assert Format.from_dict(weight.format.as_dict()) == weight.format


@pytest.mark.parametrize("kind", [kind for kind in DECODED if kind in TYPES or kind.startswith("TQ")])
def test_what_the_package_quantizes_decodes_to_the_last_bit(kind: str) -> None:
    ggml = GGMLQuantizationType[kind]
    values = np.random.default_rng(0).standard_normal((8, 512), np.float32)
    values[0, :32] = 0
    rows = quantize(values, ggml)
    assert torch.equal(decode(encoded(torch.from_numpy(rows), kind)), torch.from_numpy(dequantize(rows, ggml)))


def test_every_power_of_two_is_read_and_written() -> None:
    rows = torch.zeros(1, 255 * 17, dtype=torch.uint8)
    rows.view(255, 17)[:, 0] = torch.arange(255, dtype=torch.uint8)
    weight = encoded(rows, "MXFP4")
    assert weight.scale.flatten().tolist() == [2.0**power for power in range(-127, 128)]
    assert torch.equal(stored(weight), rows)


def test_a_report_draws_the_formats_that_have_one_grid() -> None:
    schemes = [Scheme(kind.lower(), format_of(kind)) for kind in ("Q6_K", "Q4_1")]
    records = {scheme.name: SimpleNamespace(identity={"scheme": scheme.as_dict()}) for scheme in schemes}
    (drawn_,) = formats(SimpleNamespace(records=records))  # type: ignore[arg-type]
    assert (drawn_.names, drawn_.element, drawn_.bits, drawn_.values) == ("q4_1", "int4 with minimum", "5", 16)
