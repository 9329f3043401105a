"""The quantized linear, and the quantizer that several of them share."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from sqbench.formats.codec import encode, round_trip
from sqbench.formats.format import Format
from sqbench.quant.access import set_weight, weight_of
from sqbench.quant.layers import ActivationQuantizer, QuantLayer, sqnr_db, stored_bytes

W4, A8 = Format(bits=4, symmetric=False, granularity="group", group_size=16), Format(bits=8, granularity="token", dynamic=True)


@pytest.mark.parametrize("layer", [nn.Linear(32, 12), Conv1D(12, 32)], ids=["Linear", "Conv1D"])
def test_a_quantized_linear_computes_with_rounded_weight_and_input(layer: nn.Module) -> None:
    nn.init.normal_(layer.bias)
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    weight = weight_of(layer)
    assert weight.shape == (12, 32)
    quantized = QuantLayer(layer, encode(weight_of(layer), W4), ActivationQuantizer(A8))
    expected = round_trip(x, A8) @ round_trip(weight, W4).t() + layer.bias
    torch.testing.assert_close(quantized(x), expected)
    assert not torch.allclose(quantized(x), layer(x), atol=1e-3)
    torch.testing.assert_close(QuantLayer(layer, None, None)(x), layer(x))


@pytest.mark.parametrize("layer", [nn.Linear(4, 3), Conv1D(3, 4)], ids=["Linear", "Conv1D"])
def test_weights_are_replaced_not_written_to(layer: nn.Module) -> None:
    before = layer.weight
    values = before.detach().clone()
    set_weight(layer, weight_of(layer) * 2)
    assert torch.equal(before, values)
    assert torch.equal(layer.weight, values * 2)


def test_readers_of_one_tensor_share_the_work_and_nothing_is_kept() -> None:
    shared = ActivationQuantizer(A8, readers=3)
    x = torch.randn(4, 16)
    first = shared(x)
    assert shared(x) is first
    assert shared(x) is first
    assert shared.shared._known is None
    assert shared(x) is not first  # the next forward pass


def test_inference_mode_works_too() -> None:
    shared = ActivationQuantizer(A8, readers=2)
    with torch.inference_mode():
        x = torch.randn(4, 16)
        assert shared(x) is shared(x)


def test_another_tensor_and_a_changed_one_are_quantized_anew() -> None:
    shared = ActivationQuantizer(A8, readers=2)
    x, y = torch.randn(4, 16), torch.randn(4, 16)
    shared(x)
    assert torch.equal(shared(y), round_trip(y, A8))
    shared(x)
    x.mul_(3)
    assert torch.equal(shared(x), round_trip(x, A8))


def test_static_ranges_clip() -> None:
    quantizer = ActivationQuantizer(Format(bits=8, symmetric=False), (torch.tensor(-1.0), torch.tensor(2.0)))
    result = quantizer(torch.tensor([[-5.0, 0.0, 0.5, 9.0]]))
    torch.testing.assert_close(result, torch.tensor([[-1.0, 0.0, 0.5, 2.0]]), atol=0.01, rtol=0)
    assert quantizer.double().static.scale.dtype == torch.float64


def test_stored_bytes_count_tied_tensors_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.body, self.head = nn.Embedding(10, 8), nn.Linear(8, 8), nn.Linear(8, 10, bias=False)
            self.head.weight = self.embedding.weight

    model = Tied()
    assert stored_bytes(model) == 4 * (80 + 64 + 8)
    model.body = QuantLayer(model.body, encode(weight_of(model.body), Format(bits=8, granularity="channel")), None)
    assert stored_bytes(model) == 4 * (80 + 8) + 64 + 8 * 4


def test_sqnr() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert sqnr_db(x, x) == 200
    assert sqnr_db(x, x * 0.9) == pytest.approx(20)
    assert sqnr_db(torch.zeros(3), torch.zeros(3)) == 200
