"""Hydra's basic sweeper with three differences: all points are checked first, equal points run once, and the end is reported."""

import sys
import time
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf, open_dict


class PointSweeper(BasicSweeper):
    """Works with any Hydra launcher: the points go to it as to any other."""

    def sweep(self, arguments: list[str]) -> Any:
        """Run all points and exit: 0, 1 (a point failed), 2 (bad input, nothing ran) or 130 (interrupted)."""
        from sqbench import gpus, sweep  # not at the top: Hydra imports every plugin, in every Hydra application
        from sqbench.errors import UserError
        from sqbench.quiet import quiet
        from sqbench.records import sweeps
        from sqbench.records.store import Store

        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        quiet(verbose=bool(self.config.hydra.verbose))
        loader = self.hydra_context.config_loader
        overrides = OverridesParser.create(config_loader=loader).parse_overrides([*self._parse_config(), *arguments])
        jobs = [list(job) for batch in self.split_arguments(overrides, None) for job in batch]
        results_dir = self.config.results_dir
        try:
            points = sweep.distinct([(job, sweep.task_config(loader.load_sweep_config(self.config, job))) for job in jobs])
            store = Store(results_dir)  # unwritable: say so before Hydra makes its folder there
        except UserError as error:
            sys.exit(sweep.refuse(error))
        if self.config.plan:
            sweep.show_plan([point for _, point in points], results_dir)
            sys.exit(0)

        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        told = {sweep.TOTAL: len(points)}
        if self.config.hydra.launcher._target_.endswith("submitit_launcher.LocalLauncher"):  # hides all GPUs but those it numbers
            told[gpus.VISIBLE] = ",".join(gpus.visible())
        with open_dict(self.config):  # Hydra sets it in whatever process and on whatever host a point runs
            self.config.hydra.overrides.hydra += [f"++hydra.job.env_set.{name}='{value}'" for name, value in told.items()]
        since = time.time()
        sweeps.begin(folder, [point.id for _, point in points], store, force=self.config.force, now=since)
        chosen = [list(job) for job, _ in points]
        try:
            returns: list[Any] = []
            for batch in self.split_overrides_to_chunks(chosen, self.max_batch_size):
                returns += self.launcher.launch(batch, initial_job_idx=len(returns))
            sys.exit(sweep.report([job.return_value for job in returns], results_dir))
        except KeyboardInterrupt:
            sweep.report(sweep.finished(points, results_dir, since), results_dir)
            sys.exit(sweep.interrupted())
        except Exception:  # the launcher lost a worker: it cannot say which points are done, their records can
            sweep.report(sweep.finished(points, results_dir, since), results_dir)
            sweep.interrupted()
            raise
