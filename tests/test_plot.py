"""`python -m sqbench.plot` from its arguments to its files."""

import json
import logging
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from cli import ROOT, Ended, tiny_run
from examples import build, write
from PIL import Image

from sqbench import plot
from sqbench.plot import KINDS, LayerConfig, RecordsConfig, parsed, usage
from sqbench.reporting import style

UP = "model.layers.0.mlp.up_proj"
NOISE = {"per_layer": [{"layer": name, "weight_sqnr_db": 40.0, "input_sqnr_db": 30.0} for name in "abc"]}


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Ended]]:
    """The command line inside this process; logging and environment are put back."""
    monkeypatch.setattr(style, "DPI", 80)
    logger, before = logging.getLogger("sqbench"), dict(os.environ)
    state = logger.handlers[:], logger.propagate, logger.level

    def run(*arguments: str) -> Ended:
        capsys.readouterr()
        code = plot.main(arguments)
        said = capsys.readouterr()
        return Ended(code, said.out, said.err)

    yield run
    logger.handlers[:], logger.propagate = state[0], state[1]
    logger.setLevel(state[2])
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def tiny_plot(call: Callable[..., Ended], tiny_folder: Path, text_file: Path, results: Path) -> Callable[..., Ended]:
    """A picture of the tiny model."""
    return lambda kind, *more: call(kind, *tiny_run(tiny_folder, text_file, results, "tokens=12", "channels=12", *more))


@pytest.fixture
def points(results: Path) -> Path:
    """A folder with records of a small sweep."""
    write(results, *(build(alpha=alpha, perplexity=15 + alpha, quantized=NOISE) for alpha in (0.3, 0.5, 0.8)))
    write(results, build("rtn", perplexity=16.4, quantized=NOISE), build("awq", "w4a16", 0.5, status="failed"))
    return results


def check_files(done: Ended, folder: Path, *stems: str, kinds: tuple[str, ...] = ("png", "svg")) -> None:
    """Every picture is there in every kind, was named on stdout, and opens; and nothing else is there."""
    paths = [folder / f"{stem}.{kind}" for stem in stems for kind in kinds]
    assert done.out.splitlines()[-len(paths) :] == [str(path) for path in paths]
    assert sorted(folder.iterdir()) == sorted(paths)
    for path in paths:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert image.width == style.WIDTH * style.DPI
        elif path.suffix == ".svg":
            assert ElementTree.parse(path).getroot().tag.endswith("svg")


@pytest.mark.slow
def test_distributions(tiny_plot: Callable[..., Ended], results: Path, tiny_folder: Path) -> None:
    done = tiny_plot("distributions", f"layer={UP}", "alpha=0.5")
    assert (done.code, done.err) == (0, "")
    stem = f"distributions-{tiny_folder.name}-{UP}"
    check_files(done, results / "plots", stem, kinds=("png", "svg", "json"))
    numbers = json.loads((results / "plots" / f"{stem}.json").read_text(encoding="utf-8"))
    original, smoothed = (state["activation"] for state in numbers["states"])
    assert np.shape(original["z"]) == (len(original["rows"]), len(original["columns"])) == (12, 12)
    assert np.max(original["z"]) > 4 * np.max(smoothed["z"]) > 0  # the planted outliers, and what smoothing left of them
    lines = done.out.splitlines()
    assert lines[0].startswith("input: largest channel / median channel: original ")
    before, after = (float(part.split()[-1]) for part in lines[0].split(","))
    assert before > 10 > 3 > after
    assert lines[2] == "Smoothed: model.layers.0.post_attention_layernorm -> gate_proj, up_proj, alpha 0.5"


@pytest.mark.slow
def test_divided(tiny_plot: Callable[..., Ended], results: Path, tiny_folder: Path) -> None:
    done = tiny_plot("divided", "alpha=0.5", f"layer={UP}")
    assert (done.code, done.err) == (0, "")
    check_files(done, results / "plots", f"divided-{tiny_folder.name}-model.layers.0.post_attention_layernorm")
    assert "weight column absmax" in done.out
    assert "fold error of the float model's output: " in done.out


@pytest.mark.parametrize(
    ("kind", "stem"), [("alpha", "alpha-perplexity-smollm2"), ("pareto", "pareto-perplexity-smollm2"), ("layers", "layers-smollm2")]
)
def test_pictures_of_records(call: Callable[..., Ended], points: Path, kind: str, stem: str) -> None:
    done = call(kind, f"results_dir={points}")
    assert (done.code, done.err) == (0, "")
    check_files(done, points / "plots", stem)


def test_filters_formats_and_metric(call: Callable[..., Ended], points: Path) -> None:
    done = call(
        "pareto", f"results_dir={points}", "metric=agreement", "where.method=[rtn,smoothquant]", "where.alpha=0.50", "formats=[pdf]"
    )
    assert (done.code, done.err) == (0, "")
    assert [path.name for path in (points / "plots").iterdir()] == ["pareto-agreement-smollm2.pdf"]


BAD_MODEL = [
    (("distributions",), r"layer=\?\?\?: distributions needs the name of a layer"),
    (("distributions", f"layer={UP[:-1]}"), rf"layer={UP[:-1]}: did you mean {UP}, "),
    (("distributions", f"layer={UP}", "alpha=2"), "alpha=2: must be a number from 0 to 1"),
    (("distributions", f"layer={UP}", "alpha=0.1,0.2"), "alpha=0.1,0.2: must be one value, one picture has one"),
    (("distributions", f"layer={UP}", "tokens=1"), "tokens=1: must be 2 or more"),
    (("distributions", f"layer={UP}", "tokens=many"), "tokens=many: must be a whole number"),
    (("distributions", f"layer={UP}", "chanels=3"), r"chanels=3: did you mean channels\?"),
    (("distributions", f"layer={UP}", "formats=[gif]"), r"formats=\[gif\]: unknown gif; .*known: pdf, png, svg"),
    (("distributions", f"layer={UP}", "formats=[]"), r"formats=\[\]: one of them at least"),
    (("distributions", f"layer={UP}", "bits=w9a9"), "w9a9"),
    (("divided", "layer=nothing"), "Groups: model.layers.0.input_layernorm -> q_proj, k_proj, v_proj; "),
    (("divided", "method=rtn"), "method=rtn: moves nothing between"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_MODEL, ids=lambda value: " ".join(value) if isinstance(value, tuple) else "")
def test_what_no_picture_of_a_model_can_be_made_of(
    tiny_plot: Callable[..., Ended], results: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = tiny_plot(*arguments)
    assert (done.code, done.out) == (2, "")
    assert re.match(f"error: .*{message}", done.err, re.DOTALL)
    assert "Traceback" not in done.err
    assert not (results / "plots").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "kind missing: known: alpha, distributions, divided, layers, pareto"),
        (("distribution",), "kind distribution: did you mean distributions? known: "),
        (("alpha", "model=hf"), "model=hf: did you mean where.model? known: "),
        (("alpha", "metrc=x"), "metrc=x: did you mean metric? known: "),
        (("alpha", "where.methd=x"), "where.methd=x: did you mean where.method? known: "),
        (("alpha", "metric=perplexty"), "metric=perplexty: did you mean perplexity? known: "),
        (("alpha", "where.method=rtm"), "where.method=rtm: did you mean rtn? known: "),
        (("alpha", "where.method=rtn", "where.alpha=0.5"), "where.method=[rtn], where.alpha=[0.5]: no point matches all of them"),
        (("alpha", "where.method=rtn"), "alpha: no finished point has an alpha; "),
        (("pareto", "metric=weight_bytes"), "metric=weight_bytes: a picture against weight bytes needs points that have both"),
        (("alpha", "=3"), ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_no_picture_of_records_can_be_made_of(
    call: Callable[..., Ended], points: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = call(*arguments[:1], *([f"results_dir={points}"] if arguments else []), *arguments[1:])
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {message}")
    assert not (points / "plots").exists()


def test_missing_and_empty_folders_are_told_apart_and_left_alone(call: Callable[..., Ended], tmp_path: Path) -> None:
    missing = call("alpha", f"results_dir={tmp_path / 'no'}")
    assert missing.code == 2
    assert f"results_dir={tmp_path / 'no'}: no such folder" in missing.err
    assert "no readable record in its runs/" in call("alpha", f"results_dir={tmp_path}").err
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_kind_and_key(call: Callable[..., Ended]) -> None:
    done = call("alpha", "--help")
    assert (done.code, done.err, done.out) == (0, "", usage())
    for name in (*KINDS, *vars(LayerConfig()), *vars(RecordsConfig())):
        assert name in done.out


def test_own_keys_are_told_from_those_of_a_run() -> None:
    config, rest = parsed(KINDS["divided"], ["layer=a.b", "model=hf", "alpha=0.5", "method.pairs=true", "examples=3"])
    assert config == LayerConfig(layer="a.b", examples=3)
    assert rest == ["model=hf", "alpha=0.5", "method.pairs=true"]


@pytest.mark.slow
def test_pictures_of_records_need_no_torch_and_leave_no_trace(points: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    cwd = tmp_path_factory.mktemp("cwd")
    code = "import sys; from sqbench.plot import main; code = main(); assert 'torch' not in sys.modules; sys.exit(code)"
    line = [sys.executable, "-c", code, "alpha", f"results_dir={points}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    done = subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(cwd.iterdir()) == []
