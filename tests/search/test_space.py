"""What a search may choose, read from Hydra's own grammar."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from sqbench.errors import UserError
from sqbench.search.space import described, space_of


def space(*overrides):
    return space_of(OverridesParser.create().parse_overrides(list(overrides)))


@pytest.mark.parametrize(("written", "drawn", "said"), [
    ("interval(0,1)", FloatDistribution(0.0, 1.0), "0 to 1"),
    ("int(interval(1,5))", IntDistribution(1, 5), "1 to 5"),
    ("tag(log,interval(0.001,1))", FloatDistribution(0.001, 1.0, log=True), "0.001 to 1, log"),
    ("range(16,129,16)", IntDistribution(16, 128, step=16), "16 to 128, step 16"),
    ("range(5,1,-2)", IntDistribution(3, 5, step=2), "3 to 5, step 2"),
    ("range(0.1,0.9,0.2)", FloatDistribution(0.1, 0.7, step=0.2), "0.1 to 0.7, step 0.2"),
    ("tag(log,range(1,9))", IntDistribution(1, 8, log=True), "1 to 8, log"),
    ("0.3,null,auto", CategoricalDistribution(["0.3", "null", "auto"]), "0.3, null, auto"),
    ("choice([a,b],'x y')", CategoricalDistribution(["[a,b]", "x\\ y"]), "[a,b], x\\ y"),
])  # fmt: skip
def test_values_of_an_override(written, drawn, said):
    found = space("method=rtn", f"alpha={written}")
    assert found.fixed == {"method": "rtn"}
    assert found.dimensions == {"alpha": drawn}
    assert described(drawn) == said


def test_a_shuffled_list_is_the_same_list_each_time():
    lists = {space("seed=shuffle(0,1,2,3,4,5,6,7)").dimensions["seed"].choices for _ in range(5)}
    assert lists == {tuple("01234567")}


@pytest.mark.parametrize(("overrides", "said"), [
    (["alpha=0.5", "method=rtn"], "no key has several values; use 'alpha=interval"),
    (["alpha=choice(0.5)"], "no key has several values"),
    (["alpha=interval(0,1)", "alpha=0.5"], "no key has several values"),
    (["alpha=interval(1,0)"], r"alpha=interval\(1,0\): nothing can be drawn from it"),
    (["alpha=range(1,1)"], "it is empty"),
    (["alpha=tag(log,interval(0,1))"], "low > 0"),
    (["alpha=tag(log,range(1,9,2))"], "step is 1"),
    (["alpha=tag(lok,interval(0.1,1))"], "tag lok: did you mean log"),
    (["alpha=tag(log,choice(1,2))"], "tag log is for numbers"),
])  # fmt: skip
def test_what_cannot_be_searched_is_refused(overrides, said):
    with pytest.raises(UserError, match=said):
        space(*overrides)


def test_a_choice_is_written_as_hydra_reads_it():
    found = space("alpha=interval(0,1)", "bits=w8a8,w4a16", "model.name='/a (1)/b'", "data.windows=16")
    job = found.overrides({"alpha": 0.12345678, "bits": "w4a16", "data.windows": 4})
    assert job == ["model.name='/a (1)/b'", "data.windows=4", "alpha=0.123457", "bits=w4a16"]
    read = {item.key_or_group: item.value() for item in OverridesParser.create().parse_overrides(job)}
    assert read == {"model.name": "/a (1)/b", "data.windows": 4, "alpha": 0.123457, "bits": "w4a16"}


def test_corners_have_each_value_and_both_ends():
    corners = space("alpha=interval(0,1)", "bits=w8a8,w4a16,w3a16").corners()
    assert len(corners) == 4
    assert {corner["alpha"] for corner in corners} == {0.0, 1.0}
    assert {corner["bits"] for corner in corners} == {"w8a8", "w4a16", "w3a16"}
