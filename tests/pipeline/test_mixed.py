"""Mixed precision on a model that learnt something: damage is found where it was planted, and bits go there."""

import random
from dataclasses import replace

import pytest
import torch
from labs import Lab, scheme

from sqbench import api
from sqbench.calibration import Statistics
from sqbench.data import Windows
from sqbench.evaluation import Result
from sqbench.formats.format import Format
from sqbench.formats.scheme import Scheme
from sqbench.models.folding import share
from sqbench.models.language import LanguageModel
from sqbench.parts.task import Task
from sqbench.pipeline.mixed import Allocation, measure, mix
from sqbench.quant.access import set_weight, weight_of
from sqbench.running import damage

WIDTHS = [2, 3, 4, 6, 8]
FORMAT = Format(4, symmetric=False, granularity="group", group_size=32)
W3, W4 = (Scheme(f"w{bits}", replace(FORMAT, bits=bits)) for bits in (3, 4))


def divergence(model: LanguageModel, statistics: Statistics, bits: Scheme, windows: Windows, baseline: Result) -> float:
    return api.evaluate(api.quantize(model, statistics, "rtn", bits), windows, baseline).metrics["kl_to_fp"]


def drawn(allocation: Allocation, seed: int) -> Allocation:
    """Random widths that spend as many bits, or a step less."""
    generator, portions = random.Random(seed), allocation.portions
    total = sum(portion.weights for portion in portions)
    while True:
        bits = [generator.choice(WIDTHS) for _ in portions]
        average = sum(width * portion.weights for width, portion in zip(bits, portions, strict=True)) / total
        if allocation.budget - 0.5 < average <= allocation.budget:
            return replace(allocation, portions=tuple(replace(one, bits=width) for one, width in zip(portions, bits, strict=True)))


def planted(model: LanguageModel, mlp: str) -> LanguageModel:
    """The model with a few inputs of one down_proj made small and their weights large: the same function, harder to round."""
    module = share(model.module)
    up, down = (module.get_submodule(f"{mlp}.{name}") for name in ("up_proj", "down_proj"))
    scale = torch.ones(len(weight_of(up)))
    scale[::32] = 40.0
    set_weight(up, weight_of(up) / scale.unsqueeze(1))
    set_weight(down, weight_of(down) * scale)
    return replace(model, module=module, fingerprint=f"planted in {mlp}")


def test_the_sensitive_group_is_found(tiny: LanguageModel, statistics: Statistics) -> None:
    mlp = "model.layers.0.mlp"
    damage, before = (measure(Task(model, statistics, W3), model) for model in (planted(tiny, mlp), tiny))
    assert max(damage, key=damage.__getitem__) == mlp != max(before, key=before.__getitem__)


def test_bits_go_to_the_sensitive_group(tiny: LanguageModel, statistics: Statistics, windows: Windows) -> None:
    mlp = "model.layers.1.mlp"
    model = planted(tiny, mlp)
    harder = api.allocate(model, api.calibrate(model, windows.calibration), W3, 4.5)
    bits, before = ({one.name: one.bits for one in found.portions} for found in (harder, api.allocate(tiny, statistics, W3, 4.5)))
    assert bits[mlp] > before[mlp]


@pytest.mark.parametrize("measured", [W3, W4], ids=["measured at 3 bits", "measured at 4 bits"])
def test_better_than_one_width_and_than_chance(
    measured: Scheme, tiny: LanguageModel, statistics: Statistics, windows: Windows, baseline: Result
) -> None:
    allocation = api.allocate(tiny, statistics, measured, 4.5)
    assert 4 < allocation.average_bits <= 4.5
    mixed = divergence(tiny, statistics, allocation.applied(measured), windows, baseline)
    assert mixed <= divergence(tiny, statistics, W4, windows, baseline)
    chance = [divergence(tiny, statistics, drawn(allocation, seed).applied(W4), windows, baseline) for seed in range(5)]
    assert mixed < sum(chance) / len(chance)


def test_damage_is_the_divergence_of_a_point_that_rounds_one_group(tiny: LanguageModel, statistics: Statistics) -> None:
    damage = measure(Task(tiny, statistics, W3), tiny)
    with torch.no_grad():
        base = tiny.forward(statistics.sample).log_softmax(-1).double()
        for name in ("model.layers.0.self_attn", "model.layers.1.mlp"):
            rounded = api.quantize(tiny, statistics, "rtn", replace(W3, layers=(name,))).forward(statistics.sample)
            expected = (base.exp() * (base - rounded.log_softmax(-1).double())).sum(-1).mean()
            assert damage[name] == pytest.approx(float(expected), rel=1e-3)


def test_damage_at_another_width_is_foretold(tiny: LanguageModel, statistics: Statistics) -> None:
    """Within a factor of three over three orders of magnitude, from one width measured."""

    def measured(bits: int) -> dict[str, float]:
        return measure(Task(tiny, statistics, Scheme("w", replace(FORMAT, bits=bits))), tiny)

    known = measured(4)
    allocation = mix(Task(tiny, statistics, W4), known, WIDTHS, 8.0)
    for bits in WIDTHS:
        found = measured(bits)
        for portion in allocation.portions:
            assert found[portion.name] / 3 < portion.damage[bits] < 3 * found[portion.name], (bits, portion)
    for portion in allocation.portions:
        assert portion.damage[4] == pytest.approx(known[portion.name], rel=1e-5)  # two sums of float32, in any order
        assert portion.damage[4] / portion.damage[8] > 4**2  # the model has outliers; without them it would be about 4**4


def test_measuring_leaves_the_model_as_it_was(tiny: LanguageModel, statistics: Statistics) -> None:
    before = tiny.forward(tiny.example())
    measure(Task(tiny, statistics, W3), tiny)
    assert torch.equal(tiny.forward(tiny.example()), before)
    assert not any(module._forward_hooks for module in tiny.module.modules())


def test_every_group_gets_the_budget_itself_where_it_is_a_width(tiny: LanguageModel, statistics: Statistics) -> None:
    for width in (3, 8):
        allocation = api.allocate(tiny, statistics, W4, width, [width])
        assert {portion.bits for portion in allocation.portions} == {width}
        assert allocation.average_bits == width


def test_convolutions_have_bits_too(cnn: Lab) -> None:
    bits = scheme(3, 8)
    allocation = api.allocate(cnn.model, cnn.statistics, bits, 4.0)
    assert [portion.name for portion in allocation.portions] == ["conv1", "conv2", "fc"]
    assert 3 < allocation.average_bits <= 4
    quantized = api.quantize(cnn.model, cnn.statistics, "minmax", allocation.applied(bits))
    formats = {layer["layer"]: layer["format"] for layer in quantized.report["per_layer"]}
    assert formats == {portion.name: f"int{portion.bits} sym channel" for portion in allocation.portions}


def test_what_is_measured_is_kept(tiny: LanguageModel, statistics: Statistics, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    task = Task(tiny, statistics, W3)
    first = damage.damage(task, tiny, tmp_path)
    assert mix(task, first, [2, 3, 4, 6, 8], 4.5) == api.allocate(tiny, statistics, W3, 4.5)
    other = damage.damage(Task(tiny, statistics, W4), tiny, tmp_path)
    assert other.keys() == first.keys()
    assert other != first  # of another width
    monkeypatch.setattr(damage, "measure", lambda *arguments: pytest.fail("measured again"))
    assert damage.damage(task, tiny, tmp_path) == first
