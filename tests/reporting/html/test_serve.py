"""The live view serves the report and nothing else, and follows the records."""

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli import wait_for
from examples import build, write

from sqbench.errors import UserError
from sqbench.reporting.html import serve

HOST = "127.0.0.1"


@pytest.fixture
def port(results: Path) -> Iterator[int]:
    write(results, build("rtn"))
    (results / "report").mkdir()
    (results / "report" / "index.html").write_text("the page", encoding="utf-8")
    (results / "report" / "sub").mkdir()
    (results / "secret.txt").write_text("a secret", encoding="utf-8")
    with serve.served(results / "report", HOST, 0) as (_, number):
        yield number


def get(port: int, path: str) -> tuple[int, bytes]:
    """A request whose path goes out as it is."""
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


def test_the_page_is_served(port: int) -> None:
    assert get(port, "/") == (200, b"the page")
    assert get(port, "/index.html?x=1") == (200, b"the page")


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/..%2fsecret.txt",
        "/%2e%2e/secret.txt",
        "/./../secret.txt",
        "//../secret.txt",
        "/../runs/",
        "/sub/",
        "/etc/passwd",
    ],
)
def test_nothing_else_is(port: int, path: str) -> None:
    status, body = get(port, path)
    assert status == 404
    assert b"secret" not in body


def test_a_port_in_use_gives_the_next(results: Path) -> None:
    results.mkdir()
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        number = taken.getsockname()[1]
        with serve.served(results, HOST, number) as (host, other):
            assert host == HOST
            assert number < other <= number + 20


def test_only_this_machine_is_bound(port: int) -> None:
    """Another address of this machine gets no answer: 127.0.0.2 is one wherever 127.0.0.1 is, on Linux."""
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", port), timeout=5)


def test_a_host_of_another_machine_is_refused(results: Path) -> None:
    results.mkdir()
    with (
        pytest.raises(UserError, match=r"host=192\.0\.2\.1 port=8765: .*host=127\.0\.0\.1"),
        serve.served(results, "192.0.2.1", 8765),
    ):
        pass


def test_the_page_is_built_again_when_a_record_comes(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(results, build("rtn"))
    stop = threading.Event()

    def rest(seconds: float) -> None:
        if stop.wait(0.01):
            raise KeyboardInterrupt

    monkeypatch.setattr(serve.time, "sleep", rest)
    page, stamp = results / "report" / "index.html", results / "report" / "built.txt"

    def watched() -> None:
        with pytest.raises(KeyboardInterrupt):
            list(serve.builds(results, 0.1))

    thread = threading.Thread(target=watched)
    thread.start()
    try:
        assert wait_for(stamp.exists)
        first = stamp.read_text(encoding="utf-8")
        assert f'name="built" content="{first.strip()}"' in page.read_text(encoding="utf-8")
        time.sleep(0.2)
        assert stamp.read_text(encoding="utf-8") == first  # nothing came, nothing was built
        write(results, added := build(alpha=0.5))
        assert wait_for(lambda: stamp.read_text(encoding="utf-8") != first)
        assert added["point_id"] in page.read_text(encoding="utf-8")
    finally:
        stop.set()
        thread.join()
