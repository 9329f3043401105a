"""The GPU kernels against the functions that define them; without a GPU, in Triton's interpreter."""

import pytest
import torch

pytest.importorskip("triton")

from sqbench.execution import triton_kernels as kernels
from sqbench.formats.codec import quantize
from sqbench.formats.format import Format
from sqbench.formats.params import block_range, qparams

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def inputs(rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Random rows of which one is 0, one far larger, and one in 256 halves: the edges of rounding."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=generator)
    x[0], x[1] = 0, 1000 * x[1]
    x[2] = torch.linspace(-63.5, 63.5, width)
    return x.to(dtype).to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("convention", ["qmax", "half_range"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [8, 5])
def test_rows_have_the_bits_of_the_definition(bits: int, symmetric: bool, convention: str, dtype: torch.dtype) -> None:
    fmt = Format(bits, symmetric=symmetric, granularity="token", dynamic=True, convention=convention)
    x = inputs(5, 300, dtype)
    params = qparams(*block_range(x, fmt), fmt)
    codes, scale, zero = kernels.quantize_rows(x, fmt)
    assert torch.equal(scale, params.scale.flatten())
    assert torch.equal(zero, params.zero_point.flatten())
    assert torch.equal(codes, quantize(x, params, fmt))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_static_range_has_the_bits_of_the_definition(symmetric: bool, dtype: torch.dtype) -> None:
    fmt = Format(8, symmetric=symmetric)
    params = qparams(torch.tensor(-2.0, device=DEVICE), torch.tensor(3.0, device=DEVICE), fmt)
    x = inputs(7, 301, dtype).view(7, 43, 7)
    codes = kernels.quantize_static(x, float(params.scale), int(params.zero_point), fmt)
    assert torch.equal(codes, quantize(x, params, fmt))


@pytest.mark.parametrize("per_row", [True, False])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 256, 96), (20, 384, 200), (70, 120, 130), (300, 128, 40)])
def test_the_product_is_exact(rows: int, inputs: int, outputs: int, per_row: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randint(-127, 128, (count, inputs), generator=generator) for count in (rows, outputs))
    x_scale = torch.rand(rows if per_row else 1, generator=generator) + 0.1
    x_zero = torch.randint(-20, 20, x_scale.shape, generator=generator).float()
    scale, bias = torch.rand(outputs, generator=generator) + 0.1, torch.randn(outputs, generator=generator)
    wanted = (x - x_zero.double().view(-1, 1)) @ weight.double().t() * x_scale.double().view(-1, 1) * scale.double() + bias.double()
    sums = weight.sum(1, dtype=torch.int32)
    given = (x.to(torch.int8), weight.to(torch.int8), scale, x_scale, x_zero, sums, bias)
    found = kernels.int8_linear(*(part.to(DEVICE) for part in given), torch.float32, symmetric=False)
    assert ((found.cpu() - wanted).abs().max() / wanted.abs().max()) < 1e-6
