"""`python -m sqbench.report`: one page from the records under results_dir. Its values are in conf/report.yaml."""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from sqbench.console.answer import reader
from sqbench.console.extras import extra
from sqbench.console.overrides import pasted
from sqbench.console.quiet import quiet
from sqbench.errors import UserError
from sqbench.records.store import refuse_collection

log = logging.getLogger(__name__)


@dataclass
class ReportConfig:
    """The settings of `sqbench.report`."""

    results_dir: str = "results"
    watch: bool = False  # serve the page, and build it again when records arrive
    host: str = "127.0.0.1"  # address of the server; another one shows the report to the network
    port: int = 8765  # if it is in use, the next free one; 0 is any
    every: float = 2.0  # seconds between looks for new records


def report(config: ReportConfig) -> Path:
    """Write `results_dir/report/index.html`, and return its path.

    Raises:
        UserError: there is no such folder, or it cannot be written.
    """
    folder = folder_of(config)
    with extra("report", "sqbench.report"):
        from sqbench.reporting.html.page import write

    return write(folder)


def watch(config: ReportConfig) -> None:
    """Serve the report and keep it up to date, until interrupted.

    Raises:
        UserError: there is no such folder, or no port is free.
    """
    folder = folder_of(config)
    with extra("report", "sqbench.report"):
        from sqbench.reporting.html import serve

    report_dir = folder / "report"
    report_dir.mkdir(exist_ok=True)
    with serve.served(report_dir, config.host, config.port) as (host, port):
        builds = serve.builds(folder, config.every)
        next(builds)
        if port != config.port and config.port:
            sys.stdout.write(f"port {config.port} is in use: {port} is the next free one\n")
        sys.stdout.write(f"http://{host}:{port}/  (Ctrl-C ends)\n")
        sys.stdout.flush()
        for seconds in builds:
            log.debug("built in %.1f s", seconds)


def folder_of(config: ReportConfig) -> Path:
    """The results folder, which must exist. A mistyped one must not be created."""
    if config.every < 0.1:
        raise UserError(f"every={config.every}: must be a number of seconds from 0.1")
    if not 0 <= config.port < 65536:
        raise UserError(f"port={config.port}: must be a number from 0 to 65535")
    folder = Path(config.results_dir).expanduser()
    if not folder.is_dir():
        command = f"python -m sqbench.run {pasted('results_dir', config.results_dir)}"
        raise UserError(f"results_dir={config.results_dir}: no such folder (from {Path.cwd()}); `{command}` makes the first point")
    refuse_collection(config.results_dir, "report")
    return folder


ConfigStore.instance().store(name="report_schema", node=ReportConfig)


def main() -> int:
    """Run the command line. The path or address goes to stdout, errors that the user can fix to stderr, with exit status 2."""
    quiet()
    return reader("report", _answer)


def _answer(cfg: DictConfig) -> None:
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, ReportConfig)
    if config.watch:
        watch(config)
    else:
        sys.stdout.write(f"{report(config)}\n")


if __name__ == "__main__":
    sys.exit(main())
