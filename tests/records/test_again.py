"""The line that makes a point again gives the record's own settings, whatever the defaults are today."""

import shlex
from dataclasses import replace

import pytest
from examples import made
from omegaconf import OmegaConf

from sqbench.config import compose_config
from sqbench.records.again import again
from sqbench.records.record import Record

LINE = "python -m sqbench.run method=rtn bits=w4a16 'data.path=a b'"


def of_today(*changes: str) -> Record:
    """A record of `LINE` whose settings differ from those that the line gives today."""
    config = OmegaConf.to_container(compose_config(*shlex.split(LINE)[3:], *changes), resolve=True)
    return made("rtn", "w4a16", config=config, provenance__command=LINE)


def test_a_line_that_gives_the_same_settings_stays() -> None:
    assert again(of_today()) == LINE
    assert again(of_today("results_dir=elsewhere", "retry=2", "threads=1")) == LINE


def test_defaults_that_have_changed_since_are_given() -> None:
    line = again(of_today("data.windows=8", "calibration.source=random", "eval.level=0.9"))
    assert line.startswith(LINE + " ")
    cfg = compose_config(*shlex.split(line)[3:])
    assert (cfg.data.windows, cfg.calibration.source, cfg.eval.level, cfg.data.path) == (8, "random", 0.9, "a b")


def test_windows_are_nothing_to_a_model_of_images() -> None:
    record = of_today("data.windows=8")
    record = replace(record, identity={**record.identity, "data": {"test": "b" * 64, "images": 100}})
    assert again(record) == LINE


@pytest.mark.parametrize(
    "command", ["", "pytest", "python -m sqbench.run method=gone bits=w4a16", "python -m sqbench.run no.such=1"]
)
def test_a_line_that_no_longer_composes_stays(command: str) -> None:
    assert again(made(provenance__command=command)) == command
