"""What all command lines share: one plain line and status 2 for bad input, our own version, a help that names every key."""

import importlib
import logging
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from cli import Ended, put_back
from examples import build, made, write

import sqbench
from sqbench import config
from sqbench.api import compose_config, configure
from sqbench.errors import UserError
from sqbench.reporting.frame import results_frame
from sqbench.sweeps import sweep

Start = Callable[..., Ended]
COMMANDS = ("run", "collect", "report", "recommend", "claims.__main__", "formats.__main__", "plot", "points", "export")
READERS = {"collect": (), "report": (), "recommend": (), "plot": ("alpha",), "points": ()}


@pytest.fixture
def start(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Start]:
    """Any command line, inside this process and in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def run(name: str, *words: str) -> Ended:
        capsys.readouterr()
        sys.argv = [f"sqbench.{name}", *words]
        try:
            code: Any = importlib.import_module(f"sqbench.{name}").main()
        except SystemExit as end:
            code = end.code or 0
        said = capsys.readouterr()
        return Ended(code, said.out, said.err)

    with put_back():
        yield run


@pytest.mark.parametrize("name", COMMANDS)
def test_the_version_is_ours(start: Start, name: str) -> None:
    assert start(name, "--version") == Ended(0, f"sqbench {sqbench.__version__}\n", "")


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("collect", "metrik=top1", "metrik=top1: did you mean metric? known: caption, columns, label, metric, "),
        ("collect", "model=vit_nano", "model=vit_nano: did you mean where.model? known: "),
        ("collect", "where.methd=rtn", "where.methd=rtn: did you mean where.method? known: activations, alpha, "),
        ("collect", "where.methd=rtn,awq", "where.methd=rtn,awq: must be one value; a list is where.methd=[rtn,awq]"),
        ("collect", "rows=method,bits", "rows=method,bits: must be one value; a list is rows=[method,bits]"),
        ("collect", "style=papr", "style=papr: did you mean paper? known: paper, plain"),
        ("recommend", "max_loss=x", "max_loss=x: must be a number or null"),
        ("recommend", "max_los=1", "max_los=1: did you mean max_loss? known: "),
        ("report", "port=x", "port=x: must be a whole number"),
        ("report", "watch=perhaps", "watch=perhaps: must be true or false"),
        ("claims.__main__", "plan=perhaps", "plan=perhaps: must be true or false"),
        ("claims.__main__", "onyl=[a]", "onyl=[a]: did you mean only? known: "),
        ("formats.__main__", "only=[mxfp5]", "only=[mxfp5]: did you mean mxfp"),
        ("run", "bits=W4A16", "bits=W4A16: what other tools call so is bits=w4a16_g128_sym bits.as=compressed-tensors here; "),
        ("plot", "alpha metrik=top1", "metrik=top1: did you mean metric? known: formats, metric, results_dir, where"),
        ("plot", "alpha where.methd=rtn", "where.methd=rtn: did you mean where.method? known: "),
        ("plot", "divided tokens=x", "tokens=x: must be a whole number"),
        ("plot", "divided methd=rtn", "methd=rtn: "),
        ("plot", "divided method=smothquant", "method=smothquant: did you mean smoothquant? known: "),
        ("plot", "divided data.windws=3", "data.windws=3: data=pydoc has no data.windws; did you mean windows?"),
        ("points", "where.methd=rtn", "where.methd=rtn: did you mean where.method? known: "),
        ("points", "clean failed yes=maybe", "yes=maybe: must be true or false"),
    ],
)
def test_what_cannot_be_composed_ends_in_one_plain_line(start: Start, name: str, words: str, said: str) -> None:
    ended = start(name, *words.split())
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1), ended.err
    assert ended.err.startswith(f"error: {said}"), ended.err
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize("name", READERS)
def test_a_folder_of_results_folders_is_listed(start: Start, name: str) -> None:
    for folder in ("all/first", "all/more/second one"):
        write(Path(folder), build("rtn"))
    ended = start(name, *READERS[name], "results_dir=all")
    command = f"python -m sqbench.{name}" + " KIND" * (name == "plot")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        "error: results_dir=all: is no results folder, and holds 2:\n"
        f"{command} results_dir=all/first\n{command} 'results_dir=\"all/more/second one\"'\n"
    )


def keys(schema: type) -> Iterator[str]:
    """Every key of a schema, those of a group under its name."""
    for item in fields(schema):  # type: ignore[arg-type]
        hint = get_type_hints(schema)[item.name]
        inner = next((part for part in (hint, *get_args(hint)) if is_dataclass(part)), None)
        yield item.name
        yield from (f"{item.name}.{key}" for key in (keys(inner) if inner else ()))  # type: ignore[arg-type]


def named(text: str) -> Iterator[str]:
    """The keys in the first column of a help: `.b` after `a.x` is `a.b`."""
    for line in text.splitlines():
        group = ""
        for word in line[:34].split():
            group = group if word.startswith(".") else word.rpartition(".")[0]
            yield f"{group}{word}" if word.startswith(".") else word


def test_help_names_every_key_of_a_run(start: Start) -> None:
    ended = start("run", "--help")
    assert (ended.code, ended.err) == (0, "")
    assert len(ended.out.splitlines()) <= 70
    assert max(map(len, ended.out.splitlines())) <= 100
    given = ("model", "data", "method", "bits", "eval", "calibration", "limits")  # by a heading or by their fields
    wanted = {key.replace("bits.activations.", "bits.weights.") for key in keys(config.RunConfig)}
    fields_of_formats = set(named(start("formats.__main__", "--help").out))
    assert wanted - set(named(ended.out)) - fields_of_formats - set(given) == set()
    assert all(f"{group}=NAME" in ended.out for group in ("model", "data", "method", "bits", "eval"))


def test_formats_are_listed_and_drawn(start: Start, tmp_path: Path) -> None:
    ended = start("formats.__main__", "only=[nvfp4a16,nf4,w4a16]", "draw=true", "formats=[png]", f"results_dir={tmp_path}")
    assert (ended.code, ended.err) == (0, "")
    lines = [line.split() for line in ended.out.splitlines()]
    assert ["nvfp4a16", "4.5"] in [line[:2] for line in lines]
    assert ["w4a16", "4.56"] in [line[:2] for line in lines]
    assert (tmp_path / "plots" / "formats.png").stat().st_size > 10_000


def test_a_label_stands_in_tables_in_place_of_the_name() -> None:
    old, labelled = made("rtn"), made("awq")
    labelled.config["model"]["label"] = "my model"
    models = set(results_frame([old, labelled])["model"])
    assert models == {old.config["model"]["name"], "my model"}


def test_a_progress_line_carries_the_other_keys_that_vary() -> None:
    words = ("method=rtn", "alpha=0.5", "seed=1", "data.windows=8", "results_dir=x")
    assert sweep.told(words, ["method", "alpha", "seed", "data.windows"]) == "seed=1 data.windows=8 "
    assert sweep.told(words, [""]) == ""


def test_what_is_loaded_is_said_before_it_is_imported(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("sqbench"), "propagate", True)
    cfg = compose_config("model=hf", "data=pydoc")
    monkeypatch.setitem(sys.modules, "torch", sweep)
    sweep.announce(cfg)
    assert caplog.text == ""  # everything is there already
    monkeypatch.delitem(sys.modules, "torch")
    with caplog.at_level(logging.INFO, "sqbench"):
        sweep.announce(cfg, ["model=hf", "model.name=a,b", "seed=1,2"])
    assert "loading PyTorch, then model=a,b data=pydoc" in caplog.text


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("+windos=1", "windos: did you mean widths?"),
        ("+data.windos=1", "data.windos: did you mean window"),
        ("+bits.weights.group=2", "bits.weights.group: did you mean group_size?"),
        ("+eval.wramup=1", "eval.wramup: did you mean warmup?"),
    ],
)
def test_a_key_that_nothing_reads_is_refused_after_a_plus_too(override: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        configure("bits=w4a16", override)
