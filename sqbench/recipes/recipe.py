"""A recipe: the parts by which a model is quantized, and the combinations that make no sense."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sqbench.corrections import Correction
from sqbench.errors import UserError
from sqbench.formats.scheme import Scheme
from sqbench.parts.part import Effort, Part
from sqbench.ranges import Ranges
from sqbench.ranges.minmax import MinMax
from sqbench.rounding import Rounding
from sqbench.rounding.nearest import Nearest
from sqbench.transforms import Transform

AXES = ("ranges", "rounding")  # parts that a command line may choose apart from the method


@dataclass(frozen=True)
class Recipe:
    """What is done to a float model. The parts come in this order.

    Attributes:
        name: the method's.
        transforms: equivalent changes of the float model.
        ranges: clipping ranges of inputs and weights.
        rounding: codes of weights. None leaves the whole model in float, under any scheme.
        corrections: repairs after rounding.
        chosen: the axes (`AXES`) whose part replaces the method's own.
    """

    name: str
    transforms: tuple[Transform, ...] = ()
    ranges: Ranges = field(default_factory=MinMax)
    rounding: Rounding | None = field(default_factory=Nearest)
    corrections: tuple[Correction, ...] = ()
    chosen: tuple[str, ...] = ()

    @property
    def is_float(self) -> bool:
        """Whether the model stays as it is."""
        return self.rounding is None

    @property
    def trains(self) -> bool:
        """Whether codes come from gradient steps on labelled examples."""
        return self.rounding is not None and self.rounding.trains

    @property
    def stored(self) -> bool:
        """Whether codes are those of a checkpoint, so that nothing is left to choose."""
        return self.rounding is not None and self.rounding.stored

    @property
    def foreign(self) -> bool:
        """Whether another tool quantizes the whole model."""
        return self.rounding is not None and self.rounding.foreign

    @property
    def parts(self) -> Iterator[Part]:
        """All parts, in order."""
        yield from self.transforms
        yield self.ranges
        if self.rounding is not None:
            yield self.rounding
        yield from self.corrections

    @property
    def has_alpha(self) -> bool:
        """Whether a part has a parameter `alpha`."""
        return any(hasattr(part, "alpha") for part in self.parts)

    def needs(self, scheme: Scheme) -> frozenset[str]:
        """Names of the collectors that the parts read, besides those that always run."""
        return frozenset[str]().union(*(part.needs(scheme) for part in self.parts))

    def effort(self, scheme: Mapping[str, Any]) -> Effort:
        """The work under a scheme, in the form of a point's identity."""
        return Effort.total(part.effort(scheme) for part in self.parts)

    def check(self, scheme: Scheme) -> None:
        """Raise UserError if the parts make no sense together, or with a scheme. The message has the reason."""
        if self.rounding is None or scheme.is_float:
            return
        if (reason := self.rounding.refusal(scheme)) is not None:
            raise UserError(f"{self.rounding.key}: {reason}")
        if (self.trains or self.foreign) and (others := [part.name for part in (*self.transforms, *self.corrections)]):
            does = "trains" if self.trains else "quantizes"
            raise UserError(
                f"{self.rounding.key}: {does} the float model itself, and method={self.name} also has {', '.join(others)};"
                f" use method={self.rounding.name}"
            )
        if (self.trains or self.foreign) and "ranges" in self.chosen:
            does = "trains" if self.trains else "chooses"
            raise UserError(f"ranges={self.ranges.name}: {self.rounding.key} {does} its ranges itself; leave ranges out")

    def about(self) -> dict[str, Any]:
        """The recipe as a point's identity holds it: the method with the parameters of its own parts, and the chosen parts."""
        if self.rounding is None:
            return {"method": {"name": self.name}}
        own = [part for part in self.parts if part not in [getattr(self, axis) for axis in self.chosen]]
        parameters = {key: value for part in own for key, value in asdict(part).items()}
        parts = {
            "transforms": [part.name for part in self.transforms],
            "ranges": self.ranges.name,
            "rounding": self.rounding.name,
            "corrections": [part.name for part in self.corrections],
        }
        chosen = {axis: {"name": parts[axis], **asdict(getattr(self, axis))} for axis in self.chosen}
        return {"method": {"name": self.name, **parameters}, "recipe": parts, **chosen}
