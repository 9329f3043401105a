"""Tensors that are rounded between layers in runtimes: numbers of the simulation, and products of attention in integers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from encoders import load, save_encoder
from labs import Lab, scheme
from runtimes.agreement import apart, otherwise
from runtimes.test_parity import normal
from torch import Tensor, nn

from sqbench import api
from sqbench.calibration import Statistics
from sqbench.data.text import Windows
from sqbench.errors import UserError
from sqbench.execution import lower
from sqbench.formats.format import Format
from sqbench.formats.params import QParams
from sqbench.formats.scheme import Scheme
from sqbench.models.functions import Function
from sqbench.models.language import LanguageModel
from sqbench.quant.layers import ActivationQuantizer
from sqbench.quant.operations import Point, QuantizedOwner
from sqbench.runtimes import RUNTIMES

OPS = ("linear+matmul", "full")


def static(symmetric: bool, ops: str) -> Scheme:
    """8 bits, with static ranges."""
    bits = scheme(8, 8, ops=ops)
    return replace(bits, activations=Format(8, symmetric=symmetric))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("ops", OPS)
def test_a_vision_transformer_runs_in_integers(ops: str, symmetric: bool, backend: str, vit: Lab) -> None:
    quantized = api.quantize(vit.model, vit.statistics, "minmax", static(symmetric, ops))
    executed = lower(quantized, backend)
    for count in (2, 5):
        print("APART", ops, symmetric, backend, apart(executed, quantized, normal(count, 1, 12, 12, seed=count)))
    named = [name for entry in executed.report["execution"] for name in entry["layers"]]
    products = {f"blocks.{number}.attn:{name}" for number in (0, 1) for name in ("q@k", "probs@v")}
    assert set(named) - set(vit.model.topology.layers) == products
    print(executed.report["execution"])
    assert not products & otherwise(executed).keys()
