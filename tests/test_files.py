"""Files and folders appear whole, with the permissions of any other file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from fusion3d.errors import Fusion3DError
from fusion3d.files import whole_folder, write_cache, write_whole


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
