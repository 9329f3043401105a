"""Mirror all points to Weights & Biases again, as those that ran with tracker=none or before `sqbench.plot` drew pictures.

    python -m scripts.wandb_mirror                              # results, offline: `wandb sync results/wandb/offline-*` uploads
    python -m scripts.wandb_mirror --results-dir lab --mode online --project lab

Runs have the ids of their points. An earlier run of the same point is replaced.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sqbench.console.quiet import quiet
from sqbench.records.store import Store
from sqbench.tracking.wandb import mirror


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. It prints the number of mirrored points. The exit status is 2 without a folder of points."""
    parser = argparse.ArgumentParser(prog="python -m scripts.wandb_mirror", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results-dir", type=Path, default=Path("results"))
    parser.add_argument("--mode", choices=("offline", "online"), default="offline")
    parser.add_argument("--project", default="sqbench")
    parser.add_argument("--entity", default=None, help="the user or team of the project; the account's default without")
    given = parser.parse_args(arguments)
    quiet()
    if not (given.results_dir / "runs").is_dir():
        parser.error(f"--results-dir {given.results_dir}: has no runs/; `python -m sqbench.run results_dir=...` makes it")
    store, count = Store(given.results_dir), 0
    for record in store.records():
        mirror(
            record,
            store.samples(record.point_id),
            mode=given.mode,
            project=given.project,
            entity=given.entity,
            results_dir=store.root,
            sweep=record.provenance["sweep"] or "single",
        )
        count += 1
    sys.stdout.write(f"{count} points\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
