"""What sessions of OpenVINO leave behind in their process."""

import subprocess
import sys

import pytest

pytest.importorskip("openvino")

INTERRUPTED = """
import faulthandler, gc, signal, torch
from sqbench.models.functions import Function
from sqbench.runtimes import RUNTIMES

faulthandler.enable()
runtime, rows = RUNTIMES["openvino"], torch.ones(2, 3)
graph = runtime.write(Function(torch.nn.Identity().eval(), {"rows": rows}, ("out",), {}), {})
sessions = [runtime.start(graph) for _ in range(2)]
assert all(session(rows)[0].equal(rows) for session in sessions)
while sessions:
    del sessions[0]
    gc.collect()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_a_signal_after_sessions_that_ended_in_order_is_received() -> None:
    """Each session once had an `openvino.Core` of its own, and the signal ended the process with a segmentation fault."""
    ended = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (0, "interrupted\n"), ended.stderr
