"""The streaming pass: once over the data, bounded, cached by what it depends on."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from sqbench.calibration import Statistics, collect, collect_cached, observe
from sqbench.calibration.collect import CalibrationError
from sqbench.calibration.observe import Names
from sqbench.calibration.shelf import Shelf
from sqbench.data import Batches, Windows
from sqbench.models.folding import share
from sqbench.models.language import LanguageModel
from sqbench.quant.operations import Point
from sqbench.statistics.inputs import InputStatistics


def cached(model: LanguageModel, batches: torch.Tensor, folder: Path, fingerprint: str = "f") -> tuple[Statistics, bool]:
    """Statistics, and whether no forward pass was needed for them."""
    passes: list[torch.Tensor] = []

    def run(batch: torch.Tensor) -> torch.Tensor:
        passes.append(batch)
        return model.body(batch)

    def observer(
        names: Names, sites: Sequence[str], inputs: Batches, points: Sequence[Point], shelf: Shelf | None
    ) -> dict[str, InputStatistics]:
        return observe(model.module, run, names, sites, inputs, points, shelf)

    about = {"dtype": torch.float32, "device": model.device, "folder": folder}
    statistics = collect_cached(observer, model.topology.sites, batches, 2, fingerprint=fingerprint, **about)
    assert len(passes) in (0, len(batches))
    return statistics, not passes


def same(a: Statistics, b: Statistics) -> bool:
    return a.inputs.keys() == b.inputs.keys() and all(
        torch.equal(value, b.inputs[site].tensors()[name])
        for site, stats in a.inputs.items()
        for name, value in stats.tensors().items()
    )


def test_every_site_is_seen_with_every_token(tiny: LanguageModel, windows: Windows, statistics: Statistics) -> None:
    assert tuple(statistics.inputs) == tiny.topology.sites
    assert all(stats.tokens == windows.calibration.numel() for stats in statistics.inputs.values())
    assert torch.equal(statistics.sample, windows.calibration[:4])


def test_statistics_are_those_of_the_layer_inputs(tiny: LanguageModel, windows: Windows, statistics: Statistics) -> None:
    site = "model.layers.1.mlp.down_proj"
    seen: list[torch.Tensor] = []
    handle = tiny.module.get_submodule(site).register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
    with torch.no_grad():
        tiny.forward(windows.calibration)
    handle.remove()
    torch.testing.assert_close(statistics.inputs[site].absmax, seen[0].abs().amax((0, 1)), rtol=1e-5, atol=1e-6)


def test_hooks_are_gone_afterwards(tiny: LanguageModel, statistics: Statistics) -> None:
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in tiny.module.modules())


def test_memory_is_the_same_for_any_number_of_windows(tiny: LanguageModel, windows: Windows) -> None:
    def size(batches: torch.Tensor) -> int:
        found = collect(tiny.module, tiny.body, tiny.topology.sites, batches)
        return sum(value.nbytes for stats in found.inputs.values() for value in stats.tensors().values())

    assert size(windows.calibration[:4]) == size(windows.calibration)


def test_the_cache_gives_the_same_bits_and_knows_what_it_depends_on(tiny: LanguageModel, windows: Windows, tmp_path: Path) -> None:
    first, hit = cached(tiny, windows.calibration[:4], tmp_path)
    assert not hit
    again, hit = cached(tiny, windows.calibration[:4], tmp_path)
    assert hit
    assert same(first, again)
    assert not cached(tiny, windows.calibration[4:8], tmp_path)[1]
    assert not cached(tiny, windows.calibration[:4], tmp_path, fingerprint="other")[1]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_cache_is_moved_aside_and_computed_again(
    tiny: LanguageModel, windows: Windows, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    first, _ = cached(tiny, windows.calibration[:4], tmp_path)
    path = next(tmp_path.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-100] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.write_bytes(b"")
    again, hit = cached(tiny, windows.calibration[:4], tmp_path)
    assert not hit
    assert same(first, again)
    assert f"{path.name} is damaged" in caplog.text
    assert path.with_name(path.name + ".corrupt").exists()


def test_nan_names_the_layer(tiny: LanguageModel, windows: Windows) -> None:
    module = share(tiny.module)
    layer = module.get_submodule("model.layers.1.mlp.up_proj")
    layer.weight = torch.nn.Parameter(torch.full_like(layer.weight, float("nan")), requires_grad=False)
    broken = tiny.with_module(module, None)
    with pytest.raises(
        CalibrationError, match=r"NaN or infinity in the input of model\.layers\.1\.mlp\.down_proj during calibration"
    ):
        collect(module, broken.body, tiny.topology.sites, windows.calibration)
