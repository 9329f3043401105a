"""The same twelve points under every available launcher, two at once: whether the records are equal, and the times.

    python -m benchmarks.launchers
    python -m benchmarks.launchers work=basic,cores repetitions=3
    python -m benchmarks.launchers data.windows=64     # an override of sqbench.run; with longer points Python's start counts less

Each sweep starts with an empty results folder, so that its time includes loading, calibrating and the float model. Points use one
thread wherever records are compared, because sums in another order differ in their last bits. `basic_all_cores` is one process on
all cores, the fair reference for speed. A launcher whose plugin or programs are missing is named and left out.
"""

import copy
import importlib.util
import json
import os
import statistics
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

from hydra.core.utils import env_override

from benchmarks import slurm
from benchmarks.timing import arguments, child, chosen, show
from sqbench.errors import UserError
from sqbench.records.store import Store
from sqbench.storage.files import file_digest

SWEEP = (
    "method=smoothquant,awq",
    "alpha=0.3,0.5,0.8",
    "bits=w8a8,w4a16",
    "data.window=128",
    "data.windows=8",
    "calibration.windows=4",
)
POINTS = 12
ALL_CORES = "basic_all_cores"
# The Hydra plugin of each launcher, and the overrides that let it run two points at once.
PLUGINS = {
    "cores": "hydra_plugins.hydra_joblib_launcher",
    "slurm_local": "hydra_plugins.hydra_submitit_launcher",
    "slurm": "hydra_plugins.hydra_submitit_launcher",
    "cluster": "hydra_plugins.hydra_ray_launcher",
}
TWO_AT_ONCE = {
    "cores": ["hydra.launcher.n_jobs=2"],
    "slurm_local": ["hydra.sweeper.max_batch_size=2"],
    "slurm": ["hydra.launcher.array_parallelism=2", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=2"],
    "cluster": ["hydra.launcher.ray.init.address=local", "+hydra.launcher.ray.init.num_cpus=2"],
}


def unavailable(launcher: str) -> str:
    """Why a launcher cannot run here; empty if it can."""
    if importlib.util.find_spec(PLUGINS[launcher]) is None:
        return f"{PLUGINS[launcher]} is not installed"
    return slurm.missing() if launcher == "slurm" else ""


def options(launcher: str) -> list[str]:
    return [f"hydra/launcher={launcher}", *TWO_AT_ONCE[launcher]]


def comparable(results: Path) -> dict[str, str]:
    """Point id -> record as text with the hash of its samples, without times and places.

    Left out are `cost`, `config.results_dir`, and that folder wherever it is named. Left out of
    `provenance` are `time`, `sweep` (named by the time), `command` (with the folder and the launcher) and `device` (which GPU).
    """
    store, found = Store(results), {}
    for whole in store.records():
        record = copy.deepcopy(whole.to_json())
        del record["cost"], record["config"]["results_dir"]
        for name in ("time", "sweep", "command", "device"):
            del record["provenance"][name]
        samples = store.folder(record["point_id"]) / "samples.parquet"
        record["samples"] = file_digest(samples)
        found[record["point_id"]] = json.dumps(record, sort_keys=True).replace(str(results), "")
    return found


def sweep(results: Path, *overrides: str) -> float:
    """Run the sweep, and return its seconds.

    Raises:
        SystemExit: it did not leave all records.
    """
    seconds, _, said = child("-m", "sqbench.run", "-m", *SWEEP, "tracker=none", f"results_dir={results}", *overrides)
    if f"{POINTS} done" not in said:
        sys.exit(f"{POINTS} points were to be done:\n{said}")
    return seconds


def main() -> None:
    sides = {"basic": ["threads=1"], ALL_CORES: [], **{name: ["threads=1", *options(name)] for name in PLUGINS}}
    try:
        own, others = arguments(sys.argv[1:], work=[*sides], repetitions=1)
        work = chosen(own["work"], sides)
    except UserError as error:
        sys.exit(f"error: {error}")
    for name in [name for name in work if name in PLUGINS and unavailable(name)]:
        print(f"{name} is left out: {unavailable(name)}")
        work.remove(name)
    first, times = work[0], {name: list[float]() for name in work}
    records: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(own["repetitions"]):
            for name in work:
                results = Path(folder) / f"{name}-{turn}"
                with slurm.one_node() if name == "slurm" else nullcontext({}) as environment, env_override(environment):
                    times[name].append(sweep(results, *sides[name], *others))
                records[name] = comparable(results)
    rows = []
    for name in work:
        same = sum(records[name].get(point) == text for point, text in records[first].items())
        ratio = statistics.median(own / base for own, base in zip(times[name], times[first], strict=True))
        rows.append([name, f"{statistics.median(times[name]):.0f} s", f"{ratio:.2f}", f"{same} of {POINTS}"])
    show(["launcher", "sweep", f"/ {first}", f"records as {first}"], rows, sides=0, how="two points at once, one thread each")
    if any(records[name] != records[first] for name in work if name != ALL_CORES):
        sys.exit("records differ")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
