"""Compute many points in several processes that are killed at random. Then check whether a point was lost or computed twice.

    python -m scripts.stress points=2000 processes=4 kill_every=3     # seconds between two kills, at least
    python -m scripts.stress points=24 processes=2 kill_every=2 folder=/tmp/stress seed=1

Every process runs the command line over a random draw of the remaining points, so that processes often meet on a point. The model
is a toy and its points differ in alpha alone, because only claims, records and caches are tested. The status is 1 if a check fails.
"""

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

from benchmarks.llama import save_llama
from sqbench.errors import UserError, known
from sqbench.records.store import Store
from sqbench.storage.locks import held

BATCH = 8  # points of one command line
LOOK = 0.2  # seconds between looks at processes and records
SIZES = ("data.window=32", "data.windows=2", "calibration.windows=1", "eval.resamples=100", "threads=1", "tracker=none")


@dataclass
class Seen:
    """What a stress run has seen so far.

    Attributes:
        records: point id -> inode of its record and when it was written, as last seen.
        alphas: of the points that have a record.
        rewritten: ids of points whose record was replaced.
        kills, starts: of processes.
        memory, handles: peaks of one process, bytes and open files.
    """

    records: dict[str, tuple[int, int]] = field(default_factory=dict)
    alphas: set[float] = field(default_factory=set)
    rewritten: set[str] = field(default_factory=set)
    kills: int = 0
    starts: int = 0
    memory: int = 0
    handles: int = 0

    def look(self, results: Path, processes: Sequence[BaseProcess]) -> None:
        """Update the counts from the records and the processes."""
        for path in results.glob("runs/*/record.json"):
            state = path.stat()
            now = (state.st_ino, state.st_mtime_ns)
            if self.records.setdefault(path.parent.name, now) != now:
                self.rewritten.add(path.parent.name)
                self.records[path.parent.name] = now
            elif len(self.alphas) < len(self.records):
                self.alphas.add(float(json.loads(path.read_bytes())["identity"]["method"]["alpha"]))
        for process in processes:
            try:
                one = psutil.Process(process.pid)
                self.memory, self.handles = max(self.memory, one.memory_info().rss), max(self.handles, one.num_fds())
            except psutil.NoSuchProcess:
                continue


def stress(folder: Path, points: int, processes: int, kill_every: float, seed: int) -> dict[str, Any]:
    """Compute `points` points in `folder`, killing one of `processes` processes every `kill_every` seconds. Return the counts."""
    rng = random.Random(seed)
    results, logs = folder / "results", folder / "logs"
    logs.mkdir(parents=True)
    save_llama(folder / "model", layers=1, width=16, heads=2)
    from sqbench.config import DataConfig
    from sqbench.data.text import from_pydoc

    (folder / "text.txt").write_text(from_pydoc(DataConfig(name="pydoc", source="pydoc"))[:20_000], encoding="utf-8")
    base = ["-m", "model=hf", f"model.name={folder / 'model'}", "data=text", f"data.path={folder / 'text.txt'}", *SIZES]
    base += [f"results_dir={results}", "method=smoothquant", "bits=w8a8"]
    alphas = [round(index / points, 6) for index in range(points)]
    context = multiprocessing.get_context("forkserver")  # a start takes a tenth of a second, and no process inherits a thread
    context.set_forkserver_preload(["sqbench.running.runner", "sqbench.run", "transformers.models.llama.modeling_llama"])
    seen, running, start = Seen(), [], time.monotonic()
    next_kill, finished = start + kill_every, 0
    while len(seen.records) < points or running:
        seen.look(results, running)
        for process in [process for process in running if not process.is_alive()]:
            running.remove(process)
            if process.exitcode not in (0, -signal.SIGKILL):
                raise RuntimeError(f"a command line ended with status {process.exitcode}: see {process.name}")
        left = [alpha for alpha in alphas if alpha not in seen.alphas]
        while left and len(running) < processes:
            chosen = rng.sample(left[: BATCH * processes], min(BATCH, len(left)))
            line = [*base, f"alpha={','.join(map(str, chosen))}"]
            process = context.Process(target=_work, args=(line, log := logs / f"{seen.starts}.txt"), name=str(log))
            process.start()
            running.append(process)
            seen.starts += 1
        if running and time.monotonic() > next_kill and len(seen.records) > finished:  # otherwise a slow machine would never finish
            rng.choice(running).kill()
            seen.kills += 1
            next_kill, finished = time.monotonic() + kill_every, len(seen.records)
        time.sleep(LOOK)
    seen.look(results, ())
    return _account(seen, results, logs, points, time.monotonic() - start)


def _account(seen: Seen, results: Path, logs: Path, points: int, seconds: float) -> dict[str, Any]:
    """All counts. Those under `wrong` must be 0."""
    whole = list(Store(results).records(brief=True))  # those whose checksum matches
    said = Counter(re.findall(r"\] done ([0-9a-f]{12}) ", "".join(path.read_text(encoding="utf-8") for path in logs.iterdir())))
    twice = seen.rewritten | {point for point, times in said.items() if times > 1}
    claims = [path for path in results.rglob("*") if path.name == "claim.json" or path.suffix == ".claim"]
    wrong = {
        "points without a whole record": points - sum(record.finished for record in whole),
        "computed twice": len(twice),
        "claims that seem alive": sum(map(held, claims)),
        "damaged files": len(list(results.rglob("*.corrupt*"))),
    }
    return {
        "points": points,
        "records": len(whole),
        "computed": sum(said.values()),
        "starts": seen.starts,
        "kills": seen.kills,
        "seconds": round(seconds, 1),
        "peak memory of a process, MB": round(seen.memory / 1e6),
        "peak open files of a process": seen.handles,
        "dead claims left over": len(claims),
        "half-written files left over": len(list(results.rglob("*.part"))),
        "wrong": wrong,
    }


def _work(line: list[str], log: Path) -> None:
    """Run one command line in this process, with its output in `log`."""
    import torch

    from sqbench.run import main

    for number in (1, 2):
        os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
    torch.set_num_threads(1)
    sys.argv = ["sqbench.run", *line]
    main()


def main(arguments: Sequence[str]) -> int:
    """Run and print the counts. Return 1 if anything is wrong."""
    given = {"points": "2000", "processes": "4", "kill_every": "3", "seed": "0", "folder": ""}
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in given:
            raise UserError(f"{argument}: {known(key, given)}")
        given[key] = value
    folder = Path(given["folder"] or tempfile.mkdtemp(prefix="stress-"))
    found = stress(folder, int(given["points"]), int(given["processes"]), float(given["kill_every"]), int(given["seed"]))
    print(json.dumps(found, indent=2))
    failed = any(found["wrong"].values())
    if not failed and not given["folder"]:
        shutil.rmtree(folder)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
