"""`python -m sqbench.formats`: all formats of `conf/bits`, with bits a weight and grids. Its values are in conf/formats.yaml."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from sqbench.console.answer import reader
from sqbench.console.progress import output
from sqbench.errors import UserError, known
from sqbench.formats.named import schemes
from sqbench.reporting.formats import formats_table


@dataclass
class FormatsConfig:
    """The settings of `sqbench.formats`."""

    only: list[str] | None = None  # names of schemes; null is all
    draw: bool = False  # true: also draw the grids beside each other
    results_dir: str = "results"  # the picture goes to its plots/
    formats: list[str] = field(default_factory=lambda: ["png", "svg"])  # of the picture, and pdf


ConfigStore.instance().store(name="formats_schema", node=FormatsConfig)


def main() -> int:
    """Run the command line. The table goes to stdout, errors that the user can fix to stderr, with exit status 2."""
    return reader("formats", _answer)


def _answer(cfg: DictConfig) -> None:
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, FormatsConfig)
    found = schemes()
    for name in config.only or ():
        if name not in found:
            raise UserError(f"only=[{','.join(config.only or ())}]: {known(name, found)}")
    chosen = [scheme for name, scheme in found.items() if config.only is None or name in config.only]
    output.print(formats_table(chosen))
    if config.draw:
        from sqbench.reporting import grids, style

        style.check_formats(config.formats)
        with style.applied():
            figure = grids.grids_picture(chosen)
            for path in style.save(figure, Path(config.results_dir).expanduser() / "plots", "formats", config.formats):
                output.print(str(path), soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
