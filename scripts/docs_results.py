"""A MkDocs hook: pages show the pictures of the committed results, from results/reference.

A page names a picture as on GitHub, `../results/reference/STUDY/plots/NAME.png`. The manual has it in `reference/`. In tables, a
change and its interval stay on one line.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

_FOLDER = Path(__file__).parents[1] / "results" / "reference"
_CELL = re.compile(r"<td.*?</td>", re.DOTALL)
_TOGETHER = re.compile(r"\([+x-]?[\d.]+ \[[^\]<]+\][,)]?|n\.s\., detectable [\d.]+\)")


def on_files(files: Any, config: Any, **event: Any) -> Any:
    """Add the pictures to the files of the manual. MkDocs calls it once."""
    for path in sorted(_FOLDER.glob("*/plots/*.png")):
        files.append(File.generated(config, f"reference/{path.relative_to(_FOLDER).as_posix()}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **event: Any) -> str:
    """Return the text of a page with links into `reference/`. MkDocs calls it for every page."""
    up = "../" * page.file.src_uri.count("/")
    return markdown.replace(f"](../{up}results/reference/", f"]({up}reference/")


def on_page_content(html: str, **event: Any) -> str:
    """Keep changes and intervals in tables on one line. MkDocs calls it with the HTML of every page."""
    return _CELL.sub(lambda cell: _TOGETHER.sub(r'<span class="together">\g<0></span>', cell[0]), html)
