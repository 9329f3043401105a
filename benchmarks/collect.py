"""Seconds and peak memory of the commands that read all of many records.

    python -m benchmarks.collect                                       # computes one point of SmolLM2-135M, copies it 10,000 times
    python -m benchmarks.collect records=1000 record=results/runs/0123456789ab/record.json   # copies that record instead

The copies differ in model, method, bits, alpha, seed and results, like the points of a sweep. All keep the layers of the first
record, which make up its size. They lie in a temporary folder (1.2 GB), which is removed. Each time includes interpreter, imports
and writing. Processor time is given too, because it depends less on the load of the machine.
"""

import copy
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqbench.records.record import Record
from sqbench.records.store import Store
from sqbench.storage.files import digest

MODELS, BITS, SEEDS = range(4), ("w8a8", "w6a6", "w4a8", "w4a16"), range(15)
METHODS = [("minmax", None), *itertools.product(("smoothquant", "awq"), [step / 20 for step in range(21)])]
COMMANDS = {
    "collect": ("collect", "rows=[model,method,alpha]"),
    "collect metric=outliers": ("collect", "metric=outliers"),
    "plot pareto": ("plot", "pareto", "metric=perplexity", "where.model=model-0"),
}


def run(*arguments: str) -> tuple[float, float, int]:
    """Seconds, seconds of processor time, and peak resident bytes of one command of sqbench.

    Raises:
        SystemExit: it failed.
    """
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-m", f"sqbench.{arguments[0]}", *arguments[1:]], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)  # of this child alone; RUSAGE_CHILDREN has the largest of all so far
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        sys.exit(f"{' '.join(arguments)}: exit status {child.returncode}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def one_record(folder: Path) -> Path:
    """Compute the smallest real point, and return the path of its record."""
    run("run", "method=minmax", "data.windows=1", "calibration.windows=1", "tracker.mode=disabled", f"results_dir={folder}")
    return next((folder / "runs").glob("*/record.json"))


def copies(record: dict[str, Any], count: int) -> Iterator[dict[str, Any]]:
    """`count` records like those of one sweep. Once all combinations are used, they repeat with other calibration windows."""
    draw = random.Random(0)
    points = list(itertools.product(MODELS, METHODS, BITS, SEEDS))
    for number in range(count):
        windows, place = divmod(number, len(points))
        model, (method, alpha), bits, seed = points[place]
        made = copy.deepcopy({**record, "quantized": None})
        made["quantized"] = {**record["quantized"], "groups": [] if alpha is None else record["quantized"]["groups"]}
        identity, perplexity = made["identity"], 15 + 5 * draw.random()
        identity["model"]["weights"] = digest(model)
        identity["calibration"] = {**(identity["calibration"] or {}), "windows": 32 * (windows + 1), "seed": seed}
        identity["method"] = {"name": method} | ({} if alpha is None else {"alpha": alpha})
        identity["scheme"]["name"] = bits
        identity["seed"] = seed
        made["config"]["model"]["name"] = f"model-{model}"
        made["metrics"] = {**made["metrics"], "perplexity": perplexity}
        change = {"value": perplexity - 15, "low": perplexity - 16, "high": perplexity - 14, "level": 0.95, "n": 16}
        made["delta"] = {"perplexity": change}
        yield made | {"point_id": digest(identity)[:12]}


def main() -> None:
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    count = int(given.get("records", "10000"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = Path(given["record"]) if "record" in given else one_record(folder / "one")
        record = json.loads(path.read_bytes())
        store = Store(folder)
        start = time.perf_counter()
        sizes = [store.write(Record.from_json(made)).stat().st_size for made in copies(record, count)]
        print(
            f"{count} records of {len(record['quantized']['per_layer'])} layers, {sum(sizes) / 1e6:.0f} MB, {os.cpu_count()} cores"
        )
        print(f"{'written in':<24} {time.perf_counter() - start:6.1f} s")
        for title, arguments in COMMANDS.items():
            seconds, busy, peak = run(*arguments, f"results_dir={folder}")
            print(f"{title:<24} {seconds:6.1f} s  processor {busy:6.1f} s  peak {peak / 1e6:5.0f} MB")


if __name__ == "__main__":
    main()
