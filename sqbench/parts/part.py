"""The base of every part of a recipe: a frozen dataclass of its parameters. A registry for each kind of part knows them by name."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sqbench.errors import UserError, known
from sqbench.formats.scheme import Scheme


class InvalidField(UserError):
    """A parameter of a part has a value that cannot work. The message begins with the parameter's name."""


def _nothing(images: int) -> tuple[int, int]:
    return 0, 0


@dataclass(frozen=True)
class Effort:
    """The amount of work of a part, for a plan that is made before anything is loaded. The efforts of parts add up.

    Attributes:
        roundings: how often every weight is rounded.
        replays: how often a search replays its sample. Each replay is about one pass through all layers.
        learnt: number of images of a training split -> number of images of all gradient steps, and of steps.
    """

    roundings: float = 0.0
    replays: float = 0.0
    learnt: Callable[[int], tuple[int, int]] = _nothing

    @staticmethod
    def total(efforts: Iterable["Effort"]) -> "Effort":
        """The work of several parts. At most one of them trains."""
        listed = list(efforts)
        trained = next((one.learnt for one in listed if one.learnt is not _nothing), _nothing)
        return Effort(sum(one.roundings for one in listed), sum(one.replays for one in listed), trained)


@dataclass(frozen=True)
class Part:
    """One part of a recipe. A subclass checks its parameters in `__post_init__` by `require`."""

    name: ClassVar[str] = ""  # set by the registry

    def require(self, key: str, holds: bool, works: str) -> None:
        """Raise InvalidField about a parameter unless a condition holds. `works` is what the value must be."""
        if not holds:
            raise InvalidField(f"{key}={getattr(self, key)}: {works}")

    def needs(self, scheme: Scheme) -> frozenset[str]:
        """Names of the collectors (`sqbench.statistics`) that the part reads, besides those that always run."""
        return frozenset()

    def effort(self, scheme: Mapping[str, Any]) -> Effort:
        """The work of the part under a scheme, in the form of a point's identity. A plan foresees only this work."""
        return Effort()


P = TypeVar("P", bound=Part)


class Registry(dict[str, type[P]]):
    """Name -> class of one kind of part."""

    def __init__(self, kind: str) -> None:
        """`kind` is the word for the parts in messages: transforms, ranges, rounding, corrections."""
        super().__init__()
        self.kind = kind

    def register(self, name: str) -> Callable[[type[P]], type[P]]:
        """Register a class under a name."""

        def add(cls: type[P]) -> type[P]:
            assert name not in self, name
            cls.name = name
            self[name] = cls
            return cls

        return add

    def find(self, name: str, key: str = "") -> type[P]:
        """The class of a name.

        Raises:
            UserError: there is none. The message names `key`, by default the kind.
        """
        if name not in self:
            raise UserError(f"{key or self.kind}={name}: {known(str(name), self)}")
        return self[name]


def build(cls: type[P], values: Mapping[str, Any], place: str, of: str) -> P:
    """A part from plain values of the right types.

    Args:
        values: those of its parameters that are given. Others are not read.
        place: the prefix of its parameters on a command line, `method.` or `rounding.`. alpha has none.
        of: the name of the recipe or part, for messages.

    Raises:
        UserError: a value is wrong.
    """
    names = [one.name for one in fields(cls)]
    schema = OmegaConf.structured(cls)
    OmegaConf.set_readonly(schema, False)  # frozen dataclasses make read-only configs
    try:
        merged = OmegaConf.merge(schema, {key: value for key, value in values.items() if key in names})
        typed: dict[str, Any] = OmegaConf.to_container(merged)  # type: ignore[assignment]
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in typed.items()})
    except OmegaConfBaseException as error:
        listed = ", ".join(names) or "none"
        raise UserError(f"{place}{error.full_key}: {str(error.msg).splitlines()[0]}; parameters of {of}: {listed}") from error
    except InvalidField as error:
        prefix = "" if str(error).startswith("alpha=") else place
        raise UserError(f"{prefix}{error}") from error


def parse_alpha(value: Any, key: str = "alpha") -> float | str:
    """Return a number in [0, 1], or `auto`.

    Raises:
        InvalidField: the value is anything else.
    """
    if value == "auto":
        return "auto"
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else -1.0
    except ValueError:
        number = -1.0
    if 0 <= number <= 1:
        return abs(number)  # -0.0 is 0
    raise InvalidField(f"{key}={value}: must be a number from 0 to 1, or auto (the method searches)")
