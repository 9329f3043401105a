"""The schemes of `conf/bits` by name."""

from functools import cache

from omegaconf import OmegaConf

from sqbench.config import CONF_DIR
from sqbench.formats.scheme import Scheme

FOLDER = CONF_DIR / "bits"


@cache
def schemes() -> dict[str, Scheme]:
    """Name -> scheme, for every file of `conf/bits` that quantizes something. From many bits a weight to few."""
    found = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        told = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(told, dict)
        scheme = Scheme.from_dict({str(key): value for key, value in told.items()})
        if not scheme.is_float:
            found[path.stem] = scheme
    return dict(sorted(found.items(), key=lambda item: (-bits_a_weight(item[1]), item[0])))


def bits_a_weight(scheme: Scheme, rows: int = 4096, columns: int = 4096) -> float:
    """Bits of a weight as stored, with its share of scales and zero-points, in a matrix of this size. 16 for float weights."""
    if scheme.weights is None:
        return 16.0
    return 8 * scheme.weights.stored_bytes(rows, columns) / (rows * columns)
