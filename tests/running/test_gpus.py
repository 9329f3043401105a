"""One GPU for each of several points at once, by the environment of its process; CUDA itself is pretended."""

import pytest
import torch

from sqbench.running import gpus

INSTANCES = "MIG-a1,MIG-b2,MIG-c3"


@pytest.fixture
def machine(monkeypatch):
    """Makes a machine of some GPUs, with an environment that shows some of them."""

    def make(count, named=None):
        monkeypatch.delenv(gpus.VISIBLE, raising=False)
        shown = list(range(count))
        if named is not None:
            monkeypatch.setenv(gpus.VISIBLE, named)
            shown = []
            for name in named.split(","):  # as CUDA reads it: until the first that is not there, and of MIG instances one
                if not (name.startswith(("GPU-", "MIG-")) or (name.isdecimal() and int(name) < count)):
                    break
                shown.append(name)
            shown = shown[:1] if named.startswith("MIG-") else shown
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(shown))

    return make


def given(points):
    return [gpus.only(number).get(gpus.VISIBLE) for number in range(points)]


def test_twenty_points_on_eight_gpus_go_round(machine):
    machine(8)
    assert given(20) == [str(number % 8) for number in range(20)]


@pytest.mark.parametrize(("named", "expected"), [
    ("2,3", ["2", "3", "2"]),
    ("5", ["5", "5", "5"]),
    ("GPU-8932f937,GPU-11aa22bb", ["GPU-8932f937", "GPU-11aa22bb", "GPU-8932f937"]),
    (INSTANCES, ["MIG-a1", "MIG-b2", "MIG-c3"]),  # CUDA shows a process one of them: it is no reason to give all points the same
    ("1,9,0", ["1", "1", "1"]),  # there is no tenth: CUDA stops there, and 0 is not shown either
])  # fmt: skip
def test_what_the_environment_shows_is_what_is_shared(machine, named, expected):
    machine(8, named)
    assert given(3) == expected


@pytest.mark.parametrize(("count", "named"), [(0, None), (0, "0,1"), (8, ""), (8, "-1"), (8, "NoDevFiles")])
def test_without_gpus_nothing_is_said(machine, count, named):
    machine(count, named)
    assert given(3) == [None, None, None]
    assert gpus.visible() == []


def test_a_record_says_which_gpu(monkeypatch):
    class Properties:
        name, uuid = "H100", "8932f937-d72c"

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: {"cuda:1": Properties}[str(device)])
    assert gpus.name(torch.device("cuda:1")) == "cuda:1 H100 GPU-8932f937-d72c"
    assert gpus.name(torch.device("cpu")) == "cpu"
