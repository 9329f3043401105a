"""A search: results choose the next points, until a budget of trials is spent."""

import itertools
import logging
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.sqbench_sweeper.base import CheckedSweeper

if TYPE_CHECKING:
    from optuna.trial import Trial

    from sqbench.records.outcome import Outcome
    from sqbench.running.point import Point

log = logging.getLogger("sqbench.search")
FILE = "search.json"  # all trials, in the folder of the sweep


class SearchSweeper(CheckedSweeper):
    """An Optuna study behind the command line of a sweep. conf/hydra/sweeper/search.yaml explains its keys."""

    def __init__(
        self,
        trials: int,
        metric: str | None,
        direction: str | None,
        seed: int,
        jobs: int,
        rungs: Sequence[float],
        params: dict[str, str] | None,
    ) -> None:
        super().__init__(max_batch_size=None, params=params)
        self.trials, self.metric, self.direction, self.seed, self.jobs, self.rungs = trials, metric, direction, seed, jobs, rungs
        self.outcomes: dict[str, Outcome] = {}  # by the point id on this machine; a node with another device has another id

    def prepare(self, overrides: list[Override]) -> int:
        from sqbench.config import EACH
        from sqbench.console.extras import extra
        from sqbench.errors import UserError
        from sqbench.sweeps import sweep

        with extra("search", "hydra/sweeper=search"):
            from sqbench.search.space import space_of
            from sqbench.search.study import Study
        self._check_keys()
        self.space = space_of(overrides)
        self.study = Study(self.space, len(self.rungs), self.seed, self.metric, self.direction)
        jobs = [(job, self.composed(job)) for job in map(self.space.overrides, self.space.corners())]
        if any(cfg.layers == EACH for _, cfg in jobs):
            raise UserError(f"layers={EACH}: is all groups of layers; a search takes names of some, and a plain sweep takes {EACH}")
        self.corner = sweep.checked(jobs)[0][1]
        self.smaller, *_ = [self._smaller(cfg) for _, cfg in jobs]  # each of them may raise
        return self.trials * len(self.rungs)

    def _check_keys(self) -> None:
        from sqbench.errors import UserError, known

        for key, least, works in (("trials", 1, "1 or more"), ("jobs", 1, "1 or more"), ("seed", 0, "a number of 32 bits")):
            value = getattr(self, key)
            if not isinstance(value, int) or value < least or (key == "seed" and value >= 2**32):
                raise UserError(f"hydra.sweeper.{key}={value}: must be {works}")
        ways = ("minimize", "maximize")
        if self.direction not in (None, *ways):
            raise UserError(f"hydra.sweeper.direction={self.direction}: {known(str(self.direction), ways)}")
        shares = list(self.rungs) if OmegaConf.is_list(self.rungs) else [None]
        numbers = all(isinstance(share, int | float) for share in shares)
        if not numbers or shares[-1:] != [1] or not all(a < b for a, b in itertools.pairwise([0, *shares])):
            raise UserError(f"hydra.sweeper.rungs={self.rungs}: must be shares that grow up to 1, [0.25,1.0] for example")

    def _smaller(self, cfg: DictConfig) -> list[dict[str, int]]:
        """The changes of a configuration on each rung: its number of examples. The last rung changes nothing.

        Raises:
            UserError: the evaluation has no number of examples, or the number is too small for the rungs.
        """
        from sqbench.errors import UserError
        from sqbench.evaluation import EVALUATIONS, natural_evaluation
        from sqbench.models import LOADERS

        if len(self.rungs) == 1:
            return [{}]
        kind = LOADERS[cfg.model.loader].kind
        name = natural_evaluation(cfg.eval.name, kind)
        key = EVALUATIONS[name].size.get(kind)
        if key is None:
            raise UserError(f"hydra.sweeper.rungs={self.rungs}: eval={name} does not get cheaper by fewer examples; use [1.0]")
        whole = OmegaConf.select(cfg, key)
        if whole is None:
            raise UserError(f"{key}=null: hydra.sweeper.rungs={self.rungs} are shares of it; use {key}=1000")
        sizes = [max(1, round(share * whole)) for share in self.rungs]
        if any(a >= b for a, b in itertools.pairwise(sizes)):
            raise UserError(f"hydra.sweeper.rungs={self.rungs}: of {key}={whole} they are {sizes}; use shares further apart")
        return [*({key: size} for size in sizes[:-1]), {}]

    def show_plan(self) -> None:
        from sqbench.console.progress import output
        from sqbench.search.space import described
        from sqbench.sweeps.cost import History

        sizes = [f"{key}={size}" for smaller in self.smaller for key, size in smaller.items()]
        each = f", each at {', '.join(sizes)} first, and in full only if it is among the best there" if sizes else ""
        predicted = None if self.corner.first else History(self.store.records(brief=True)).predict(self.corner)
        cost = "unknown cost" if predicted is None else f"about {predicted.seconds:.0f} s"
        cost += f": {self.corner.first}" * bool(self.corner.first)
        lines = [
            "plan: nothing is computed",
            *(f"  {key}: {described(dimension)}" for key, dimension in self.space.dimensions.items()),
            f"at most {self.trials} trials{each}; a point is of {cost}",
        ]
        output.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)

    def run(self) -> int:
        from sqbench.sweeps import sweep

        while (asked := len(self.study.trials)) < self.trials:
            climbing = self.study.ask(min(self.jobs, self.trials - asked))
            for rung in range(len(self.rungs)):
                climbing = self._climb(climbing, rung)
            self.study.save(self.folder / FILE)
        status = sweep.report(list(self.outcomes.values()), self.config.results_dir)
        self._print_best()
        return status

    def _climb(self, trials: "Sequence[Trial]", rung: int) -> "list[Trial]":
        """Compute the points of trials on a rung. Return the trials that go on from there."""
        from sqbench.errors import UserError
        from sqbench.sweeps import sweep

        placed = []
        for trial in trials:
            try:
                ((job, point),) = sweep.checked([self._job(trial.params, rung)])
                placed.append((trial, job, point))
            except UserError as error:  # values that work one by one but not together
                log.warning("trial %d cannot work: %s", trial.number, error)
                self.study.fail(trial, str(error))
        self._compute([(job, point) for _, job, point in placed])
        going = []
        for trial, _, point in placed:
            outcome = self.outcomes[point.id]
            record = self.store.read(outcome.point_id, brief=True) if outcome.state in ("done", "skipped") else None
            if record is None:
                self.study.fail(trial, outcome.error or outcome.summary, outcome.point_id)
            elif self.study.tell(trial, record):
                going.append(trial)
        return going

    def _job(self, chosen: Mapping[str, Any], rung: int) -> tuple[list[str], DictConfig]:
        """The overrides and the configuration of a choice of values on a rung."""
        job = self.space.overrides(chosen)
        cfg = self.composed(job)
        if smaller := self._smaller(cfg)[rung]:
            job = self.space.overrides({**chosen, **smaller})
            cfg = self.composed(job)
        return job, cfg

    def _compute(self, points: "Sequence[tuple[Sequence[str], Point]]") -> None:
        """Launch the points that this search does not know yet. A sampler may ask for the same point twice."""
        from sqbench.records import sweeps

        new = {point.id: (job, point) for job, point in points if point.id not in self.outcomes}
        if new:
            self.points += new.values()
            self.listed = sweeps.extend(self.folder, self.listed, list(new), self.store, force=self.config.force)
            self.outcomes |= zip(new, self.launch(list(new.values())), strict=True)

    def _print_best(self) -> None:
        from sqbench.console.progress import output
        from sqbench.reporting.units import number
        from sqbench.search.space import rounded

        best, states = self.study.best, [trial.state.name for trial in self.study.trials]
        stopped = {"stopped early": states.count("PRUNED"), "without a result": states.count("FAIL")}
        trials = f"{len(states)} trials" + "".join(f", {count} {what}" for what, count in stopped.items() if count)
        if best is None:
            lines = [f"no best: {trials}"]
        else:
            point_id = best.user_attrs["points"][-1]
            value = number(best.user_attrs["values"][-1], self.study.declared)
            outcome = next(outcome for outcome in self.outcomes.values() if outcome.point_id == point_id)
            drawn = " ".join(f"{key}={item}" for key, item in rounded(best.params).items())
            lines = [
                f"best of {trials}: {self.study.metric} {value} at {drawn} · point {point_id}",
                f"    {shlex.join(['python', '-m', 'sqbench.run', *outcome.overrides])}",
            ]
        lines.append(f"all trials: {self.folder / FILE}")
        output.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
