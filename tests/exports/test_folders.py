"""The folder of an export: whole or absent, and free of what a killed process left."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sqbench.errors import UserError
from sqbench.exports.targets import save
from sqbench.formats.format import Format
from sqbench.formats.scheme import Scheme
from sqbench.models.language import LanguageModel
from sqbench.storage.locks import claim

SCHEME = Scheme("w8a16", Format(8, granularity="channel"))
Quantize = Callable[..., LanguageModel]


def test_what_a_killed_export_has_left_is_gone_after_the_next_one(quantize: Quantize, tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / ".out.claim").write_text(json.dumps({"host": socket.gethostname(), "pid": ended.pid, "since": 0}))
    (tmp_path / ".out.part").mkdir()
    (tmp_path / ".out.part" / "strange.safetensors").write_text("half")
    save(quantize(SCHEME), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert "strange.safetensors" not in [path.name for path in (tmp_path / "out").iterdir()]


def test_two_exports_at_once_do_not_mix(quantize: Quantize, tmp_path: Path) -> None:
    held = pytest.raises(UserError, match=r"out=.*out: another process computes it .*; wait for it, or use another folder")
    with claim(tmp_path / ".out.claim"), held:
        save(quantize(SCHEME), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
