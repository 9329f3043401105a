"""Whether the integer products of a runtime are exact on this CPU."""

from functools import cache

import torch
from torch import nn

from sqbench.formats.codec import EncodedTensor
from sqbench.formats.format import Format
from sqbench.formats.params import QParams
from sqbench.models.functions import Function
from sqbench.quant.layers import ActivationQuantizer, QuantLayer
from sqbench.runtimes.runtime import Runtime

EXACT_BITS = 7  # of weights that fit with every input: 255 (64 + 64) < 2^15
INPUTS, CODE, INPUT = 64, 127, 255


@cache
@torch.no_grad()
def saturates(runtime: Runtime) -> bool:
    """Whether sums of 8-bit products can saturate.

    Without VNNI, kernels add two neighbouring products in 16 bits. The test is a layer of the largest codes, which would saturate.
    """
    weight, inputs = Format(8, granularity="channel"), Format(8, symmetric=False)
    codes = torch.full((16, INPUTS), CODE, dtype=torch.int8)
    encoded = EncodedTensor(codes, torch.ones(16, 1), torch.zeros(16, 1), weight)
    quantizer = ActivationQuantizer(inputs, QParams(torch.tensor(1.0), torch.tensor(-128.0)))
    layer = QuantLayer(nn.Linear(INPUTS, 16, bias=False), encoded, quantizer)
    x, free = torch.full((2, INPUTS), float(INPUT)), {0: "rows"}
    function = Function(nn.Sequential(layer).eval(), {"inputs": x}, ("outputs",), {"inputs": free, "outputs": free})
    (found,) = runtime.start(runtime.write(function, {"0": layer}))(x)
    return not torch.allclose(found, torch.full_like(found, CODE * INPUT * INPUTS), rtol=1e-3)
