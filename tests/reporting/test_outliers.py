"""Outlier tables: every model's layers once, from points that saw them unscaled."""

import pandas as pd
import pytest
from examples import made

from sqbench.errors import UserError
from sqbench.reporting.outliers import DIAGNOSTICS, outliers_frame, write_outliers


def layer(name, ratio, **values):
    return {"layer": name, **dict.fromkeys(DIAGNOSTICS, 1.0), "ratio": ratio, "weight_sqnr_db": 40.0, **values}


def record(model="vit", layers=(("fc1", 26.0), ("fc2", 2.0)), method="minmax", groups=(), **changes):
    quantized = {"per_layer": [layer(*one) for one in layers], "groups": list(groups)}
    return made(method, config__model__name=model, quantized=quantized, **changes)


def frame_of(*records):
    return outliers_frame(records, {one.point_id for one in records})


def test_a_model_has_each_layer_once_however_many_points_saw_it():
    frame = frame_of(record(), record(method="mse"), record(model="cnn", layers=[("conv", 2.0)], identity__model__weights="c" * 64))
    assert frame[["model", "layer", "ratio"]].to_numpy().tolist() == [
        ["cnn", "conv", 2.0],
        ["vit", "fc1", 26.0],
        ["vit", "fc2", 2.0],
    ]


def test_smoothed_points_and_points_left_out_say_nothing():
    smoothed = record(method="smoothquant", layers=[("fc1", 3.0), ("fc2", 2.0)], groups=[{"source": "norm2"}])
    kept = record()
    frame = frame_of(smoothed, kept)
    assert frame["ratio"].tolist() == [26.0, 2.0]
    with pytest.raises(UserError, match="metric=outliers: no point here has seen"):
        frame_of(smoothed)
    with pytest.raises(UserError, match="method=minmax"):
        outliers_frame([kept], set())


def test_one_name_with_other_weights_or_another_draw_keeps_its_own_rows():
    other = record(identity__model__weights="b" * 64, layers=[("fc1", 9.0), ("fc2", 2.0)])
    drawn = record(identity__calibration__seed=1, layers=[("fc1", 25.0), ("fc2", 2.0)])
    frame = frame_of(record(), other, drawn)
    assert sorted(frame["ratio"]) == [2.0, 2.0, 2.0, 9.0, 25.0, 26.0]
    assert set(frame["weights"]) == {"a" * 8, "b" * 8}
    assert set(frame["calibration"]) == {"32, seed 0", "32, seed 1"}


def test_layers_that_one_point_kept_in_float_come_from_another():
    few = record(identity__model__keep=["fc1"], layers=[("fc2", 2.0)])
    frame = frame_of(few, record())
    assert sorted(frame["layer"]) == ["fc1", "fc2"]


def test_files_hold_every_layer_and_the_summary_names_the_worst(tmp_path):
    text, files = write_outliers(frame_of(record(), record(model="cnn", layers=[("conv", 2.0)])), tmp_path)
    assert [path.name for path in files] == ["outliers.csv", "outliers.md"]
    assert len(pd.read_csv(files[0])) == 3
    assert files[1].read_text() == text
    assert "largest of 2 (ratio: fc1)" in text
    assert "median of 1" in text


def test_a_diagnostic_that_a_layer_lacks_is_empty_not_an_error(tmp_path):
    one = record(layers=[("stem", 2.0)])
    del one.quantized["per_layer"][0]["persistence"]
    text, files = write_outliers(frame_of(one), tmp_path)
    assert pd.read_csv(files[0])["persistence"].isna().all()
    assert "nan" in text
