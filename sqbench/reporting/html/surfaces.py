"""Weights and activations before and after smoothing, from the files that `sqbench.plot distributions` writes."""

import json
from pathlib import Path
from typing import Any

from sqbench.reporting.html.text import clean

MOST = 12  # layers in a page
TOKENS, CHANNELS = 64, 96  # most of a surface in the page; larger ones become peaks of blocks
EXAMPLE = "python -m sqbench.plot distributions model=... layer=... alpha=0.5"


def surfaces(folder: Path) -> tuple[list[dict[str, Any]], int]:
    """The newest layers in the order of their names, and the number of layers left out. Surfaces are reduced for the page."""
    paths = sorted((folder / "plots").glob("distributions-*.json"), key=lambda path: (-path.stat().st_mtime, path.name))
    found = [data for path in paths if (data := _read(path)) is not None]
    shown = sorted(found[:MOST], key=lambda layer: (layer["model"], layer["layer"]))
    return shown, len(found) - len(shown)


def _read(path: Path) -> dict[str, Any] | None:
    """The layer in a file. None if the file is incomplete or of another version."""
    try:
        layer = json.loads(path.read_text(encoding="utf-8"))
        named = {name: str(layer[name]) for name in ("model", "layer", "told", "channel")}
        states = [
            {"name": str(state["name"]), **{field: _smaller(state[field]) for field in ("activation", "weight")}}
            for state in layer["states"]
        ]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
    return dict(clean({**named, "states": states}))


def _smaller(surface: dict[str, Any]) -> dict[str, Any]:
    """A surface reduced to at most TOKENS x CHANNELS peaks."""
    import numpy as np

    from sqbench.reporting.surfaces import decimate

    heights, rows, columns = decimate(np.array(surface["z"], dtype=float), TOKENS, CHANNELS)
    sides = {name: [surface[name][at] for at in places.tolist()] for name, places in (("rows", rows), ("columns", columns))}
    return {"z": heights.tolist(), **sides, "ratio": float(surface["ratio"])}
