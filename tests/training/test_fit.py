"""Training of quantized networks: what it buys, what it leaves alone, and that it is the same each time."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from labs import Lab, images, scheme, snapshot
from torch import Tensor, nn

from sqbench.data.image_splits import in_memory
from sqbench.data.images import Batch, LabelledImages
from sqbench.errors import UserError
from sqbench.formats.format import Format
from sqbench.formats.scheme import Scheme
from sqbench.models.base import Model
from sqbench.pipeline.engine import quantize
from sqbench.quant.layers import ActivationQuantizer, QuantLayer
from sqbench.recipes.configured import named
from sqbench.rounding.trained import Qat, QatLsq
from sqbench.storage.files import canonical_json
from sqbench.training import fit
from sqbench.training.network import Network

FLOAT = Scheme("fp")
DYNAMIC = Scheme(
    "w4a4", Format(4, symmetric=False, granularity="group", group_size=8), Format(4, granularity="token", dynamic=True)
)
SHORT: dict[str, Any] = {"epochs": 2, "images": 160, "batch": 32, "lr": 2e-3}


def same(a: Model, b: Model) -> bool:
    """Whether two models hold the same tensors, bit for bit, and clip alike."""
    one, other = snapshot(a), snapshot(b)
    ranges = [[m.static for m in model.module.modules() if isinstance(m, ActivationQuantizer) and m.static] for model in (a, b)]
    alike = all(torch.equal(x, y) for p, q in zip(*ranges, strict=True) for x, y in zip(p[:2], q[:2], strict=True))
    return alike and one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "bits"), [("cnn", (2, None)), ("vit", (2, 4))])
def test_learned_steps_beat_min_max_training_and_that_beats_rounding(
    name: str, bits: tuple[int, int | None], request: pytest.FixtureRequest
) -> None:
    lab: Lab = request.getfixturevalue(name)
    task = lab.task(scheme(*bits))
    rounded = min(lab.loss(quantize(task, named(method))) for method in ("minmax", "mse"))
    trained = {method: fit(task, method(epochs=4, batch=32), lab.train, seed=0) for method in (Qat, QatLsq)}
    assert lab.loss(trained[QatLsq]) < lab.loss(trained[Qat]) < 0.9 * rounded
    for model in trained.values():
        curve = model.report["training"]["curve"]
        assert curve[-1]["loss"] < curve[1]["loss"]
        assert min(entry["validation_loss"] for entry in curve) < curve[0]["validation_loss"]


@pytest.mark.parametrize("method", [Qat, QatLsq])
@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("cnn", scheme(3, 4)),
        ("cnn", scheme(2, None)),
        ("vit", scheme(4, 4, ops="full", edge_bits=8)),
        ("vit", scheme(3, 4, ops="linear+matmul")),
        ("vit", DYNAMIC),
    ],
    ids=str,
)
def test_what_was_trained_is_what_is_evaluated(
    name: str, wanted: Scheme, method: type[Qat], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab: Lab = request.getfixturevalue(name)
    batch = next(lab.test.batches(32)).images
    trained: list[Tensor] = []
    settle = Network.settled

    def settled(network: Network, task: Any) -> Any:
        network.observe(False)
        with torch.no_grad():
            trained.append(lab.model.with_module(network.module, None).forward(batch))
        return settle(network, task)

    monkeypatch.setattr(Network, "settled", settled)
    task = lab.task(wanted)
    model = fit(task, method(**SHORT), lab.train, seed=0)
    torch.testing.assert_close(model.forward(batch), trained[0], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(trained[0], lab.model.forward(batch), atol=1e-2)
    rounded = quantize(task, named("minmax"))
    layers = [
        [(n, str(m)) for n, m in found.module.named_modules() if isinstance(m, QuantLayer | ActivationQuantizer)]
        for found in (model, rounded)
    ]
    assert layers[0] == layers[1]  # the very modules that rounding alone makes
    assert model.report.keys() - {"training"} == rounded.report.keys()
    for key in ("layers", "coverage", "points"):
        assert model.report[key] == rounded.report[key]


def test_the_float_model_is_left_alone(cnn: Lab) -> None:
    before = snapshot(cnn.model)
    fit(cnn.task(scheme(4, 4)), QatLsq(**SHORT), cnn.train, seed=0)
    after = snapshot(cnn.model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None and not p.requires_grad for p in cnn.model.module.parameters())
    assert not cnn.model.module.training


def test_the_report_counts_steps_and_draws_the_curve(cnn: Lab) -> None:
    method = Qat(**SHORT, validation=0.2)
    report = fit(cnn.task(scheme(4, 4)), method, cnn.train, seed=0).report
    canonical_json(report)
    training = report["training"]
    assert (training["images"], training["validation_images"]) == (128, 32)
    assert report["gradient_steps"] == training["gradient_steps"] == 2 * 4
    assert [entry["epoch"] for entry in training["curve"]] == [0, 1, 2]
    assert training["curve"][0]["loss"] is None
    assert 0 < training["curve"][2]["lr"] < training["curve"][1]["lr"] < method.lr
    assert quantize(cnn.task(scheme(4, 4)), named("minmax")).report["gradient_steps"] == 0


def test_a_float_scheme_trains_the_float_model_for_as_many_steps(cnn: Lab) -> None:
    control = fit(cnn.task(FLOAT), Qat(**SHORT), cnn.train, seed=0)
    quantized = fit(cnn.task(scheme(4, 4)), Qat(**SHORT), cnn.train, seed=0)
    assert control.report["layers"] == 0
    assert control.report["gradient_steps"] == quantized.report["gradient_steps"] > 0
    assert not any(isinstance(module, QuantLayer | ActivationQuantizer) for module in control.module.modules())
    assert cnn.loss(control) != cnn.loss(cnn.model)


def test_the_same_run_twice_gives_the_same_bits_and_another_seed_others(cnn: Lab) -> None:
    task = cnn.task(scheme(3, 4))
    first, second, other = (fit(task, QatLsq(**SHORT), cnn.train, seed=seed) for seed in (0, 0, 1))
    assert same(first, second)
    assert first.report == second.report
    assert not same(first, other)


class Killed(Exception):
    """Stands for a signal."""


class Counted(LabelledImages):
    """Images that count the batches of training they gave, and may kill the run at one of them."""

    def __init__(self, whole: LabelledImages, die_at: int | None = None) -> None:
        super().__init__(whole.split, whole.indices, whole.preprocessing, whole.decoder)
        self.given, self.die_at = 0, die_at

    def batches(self, size: int, order: Sequence[int] | Tensor | None = None) -> Iterator[Batch]:
        for batch in super().batches(size, order):
            self.given += torch.is_grad_enabled()
            if torch.is_grad_enabled() and self.given == self.die_at:
                raise Killed
            yield batch


@pytest.mark.parametrize("method", [Qat, QatLsq])
def test_a_killed_run_goes_on_where_it_was_and_ends_with_the_same_bits(method: type[Qat], cnn: Lab, tmp_path: Path) -> None:
    task, parameters = cnn.task(scheme(3, 4)), method(**{**SHORT, "epochs": 4})
    whole = fit(task, parameters, cnn.train, seed=0)
    steps = whole.report["gradient_steps"] // 4
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Killed):
        fit(task, parameters, Counted(cnn.train, die_at=2 * steps + 2), seed=0, checkpoint=path)
    left = Counted(cnn.train)
    resumed = fit(task, parameters, left, seed=0, checkpoint=path)
    assert left.given == 2 * steps
    assert same(resumed, whole)
    assert resumed.report == whole.report
    done = Counted(cnn.train)
    assert same(fit(task, parameters, done, seed=0, checkpoint=path), whole)
    assert done.given == 0


def test_a_checkpoint_of_another_run_is_not_used(cnn: Lab, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    base = (scheme(4, 4), Qat(**SHORT), 0)
    fit(cnn.task(base[0]), base[1], cnn.train, seed=base[2], checkpoint=path)
    content = path.read_bytes()
    others = [(scheme(3, 4), base[1], 0), (base[0], Qat(**{**SHORT, "lr": 1e-3}), 0), (base[0], QatLsq(**SHORT), 0), (*base[:2], 1)]
    for wanted, method, seed in others:
        path.write_bytes(content)
        counted = Counted(cnn.train)
        model = fit(cnn.task(wanted), method, counted, seed=seed, checkpoint=path)
        assert counted.given == model.report["gradient_steps"]
    path.write_bytes(content)
    counted = Counted(images(1024, 3))
    assert fit(cnn.task(base[0]), base[1], counted, seed=0, checkpoint=path).report["gradient_steps"] == counted.given


def test_a_damaged_checkpoint_is_set_aside(cnn: Lab, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    whole = fit(cnn.task(scheme(4, 4)), Qat(**SHORT), cnn.train, seed=0, checkpoint=path)
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    assert same(fit(cnn.task(scheme(4, 4)), Qat(**SHORT), cnn.train, seed=0, checkpoint=path), whole)
    assert path.with_name(f"{path.name}.corrupt").exists()


@pytest.mark.parametrize("freeze", [0.0, 0.5, 1.0])
def test_statistics_and_ranges_stay_for_the_last_share_of_the_steps(
    freeze: float, cnn: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[float], list[float]]] = []
    observe = Network.observe

    def watched(network: Network, observing: bool) -> None:
        state = network.state()
        moving = [[float(v.sum()) for k, v in state.items() if k.endswith(kind)] for kind in ("running_var", "range/high")]
        seen.append((moving[0], moving[1]))
        observe(network, observing)

    monkeypatch.setattr(Network, "observe", watched)
    fit(cnn.task(scheme(4, 4)), Qat(**SHORT, freeze=freeze, validation=0.0), cnn.train, seed=0)
    steps = seen[1:6] + seen[7:]  # before each of 5 + 5 steps, and once to validate after each epoch
    changed = [(a[0] != b[0], a[1] != b[1]) for a, b in itertools.pairwise(steps)]
    assert len(steps[0][0]) == 2
    assert len(steps[0][1]) == 3  # of inputs
    observing = round((1 - freeze) * 10)
    assert changed == [(step < observing, step < observing) for step in range(10)]


def relabelled(whole: LabelledImages) -> LabelledImages:
    """The same images, each called the next class."""
    pixels = torch.stack([whole.decoder.pixels([index])[0][0, 0] for index in range(len(whole))])
    split = in_memory(pixels.numpy(), ((whole.labels + 1) % 8).numpy(), "relabelled")
    return LabelledImages(split, range(len(whole)), whole.preprocessing)


def test_distillation_alone_needs_no_labels_and_labels_alone_no_teacher(cnn: Lab) -> None:
    task, wrong = cnn.task(scheme(3, 4)), relabelled(cnn.train)
    taught = Qat(**SHORT, distill=1.0)
    assert same(fit(task, taught, cnn.train, seed=0), fit(task, taught, wrong, seed=0))
    told = Qat(**SHORT, distill=0.0, validation=0.0)
    right = fit(task, told, cnn.train, seed=0)
    assert cnn.loss(right) < 0.8 * cnn.loss(fit(task, told, wrong, seed=0))
    calls: list[int] = []
    handle = cnn.model.module.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    try:
        fit(task, told, cnn.train, seed=0)
        assert len(calls) == 10  # the hook is copied with the module: the student's steps, and no teacher
        calls.clear()
        fit(task, Qat(**SHORT, validation=0.0), cnn.train, seed=0)
        assert len(calls) == 20
    finally:
        handle.remove()


def test_training_stops_early_and_gives_back_the_best_epoch(cnn: Lab) -> None:
    wild = Qat(**{**SHORT, "epochs": 12, "lr": 0.3}, patience=2)
    model = fit(cnn.task(scheme(8, 8)), wild, cnn.train, seed=0)
    training = model.report["training"]
    assert training["stopped_early"]
    losses = [entry["validation_loss"] for entry in training["curve"]]
    assert training["best_epoch"] == losses.index(min(losses)) == training["epochs"] - 2
    assert model.report["gradient_steps"] == 4 * training["epochs"] < 4 * 12
    assert cnn.loss(model) < cnn.loss(cnn.model) + 0.05


def test_a_fitted_head_is_part_of_the_loss_and_stays_as_it_is(vit: Lab) -> None:
    head = nn.Linear(32, 8)
    head.load_state_dict(vit.model.module.head.state_dict())
    backbone = Network.of(vit.task(FLOAT), Qat()).latent
    backbone.head = nn.Identity()
    features = replace(vit.model, module=backbone.requires_grad_(False), head=head)
    statistics = replace(vit.statistics, inputs={k: v for k, v in vit.statistics.inputs.items() if k != "head"})
    before = {name: value.clone() for name, value in head.state_dict().items()}
    task = replace(vit.task(scheme(2, 4)), model=features, statistics=statistics)
    model = fit(task, Qat(**{**SHORT, "epochs": 3}, validation=0.0), vit.train, seed=0)
    assert all(torch.equal(before[name], value) for name, value in head.state_dict().items())
    assert all(p.grad is None for p in head.parameters())
    assert vit.loss(model) < vit.loss(quantize(task, named("minmax")))


def test_a_half_precision_model_trains_in_float32_and_stays_half_precision(vit: Lab) -> None:
    half = replace(vit.model, module=Network.of(vit.task(FLOAT), Qat()).latent.requires_grad_(False).bfloat16())
    model = fit(replace(vit.task(scheme(4, 8)), model=half), Qat(**{**SHORT, "epochs": 1}), vit.train, seed=0)
    assert {p.dtype for p in model.module.parameters()} == {torch.bfloat16}
    assert vit.loss(model) < 2 * vit.loss(vit.model)


class Blind(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float("nan")


def test_what_cannot_be_trained_is_refused(cnn: Lab, tiny: Model) -> None:
    task = cnn.task(scheme(4, 4))
    with pytest.raises(UserError, match="tiny reads text; qat and qat_lsq train on labelled images"):
        fit(replace(task, model=tiny), Qat(), cnn.train, seed=0)
    for few in (0, 1, 2):
        left = LabelledImages(cnn.train.split, range(few), cnn.train.preprocessing)
        with pytest.raises(UserError, match=rf"method.images=None.*has {few} images.*2 are needed"):
            fit(task, Qat(), left, seed=0)
    with pytest.raises(UserError, match=r"head: .*no gradient"):
        fit(replace(task, model=replace(cnn.model, head=Blind())), Qat(**SHORT), cnn.train, seed=0)
    with pytest.raises(UserError, match=r"method.lr=0.002: training diverged in epoch 1"):
        fit(replace(task, model=replace(cnn.model, head=Broken())), Qat(**SHORT), cnn.train, seed=0)
    wide = Scheme("w4", Format(4, granularity="group", group_size=7))
    with pytest.raises(UserError, match="group_size=7"):
        fit(cnn.task(wide), Qat(**SHORT), cnn.train, seed=0)
