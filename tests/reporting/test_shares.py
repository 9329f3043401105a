"""What tables say besides results: layers narrower than a group, and weights that stay in float unasked."""

from examples import made

from sqbench.pipeline.report import share_of
from sqbench.reporting.shares import share_notes


def test_a_note_for_each_scheme_and_model_and_none_for_old_records() -> None:
    share = {"layers": 49, "narrow": 1, "floating": 0.686}
    records = [made("rtn", "w4a16", share=share), made("awq", "w4a16", 0.5, share=share), made("rtn"), made("rtn", share={})]
    assert share_notes(records) == [
        "w4a16 of smollm2: 1 of 49 layers have fewer input channels than a group, and no groups",
        "smollm2: 68.6 % of the weights stay in float unasked (quantized.floating names them)",
    ]


def test_the_share_comes_from_the_report() -> None:
    report = {"layers": 8, "narrow": ["stem"], "parameters": {"quantized": 25, "floating": 50, "norm": 25}}
    assert share_of(report) == {"layers": 8, "narrow": 1, "floating": 0.5}
    assert share_of({}) == share_of({"parameters": {}}) == {}
