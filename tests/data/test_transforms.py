"""Parts of a model's preprocessing that are replaced by name: what PIL makes of them, and what is refused."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cli import call
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sqbench.data.preprocessing import Preprocessing
from sqbench.data.transforms import Transform, share_of
from sqbench.errors import UserError
from sqbench.records.store import Store

OWN = Preprocessing((3, 8, 8), (0.5,) * 3, (0.25,) * 3, interpolation="bicubic", crop_pct=0.5)
SOURCE = """
import torch
from torch import nn

def net():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 49, 2))
    return network, {"input_size": (3, 16, 16), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
"""


@given(st.integers(1, 1000), st.integers(0, 500))
def test_the_share_resizes_to_the_pixels_that_were_asked_for(crop: int, more: int) -> None:
    assert math.floor(crop / share_of(crop, crop + more)) == crop + more


def test_an_image_is_resized_and_cut_as_pil_does_it() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    found = Transform.of({"resize": 12, "interpolation": "bilinear"}).applied(OWN).pixels(image)
    resized = image.resize((15, 12), Image.Resampling.BILINEAR)  # the shorter side has 12 pixels
    left = round((15 - 8) / 2)
    expected = np.asarray(resized.crop((left, 2, left + 8, 10))).transpose(2, 0, 1)
    assert torch.equal(found, torch.from_numpy(expected.copy()))


def test_what_is_not_named_stays() -> None:
    assert Transform.of(None).applied(OWN) == OWN == Transform.of({}).applied(OWN)
    changed = Transform.of({"mean": [0, 0.1, 0.2], "crop": 8}).applied(OWN)
    assert asdict(changed) == {**asdict(OWN), "mean": (0.0, 0.1, 0.2)}


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ("large", r"data\.transform=large: must be null, or names and values"),
        ({"size": 8}, r"data\.transform\.size: .*known: crop, crop_mode, interpolation, mean, resize, std"),
        ({"resize": 0}, r"data\.transform\.resize=0: must be a number of pixels"),
        ({"interpolation": "cubic"}, r"data\.transform\.interpolation=cubic: did you mean bicubic\?"),
        ({"crop_mode": "left"}, r"data\.transform\.crop_mode=left: .*known: border, center, squash"),
        ({"mean": 0.5}, r"data\.transform\.mean=0\.5: must be a list with a number for each channel"),
        ({"std": [0.5, 0, 1]}, r"data\.transform\.std=\[0\.5, 0, 1\]: must be numbers above 0"),
        ({"std": [0.5]}, r"data\.transform\.std=\[0\.5\]: must have a number for each of the 3 channels"),
        ({"crop": 9}, r"data\.transform\.crop=9: the network takes 8 x 8; use model\.image_size=9, too"),
        ({"resize": 7}, r"data\.transform\.resize=7: must be 8 or more"),
        ({"resize": 9, "crop_mode": "squash"}, r"data\.transform\.resize=9: must be left out"),
    ],
)
def test_what_cannot_work_is_named(told: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Transform.of(told).applied(OWN)


def test_a_flat_folder_of_jpegs_with_another_transform_is_another_point(
    tmp_path: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    names = [f"{number:03}.jpg" for number in range(12)]
    for number, name in enumerate(names):
        shades = generator.integers(0, 128, (20, 26, 3), dtype=np.uint8) + np.uint8(100 * (number % 2))
        Image.fromarray(shades).save(tmp_path / "photos" / name)
    classes = ["bright" if number % 2 else "dark" for number in range(12)]
    pd.DataFrame({"file": names, "kind": classes}).to_csv(tmp_path / "labels.csv", index=False)
    (tmp_path / "own_net.py").write_text(SOURCE)
    base = (
        *("model=python", f"model.name={tmp_path / 'own_net.py'}:net", "data=image_folder", f"data.path={tmp_path / 'photos'}"),
        *(f"data.labels={tmp_path / 'labels.csv'}", "data.image_column=file", "data.label_column=kind", "data.images=8"),
        *("calibration.images=4", "method=minmax", "bits=w8a8", "eval.resamples=100", "tracker=none", f"results_dir={results}"),
    )
    for change in ((), ("data.transform={resize: 18, interpolation: bilinear}",)):
        ended = call(*base, *change, capsys=capsys)
        assert ended.code == 0, ended.err
    plain, changed = sorted(Store(results).records(), key=lambda record: "transform" in record.identity["data"])
    assert plain.point_id != changed.point_id
    assert changed.identity["data"]["transform"] == {"resize": 18, "interpolation": "bilinear"}
    own, used = (record.provenance["fingerprints"]["preprocessing"] for record in (plain, changed))
    assert (own["crop_pct"], own["interpolation"]) == (1.0, "bicubic")
    assert (used["crop_pct"], used["interpolation"]) == (share_of(16, 18), "bilinear")
    assert plain.metrics["kl_to_fp"] != changed.metrics["kl_to_fp"]
    refused = call(*base, "data.transform={crop: 18}", capsys=capsys)
    assert refused.code != 0
    assert "data.transform.crop=18: the network takes 16 x 16; use model.image_size=18, too" in refused.err + refused.out
