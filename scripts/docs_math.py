"""A MkDocs hook: formulas in GitHub's notation become MathML when the manual is built. They need no script and no network.

A fence of the language `math` is a formula of its own. $`...`$ is a formula inside a sentence.
"""

import logging
import re
from typing import Any

from latex2mathml.converter import convert

_BLOCK = re.compile(r"^```math\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"\$`([^`]+)`\$")


log = logging.getLogger("mkdocs.hooks")


def on_page_markdown(markdown: str, **event: Any) -> str:
    """Return the text of a page with MathML. MkDocs calls it for every page."""
    markdown = _BLOCK.sub(lambda found: f'<div class="formula">{mathml(found[1], "block")}</div>', markdown)
    return _INLINE.sub(lambda found: f"<span>{mathml(found[1], 'inline')}</span>", markdown)


def mathml(formula: str, display: str) -> str:
    """LaTeX as MathML. A command that the converter does not know is a warning, and so an error in a strict build."""
    converted = convert(formula, display=display)
    if "\\" in converted:
        log.warning("formula %s: holds a command that latex2mathml does not know", formula)
    return converted
