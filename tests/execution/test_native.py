"""The native kernels against the formulas, in float64 where sums round."""

from collections.abc import Iterator

import pytest
import torch
from kernels import needs_kernels
from torch import Tensor
from torch.nn.functional import gelu, relu, silu

from sqbench.execution import native
from sqbench.formats.codec import dequantize, fake_quantize, quantize
from sqbench.formats.format import Format
from sqbench.formats.params import QParams, block_range, qparams

SYMMETRIC, HALF, ASYMMETRIC = Format(), Format(convention="half_range"), Format(symmetric=False)
FORMATS = [SYMMETRIC, HALF, ASYMMETRIC, Format(bits=4), Format(bits=6, symmetric=False)]
FUNCTIONS = {
    "none": lambda y: y,
    "relu": relu,
    "gelu": gelu,
    "gelu_tanh": lambda y: gelu(y, approximate="tanh"),
    "silu": silu,
}


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Torch's number of threads, which the kernels follow."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def quantize_unsigned(x: Tensor, params: QParams, fmt: Format) -> Tensor:
    """Codes as the kernels store them."""
    return (quantize(x, params, fmt).to(torch.int16) + native.OFFSET).to(torch.uint8)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Product:
    """Random operands of an integer product, and what comes out in float64."""

    def __init__(self, rows: int, depth: int, columns: int, *, per_row: bool = True) -> None:
        g = seeded(rows * depth + columns)
        self.x = torch.randint(0, 256, (rows, depth), dtype=torch.uint8, generator=g)
        self.codes = torch.randint(-128, 128, (columns, depth), dtype=torch.int8, generator=g)
        self.scale = torch.rand(columns, generator=g) * 0.01 + 0.001
        self.x_scale = torch.rand(rows if per_row else 1, generator=g) * 0.01 + 0.001
        self.x_zero = torch.randint(0, 256, (len(self.x_scale),), generator=g).float()
        self.bias = torch.randn(columns, generator=g)
        self.sums = self.codes.sum(1, dtype=torch.int32)

    def expected(self) -> Tensor:
        centred = self.x.double() - self.x_zero.double().unsqueeze(1)
        return centred @ self.codes.double().t() * self.x_scale.double().unsqueeze(1) * self.scale + self.bias

    def run(self, post: str = "none", out: native.Requantization | None = None) -> Tensor:
        return native.int8_linear(
            self.x, native.pack_int8(self.codes), len(self.codes), self.scale, self.x_scale, self.x_zero, self.sums, self.bias,
            post, out,
        )  # fmt: skip


@needs_kernels
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("rows", "depth", "columns"),
    [
        (1, 1, 1),
        (1, 64, 48),
        (2, 33, 15),
        (3, 7, 17),
        (5, 576, 100),
        (6, 32, 16),
        (25, 65, 33),
        (130, 1300, 70),
        (700, 48, 40),
        (4, 1283, 9),
    ],
)
@pytest.mark.parametrize("per_row", [True, False])
def test_integer_product(rows: int, depth: int, columns: int, per_row: bool) -> None:
    product = Product(rows, depth, columns, per_row=per_row)
    torch.testing.assert_close(product.run().double(), product.expected(), rtol=1e-6, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("code", [127, -127, -128])
@pytest.mark.parametrize(("rows", "depth"), [(1, 5000), (40, 1536)])
def test_extreme_codes_do_not_saturate(code: int, rows: int, depth: int) -> None:
    x = torch.full((rows, depth), 255, dtype=torch.uint8)
    codes = torch.full((20, depth), code, dtype=torch.int8)
    codes[:, ::7] = -code if code != -128 else 127
    ones = torch.ones(20)
    exact = (x.to(torch.int64) @ codes.to(torch.int64).t()).float()  # in float32's own precision
    found = native.int8_linear(x, native.pack_int8(codes), 20, ones, ones[:1], torch.zeros(1), codes.sum(1, dtype=torch.int32))
    assert torch.equal(found, exact)


@needs_kernels
@pytest.mark.parametrize("post", native.POSTS)
def test_activation_functions(post: str) -> None:
    product = Product(40, 96, 50)
    product.scale *= 0.05  # outputs of a few units, where functions bend
    expected = FUNCTIONS[post](product.expected())
    torch.testing.assert_close(product.run(post).double(), expected, rtol=2e-6, atol=2e-6)


@needs_kernels
@pytest.mark.parametrize("post", ["gelu", "gelu_tanh", "silu"])
def test_activation_functions_far_from_zero(post: str) -> None:
    values = torch.tensor([-3e38, -1e4, -100.0, -12.0, -0.0, 0.0, 12.0, 100.0, 1e4, 3e38])
    zeros = torch.zeros(10, 8, dtype=torch.int8)
    x, one = torch.zeros(1, 8, dtype=torch.uint8), torch.ones(1)
    packed, sums = native.pack_int8(zeros), torch.zeros(10, dtype=torch.int32)
    found = native.int8_linear(x, packed, 10, torch.ones(10), one, torch.zeros(1), sums, values, post)
    expected = FUNCTIONS[post](values.double()).float()  # torch's own float32 GELU overflows at 3e38 on AVX512
    torch.testing.assert_close(found[0], expected, rtol=1e-6, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_codes_for_the_next_layer(fmt: Format) -> None:
    product = Product(37, 64, 45)
    scale, zero = 0.07, 0 if fmt.symmetric else 3
    out = native.Requantization(scale, zero + 128, fmt.code_min + 128, fmt.code_max + 128)
    found = product.run("relu", out)
    expected = quantize_unsigned(product.run("relu"), QParams(torch.tensor(scale), torch.tensor(float(zero))), fmt)
    assert found.dtype == torch.uint8
    assert torch.equal(found, expected)
    assert len(found.unique()) > 5


class Weight:
    """A weight in groups, packed, and its values."""

    def __init__(self, columns: int, depth: int, groups: int, bits: int, seed: int = 0) -> None:
        g = seeded(seed)
        self.bits = bits
        self.codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (columns, depth), dtype=torch.int8, generator=g)
        self.scale = torch.rand(columns, groups, generator=g) + 0.1
        self.zero = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (columns, groups), dtype=torch.int16, generator=g)
        self.packed = native.pack_weight(self.codes, 4 if bits <= 4 else 8)
        blocks = QParams(self.scale.unsqueeze(-1), self.zero.float().unsqueeze(-1))
        self.values = dequantize(self.codes.unflatten(1, (groups, -1)), blocks, Format(bits)).flatten(1)


WEIGHTS = [(1, 8, 1), (16, 64, 2), (17, 24, 3), (40, 576, 9), (33, 1536, 1), (100, 96, 4), (9, 128, 16)]


@needs_kernels
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize(("columns", "depth", "groups"), WEIGHTS)
def test_weight_only_product(columns: int, depth: int, groups: int, bits: int) -> None:
    weight = Weight(columns, depth, groups, bits)
    stored = 4 if bits <= 4 else 8
    assert weight.packed.numel() == -(-columns // 16) * 16 * depth * stored // 8
    for rows in (1, 2, 3, 4, 5, 11):
        x = torch.randn(rows, depth, generator=seeded(rows))
        bias = torch.randn(columns, generator=seeded(1)) if rows % 2 else None
        found = native.weight_only_linear(x, weight.packed, stored, weight.scale, weight.zero, bias)
        expected = x.double() @ weight.values.double().t() + (0 if bias is None else bias)
        terms = x.abs() @ (2**stored * weight.scale).repeat_interleave(depth // groups, 1).t()  # of sums over unsigned codes
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-7 * float(terms.amax()))


@needs_kernels
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize(("columns", "depth", "groups"), WEIGHTS)
def test_dequantized_weight_is_bit_identical(columns: int, depth: int, groups: int, bits: int) -> None:
    weight = Weight(columns, depth, groups, bits)
    by_columns = weight.scale.t().contiguous().t(), weight.zero.t().contiguous().t()
    for scale, zero in ((weight.scale, weight.zero), by_columns):
        assert torch.equal(native.dequantize(weight.packed, 4 if bits <= 4 else 8, scale, zero, columns, depth), weight.values)


def test_groups_that_no_vector_fits_are_refused_by_size() -> None:
    assert native.refuses(576, 9) is None
    for depth, groups, size in ((48, 4, "12"), (36, 8, "4.5"), (27, 1, "27")):
        assert f"groups of a multiple of 8 inputs, not {size}" in str(native.refuses(depth, groups))


def activations(rows: int, depth: int) -> Tensor:
    """Rows of every size, one dead, one all negative, one of ties between codes, one too small for a scale."""
    x = torch.randn(rows, depth, generator=seeded(rows + depth)) * torch.logspace(-6, 6, rows).unsqueeze(1)
    special = [
        torch.zeros(depth),
        -torch.rand(depth, generator=seeded()),
        torch.arange(depth) % 255 - 127.0,
        torch.full((depth,), 1e-39),
    ]
    special[2][1::2] += 0.5
    return torch.cat([x, torch.stack(special)])


SHAPES = [(1, 1), (2, 7), (3, 32), (5, 33), (9, 70), (300, 577)]


@needs_kernels
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize(("rows", "depth"), SHAPES)
def test_rows_quantized_bit_by_bit_as_torch_does(rows: int, depth: int, fmt: Format) -> None:
    x = activations(rows, depth)
    params = qparams(*block_range(x, fmt), fmt)
    codes, scale, zero = native.quantize_rows(x, fmt)
    assert torch.equal(scale, params.scale[:, 0])
    assert torch.equal(zero, params.zero_point[:, 0])
    assert torch.equal(codes, quantize_unsigned(x, params, fmt))
    assert torch.equal(native.fake_quantize_rows(x, fmt), fake_quantize(x, params, fmt))


@needs_kernels
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize(("rows", "depth"), SHAPES)
def test_static_quantization_bit_by_bit_as_torch_does(rows: int, depth: int, fmt: Format) -> None:
    x = torch.randn(rows, depth, 2, generator=seeded())
    scale, zero = float(torch.tensor(0.0237)), 0 if fmt.symmetric else 5
    params = QParams(torch.tensor(scale), torch.tensor(float(zero)))
    assert torch.equal(native.quantize_static(x, scale, zero, fmt), quantize_unsigned(x, params, fmt))
    assert torch.equal(native.fake_quantize_static(x, scale, zero, fmt), fake_quantize(x, params, fmt))


@needs_kernels
@pytest.mark.parametrize("fmt", [SYMMETRIC, ASYMMETRIC], ids=str)
@pytest.mark.parametrize("depth", [5, 40])
def test_nan_and_infinity_spoil_what_they_spoil_in_torch(depth: int, fmt: Format) -> None:
    x = torch.randn(6, depth, generator=seeded())
    for row, value in enumerate((float("nan"), float("inf"), -float("inf"), -float("nan"))):
        x[row, row % depth] = value
    params = qparams(*block_range(x, fmt), fmt)
    _, scale, zero = native.quantize_rows(x, fmt)
    torch.testing.assert_close(scale, params.scale[:, 0], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(zero, params.zero_point[:, 0], rtol=0, atol=0, equal_nan=True)
    faked = native.fake_quantize_rows(x, fmt)
    torch.testing.assert_close(faked, fake_quantize(x, params, fmt), rtol=0, atol=0, equal_nan=True)
    assert faked[4:].isfinite().all()


def test_only_contiguous_float32_is_taken() -> None:
    x = torch.randn(4, 6)
    assert native.takes(x) == (native.unavailable() is None)
    assert not native.takes(x.double())
    assert not native.takes(x.t())
