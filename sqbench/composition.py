"""How a command line becomes configurations: fields of a choice are set where that choice is known.

Of `-m bits=w4a16,w3a16 bits.weights.group_size=32`, Hydra first composes one configuration for the sweep as a whole. It gives swept
keys their defaults, here bits=auto, which has no weights: the field could not be set, though every point of the sweep has it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import hydra._internal.hydra as application
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sqbench.errors import UserError, known

TROUBLE = (HydraException, OmegaConfBaseException, AssertionError)  # the last is what OmegaConf raises for a key below null


class Loader(ConfigLoaderImpl):
    """Hydra's loader, which leaves to each job of a sweep the fields that the sweep as a whole does not have.

    It goes to the processes and hosts of a launcher with the points.
    """

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """As Hydra's.

        Raises:
            UserError: a field is none of the choice that it belongs to.
        """

        def compose(lines: list[str]) -> DictConfig:
            return super(Loader, self).load_configuration(config_name, lines, run_mode, from_shell, validate_sweep_overrides)

        try:
            return compose(overrides)
        except TROUBLE:
            parsed = OverridesParser.create().parse_overrides(overrides)
            fields = [item for item in parsed if "." in item.key_or_group]
            if not fields:
                raise
            later = [item for item in fields if run_mode == RunMode.MULTIRUN and not item.is_hydra_override()]
            self._refuse(
                compose([str(item.input_line) for item in parsed if item not in fields]),
                [item for item in fields if item not in later],
            )
            if not later:
                raise
            shared = compose([str(item.input_line) for item in parsed if item not in later])
            shared.hydra.overrides.task = [
                item.input_line for item in parsed if not item.is_hydra_override()
            ]  # jobs come from these
            return shared

    def _refuse(self, cfg: DictConfig, fields: Sequence[Override]) -> None:
        """Raise UserError for the first of these fields that is none of its choice, in a configuration without them."""
        for override in fields:
            key = override.key_or_group
            missing = _missing(cfg, key)
            if missing and not (override.is_add() or override.is_force_add()):
                if (found := self._choice(cfg, key)) is not None:
                    raise UserError(f"{override.input_line}: {self._others(cfg, missing, *found)}")
                return
            try:
                OmegaConf.update(cfg, key, override.value(), merge=True, force_add=True)  # later ones may lie below it
            except TROUBLE:
                return  # the field is there, its value is wrong: Hydra says so

    @staticmethod
    def _choice(cfg: DictConfig, key: str) -> tuple[str, str, str] | None:
        """The group that a key belongs to, as a command line names it, the option chosen of it, and where that stands."""
        found = []
        for name, option in cfg.hydra.runtime.choices.items():
            group, _, package = name.partition("@")
            place = package or group.replace("/", ".")
            if key.startswith(f"{place}."):
                found.append((name, str(option), place))
        return max(found, key=lambda one: len(one[2]), default=None)

    def _others(self, cfg: DictConfig, missing: str, name: str, option: str, place: str) -> str:
        """What is missing where, and which options of the group have it, else which fields there are."""
        group, inside = name.partition("@")[0], missing.removeprefix(f"{place}.")
        having = [other for other in self.get_group_options(group) if _has(self.repository.load_config(f"{group}/{other}"), inside)]
        said = f"{name}={option} has no {missing}"
        if having:
            return f"{said}; {name}={', '.join(having)} {'have' if len(having) > 1 else 'has'} it"
        parent = OmegaConf.select(cfg, missing.rpartition(".")[0])
        return f"{said}; {known(missing.rpartition('.')[2], parent)}"


def _missing(cfg: DictConfig, key: str) -> str | None:
    """The first part of a key that a configuration does not have or has as null, though more is below it; None if all is there."""
    parts = key.split(".")
    node: Any = cfg
    for depth, part in enumerate(parts, start=1):
        if not isinstance(node, DictConfig) or part not in list(node):  # a key whose value is ??? is there
            return ".".join(parts[:depth])
        node = OmegaConf.select(node, part, throw_on_missing=False)
        if node is None and depth < len(parts):
            return ".".join(parts[:depth])
    return None


def _has(loaded: Any, key: str) -> bool:
    return loaded is not None and OmegaConf.select(loaded.config, key, default=None) is not None


@contextmanager
def by_choice() -> Iterator[None]:
    """Inside the block, a Hydra application composes with `Loader`: Hydra has no setting for it."""
    own = application.ConfigLoaderImpl
    application.ConfigLoaderImpl = Loader
    try:
        yield
    finally:
        application.ConfigLoaderImpl = own
