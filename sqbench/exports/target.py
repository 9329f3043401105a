"""What every export format is: how a folder is filled, and how another program proves it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqbench.data import Examples
from sqbench.exports.proof import Proof
from sqbench.models.base import Model
from sqbench.models.image import ImageModel


@dataclass(frozen=True)
class Target:
    """A format of exported folders.

    Attributes:
        name: the word for `format=`.
        library: what loads the folder, as model cards name it. Empty for the library of the float model.
        write: (model, empty folder) -> None. Fills the folder with everything but the model card. Raises UserError if the format
            cannot express something: which layer, which field, and what would fit.
        prove: (simulated model, written folder, examples) -> how another program's predictions differ. Raises UserError if the
            program cannot load the folder.
        require: raises UserError if a package that it needs is missing.
    """

    name: str
    library: str
    write: Callable[[Any, Path], None]
    prove: Callable[[Model, Path, Examples], Proof]
    require: Callable[[], None] = lambda: None

    def library_of(self, model: Model) -> str:
        """What loads the folder of a model."""
        return self.library or ("timm" if isinstance(model, ImageModel) else "transformers")
