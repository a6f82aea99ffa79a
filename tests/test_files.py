"""Files and folders appear whole, with the permissions of any other file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from fusion3d.errors import CheckpointError, DataError, Fusion3DError
from fusion3d.files import read_json, whole_folder, write_cache, write_json, write_whole


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_whole(tmp_path / "a", b"1")
    write_cache(tmp_path / "b", lambda file: np.save(file, np.arange(3)))
    assert len({(tmp_path / name).stat().st_mode for name in ("plain", "a", "b")}) == 1
    assert np.load(tmp_path / "b").tolist() == [0, 1, 2]


def test_unfinished_files_lie_where_they_are_wanted(tmp_path: Path) -> None:
    def look(file) -> None:
        assert len(list((tmp_path / "part").iterdir())) == 1 and not list((tmp_path / "set").iterdir())
        file.write(b"x")

    write_whole(tmp_path / "set" / "a", look, flush=False, beside=tmp_path / "part")
    assert (tmp_path / "set" / "a").read_bytes() == b"x" and not list((tmp_path / "part").iterdir())


def test_replacing_a_folder_never_leaves_less_than_a_whole_one(tmp_path: Path, monkeypatch) -> None:
    """Whatever rename fails, the old content is whole afterwards; and no step removes files under the final name."""
    path = tmp_path / "out"
    with whole_folder(path) as folder:
        (folder / "a").write_text("old")
        (folder / "b").write_text("old")
    rename, calls = os.replace, []

    def fail(source, target) -> None:
        calls.append(source)
        if len(calls) == last:
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fail)
    for number in (1, 2):
        last = number
        calls.clear()
        with pytest.raises(Fusion3DError, match="No space left"), whole_folder(path) as folder:
            (folder / "a").write_text("new")
        assert {p.name: p.read_text() for p in path.iterdir()} == {"a": "old", "b": "old"}
        assert [p.name for p in tmp_path.iterdir()] == ["out"]
    last = 0
    with whole_folder(path) as folder:
        (folder / "a").write_text("new")
    assert {p.name: p.read_text() for p in path.iterdir()} == {"a": "new"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_object_comes_back_as_it_was_written(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, "\u00fc"], "b": {"c": True}}
    assert read_json(write_json(tmp_path / "a.json", value), "write it anew", unique=True) == value


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "Expecting value"),
        (b'{"a": 1', "Expecting"),
        (b'{"a": "\xff"}', "decode byte 0xff"),
        (b"[" * 100_000, "recursion"),
        (b'{"a": ' + 5000 * b"9" + b"}", "digits"),
        (b"[1]", "holds a list, expected an object"),
        (b"null", "holds a NoneType, expected an object"),
        (b'{"a": {"b": 1, "b": 2}}', "'b' is there twice"),
        (b'{"a": "' + 300 * b"x" + b'"}', "it has 309 bytes, expected at most 250"),
        (None, "no "),
    ],
)
def test_what_is_no_object_is_named_with_what_to_do(tmp_path: Path, content: bytes | None, found: str) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    most = 250 if found.startswith("it has") else 1 << 20
    for kind in (DataError, CheckpointError):
        with pytest.raises(kind, match=found) as caught:
            read_json(path, "write it anew", error=kind, max_bytes=most, unique=True)
        text = str(caught.value)
        assert str(path) in text and text.endswith("; write it anew") and "\n" not in text
    with pytest.raises(DataError, match="cannot read"):
        read_json(tmp_path, "write it anew")
