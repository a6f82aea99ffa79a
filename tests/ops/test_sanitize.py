"""`make sanitize` finds what it is for: a faulty operation, built and run as the kernels are, does not go unseen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAULTY = """
#include <vector>

#include "tensors.h"

void fault(const torch::stable::Tensor& x, int64_t kind) {
  float* values = static_cast<float*>(x.mutable_data_ptr());
  const int64_t count = x.numel();
  if (kind == 1) values[count] = 1;                      // a write past the end
  if (kind == 2) values[0] = float(int32_t(values[0]));  // a number that no int32 holds
  if (kind == 3) values[0] = float(std::vector<int>(count)[count]);
  if (kind == 4)  // a number of two owners
    fusion3d::parallel_for(0, 2, 1, [=](int64_t begin, int64_t) { values[0] = float(begin); });
}

STABLE_TORCH_LIBRARY_FRAGMENT(fusion3d, m) { m.def("fault(Tensor(a!) x, int kind) -> ()"); }
STABLE_TORCH_LIBRARY_IMPL(fusion3d, CPU, m) { m.impl("fault", TORCH_BOX(&fault)); }
"""
TEST = """
import pytest, torch
torch.ops.load_library(LIBRARY)

@pytest.mark.parametrize("kind", range(5))
def test_fault(kind):
    torch.set_num_threads(2)
    torch.ops.fusion3d.fault(torch.full((9,), 1e20), kind)
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler"),
]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory):
    """A test file for a sanitizer, and the library that it loads: csrc/ops with one operation that errs on demand."""
    folder = tmp_path_factory.mktemp("faulty")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "fusion3d/__init__.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "configs").mkdir()
    shutil.copytree(ROOT / "csrc/include", folder / "csrc/include")
    (folder / "csrc/ops").mkdir()
    for path in (ROOT / "csrc/ops").glob("tensors.*"):
        shutil.copy(path, folder / "csrc/ops")
    (folder / "csrc/ops/faulty.cpp").write_text(FAULTY)

    def compile_for(sanitizer: str) -> Path:
        test = folder / f"test_{sanitizer}.py"
        if not test.is_file():
            library = folder / f"build/sanitize-{sanitizer}/_kernels.abi3.so"
            command = [sys.executable, "setup.py", "-q", "build_ext"]
            settings = {**os.environ, "FUSION3D_SANITIZE": sanitizer}
            done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=settings)
            assert done.returncode == 0, done.stdout + done.stderr
            test.write_text(TEST.replace("LIBRARY", repr(str(library)), 1))
        return test

    return compile_for


@pytest.mark.parametrize(
    ("sanitizer", "kind", "report"),
    [
        ("address", 0, None),
        ("address", 1, "AddressSanitizer: heap-buffer-overflow"),
        ("address", 2, "is outside the range of representable values"),
        ("address", 3, "Assertion '__n < this->size()' failed"),
        ("thread", 0, None),
        ("thread", 4, "ThreadSanitizer: data race"),
    ],
)
def test_a_fault_ends_the_run_with_a_report(build, sanitizer, kind, report):
    test = build(sanitizer)
    command = [
        "sh",
        str(ROOT / "tools/sanitize.sh"),
        str(test),
        "-k",
        f"fault and {kind}",
        "--rootdir",
        str(test.parent),
    ]
    settings = {"PYTHON": sys.executable, "FUSION3D_LIBRARY": "none", "OMP_NUM_THREADS": "1", "SANITIZER": sanitizer}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **settings}, timeout=300)
    said = done.stdout + done.stderr
    if report is None:
        assert done.returncode == 0 and "1 passed" in said, said
    else:
        assert done.returncode != 0 and report in said, said
        assert "WRITE of size 4" in said or kind != 1
