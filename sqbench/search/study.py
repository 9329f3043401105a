"""An Optuna study of points: which values to try next, which trials are worth all examples, and which was the best."""

import json
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from sqbench.comparison import Metric
from sqbench.errors import UserError, closest
from sqbench.evaluation import EVALUATIONS
from sqbench.records.record import Record
from sqbench.reporting.order import unsure
from sqbench.search.space import Space, rounded
from sqbench.storage.files import write_text

KEPT = 4  # one trial in this many goes on from a rung; eta of successive halving (Li et al., 2020, use 4)


class Study:
    """Trials of a space. Each trial is a point, or with rungs, one point per rung.

    Every rung has more examples than the last, and a trial ends where others are better. Nothing is stored between runs. The same
    seed and the same results make the same trials, and results are records already.

    Args:
        rungs: the number of points of a trial that goes all the way.
        metric: a metric of the records. None is the headline of their evaluation.
        direction: `minimize` or `maximize`. None is the metric's own direction, where it is known.
    """

    def __init__(self, space: Space, rungs: int, seed: int, metric: str | None, direction: str | None) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.rungs, self.metric, self.direction = space, rungs, metric, direction
        self.declared = Metric(metric or "")  # as the records declare it, once there is one
        self._study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=seed),
            pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=KEPT),
        )

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials so far. Their `user_attrs` include `points`, by rung, and `values`, the metric on each rung."""
        return self._study.trials

    def ask(self, count: int) -> list[Trial]:
        """The next choices of values."""
        return [self._study.ask(dict(self.space.dimensions)) for _ in range(count)]

    def tell(self, trial: Trial, record: Record) -> bool:
        """Record the finished point of a trial's next rung. Return whether the trial goes on from there.

        Raises:
            UserError: the record has no such metric.
        """
        value = self._value(record)
        values = [*trial.user_attrs.get("values", ()), value]
        self._note(trial, record.point_id, values=values)
        loss = value if self.direction == "minimize" else -value  # Optuna wants the direction before there is a metric
        if len(values) == self.rungs:
            self._study.tell(trial, loss)
            return False
        trial.report(loss, KEPT ** (len(values) - 1))  # the steps at which the pruner looks
        if trial.should_prune():
            self._study.tell(trial, state=TrialState.PRUNED)
            return False
        return True

    def fail(self, trial: Trial, reason: str, point_id: str | None = None) -> None:
        """End a trial whose next point has no result."""
        self._note(trial, point_id, error=reason)
        self._study.tell(trial, state=TrialState.FAIL)

    @property
    def best(self) -> FrozenTrial | None:
        """The best trial that went all the way. None if none did."""
        complete = any(trial.state == TrialState.COMPLETE for trial in self.trials)
        return self._study.best_trial if complete else None

    def save(self, path: Path) -> None:
        """Write down all trials and the number of the best."""
        best = self.best
        about = {
            "metric": self.metric,
            "direction": self.direction,
            "best": None if best is None else best.number,
            "trials": [
                {"number": trial.number, "state": trial.state.name.lower(), "parameters": rounded(trial.params), **trial.user_attrs}
                for trial in self.trials
            ],
        }
        write_text(path, json.dumps(about, indent=1) + "\n")

    def _value(self, record: Record) -> float:
        metrics = record.metrics
        if self.metric is None:
            self.metric = EVALUATIONS[record.identity["eval"]["name"]].headline(metrics)
        if self.metric not in metrics:
            raise UserError(f"hydra.sweeper.metric={self.metric}: {closest(self.metric, metrics)}")
        self.declared = record.metric(self.metric)
        if self.direction is None:
            if (lower := self.declared.lower) is None:
                raise UserError(f"{unsure(self.declared)}; hydra.sweeper.direction=minimize or maximize says so")
            self.direction = "minimize" if lower else "maximize"
        return float(metrics[self.metric])

    @staticmethod
    def _note(trial: Trial, point_id: str | None, **what: Sequence[float] | str) -> None:
        points = [*trial.user_attrs.get("points", ()), *([] if point_id is None else [point_id])]
        for name, content in {"points": points, **what}.items():
            trial.set_user_attr(name, content)
