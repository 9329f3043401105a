"""The way from a command line to configurations. Fields of a choice are set once that choice is known.

For `-m bits=w4a16,w3a16 bits.weights.group_size=32`, Hydra first composes one configuration for the whole sweep. It gives swept
keys their defaults, here bits=auto, which has no weights. The field cannot be set there, although every point of the sweep has it.
"""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import hydra._internal.hydra as application
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from sqbench.console.overrides import TROUBLE, missing, put, read, unknown
from sqbench.errors import UserError, known
from sqbench.formats.tools import CALLED

SWEEPING = "config"  # the one configuration whose command line makes sweeps
SHOWN = 10  # files of a group in a message, before the others are counted
PLUGINS = {"joblib": "parallel", "submitit_local": "slurm", "submitit_slurm": "slurm", "ray": "ray"}  # launcher -> extra


class Loader(ConfigLoaderImpl):
    """Hydra's loader, which leaves fields that the whole sweep does not have to its jobs.

    It goes with the points to the processes and hosts of a launcher.
    """

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Compose a configuration as Hydra does.

        Raises:
            UserError: the group, file, key or type of an override is wrong, or it has several values where one is expected.
        """

        def compose(lines: list[str]) -> DictConfig:
            return super(Loader, self).load_configuration(config_name, lines, run_mode, from_shell, validate_sweep_overrides)

        try:
            return compose(overrides)
        except (*TROUBLE, ValueError):  # Hydra raises the last for group=null
            parsed = read(overrides)
            choices = [item for item in parsed if self._is_choice(item)]
            self._refuse_choices(choices, compose([]))
            values = [item for item in parsed if item not in choices]
            swept = [item for item in values if run_mode == RunMode.MULTIRUN and not item.is_hydra_override()]
            later = [item for item in swept if "." in item.key_or_group]
            chosen = compose([str(item.input_line) for item in choices if not item.is_sweep_override()])
            self._refuse_values(chosen, [item for item in values if item not in later and not item.is_sweep_override()])
            if several := [item for item in parsed if item.is_sweep_override() and run_mode == RunMode.RUN]:
                raise UserError(_several(several[0], config_name, parsed)) from None
            if not later:
                raise
            shared = compose([str(item.input_line) for item in parsed if item not in later])
            shared.hydra.overrides.task = [
                item.input_line for item in parsed if not item.is_hydra_override()
            ]  # the jobs come from these
            return shared

    def _is_choice(self, override: Override) -> bool:
        """Whether an override chooses a file of a group instead of setting a key."""
        return self.repository.group_exists(override.key_or_group) and not isinstance(override.value(), dict)

    def _refuse_choices(self, choices: Sequence[Override], defaults: DictConfig) -> None:
        """Raise UserError for the first unknown group of this command line, or the first unknown file of a group."""
        groups = [name.partition("@")[0] for name in defaults.hydra.runtime.choices]
        for override in choices:
            group, value = override.key_or_group, override.value()
            if group not in groups and not (override.is_add() or override.is_force_add()):
                raise UserError(f"{override.input_line}: {unknown(defaults, group)}")
            names = value.list if isinstance(value, ChoiceSweep) else value if isinstance(value, list) else [value]
            for name in names:
                text = name.text if isinstance(name, QuotedString) else "null" if name is None else str(name)
                option = text.removesuffix(".yaml")
                options = self._options(group, option)
                if option not in options and not override.is_delete():
                    theirs = CALLED.get(option.upper(), "") if group == "bits" else ""
                    hint = f"what other tools call so is {theirs} here; " if theirs else ""
                    raise UserError(f"{group}={option}: {hint}{known(option, options)}{_plugin(group, option)}")

    def _options(self, group: str, option: str) -> list[str]:
        """The names in a group. Where an `option` that is not among them is a folder of the group, or in one, its names."""
        options = self.get_group_options(group)
        for inner in (option, option.rpartition("/")[0]):
            if option not in options and inner and self.repository.group_exists(f"{group}/{inner}"):
                return [f"{inner}/{name}" for name in self.get_group_options(f"{group}/{inner}")]
        return options

    def _refuse_values(self, cfg: DictConfig, values: Sequence[Override]) -> None:
        """Raise UserError for the first of these keys that does not exist, or whose value has the wrong type."""
        for override in values:
            key = override.key_or_group
            lost = missing(cfg, key)
            if lost and not (override.is_add() or override.is_force_add()) and (found := self._choice(cfg, key)) is not None:
                raise UserError(f"{override.input_line}: {self._others(cfg, lost, *found)}")
            put(cfg, [override])

    @staticmethod
    def _choice(cfg: DictConfig, key: str) -> tuple[str, str, str] | None:
        """The group of a key as a command line names it, its chosen option, and the place of the group in a configuration."""
        found = []
        for name, option in cfg.hydra.runtime.choices.items():
            group, _, package = name.partition("@")
            place = package or group.replace("/", ".")
            if key.startswith(f"{place}."):
                found.append((name, str(option), place))
        return max(found, key=lambda one: len(one[2]), default=None)

    def _others(self, cfg: DictConfig, lost: str, name: str, option: str, place: str) -> str:
        """A message: the missing key, and the options of the group that have it, else the known fields."""
        group, inside = name.partition("@")[0], lost.removeprefix(f"{place}.")
        having = [other for other in self.get_group_options(group) if _has(self.repository.load_config(f"{group}/{other}"), inside)]
        said = f"{name}={option} has no {lost}"
        if having:
            listed = [*having[:SHOWN], f"{len(having) - SHOWN} more"] if len(having) > SHOWN + 1 else having
            return f"{said}; {name}={', '.join(listed)} {'have' if len(having) > 1 else 'has'} it"
        parent = OmegaConf.select(cfg, lost.rpartition(".")[0])
        return f"{said}; {known(lost.rpartition('.')[2], parent)}"


def _several(override: Override, config_name: str | None, parsed: Sequence[Override]) -> str:
    """The message for several values of a key without a sweep, with the right command."""
    said = override.input_line
    if config_name != SWEEPING:
        return f"{said}: must be one value; a list is {override.key_or_group}=[{str(said).partition('=')[2]}]"
    words = [str(item.input_line) for item in parsed if item.key_or_group != "hydra.mode"]
    return f"{said}: several values are a sweep, put -m first: {shlex.join(['python', '-m', 'sqbench.run', '-m', *words])}"


def _plugin(group: str, option: str) -> str:
    """The tail of a message: the line that installs a launcher. Empty for other options."""
    extra = PLUGINS.get(option) if group == "hydra/launcher" else None
    return brings(extra) if extra else ""


def brings(extra: str) -> str:
    """The tail of a message: the line that installs an extra."""
    return f"; `pip install sqbench[{extra}]` brings it"


def _has(loaded: Any, key: str) -> bool:
    return loaded is not None and missing(loaded.config, key) is None


@contextmanager
def by_choice() -> Iterator[None]:
    """Let a Hydra application compose with `Loader` inside the block. Hydra has no setting for this."""
    own = application.ConfigLoaderImpl
    application.ConfigLoaderImpl = Loader
    try:
        yield
    finally:
        application.ConfigLoaderImpl = own
