"""From a configuration to the recipe and the scheme that it names."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sqbench.config import CONF_DIR, BitsConfig
from sqbench.corrections import CORRECTIONS
from sqbench.errors import UserError, known
from sqbench.formats.named import schemes
from sqbench.formats.scheme import Scheme
from sqbench.formats.tools import as_tool
from sqbench.parts.part import Part, Registry, build, parse_alpha
from sqbench.ranges import RANGES
from sqbench.recipes.recipe import AXES, Recipe
from sqbench.rounding import ROUNDINGS
from sqbench.transforms import TRANSFORMS

FLOAT = "none"  # the rounding of the float model
OWN = "own"  # of an axis: the part that the method itself has
STRUCTURE = ("defaults", "name", "natural", "transforms", "ranges", "rounding", "corrections")  # no parameters of parts


def recipe_of(cfg: DictConfig) -> Recipe:
    """The recipe of a configuration: its method, with the parts in `rounding` and `ranges` in place of the method's own.

    Raises:
        UserError: a part, parameter or value is unknown.
    """
    given: dict[str, Any] = OmegaConf.to_container(cfg.method, resolve=True)  # type: ignore[assignment]
    chosen: dict[str, Any] = {axis: OmegaConf.to_container(cfg[axis]) for axis in AXES if cfg[axis].name != OWN}
    given["corrections"] = [*given.get("corrections", ()), *cfg.corrections]
    return assembled(given, cfg.alpha, chosen)


def named(name: str, /, **parameters: Any) -> Recipe:
    """The recipe of a file in `conf/method`, with some parameters changed: `named("awq", alpha=0.5)`.

    Raises:
        UserError: there is no such file, or a parameter or value is unknown.
    """
    if name not in (names := method_names()):
        raise UserError(f"method={name}: {known(name, names)}")
    given: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "method" / f"{name}.yaml"))  # type: ignore[assignment]
    return assembled({**given, **parameters})


def method_names() -> list[str]:
    """The names of the recipes in `conf/method`."""
    return sorted(path.stem for path in (CONF_DIR / "method").glob("*.yaml"))


def methods_at_hand() -> list[str]:
    """The names of all recipes that a command line can choose. `--config-dir` adds some."""
    if GlobalHydra.instance().is_initialized():
        return sorted({*method_names(), *GlobalHydra.instance().config_loader().get_group_options("method")})
    return method_names()


def assembled(given: Mapping[str, Any], alpha: Any = None, chosen: Mapping[str, Mapping[str, Any]] | None = None) -> Recipe:
    """A recipe from plain data.

    Args:
        given: a method, as in its YAML file.
        alpha: for the parts that have one, in place of the method's. None is the method's own.
        chosen: axis (`AXES`) -> a part with its parameters, in place of the method's own.

    Raises:
        UserError: a part, parameter or value is unknown.
    """
    name, floating = given["name"], given.get("rounding") == FLOAT
    transforms = [TRANSFORMS.find(one, "method.transforms") for one in given.get("transforms", ())]
    corrections = [CORRECTIONS.find(one, "corrections") for one in dict.fromkeys(given.get("corrections", ()))]
    axes: dict[str, type[Part]] = {"ranges": RANGES.find(given.get("ranges", "minmax"), "method.ranges")}
    if not floating:
        axes["rounding"] = ROUNDINGS.find(given.get("rounding", "nearest"), "method.rounding")
    values = {key: value for key, value in given.items() if key not in STRUCTURE}
    _check_names(values, (*transforms, *axes.values(), *corrections), "method.", name)
    if alpha is not None:
        values["alpha"] = parse_alpha(alpha)  # a method without alpha ignores it, but a typo in it is still an error

    def built(cls: type[Part]) -> Any:
        return build(cls, values, "method.", name)

    parts = {axis: built(cls) for axis, cls in axes.items()}
    replaced = []
    for axis, own in (chosen or {}).items():
        part = _chosen(axis, own)
        if axis == "rounding" and not floating and parts[axis].foreign:
            raise UserError(f"rounding={part.name}: must be left out; method={name} is another tool, which rounds by itself")
        if not floating and part != parts[axis]:  # the method's own part under its own name is no choice
            parts[axis] = part
            replaced.append(axis)
    rounding = None if floating else parts["rounding"]
    return Recipe(
        name,
        tuple(map(built, transforms)),
        parts["ranges"],
        rounding,
        tuple(map(built, corrections)),
        tuple(replaced),
    )


def _chosen(axis: str, given: Mapping[str, Any]) -> Part:
    """The part of a config group, with its parameters."""
    registries: dict[str, Registry[Any]] = {"ranges": RANGES, "rounding": ROUNDINGS}
    values = {key: value for key, value in given.items() if key != "name"}
    cls: type[Part] = registries[axis].find(given["name"], axis)
    _check_names(values, (cls,), f"{axis}.", given["name"])
    return build(cls, values, f"{axis}.", given["name"])


def _check_names(values: Mapping[str, Any], parts: Sequence[type[Part]], place: str, of: str) -> None:
    """Raise UserError for a parameter that no part has."""
    names = [one.name for cls in parts for one in fields(cls)]
    for key in values:
        if key not in names:
            raise UserError(f"{place}{key}: {known(key, names)}" if names else f"{place}{key}: {of} has no parameters")


def scheme_of(cfg: DictConfig) -> Scheme:
    """The formats of a configuration: `bits`, or the method's natural scheme for `bits=auto`. A float method has a float scheme."""
    if cfg.method.get("rounding") == FLOAT:
        return Scheme("fp")
    chosen = cfg.method.natural if cfg.bits.name == "auto" else cfg.bits
    try:
        typed = OmegaConf.merge(OmegaConf.structured(BitsConfig), chosen)
    except OmegaConfBaseException as error:
        raise UserError(f"bits.{error.full_key}: {str(error.msg).splitlines()[0]}") from error
    told: dict[str, Any] = OmegaConf.to_container(typed, resolve=True)  # type: ignore[assignment]
    tool = told.pop("as") if cfg.bits.name != "auto" else cfg.bits.get("as")
    told |= {slot: _table_format(slot, told[slot]) for slot in ("embedding", "head")}
    scheme = Scheme.from_dict(told)
    if scheme.is_float:
        return Scheme(scheme.name)  # without formats the other fields have no effect
    if tool is not None:
        scheme = as_tool(scheme, tool)
    name = scheme.name if cfg.mixed is None or cfg.budget is None else f"{scheme.name}_mixed{cfg.budget:g}"
    return replace(scheme, name=name, layers=layers_of(cfg.layers))


def _table_format(slot: str, told: Any) -> Any:
    """The format of an embedding or a head as plain data: fields, or the weights of a scheme that is named."""
    if not isinstance(told, str):
        return told
    having = {name: scheme.weights for name, scheme in schemes().items() if scheme.weights is not None}
    if told not in having:
        raise UserError(f"bits.{slot}={told}: {known(told, having)}; null is float")
    return having[told].as_dict()


def layers_of(value: Any) -> tuple[str, ...] | None:
    """The patterns in `layers` of a configuration, sorted, each once. None is all layers."""
    if value is None:
        return None
    return tuple(sorted({str(item) for item in ([value] if isinstance(value, str | int) else value)}))
