"""Make the committed reference results, write them up, and check them against their records.

    python -m scripts.reference make          # runs what is missing (at most two hours on 2 cores), then writes
    python -m scripts.reference make claims   # one study
    python -m scripts.reference write         # tables, pictures and README from the records that are there
    python -m scripts.reference check         # fails if a committed table or verdict does not come from the committed records

Every study is a results folder below results/reference. Studies share calibrations in results/cache.
"""

import filecmp
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqbench.claims.__main__ import INDEX
from sqbench.errors import UserError, known
from sqbench.records.record import Record
from sqbench.records.store import Store
from sqbench.storage.files import write_text

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "results" / "reference"
CACHE = ROOT / "results" / "cache"
MADE = ("tables", "claims.md", "claims.csv")  # `check` makes these again, but no pictures, which depend on fonts


@dataclass(frozen=True)
class Study:
    """A part of the reference results.

    Attributes:
        name: of its folder.
        shows: its content, in a sentence.
        run: command lines that compute its records, after `python -m`.
        read: command lines that make its tables and pictures from them.
    """

    name: str
    shows: str
    run: Sequence[str]
    read: Sequence[str]


STUDIES = (
    Study(
        "methods",
        "The sweep of the front page: SmoothQuant at W8A8 and AWQ at W4A16 against alpha, on SmolLM2-135M.",
        (
            "sqbench.run -m method=smoothquant,awq alpha=0.3,0.5,0.8 data.windows=16 noise=5",
            "sqbench.run -m method=rtn,awq bits=w4a16 data.windows=16 noise=5",
        ),
        ("sqbench.collect", "sqbench.plot alpha where.bits=[w8a8_dynamic]"),
    ),
    Study("claims", "Seventeen statements that people repeat, and what became of them.", ("sqbench.claims",), ()),
    Study(
        "vision",
        "A ViT-S beside a mobile CNN at 8 and 6 bits.",
        ("sqbench.run experiment=lab_vit_vs_cnn", "sqbench.run -m experiment=lab_ptq_vs_smoothquant method=smoothquant,histogram"),
        ("sqbench.collect rows=[model,method]", "sqbench.plot pareto where.model=vit_small_focus"),
    ),
    Study(
        "speed",
        "What size buys in speed, with integer kernels.",
        ("sqbench.run experiment=size_for_speed",),
        tuple(
            f"sqbench.collect rows=[bits] columns=[] metric={name}"
            for name in ("tokens_per_s", "decode_tokens_per_s", "resident_bytes")
        ),
    ),
)


def line(command: str, folder: Path, *more: str) -> list[str]:
    """The arguments of a process for a study's command. Paths are relative, so that no record holds the checkout's place."""
    return [sys.executable, "-m", *shlex.split(command), f"results_dir={_relative(folder)}", *more]


def _relative(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def made(studies: Iterable[Study]) -> int:
    """Run the studies one after the other; finished points are skipped. Return the highest exit status."""
    worst = 0
    for study in studies:
        for command in study.run:
            print(f"{study.name}: python -m {command}", flush=True)
            options = [f"cache_dir={_relative(CACHE)}"] + ["tracker=none"] * command.startswith("sqbench.run")
            worst = max(worst, subprocess.run(line(command, FOLDER / study.name, *options), check=False, cwd=ROOT).returncode)
    return worst


def read(study: Study, folder: Path) -> None:
    """Make a study's tables and pictures again from the records of a folder."""
    commands = study.read if study.name != "claims" else ("sqbench.claims run=false",)
    for command in commands:
        subprocess.run(line(command, folder), check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def readme(studies: Iterable[Study]) -> str:
    """The text of the README: each study with its commands, machines, dates and files."""
    parts = [
        "# Reference results",
        "Made by `make reference` with the commands below. `python -m scripts.reference check`, part of the tests, makes every"
        " table and verdict again from the committed records and compares them byte for byte.",
    ]
    for study in studies:
        records = [record for record in Store(FOLDER / study.name).records(brief=True) if record.finished]
        commands = "\n".join(f"    python -m {command}" for command in (*study.run, *study.read))
        files = sorted(path.relative_to(FOLDER) for path in (FOLDER / study.name).rglob("*") if path.suffix in (".md", ".png"))
        links = "\n".join(f"- [{path}]({path})" for path in files)
        parts += [f"## {study.name}", study.shows, commands, _where(records), links]
    return "\n\n".join(parts) + "\n"


def _where(records: Sequence[Record]) -> str:
    """Machines, versions, dates and minutes of some records, as text."""
    if not records:
        return "Not run."
    told = set()
    for record in records:
        hardware, versions = record.provenance["hardware"], record.provenance["versions"]
        machine = f"{hardware['processor']} ({hardware['cpu_capability']}, {hardware['threads']} threads)"
        told.add(f"{machine}, Python {versions['python']}, torch {versions['torch']}")
    days = sorted({record.provenance["time"][:10] for record in records})
    minutes = sum(record.cost["seconds"]["total"] for record in records) / 60
    span = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return f"{len(records)} points, {minutes:.0f} minutes, {span}: {'; '.join(sorted(told))}."


def wrong() -> list[str]:
    """The committed files that do not follow from the committed records, with the reasons."""
    found = []
    for study in STUDIES:
        if not (FOLDER / study.name).is_dir():
            found.append(f"{study.name}: not there")
            continue
        with tempfile.TemporaryDirectory() as place:
            for name in ("runs", INDEX):
                (Path(place) / name).symlink_to(FOLDER / study.name / name)
            read(study, Path(place))
            committed = {path.relative_to(FOLDER / study.name) for path in _made(FOLDER / study.name)}
            again = {path.relative_to(place) for path in _made(Path(place))}
            found += [f"{study.name}/{path}: only in one of the two" for path in sorted(committed ^ again)]
            for path in sorted(committed & again):
                if not filecmp.cmp(FOLDER / study.name / path, Path(place) / path, shallow=False):
                    found.append(f"{study.name}/{path}: differs from what its records give")
    if (FOLDER / "README.md").read_text(encoding="utf-8") != readme(STUDIES):
        found.append("README.md: differs from what the records give")
    return found


def _made(folder: Path) -> list[Path]:
    return [path for name in MADE for path in ([folder / name] if (folder / name).is_file() else (folder / name).rglob("*.*"))]


def main(arguments: Sequence[str]) -> int:
    verb, *names = arguments or [""]
    studies = {study.name: study for study in STUDIES}
    if verb not in ("make", "write", "check"):
        raise UserError(f"{verb}: {known(verb, ('make', 'write', 'check'))}")
    for name in names:
        if name not in studies:
            raise UserError(f"{name}: {known(name, studies)}")
    if verb == "check":
        print(json.dumps(bad := wrong(), indent=2))
        return int(bool(bad))
    chosen = [study for study in STUDIES if not names or study.name in names]
    status = made(chosen) if verb == "make" else 0
    for study in chosen:
        if (FOLDER / study.name / "runs").is_dir():
            read(study, FOLDER / study.name)
    write_text(FOLDER / "README.md", readme(STUDIES))
    return status


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"error: {error}")
