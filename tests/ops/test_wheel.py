"""The wheel: one file for every Python and torch, within the stable ABI by the word of torch-abi-audit."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from harness import compiled

from fusion3d import __version__

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in folders of its own, from the objects that the library in the package was linked from."""
    folder = tmp_path_factory.mktemp("wheel")
    objects = str(ROOT / "build/objects")
    settings = {"FUSION3D_CUDA_ARCHS": "native", **os.environ, "FUSION3D_SANITIZE": "", "FUSION3D_OBJECTS": objects}
    done = subprocess.run(
        [
            sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(folder),
            "build", "--build-base", str(folder / "build"),
            "bdist_wheel", "--bdist-dir", str(folder / "bdist"), "--dist-dir", str(folder),
        ],
        capture_output=True, text=True, cwd=ROOT, env=settings,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


@compiled
def test_wheel_is_for_every_python(wheel):
    assert wheel.name.startswith(f"fusion3d-{__version__}-cp310-abi3-linux_")
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if ".so" in name] == ["fusion3d/_kernels.abi3.so"]
    assert "fusion3d/configs/demo.yaml" in names and "fusion3d/ops/reference/pooling.py" in names
    assert not [name for name in names if name.startswith(("tests/", "tools/", "csrc/"))]


@compiled
@pytest.mark.skipif(
    importlib.util.find_spec("torch_abi_audit") is None, reason="torch-abi-audit is not installed (extra: dev)"
)
def test_audit_finds_the_stable_abi_of_the_oldest_torch(wheel, tmp_path):
    library = zipfile.ZipFile(wheel).extract("fusion3d/_kernels.abi3.so", tmp_path)
    command = [sys.executable, "-m", "torch_abi_audit.cli", "--check", "torch", "--json", library]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = json.loads(done.stdout)["bundled_libs"]
    assert found["error"] is None
    assert found["torch"]["uses_torch"] and found["torch"]["stable"] and not found["torch"]["unstable_symbols"]
    assert found["torch"]["min_torch_version"] == "2.10.0" and not found["torch"]["unknown_shim_symbols"]
    assert not found["cpython"]["violations"]
