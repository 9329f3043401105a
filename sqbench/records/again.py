"""The command that makes a point again: its own command, and the settings whose defaults have changed since."""

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sqbench.config import RunOptions, compose_config
from sqbench.console.overrides import TROUBLE, quoted
from sqbench.errors import UserError
from sqbench.records.record import Record

_OPTIONS = [field.name for field in fields(RunOptions)]


def again(record: Record) -> str:
    """The command that makes a record again. Empty if it has none. A command that no longer composes is returned unchanged."""
    command = str(record.provenance.get("command", ""))
    program, overrides = (words := shlex.split(command))[:3], words[3:]
    if program != ["python", "-m", "sqbench.run"]:
        return command
    try:
        today = dict(_leaves(OmegaConf.to_container(compose_config(*overrides), resolve=True)))
    except (UserError, OmegaConfBaseException, *TROUBLE):
        return command
    then, data = dict(_leaves(record.config)), record.identity["data"]
    changed = [
        f"{key}={quoted(value) if isinstance(value, str) else json.dumps(value)}"
        for key, value in then.items()
        if key in today and today[key] != value and key.partition(".")[0] not in _OPTIONS
        if not key.startswith("data.") or key.removeprefix("data.") in data  # an image model has no windows
    ]
    return shlex.join([*program, *overrides, *changed]) if changed else command


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Values of nested mappings, by dotted keys."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{place}.{key}" if place else str(key))
    else:
        yield place, value
