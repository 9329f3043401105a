"""Float linear layers by oneDNN with prepacked weights, on machines where that is faster than torch's own kernel."""

import json
import logging
import os
import platform
import statistics
import time
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from sqbench.quant.access import weight_of
from sqbench.storage.files import write_text

log = logging.getLogger(__name__)

PROBE = (512, 576, 1536)  # rows, in, out: a window through a small model's MLP
GAIN = 1.25  # a smaller gain is not worth a different rounding of every number


class FloatLinear(nn.Linear):
    """y = x W^T + b in float32 on the CPU, with a weight that oneDNN laid out once. It differs from torch's by rounding only.

    Attributes:
        weight: the layer's own weight, which the float model holds anyway. It has no elements once it is dropped.
    """

    def __init__(self, layer: nn.Module) -> None:
        nn.Module.__init__(self)
        weight, bias = weight_of(layer), layer.bias
        assert bias is None or isinstance(bias, Tensor)
        self.out_features, self.in_features = weight.shape
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def drop_weight(self) -> "FloatLinear":
        """Keep only oneDNN's copy. The weight then has a dtype and a device, but no elements."""
        self.weight = nn.Parameter(self.weight.new_empty(0), requires_grad=False)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def prefers_onednn(weight: Tensor) -> bool:
    """Whether a linear layer of this weight should be a `FloatLinear` here."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and _onednn_is_faster()


@lru_cache(maxsize=1)
def _onednn_is_faster() -> bool:
    """Whether oneDNN is faster. A file keeps the answer of each machine, so that one machine always computes the same bits."""
    machine = f"{platform.node()} {torch.backends.cpu.get_cpu_capability()} {torch.__version__}"
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sqbench" / "float_kernel.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if machine in known:
        return bool(known[machine])
    ratio = _speedup()
    log.debug("oneDNN's float linear runs %.2f times as fast as torch's on this machine", ratio)
    try:
        write_text(path, json.dumps({**known, machine: ratio >= GAIN}, indent=1))
    except OSError as error:
        log.debug("cannot remember it: %s", error)
    return ratio >= GAIN


@torch.no_grad()
def _speedup() -> float:
    """torch's processor time divided by oneDNN's. One thread runs both in turns, so that other processes do not decide it."""
    rows, width, out = PROBE
    layer, x, threads = nn.Linear(width, out), torch.randn(rows, width), torch.get_num_threads()
    times: tuple[list[float], list[float]] = ([], [])
    torch.set_num_threads(1)
    try:
        packed = FloatLinear(layer)
        for turn in range(24):
            start = time.thread_time()
            (layer, packed)[turn % 2](x)
            times[turn % 2].append(time.thread_time() - start)
    except RuntimeError as error:  # a build of torch without oneDNN
        log.debug("no oneDNN: %s", error)
        return 0.0
    finally:
        torch.set_num_threads(threads)
    return statistics.median(times[0]) / statistics.median(times[1])
