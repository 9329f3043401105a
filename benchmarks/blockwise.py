"""The memory of a point with one block of the model in memory at a time, compared with the whole model.

    python -m benchmarks.blockwise                              # 1.2 billion random float32 weights, 24 blocks of 0.2 GB
    python -m benchmarks.blockwise layers=48 method=awq whole=false

The command line computes two points of the same random Llama, each in its own results folder. Their metrics must be equal. Each
reports its peak of GPU memory with device=cuda, else of resident memory. Resident memory includes mapped files, which the kernel
may drop. Keys: layers, width, keep (a folder to leave the model in), whole=false (do not run the whole model), and any override of
sqbench.run.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.llama import save_llama
from sqbench.reporting.tables import markdown_table

DEFAULTS = {"layers": "24", "width": "2048", "whole": "true", "keep": ""}
POINT = ["data.windows=8", "calibration.windows=8", "data.window=128", "method=smoothquant", "bits=w8a8", "tracker=none"]


def record(folder: Path, results: Path, blockwise: bool, overrides: list[str]) -> dict[str, Any]:
    """The record of a point that runs in its own process."""
    line = [f"model.name={folder}", "model.loader=hf", f"results_dir={results}", f"blockwise={str(blockwise).lower()}"]
    subprocess.run([sys.executable, "-m", "sqbench.run", *line, *POINT, *overrides], check=True)
    found: dict[str, Any] = json.loads(next(results.glob("runs/*/record.json")).read_text(encoding="utf-8"))
    return found


def main() -> None:
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    chosen = {key: given.pop(key, default) for key, default in DEFAULTS.items()}
    overrides = [f"{key}={value}" for key, value in given.items()]
    with tempfile.TemporaryDirectory() as root:
        folder = Path(chosen["keep"] or root) / "model"
        folder.mkdir(parents=True)
        layers, width = int(chosen["layers"]), int(chosen["width"])
        size = save_llama(folder, layers, width, heads=width // 64)
        rows, metrics = [], []
        for blockwise in (True, False) if chosen["whole"] == "true" else (True,):
            found = record(folder, Path(root) / f"blockwise_{blockwise}", blockwise, overrides)
            metrics.append(found["metrics"])
            cost = found["cost"]
            peak, seconds = cost.get("peak_gpu_bytes", cost["peak_rss_bytes"]), cost["seconds"]
            rows.append((str(blockwise), f"{peak / 1e9:.2f}", f"{peak / size:.2f}", f"{seconds['total']:.0f}"))
    print(f"{layers} blocks, {size / 1e9:.2f} GB of float32 weights, {size / layers / 1e9:.2f} GB a block")
    print(markdown_table(["blockwise", "peak GB", "of the weights", "seconds"], rows, 1))
    if metrics[1:]:
        print("metrics are equal" if metrics[0] == metrics[1] else f"METRICS DIFFER: {metrics}")


if __name__ == "__main__":
    main()
