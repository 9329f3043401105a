"""The live view: serve the report folder over HTTP on this machine, and rebuild the page while records arrive."""

import errno
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from sqbench.errors import UserError
from sqbench.reporting.html.page import stamp, write
from sqbench.storage.files import write_text

_PORTS = 20  # number of ports tried, from the given one on
_SHARE = 4  # rest four times as long as a build took: the sweep needs the processor
# The sources of a page. A claim.json exists while its point is being computed.
_SOURCES = ("runs/*/record.json", "runs/*/claim.json", "claims.csv", "plots/distributions-*.json", "sweeps/*/points.json")


class _Handler(SimpleHTTPRequestHandler):
    """Serves the files of one folder, without listings and without log lines."""

    def list_directory(self, path: Any) -> None:
        self.send_error(404)

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        return


@contextmanager
def served(report: Path, host: str, port: int) -> Iterator[tuple[str, int]]:
    """Serve a folder, and nothing else, during the block. Yields the host and the port, the first free one from `port` on.

    Raises:
        UserError: no port is free, or this machine does not have the host.
    """
    server = _bound(partial(_Handler, directory=str(report)), host, port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield host, server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _bound(handler: Callable[..., SimpleHTTPRequestHandler], host: str, port: int) -> ThreadingHTTPServer:
    for number in range(port, min(port + _PORTS, 65536)):
        try:
            return ThreadingHTTPServer((host, number), handler)
        except OSError as error:
            reason = error
            if error.errno != errno.EADDRINUSE:
                break
    raise UserError(f"host={host} port={port}: {reason.strerror or reason}; host=127.0.0.1 port=0 takes any free port")


def signature(folder: Path) -> list[tuple[str, int]]:
    """The sources of the page with their times. It changes if the page would change."""
    found = []
    for pattern in _SOURCES:
        for path in folder.glob(pattern):
            try:
                found.append((str(path), path.stat().st_mtime_ns))
            except FileNotFoundError:  # a claim that was released meanwhile
                continue
    return sorted(found)


def build(folder: Path, every: float) -> float:
    """Build the served page, and return the seconds it took. The stamp in built.txt tells open pages of the new build."""
    start, now = time.perf_counter(), time.time()
    path = write(folder, now=now, live=every)
    write_text(path.parent / "built.txt", stamp(now) + "\n")
    return time.perf_counter() - start


def builds(folder: Path, every: float) -> Iterator[float]:
    """Build now and whenever the sources change, for ever. Yields the seconds of each. Builds take at most a fifth of the time."""
    seen: list[tuple[str, int]] | None = None
    while True:
        rest = 0.0
        if (now := signature(folder)) != seen:  # read before the build, so that later changes trigger the next one
            seen, rest = now, build(folder, every)
            yield rest
        time.sleep(max(every, _SHARE * rest))
