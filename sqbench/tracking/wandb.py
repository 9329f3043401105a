"""Weights & Biases: one run per point, mirrored from its finished record.

The library is imported only when it is used. The import takes a third of a second, and `tracker=disabled` should cost nothing.
"""

import logging
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from sqbench.records.record import Record
from sqbench.storage.files import canonical_json, write_text
from sqbench.tracking import content

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)

PATIENCE = 10.0  # seconds for a server to answer; the library's own 90 would pass in every process of a sweep
UPLOAD_PATIENCE = 120.0  # seconds for the upload of a run; the rest stays on disk for `wandb sync`
SAMPLE_ROWS = 10_000  # of the samples table, the library's own limit; samples.parquet has all rows
_unreachable = threading.Event()  # set by the first failure to reach the server, for the rest of the process


def mirror(
    record: Record,
    samples: pd.DataFrame | None,
    *,
    mode: str,
    project: str,
    entity: str | None,
    results_dir: Path,
    sweep: str,
) -> None:
    """Log a record as the run `point_id` of the group `sweep`, replacing an older run of the same point.

    Errors here are logged and forgotten. The store holds the truth, and a point must not fail because of its mirror.

    Args:
        record: a finished or failed point's record.
        samples: per-example outcomes, or None.
        mode: `offline` writes below `results_dir/wandb` for a later `wandb sync`. `online` uploads. Where the server cannot be
            reached, it writes offline, with one warning per process. `disabled` does nothing.
        project: the project of the run.
        entity: the user or team of the project. None is the account's default.
        results_dir: the results folder of the sweep.
        sweep: the group of the runs.
    """
    if mode == "disabled":
        return
    try:
        run = _start(record, mode, project, entity, results_dir, sweep)
        try:
            with _staging(Path(run.settings.sync_dir)):
                _fill(run, record, samples, results_dir)
        finally:
            run.finish(exit_code=0 if record.finished else 1)
    except TimeoutError as error:  # this run is whole on disk; the next one need not wait as long
        _give_up(error)
    except Exception as error:  # noqa: BLE001 (a mirror never fails a point, whatever the library raises)
        log.warning("W&B run of point %s is incomplete: %s: %s", record.point_id, type(error).__name__, error)


def _start(record: Record, mode: str, project: str, entity: str | None, results_dir: Path, sweep: str) -> "wandb.Run":
    """Begin the run, online if wanted and possible."""
    import wandb

    wandb.setup(wandb.Settings(silent=True))  # before init, because a login prints unless the process's settings are silent
    results_dir.mkdir(parents=True, exist_ok=True)

    def begin(mode: Literal["online", "offline"]) -> "wandb.Run":
        _remove_older(results_dir, record.point_id)
        return wandb.init(
            project=project,
            entity=entity,
            group=sweep[:128] or None,
            job_type=record.identity["method"]["name"],
            id=record.point_id,
            name=content.name_of(record),
            tags=_tags(content.tags_of(record)),
            notes=record.provenance.get("command"),
            config={**record.config, "identity": record.identity},
            mode=mode,
            dir=str(results_dir),
            reinit="create_new",  # a run that the caller has open stays as it is
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=PATIENCE,
                finish_timeout=UPLOAD_PATIENCE,
                finish_timeout_raises=True,
                disable_git=True,  # the record's provenance says what ran
                disable_code=True,
                use_dot_wandb=False,  # `.wandb` would be used if it exists, and older runs there never found
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )

    if mode == "online" and not _unreachable.is_set():
        try:
            if not wandb.login(prompt=False, verify=False):  # init would ask for a key, and a sweep would wait for the answer
                raise wandb.errors.UsageError("no API key (`wandb login` or WANDB_API_KEY sets one)")
            return begin("online")
        except wandb.Error as error:
            _give_up(error)
            wandb.teardown()  # its service would refuse the run id, which the failed attempt has taken
    return begin("offline")


def _give_up(error: Exception) -> None:
    """Stay offline for the rest of the process. One wait for a server is enough."""
    _unreachable.set()
    reason = str(error).partition("\n")[0]
    log.warning("W&B server unreachable: %s; logging offline, `wandb sync` uploads later", reason)


def _fill(run: "wandb.Run", record: Record, samples: pd.DataFrame | None, results_dir: Path) -> None:
    """Log everything that a run shows: numbers, the learning curve, tables, distributions, and the record itself."""
    import wandb

    run.summary.update(content.numbers_of(record))
    run.define_metric("training/*", step_metric="training/epoch")
    for entry in record.quantized.get("training", {}).get("curve", []):
        run.log({f"training/{name}": value for name, value in entry.items() if value is not None})
    tables = content.tables_of(record)
    shown: dict[str, Any] = {name: _table(frame) for name, frame in tables.items()}
    shown |= {name: wandb.Histogram(values) for name, values in content.spreads_of(tables).items()}
    if samples is not None and len(samples):
        shown["samples"] = _table(samples.head(SAMPLE_ROWS))
    if pictures := content.pictures_of(record, results_dir):
        shown["distributions"] = [wandb.Image(str(picture.path), caption=picture.caption) for picture in pictures]
    if shown:
        run.log(shown)
    copy = Path(run.dir) / "record.json"
    write_text(copy, canonical_json(record.to_json()))
    artifact = wandb.Artifact(f"record-{record.point_id}", type="record")
    artifact.add_file(str(copy), policy="immutable")  # it is a copy already
    run.log_artifact(artifact)


def _table(frame: pd.DataFrame) -> "wandb.Table":
    import wandb

    known = frame.astype(object).where(frame.notna(), None)
    return wandb.Table(columns=[str(name) for name in frame.columns], data=known.to_numpy().tolist(), allow_mixed_types=True)


def _tags(names: Iterable[str]) -> list[str]:
    """Distinct tags of the 1 to 64 characters that the library accepts."""
    return list(dict.fromkeys(name[:64] for name in names if name))


def _remove_older(results_dir: Path, point_id: str) -> None:
    """Delete earlier runs of a point on disk, also those of a failed attempt to go online. A later sync would replace this run."""
    for folder in (results_dir / "wandb").glob(f"*run-*-{point_id}"):
        if not folder.is_symlink():
            shutil.rmtree(folder)


@contextmanager
def _staging(run_dir: Path) -> Iterator[None]:
    """Keep the files of tables and artifacts in the run's folder until their upload, unless the user named another place.

    By default they wait in the home directory. An offline run that is copied to another machine would leave them behind. A home
    that cannot be written would lose them.
    """
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(run_dir)
    try:
        yield
    finally:
        os.environ.pop("WANDB_DATA_DIR", None)
