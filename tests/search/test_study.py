"""The study against functions whose best is known."""

import json

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from sqbench.comparison import Metric
from sqbench.errors import UserError
from sqbench.records.record import Record
from sqbench.search.space import space_of
from sqbench.search.study import KEPT, Study


def study(*overrides, rungs=1, seed=0, metric=None, direction=None):
    space = space_of(OverridesParser.create().parse_overrides(list(overrides or ["alpha=interval(0,1)"])))
    return Study(space, rungs, seed, metric, direction)


def record(value, metric="perplexity", **more):
    identity = {"eval": {"name": "top1" if metric == "top1" else "perplexity"}}
    better = {"perplexity": "lower", "top1": "higher", "glossary/acc": "higher"}
    declared = {name: Metric(name, better.get(name)) for name in (metric, *more)}
    return Record(f"{value:.12f}", identity, {}, metrics={metric: value, **more}, declared=declared)


def search(found, values, trials, at_once=1):
    """Run a study on a function of a choice and a rung."""
    while len(found.trials) < trials:
        for trial in found.ask(min(at_once, trials - len(found.trials))):
            for rung in range(found.rungs):
                if not found.tell(trial, values(trial.params, rung)):
                    break
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("metric", "sign"), [("perplexity", 1.0), ("top1", -1.0)])
def test_it_finds_the_best_value_whether_less_or_more_is_better(seed, metric, sign):
    found = search(study(seed=seed), lambda chosen, _: record(sign * (chosen["alpha"] - 0.37) ** 2, metric), 30)
    assert found.best.params["alpha"] == pytest.approx(0.37, abs=0.02)
    assert (found.metric, found.direction) == (metric, "minimize" if sign > 0 else "maximize")


def test_a_list_and_an_interval_are_searched_together():
    loss = {"w8a8": 0.0, "w4a16": 0.3, "w3a16": 0.6}
    found = search(
        study("alpha=interval(0,1)", "bits=w3a16,w4a16,w8a8"),
        lambda chosen, _: record(loss[chosen["bits"]] + (chosen["alpha"] - 0.8) ** 2),
        40,
    )
    assert found.best.params["bits"] == "w8a8"
    assert found.best.params["alpha"] == pytest.approx(0.8, abs=0.05)


def test_the_metric_and_its_direction_may_be_told():
    found = search(study(metric="kl", direction="maximize"), lambda chosen, _: record(1.0, kl=chosen["alpha"]), 20)
    assert found.best.params["alpha"] == max(trial.params["alpha"] for trial in found.trials)
    other = study(metric="perplexty")
    with pytest.raises(UserError, match=r"hydra\.sweeper\.metric=perplexty: did you mean perplexity\?"):
        other.tell(other.ask(1)[0], record(1.0))


def test_a_rung_is_for_the_best_of_the_one_before():
    """An early look with an error that turns no ranks: the best goes on, and about one in four of all."""
    found = search(study(rungs=2), lambda chosen, rung: record((chosen["alpha"] - 0.37) ** 2 + (0.5 if rung == 0 else 0)), 32)
    states = [trial.state.name for trial in found.trials]
    assert set(states) == {"COMPLETE", "PRUNED"}
    assert 32 // KEPT // 2 <= states.count("COMPLETE") <= 16
    early = {trial.number: trial.user_attrs["values"][0] for trial in found.trials}
    assert found.best.number == min(early, key=early.get)
    assert all(len(trial.user_attrs["points"]) == (2 if trial.state.name == "COMPLETE" else 1) for trial in found.trials)


@pytest.mark.parametrize("at_once", [1, 4])
def test_the_same_seed_and_results_make_the_same_trials(at_once):
    def run(trials, seed=0):
        done = search(study(rungs=2, seed=seed), lambda chosen, rung: record(abs(chosen["alpha"] - 0.4) + rung), trials, at_once)
        return [trial.params["alpha"] for trial in done.trials]

    assert run(16)[:12] == run(12)
    assert run(12) != run(12, seed=1)


def test_failed_trials_are_passed_over_and_all_is_written_down(tmp_path):
    found = study()
    first, second = found.ask(2)
    found.fail(first, "no range", "0123")
    assert found.best is None
    found.tell(second, record(2.0))
    found.save(tmp_path / "search.json")
    told = json.loads((tmp_path / "search.json").read_text())
    assert (told["metric"], told["direction"], told["best"]) == ("perplexity", "minimize", 1)
    failed, done = told["trials"]
    assert (failed["state"], failed["error"], failed["points"]) == ("fail", "no range", ["0123"])
    assert (done["state"], done["values"], done["points"]) == ("complete", [2.0], [record(2.0).point_id])
    assert done["parameters"] == {"alpha": pytest.approx(second.params["alpha"], rel=1e-5)}


def test_a_task_of_its_own_may_be_called_glossary_and_a_metric_of_its_own_needs_a_direction():
    found = search(study(metric="glossary/acc"), lambda chosen, _: record(1.0, **{"glossary/acc": chosen["alpha"]}), 20)
    assert found.direction == "maximize"
    assert found.best.params["alpha"] == max(trial.params["alpha"] for trial in found.trials)
    other = study(metric="glossary/loss_score")
    with pytest.raises(UserError, match=r"glossary/loss_score: .* is not known; hydra\.sweeper\.direction=minimize or maximize"):
        other.tell(other.ask(1)[0], record(1.0, **{"glossary/loss_score": 1.0}))
