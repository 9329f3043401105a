"""The results folder: records whole or not there, damaged ones never trusted, and one process a point."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sqbench.errors import UserError
from sqbench.records import store as store_module
from sqbench.records.outcome import Outcome
from sqbench.records.record import Record, UnknownSchema
from sqbench.records.store import Store
from sqbench.storage import locks
from sqbench.storage.files import canonical_json, digest, file_digest
from sqbench.storage.locks import Busy

ID = "0123456789ab"
SAMPLES = pd.DataFrame({"window": [0, 1], "nll": [1.5, 0.1 + 0.2], "nll_fp": [1.4, 0.3]})


def record(point_id: str = ID, **changes: Any) -> Record:
    return Record(point_id, {"seed": 0}, {}, **{"metrics": {"perplexity": 5.706811999999999}, **changes})


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(store_module, "PATIENCE", 0.2)  # two seconds in a run
    monkeypatch.setattr(locks, "LOOK", 0.05)
    return Store(tmp_path / "results")


def test_a_record_comes_back_with_the_checksum_of_its_samples(store: Store) -> None:
    path = store.write(record(error={"message": "ü\n\x1b[31m"}), SAMPLES)
    assert path == store.runs / ID / "record.json"
    checksum = file_digest(store.runs / ID / "samples.parquet")
    assert store.read(ID) == record(error={"message": "ü\n\x1b[31m"}, samples=checksum)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content.pop("checksum") == digest(content)
    assert store.finished(ID)
    pd.testing.assert_frame_equal(pd.read_parquet(store.runs / ID / "samples.parquet"), SAMPLES)
    assert sorted(file.name for file in path.parent.iterdir()) == ["record.json", "samples.parquet"]


def test_the_same_record_is_the_same_bytes(store: Store) -> None:
    first = store.write(record()).read_bytes()
    other = record(metrics=dict(reversed({"a": 1.0, "b": 2.0}.items())))
    assert store.write(other).read_bytes() == store.write(record(metrics={"a": 1.0, "b": 2.0})).read_bytes() != first


def test_the_lines_of_a_file_put_together_are_its_canonical_json(store: Store) -> None:
    """What lets a checksum be compared without parsing; and every member can be found with grep."""
    made = record(quantized={"per_layer": [{"layer": "a: b,\n", "ratio": 1e-7}]}, error={"message": "ü\u2028"})
    written = made.to_json()
    lines = store.write(made).read_text(encoding="utf-8").split("\n")
    assert "".join(line for line in lines if not line.startswith('"checksum"')) == canonical_json(written)
    assert len(lines) == len(written) + 1 + 3  # the checksum; two brackets and the end


@pytest.mark.parametrize("layout", [{}, {"indent": 1, "sort_keys": True}, {"separators": (",", ":"), "ensure_ascii": False}])
def test_a_record_in_any_other_layout_is_read_and_checked_too(store: Store, layout: dict[str, Any]) -> None:
    made = record(quantized={"layers": 2}, error={"message": "ü"})
    path, written = store.write(made), made.to_json()
    path.write_text(json.dumps({**written, "checksum": digest(written)}, **layout), encoding="utf-8")
    assert store.read(ID) == made
    assert next(store.records(brief=True)) == replace(made, quantized={}, brief=True)
    path.write_text(path.read_text(encoding="utf-8").replace("5.7", "5.8"), encoding="utf-8")
    assert store.read(ID) is None


def test_a_brief_record_lacks_its_bulk_and_nothing_else(store: Store) -> None:
    written = record(quantized={"per_layer": [{"layer": "q_proj"}]})
    store.write(written)
    brief = replace(written, quantized={}, brief=True)
    assert store.read(ID, brief=True) == brief
    assert list(store.records(brief=True)) == [brief]
    assert list(store.records()) == [written]
    with pytest.raises(ValueError, match="was read without its layers and cannot be written"):
        store.write(brief)


def test_a_damaged_bulk_is_seen_without_being_read(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    path = store.write(record(quantized={"per_layer": [{"layer": "q_proj"}]}))
    path.write_text(path.read_text().replace("q_proj", "q_prok"))
    assert list(store.records(brief=True)) == []
    assert f"{path} is damaged" in caplog.text
    assert not store.finished(ID)


def test_records_of_some_points_only(store: Store) -> None:
    for name in "cab":
        store.write(record(name * 12))
    assert [found.point_id for found in store.records({"b" * 12, "c" * 12, "d" * 12})] == ["b" * 12, "c" * 12]


def test_a_point_without_a_record_is_not_finished(store: Store) -> None:
    assert store.read(ID) is None
    assert not store.finished(ID)
    (store.runs / ID).mkdir(parents=True)
    (store.runs / ID / "stdout.log").write_text("cut off")
    assert not store.finished(ID)


def test_a_failed_point_has_a_record_and_is_not_finished(store: Store) -> None:
    store.write(record(status="failed", error={"type": "E", "message": "m"}))
    found = store.read(ID)
    assert found is not None
    assert found.reason == "E: m"
    assert not store.finished(ID)


def test_the_record_comes_last(store: Store) -> None:
    class Unwritable(pd.DataFrame):
        def to_parquet(self, *arguments: Any, **options: Any) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        store.write(record(), Unwritable(SAMPLES))
    assert not store.finished(ID)
    assert list((store.runs / ID).iterdir()) == []


@pytest.mark.parametrize("bad", [{"metrics": {"perplexity": float("nan")}}, {"metrics": {"perplexity": float("inf")}}])
def test_a_record_that_cannot_be_written_leaves_the_old_one(store: Store, bad: dict[str, Any]) -> None:
    path = store.write(record(), SAMPLES)
    before = path.read_bytes(), path.stat().st_mtime_ns
    with pytest.raises(ValueError, match="JSON"):
        store.write(record(**bad), SAMPLES)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert store.finished(ID)


def damages(whole: bytes) -> Iterator[tuple[str, bytes]]:
    for at in range(0, len(whole), 3):
        for bit in (1, 4):
            yield f"bit {bit} of byte {at}", whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :]
    for length in range(0, len(whole), 11):
        yield f"cut to {length}", whole[:length]
    yield "zeros", bytes(len(whole))
    yield "a list", b"[1, 2]"
    yield "no checksum", json.dumps(record().to_json()).encode()
    yield "another point's checksum", json.dumps({**record().to_json(), "checksum": digest(record("0" * 12).to_json())}).encode()
    yield "not a number", whole.replace(b"5.70", b"NaN,").replace(b"5706811", b"")
    yield "infinite", whole.replace(b"5.706811999999999", b"1e999")
    yield "deep", b"[" * 100_000


def test_no_damage_goes_unseen(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    path = store.write(record())
    whole = path.read_bytes()
    for what, broken in damages(whole):
        if broken == whole:
            continue
        path.write_bytes(broken)
        caplog.clear()
        found = store.read(ID)
        if found is not None:  # white space between values carries nothing
            assert json.loads(broken) == json.loads(whole), what
            assert found == record(), what
            continue
        assert not path.exists(), what
        (aside,) = path.parent.glob("record.json.corrupt*")
        assert aside.read_bytes() == broken, what
        assert f"{path} is damaged" in caplog.text
        assert aside.name in caplog.text
        aside.unlink()
        assert not store.finished(ID)


def test_listing_passes_damaged_records_over_says_so_and_leaves_them(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("c", "a", "b"):
        store.write(record(name * 12))
    bad = store.runs / ("b" * 12) / "record.json"
    bad.write_text(bad.read_text().replace("5.7", "5.8"))
    assert [found.point_id[0] for found in store.records()] == ["a", "c"]
    assert f"{bad} is damaged (checksum does not match)" in caplog.text
    assert "running its point again" in caplog.text
    assert bad.exists()


def test_a_record_of_a_newer_version_stays_and_is_never_computed_over(store: Store) -> None:
    path = store.write(record())
    newer = {**record().to_json(), "schema": 3, "of": "tomorrow"}
    path.write_text(json.dumps({**newer, "checksum": digest(newer)}))
    before = path.read_bytes()
    for read in (lambda: store.read(ID), lambda: store.finished(ID), lambda: list(store.records())):
        with pytest.raises(
            UnknownSchema, match=f"point {ID}: its record has schema=3, and this sqbench reads 1 to 2; update sqbench"
        ):
            read()
    refused: list[UnknownSchema] = []
    assert list(store.records(refused=refused.append)) == []
    assert [error.content["of"] for error in refused] == ["tomorrow"]
    assert path.read_bytes() == before


# ---------------------------------------------------------------- the folder itself


def test_preparing_a_store_makes_the_folder_and_leaves_nothing_else(tmp_path: Path) -> None:
    store = Store(tmp_path / "a b" / "ü")
    assert list(store.records()) == []
    assert list(tmp_path.iterdir()) == []  # a mistyped folder stays missing
    store.prepare()
    Store(str(tmp_path / "a b" / "ü")).prepare()
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["a b", "a b/ü", "a b/ü/runs"]


def test_a_home_folder_may_be_named_by_its_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store("~/results").root == tmp_path / "results"


@pytest.mark.parametrize("below", [(), ("deeper",)])
def test_a_file_in_place_of_the_folder_is_refused_by_key(tmp_path: Path, below: tuple[str, ...]) -> None:
    (tmp_path / "results").write_text("a file")
    path = tmp_path.joinpath("results", *below)
    with pytest.raises(UserError) as refused:
        Store(path).prepare()
    assert str(refused.value).startswith(f"results_dir={path}: cannot be written (")
    assert "use a folder of your own" in str(refused.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"results_dir=.*: cannot be written \(Permission denied\)"):
        Store(tmp_path / "results").prepare()
    tmp_path.chmod(0o700)


# ---------------------------------------------------------------- claims


def write_claim(store: Store, text: str, age: float = 0.0) -> Path:
    path = store.runs / ID / "claim.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (time.time() - age,) * 2)
    return path


def claim_of(host: str, pid: int, since: float | None = None) -> str:
    return json.dumps({"host": host, "pid": pid, "since": time.time() if since is None else since})


def test_a_claim_keeps_others_out_and_ends_with_its_block(store: Store) -> None:
    with store.claim(ID):
        with pytest.raises(Busy), store.claim(ID):
            pytest.fail("claimed twice")
        assert (store.runs / ID / "claim.json").exists()
        with store.claim("f" * 12):  # another point is free
            pass
    assert list((store.runs / ID).iterdir()) == []
    with store.claim(ID):
        pass


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_claim_ends_with_its_block_whatever_ends_it(store: Store, error: type[BaseException]) -> None:
    with pytest.raises(error), store.claim(ID):
        raise error
    assert list((store.runs / ID).iterdir()) == []


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.communicate()


def test_a_claim_of_a_live_process_holds_and_of_a_dead_one_does_not(store: Store, sleeper: subprocess.Popen[bytes]) -> None:
    path = write_claim(store, claim_of(socket.gethostname(), sleeper.pid), age=10_000)  # a long point is no dead point
    with pytest.raises(Busy, match=str(sleeper.pid)), store.claim(ID):
        pytest.fail("claimed twice")
    assert path.exists()
    sleeper.communicate()
    with store.claim(ID):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not path.exists()


def test_a_claim_whose_number_another_process_has_by_now_does_not_hold(store: Store) -> None:
    """In a container every first process has the same number, and the host may keep its name: no point is blocked forever."""
    write_claim(store, claim_of(socket.gethostname(), os.getpid(), since=1.0), age=time.time() - 1.0)  # before this process was
    with store.claim(ID):
        pass


def test_a_claim_from_another_host_holds_for_ten_minutes_without_a_heartbeat(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write_claim(store, claim_of("elsewhere", 1), age=590)
    with pytest.raises(Busy, match="elsewhere"), store.claim(ID):
        pytest.fail("claimed twice")
    write_claim(store, claim_of("elsewhere", 1), age=610)
    monkeypatch.setattr(locks, "WATCH", 0.1)
    with store.claim(ID):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": "a"}', "null", '{"host": "a", "pid": "x"}'])
def test_a_claim_that_is_just_being_written_holds_and_a_broken_one_does_not(
    store: Store, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "WATCH", 0.1)
    write_claim(store, text)
    with pytest.raises(Busy), store.claim(ID):
        pytest.fail("claimed twice")
    write_claim(store, text, age=60)
    with store.claim(ID):
        pass


def test_a_dead_claim_is_taken_over_by_one_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes find the same dead claim; the second one is quicker. The first must not throw the second's claim away."""
    monkeypatch.setattr(locks, "WATCH", 0.1)
    write_claim(store, claim_of("elsewhere", 1), age=10_000)
    judge, second = locks._alive, ExitStack()

    def slow(*arguments: Any) -> bool:
        verdict = judge(*arguments)
        monkeypatch.setattr(locks, "_alive", judge)
        second.enter_context(store.claim(ID))
        return verdict

    monkeypatch.setattr(locks, "_alive", slow)
    with second:
        with pytest.raises(Busy), store.claim(ID):
            pytest.fail("claimed twice")
        assert json.loads((store.runs / ID / "claim.json").read_text())["pid"] == os.getpid()  # the second's is there still
    assert list((store.runs / ID).iterdir()) == []


def test_a_claim_has_a_heartbeat_that_other_hosts_can_see(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one, a point of more than ten minutes would be computed twice on a shared folder."""
    assert locks.HEARTBEAT < locks.STALE / 4
    monkeypatch.setattr(locks, "HEARTBEAT", 0.05)
    path = store.runs / ID / "claim.json"
    with store.claim(ID):
        os.utime(path, (0, 0))
        time.sleep(0.3)
        assert time.time() - path.stat().st_mtime < 5
    time.sleep(0.1)
    assert not path.exists()  # and the heart stops


def test_an_interruption_at_the_moment_of_claiming_leaves_no_claim(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    class Thread(threading.Thread):
        def start(self) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(threading, "Thread", Thread)
    with pytest.raises(KeyboardInterrupt), store.claim(ID):
        pytest.fail("not interrupted")
    assert list((store.runs / ID).iterdir()) == []


def test_an_outcome_knows_its_states() -> None:
    with pytest.raises(ValueError, match=r"state=okay: must be one of done, skipped, failed, busy, planned"):
        Outcome(ID, "okay")
