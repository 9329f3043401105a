"""Files of collectors: a point that needs one more reads the model once more, for that one alone. Large matrices take turns."""

import importlib
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from sqbench import api
from sqbench.calibration import Statistics, shelf
from sqbench.calibration.observe import Names
from sqbench.data import Windows
from sqbench.errors import UserError
from sqbench.models import Model
from sqbench.models.language import LanguageModel
from sqbench.statistics import ALWAYS, COLLECTORS, Gram, StoredGram
from sqbench.statistics.inputs import InputStatistics

EVERYTHING = frozenset(COLLECTORS)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[Names]:
    """What was collected in every pass over the model, in order: the names of collectors, of all layers together."""
    found: list[Names] = []
    module = importlib.import_module("sqbench.calibration.observe")  # the package has a function of that name
    before = module._pass

    def counted(*args: object) -> dict[str, InputStatistics]:
        wanted, inside = args[2], args[3]
        found.append(frozenset().union(*wanted.values(), *inside.values()))  # type: ignore[attr-defined]
        return before(*args)  # type: ignore[no-any-return]

    monkeypatch.setattr(module, "_pass", counted)
    return found


def calibrate(model: Model, windows: Windows, folder: Path | None, *needs: str, points: bool = False) -> Statistics:
    return api.calibrate(model, windows.calibration[:4], needs=needs, search=2, points=points, folder=folder)


def same(one: Statistics, other: Statistics, names: Sequence[str] | Names = EVERYTHING) -> bool:
    """The same bits of these collectors, wherever they lie."""
    return one.inputs.keys() == other.inputs.keys() and all(
        a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())
        for a, b in ((one.inputs[site].tensors(names), other.inputs[site].tensors(names)) for site in one.inputs)
    )


def test_one_more_collector_is_one_more_pass_for_it_alone(
    tiny: LanguageModel, windows: Windows, tmp_path: Path, passes: list[Names]
) -> None:
    calibrate(tiny, windows, tmp_path)
    calibrate(tiny, windows, tmp_path, "histogram")
    calibrate(tiny, windows, tmp_path, "histogram", "gram")
    both = calibrate(tiny, windows, tmp_path, "blocks", "histogram", "gram")
    assert passes == [ALWAYS, {"histogram"}, {"gram"}, {"blocks"}]
    assert same(calibrate(tiny, windows, tmp_path, *EVERYTHING), both)
    assert same(calibrate(tiny, windows, None, *EVERYTHING), both)  # in one pass, and in memory
    assert passes[4:] == [EVERYTHING]


def test_the_union_makes_one_pass(tiny: LanguageModel, windows: Windows, tmp_path: Path, passes: list[Names]) -> None:
    calibrate(tiny, windows, tmp_path, *EVERYTHING)
    for needs in ((), ("histogram",), ("gram",), ("blocks", "gram")):
        found = calibrate(tiny, windows, tmp_path, *needs)
        assert all(one.collectors.keys() == ALWAYS | set(needs) for one in found.inputs.values())
    assert passes == [EVERYTHING]


def test_points_inside_modules_have_no_products(tiny: LanguageModel, windows: Windows, tmp_path: Path, passes: list[Names]) -> None:
    found = calibrate(tiny, windows, tmp_path, "gram", "blocks", "histogram", points=True)
    assert passes == [EVERYTHING, ALWAYS | {"histogram"}]
    inside = [one for site, one in found.inputs.items() if ":" in site]
    assert inside
    assert all(one.has("histogram") and not one.has("blocks") and not one.has("gram") for one in inside)
    calibrate(tiny, windows, tmp_path, "gram", points=True)
    assert len(passes) == 2


def test_a_damaged_file_costs_its_collector_alone(
    tiny: LanguageModel, windows: Windows, tmp_path: Path, passes: list[Names]
) -> None:
    first = calibrate(tiny, windows, tmp_path, *EVERYTHING)
    path = next(tmp_path.glob("*-blocks.safetensors"))
    path.write_bytes(path.read_bytes()[:100])
    assert same(first, calibrate(tiny, windows, tmp_path, *EVERYTHING))
    assert passes == [EVERYTHING, {"blocks"}]


def test_matrices_beyond_the_budget_take_turns(
    tiny: LanguageModel, windows: Windows, tmp_path: Path, passes: list[Names], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = calibrate(tiny, windows, None, *EVERYTHING)
    largest = max(shelf.gram_bytes(tiny.module, site) for site in tiny.topology.sites)
    monkeypatch.setattr(shelf, "GRAM_BYTES", largest)
    passes.clear()
    alive: list[int] = []
    put = shelf.Shelf.put

    def watched(self: shelf.Shelf, site: str, gram: Gram) -> None:
        alive.append(gram.matrix.nbytes)
        put(self, site, gram)

    monkeypatch.setattr(shelf.Shelf, "put", watched)
    found = calibrate(tiny, windows, tmp_path, *EVERYTHING)
    assert same(whole, found)
    parts = shelf.portions(tiny.module, tiny.topology.sites)
    assert passes == [EVERYTHING, *[frozenset({"gram"})] * (len(parts) - 1)]
    assert 2 < len(parts) < len(tiny.topology.sites) == len(alive)
    assert all(sum(shelf.gram_bytes(tiny.module, site) for site in part) <= largest for part in parts)
    with pytest.raises(UserError, match=r"needs=gram: the Gram matrices of 8 layers take .* use calibrate\(\.\.\., folder="):
        calibrate(tiny, windows, None, "gram")


def test_what_a_killed_calibration_has_written_is_not_collected_again(
    tiny: LanguageModel, windows: Windows, tmp_path: Path, passes: list[Names], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = calibrate(tiny, windows, tmp_path, *EVERYTHING)
    (gone, *_) = sorted(tmp_path.glob("*-gram/*mlp.down_proj.safetensors"))
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors") if path != gone}
    gone.unlink()
    assert same(first, calibrate(tiny, windows, tmp_path, *EVERYTHING))
    assert passes == [EVERYTHING, {"gram"}]
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_a_matrix_is_read_when_it_is_asked_for(tiny: LanguageModel, windows: Windows, tmp_path: Path) -> None:
    whole, found = (calibrate(tiny, windows, folder, "gram") for folder in (None, tmp_path))
    site = tiny.topology.sites[0]
    stored, scale = found.inputs[site].collectors["gram"], torch.rand(64) + 0.5
    assert isinstance(stored, StoredGram)
    assert torch.equal(found.inputs[site].scaled(scale).gram.matrix, whole.inputs[site].scaled(scale).gram.matrix)
    joined = [one.inputs[site].joined(one.inputs[site]).gram for one in (whole, found)]
    assert torch.equal(joined[0].matrix, joined[1].matrix)
    assert joined[0].count == joined[1].count == 2 * 4 * 64
    (path,) = tmp_path.glob(f"*-gram/{site}.safetensors")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"q_proj\.safetensors is damaged; calibrate again"):
        _ = found.inputs[site].gram
    again = calibrate(tiny, windows, tmp_path, "gram")
    assert torch.equal(again.inputs[site].gram.matrix, whole.inputs[site].gram.matrix)


def test_blocks_on_disk_give_the_same_matrices_one_block_at_a_time(
    tiny: LanguageModel,
    tiny_folder: Path,
    windows: Windows,
    tmp_path: Path,
    passes: list[Names],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sqbench.models.stream_loading import stream_language_model

    about = {"name": "tiny", "fingerprint": "tiny", "dtype": "float32", "trust_remote_code": False, "keep": ()}
    blocks = stream_language_model(tiny_folder, torch.device("cpu"), **about)  # type: ignore[arg-type]
    whole = calibrate(tiny, windows, tmp_path / "whole", *EVERYTHING)
    passes.clear()
    assert same(whole, calibrate(blocks, windows, None, *EVERYTHING))
    assert same(whole, calibrate(blocks, windows, tmp_path / "blocks", *EVERYTHING))
    assert passes == [EVERYTHING] * 4  # two blocks, twice
    monkeypatch.setattr(shelf, "GRAM_BYTES", 1)
    assert same(whole, calibrate(blocks, windows, tmp_path / "little", *EVERYTHING))
    assert passes[4:] == [EVERYTHING, *[frozenset({"gram"})] * 3] * 2  # each block's four matrices, one by one
    with pytest.raises(UserError, match="needs=gram"):
        calibrate(blocks, windows, None, "gram")
    assert same(whole, calibrate(blocks, windows, tmp_path / "whole", *EVERYTHING))  # the files of the whole model
    assert len(passes) == 12


def test_weights_alone_tell_second_moments_of_linear_layers(tiny: LanguageModel, windows: Windows) -> None:
    from sqbench.data.base import Unseen

    inputs = Unseen(0, lambda number: windows.calibration[:1], "none", 16, 0)
    found = api.calibrate(tiny, inputs, needs={"gram"})
    gram = found.inputs["model.layers.0.mlp.down_proj"].gram  # of what no norm writes: N(0, 1)
    matrix = gram.matrix[0] / gram.count
    assert (matrix - torch.eye(len(matrix))).abs().max() < 0.15
    assert found.inputs["model.layers.0.mlp.down_proj"].collectors.keys() == ALWAYS | {"gram"}
