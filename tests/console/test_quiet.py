import logging

import pytest
from cli import put_back

from sqbench.console.quiet import begin, quiet


def test_a_warning_is_printed_once_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("sqbench.any")
    with put_back():
        begin()
        for _ in range(3):
            quiet()  # of every point
            log.warning("%d layers are simulated", 7)
            log.info("done")
        log.warning("%d layers are simulated", 8)
        assert capsys.readouterr().err.split("\n") == ["7 layers are simulated", *["done"] * 3, "8 layers are simulated", ""]
        begin()
        log.warning("%d layers are simulated", 7)
        assert "7 layers" in capsys.readouterr().err
