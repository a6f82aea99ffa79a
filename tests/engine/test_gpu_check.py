"""`make gpu-check` on a machine that has torch, numba and pytest, but none of the optional packages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ABSENT = ("cachetools", "nuscenes", "open3d", "pyquaternion", "shapely", "spconv", "tyro")
BLOCKER = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}: absent in this test", name=name)

sys.meta_path.insert(0, Absent())
"""


@pytest.fixture
def bare(tmp_path):
    """Run Python in a process where the optional packages are not there; returns what it printed."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKER.format(absent=ABSENT))

    def call(*arguments: str) -> str:
        settings = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, env=settings)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return call


def test_the_blocker_blocks(bare):
    code = "import importlib\nfor name in {}:\n try: importlib.import_module(name)\n except ImportError: print(name)"
    assert bare("-c", code.format(ABSENT)).split() == list(ABSENT)


def test_training_its_data_and_the_table_of_the_operations_need_none_of_them(bare, tmp_path):
    """Without a GPU every case is made and said to be not run; a peer that is missing is no error."""
    code = (
        "import fusion3d.engine.train, fusion3d.synthetic.writer\nfrom fusion3d.config import load_config\n"
        "print(load_config('configs/demo.yaml'))\n"
        "import sys, torch; torch.cuda.is_available = lambda: False\n"
        "from fusion3d.cli import run\n"
        "sys.exit(run('benchmark', ['ops', '--quick', '--device', 'cuda', '--json', sys.argv[1]]))"
    )
    said = bare("-c", code, str(tmp_path / "ops.json"))
    assert "camera" in said and re.search(r"^ +peer +ours", said, re.MULTILINE) and (tmp_path / "ops.json").is_file()


def test_its_tests_are_found(bare):
    files = [str(path) for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text()]
    said = bare("-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", *files, "-m", "gpu")
    assert re.search(r"^\d+(/\d+)? tests collected", said, re.MULTILINE), said[-500:]


@pytest.mark.parametrize(
    ("does", "status", "said"),
    [
        ("exit 0", 0, "gpu-check: passed"),
        ("exit 86", 1, "gpu-check: memcheck failed (86; 86 is its own finding)"),
        ("exec sleep 9", 0, "gpu-check: incomplete: memcheck racecheck synccheck did not finish; all else passed"),
    ],
)
def test_a_sanitizer_that_does_not_finish_is_said(tmp_path, does, status, said):
    """With stand-ins for a Python that sees a GPU, and for compute-sanitizer."""
    for name, text in {"python": "exit 0", "compute-sanitizer": f'[ "$1" = --help ] || {does}'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    settings = {"PYTHON": str(tmp_path / "python"), "PATH": f"{tmp_path}:{os.environ['PATH']}", "SANITIZE_SECONDS": "1"}
    done = subprocess.run(
        ["sh", "tools/gpu_check.sh", "sanitize"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **settings},
    )
    assert done.returncode == status and (done.stdout + done.stderr).splitlines()[-1] == said
    assert done.stdout.count("INCOMPLETE") == (3 if "sleep" in does else 0)
