"""Streaming statistics against the same numbers computed from all the data at once."""

import pytest
import torch
from torch import Tensor

from sqbench.statistics.blocks import gram_block
from sqbench.statistics.extremes import EMA_MOMENTUM
from sqbench.statistics.histogram import BINS, count_bins
from sqbench.statistics.inputs import InputStatistics, MissingStatistics
from sqbench.statistics.rows import ROWS, top_size


def batches(count: int = 5, channels: int = 96) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    grow = torch.logspace(-2, 2, count)  # the range must widen on the way
    return [torch.randn(2, 40, channels, generator=generator) * size for size in grow[torch.randperm(count, generator=generator)]]


def collected(parts: list[Tensor]) -> InputStatistics:
    stats = InputStatistics.empty(parts[0].shape[-1])
    for part in parts:
        stats.update(part)
    return stats


def test_streaming_equals_all_at_once() -> None:
    parts = batches()
    stats, x = collected(parts), torch.cat(parts).reshape(-1, 96)
    assert stats.tokens == len(x)
    assert torch.equal(stats.low, x.amin(0))
    assert torch.equal(stats.high, x.amax(0))
    assert torch.equal(stats.absmax, x.abs().amax(0))
    torch.testing.assert_close(stats.abs_mean, x.abs().mean(0))
    torch.testing.assert_close(stats.sum, x.double().sum(0), rtol=1e-4, atol=1e-2)
    blocks = x.unflatten(1, (-1, gram_block(96))).transpose(0, 1)
    torch.testing.assert_close(stats.blocks, blocks.transpose(1, 2) @ blocks, rtol=1e-4, atol=1.0)  # its entries reach 1e5
    assert stats.batch_low == pytest.approx(sum(float(part.min()) for part in parts))
    assert stats.batch_high == pytest.approx(sum(float(part.max()) for part in parts))
    average = float(parts[0].max())
    for part in parts[1:]:
        average = average * EMA_MOMENTUM + float(part.max()) * (1 - EMA_MOMENTUM)
    assert stats.ema_high == pytest.approx(average)


def counted_by_hand(examples: list[Tensor]) -> Tensor:
    """In how many examples [tokens, C] each channel is among the largest."""
    channels = examples[0].shape[-1]
    top = torch.zeros(channels, dtype=torch.int64)
    for example in examples:
        largest = sorted(range(channels), key=lambda channel: -float(example[:, channel].abs().max()))
        for channel in largest[: top_size(channels)]:
            top[channel] += 1
    return top


@pytest.mark.parametrize("shape", [(6, 300), (6, 5, 300), (3, 4, 4, 300), (4, 7, 1)])
def test_largest_channels_are_counted_per_example(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(shape, generator=generator) for _ in range(3)]
    stats = collected(parts)
    assert stats.examples == 3 * shape[0]
    assert torch.equal(stats.top, counted_by_hand([example.reshape(-1, shape[-1]) for part in parts for example in part]))


def test_an_example_without_enough_channels_other_than_0_has_no_largest() -> None:
    x = torch.zeros(3, 5, 300)
    x[0, 2, 7:10] = torch.tensor([1.0, -2.0, 3.0])
    x[1, 2, 7:9] = 1.0
    stats = collected([x])
    assert (stats.examples, stats.top.nonzero().flatten().tolist()) == (1, [7, 8, 9])


def test_channels_of_convolutions_are_read_through_a_view() -> None:
    x = torch.randn(4, 24, 9, 9, generator=torch.Generator().manual_seed(0))
    view, copy = x.movedim(1, -1), x.movedim(1, -1).contiguous()
    for name, value in collected([copy]).tensors().items():
        assert torch.equal(collected([view]).tensors()[name], value), name


def test_histogram_is_exact_however_the_range_grew() -> None:
    parts = batches()
    stats, x = collected(parts), torch.cat(parts).flatten()
    assert stats.bins.sum() == x.numel()
    assert stats.reach / 2 < x.abs().max() <= stats.reach
    assert torch.equal(stats.bins, torch.histc(x, BINS, -stats.reach, stats.reach).long())


@pytest.mark.parametrize("power", [-99, -20, 0, 7, 60])
def test_bins_count_what_histc_counts_at_every_edge(power: int) -> None:
    reach = 2.0**power
    edges = torch.linspace(-reach, reach, BINS + 1, dtype=torch.float64).float()
    beside = [torch.nextafter(edges, torch.full_like(edges, side)) for side in (-reach, reach)]
    spread = torch.randn(2, 5000, generator=torch.Generator().manual_seed(0)).clamp(-4, 4) * reach / 4
    x = torch.cat([edges, *beside, *spread, torch.zeros(3), torch.full((2,), reach * 1e-12)])
    assert torch.equal(count_bins(x, reach), torch.histc(x, BINS, -reach, reach).long())


def test_values_near_the_end_of_float32_have_a_histogram() -> None:
    for value in (1e-44, 3e38):
        stats = collected([torch.full((2, 8), value)])
        assert stats.bins.sum() == 16
        assert stats.reach >= value


def test_memory_does_not_grow_with_tokens() -> None:
    def size(stats: InputStatistics) -> int:
        return sum(value.numel() * value.element_size() for value in stats.tensors().values())

    few, many = collected(batches(64, 32)), collected(batches(64, 32) * 8)
    assert size(few) == size(many)
    assert len(many.rows) == ROWS


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_without_a_range_are_refused(bad: float) -> None:
    x = torch.zeros(4, 8)
    x[2, 3] = bad
    with pytest.raises(FloatingPointError):
        InputStatistics.empty(8).update(x)


def test_scaled_statistics_are_those_of_the_scaled_tensor() -> None:
    parts = batches()
    scale = torch.rand(96, generator=torch.Generator().manual_seed(1)) + 0.1
    scaled, direct = collected(parts).scaled(scale), collected([part / scale for part in parts])
    for name in ("low", "high", "sum", "abs_sum", "rows"):
        torch.testing.assert_close(getattr(scaled, name), getattr(direct, name), rtol=1e-5, atol=1e-6)
    assert (scaled.blocks - direct.blocks).abs().max() < 1e-5 * direct.blocks.abs().max()
    assert scaled.examples == len(scaled.rows)
    assert torch.equal(scaled.top, counted_by_hand(list(scaled.rows.unsqueeze(1))))


def test_what_a_scale_makes_wrong_is_an_error_to_read() -> None:
    parts, scale = batches(), torch.rand(96, generator=torch.Generator().manual_seed(1)) + 0.1
    scaled = collected(parts).scaled(scale)
    assert scaled.lost == {"histogram", "averages"}
    with pytest.raises(MissingStatistics, match=r"this tensor: its histogram was collected before a scale moved"):
        _ = scaled.bins
    with pytest.raises(MissingStatistics, match="its averages was collected before"):
        _ = scaled.ema_low
    assert scaled.scaled(scale).lost == scaled.lost
    assert scaled.joined(collected(parts)).lost == scaled.lost


def test_a_picture_gets_the_histogram_of_the_sample_rows() -> None:
    parts, scale = batches(), torch.rand(96, generator=torch.Generator().manual_seed(1)) + 0.1
    rough, direct = collected(parts).scaled(scale).approximated(), collected([part / scale for part in parts])
    assert rough.reach == direct.reach
    assert rough.bins.sum() == rough.rows.numel()
    assert rough.batch_high == 5 * rough.ema_high == 5 * float(rough.high.max())
    whole = collected(parts)
    assert torch.equal(whole.approximated().bins, whole.bins)  # nothing is lost


def test_what_was_not_collected_is_an_error_that_names_it() -> None:
    stats = InputStatistics.empty(8, names=("extremes", "rows"), site="blocks.0.fc1")
    stats.update(torch.ones(2, 3, 8))
    assert stats.has("rows")
    assert not stats.has("rows", "blocks")
    for name, read in (("histogram", "reach"), ("blocks", "blocks"), ("gram", "gram"), ("averages", "ema_high")):
        with pytest.raises(MissingStatistics, match=rf"blocks\.0\.fc1: its {name} was not collected; use calibrate.*{name}"):
            getattr(stats, read)


def test_file_form_is_lossless() -> None:
    stats = collected(batches())
    again = InputStatistics.from_tensors(stats.tensors())
    for name, value in stats.tensors().items():
        assert torch.equal(again.tensors()[name], value), name
    assert isinstance(again.tokens, int)
    assert again.ema_low == stats.ema_low


def test_all_zero_input_has_no_histogram() -> None:
    stats = collected([torch.zeros(3, 8)])
    assert stats.reach == 0
    assert stats.bins.sum() == 0
    assert stats.scaled(torch.ones(8)).approximated().reach == 0


def test_joined_is_as_if_two_tensors_were_one() -> None:
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(3, 40, 8, generator=generator) * torch.logspace(-2, 2, 8)
    parts = whole[:, :24], whole[:, 24:]
    one, other, both = (InputStatistics.empty(8) for _ in range(3))
    for statistics, x in zip((one, other, both), (*parts, whole), strict=True):
        for example in x.split(1):
            statistics.update(example)
    joined = one.joined(other)
    assert joined.tokens == both.tokens == 120
    assert joined.batches == both.batches == 3
    assert joined.reach == both.reach
    assert torch.equal(joined.bins, both.bins)
    assert torch.equal(joined.absmax, both.absmax)
    torch.testing.assert_close(joined.abs_mean, both.abs_mean)
    torch.testing.assert_close(joined.blocks, both.blocks, rtol=1e-5, atol=1e-6 * float(both.blocks.abs().max()))
    assert joined.lost == {"averages"}
    rough = joined.approximated()
    assert (rough.batch_low, rough.ema_high) == (3 * float(both.low.min()), float(both.high.max()))
