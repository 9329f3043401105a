"""Chosen layers, sweeps over groups of layers, and mixed precision, through the command line on a model that learnt something."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cli import Ended

from sqbench.collect import CollectConfig, collect

GROUPS = [f"model.layers.{block}.{part}" for block in (0, 1) for part in ("self_attn", "mlp")]
W3 = ("method=rtn", "bits=w3a16", "bits.weights.group_size=32")


def records(results: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((results / "runs").glob("*/record.json"))]


def chosen_layers(record: dict[str, Any]) -> list[str]:
    return [layer["layer"] for layer in record["quantized"]["per_layer"]]


@pytest.fixture
def swept(command: Callable[..., Ended], results: Path) -> list[dict[str, Any]]:
    ended = command("-m", *W3, "layers=each")
    assert ended.code == 0, ended.err
    return records(results)


@pytest.mark.slow
def test_each_group_is_a_point_that_resumes(swept: list[dict[str, Any]], command: Callable[..., Ended], results: Path) -> None:
    assert sorted(record["identity"]["scheme"]["layers"] for record in swept) == [[name] for name in sorted(GROUPS)]
    for record in swept:
        (group,) = record["identity"]["scheme"]["layers"]
        assert {name.rpartition(".")[0] for name in chosen_layers(record)} == {group}
        assert record["quantized"]["weights"] == (64 * 64 * 2 + 64 * 32 * 2 if "attn" in group else 3 * 64 * 192)
        assert record["provenance"]["command"].count("layers=") == 1
    again = command("-m", *W3, "layers=each")
    assert again.code == 0
    assert "4 skipped" in again.out
    assert [record["provenance"] for record in records(results)] == [record["provenance"] for record in swept]
    plan = command("-m", "plan=true", *W3, "layers=each,null", "method=fp,rtn")
    assert plan.code == 0
    assert len(re.findall(r"finished +│", plan.out)) == 4
    assert plan.out.count("to do") == 2  # all layers, and the float model, once
    assert "layers=each: 4 groups, from model.layers.0.self_attn to model.layers.1.mlp" in plan.err


@pytest.mark.slow
def test_tables_rank_the_groups(swept: list[dict[str, Any]], results: Path) -> None:
    divergence = {record["identity"]["scheme"]["layers"][0]: record["metrics"]["kl_to_fp"] for record in swept}
    text, files = collect(CollectConfig(results_dir=str(results), metric="sensitivity"))
    ranked = pd.read_csv(files[0])
    assert ranked["layers"].tolist() == sorted(GROUPS, key=lambda group: -divergence[group])
    assert ranked["rank"].tolist() == [1, 2, 3, 4]
    assert ranked["study"].unique().tolist() == [1]
    coverage = {record["identity"]["scheme"]["layers"][0]: record["quantized"]["coverage"] for record in swept}
    assert ranked["share"].tolist() == pytest.approx([coverage[name] for name in ranked["layers"]], rel=1e-5)
    assert "perplexity" in text
    assert files[1].read_text() == text
    table, _ = collect(CollectConfig(results_dir=str(results), rows=["layers"], columns=[], metric="kl_to_fp"))
    assert [line.split("|")[1].strip() for line in table.split("\n\n")[0].splitlines()[2:]] == ["", *sorted(GROUPS)]


@pytest.mark.slow
def test_the_same_layers_are_one_point_however_they_are_written(command: Callable[..., Ended], results: Path) -> None:
    last = "model.layers.1"
    ended = command(
        "-m",
        *W3,
        f"layers={last}.mlp,[{last}.mlp],[{last}.mlp,{last}.mlp],[{last}.mlp,{last}.self_attn],[{last}.self_attn,{last}.mlp]",
    )
    assert ended.code == 0, ended.err
    assert "5 combinations are 2 points" in ended.err
    assert {len(chosen_layers(record)) for record in records(results)} == {3, 7}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("layers=each",), "layers=each: stands for many points, one for each group of layers; a sweep (-m) runs them"),
        (("layers=[]",), "layers=[]: must hold the name of a layer"),
        (("mixed=auto",), "mixed=auto: needs budget=..., the bits per weight on average, 4.5 for example"),
        (("mixed=always", "budget=4"), "mixed=always: must be auto, or null"),
        (("mixed=auto", "budget=1.9"), "budget=1.9: must be an average of widths=[2, 3, 4, 6, 8], from 2 to 8"),
        (("mixed=auto", "budget=7", "widths=[3,6]"), "budget=7.0: must be an average of widths=[3, 6], from 3 to 6"),
        (("mixed=auto", "budget=4", "widths=[4,9]"), "widths=[4, 9]: must be numbers of bits from 2 to 8"),
        (("mixed=auto", "budget=4", "bits=fp"), "mixed=auto: bits=fp leaves weights in float"),
        (("mixed=auto", "budget=4", "bits.edge_bits=8"), "mixed=auto: chooses the bits of every layer; bits.edge_bits=8"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(
    command: Callable[..., Ended], changes: tuple[str, ...], message: str
) -> None:
    ended = command("method=rtn", "bits=w4a16", *changes)
    assert ended.code == 2
    assert message in ended.err.replace("\n", " ")


def test_a_pattern_without_a_layer_is_refused_with_the_closest_before_anything_runs(
    command: Callable[..., Ended], results: Path
) -> None:
    for mode in ((), ("-m",)):
        ended = command(*mode, *W3, "layers=[model.layers.0.mlp,model.layers.1.mpl]")
        assert (ended.code, ended.out) == (2, "")
        assert ended.err.startswith("error: layers=model.layers.1.mpl: matches no layer; did you mean model.layers.1.mlp")
    assert not list(results.glob("runs/*"))


# ---------------------------------------------------------------- mixed precision


@pytest.mark.parametrize(
    "method", [pytest.param("rtn", marks=pytest.mark.slow), "awq", pytest.param("smoothquant", marks=pytest.mark.slow)]
)
def test_a_mixed_point_spends_its_budget(method: str, command: Callable[..., Ended], results: Path) -> None:
    line = (f"method={method}", *W3[1:], "alpha=0.5", "mixed=auto", "budget=4.5")
    ended = command("-m", *line, "backend=sim,int")
    assert ended.code == 0, ended.err
    simulated, executed = sorted(records(results), key=lambda record: record["identity"]["backend"], reverse=True)
    allocation = simulated["quantized"]["allocation"]
    assert allocation == executed["quantized"]["allocation"]  # measured once, then read
    assert len(list((results / "cache" / "damage").iterdir())) == 1
    bits = {group["group"]: group["bits"] for group in allocation["groups"]}
    assert list(bits) == GROUPS
    assert set(bits.values()) <= {2, 3, 4, 6, 8}
    weights = {group["group"]: group["weights"] for group in allocation["groups"]}
    assert allocation["average_bits"] == sum(bits[name] * weights[name] for name in GROUPS) / sum(weights.values())
    assert 4 < allocation["average_bits"] <= 4.5
    for layer in simulated["quantized"]["per_layer"]:
        assert layer["format"] == f"int{bits[layer['layer'].rpartition('.')[0]]} asym group 32"
    assert simulated["identity"]["mixed"] == {"how": "auto", "budget": 4.5, "widths": [2, 3, 4, 6, 8]}
    assert simulated["metrics"]["kl_to_fp"] == pytest.approx(executed["metrics"]["kl_to_fp"], rel=0.05)
    frame = pd.read_csv(collect(CollectConfig(results_dir=str(results)))[1][0])
    assert set(frame["bits"]) == {"fp", "w3a16_mixed4.5"}
    assert "int4.5 asym group 32" in set(frame["weights"])


@pytest.mark.slow
def test_one_width_is_the_uniform_point(command: Callable[..., Ended], results: Path) -> None:
    ended = command("-m", *W3, "mixed=null,auto", "budget=3", "widths=[3]")
    assert ended.code == 0, ended.err
    one, other = records(results)
    assert one["metrics"] == other["metrics"]


def test_mixed_bits_in_chosen_layers_alone(command: Callable[..., Ended], results: Path) -> None:
    ended = command(*W3, "layers=[*mlp]", "mixed=auto", "budget=3.5", "widths=[3,4]")
    assert ended.code == 0, ended.err
    (record,) = records(results)
    assert [group["group"] for group in record["quantized"]["allocation"]["groups"]] == [GROUPS[1], GROUPS[3]]
    assert sorted(group["bits"] for group in record["quantized"]["allocation"]["groups"]) == [3, 4]
    assert len(chosen_layers(record)) == 6
