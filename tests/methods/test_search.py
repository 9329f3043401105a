"""The race among candidate scales, against all of them on all of the sample."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sqbench import api
from sqbench.calibration import Statistics
from sqbench.formats.format import Format
from sqbench.formats.scheme import Scheme
from sqbench.models.folding import Group
from sqbench.models.language import LanguageModel
from sqbench.parts.task import Task
from sqbench.transforms.awq import ActivationAware
from sqbench.transforms.search import FINALISTS, _losses, block_losses


def test_finalists_have_the_losses_of_the_whole_sample(tiny: LanguageModel, statistics: Statistics) -> None:
    task = Task(tiny, statistics, api.scheme_of(api.configure("bits=w3a16")))
    groups = [*tiny.topology.groups, *tiny.topology.pairs]
    scales: dict[Group, list[Tensor]] = {
        group: [ActivationAware().scale(task, group, step / 10) for step in range(10)] for group in groups
    }
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
    losses = block_losses(task, groups, lambda group: [ActivationAware().scale(task, group, step / 4) for step in range(4)])
    assert all(bool(loss.isfinite().all()) for loss in losses.values())


@pytest.mark.parametrize("inputs", [None, Format(4, symmetric=False, dynamic=True)], ids=str)
def test_candidates_meet_the_widths_that_the_layers_get(tiny: LanguageModel, statistics: Statistics, inputs: Format | None) -> None:
    """The last layer at 8 bits (edge_bits), and layers at 8 bits of a mixed allocation, are searched as in a scheme of 8 bits."""
    narrow = Scheme("narrow", Format(3, symmetric=False, granularity="group", group_size=32), inputs)
    wide = replace(
        narrow, weights=narrow.weights and replace(narrow.weights, bits=8), activations=inputs and replace(inputs, bits=8)
    )
    (last,) = (pair for pair in tiny.topology.pairs if pair.readers == (tiny.topology.layers[-1],))
    mlp = next(group for group in tiny.topology.groups if group.readers[0].endswith("gate_proj"))

    def losses(scheme: Scheme, group: Group) -> Tensor:
        task = Task(tiny, statistics, scheme)
        scales = [ActivationAware().scale(task, group, step / 3) for step in range(3)]
        return block_losses(task, [group], lambda _: scales, lambda _, scale: pytest.fail("dynamic ranges need no limits"))[group]

    assert torch.equal(losses(replace(narrow, edge_bits=8), last), losses(wide, last))
    assert bool((losses(replace(narrow, edge_bits=8), last) < 0.5 * losses(narrow, last)).all())
    if inputs is None:
        mixed = replace(narrow, widths=tuple((name, 8) for name in mlp.readers))
        assert torch.equal(losses(mixed, mlp), losses(wide, mlp))
        assert not torch.equal(losses(mixed, mlp), losses(narrow, mlp))
