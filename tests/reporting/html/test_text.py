"""User text never becomes markup, script or an invisible character of the page."""

import html
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sqbench.reporting.html.text import clean, data, in_figure, visible

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@given(VALUES)
def test_json_in_a_script_element_is_the_same_json_and_holds_no_markup(value: Any) -> None:
    text = str(data(value))
    assert json.loads(text) == value
    assert not set("<>&") & set(text)
    assert text.isascii()


@given(st.text())
def test_only_line_breaks_and_tabs_of_what_is_invisible_stay(text: str) -> None:
    seen = visible(text)
    assert len(seen) == len(text)
    assert all(char.isprintable() or char in "\n\t" for char in seen)
    assert all(one == other for one, other in zip(seen, text, strict=True) if other.isprintable())


@given(st.text())
def test_a_label_of_a_figure_reads_as_it_was_written(text: str) -> None:
    label = in_figure(text)
    assert not set("<>") & set(label)
    assert html.unescape(label) == html.unescape(html.escape(visible(text), quote=False))


def test_keys_are_cleaned_too() -> None:
    assert clean({"a\u202e": ["\x1b[31m", 1, None, {"b": "c\u200b"}]}) == {"a ": [" [31m", 1, None, {"b": "c "}]}
