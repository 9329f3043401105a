"""What is rewritten in OpenVINO's graph: the same numbers, with less copied and computed."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from runtimes.test_parity import CHANNEL, GROUP, STATIC, TOKEN, normal, quantized
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from sqbench import api
from sqbench.calibration import Statistics
from sqbench.formats.format import Format
from sqbench.formats.scheme import Scheme
from sqbench.models.functions import Function, without_head
from sqbench.models.language import LanguageModel
from sqbench.runtimes import RUNTIMES
from sqbench.runtimes.deployment import parts_of
from sqbench.runtimes.openvino_attention import pieces_of, skip_masked

openvino = pytest.importorskip("openvino")
HEADS, WIDTH = 4, 16


def graph_of(module: nn.Module, layers: dict[str, Any], *inputs: Tensor) -> Any:
    example = {f"input{number}": one for number, one in enumerate(inputs)}
    return RUNTIMES["openvino"].write(Function(module.eval(), example, ("outputs",), {}), layers)


def computed(graph: Any, *inputs: Tensor) -> Tensor:
    return RUNTIMES["openvino"].start(graph)(*inputs)[0]


def count(graph: Any, kind: str) -> int:
    return sum(op.get_type_name() == kind for op in graph.get_ops())


# ---- Layers whose outputs are split ------------------------------------------------------------------------------------------


class Fused(nn.Module):
    """Attention whose queries, keys and values are parts of one layer's output, in the order of timm or side by side."""

    def __init__(self, layer: nn.Module, ordered: bool) -> None:
        super().__init__()
        self.qkv, self.ordered = layer, ordered

    def forward(self, x: Tensor) -> Tensor:
        y = self.qkv(x)
        if self.ordered:
            q, k, v = y.reshape(*x.shape[:2], 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (part.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2) for part in y.chunk(3, -1))
        return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


FORMATS: dict[str, tuple[Format, Format | None]] = {
    "w8a8": (CHANNEL, STATIC),
    "w8a8 per tensor": (Format(8), STATIC),
    "w8a8 per token": (CHANNEL, TOKEN),
    "w4a16": (replace(GROUP, group_size=32), None),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", FORMATS)
@torch.no_grad()
@pytest.mark.usefixtures("exact")
def test_parts_of_a_layer_are_products_of_their_own(name: str, bias: bool) -> None:
    torch.manual_seed(0)
    x = normal(2, 9, 64)
    layer = quantized(nn.Linear(64, 3 * HEADS * WIDTH, bias), *FORMATS[name], x)
    wanted = {len(batch): Fused(layer, True)(batch) for batch in (x, normal(5, 9, 64))}
    graph = graph_of(Fused(layer, True), {"qkv": layer}, x)
    assert count(graph, "MatMul") == 3
    assert count(graph, "Split") == 0
    session = RUNTIMES["openvino"].start(graph)
    for size, want in wanted.items():
        assert torch.allclose(session(normal(size, 9, 64))[0], want, atol=1e-5 * float(want.abs().max()))
    (executed,) = session.executed().items()
    assert executed[0] == "qkv"
    assert executed[1].integers == (FORMATS[name][1] is not None)


@torch.no_grad()
@pytest.mark.usefixtures("exact")
def test_a_layer_in_another_pattern_stays_one_product() -> None:
    torch.manual_seed(0)
    x = normal(2, 9, 64)
    layer = quantized(nn.Linear(64, 3 * HEADS * WIDTH), CHANNEL, STATIC, x)
    want = Fused(layer, False)(x)
    graph = graph_of(Fused(layer, False), {"qkv": layer}, x)
    assert count(graph, "MatMul") == 1
    assert torch.allclose(computed(graph, x), want, atol=1e-5 * float(want.abs().max()))


# ---- Masks -------------------------------------------------------------------------------------------------------------------


class Masked(nn.Module):
    """Attention of 4 query heads to fewer key heads. A query reads the keys up to its own, at most `window`, without padding."""

    def __init__(self, groups: int, window: int = 1000, *, known: bool = True) -> None:
        """`known`: whether the mask is the OR of what removes tokens of any text, and of padding."""
        super().__init__()
        self.groups, self.window, self.known = groups, window, known

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        places = torch.arange(x.shape[1])
        apart = places.unsqueeze(1) - places.unsqueeze(0)
        unseen = torch.logical_or(apart < 0, apart >= self.window).unsqueeze(0)
        removed = unseen | (padding == 0).unsqueeze(1) if self.known else unseen & (padding > 0).unsqueeze(1)
        mask = removed.float().mul(torch.finfo(torch.float32).min).unsqueeze(1)
        q, k, v = (part.unflatten(-1, (-1, WIDTH)).transpose(1, 2) for part in (x, x.cos(), x.sin()))
        k, v = (self._repeated(part[:, : self.groups]) for part in (k, v))
        return scaled_dot_product_attention(q, k, v, mask, scale=0.3).transpose(1, 2).flatten(2)

    def _repeated(self, x: Tensor) -> Tensor:
        examples, groups, keys, width = x.shape
        if groups == HEADS:
            return x
        return x[:, :, None].expand(examples, groups, HEADS // groups, keys, width).reshape(examples, HEADS, keys, width)


def padded(examples: int, length: int) -> tuple[Tensor, Tensor]:
    """Numbers, and which of them are none of padding. The first example ends early."""
    padding = torch.ones(examples, length, dtype=torch.int64)
    padding[0, length - 20 :] = 0
    return normal(examples, length, HEADS * WIDTH), padding


@pytest.mark.parametrize("window", [1000, 40])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_keys_that_a_mask_removes_are_not_read(groups: int, window: int) -> None:
    x, padding = padded(2, 300)
    module = Masked(groups, window)
    want = module(x, padding)
    graph = graph_of(module, {}, x, padding)
    assert torch.allclose(computed(graph, x, padding)[padding > 0], want[padding > 0], atol=1e-5)
    graph.reshape({0: list(x.shape), 1: list(padding.shape)})
    skip_masked(graph)
    read = sorted(op.input_value(1).get_shape()[2] for op in graph.get_ops() if "Attention" in op.get_type_name())
    assert read == ([128, 256, 300] if window == 1000 else [83, 128, 167])
    assert count(graph, "Broadcast") == 0


def test_prompts_of_language_models_have_such_masks(tiny: LanguageModel, statistics: Statistics) -> None:
    weights = api.quantize(tiny, statistics, "rtn", Scheme("weights", CHANNEL))
    function = without_head(weights)
    graph = RUNTIMES["openvino"].write(function, parts_of(function.module))
    sizes = [[1, 256 if 1 in function.free[name] else 1] if x.dim() == 2 else list(x.shape) for name, x in function.example.items()]
    graph.reshape({number: size if len(size) == 2 else [1, size[1], 0, size[3]] for number, size in enumerate(sizes)})
    skip_masked(graph)
    read = [op.input_value(1).get_shape()[2] for op in graph.get_ops() if "Attention" in op.get_type_name()]
    assert sorted(read) == [128] * tiny.module.config.num_hidden_layers + [256] * tiny.module.config.num_hidden_layers


@pytest.mark.parametrize(("length", "known"), [(128, True), (300, False)])
def test_short_texts_and_other_masks_stay_as_they_are(length: int, known: bool) -> None:
    x, padding = padded(2, length)
    module = Masked(2, known=known)
    graph = graph_of(module, {}, x, padding)
    assert torch.allclose(computed(graph, x, padding), module(x, padding), atol=1e-5)
    graph.reshape({0: list(x.shape), 1: list(padding.shape)})
    skip_masked(graph)
    assert count(graph, "ScaledDotProductAttention") == 1
    assert count(graph, "Broadcast") > 0


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 2**32 - 1))
def test_every_score_that_a_mask_keeps_is_in_the_piece_of_its_query(queries: int, keys: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, last = np.sort(rng.integers(0, keys + 1, (2, queries)), 0)
    kept = (np.arange(keys) >= first[:, None]) & (np.arange(keys) < last[:, None])
    pieces = pieces_of(kept)
    assert [number for piece in pieces for number in range(piece.first, piece.last)] == list(range(queries))
    computed = np.zeros_like(kept)
    for piece in pieces:
        computed[piece.first : piece.last, piece.start : piece.stop] = True
    assert not (kept & ~computed).any()
    assert len(pieces) == 1 or (kept.any(1).all() and computed.mean() < 0.9)
