"""The sweep over all combinations of values, as in Hydra's basic sweeper. Equal points run once."""

from hydra.core.override_parser.types import Override

from hydra_plugins.sqbench_sweeper.base import CheckedSweeper


class PointSweeper(CheckedSweeper):
    """A sweep that knows all of its points before the first one starts."""

    def prepare(self, overrides: list[Override]) -> int:
        from sqbench.errors import UserError
        from sqbench.sweeps import sweep

        for override in overrides:
            if override.is_interval_sweep():
                raise UserError(f"{override.input_line}: a sweep takes every value; hydra/sweeper=search chooses some of them")
        jobs = [list(job) for batch in self.split_arguments(overrides, None) for job in batch]
        self.points = sweep.distinct(sweep.checked([(job, self.composed(job)) for job in jobs]))
        return len(self.points)

    def show_plan(self) -> None:
        from sqbench.sweeps.plan import show_plan

        show_plan([point for _, point in self.points], self.config.results_dir)

    def run(self) -> int:
        from sqbench.console.progress import output
        from sqbench.records import sweeps
        from sqbench.sweeps import sweep
        from sqbench.sweeps.plan import forecast, verdict

        config = self.config
        ids = [point.id for _, point in self.points]
        self.listed = sweeps.extend(self.folder, self.listed, ids, self.store, force=config.force)
        predicted = forecast([point for _, point in self.points], self.store)
        outcomes = []
        for batch in self.split_overrides_to_chunks(self.points, self.max_batch_size):
            outcomes += self.launch(batch)
        status = sweep.report(outcomes, config.results_dir)
        if (said := verdict(predicted, outcomes)) is not None:
            output.print(said, markup=False, highlight=False, soft_wrap=True)
        return status
