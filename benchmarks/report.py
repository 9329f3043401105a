"""The HTML report of many points: seconds to build, megabytes, and milliseconds to the first paint.

    python -m benchmarks.report record=results/runs/0123456789ab/record.json          # 500 points like that one, all different
    python -m benchmarks.report record=... points=2000

It needs Chromium, and Playwright of the dev extra. Every copy has its own numbers for every layer, so that no layer is stored once
for several points. The page also has two surfaces at full size. First paint is the browser's own first contentful paint, in a new
browser and from disk, as the median of five.
"""

import itertools
import json
import math
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.collect import BITS, METHODS, MODELS, SEEDS, copies, run
from sqbench.records.record import Record
from sqbench.records.store import Store
from sqbench.reporting.surfaces import Tensors, as_data

REPEATS = 5
_FIRST = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
_LOADED = "performance.getEntriesByType('navigation')[0].loadEventEnd"


def stirred(record: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """The record with other numbers in every layer."""
    layers = [
        {name: value * draw.uniform(0.9, 1.1) if isinstance(value, float) else value for name, value in layer.items()}
        for layer in record["quantized"]["per_layer"]
    ]
    return {**record, "quantized": {**record["quantized"], "per_layer": layers}}


def surface(folder: Path, layer: str, draw: np.random.Generator) -> None:
    """Write the file of `sqbench.plot distributions`, with random values."""
    activation, weight = draw.standard_normal((128, 576)), draw.standard_normal((576, 1536))
    ends = np.abs(activation).max(0), np.abs(weight).max(1)
    states = [Tensors(name, activation, weight, *ends, (-4.0, 4.0)) for name in ("original", "smoothed")]
    data = as_data(states, tokens=128, channels=192)
    named = {"model": "model-0", "layer": layer, "told": "random values", "channel": "channel", "states": data}
    (folder / "plots").mkdir(exist_ok=True)
    (folder / "plots" / f"distributions-model-0-{layer}.json").write_text(json.dumps(named), encoding="utf-8")


def paints(page: Path) -> tuple[float, float]:
    """Milliseconds to the first contentful paint and until everything is loaded: medians over new browsers."""
    from playwright.sync_api import sync_playwright

    found = []
    with sync_playwright() as playwright:
        for _ in range(REPEATS):
            browser = playwright.chromium.launch(channel=None, executable_path="/usr/bin/chromium", args=["--no-sandbox"])
            tab = browser.new_page(viewport={"width": 1280, "height": 900})
            tab.goto(page.resolve().as_uri())
            tab.wait_for_timeout(300)
            found.append((tab.evaluate(_FIRST), tab.evaluate(_LOADED)))
            browser.close()
    first, loaded = (statistics.median(column) for column in zip(*found, strict=True))
    return first, loaded


def main() -> None:
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    if "record" not in given or set(given) - {"record", "points"}:
        sys.exit("python -m benchmarks.report record=PATH [points=500]")
    record, count = json.loads(Path(given["record"]).read_text(encoding="utf-8")), int(given.get("points", "500"))
    with tempfile.TemporaryDirectory() as name:
        folder, draw = Path(name), random.Random(0)
        store = Store(folder)
        total = math.prod(map(len, (MODELS, METHODS, BITS, SEEDS)))
        for made in itertools.islice(copies(record, total), 0, None, max(1, total // count)):
            store.write(Record.from_json(stirred(made, draw)))
        for layer in range(2):
            surface(folder, f"layer-{layer}", np.random.default_rng(layer))
        seconds, _, peak = run("report", f"results_dir={folder}")
        page = folder / "report" / "index.html"
        first, loaded = paints(page)
        size = page.stat().st_size / 1e6
        print(f"{count} points: built in {seconds:.1f} s with {peak / 1e6:.0f} MB; {size:.1f} MB", end="; ")
        print(f"first paint {first:.0f} ms, loaded {loaded:.0f} ms", f"({time.strftime('%Y-%m-%d')})")


if __name__ == "__main__":
    main()
