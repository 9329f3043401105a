"""The report in a real browser: what a reader does, on the points of a real sweep.

Needs Debian's chromium (or SQBENCH_CHROMIUM, a path) and the dev extra. Screenshots are left in $SQBENCH_SCREENSHOTS, else in
pytest's temporary folder.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli import environment, tiny_run, wait_for
from examples import build, write

from sqbench.records.store import Store
from sqbench.reporting.candidates import candidates
from sqbench.reporting.html import page as report
from sqbench.reporting.html import serve
from sqbench.reporting.html.results import read
from sqbench.reporting.recommendation import Wanted, recommend, sentence

CHROMIUM = os.environ.get("SQBENCH_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytest.importorskip("playwright", reason="the dev extra has Playwright")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium, or SQBENCH_CHROMIUM=path"),
]
NOISE = re.compile(r"GPU stall|willReadFrequently")  # Chromium on its own drawing, without a GPU
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def sweep(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with the points of a real sweep, one that failed, surfaces, and claims."""
    from conftest import training_text

    folder = tmp_path_factory.mktemp("browser")
    text, results = folder / "text.txt", folder / "results"
    text.write_text(training_text(), encoding="utf-8")
    runs = [
        [
            "-m",
            "sqbench.run",
            "-m",
            *tiny_run(tiny_folder, text, results, "method=rtn,smoothquant", "alpha=0.3,0.5,0.8", "bits=w8a8,w4a8"),
        ],
        ["-m", "sqbench.plot", "distributions", *tiny_run(tiny_folder, text, results, "layer=model.layers.0.mlp.up_proj")],
    ]
    for arguments in runs:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=folder, env=environment(), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
    write(results, build("awq", "w4a16", 0.5, status="failed"))
    (results / "claims.csv").write_text(
        "claim,statement,verdict,evidence,holds,effect,needed,test,n,points,command\n"
        "a,It holds,supported,it does,supported,+1 %,> 0 %,sign-flip,16,,python -m sqbench.claims only=[a]\n",
        encoding="utf-8",
    )
    report.write(results)
    return results


Opened = Callable[..., Any]


@pytest.fixture
def opened(chromium: Any, sweep: Path) -> Iterator[Opened]:
    """Opens the report; at the end nothing was asked of a network, and the console is free of errors."""
    contexts, requests, complaints = [], [], []

    def begin(size: str = "desktop", theme: str = "light", address: str | None = None) -> Any:
        width, height = SIZES[size]
        context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
        contexts.append(context)
        tab = context.new_page()
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.goto(address or (sweep / "report" / "index.html").as_uri())
        return tab

    begin.complaints = complaints  # type: ignore[attr-defined]
    yield begin
    for context in contexts:
        context.close()
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:", "http://127.0.0.1:"))] == []
    assert [text for text in complaints if not NOISE.search(text)] == []


def column(tab: Any, title: str) -> list[str]:
    """The texts of a column of the comparison table, of the rows that are shown."""
    at = [text.strip() for text in tab.locator("#points thead th").all_inner_texts()].index(title)
    return [str(text).strip() for text in tab.locator(f"#points tbody tr:visible > :nth-child({at + 1})").all_inner_texts()]


def test_titles_sort_and_say_so(opened: Opened) -> None:
    tab = opened()
    head = tab.locator("#points thead th", has_text="perplexity")
    for order, sign in (("ascending", 1), ("descending", -1)):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == order
        values = [float(text) for text in column(tab, "perplexity") if text]
        assert len(values) == 9  # the float model's, two of rtn, six of smoothquant
        assert values == sorted(values, key=lambda value: sign * value)
        assert column(tab, "perplexity")[-1] == ""  # what has no number is last in either direction


def test_filters_choose_rows_and_survive_a_reload(opened: Opened) -> None:
    tab = opened()
    everything = len(column(tab, "method"))
    tab.locator("#filters [name=method]").select_option("smoothquant")
    tab.locator("#filters [name=bits]").select_option("w4a8")
    assert set(column(tab, "method")) == {"smoothquant"}
    assert column(tab, "alpha") == ["0.3", "0.5", "0.8"]
    assert tab.locator("#filters output").inner_text() == f"3 of {everything} rows"
    tab.reload()
    assert column(tab, "alpha") == ["0.3", "0.5", "0.8"]
    tab.get_by_role("button", name="Clear").click()
    assert wait_for(lambda: len(column(tab, "method")) == everything, 30)
    tab.locator("#filters [name=text]").fill("failed")
    assert column(tab, "status") == ["failed"]


def test_filters_are_in_the_address_and_come_back_from_it(opened: Opened) -> None:
    tab = opened()
    everything = len(column(tab, "method"))
    tab.locator("#filters [name=method]").select_option("smoothquant")
    assert "method=%3Dsmoothquant" in tab.url
    other = opened(address=tab.url)  # as somebody else opens it
    assert set(column(other, "method")) == {"smoothquant"}
    other.locator("#filters button").click()
    assert wait_for(lambda: len(column(other, "method")) == everything, 30)
    assert "method" not in other.url


def test_layers_stand_by_block_and_role(opened: Opened) -> None:
    tab = opened()
    tab.locator("#layer-point").select_option(index=1)
    plot = tab.locator("#blocks .plot .heatmaplayer image").first
    plot.wait_for(timeout=30_000)
    told = tab.evaluate("(({ y, z }) => [y, z.map((row) => row.length)])(document.querySelector('#blocks .plot').data[0])")
    roles = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    assert told == [[*roles, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"], [2] * 7]


def test_a_cell_leads_to_its_point_and_on_to_its_layers(opened: Opened) -> None:
    tab = opened()
    row = tab.locator("#points tbody tr[data-method=smoothquant][data-alpha='0.5'][data-bits=w8a8]")
    value = row.locator("td.number a").nth(1)
    number, point = value.inner_text(), row.get_attribute("data-point")
    value.click()
    details = tab.locator(f"#p-{point}")
    assert details.get_attribute("open") is not None
    assert wait_for(lambda: details.evaluate("node => node.getBoundingClientRect().top < innerHeight"), 30)
    assert number in details.inner_text()
    assert "alpha=0.5" in details.locator(".command code").first.inner_text()
    details.get_by_role("button", name="Show its layers").click()
    layers = tab.locator("#layer-table tbody tr")
    assert layers.count() == 14  # two blocks of seven
    assert "up_proj" in layers.nth(5).inner_text()


@pytest.mark.parametrize(
    "limits", [{}, {"mb": "0.2"}, {"loss": "0.2"}, {"loss": "-100"}, {"speed": "0.5"}, {"mb": "1e6", "loss": "50"}]
)
def test_a_readers_limits_choose_what_the_command_line_chooses(opened: Opened, sweep: Path, limits: dict[str, str]) -> None:
    results = read(sweep)
    study = results.studies[0]
    found = candidates(study, results.frame, results.records, Store(sweep), study.metric.name)
    value = {name: float(text) for name, text in limits.items()}
    wanted = Wanted(value.get("mb"), value.get("loss"), value.get("speed"))
    if "speed" in value and not any(one.speeds for one in found.items):
        pytest.skip("nothing is timed here: the form does not ask for a speed")
    use = recommend(found, wanted).use
    tab = opened()
    for name, text in limits.items():
        tab.locator(f".choose [name={name}]").fill(text)
    expected = "No point satisfies all limits." if use is None else sentence(found, use)
    assert tab.locator(".choose .use strong").inner_text() == expected
    assert tab.locator(".choose .use a").is_visible() == (use is not None)
    tab.get_by_role("button", name="No limits").click()
    first = recommend(found, Wanted()).use
    assert first is not None
    assert wait_for(lambda: tab.locator(".choose .use strong").inner_text() == sentence(found, first), 30)


def test_on_a_phone_a_format_is_a_card(opened: Opened) -> None:
    tab = opened("phone")
    cells = tab.locator("table.cards tbody tr").nth(1).locator("td")
    boxes = [cells.nth(at).bounding_box() for at in range(cells.count())]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= SIZES["phone"][0] for box in boxes)
    assert [box["y"] for box in boxes] == sorted({box["y"] for box in boxes})  # one below the other
    assert tab.evaluate("document.documentElement.scrollWidth") <= SIZES["phone"][0]


def test_the_keyboard_reaches_what_the_mouse_does(opened: Opened) -> None:
    tab = opened()
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    tab.locator("#points thead th button").first.focus()
    tab.keyboard.press("Enter")
    assert tab.locator("#points thead th").first.get_attribute("aria-sort") == "ascending"
    tab.locator("#points tbody a").first.focus()
    tab.keyboard.press("Enter")
    assert wait_for(lambda: tab.locator("details.point[open]").count() == 1, 30)


def camera(tab: Any, scene: str = "scene") -> tuple[float, ...]:
    eye = tab.evaluate(f"document.querySelector('.surfaces .plot')._fullLayout.{scene}.camera.eye")
    return tuple(round(eye[axis], 6) for axis in "xyz")


def test_surfaces_turn_together_by_drag_and_by_button(opened: Opened) -> None:
    tab = opened()
    plot = tab.locator(".surfaces .plot")
    plot.scroll_into_view_if_needed()
    tab.wait_for_selector(".surfaces .plot canvas")
    tab.wait_for_function("document.querySelector('.surfaces .plot')._fullLayout?.scene4?._scene")
    start = camera(tab)
    tab.locator("[data-turn=right]").click()
    assert wait_for(lambda: camera(tab) != start, 30)
    pressed = camera(tab)
    box = tab.locator(".surfaces .plot canvas").first.bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] / 2 + 90, box["y"] + box["height"] / 2 + 20, steps=6)
    tab.mouse.up()
    assert wait_for(lambda: camera(tab) != pressed, 30)
    assert wait_for(lambda: camera(tab) == camera(tab, "scene4"), 30)
    tab.locator("[data-turn=home]").click()
    assert wait_for(lambda: camera(tab) == start, 30)


def test_the_map_follows_the_filters_and_lists_the_row_that_is_clicked(opened: Opened) -> None:
    tab = opened()
    heat = tab.locator("#heat .plot")
    heat.scroll_into_view_if_needed()
    tab.wait_for_selector("#heat .plot .heatmaplayer image")
    rows = "document.querySelector('#heat .plot').data[0].y.length"
    assert tab.evaluate(rows) == 8
    tab.locator("#filters [name=method]").select_option("rtn")
    assert wait_for(lambda: tab.evaluate(rows) == 2, 30)
    heat.scroll_into_view_if_needed()
    box = tab.locator("#heat .nsewdrag").bounding_box()
    tab.mouse.click(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.75)
    tab.wait_for_selector("#layer-table tbody tr")
    assert tab.locator("#layer-table tbody tr").count() == 14
    assert "rtn" in tab.locator("#layer-table caption").inner_text()


def test_the_theme_changes_and_stays(opened: Opened) -> None:
    tab = opened()
    ground = "getComputedStyle(document.body).backgroundColor"
    button = tab.locator("#theme")
    tab.wait_for_selector("#answer .plot .main-svg")
    label = "getComputedStyle(document.querySelector('#answer .plot .xtick text')).fill"
    day = tab.evaluate(label)
    button.click()
    button.click()
    assert (button.inner_text(), tab.evaluate(ground)) == ("Theme: dark", "rgb(20, 23, 28)")
    assert wait_for(lambda: tab.evaluate(label) != day, 30)  # figures follow
    tab.reload()
    assert tab.evaluate(ground) == "rgb(20, 23, 28)"


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("SQBENCH_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_axe_finds_nothing_and_no_side_scrolls(opened: Opened, screenshots: Path, size: str, theme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    tab = opened(size, theme)
    tab.locator("details.point").first.evaluate("node => (node.open = true)")
    height = tab.evaluate("document.documentElement.scrollHeight")
    for top in range(0, height, 500):  # figures are drawn when they come near
        tab.evaluate(f"scrollTo({{top: {top}, behavior: 'instant'}})")
        tab.wait_for_timeout(50)
    tab.wait_for_function("[...document.querySelectorAll('figure:not([hidden]) .plot')].every(plot => plot.childElementCount)")
    found = Axe().run(tab)
    told = [f"{one['id']}: {[node['target'] for node in one['nodes']][:3]}" for one in found.response["violations"]]
    assert told == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    tab.evaluate("scrollTo({top: 0, behavior: 'instant'})")
    tab.screenshot(path=screenshots / f"report-{size}-{theme}.png", full_page=True)


def test_it_prints_with_every_figure(opened: Opened, screenshots: Path) -> None:
    tab = opened()
    path = screenshots / "report.pdf"
    tab.pdf(path=path, format="A4")
    assert path.read_bytes().startswith(b"%PDF")
    unseen = "figure:not([hidden]) .plot:empty"
    assert tab.locator(unseen).count() == 0


def test_an_empty_folder(opened: Opened, tmp_path: Path) -> None:
    path = report.write(tmp_path)
    tab = opened(address=path.as_uri())
    assert tab.get_by_role("heading", name="No point yet").is_visible()


def test_a_served_page_reloads_itself_and_keeps_its_filters(opened: Opened, results: Path) -> None:
    write(results, build("rtn"), build(alpha=0.3))
    (results / "report").mkdir()
    with serve.served(results / "report", "127.0.0.1", 0) as (host, port):
        serve.build(results, 0.2)
        tab = opened(address=f"http://{host}:{port}/")
        tab.locator("#filters [name=method]").select_option("smoothquant")
        assert column(tab, "alpha") == ["0.3"]
        write(results, build(alpha=0.5))
        serve.build(results, 0.2)
        tab.wait_for_function("document.querySelectorAll('#points tbody tr').length === 4", timeout=20_000)
        assert wait_for(lambda: column(tab, "alpha") == ["0.3", "0.5"], 30)
    assert opened.complaints == []  # type: ignore[attr-defined]
    tab.wait_for_function("document.querySelector('#pulse').textContent.includes('stopped')", timeout=20_000)
    tab.close()
    opened.complaints.clear()  # type: ignore[attr-defined]  # Chromium's word on a server that has gone
