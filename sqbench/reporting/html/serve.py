"""The live view: the report folder over HTTP on this machine, and the page built anew while records arrive."""

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
from sqbench.storage import write_text

_PORTS = 20  # tried from the one asked for
_SHARE = 4  # a build of one second is followed by a rest of four: the sweep needs the processor
# What a page is made of; a claim comes and goes with the point that is being computed.
_SOURCES = ("runs/*/record.json", "runs/*/claim.json", "claims.csv", "plots/distributions-*.json", "sweeps/*/points.json")


class _Handler(SimpleHTTPRequestHandler):
    """Files of one folder, no listing of it, no word on standard error for each."""

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
    """Serve a folder, and nothing beside it, for the block; yields the host and the port, the next free one from `port` on.

    Raises:
        UserError: no port is free, or the host is not of this machine.
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
    """What changes when the page would."""
    found = []
    for pattern in _SOURCES:
        for path in folder.glob(pattern):
            try:
                found.append((str(path), path.stat().st_mtime_ns))
            except FileNotFoundError:  # a claim that was given back meanwhile
                continue
    return sorted(found)


def build(folder: Path, every: float) -> float:
    """Build the served page, then say so beside it, for the page to see; the seconds it took."""
    start, now = time.perf_counter(), time.time()
    path = write(folder, now=now, live=every)
    write_text(path.parent / "built.txt", stamp(now) + "\n")
    return time.perf_counter() - start


def builds(folder: Path, every: float) -> Iterator[float]:
    """Build, and again whenever records change, for ever, in a fifth of the time at most; yields the seconds of each build."""
    seen: list[tuple[str, int]] | None = None
    while True:
        rest = 0.0
        if (now := signature(folder)) != seen:  # before the build: what comes during it is built next time
            seen, rest = now, build(folder, every)
            yield rest
        time.sleep(max(every, _SHARE * rest))
