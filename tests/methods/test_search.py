"""The race among candidate scales, against all of them on all of the sample."""

import torch
from torch import Tensor

from sqbench import api
from sqbench.calibration import Statistics
from sqbench.methods import Task
from sqbench.methods.awq import Awq
from sqbench.methods.search import FINALISTS, _losses, block_losses
from sqbench.models.folding import Group
from sqbench.models.language import LanguageModel


def test_finalists_have_the_losses_of_the_whole_sample(tiny: LanguageModel, statistics: Statistics) -> None:
    task = Task(tiny, statistics, api.scheme_of(api.configure("bits=w3a16")))
    groups = [*tiny.topology.groups, *tiny.topology.pairs]
    scales: dict[Group, list[Tensor]] = {group: [Awq().scale(task, group, step / 10) for step in range(10)] for group in groups}
    assert len(statistics.sample) > 1
    with torch.no_grad():
        exact = _losses(task, statistics.sample, scales, None)
    for group, raced in block_losses(task, groups, scales.__getitem__).items():
        kept = raced.isfinite()
        assert bool(kept[0])
        assert FINALISTS <= int(kept.sum()) <= FINALISTS + 1
        torch.testing.assert_close(raced[kept], exact[group][kept], rtol=1e-4, atol=0)
        assert raced.min() <= 1.05 * exact[group].min()


def test_few_candidates_all_meet_the_whole_sample(tiny: LanguageModel, statistics: Statistics) -> None:
    task = Task(tiny, statistics, api.scheme_of(api.configure("bits=w3a16")))
    groups = list(tiny.topology.groups)
    losses = block_losses(task, groups, lambda group: [Awq().scale(task, group, step / 4) for step in range(4)])
    assert all(bool(loss.isfinite().all()) for loss in losses.values())
