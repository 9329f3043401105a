"""The space of a search: the overrides with more than one value, in Hydra's own grammar, as Optuna's distributions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import Override
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from sqbench.errors import UserError, known

TAGS = ("log",)


@dataclass(frozen=True)
class Space:
    """The overrides of a search.

    Attributes:
        fixed: key -> the one value that all trials have, as Hydra reads it.
        dimensions: key -> the distribution that a trial's value is drawn from.
    """

    fixed: Mapping[str, str]
    dimensions: Mapping[str, BaseDistribution]

    def overrides(self, chosen: Mapping[str, Any]) -> list[str]:
        """The overrides of one choice of values."""
        return [f"{key}={value}" for key, value in {**self.fixed, **rounded(chosen)}.items()]

    def corners(self) -> list[dict[str, Any]]:
        """Choices to check beforehand. Each value of a list, and both ends of an interval, occur at least once."""
        ends = {key: _ends(dimension) for key, dimension in self.dimensions.items()}
        first = {key: values[0] for key, values in ends.items()}
        return [first, *({**first, key: value} for key, values in ends.items() for value in values[1:])]


def space_of(overrides: Sequence[Override]) -> Space:
    """The space of a command line. Of several overrides of a key, the last one counts.

    Raises:
        UserError: no key has several values, or Optuna cannot draw from one that has.
    """
    last = {override.get_key_element(): override for override in overrides}
    swept = {key: override for key, override in last.items() if override.is_sweep_override()}
    dimensions = {key: _dimension(override) for key, override in swept.items()}
    if all(dimension.single() for dimension in dimensions.values()):
        raise UserError("hydra/sweeper=search: no key has several values; use 'alpha=interval(0,1)', or alpha=0.3,0.5,0.8")
    return Space({key: item.get_value_element_as_str() for key, item in last.items() if key not in swept}, dimensions)


def _dimension(override: Override) -> BaseDistribution:
    """The distribution of an override.

    `interval(a,b)` and `range(a,b,step)` give numbers of the type that they are written in. Anything else gives a list of texts.
    """
    sweep, line = override.value(), override.input_line
    tags: set[str] = getattr(sweep, "tags", set())
    if unknown := sorted(tags - set(TAGS)):
        raise UserError(f"{line}: tag {unknown[0]}: {known(unknown[0], TAGS)}")
    numbers = override.is_interval_sweep() or override.is_range_sweep()
    if tags and not numbers:
        raise UserError(f"{line}: tag log is for numbers; use 'tag(log,interval(0.001,1))'")
    if hasattr(sweep, "shuffle"):
        sweep.shuffle = False  # the sampler draws; only with the same list can the same search be made again
    try:
        if not numbers:
            return CategoricalDistribution(list(override.sweep_string_iterator()))
        values = [sweep.start, sweep.end] if override.is_interval_sweep() else sorted(override.sweep_iterator())
        if not values:
            raise ValueError("it is empty")
        step = abs(sweep.step) if override.is_range_sweep() else None
        if all(isinstance(value, int) for value in values):
            return IntDistribution(values[0], values[-1], log=bool(tags), step=step or 1)
        last = values[-1] if step is None else round(values[-1], 12)  # a sum of steps: Optuna warns of 0.7000000000000001
        return FloatDistribution(values[0], last, log=bool(tags), step=step)
    except ValueError as error:
        raise UserError(f"{line}: nothing can be drawn from it ({error})") from error


def _ends(dimension: BaseDistribution) -> Sequence[Any]:
    if isinstance(dimension, CategoricalDistribution):
        return dimension.choices
    assert isinstance(dimension, FloatDistribution | IntDistribution)
    return dimension.low, dimension.high


def rounded(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Drawn values as they are run. Numbers have six digits, because no parameter of quantization needs more."""
    return {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in chosen.items()}


def described(dimension: BaseDistribution) -> str:
    """A dimension in words."""
    if isinstance(dimension, CategoricalDistribution):
        return ", ".join(map(str, dimension.choices))
    assert isinstance(dimension, FloatDistribution | IntDistribution)
    step = f", step {dimension.step:g}" if dimension.step not in (None, 1) else ""
    return f"{dimension.low:g} to {dimension.high:g}{step}{', log' if dimension.log else ''}"
