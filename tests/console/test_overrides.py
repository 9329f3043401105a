"""A value written as an override comes back as it was, through Hydra's grammar, OmegaConf's interpolations and a shell."""

import shlex

from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from sqbench.console.overrides import pasted, written

TEXTS = st.text(st.sampled_from("ab=1 ,'\"\\${}[]()#:;~+-./&|<>*?!ä%\t"), min_size=1)


def read_back(line: str) -> object:
    """What a configuration has at the key of an override."""
    (override,) = OverridesParser.create().parse_overrides([line])
    assert not override.is_sweep_override()
    return OmegaConf.create({override.key_or_group: override.value()})["results_dir"]


@given(TEXTS)
@example('/data/seed=1, it\'s "here"')
@example("/data/${oc.env:HOME}")
@example("\\\\${x}\\")
@example("null")
@example("12")
@example(" ")
def test_a_text_comes_back_as_it_was(text: str) -> None:
    assert read_back(written("results_dir", text)) == text
    (word,) = shlex.split(pasted("results_dir", text))
    assert read_back(word) == text


def test_plain_paths_stay_plain() -> None:
    assert pasted("results_dir", "/data/my-results_2.1/a") == "results_dir=/data/my-results_2.1/a"
