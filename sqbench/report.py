"""`python -m sqbench.report`: one page from the records under results_dir. Its values are in conf/report.yaml."""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from sqbench.config import CONF_DIR
from sqbench.errors import UserError
from sqbench.extras import extra
from sqbench.overrides import pasted
from sqbench.quiet import quiet

log = logging.getLogger(__name__)


@dataclass
class ReportConfig:
    """What `sqbench.report` may be told."""

    results_dir: str = "results"
    watch: bool = False  # build again while records arrive, and serve the page
    host: str = "127.0.0.1"  # of the server; another address shows the report to the network
    port: int = 8765  # or the next free one; 0 is any
    every: float = 2.0  # seconds between looks for new records


def report(config: ReportConfig) -> Path:
    """Write `results_dir/report/index.html`.

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
    """The results folder, which has to be there: a mistyped one must stay missing."""
    if config.every < 0.1:
        raise UserError(f"every={config.every}: 0.1 seconds or more works")
    if not 0 <= config.port < 65536:
        raise UserError(f"port={config.port}: a number from 0 to 65535 works")
    folder = Path(config.results_dir).expanduser()
    if not folder.is_dir():
        command = f"python -m sqbench.run {pasted('results_dir', config.results_dir)}"
        raise UserError(f"results_dir={config.results_dir}: no such folder (from {Path.cwd()}); `{command}` makes the first point")
    return folder


ConfigStore.instance().store(name="report_schema", node=ReportConfig)


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="report")
def main(cfg: DictConfig) -> None:
    """The command line: the page's path or address on stdout, what the user can fix on stderr with exit status 2."""
    quiet()
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, ReportConfig)
    try:
        if config.watch:
            watch(config)
        else:
            sys.stdout.write(f"{report(config)}\n")
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
