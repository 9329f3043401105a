"""Recipes: parts from a configuration, the combinations that make sense, and what a point's identity holds of them."""

from typing import Any

import pytest

from sqbench import api
from sqbench.errors import UserError
from sqbench.formats.format import Format
from sqbench.formats.scheme import Scheme
from sqbench.ranges.mse import Mse
from sqbench.recipes.configured import assembled, method_names, named, recipe_of, scheme_of
from sqbench.rounding.gptq import Gptq

W4A4 = Scheme("w4a4", Format(4, granularity="channel"), Format(4))


def recipe(*overrides: str) -> Any:
    return recipe_of(api.configure(*overrides))


@pytest.mark.parametrize("name", [name for name in method_names() if not named(name).stored])
def test_a_file_and_the_command_line_name_the_same_recipe(name: str) -> None:
    model = ["model=vit_nano"] if named(name).trains else []
    assert recipe(f"method={name}", *model) == named(name)


def test_an_axis_replaces_one_part() -> None:
    found = recipe("method=awq", "rounding=gptq", "ranges=mse", "rounding.damping=0.1", "ranges.norm=2.4", "bits=w4a16")
    assert found.transforms == named("awq").transforms
    assert found.rounding == Gptq(damping=0.1)
    assert found.ranges == Mse(norm=2.4)


def test_the_methods_own_part_is_no_choice() -> None:
    """Two names of one recipe are one point."""
    assert recipe("method=rtn", "rounding=nearest", "ranges=minmax") == recipe("method=rtn") == named("rtn")
    assert recipe("method=gptq", "rounding=gptq") == named("gptq")


def test_parameters_of_a_replaced_part_do_not_count() -> None:
    one, other = (recipe("method=awq", "ranges=mse", f"method.clip={clip}").about() for clip in ("true", "false"))
    assert one == other
    assert "clip" not in one["method"]
    assert one["ranges"] == {"name": "mse", "norm": 2.0, "steps": 100}
    assert one["recipe"]["rounding"] == "nearest"


def test_the_float_model_has_no_parts() -> None:
    assert recipe("method=fp", "rounding=gptq", "ranges=mse").about() == {"method": {"name": "fp"}}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["method=qat", "ranges=mse", "model=vit_nano"], "ranges=mse: rounding=qat trains its ranges itself"),
        (["method=gptq", "method.static_groups=false"], "rounding=gptq: act_order=true would tear groups"),
        (["method=minmax", "rounding=gptq", "bits=w8a8", "bits.weights=null"], "rounding=gptq: chooses codes of weights"),
        (["method=rtn", "rounding=gptq", "rounding.damping=2"], "rounding.damping=2.0: must be a number above 0, up to 1"),
        (["method=gptq", "method.block=0"], "method.block=0: must be 1 or more"),
        (["method=rtn", "corrections=[bais]"], "corrections=bais: did you mean bias?"),
        (["method=rtn", "+method.ranges=msi"], "method.ranges=msi: did you mean mse?"),
        (["method=rtn", "+method.transforms=[smoth]"], "method.transforms=smoth: did you mean smooth?"),
        (["method=rtn", "+method.clip=true"], "method.clip: rtn has no parameters"),
        (["method=rtn", "bits=nvfp4", "bits.as=gguf"], "known: auto-round, autoawq, bitsandbytes"),
        (
            ["method=rtn", "bits=nvfp4", "bits.as=nncf"],
            "bits.as=nncf: has no rules for the nvfp4 weights of bits=nvfp4",
        ),
        (["method=rtn", "bits=mxfp4", "bits.edge_bits=8"], "bits.edge_bits=8: must be null; mxfp4 has elements of one width"),
        (
            ["method=rtn", "bits=mxfp4", "mixed=auto", "budget=4"],
            "mixed=auto: chooses widths of integers, and weights are e2m1 here",
        ),
        (["method=rtn", "bits=w4a16", "bits.embedding=int8"], "bits.embedding=int8: known: "),
        (
            ["method=rtn", "bits=w8a8", "bits.head=w8a16", "model=vit_nano"],
            "bits.head: must be null; a model of images",
        ),
        (["method=rtn", "bits=mxfp4", "bits.weights.scale.rule=absmax"], "bits.weights.scale.rule=absmax: must be one of floor"),
        (["method=rtn", "bits=fp8", "bits.weights.bits=4"], "bits.weights.bits=4: must be 8, the width of element=e4m3"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError) as raised:
        api.configure(*overrides)
    assert said in str(raised.value)


def test_training_takes_the_float_model_as_it_is() -> None:
    given = {"name": "mine", "transforms": ["smooth"], "rounding": "qat"}
    with pytest.raises(UserError, match="rounding=qat: trains the float model itself, and method=mine also has smooth"):
        assembled(given).check(W4A4)


def test_a_natural_scheme_stays_with_the_method() -> None:
    assert scheme_of(api.configure("method=smoothquant", "rounding=gptq")).name == "w8a8_dynamic"
