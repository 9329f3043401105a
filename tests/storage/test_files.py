"""Files are whole or not there; what is damaged is moved aside, computed again, and said."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sqbench.storage import files as storage
from sqbench.storage import tensorfile
from sqbench.storage.files import CorruptFile, atomic_path, canonical_json, digest, file_digest, set_aside, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_text(path, "old")
    before = path.stat().st_mtime_ns
    with pytest.raises(RuntimeError, match="half way"), atomic_path(path) as part:  # noqa: PT012
        part.write_text("half of the new")
        raise RuntimeError("half way")
    assert (path.read_text(), path.stat().st_mtime_ns) == ("old", before)
    assert names(tmp_path) == ["record.json"]


def test_an_interrupted_writer_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "a") as part:  # noqa: PT012
        part.write_text("new")
        raise KeyboardInterrupt
    assert (names(tmp_path), (tmp_path / "a").read_text()) == (["a"], "old")


def test_the_real_name_appears_only_when_the_content_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    with atomic_path(path) as part:
        part.write_text("first half")
        assert part.parent == path.parent  # the same file system: a rename, not a copy
        assert not path.exists()
        part.write_text("all of it")
    assert path.read_text() == "all of it"
    assert names(path.parent) == ["file"]


def test_files_can_be_read_by_others(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "text")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


@given(st.text())
def test_text_comes_back_as_utf_8(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    text = text.replace("\r", "").encode("utf-8", "replace").decode()
    path = tmp_path_factory.getbasetemp() / "text"
    write_text(path, text)
    assert path.read_bytes() == text.encode()


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)


@given(st.dictionaries(st.text(), values, min_size=2, max_size=5), st.randoms())
def test_the_order_of_keys_changes_no_digest(value: Any, random: Any) -> None:
    keys = list(value)
    random.shuffle(keys)
    shuffled = {key: value[key] for key in keys}
    assert canonical_json(shuffled) == canonical_json(value)
    assert digest(shuffled) == digest(value)
    assert json.loads(canonical_json(value)) == value


def test_the_digest_is_the_sha256_of_the_compact_sorted_json() -> None:
    assert canonical_json({"ü": 1.0, "a": [None, True]}) == '{"a":[null,true],"ü":1.0}'
    assert digest({"b": 1, "a": 0.5}) == hashlib.sha256(b'{"a":0.5,"b":1}').hexdigest()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [{"a": -float("inf")}]])
def test_what_is_no_json_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(value)


def test_a_file_is_moved_aside_and_never_over_another(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for content in ("one", "two", "three"):
        (tmp_path / "file").write_text(content)
        set_aside(tmp_path / "file", "checksum does not match")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "file.corrupt": "one",
        "file.corrupt-1": "two",
        "file.corrupt-2": "three",
    }
    assert f"{tmp_path / 'file'} is damaged (checksum does not match): moved to file.corrupt-2" in caplog.text


TENSORS = {
    "a": torch.arange(12, dtype=torch.float32).view(3, 4) / 7,
    "b": torch.tensor(2.5, dtype=torch.float64),
    "c": torch.arange(5, dtype=torch.int64),
    "d": torch.tensor([[1.5, -0.0]], dtype=torch.bfloat16),
    "none": torch.zeros(0, 3),
}


def test_tensors_come_back_bit_for_bit(tmp_path: Path) -> None:
    about = {"metrics": {"perplexity": 0.1 + 0.2}, "name": "ü"}
    tensorfile.save(tmp_path / "t", {**TENSORS, "view": TENSORS["a"].t()}, about)
    tensors, described = tensorfile.load(tmp_path / "t")
    assert described == about
    assert torch.equal(tensors.pop("view"), TENSORS["a"].t())
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
        assert torch.equal(torch.signbit(tensors[name]), torch.signbit(tensor))


def test_the_cache_computes_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def compute() -> tensorfile.Content:
        calls.append(1)
        return TENSORS, {"n": len(calls)}

    _, first = tensorfile.cached(tmp_path / "t", compute)
    tensors, second = tensorfile.cached(tmp_path / "t", compute)
    assert len(calls) == 1
    assert first == second == {"n": 1}
    assert torch.equal(tensors["a"], TENSORS["a"])


def damage(path: Path, how: str) -> None:
    whole = bytearray(path.read_bytes())
    if how == "flipped byte in the data":
        whole[-3] ^= 1
    elif how == "flipped byte in the header":
        whole[20] ^= 1
    elif how == "truncated":
        whole = whole[: len(whole) // 2]
    elif how == "empty":
        whole = bytearray()
    path.write_bytes(bytes(whole))


@pytest.mark.parametrize("how", ["flipped byte in the data", "flipped byte in the header", "truncated", "empty"])
def test_a_damaged_cache_file_is_moved_aside_and_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str) -> None:
    path = tmp_path / "t.safetensors"
    tensorfile.save(path, TENSORS, {"n": 1})
    damage(path, how)
    broken = path.read_bytes()
    with pytest.raises(CorruptFile):
        tensorfile.load(path)
    tensors, about = tensorfile.cached(path, lambda: (TENSORS, {"n": 2}))
    assert about == {"n": 2}
    assert torch.equal(tensors["a"], TENSORS["a"])
    assert (tmp_path / "t.safetensors.corrupt").read_bytes() == broken
    assert f"{path} is damaged" in caplog.text
    assert "computing it again" in caplog.text
    assert tensorfile.cached(path, pytest.fail)[1] == {"n": 2}


def test_no_damaged_byte_of_a_cache_file_goes_unseen(tmp_path: Path) -> None:
    path = tmp_path / "t"
    tensorfile.save(path, {"a": TENSORS["a"], "n": TENSORS["b"]}, {"n": 1, "text": "ü"})
    whole, tensors = path.read_bytes(), tensorfile.load(path)[0]
    unseen = []
    for at in range(len(whole)):
        for bit in (1, 2, 64, 128):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
            try:
                found, about = tensorfile.load(path)
            except CorruptFile:
                continue
            same = found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)
            unseen += [] if same and about == {"n": 1, "text": "ü"} else [(at, bit)]
    assert unseen == []


def test_whoever_looks_while_a_cache_file_is_written_sees_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Many processes share the cache of a sweep: a reader between two steps of the writer must not call a good file damaged.
    path, seen = tmp_path / "t.safetensors", []
    replace = os.replace

    def replace_and_look(source: Path, target: Path) -> None:
        replace(source, target)
        if path.is_file():
            seen.append(tensorfile.load(path)[1])

    monkeypatch.setattr(storage.os, "replace", replace_and_look)
    tensorfile.save(path, TENSORS, {"n": 1})
    assert seen
    assert seen[-1] == {"n": 1}


def test_a_writer_that_fails_leaves_no_cache_file(tmp_path: Path) -> None:
    def compute() -> tensorfile.Content:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        tensorfile.cached(tmp_path / "t", compute)
    assert list(tmp_path.iterdir()) == []


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"\x00\xff" * 100_000)
    assert file_digest(tmp_path / "f") == hashlib.sha256(b"\x00\xff" * 100_000).hexdigest()
