"""The points of a quantized model by the paths of their quantizers, and the products of two points."""

from collections.abc import Mapping

from torch import nn

from sqbench.quant.operations import Point, QuantizedOwner

PLACE = "quantized_points"
SECOND = {"q": "k", "probs": "v"}  # first operand -> second operand of attention's products


def placed(root: nn.Module) -> dict[str, Point]:
    """Path of a quantizer -> the point that it quantizes."""
    found: dict[str, Point] = {}
    for name, module in root.named_modules():
        owner = getattr(module.__dict__.get("forward"), "__self__", None)
        if isinstance(owner, QuantizedOwner):
            prefix = f"{name}.{PLACE}".removeprefix(".")
            found |= {f"{prefix}.{owner.places[key]}": point for key, point in owner.points.items()}
    return found


def owner_of(path: str) -> str:
    """The path of the module that computes with what a quantizer rounds. `Point.owner` is its name in the model."""
    return path.rpartition(PLACE)[0].removesuffix(".")


def products(points: Mapping[str, Point]) -> dict[tuple[str, str], str]:
    """Paths of the quantizers of both operands -> the name of their product, such as `blocks.0.attn:q@k`.

    Args:
        points: as `placed` gives them.
    """
    paths = {point.site: path for path, point in points.items()}
    found = {}
    for path, point in points.items():
        second = _second(point.name)
        if second is not None and (other := paths.get(f"{point.owner}:{second}")) is not None:
            found[path, other] = f"{point.site}@{second}"
    return found


def _second(first: str) -> str | None:
    """The point that is multiplied by a first operand: `k1` for `q1`. None for a point that is no first operand."""
    if first.startswith("matmul"):
        return f"{first.removesuffix('a')}b" if first.endswith(".a") else None
    stem = first.rstrip("0123456789")
    return f"{SECOND[stem]}{first.removeprefix(stem)}" if stem in SECOND else None
