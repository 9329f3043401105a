"""Methods: one short file for each, all of the same form. Importing this package registers them."""

import dataclasses
import importlib
import pkgutil
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sqbench.config import SchemeConfig
from sqbench.errors import UserError, known
from sqbench.methods.base import METHODS, Method, Move, Task, parse_alpha, register
from sqbench.quant.formats import Scheme

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["METHODS", "Method", "Move", "Task", "configured", "register", "scheme_of"]


def configured(cfg: DictConfig) -> Method:
    """The method of a configuration, with its parameters and its alpha, if it has one.

    Raises:
        UserError: a method, parameter or value is unknown.
    """
    fields: dict[str, Any] = OmegaConf.to_container(cfg.method, resolve=True)  # type: ignore[assignment]
    name = fields.pop("name")
    fields.pop("natural")
    if name not in METHODS:
        raise UserError(f"method={name}: {known(name, METHODS)}")
    cls = METHODS[name]
    if cls.needs_alpha and cfg.alpha is not None:
        fields["alpha"] = cfg.alpha
    for key in ("alpha", "pair_alpha"):
        if key in fields:
            fields[key] = parse_alpha(fields[key], "alpha" if key == "alpha" else f"method.{key}")
    if not cls.needs_alpha and cfg.alpha is not None:
        parse_alpha(cfg.alpha)  # this method ignores alpha, but a typo in it is still an error
    schema = OmegaConf.structured(cls)
    OmegaConf.set_readonly(schema, False)  # frozen dataclasses make read-only configs
    try:
        checked: dict[str, Any] = OmegaConf.to_container(OmegaConf.merge(schema, fields))  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        names = ", ".join(field.name for field in dataclasses.fields(cls)) or "none"
        raise UserError(f"method.{error.full_key}: {str(error.msg).splitlines()[0]}; parameters of {name}: {names}") from error
    return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in checked.items()})


def scheme_of(cfg: DictConfig) -> Scheme:
    """The formats of a configuration: `bits`, or the method's natural scheme for `bits=auto`. A float method has a float scheme."""
    if cfg.method.name in METHODS and METHODS[cfg.method.name].is_float:
        return Scheme("fp")
    chosen = cfg.method.natural if cfg.bits.name == "auto" else cfg.bits
    try:
        typed = OmegaConf.merge(OmegaConf.structured(SchemeConfig), chosen)
    except OmegaConfBaseException as error:
        raise UserError(f"bits.{error.full_key}: {str(error.msg).splitlines()[0]}") from error
    scheme = Scheme.from_dict(OmegaConf.to_container(typed, resolve=True))  # type: ignore[arg-type]
    if scheme.is_float:
        return Scheme(scheme.name)  # without formats the other fields have no effect
    name = scheme.name if cfg.mixed is None or cfg.budget is None else f"{scheme.name}_mixed{cfg.budget:g}"
    return replace(scheme, name=name, layers=layers_of(cfg.layers))


def layers_of(value: Any) -> tuple[str, ...] | None:
    """The patterns in `layers` of a configuration, sorted, each once. None is all layers."""
    if value is None:
        return None
    return tuple(sorted({str(item) for item in ([value] if isinstance(value, str | int) else value)}))
