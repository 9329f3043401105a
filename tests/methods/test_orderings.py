"""Orderings that must hold on a trained model with outliers, whatever the details."""

import itertools
import re
from dataclasses import replace

import pytest
import torch

from sqbench import api
from sqbench.calibration import Statistics
from sqbench.data import Windows
from sqbench.evaluation import Result
from sqbench.formats.named import schemes
from sqbench.formats.scheme import Scheme
from sqbench.models.language import LanguageModel
from sqbench.recipes.configured import method_names, named
from sqbench.statistics import COLLECTORS


@pytest.fixture(scope="module")
def measure(tiny: LanguageModel, windows: Windows, statistics: Statistics, baseline: Result):  # type: ignore[no-untyped-def]
    """KL divergence from the float model, each point computed once."""
    known: dict[tuple[object, ...], dict[str, float]] = {}

    def metrics(method: str, bits: str, **options: object) -> dict[str, float]:
        key = (method, bits, *sorted(options.items()))
        if key not in known:
            known[key] = api.evaluate(api.quantize(tiny, statistics, method, bits, **options), windows, baseline).metrics
        return known[key]

    return metrics


def test_fewer_bits_cost_more(measure, baseline: Result) -> None:  # type: ignore[no-untyped-def]
    for method in ("rtn", "awq"):
        options = {"alpha": 0.5} if method == "awq" else {}
        kl = [measure(method, bits, **options)["kl_to_fp"] for bits in ("w8a16", "w4a16", "w3a16")]
        assert 0 < kl[0] < kl[1] < kl[2]
        perplexity = [measure(method, bits, **options)["perplexity"] for bits in ("w8a16", "w4a16", "w3a16")]
        assert baseline.metrics["perplexity"] < perplexity[1] < perplexity[2]
        assert perplexity[0] == pytest.approx(baseline.metrics["perplexity"], rel=0.01)
    assert measure("minmax", "w8a8")["kl_to_fp"] < measure("minmax", "w6a6")["kl_to_fp"]


@pytest.mark.parametrize("bits", ["w4a16", "w3a16"])
def test_awq_beats_rounding(measure, bits: str) -> None:  # type: ignore[no-untyped-def]
    rtn = measure("rtn", bits)
    for options in ({"alpha": 0.5}, {"alpha": "auto"}, {"alpha": "auto", "clip": False}):
        assert measure("awq", bits, **options)["kl_to_fp"] < rtn["kl_to_fp"]
    assert measure("awq", bits, alpha="auto")["perplexity"] < rtn["perplexity"]


def test_smoothing_repairs_outliers(measure) -> None:  # type: ignore[no-untyped-def]
    minmax = measure("minmax", "w8a8")["kl_to_fp"]
    for alpha in (0.5, 0.8, "auto"):
        assert measure("smoothquant", "w8a8", alpha=alpha)["kl_to_fp"] < 0.2 * minmax
    assert measure("smoothquant", "w8a8", alpha=0.5)["agreement"] > measure("minmax", "w8a8")["agreement"]


def test_per_token_beats_static_per_tensor(measure) -> None:  # type: ignore[no-untyped-def]
    assert measure("minmax", "w8a8_dynamic")["kl_to_fp"] < measure("minmax", "w8a8")["kl_to_fp"]
    assert measure("minmax", "w8a16")["kl_to_fp"] < measure("minmax", "w8a8_dynamic")["kl_to_fp"]


def test_clipping_estimators_beat_minmax_at_six_bits(measure) -> None:  # type: ignore[no-untyped-def]
    minmax = measure("minmax", "w6a6")["kl_to_fp"]
    for method in ("histogram", "mse"):
        assert measure(method, "w6a6")["kl_to_fp"] < minmax


@pytest.mark.slow
def test_every_method_runs_at_every_bits(tiny: LanguageModel, windows: Windows) -> None:
    from sqbench.config import CONF_DIR

    statistics = api.calibrate(tiny, windows.calibration, needs=COLLECTORS)
    every = sorted(path.stem for path in (CONF_DIR / "bits").glob("*.yaml"))
    names = [
        name for name in every if not name.startswith(("w4a16_", "mxfp8", "mxfp6")) and not re.match("(fp8|mxfp4|nvfp4)a16", name)
    ]
    wide = {
        name: (scheme.weights, scheme.activations)
        for name, scheme in schemes().items()
        if scheme.weights is not None and scheme.weights.group_size == 128
    }
    ids = tiny.example()
    reference = tiny.forward(ids)
    for method, bits in itertools.product(
        (name for name in method_names() if not (named(name).trains or named(name).stored or named(name).foreign)), names
    ):
        options = {"alpha": 0.5} if named(method).has_alpha else {}
        chosen: str | Scheme = bits
        if bits in wide:  # 128 inputs do not divide the layers
            weights, activations = (fmt and replace(fmt, group_size=fmt.group_size and 16) for fmt in wide[bits])
            chosen = Scheme(bits, weights and replace(weights, block_rows=weights.block_rows and 16), activations)
        quantized = api.quantize(tiny, statistics, method, chosen, **options)
        logits = quantized.forward(ids)
        assert torch.isfinite(logits).all(), (method, bits)
        floating = named(method).is_float or bits == "fp"
        assert (quantized.report["layers"] == 0) == floating, (method, bits)
        if not floating:
            assert not torch.equal(logits, reference), (method, bits)


def test_the_same_point_twice_gives_the_same_bits(
    tiny: LanguageModel, windows: Windows, statistics: Statistics, baseline: Result
) -> None:
    for method, alpha in (("awq", "auto"), ("smoothquant", 0.5)):
        first, second = (api.evaluate(api.quantize(tiny, statistics, method, alpha=alpha), windows, baseline) for _ in range(2))
        assert first.metrics == second.metrics
        assert first.samples.equals(second.samples)
