"""Products with block scales. The machine here has no such GPU, so a reference reads what the product would read."""

import pytest
import torch
from torch import Tensor

from sqbench.execution import block_scaled
from sqbench.execution.block_scaled import BlockScaled, CudaMxfp8, CudaNvfp4, deviation, tiled
from sqbench.formats.element import ELEMENTS, Float

KERNELS = [CudaMxfp8, CudaNvfp4]
CPU = torch.device("cpu")


def place(row: int, block: int, blocks: int) -> int:
    """Where cuBLAS's manual puts the scale of a row and a block."""
    tile = row // 128 * -(-blocks // 4) + block // 4
    return 512 * tile + row % 32 * 16 + row % 128 // 32 * 4 + block % 4


def values(codes: Tensor) -> Tensor:
    """The numbers of codes as a product reads them, [rows, in] float64."""
    if codes.dtype == torch.float8_e4m3fn:
        return codes.double()
    grid = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
    grid = torch.cat([grid, -grid])
    packed = codes.view(torch.uint8)
    return torch.stack([grid[(packed & 15).long()], grid[(packed >> 4).long()]], -1).flatten(1)


def scaled(codes: Tensor, scales: Tensor, size: int) -> Tensor:
    numbers = values(codes)
    rows, blocks = len(numbers), numbers.shape[1] // size
    factors = torch.tensor([[float(scales[place(row, block, blocks)]) for block in range(blocks)] for row in range(rows)])
    return numbers * factors.double().repeat_interleave(size, 1)


def reference(kernel: type[BlockScaled]):  # type: ignore[no-untyped-def]
    size = kernel.natural.group_size
    assert size is not None

    def multiply(rows: Tensor, row_scales: Tensor, weight: Tensor, weight_scales: Tensor) -> Tensor:
        return (scaled(rows, row_scales, size) @ scaled(weight, weight_scales, size).t()).float()

    return multiply


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.kernel)
def test_a_product_reads_codes_and_scales_of_the_simulation(kernel: type[BlockScaled], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "multiply", staticmethod(reference(kernel)))
    assert deviation(kernel, CPU) < 1e-6


@pytest.mark.parametrize(("rows", "blocks"), [(1, 1), (128, 4), (130, 5), (300, 12)])
def test_scales_are_where_the_manual_puts_them(rows: int, blocks: int) -> None:
    scales = torch.arange(rows * blocks, dtype=torch.int64).remainder(251).to(torch.uint8).view(rows, blocks)
    flat = tiled(scales)
    assert len(flat) == -(-rows // 128) * -(-blocks // 4) * 512
    assert all(flat[place(row, block, blocks)] == scales[row, block] for row in range(rows) for block in range(blocks))
    assert int((flat != 0).sum()) == int((scales != 0).sum())


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.kernel)
def test_a_gpu_that_reads_scales_in_another_order_is_not_used(kernel: type[BlockScaled], monkeypatch: pytest.MonkeyPatch) -> None:
    right = reference(kernel)

    def wrong(rows: Tensor, row_scales: Tensor, *weight: Tensor) -> Tensor:
        return right(rows, row_scales.view(torch.uint8).flip(0).view(row_scales.dtype), *weight)  # type: ignore[no-any-return]

    monkeypatch.setattr(kernel, "multiply", staticmethod(wrong))
    block_scaled._disagrees.cache_clear()
    assert "differs from the simulation" in str(block_scaled._disagrees(kernel, "cpu"))
    monkeypatch.undo()
    block_scaled._disagrees.cache_clear()
    assert str(block_scaled._disagrees(kernel, "cpu")).startswith("torch has no such product here")


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < block_scaled.CAPABILITY, reason="no GPU with block scales"
)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.kernel)
def test_this_gpu_agrees_with_the_simulation(kernel: type[BlockScaled]) -> None:
    assert deviation(kernel, torch.device("cuda")) < block_scaled.TOLERANCE


def test_elements_are_those_of_the_products() -> None:
    for kernel in KERNELS:
        assert isinstance(ELEMENTS[kernel.natural.element], Float)
        assert kernel.weights.refusal(kernel.natural) is None
