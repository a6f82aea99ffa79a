"""Compiled kernels follow their sources, those of other files too."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from fusion3d.synthetic import kernels

ROOT = Path(__file__).parents[2]


def call(folder: Path, **environment: str) -> str:
    """What the kernel in ``folder`` returns in a process of its own, and how often its cache was of use."""
    code = "from room.outer import outer; import numba; value = outer(1.0); print(value, sum(outer.stats.cache_hits."
    code += "values()), repr(numba.config.CACHE_DIR))"
    usual = {key: value for key, value in os.environ.items() if key != "NUMBA_CACHE_DIR"}
    paths = {"PYTHONPATH": f"{folder}:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=usual | paths | environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_change_in_another_file_is_compiled_in(tmp_path: Path) -> None:
    room = tmp_path / "room"
    room.mkdir()
    (room / "__init__.py").touch()
    shutil.copy(kernels.__file__, room)
    head = "from room.kernels import kernel\n"
    (room / "inner.py").write_text(f"{head}\n@kernel()\ndef inner(x):\n    return x + 1\n")
    use = "from room.inner import inner\n\n@kernel()\ndef outer(x):\n    return inner(x)\n"
    (room / "outer.py").write_text(head + use)
    assert call(tmp_path) == "2.0 0 ''"
    assert call(tmp_path) == "2.0 1 ''", "the second process compiles nothing, and numba's own setting is as it was"
    (room / "inner.py").write_text((room / "inner.py").read_text().replace("x + 1", "x + 2"))
    assert call(tmp_path) == "3.0 0 ''"
    assert len(list((room / "__pycache__").glob("kernels-*"))) == 1, "old kernels are removed"
    elsewhere = tmp_path / "elsewhere"
    assert call(tmp_path, NUMBA_CACHE_DIR=str(elsewhere)) == f"3.0 0 {str(elsewhere)!r}"
    assert list(elsewhere.glob("kernels-*/*/*.nbi")), "a user's own folder is used"


def test_where_the_package_cannot_be_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("FUSION3D_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert kernels.kernel_folder.__wrapped__().parent == tmp_path
