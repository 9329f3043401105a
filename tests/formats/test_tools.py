"""Rules of other tools: `bits.as`, and the tools' own numbers."""

from dataclasses import replace

import pytest
import torch

from sqbench.api import configure
from sqbench.errors import UserError
from sqbench.formats.codec import decode, encode
from sqbench.formats.format import Format
from sqbench.formats.named import bits_a_weight, schemes
from sqbench.formats.scheme import Scheme
from sqbench.formats.tools import CALLED, TOOLS, WEIGHTS_ALONE, as_tool, kind_of
from sqbench.recipes.configured import scheme_of


def test_each_known_format_of_each_tool_is_a_format_that_can_be_executed() -> None:
    for tool, kinds in TOOLS.items():
        for name, scheme in schemes().items():
            alone = Scheme(name, weights=scheme.weights)
            if scheme.weights is not None and kind_of(scheme.weights) in kinds:
                under = as_tool(alone, tool)
                under.check()
                assert under.name == f"{name}_{tool}"
                x = torch.randn(128, 256, generator=torch.Generator().manual_seed(0))
                assert torch.isfinite(decode(encode(x, under.weights))).all()


def test_a_tool_that_has_no_such_format_is_refused_with_those_that_have() -> None:
    with pytest.raises(UserError, match=r"has no rules for the mx weights of bits=mxfp4; these have: compressed"):
        as_tool(schemes()["mxfp4"], "bitsandbytes")
    with pytest.raises(UserError, match=r"bits.as=nncf: has no rules for the symmetric int activations"):
        as_tool(schemes()["w8a8_dynamic"], "nncf")
    with pytest.raises(UserError, match=r"bits.as=torch-ao: did you mean torchao\?"):
        as_tool(schemes()["mxfp4"], "torch-ao")
    assert set(WEIGHTS_ALONE) <= set(TOOLS)


@pytest.mark.parametrize("words", CALLED.values(), ids=CALLED)
def test_names_of_other_tools_point_at_schemes(words: str) -> None:
    scheme = scheme_of(configure(*words.split(), "method=rtn"))
    scheme.check()
    assert not scheme.is_float


def test_rules_are_set_from_the_command_line() -> None:
    scheme = scheme_of(configure("bits=nvfp4", "bits.as=torchao", "method=rtn"))
    assert scheme.weights is not None
    assert scheme.activations is not None
    assert (scheme.weights.scale.order, scheme.activations.scale.order) == ("torchao", "torchao")
    natural = scheme_of(configure("method=rtn", "bits.as=nncf"))  # bits=auto
    assert natural.weights is not None
    assert (natural.name, natural.weights.range) == ("w4a16_nncf", "own")


def test_bits_of_a_weight_are_those_of_the_standards() -> None:
    found = {name: round(bits_a_weight(scheme), 2) for name, scheme in schemes().items()}
    assert found["nvfp4a16"] == 4.5
    assert found["mxfp4a16"] == 4.25
    assert found["mxfp6a16"] == 6.25
    assert found["mxfp8a16"] == 8.25
    assert found["w4a16_g128_sym"] == 4.25
    assert list(found.values()) == sorted(found.values(), reverse=True)


TINY = [
    *(-8.714247456964586e-08, 6.976124495849945e-07, 7.416830953843601e-07, -0.0, 5.189761509427626e-07, 8.588999378389417e-08),
    *(1.0992334864567965e-07, 2.2795894949467765e-07, 1.4623255140122637e-07, 2.2789265585743124e-07, 1.7452505574055976e-07),
    *(-3.6012875170854386e-07, 1.8544453439517383e-07, -3.9270517504519376e-07, -6.176014153425058e-07, 1.1297757964712218e-06),
]
COARSE = [0.125, -0.25, -0.5, 0.375, -0.25, 0.5, 0.375, 0.75, 0.125, -0.375, 0.25, -0.125, -0.625, -0.25, -0.0, 0.625]
LOUD = [
    *(-3.389206886291504, -1.992416262626648, -5.125932216644287, -5.696422576904297, -3.9281084537506104, 2.873650550842285),
    *(-3.208552360534668, 9.147908210754395, 4.004322528839111, 0.25761935114860535, -3.6165904998779297, 4.957385063171387),
    *(-0.6441580057144165, -10.433358192443848, 6.797888278961182, -5.611169815063477),
]


class TestNumbersOfTheTools:
    """Single blocks of the tools' own runs: ModelOpt 0.47.0, torchao 36027d82d, compressed-tensors 0.20.1, bitsandbytes 0.50.2."""

    @pytest.mark.parametrize(
        ("tool", "stored", "over"),
        [("modelopt", 2.0**-9, 0.004638561978936195), ("torchao", 2.0**-6, 0.004638561978936195), ("compressed-tensors", 0.125, 0)],
    )
    def test_the_scale_of_a_tiny_nvfp4_block(self, tool: str, stored: float, over: float) -> None:
        """The tensor has the largest magnitude 12.468454360961914. compressed-tensors divides by 215.58404541015625."""
        fmt = replace(nvfp4(tool), amax=12.468454360961914)
        scale = encode(torch.tensor([TINY]), fmt).scale
        stored32 = torch.tensor(stored)
        assert scale.item() == (stored32 * over if over else stored32 / 215.58404541015625).item()

    @pytest.mark.parametrize(("tool", "zero"), [("modelopt", 0), ("torchao", 8), ("compressed-tensors", 0)])
    def test_the_codes_of_a_coarse_nvfp4_block(self, tool: str, zero: int) -> None:
        """The tensor's largest magnitude is 19.375, the block's scale has the code 89. Only torchao keeps the sign of -0."""
        encoded = encode(torch.tensor([COARSE]), replace(nvfp4(tool), amax=19.375))
        assert encoded.codes[0].tolist() == [2, 12, 14, 5, 12, 6, 5, 7, 2, 13, 4, 10, 14, 12, zero, 6]
        stored = encoded.scale / (19.375 / 2688)
        assert stored.to(torch.float8_e4m3fn).view(torch.uint8).item() == 89

    def test_torchao_integers(self) -> None:
        """int4 SYMMETRIC: codes with 8 added."""
        fmt = replace(schemes()["w4a16_g32_sym"].weights, group_size=16)
        under = as_tool(Scheme("int4", weights=fmt), "torchao").weights
        assert under is not None
        codes = encode(torch.tensor([LOUD]), under).codes[0] + 8
        assert codes.tolist() == [6, 7, 4, 4, 5, 10, 6, 15, 11, 8, 5, 12, 8, 0, 13, 4]

    def test_bitsandbytes_nf4(self) -> None:
        """absmax scales, and the level nearest to x / absmax. Worked by hand from the table of levels."""
        fmt = as_tool(schemes()["nf4"], "bitsandbytes").weights
        assert fmt is not None
        x = torch.zeros(1, 64)
        x[0, :4] = torch.tensor([4.0, -4.0, 1.0, -2.1])
        encoded = encode(x, fmt)
        assert encoded.scale.item() == 4.0
        assert encoded.codes[0, :5].tolist() == [15, 0, 10, 2, 7]


def nvfp4(tool: str) -> Format:
    fmt = as_tool(schemes()["nvfp4a16"], tool).weights
    assert fmt is not None
    return fmt
