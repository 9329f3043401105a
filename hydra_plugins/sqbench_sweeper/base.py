"""The base of every sweep of sqbench. It checks everything before the first point starts, and reports at the end."""

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

# Nothing of sqbench is imported at the top, because every Hydra application imports every plugin.
if TYPE_CHECKING:
    from sqbench.records.outcome import Outcome
    from sqbench.records.store import Store
    from sqbench.records.sweeps import Sweep
    from sqbench.running.point import Point


class CheckedSweeper(BasicSweeper, ABC):
    """A sweep without its choice of points. It works with any Hydra launcher.

    Attributes:
        points: the points known so far, with the overrides of each.
        store: of their records. It exists once everything is checked.
        folder: of this sweep, in the results folder.
        listed: the list of this sweep's points, as written there.
        before: point id -> when the record that existed before its launch was written; None if there was none.
    """

    points: "list[tuple[Sequence[str], Point]]"
    store: "Store"
    folder: Path
    listed: "Sweep"
    before: dict[str, int | None]

    @abstractmethod
    def prepare(self, overrides: list[Override]) -> int:
        """Check everything that can be checked. Return the largest possible number of points.

        Raises:
            UserError: something cannot work. Nothing has started.
        """

    @abstractmethod
    def show_plan(self) -> None:
        """Print the plan of `run`."""

    @abstractmethod
    def run(self) -> int:
        """Launch the points and report them. Return the exit status."""

    def sweep(self, arguments: list[str]) -> Any:
        """Run and exit: 0, 1 (a point failed), 2 (bad input) or 130 (interrupted)."""
        from sqbench.console.answer import refuse
        from sqbench.console.quiet import quiet
        from sqbench.errors import UserError
        from sqbench.records import sweeps
        from sqbench.records.store import Store
        from sqbench.storage.files import write_text
        from sqbench.sweeps import sweep

        assert self.config is not None
        assert self.hydra_context is not None
        quiet(verbose=bool(self.config.hydra.verbose))
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        self.points, self.before, self._launched = [], {}, 0
        given = [*self._parse_config(), *arguments]
        sweep.announce(self.config, given)
        try:
            asked = parser.parse_overrides(given)
            total = self.prepare(asked)
            self.store = Store(self.config.results_dir)
            self.store.prepare()  # before Hydra makes its own folder there
        except UserError as error:
            sys.exit(refuse(error))
        if self.config.plan:
            self.show_plan()
            sys.exit(0)

        self.folder = Path(self.config.hydra.sweep.dir)
        try:
            write_text(self.folder / "multirun.yaml", OmegaConf.to_yaml(self.config))
            self.listed = sweeps.begin(self.folder, [], self.store, force=self.config.force, now=time.time())
        except OSError as error:
            sys.exit(refuse(UserError(f"results_dir={self.config.results_dir}: cannot be written ({error.strerror})")))
        from sqbench.running import gpus, needs  # they import torch, so they come after `announce`

        told: dict[str, object] = {sweep.TOTAL: total}
        told[sweep.KEYS] = ",".join(item.key_or_group for item in asked if item.is_sweep_override())
        told[needs.SHARED] = needs.union(point.resolved for _, point in self.points)
        if self.config.hydra.launcher._target_.endswith("submitit_launcher.LocalLauncher"):  # hides all GPUs but those it numbers
            told[gpus.VISIBLE] = ",".join(gpus.visible())
        with open_dict(self.config):  # Hydra sets these in every process of a point, on any host
            self.config.hydra.overrides.hydra += [f"++hydra.job.env_set.{name}='{value}'" for name, value in told.items()]
        try:
            sys.exit(self.run())
        except KeyboardInterrupt:
            self._report_what_is_there()
            sys.exit(sweep.interrupted())
        except UserError as error:
            self._report_what_is_there()
            sys.exit(refuse(error))
        except Exception:  # the launcher lost a worker: only the records show which points are done
            self._report_what_is_there()
            sweep.interrupted()
            raise

    def _report_what_is_there(self) -> None:
        """Report an interrupted sweep from the records, as no outcomes came back."""
        from sqbench.sweeps import sweep

        results_dir = self.config.results_dir
        sweep.report(sweep.finished(self.points, results_dir, self.before), results_dir)

    def composed(self, job: Sequence[str]) -> DictConfig:
        """The configuration of a job as its task will see it."""
        from sqbench.sweeps.sweep import task_config

        assert self.hydra_context is not None
        return task_config(self.hydra_context.config_loader.load_sweep_config(self.config, list(job)))

    def launch(self, points: "Sequence[tuple[Sequence[str], Point]]") -> "list[Outcome]":
        """Give all points to the launcher at once, and return their outcomes."""
        from sqbench.errors import UserError
        from sqbench.records.outcome import Outcome

        assert self.launcher is not None
        self.before |= {point.id: self.store.written(point.id) for _, point in points}
        returns = self.launcher.launch([list(job) for job, _ in points], initial_job_idx=self._launched)
        self._launched += len(points)
        outcomes = []
        for (job, point), returned in zip(points, returns, strict=True):
            try:
                outcomes.append(returned.return_value)
            except UserError as error:  # its data or model has gone since the check
                outcomes.append(Outcome(point.id, "failed", list(job), error=str(error), summary=f"{point}: {error}"))
        return outcomes
