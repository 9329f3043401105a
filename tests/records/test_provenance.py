"""Where a record comes from, as it says itself."""

import pytest
import torch

from sqbench.records import provenance as module
from sqbench.records.provenance import peaks, provenance, reset_peaks


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda gpu: ["B", "A"][gpu])
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    module._static.cache_clear()
    yield
    module._static.cache_clear()


def test_threads_are_those_of_the_point_and_not_of_the_first_in_its_process(threads):
    found = []
    for number in (1, 2):
        torch.set_num_threads(number)
        found.append(provenance({}, [], None, "cpu")["hardware"]["threads"])
    assert found == [1, 2]


def test_every_gpu_of_a_process_is_named_and_counted(two_gpus, monkeypatch):
    forgotten = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", forgotten.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda gpu: [0, 7][gpu])  # device=cuda:1
    reset_peaks()
    assert forgotten == [0, 1]
    assert peaks()["peak_gpu_bytes"] == 7
    assert provenance({}, [], None, "cuda:1 A")["hardware"]["gpu"] == "A, B"


def test_the_command_computes_the_point_in_any_shell():
    assert provenance({}, ["a=b c"], None, "cpu")["command"] == "python -m sqbench.run 'a=b c'"
