"""The manual says what the code does: keys, names, commands and files; and it builds, without a warning and without a network."""

import ast
import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import typing
from html.parser import HTMLParser
from pathlib import Path

import pytest
from cli import ROOT, environment
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from benchmarks.launchers import PLUGINS
from sqbench import config, export, plot, points
from sqbench.comparison.significance import mcnemar
from sqbench.config import CONF_DIR, FormatConfig, RunConfig
from sqbench.errors import UserError
from sqbench.recipes.configured import method_names, named
from sqbench.records.store import Store
from sqbench.running import checks
from sqbench.running.resolved import resolve
from sqbench.runtimes import RUNTIMES
from sqbench.search.space import space_of

DOCS = ROOT / "docs"
PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))}
TEXT = "\n".join(PAGES.values())
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def keys_of(schema: type, prefix: str = "") -> set[str]:
    """Dotted names of everything that a configuration may set."""
    found = set()
    for name, hint in typing.get_type_hints(schema).items():
        inner = next((part for part in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(part)), None)
        found |= {prefix + name} if inner is None else keys_of(inner, f"{prefix}{name}.") | {prefix + name}
    return found


KEYS = keys_of(RunConfig)
# Both formats have the same fields: one table explains them.
FORMATS = {f"bits.{side}.{name}" for side in ("weights", "activations") for name in keys_of(FormatConfig)}


def mentioned(name: str) -> bool:
    return re.search(rf"[`\s,|]{re.escape(name)}[`=,\s]", TEXT) is not None


@pytest.mark.parametrize("key", sorted(KEYS - FORMATS))
def test_a_key_is_explained(key):
    assert re.search(rf"`{re.escape(key)}[`=]", TEXT), f"no page mentions `{key}`"


@pytest.mark.parametrize("field", sorted(keys_of(FormatConfig) - {"scale"}))
def test_a_field_of_a_format_is_explained(field):
    assert re.search(rf"`bits\.(weights|activations)\.{field}`", TEXT)


def test_no_page_names_a_key_that_is_not_there():
    roots = "|".join(sorted(key for key in KEYS if any(other.startswith(f"{key}.") for other in KEYS)))
    named = set(re.findall(rf"`((?:{roots})\.[a-z_.]+)[`=]", TEXT))
    assert named - KEYS == set()


@pytest.mark.parametrize("group", ["method", "eval", "bits", "model", "data", "tracker"])
def test_a_choice_is_named(group):
    missing = [path.stem for path in sorted((CONF_DIR / group).glob("*.yaml")) if not mentioned(path.stem)]
    assert missing == []


@pytest.mark.parametrize("method", method_names())
def test_a_method_has_a_page_with_its_parameters(method):
    page = next(text for name, text in PAGES.items() if name.startswith("docs/methods/") and re.match(rf"# .*\b{method}\b", text))
    recipe = named(method)
    for part in recipe.parts:
        told = page + "".join(base.__doc__ or "" for base in type(part).__mro__[:-2])
        assert [item.name for item in dataclasses.fields(part) if not re.search(rf"\b{item.name}\b", told)] == []
    assert "*Limits.*" in page or recipe.is_float
    assert "```math" in page or recipe.is_float


def commands(text: str) -> list[str]:
    """Command lines in fences, with what a backslash continues."""
    lines = (line for language, body in FENCE.findall(text) if language == "sh" for line in body.replace("\\\n", " ").splitlines())
    return [line.partition("  #")[0].strip() for line in lines if line.strip()]


QUOTED = [
    pytest.param(name, line, marks=[pytest.mark.slow] if line.startswith("python docs/examples/") else [])
    for name, text in PAGES.items()
    for line in commands(text)
]


@pytest.mark.parametrize(("page", "line"), QUOTED, ids=lambda value: str(value)[:80])
def test_a_quoted_command_can_be_given(page, line, tmp_path, monkeypatch):
    words = shlex.split(line)
    if words[0] == "sbatch":
        words = shlex.split(words[words.index("--wrap") + 1])
    for launcher in re.findall(r"hydra/launcher=(\w+)", line):
        if importlib.util.find_spec(PLUGINS[launcher]) is None:
            pytest.skip(f"{PLUGINS[launcher]} is not installed")
    for runtime in RUNTIMES.values():
        if re.search(rf"backend=\S*{runtime.name}", line):
            pytest.importorskip(runtime.package)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]), line
        accepted = {"sqbench.run": composes, "sqbench.plot": draws, "sqbench.points": asks, "sqbench.export": exports}.get(words[2])
        if accepted:
            accepted(words[3:])
        elif words[2].startswith("sqbench."):
            reads(words[2], words[3:])
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
        with_example(ROOT / words[1], words[2:])
    else:
        assert words[0] in ("pip", "wandb", "."), f"{page} quotes {line}, and nothing here checks it"


def each_value_once(jobs: list[list[str]]) -> list[list[str]]:
    """Those jobs of a sweep that bring a value of a key for the first time."""
    seen: set[str] = set()
    kept = []
    for job in jobs:
        if not seen.issuperset(job):
            kept.append(job)
            seen.update(job)
    return kept


def composes(words: list[str], searched: str | None = None) -> None:
    """A run's overrides, of a sweep every value once, without loading anything. Files that are not there are the reader's."""
    overrides = [word for word in words if not word.startswith("-")]
    parsed = OverridesParser.create().parse_overrides(overrides)
    jobs = [overrides]
    if "hydra/sweeper=search" in words:
        space = space_of(parsed)
        jobs = [space.overrides(corner) for corner in space.corners()]
    elif "-m" in words:
        jobs = each_value_once([list(job) for batch in BasicSweeper.split_arguments(parsed, None) for job in batch])
    config.register()
    more = [path.stem for path in Path(searched or "-").glob("method/*.yaml")]  # Hydra itself would find them in `--config-dir`
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "methods_at_hand", lambda: [*method_names(), *more])
        for job in jobs:
            cfg = compose("config", [*job, *([f"hydra.searchpath=[{searched}]"] if searched else [])])
            trouble = refusal(cfg)
            assert re.search(r"^$|no such file|layers=each", trouble), f"{job}: {trouble}"


def refusal(cfg: DictConfig) -> str:
    """Why a configuration is refused, empty if it is not."""
    try:
        checks.check(resolve(cfg))
    except UserError as error:
        return str(error)
    return ""


def asks(words: list[str]) -> None:
    verb, names, _ = points.parsed(words)
    assert len(names) == {"list": 0, "show": 1, "diff": 2, "why": 1}.get(verb, len(names))


def exports(words: list[str]) -> None:
    name, config = export.parsed(words)
    assert name
    assert config.out


def draws(words: list[str]) -> None:
    kind = plot.KINDS[words[0]]
    _, rest = plot.parsed(kind, words[1:])
    if rest:
        composes(rest)


def reads(name: str, words: list[str]) -> None:
    """The keys of a command that reads records, whose schema comes with its module."""
    module = importlib.import_module(name)
    if hasattr(module, "__path__"):
        importlib.import_module(f"{name}.__main__")
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        compose(name.removeprefix("sqbench."), words)


def with_example(script, words: list[str]) -> None:
    """A line that starts an example: in a process of its own, because examples make names known for good."""
    folder = words[words.index("--config-dir") + 1]
    kept = [word for word in words if word not in ("--config-dir", folder)]
    code = "import json, runpy, sys; sys.path[:0] = sys.argv[1:3]; runpy.run_path(sys.argv[3]); import test_pages"
    code += "; test_pages.composes(json.loads(sys.argv[4]), sys.argv[5])"
    paths = [str(ROOT / "tests"), str(ROOT / "tests" / "docs")]
    line = [sys.executable, "-c", code, *paths, str(script), json.dumps(kept), str(ROOT / folder)]
    done = subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if "```python\n" in text])
def test_python_in_a_page_is_python(page):
    for language, body in FENCE.findall(PAGES[page]):
        if language == "python" and not body.startswith("--8<--"):
            ast.parse(body)


def test_the_example_of_paired_tests_is_computed():
    told = re.search(r"Of ([\d,]+) images let one lose (\d+) answers and gain (\d+)", PAGES["docs/tables.md"])
    count, lost, gained = (int(number.replace(",", "")) for number in told.groups())
    before, after = 0.8, 0.8 - (lost - gained) / count
    pooled = (before + after) / 2
    z = (before - after) / math.sqrt(2 * pooled * (1 - pooled) / count)
    unpaired, paired = math.erfc(z / math.sqrt(2)), mcnemar(gained, lost)
    assert f"(p = {unpaired:.1g}), the paired one is certain (p = {paired:.0e})" in re.sub(r"\s+", " ", PAGES["docs/tables.md"])


@pytest.fixture
def point(command, results):
    """A finished point."""
    assert command("method=rtn", "bits=w8a16").code == 0
    (record,) = Store(results).records()
    return record


def test_the_page_of_records_has_the_keys_of_a_record(point):
    section = PAGES["docs/records.md"].partition("## record.json")[2].partition("\n## ")[0]
    table = re.findall(r"^\| (`[^|]+`) +\|(.*)\|$", section, re.MULTILINE)
    named = {name: rest for cell, rest in table for name in re.findall(r"`(\w+)`", cell)}
    assert set(named) == {*point.to_json(), "checksum"}
    for part, inside in (("delta", point.delta["perplexity"]), ("quantized", point.quantized)):
        words = set(re.findall(r"\w+", named[part]))
        assert {key for key in inside if key not in words} <= {"fused"}, part


def test_the_page_of_records_reads_them(point, results, monkeypatch, capsys):
    monkeypatch.chdir(results.parent)
    (code,) = [body for language, body in FENCE.findall(PAGES["docs/records.md"]) if language == "python"]
    exec(compile(code, "records.md", "exec"), {})  # noqa: S102 (our own text)
    assert point.point_id in capsys.readouterr().out


def test_samples_have_the_columns_that_the_page_lists(point, results):
    import pandas as pd

    columns = pd.read_parquet(results / "runs" / point.point_id / "samples.parquet").columns
    listed = re.search(r"^\| perplexity \| a window \| `([^`]+)`", PAGES["docs/records.md"], re.MULTILINE)
    assert set(columns) == set(listed[1].split())


README = (ROOT / "README.md").read_text(encoding="utf-8")
QUOTING = {"README.md": README} | {name: PAGES[f"docs/{name}"] for name in ("lab.md", "commands.md", "tutorial.md")}
COMMITTED = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "results" / "reference").glob("*/**/*.md"))]
BRACKETS = re.compile(r"\[-?\d[\d.e+-]*, -?\d[\d.e+-]*\]")  # an interval


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().strip("|").split("|")]


@pytest.mark.parametrize("page", QUOTING)
def test_a_quoted_interval_is_one_of_a_committed_result(page):
    known = set(BRACKETS.findall("\n".join(COMMITTED)))
    assert set(BRACKETS.findall(QUOTING[page])) - known == set()


@pytest.mark.parametrize("page", ["README.md", "lab.md"])
def test_a_quoted_row_is_one_of_a_committed_table(page):
    known = [cells(row) for text in COMMITTED for row in text.splitlines() if row.startswith("|")]
    told = re.compile(rf"{BRACKETS.pattern[:-2]}.*\)|^\d+\.\d+$")
    quoted = [cells(row) for row in QUOTING[page].splitlines() if row.startswith("|")]
    rows = [row for row in quoted if any(told.search(cell) for cell in row)]
    assert len(rows) >= 3
    for row in rows:
        assert any(set(row) <= set(other) for other in known), row


def test_the_readme_is_short_and_its_links_lead_somewhere():
    assert len(README.splitlines()) <= 110
    linked = re.findall(r"\]\(([^)#]+)", README)
    assert [name for name in linked if not name.startswith("http") and not (ROOT / name).exists()] == []
    tree = re.search(r"```text\n(.*?)```", README, re.DOTALL)[1]
    assert [line.split()[0] for line in tree.splitlines() if not (ROOT / line.split()[0]).exists()] == []


def test_the_tree_of_the_rooms_names_all_of_them():
    tree = re.search(r"```text\nsqbench/\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    rooms = {path.parent.name for path in (ROOT / "sqbench").glob("*/__init__.py")}
    rooms |= {path.parent.name for path in (ROOT / "sqbench").glob("*/*.py")}
    assert rooms - set(re.findall(r"(\w+)/", tree)) == set()
    modules = {path.stem for path in (ROOT / "sqbench").glob("*.py")} - {"faults"}  # for tests alone
    assert modules - set(re.findall(r"\w+", tree)) == set()


@pytest.mark.parametrize("line", commands(README), ids=lambda line: line[:80])
def test_a_command_of_the_readme_can_be_given(line, tmp_path, monkeypatch):
    test_a_quoted_command_can_be_given("README.md", line, tmp_path, monkeypatch)


@pytest.mark.slow  # it starts Python and reads records: some seconds
def test_the_quoted_recommendation_is_what_the_command_prints():
    line, printed = re.search(
        r"```sh\n(python -m sqbench\.recommend [^\n]+)\n```\n\n```text\n(.*?)```", PAGES["docs/commands.md"], re.DOTALL
    ).groups()
    words = shlex.split(line)
    folder = next(word.partition("=")[2] for word in words if word.startswith("results_dir="))
    if not any((ROOT / folder).glob("runs/*/record.json")):
        pytest.skip(f"no records in {folder}")
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=ROOT, env=environment() | {"COLUMNS": "100"}, capture_output=True, text=True, timeout=300
    )
    assert [row.rstrip() for row in done.stdout.strip().splitlines()] == printed.strip().splitlines()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The manual as `make docs` builds it, and what the build said."""
    for package in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(package, reason="pip install sqbench[docs]")
    site = tmp_path_factory.mktemp("site")
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    done = subprocess.run(
        line, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=300
    )
    return site, done.returncode, done.stdout + done.stderr


@pytest.fixture
def site(built):
    folder, code, said = built
    assert code == 0, said
    return folder


class Page(HTMLParser):
    """The text of a built page: of its code, and of all the rest."""

    VOID: typing.ClassVar = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.code, self.prose, self._open = "", "", []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"script", "style", "math"}.intersection(self._open):
            if {"pre", "code"}.intersection(self._open):
                self.code += data
            else:
                self.prose += data


# An include directive, also as a formatter of Python writes it, and what is left of Markdown where it was not understood.
DIRECTIVE = re.compile(r"--\s*8\s*<|;\s*--8|^::: ", re.MULTILINE)
MARKUP = re.compile(r"```|\$`|\]\(|!\[|\*\*|^ *#{1,6} |^ *\|.*\||^ *[-*] \S|^ *:::|^ *!!! |\{ *[.#]?\w+=|`", re.MULTILINE)


@pytest.mark.parametrize(
    "text", ['--8<-- "a.py"', '--8 < --"a.py"', "::: sqbench.api.load", "-- 8 <", ";--8<-- a"], ids=lambda text: text.split()[0]
)
def test_a_directive_is_recognised(text):
    assert DIRECTIVE.search(f"before\n{text}\nafter")


@pytest.mark.parametrize(
    "text", ["a `b` c", "**bold**", "[a](b.md)", "| a | b |", "- a point", "## Title", "```sh", '{ width="3" }']
)
def test_markup_is_recognised(text):
    assert MARKUP.search(f"before\n{text}\nafter")
    assert not MARKUP.search("x2.4 [0.1, 0.2], p = 3 * 4, {a, b}; -0.3 | 0.4")


def test_the_manual_builds_without_a_warning(built):
    _, code, said = built
    assert (code, [line for line in said.splitlines() if "WARNING" in line or "ERROR" in line]) == (0, [])


def test_every_page_is_built_and_reads_without_a_network(site):
    assert {path.relative_to(site).with_suffix(".md").as_posix() for path in site.rglob("*.html")} >= {
        name.removeprefix("docs/") for name in PAGES
    }
    for path in site.rglob("*.html"):
        asked = re.findall(r'<(?:script|link|img|iframe)\b[^>]*(?:src|href)="(https?://[^"]+)"', path.read_text(encoding="utf-8"))
        assert asked == [], path.name
    assert (site / "methods" / "awq.html").read_text(encoding="utf-8").count("<math") == 3


def test_no_built_page_shows_a_directive_or_markup(site):
    for path in site.rglob("*.html"):
        page = Page(path.read_text(encoding="utf-8"))
        assert DIRECTIVE.findall(page.code + page.prose) == [], path.name
        assert MARKUP.findall(page.prose) == [], path.name


INCLUDES = [(name, file) for name, text in PAGES.items() for file in re.findall(r'^--8<-- "(.+)"$', text, re.MULTILINE)]


def test_pages_include_files():
    assert len(INCLUDES) >= 6


@pytest.mark.parametrize(("page", "file"), INCLUDES)
def test_an_included_file_is_on_its_page(page, file, site):
    path = (site / page.removeprefix("docs/")).with_suffix(".html")
    assert (ROOT / file).read_text(encoding="utf-8").strip() in Page(path.read_text(encoding="utf-8")).code


@pytest.mark.browser
def test_the_search_works_from_disk(site):
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = os.environ.get("SQBENCH_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium here")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page()
        asked: list[str] = []
        tab.on("request", lambda request: asked.append(request.url))
        found = tab.locator(".md-search-result__item a").first
        for _ in range(6):  # what is typed before the page's script listens is lost, and the same word is not searched for twice
            tab.goto((site / "index.html").as_uri())
            tab.locator("input.md-search__input").fill("smoothquant")
            with contextlib.suppress(sync_api.TimeoutError):
                found.wait_for(timeout=10_000)
                break
        assert "smoothquant" in tab.locator(".md-search-result__list").inner_text().lower()
        assert found.get_attribute("href").startswith("file://")
        assert [url for url in asked if url.startswith("http")] == []
        browser.close()
