from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqbench.claims.__main__ import ClaimsConfig, claims_of
from sqbench.claims.measures import Effect
from sqbench.claims.statement import INCONCLUSIVE, MIXED, REFUTED, SUPPORTED, Claim, Region, load
from sqbench.config import CONF_DIR
from sqbench.errors import UserError

CLAIM = """
statement: Rounding costs nothing.
source: nobody
common: data=text
seeds: [0, 1]
points: {own: method=rtn bits=w4a16, fixed: method=awq seed=7}
evidence:
  - {says: less than 1 %, measure: change, of: own, against: fixed, metric: perplexity, is: "< 1 %"}
"""


def effect(low: float, high: float) -> Effect:
    return Effect((low + high) / 2, low, high, 10, "by hand")


@pytest.mark.parametrize(
    ("region", "low", "high", "verdict"),
    [
        ("> 10 %", 0.11, 0.12, SUPPORTED),
        ("> 10 %", 0.09, 0.12, INCONCLUSIVE),
        ("> 10 %", 0.09, 0.10, REFUTED),
        ("< -2 points", -0.03, -0.021, SUPPORTED),
        ("< -2 points", -0.01, 0.0, REFUTED),
        ("within 1 %", -0.009, 0.009, SUPPORTED),
        ("within 1 %", -0.02, 0.02, INCONCLUSIVE),
        ("within 1 %", 0.01, 0.02, REFUTED),
        ("> 0", 0.0, 0.0, REFUTED),
        ("> 1.5 x", 1.6, 1.6, SUPPORTED),
    ],
)
def test_an_interval_decides(region, low, high, verdict):
    assert Region.parse(region).judge(effect(low, high)) == verdict


@given(bound=st.integers(-5, 5), ends=st.tuples(st.integers(-8, 8), st.integers(-8, 8)).map(sorted))
def test_opposite_regions_never_agree(bound, ends):
    above, below = (Region.parse(f"{sign} {bound}").judge(effect(*ends)) for sign in "><")
    assert {above, below} != {SUPPORTED}
    assert (above == INCONCLUSIVE) <= (below != SUPPORTED)


def test_effects_are_shown_in_the_unit_of_what_is_needed():
    assert Region.parse("> 10 %").show(effect(0.1, 0.2)) == "+15 % [10, 20]"
    assert Region.parse("> -1 points").show(effect(-0.02, 0.0)) == "-1 points [-2, 0]"
    assert Region.parse("> 1.1 x").show(effect(1.25, 1.25)) == "1.25 x"
    assert Region.parse("< 0").show(effect(-0.25, -0.25)) == "-0.25"


@pytest.mark.parametrize("text", ["10 %", "> ten", ">= 3", "> 3 apples", ""])
def test_no_region(text):
    with pytest.raises(ValueError, match="must be like"):
        Region.parse(text)


def test_a_claim_is_mixed_if_some_parts_hold_and_others_are_refuted():
    assert Claim.verdict([SUPPORTED, REFUTED, INCONCLUSIVE]) == MIXED
    assert Claim.verdict([REFUTED, INCONCLUSIVE]) == REFUTED
    assert Claim.verdict([REFUTED]) == REFUTED
    assert Claim.verdict([SUPPORTED, INCONCLUSIVE]) == INCONCLUSIVE
    assert Claim.verdict([SUPPORTED, SUPPORTED]) == SUPPORTED


def test_a_file_is_read(tmp_path):
    path = tmp_path / "free.yaml"
    path.write_text(CLAIM)
    claim = load(path)
    assert claim.key == "free"
    assert claim.points["own"] == tuple(("data=text", "method=rtn", "bits=w4a16", f"seed={seed}") for seed in (0, 1))
    assert claim.points["fixed"] == (("data=text", "method=awq", "seed=7"),)
    (evidence,) = claim.evidence
    assert (evidence.of, evidence.against, evidence.options) == ("own", "fixed", {"metric": "perplexity"})


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("measure: change", "measure: chance", "did you mean change"),
        ("of: own", "of: mine", "evidence of mine"),
        ("metric: perplexity", "metrik: perplexity", "did you mean metric"),
        ('is: "< 1 %"', 'is: "small"', "`> 10 %`"),
        ("source: nobody", "sauce: nobody", "source"),
        ("source: nobody", "source: nobody\nsauce: 1", "sauce"),
        ("points: {own: method=rtn bits=w4a16, fixed: method=awq seed=7}", "points: {}", "points"),
        ("statement: Rounding", "statement: [Rounding", "YAML"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path, old, new, said):
    assert old in CLAIM
    path = tmp_path / "free.yaml"
    path.write_text(CLAIM.replace(old, new))
    with pytest.raises(UserError, match=r"free\.yaml") as error:
        load(path)
    assert said in str(error.value)


def test_the_seventeen_that_ship_and_one_about_other_tools():
    claims = [load(path) for path in sorted(Path(CONF_DIR / "claims").rglob("*.yaml"))]
    assert "".join(claim.key for claim in claims) == "abcdefghijklmnopqr"
    assert "".join(claim.key for claim in claims_of(ClaimsConfig())) == "abcdefghijklmnopq"  # the tools may not be there
    for claim in claims:
        used = {label for evidence in claim.evidence for label in (evidence.of, evidence.against)}
        assert claim.points.keys() == used - {None}, claim.key
