"""The time of one linear layer, by kernel, format and shape. Whole models cannot be faster.

    python -m benchmarks.kernels
    python -m benchmarks.kernels shapes=512x576x1536,1x576x1536 repetitions=50
    python -m benchmarks.kernels device=cuda shapes=2048x4096x14336,8192x4096x4096

Shapes are rows x in x out: windows and single tokens through SmolLM2-135M, and a batch of 16 images through a ViT-S. GFLOP/s count
two operations per weight and row in every format. Ratios compare with torch's float32 linear on the same shape.
"""

import copy
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.timing import Work, alternate, arguments, medians, show, speedups
from sqbench.config import device_of
from sqbench.console.quiet import quiet
from sqbench.errors import UserError
from sqbench.execution.floats import FloatLinear
from sqbench.execution.lowering import KERNELS
from sqbench.formats.codec import encode
from sqbench.formats.format import Format
from sqbench.quant.access import weight_of
from sqbench.quant.layers import ActivationQuantizer, QuantLayer

SHAPES = ["512x576x1536", "512x1536x576", "1x576x1536", "1x1536x576", "4112x384x1536", "4112x1536x384"]
BASE = "torch float32"
FLOATS = (torch.float32, torch.bfloat16)
CHANNEL = Format(8, granularity="channel")
INPUTS = {
    "static": Format(8, symmetric=False),
    "dynamic": Format(8, granularity="token", dynamic=True),
}


def formats() -> dict[str, tuple[Format, Format | None]]:
    """Name -> formats of weight and input."""
    found: dict[str, tuple[Format, Format | None]] = {f"w8a8 {name}": (CHANNEL, fmt) for name, fmt in INPUTS.items()}
    return found | {"w8a16": (CHANNEL, None), "w4a16": (Format(4, symmetric=False, granularity="group", group_size=64), None)}


def sides(rows: int, width: int, out: int, device: torch.device | str = "cpu") -> dict[str, Work]:
    """Every kernel that takes a layer of this shape, by name, format and dtype."""
    torch.manual_seed(0)
    layer, x = nn.Linear(width, out).to(device), torch.randn(rows, width).to(device)

    def call(function: Callable[[Tensor], object], x: Tensor) -> Work:
        return lambda: function(x)

    found: dict[str, Work] = {BASE: call(layer, x)}
    found["torch bfloat16"] = call(copy.deepcopy(layer).bfloat16(), x.bfloat16())
    on_cpu = (
        ("onednn float32, prepacked", lambda: call(FloatLinear(layer), x)),
        ("onednn u8s8 alone", lambda: bare(layer, x)),
    )
    for name, make in on_cpu if x.is_cpu else ():
        try:
            found[name] = make()
            found[name]()
        except (RuntimeError, AttributeError):  # a build of torch without oneDNN
            found.pop(name, None)
    for name, (weights, inputs) in formats().items():
        for dtype in FLOATS:
            quantizer = None if inputs is None else ActivationQuantizer(inputs, None if inputs.dynamic else (x.min(), x.max()))
            quantized = QuantLayer(copy.deepcopy(layer).to(dtype), encode(weight_of(layer).to(dtype), weights), quantizer)
            for kernel in KERNELS:
                if kernel.takes(quantized) and kernel.refusal(quantized) is None:
                    title = f"{kernel.kernel}, {name}, {str(dtype).removeprefix('torch.')}"
                    found[title] = call(kernel([quantized]), x.to(dtype))
    return found


def bare(layer: nn.Linear, x: Tensor) -> Work:
    """oneDNN's integer product alone. Its input already consists of codes."""
    codes = torch.randint(0, 256, x.shape, dtype=torch.uint8)
    packed = torch.ops.onednn.qlinear_prepack(torch.randint(-127, 128, layer.weight.shape, dtype=torch.int8), None)
    scales, zeros = torch.ones(layer.out_features), torch.zeros(layer.out_features, dtype=torch.int64)
    after = (None, 1.0, 0, torch.float32, "none", [], "")
    return lambda: torch.ops.onednn.qlinear_pointwise(codes, 1.0, 128, packed, scales, zeros, *after)


@torch.no_grad()
def table(shapes: list[str], repetitions: int, device: torch.device | str = "cpu") -> list[list[str]]:
    """A row per shape and kernel: GFLOP/s, and the speedup over torch's float32 linear.

    Raises:
        UserError: a shape is not ROWSxINxOUT.
    """
    rows = []
    for shape in shapes:
        try:
            size, width, out = (int(number) for number in shape.split("x"))
        except ValueError as error:
            raise UserError(f"shapes={shape}: ROWSxINxOUT works, 512x576x1536 for example") from error
        times = alternate(sides(size, width, out, device), repetitions, warmup=3)
        faster, operations = speedups(times, BASE), 2 * size * width * out
        rows += [[shape, name, f"{operations / spent / 1e9:.3g}", f"{faster[name]:.2f}"] for name, spent in medians(times).items()]
    return rows


def main() -> None:
    quiet()
    try:
        own, others = arguments(sys.argv[1:], shapes=SHAPES, repetitions=30, device="cpu")
        if others:
            raise UserError(f"{others[0]}: shapes=..., repetitions=... and device=... work")
        rows = table(own["shapes"], own["repetitions"], device_of(own["device"]))
    except UserError as error:
        sys.exit(f"error: {error}")
    show(["rows x in x out", "kernel", "GFLOP/s", "x float32"], rows)


if __name__ == "__main__":
    main()
