"""The page as a file: whole, alone, and free of what records hold but no page should."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from examples import build, write
from plotly.offline import get_plotlyjs

from sqbench.reporting.html import page

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "\"'><svg onload=alert(3)>",
    "{{ 7 * 7 }}{% raw %}",
    "</title><!-- ]]>",
    "\x1b[31mred\x07 \u202egnol\u202c \u2028 \u200b \ud7ff",
    "%{x}${alert(4)}`",
)


class Outline(HTMLParser):
    """The elements of a page, their attributes, and its texts outside of scripts and styles."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.texts.append(data)


def outline(results: Path, **live: float) -> Outline:
    return Outline(page.render(results, now=1.0, **live))


def hostile_record(text: str, place: int) -> dict[str, Any]:
    """A failed or finished record with a text wherever a user's words may stand."""
    origin = {
        "command": f"python -m sqbench.run model.name={text}",
        "time": text,
        "sweep": text,
        "git": {"commit": text, "dirty": True},
        "versions": {"torch": text},
        "hardware": {text: text},
        "fingerprints": {text: [text]},
    }
    layers = {"per_layer": [{"layer": text, "format": text, "weight_sqnr_db": 1.0}]}
    return build(
        "rtn",
        status="failed" if place % 2 else "ok",
        error={"type": text, "message": text, "traceback": text} if place % 2 else None,
        config={"model": {"name": text}, "data": {"name": text}},
        identity__model={"weights": text, "dtype": text},
        identity__scheme={"name": text, "weights": None, "activations": None, "ops": text},
        quantized=layers,
        provenance=origin,
    )


@pytest.mark.slow
def test_nothing_of_a_record_becomes_markup(results: Path) -> None:
    innocent = [re.sub(r"\W", "x", text) for text in HOSTILE]
    write(results / "innocent", *(hostile_record(text, place) for place, text in enumerate(innocent)))
    write(results / "hostile", *(hostile_record(text, place) for place, text in enumerate(HOSTILE)))
    for folder in ("innocent", "hostile"):
        texts = HOSTILE if folder == "hostile" else innocent
        claims = ",".join('"' + texts[0].replace('"', '""') + '"' for _ in range(9))
        header = "claim,statement,verdict,evidence,holds,effect,needed,test,n,points,command"
        (results / folder / "claims.csv").write_text(f"{header}\n{claims},,{'x'}\n", encoding="utf-8")
    expected, found = outline(results / "innocent"), outline(results / "hostile")

    def shape(one: Outline) -> list[tuple[str, tuple[str, ...]]]:
        return sorted((tag, tuple(sorted(attributes))) for tag, attributes in one.tags if tag != "option")

    assert shape(found) == shape(expected)  # not one element or attribute more
    assert len(found.scripts) == len(expected.scripts)
    shown = "".join(found.texts)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u200b-\u200f\u2028-\u202e\u2066-\u2069]", shown)
    assert "</script><script>alert(1)</script>" in shown  # it can be read
    assert "{{ 7 * 7 }}{% raw %}" in shown
    for script in found.scripts:
        assert "alert(" not in script or script.lstrip().startswith(("{", "["))  # only ever inside JSON


def test_the_page_loads_nothing(results: Path) -> None:
    write(results, build("rtn"))
    found = outline(results)
    for tag, attributes in found.tags:
        if tag in ("script", "img", "iframe", "object", "embed", "source", "video", "audio"):
            assert "src" not in attributes
        if tag == "link":
            assert (attributes["href"] or "").startswith("data:")
    (policy,) = [attributes["content"] or "" for tag, attributes in found.tags if attributes.get("http-equiv")]
    assert policy.startswith("default-src 'none'; ")
    assert policy.count("'sha256-") == 2
    assert get_plotlyjs() in found.scripts  # once, and nothing from a network
    assert sum(len(script) > 4_000_000 for script in found.scripts) == 1
    assert not re.search(r"@import|url\((?!data:)", page._asset("page.css"))


def test_an_empty_folder_says_how_to_begin(results: Path) -> None:
    results.mkdir()
    shown = "".join(outline(results).texts)
    assert f"python -m sqbench.run results_dir={results}" in shown
    assert "No point yet" in shown


def test_every_section_is_there_and_every_link_leads_somewhere(results: Path) -> None:
    write(results, build("rtn"), build(alpha=0.5), build("awq", "w4a16", 0.5, status="failed"), build("minmax", schema=0))
    found = outline(results)
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] or "" for tag, attributes in found.tags if tag == "a"]
    assert {"#answer", "#table", "#alpha", "#bits", "#layers", "#surfaces", "#cost", "#claims", "#failed", "#made"} <= set(links)
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    shown = "".join(found.texts)
    assert "ValueError: no range" in shown
    assert "schema 0" in shown


def test_claims_have_their_verdicts_and_points(results: Path) -> None:
    write(results, one := build("rtn"))
    (results / "claims.csv").write_text(
        "claim,statement,verdict,evidence,holds,effect,needed,test,n,points,command\n"
        f"a,It holds,supported,it does,supported,+1 %,> 0 %,sign-flip,16,{one['point_id']},python -m sqbench.claims only=[a]\n"
        "b,It does not,refuted,not at all,refuted,,,,,,x\n"
        "c,Half of it,mixed,one half,supported,+2 %,,,,,x\nc,Half of it,mixed,the other,refuted,,,,,,x\n",
        encoding="utf-8",
    )
    found = outline(results)
    shown = re.sub(r"\s+", " ", "".join(found.texts))
    assert "supported a. It holds it does: +1 % " in shown  # the key number stands on the closed line
    assert "mixed (1 of 2 parts hold) c. Half of it one half: +2 % " in shown
    assert "refuted b. It does not" in shown
    assert "not at all" in shown
    assert sum(attributes.get("href") == f"#p-{one['point_id']}" for _, attributes in found.tags) >= 2


def test_surfaces_are_those_that_were_drawn(results: Path) -> None:
    write(results, build("rtn"))
    surface = {"z": [[float(row * column) for column in range(200)] for row in range(100)], "rows": list(range(100))}
    surface |= {"columns": list(range(200)), "ratio": 3.0}
    layer = {"model": "m", "layer": "fc1", "told": "one window", "channel": "channel"}
    states = [{"name": name, "activation": surface, "weight": surface} for name in ("original", "smoothed")]
    (results / "plots").mkdir()
    (results / "plots" / "distributions-m-fc1.json").write_text(json.dumps({**layer, "states": states}), encoding="utf-8")
    (results / "plots" / "distributions-m-fc2.json").write_text('{"states": [{}]}', encoding="utf-8")
    (results / "plots" / "distributions-m-fc3.json").write_text("{", encoding="utf-8")
    (data,) = [json.loads(script) for script in outline(results).scripts if script.startswith('[{"model"')]
    ((original, _),) = [one["states"] for one in data]
    heights = original["activation"]["z"]
    assert (len(heights), len(heights[0])) == (64, 96)
    assert max(map(max, heights)) == 99 * 199  # the peak is kept


@pytest.mark.parametrize(("seconds", "told"), [(41.4, "41 s"), (60, "1 min"), (3540, "59 min"), (7800, "2 h 10 min")])
def test_what_is_left_is_told_in_round_numbers(seconds: float, told: str) -> None:
    assert page._duration(seconds) == told


@pytest.mark.parametrize("seconds", [None, 2.0])
def test_only_a_served_page_looks_for_news(results: Path, seconds: float | None) -> None:
    write(results, build("rtn"))
    found = outline(results, **({} if seconds is None else {"live": seconds}))
    metas = {attributes.get("name"): attributes.get("content") for tag, attributes in found.tags if tag == "meta"}
    assert metas["built"] == "1.000"
    assert metas.get("live") == (None if seconds is None else "2.0")
