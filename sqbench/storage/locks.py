"""Claims on a point or a cached file while a process computes it, so that no other process computes it too.

A claim is a file. Files work on shared folders, where kernel locks do not.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

log = logging.getLogger(__name__)

HEARTBEAT = 60.0  # seconds between signs of life
STALE = 600.0  # seconds without a sign of life after which the claim of another host is watched
WATCH = 2 * HEARTBEAT  # seconds of our own clock after which a watched claim without a sign of life is taken over
WRITING = 5.0  # seconds for which an unreadable claim counts as one that is being written
LOOK = 0.2  # seconds between looks at a claim that somebody else holds


class Busy(Exception):
    """Another process is computing this."""


@contextmanager
def claim(path: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold `path` for the block.

    A claim of a dead process on this host is taken over at once. A claim of another host must be ten minutes older or newer than
    now. It must then stay unchanged while we watch it for two heartbeats, because clocks may differ or be set.

    Args:
        patience: seconds to wait for a process that holds it.

    Raises:
        Busy: a live process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    token, done = uuid.uuid4().hex, threading.Event()
    try:  # from before the file exists, as a signal may come right after it is made
        _take(path, token, patience)
        threading.Thread(target=_beat, args=(path, done), daemon=True).start()
        yield
    finally:
        done.set()
        _give_back(path, token)


@contextmanager
def turn(path: Path, what: str) -> Iterator[None]:
    """Hold `path` for the block, after the live process that may hold it now. The log says that it computes `what`."""
    waited = False
    while True:
        with ExitStack() as holding:
            try:
                holding.enter_context(claim(path))
            except Busy as reason:
                if not waited:
                    log.info("%s: waiting, %s", what, reason)
                waited = True
            else:
                yield
                return
        time.sleep(LOOK)


def held(path: Path) -> bool:
    """Whether a live process seems to hold `path`. A claim of another host is judged by its age and not watched."""
    try:
        return _alive(*_read(path))
    except FileNotFoundError:
        return False


def _take(path: Path, token: str, patience: float) -> None:
    """Make the claim, once no live process holds an existing one."""
    end = time.monotonic() + patience
    while not _create(path, token):
        try:
            _clear(path)
        except Busy:
            if time.monotonic() >= end:
                raise
            time.sleep(LOOK)


def _give_back(path: Path, token: str) -> None:
    """Remove a claim, if it is still the one with this token."""
    try:
        if token in path.read_text(encoding="utf-8"):
            path.unlink()
    except FileNotFoundError:
        return
    except OSError as error:  # the result is there all the same, and nobody waits for a dead process
        log.warning("%s cannot be removed (%s)", path, error.strerror)


def _create(path: Path, token: str) -> bool:
    """Make the claim. Return False if there is one already."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    try:
        with os.fdopen(handle, "w") as file:
            who = {"host": socket.gethostname(), "pid": os.getpid(), "born": _born(psutil.Process())}
            json.dump({**who, "since": time.time(), "token": token}, file)
    except BaseException:  # a full disk, or a signal: a claim without an owner would keep others out
        path.unlink(missing_ok=True)
        raise
    return True


def _clear(path: Path) -> None:
    """Remove a claim that no live process holds any more.

    Raises:
        Busy: a live process holds it.
    """
    try:
        text, age = _read(path)
        alive = _alive(text, age) or _touched(path, text)
    except FileNotFoundError:
        return
    if alive:
        raise Busy(f"another process computes it ({_holder(text)})")
    taking = path.with_name(f".{path.name}.taking")  # one at a time: a slow second process would remove the claim of the first
    if not _create(taking, ""):
        if not held(taking):  # its process was killed in the middle of this
            taking.unlink(missing_ok=True)
        raise Busy("another process takes over at this moment")
    try:
        if path.read_text(encoding="utf-8") == text:
            path.unlink()
    except FileNotFoundError:
        return
    finally:
        taking.unlink(missing_ok=True)


def _read(path: Path) -> tuple[str, float]:
    """The text of a claim, and the seconds between its last touch and now, in either direction of our clock."""
    return path.read_text(encoding="utf-8"), abs(time.time() - path.stat().st_mtime)


def _touched(path: Path, text: str) -> bool:
    """Whether a claim of another host is touched while we watch it.

    Raises:
        FileNotFoundError: the claim was given back meanwhile.
    """
    try:
        host = json.loads(text)["host"]
    except (ValueError, KeyError, TypeError):
        return False
    if host == socket.gethostname():
        return False
    log.info("%s has no recent sign of life from %s: watching it for %.0f s before taking it over", path, host, WATCH)
    seen, end = path.stat().st_mtime_ns, time.monotonic() + WATCH
    while time.monotonic() < end:
        time.sleep(LOOK)
        if path.stat().st_mtime_ns != seen:
            return True
    return False


def _holder(text: str) -> str:
    """The holder of a claim as text, for example `pid 123 on host since 12:30:00`."""
    try:
        held = json.loads(text)
        return f"pid {held['pid']} on {held['host']} since {time.strftime('%H:%M:%S', time.localtime(held['since']))}"
    except (ValueError, KeyError, TypeError):
        return "its claim is being written"


def _alive(text: str, age: float) -> bool:
    """Whether the process that wrote a claim still seems to work on it. The claim was touched `age` seconds from now."""
    try:
        held: dict[str, Any] = json.loads(text)
        host, pid, since = held["host"], int(held["pid"]), float(held["since"])
        boot, after = held.get("born") or (None, 0.0)
    except (ValueError, KeyError, TypeError):
        return age < WRITING
    if host != socket.gethostname():
        return age < STALE
    try:
        process = psutil.Process(pid)  # or a later process with the same number
        if process.status() == psutil.STATUS_ZOMBIE:  # dead, but not reaped; in a container it may stay for good
            return False
        if boot is None:  # a claim of an earlier version
            return process.create_time() <= since + 1
        its_boot, its_after = _born(process)
        return bool(its_boot == boot and abs(its_after - float(after)) < 2)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _born(process: psutil.Process) -> tuple[str, float]:
    """The boot of the machine that a process belongs to, and its start in seconds after it. Setting the clock changes neither."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        boot = ""
    return boot, process.create_time() - psutil.boot_time()


def _beat(path: Path, done: threading.Event) -> None:
    """Touch a claim every minute until it is given back, as a sign of life for other hosts."""
    while not done.wait(HEARTBEAT):
        try:
            os.utime(path)
        except FileNotFoundError:
            return
        except OSError:  # a network file system may fail for a while
            continue
