"""The verbs, and the examples that the manual gives of them."""

import dataclasses
import itertools
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from labs import Lab, images, scheme

import sqbench
from sqbench import api
from sqbench.config import CONF_DIR
from sqbench.errors import UserError
from sqbench.evaluation import EVALUATIONS, evaluation_of
from sqbench.recipes.configured import method_names, named, recipe_of, scheme_of

PAGE = CONF_DIR.parent / "docs" / "api.md"


@pytest.mark.slow
def test_the_examples_of_the_manual_run(
    tiny_folder: Path,
    text_file: Path,
    tmp_path: Path,
    vit: Lab,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # where an example writes its folder
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in examples[0].splitlines() if line.strip()]) <= 10
    verbs = ("load", "calibrate", "quantize", "save", "train", "evaluate", "allocate")
    assert [verb for verb, code in zip(verbs, examples[1:], strict=True) if f"sqbench.{verb}(" not in code] == []
    small = [f"model.name={tiny_folder}", f"data.path={text_file}", "data.window=64", "data.windows=4", "calibration.windows=4"]

    def load(*overrides: str) -> tuple[object, object]:
        if "model=vit_nano" in overrides:
            return vit.model, SimpleNamespace(calibration=images(40, 1).inputs(40), training=images(256, 1))
        return api.load("model=hf", "data=text", *small)

    monkeypatch.setattr(sqbench, "load", load, raising=False)
    known: dict[str, object] = {}
    for code in examples:
        exec(compile(code, PAGE.name, "exec"), known)  # noqa: S102 (our own text)
    printed = capsys.readouterr().out
    assert "awq" in printed
    assert "gradient steps" in printed
    assert re.search(r"\d\.\d", printed)


def test_the_package_offers_its_verbs_only() -> None:
    assert sqbench.quantize is api.quantize
    with pytest.raises(AttributeError, match="has no attribute 'prune'"):
        sqbench.prune  # noqa: B018


@pytest.mark.parametrize("name", EVALUATIONS)
def test_an_evaluation_has_the_defaults_of_the_command_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in EVALUATIONS[name].kinds:
        defaults = evaluation_of(api.compose_config("model.name=x", f"eval={name}").eval, kind).used()
        keys = list(defaults)
        seen: dict[str, object] = {}
        fake = dataclasses.replace(EVALUATIONS[name], run=lambda *arguments, seen=seen, **settings: seen.update(settings))
        monkeypatch.setitem(EVALUATIONS, name, fake)
        api.evaluate(SimpleNamespace(kind=kind, name="x"), None, name=name)  # type: ignore[arg-type]
        assert seen == defaults
        if keys:
            changed = "changed"
            api.evaluate(SimpleNamespace(kind=kind, name="x"), None, name=name, **{keys[0]: changed})  # type: ignore[arg-type]
            assert seen == defaults | {keys[0]: changed}


def test_what_an_evaluation_does_not_know_is_refused(tiny, windows) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=r"promt=3: did you mean prompt\? known: batch, beams, chat, decode, prompt"):
        sqbench.evaluate(tiny, windows, name="generation", promt=3)
    with pytest.raises(UserError, match="name=top1: is for images, tiny reads text"):
        sqbench.evaluate(tiny, windows, name="top1")


def test_calibration_has_the_defaults_of_the_command_line(tiny, windows, vit: Lab) -> None:  # type: ignore[no-untyped-def]
    cfg = api.compose_config("model.name=x").calibration
    assert len(api.calibrate(tiny, windows.calibration).sample) == cfg.search_windows
    assert len(api.calibrate(vit.model, images(40, 1).inputs(40)).sample) == cfg.search_images


def test_training_and_quantizing_are_told_apart(tiny, statistics) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=r"takes gradient steps.*sqbench\.train"):
        sqbench.quantize(tiny, statistics, "qat")
    with pytest.raises(UserError, match=r"takes no gradient steps.*sqbench\.quantize"):
        sqbench.train(tiny, statistics, None, "minmax")


def test_training_in_a_notebook(vit: Lab) -> None:
    model = sqbench.train(vit.model, vit.statistics, images(256, 1), "qat", scheme(4, 4), epochs=1)
    assert model.report["gradient_steps"] == 230 // 64


def test_every_method_has_its_two_files_and_every_yaml_composes() -> None:
    names = {path.stem for path in (CONF_DIR / "method").glob("*.yaml")}
    assert names == set(method_names())
    for name in names:
        cfg = api.compose_config(f"method={name}")
        assert recipe_of(cfg) == named(name)
        assert scheme_of(cfg).name == cfg.method.natural.name
    for path in (CONF_DIR / "bits").glob("*.yaml"):
        cfg = api.configure("method=minmax", f"bits={path.stem}")
        assert scheme_of(cfg).name == ("w8a8" if path.stem == "auto" else path.stem)


@pytest.mark.parametrize("path", sorted((CONF_DIR / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_composes_and_says_how_to_run_it(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    header = "\n".join(itertools.takewhile(lambda line: line.startswith("#"), lines))
    assert re.search(rf"Run: +python -m sqbench\.(run|plot \w+) experiment={path.stem}\b", header)
    assert "Shows:" in header
    assert "Time:" in header
    if path.stem.startswith("lab_"):
        assert "ImageNet" in header
    api.configure(f"experiment={path.stem}")


def test_a_natural_scheme_gives_way_to_explicit_bits() -> None:
    assert scheme_of(api.configure("method=smoothquant")).name == "w8a8_dynamic"
    assert scheme_of(api.configure("method=smoothquant", "bits=w8a8")).activations is not None
    assert scheme_of(api.configure("method=awq", "bits.weights.group_size=128", "bits=w4a16")).weights.group_size == 128  # type: ignore[union-attr]
    assert scheme_of(api.configure("method=fp", "bits=w4a4")).is_float


def test_parameters_reach_the_method(tiny, statistics) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=r"method\.percentile=3"):
        sqbench.quantize(tiny, statistics, "percentile", percentile=3)
    with pytest.raises(Exception, match="percentil"):
        sqbench.quantize(tiny, statistics, "percentile", percentil=99)
