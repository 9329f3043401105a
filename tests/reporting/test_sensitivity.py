"""Rankings of layers: worst first, one study at a time, failures kept."""

from typing import Any

import pandas as pd
import pytest
from examples import made

from sqbench.errors import UserError
from sqbench.records.record import Record
from sqbench.reporting.sensitivity import sensitivity_frame, write_sensitivity


def record(layers: str, kl: float, bits: str = "w4a16", **changes: Any) -> Record:
    quantized = {"weights": 4096, "coverage": 0.125}
    return made("rtn", bits, identity__scheme__layers=[layers], metrics__kl_to_fp=kl, quantized=quantized, **changes)


def frame_of(*records: Record) -> pd.DataFrame:
    return sensitivity_frame(records, {one.point_id for one in records})


def test_the_worst_comes_first_and_failures_last() -> None:
    frame = frame_of(record("a", 0.1), record("b", 0.0, status="failed"), record("c", 0.3), record("d", 0.2))
    assert frame["layers"].tolist() == ["c", "d", "a", "b"]
    assert frame["rank"].tolist() == [1, 2, 3, 4]
    assert frame["kl_to_fp"].isna().tolist() == [False, False, False, True]
    assert frame["change"][0] == pytest.approx(15.1 - 14.86)
    assert (frame["metric"][0], frame["low"][0] < frame["change"][0] < frame["high"][0]) == ("perplexity", True)


def test_each_study_has_a_ranking_of_its_own() -> None:
    frame = frame_of(
        *(record(layers, kl) for layers, kl in (("a", 0.1), ("b", 0.2))),
        *(record(layers, kl, bits="w8a8") for layers, kl in (("a", 0.9), ("b", 0.5))),
        *(record(layers, kl, identity__calibration__seed=1) for layers, kl in (("b", 0.4), ("a", 0.3))),
    )
    rankings = {tuple(study["layers"]) for _, study in frame.groupby("study")}
    assert (frame["study"].nunique(), rankings) == (3, {("a", "b"), ("b", "a")})
    assert frame.groupby("study")["rank"].apply(list).tolist() == [[1, 2]] * 3


def test_points_of_all_layers_say_nothing() -> None:
    whole, part = made("rtn", "w4a16"), record("a", 0.1)
    assert len(frame_of(whole, part)) == 1
    with pytest.raises(UserError, match=r"metric=sensitivity: no point here .* experiment=sensitivity makes some"):
        frame_of(whole)
    with pytest.raises(UserError, match="metric=sensitivity"):
        sensitivity_frame([part], set())


def test_files_hold_every_number_and_what_was_studied(tmp_path) -> None:  # type: ignore[no-untyped-def]
    frame = frame_of(record("blocks.10", 0.1), record("blocks.2", 0.1), record("head", 0.0, status="failed"))
    text, files = write_sensitivity(frame, tmp_path)
    assert [path.name for path in files] == ["sensitivity.csv", "sensitivity.md"]
    assert files[1].read_text() == text
    assert pd.read_csv(files[0])["layers"].tolist() == ["blocks.2", "blocks.10", "head"]  # of equal damage, in the model's order
    assert text.startswith("model smollm2, data pydoc, method rtn, bits w4a16, window 512, windows 16, seed 0:\n\n")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == ["rank", "layers", "kl_to_fp", "Δ perplexity", "weights", "share"]
    assert rows[2] == ["1", "blocks.2", "0.10000", "+0.240 [0.140, 0.340]", "4,096", "12.5 %"]
    assert rows[4] == ["3", "head", "fail", "--", "--", "--"]
