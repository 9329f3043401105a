"""Formats: stored size, and messages that name the key, the value and what works."""

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqbench.errors import UserError
from sqbench.formats.format import Format
from sqbench.formats.scale import Scale
from sqbench.formats.scheme import Scheme


def test_stored_bytes_count_codes_scales_and_zero_points() -> None:
    assert Format(bits=8, granularity="channel").stored_bytes(10, 64) == 640 + 10 * 4
    assert Format(bits=8, granularity="tensor").stored_bytes(10, 64) == 640 + 4
    group = Format(bits=4, symmetric=False, granularity="group", group_size=32)
    assert group.stored_bytes(10, 64) == (640 + 20) // 2 + 20 * 4  # 20 groups: a 4-bit zero-point and a float32 scale each
    assert Format(bits=3, granularity="channel", scale=Scale("float16")).stored_bytes(10, 64) == 240 + 20


@pytest.mark.parametrize(
    ("fields", "activations", "words"),
    [
        ({"bits": 1}, False, ["bits.w.bits=1", "2 to 8"]),
        ({"bits": 16}, True, ["bits.w.bits=16", "null"]),
        ({"granularity": "row"}, False, ["granularity=row", "tensor, channel, group"]),
        ({"granularity": "token"}, False, ["granularity=token"]),
        ({"granularity": "token"}, True, ["dynamic=False", "run time"]),
        ({"granularity": "group"}, False, ["group_size=None"]),
        ({"group_size": 64}, False, ["group_size=64"]),
        ({"granularity": "group", "group_size": -1}, False, ["group_size=-1", "positive"]),
        ({"dynamic": True}, False, ["dynamic=True", "weights"]),
        ({"convention": "other"}, False, ["convention=other", "qmax, half_range, signed"]),
        ({"convention": "signed"}, True, ["convention=signed", "qmax or half_range"]),
        ({"convention": "signed", "symmetric": False}, False, ["convention=signed", "qmax or half_range", "symmetric=true"]),
        ({"element": "int4"}, False, ["element=int4", "must be one of int"]),
        ({"zero_point": "float"}, False, ["zero_point=float", "must be one of integer"]),
        ({"scale": Scale(rule="floor")}, False, ["bits.w.scale.rule=floor", "must be absmax", "dtype=e8m0"]),
        ({"scale": Scale(second="float32")}, False, ["bits.w.scale.second=float32", "with bits.w.scale.dtype=e4m3"]),
        ({"scale": Scale("e8m0")}, False, ["bits.w.scale.rule=absmax", "one of floor, ceil, even, even_m1, rceil"]),
        ({"scale": Scale("e8m0", "floor"), "symmetric": False}, False, ["bits.w.scale.dtype=e8m0", "int8 asym"]),
        ({"scale": Scale("e4m3")}, False, ["bits.w.scale.second=none", "whose largest scale is 448"]),
        ({"scale": Scale("e4m3", second="float32")}, False, ["granularity=tensor", "group", "one level is enough"]),
        ({"scale": Scale(order="torchao")}, False, ["bits.w.scale.order=torchao", "modelopt, or null"]),
        ({"scale": Scale("e8m0", "floor", times="unrounded")}, False, ["bits.w.scale.times=unrounded", "scale, or null"]),
        ({"scale": Scale(order="ours")}, False, ["bits.w.scale.order=ours", "modelopt, torchao"]),
        ({"scale": Scale(times="ours")}, False, ["bits.w.scale.times=ours", "scale, reciprocal, unrounded"]),
        ({"element": "e2m1"}, False, ["bits.w.bits=8", "4, the width of element=e2m1"]),
        ({"element": "e4m3", "symmetric": False}, False, ["symmetric=False", "element=e4m3 has no zero-point"]),
        ({"element": "nf4", "bits": 4, "convention": "half_range"}, False, ["convention=half_range", "for integers"]),
        ({"convention": "no_clipping"}, True, ["convention=no_clipping", "qmax or half_range"]),
        ({"range": "own"}, False, ["range=own", "with_zero", "no zero-point"]),
        ({"shift": "before"}, False, ["shift=before", "after", "no zero-point"]),
        ({"zero_point": "minimum"}, False, ["zero_point=minimum", "integer", "no zero-point"]),
        ({"zero_point": "minimum", "symmetric": False}, True, ["zero_point=minimum", "a minimum is for weights"]),
        ({"zero_point": "minimum", "symmetric": False, "shift": "before"}, False, ["zero_point=minimum", "shift=after"]),
        ({"ties": "down"}, False, ["ties=down", "even, up, away"]),
        ({"ties": "up"}, True, ["ties=up", "for integer weights"]),
        ({"element": "q6_k", "bits": 6}, False, ["element=q6_k", "must be one of int, e4m3"]),
        ({"granularity": "block", "group_size": 8}, False, ["block_rows=None", "a size"]),
        ({"granularity": "block", "group_size": 8, "block_rows": 0}, False, ["block_rows=0", "positive"]),
        ({"granularity": "block", "group_size": 8, "block_rows": 8}, True, ["granularity=block", "tensor, token, group here"]),
        ({"scale": Scale("float8")}, False, ["bits.w.scale.dtype=float8", "float32, float16, bfloat16"]),
    ],
)
def test_impossible_formats_are_refused(fields: dict, activations: bool, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        Format(**fields).check("bits.w", activations=activations)
    assert all(word in str(caught.value) for word in words), caught.value


def test_group_that_does_not_divide_names_both_numbers() -> None:
    with pytest.raises(
        UserError,
        match=r"group_size=128 does not divide in_features=576 of q_proj \(576 % 128 = 64\); these divide it: \[2, 3, .*, 576\]",
    ):
        Format(bits=4, granularity="group", group_size=128).check_width("q_proj", 576)


@given(st.integers(1, 400), st.integers(1, 400), st.lists(st.integers(1, 400), max_size=3))
def test_every_size_that_an_error_offers_works_and_none_is_missing(size: int, channels: int, beside: list[int]) -> None:
    grouped = Format(bits=4, granularity="group", group_size=size)
    widths = [channels, *beside]
    try:
        grouped.check_width("layer", channels, beside=widths)
    except UserError as error:
        assert channels > size
        assert channels % size
        divide, *rest = [json.loads(found) for found in re.findall(r"\[.*?\]", str(error))]
        assert divide == [count for count in range(2, channels + 1) if channels % count == 0]
        works = [count for count in divide if all(other < count or other % count == 0 for other in widths)]
        offered = rest[0] if rest else [] if "no size works in every layer" in str(error) else divide
        assert offered == works
        for count in offered:
            for width in widths:
                fitting = replace(grouped, group_size=count).for_width(width, "channel")
                assert fitting.group_size is None or width % count == 0
    else:
        assert channels < size or channels % size == 0


def test_a_tiny_llama_of_172_is_told_4_43_86_and_172() -> None:
    with pytest.raises(UserError, match=r"these divide it: \[2, 4, 43, 86, 172\]; sizes for every layer: \[2, 4, 86, 172\]"):
        Format(bits=4, granularity="group", group_size=64).check_width("down_proj", 172, beside=[64, 172])


def test_scheme_from_plain_data() -> None:
    scheme = Scheme.from_dict({"name": "mine", "weights": {"bits": 4}, "activations": None})
    assert scheme == Scheme("mine", Format(bits=4))
    assert not scheme.is_float
    with pytest.raises(UserError, match=r"bits\.ops=fulll: did you mean full\?"):
        Scheme("mine", Format(bits=4, granularity="channel"), ops="fulll").check()
    with pytest.raises(UserError, match=r"bits\.ops=full: mine leaves activations in float"):
        Scheme("mine", Format(bits=4, granularity="channel"), ops="full").check()
    with pytest.raises(UserError, match=r"bits\.edge_bits=9"):
        Scheme("mine", Format(bits=4, granularity="channel"), edge_bits=9).check()
    with pytest.raises(UserError, match=r"layers=\[\]: must hold the name of a layer"):
        Scheme("mine", Format(bits=4, granularity="channel"), layers=()).check()


def test_edges_keep_their_own_bits() -> None:
    scheme = Scheme("mine", Format(bits=4, granularity="channel"), Format(bits=4), edge_bits=8)
    widths = [tuple(fmt and fmt.bits for fmt in scheme.of_layer("fc", index, 3)) for index in range(3)]
    assert widths == [(8, 8), (4, 4), (8, 8)]
    assert Scheme("mine", Format(bits=4, granularity="channel"), edge_bits=8).of_layer("fc", 0, 3)[1] is None


def test_a_layer_may_have_a_width_of_its_own() -> None:
    scheme = Scheme("mine", Format(bits=4, granularity="channel"), Format(bits=8), widths=(("fc1", 6),))
    assert [scheme.of_layer(name, 1, 3)[0].bits for name in ("fc1", "fc2")] == [6, 4]  # type: ignore[union-attr]
    assert scheme.of_layer("fc1", 1, 3)[1] == Format(bits=8)


def test_plain_data_says_only_what_was_chosen() -> None:
    scheme = Scheme("mine", Format(bits=4))
    assert set(scheme.as_dict()) == {"name", "weights", "activations", "ops", "edge_bits"}
    chosen = replace(scheme, layers=("fc1",), widths=(("fc1", 3),)).as_dict()
    assert chosen == {**scheme.as_dict(), "layers": ["fc1"], "widths": {"fc1": 3}}


RECORDED = {  # as in the committed records
    "activations": None,
    "edge_bits": None,
    "name": "w4a16",
    "ops": "linear",
    "weights": {
        "bits": 4,
        "convention": "qmax",
        "dynamic": False,
        "granularity": "group",
        "group_size": 64,
        "scale_dtype": "float32",
        "symmetric": False,
    },
}


def test_a_record_of_the_first_days_is_read_and_written_again_word_for_word() -> None:
    """The plain data is part of a point's identity: a default that is written differently would be another point."""
    scheme = Scheme.from_dict(RECORDED)
    assert scheme == Scheme("w4a16", Format(4, symmetric=False, granularity="group", group_size=64))
    assert scheme.as_dict() == RECORDED


def test_a_later_field_is_written_only_where_it_was_chosen() -> None:
    old = set(Format().as_dict())
    assert old == set(RECORDED["weights"])  # type: ignore[arg-type]
    chosen = Format(element="e2m1", zero_point="float", scale=Scale("e8m0", rule="floor"))
    assert chosen.as_dict() == {
        **Format().as_dict(),
        "scale_dtype": "e8m0",
        "element": "e2m1",
        "zero_point": "float",
        "scale": {"rule": "floor"},
    }
    assert Format.from_dict(chosen.as_dict()) == chosen


@given(
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    size=st.sampled_from([None, 32]),
    convention=st.sampled_from(["qmax", "half_range", "signed"]),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
    layers=st.sampled_from([None, ("fc1", "fc2")]),
    widths=st.sampled_from([(), (("fc1", 3), ("fc2", 6))]),
)
def test_plain_data_and_back(bits, symmetric, size, convention, dtype, layers, widths) -> None:  # type: ignore[no-untyped-def]
    fmt = Format(bits, symmetric, "group" if size else "channel", size, False, convention, Scale(dtype))
    scheme = Scheme("mine", fmt, Format(bits, dynamic=True, granularity="token"), "full", 8, layers, widths)
    assert Scheme.from_dict(json.loads(json.dumps(scheme.as_dict()))) == scheme


def test_a_scale_may_be_said_in_two_ways_but_not_differently() -> None:
    old, new = {"scale_dtype": "float16", "scale": {"dtype": None}}, {"scale_dtype": None, "scale": {"dtype": "float16"}}
    assert Format.from_dict(old) == Format.from_dict(new) == Format(scale=Scale("float16"))
    with pytest.raises(UserError, match=r"bits\.weights\.scale_dtype=float16: must be bits\.weights\.scale\.dtype=bfloat16"):
        Scheme.from_dict({"name": "w", "weights": {"scale_dtype": "float16", "scale": {"dtype": "bfloat16"}}})
