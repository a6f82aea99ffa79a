"""Build of fusion3d: the Python package, and csrc/ as one library that torch loads.

The library speaks torch's stable ABI: one file serves every Python and every torch from 2.10 on. Building it
needs torch's headers, never a running torch: they are looked for on disk, so `pip install .` finds them in
isolation too. Without compiler or torch the package installs as pure Python, with one warning, and runs on
its pure-torch operations.

    FUSION3D_NO_EXT=1         no library at all
    FUSION3D_CUDA=0 | 1       leave the CUDA kernels out | fail without them; default: built where nvcc is
    FUSION3D_CUDA_ARCHS="90"  GPU architectures, by spaces; default "80 90 100 120"; PTX for the last
    CXX, NVCC, MAX_JOBS       compilers, and how many run at once
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
LIBRARY = "_kernels.abi3.so"
TORCH_TARGET = "0x020a000000000000"  # 2.10: the oldest torch that the library runs with
ARCHS = "80 90 100 120"
CXX_FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi"]
NVCC_FLAGS = ["-O3", "-std=c++17", "-Xcompiler", "-fPIC,-fvisibility=hidden"]


def warn(message: str) -> None:
    """One line that pip -v and a plain build both show."""
    print(f"fusion3d: warning: {message}", file=sys.stderr, flush=True)


def torch_folder() -> Path | None:
    """Folder of the installed torch (2.10 or newer), found without importing it."""
    spec = importlib.util.find_spec("torch")
    folders = [Path(spec.origin).parent] if spec and spec.origin else []
    folders += [Path(sysconfig.get_path(key)) / "torch" for key in ("platlib", "purelib")]
    for folder in folders:
        version = folder / "version.py"
        if (folder / "include/torch/csrc/stable/library.h").is_file() and version.is_file():
            found = re.search(r"__version__ = '(\d+)\.(\d+)", version.read_text())
            if found and (int(found[1]), int(found[2])) >= (2, 10):
                return folder
    return None


def why_pure() -> str:
    """Why no library can be built here, or nothing."""
    if os.environ.get("FUSION3D_NO_EXT") == "1":
        return "FUSION3D_NO_EXT=1"
    if shutil.which(os.environ.get("CXX", "g++").split()[0]) is None:
        return "there is no C++ compiler (g++, or what CXX names)"
    if torch_folder() is None:
        return "torch 2.10 or newer is not installed where this Python looks"
    return ""


def run(command: list[str]) -> None:
    """Run a compiler; where it fails, show the command and what it said."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


class Cuda:
    """The CUDA compiler, if there is one: its folder, and what it knows of the architectures asked for."""

    def __init__(self) -> None:
        self.nvcc = shutil.which(os.environ.get("NVCC", "nvcc")) or ""
        if not self.nvcc and (Path("/usr/local/cuda/bin/nvcc")).is_file():
            self.nvcc = "/usr/local/cuda/bin/nvcc"
        if os.environ.get("FUSION3D_CUDA") == "0":
            self.nvcc = ""
        if not self.nvcc:
            if os.environ.get("FUSION3D_CUDA") == "1":
                raise RuntimeError("FUSION3D_CUDA=1, but there is no nvcc: put it on PATH, or name it in NVCC")
            return
        # nvcc may be a wrapper script: where it lives is what it says, not where it was found.
        said = subprocess.run([self.nvcc, "--dryrun", "x.cu"], capture_output=True, text=True).stderr
        top = re.search(r"^#\$ TOP=(.*)$", said, re.MULTILINE)
        self.top = Path(top[1].strip()).resolve() if top else Path(self.nvcc).resolve().parents[1]
        listed = subprocess.run([self.nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout
        asked = os.environ.get("FUSION3D_CUDA_ARCHS", ARCHS).replace(",", " ").replace(";", " ").split()
        self.archs = [arch for arch in asked if f"compute_{arch}" in listed.split()]
        if not self.archs:
            raise RuntimeError(f"FUSION3D_CUDA_ARCHS={' '.join(asked)}: nvcc knows none of them, only {listed.split()}")

    def flags(self) -> list[str]:
        """Code for every architecture, and PTX of the last for those to come."""
        codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in self.archs]
        return [*codes, f"-gencode=arch=compute_{self.archs[-1]},code=compute_{self.archs[-1]}"]

    def libraries(self) -> list[str]:
        """Link flags for the static runtime."""
        folders = [
            f for f in (self.top / "lib64", self.top / "targets/x86_64-linux/lib", self.top / "lib") if f.is_dir()
        ]
        return [*(f"-L{f}" for f in folders), "-lcudart_static", "-lrt", "-lpthread", "-ldl"]


class BuildKernels(build_ext):
    """Compiles csrc/ with g++ and nvcc, in parallel, and only what has changed; then links one library."""

    def get_ext_filename(self, fullname: str) -> str:
        """The library holds no Python code, so its name says nothing of the Python that built it."""
        return str(Path(*fullname.split(".")[:-1]) / LIBRARY)

    def build_extension(self, ext: Extension) -> None:
        """Compile and link."""
        torch = torch_folder()
        assert torch is not None
        try:
            if (cuda := Cuda()).nvcc:
                return self.build_library(ext, torch, cuda)
        except (RuntimeError, OSError) as error:  # an nvcc that is too old, or does not even run
            if os.environ.get("FUSION3D_CUDA") == "1":
                raise
            warn(f"the CUDA kernels could not be compiled and are left out:\n{error}")
        self.build_library(ext, torch, None)

    def build_library(self, ext: Extension, torch: Path, cuda: Cuda | None) -> None:
        """One library, with CUDA kernels or without."""
        cxx = os.environ.get("CXX", "g++").split()
        include = [
            "-Icsrc/include",
            "-isystem",
            str(torch / "include"),
            f"-DTORCH_TARGET_VERSION={TORCH_TARGET}",
        ]
        if cuda:
            include.append("-DFUSION3D_WITH_CUDA")
        include.append(f"-DFUSION3D_TORCH_BUILD={zlib.crc32((torch / 'version.py').read_bytes())}")
        jobs: list[tuple[list[str], Path]] = []
        for source in sorted(map(str, ext.sources)):
            if source.endswith(".cpp"):
                jobs.append(self.job([*cxx, *CXX_FLAGS, *include], source))
            elif cuda:
                jobs.append(self.job([cuda.nvcc, *NVCC_FLAGS, "-Icsrc/include", *cuda.flags()], source))
        todo = [command for command, target in jobs if not target.is_file()]
        archs = f" and CUDA for sm_{', sm_'.join(cuda.archs)}" if cuda else ""
        print(f"fusion3d: kernels for CPU{archs}: {len(todo)} of {len(jobs)} files to compile", flush=True)
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
            list(pool.map(self.compile_one, todo))
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        partial = library.with_suffix(f".{os.getpid()}")
        # Nothing of libtorch is used by name, but it leads the loader to libtorch_cuda where torch has it.
        needed = [
            f"-L{torch / 'lib'}",
            "-Wl,--no-as-needed",
            "-ltorch",
            "-Wl,--as-needed",
            "-ltorch_cpu",
            "-lc10",
        ]
        objects = [str(target) for _, target in jobs]
        hidden = ["-Wl,--exclude-libs,ALL"]
        run(
            [
                *cxx,
                "-shared",
                "-o",
                str(partial),
                *objects,
                *needed,
                *(cuda.libraries() if cuda else []),
                *hidden,
            ]
        )
        partial.replace(library)

    def job(self, command: list[str], source: str) -> tuple[list[str], Path]:
        """The whole command for one source, and its object, named by all that goes into it."""
        digest = hashlib.sha256(" ".join([*command, source]).encode())
        for path in sorted([ROOT / source, *ROOT.glob("csrc/**/*.h")]):
            digest.update(path.read_bytes())
        target = Path(self.build_temp).absolute() / f"{Path(source).name}.{digest.hexdigest()[:16]}.o"
        target.parent.mkdir(parents=True, exist_ok=True)
        return [*command, "-c", source, "-o", str(target)], target

    def compile_one(self, command: list[str]) -> None:
        """Compile to another name first: an object that exists is whole."""
        target = Path(command[-1])
        partial = target.with_suffix(f".{os.getpid()}")
        run([*command[:-1], str(partial)])
        partial.replace(target)


class Wheel(bdist_wheel):
    """A wheel with the library serves every CPython from 3.11 on; one without it, every machine."""

    def finalize_options(self) -> None:
        """The stable-ABI tag, only where there is something compiled."""
        if self.distribution.has_ext_modules():
            self.py_limited_api = "cp311"
        super().finalize_options()


REASON = why_pure()
if REASON:
    warn(f"no compiled kernels: {REASON}. The package runs, slower, on its pure-torch operations.")

SOURCES = [str(path.relative_to(ROOT)) for kind in ("*.cpp", "*.cu") for path in sorted((ROOT / "csrc").rglob(kind))]
setup(
    packages=[*find_packages(include=["fusion3d", "fusion3d.*"]), "fusion3d.configs"],
    package_dir={"fusion3d.configs": "configs"},
    package_data={"fusion3d.configs": ["*.yaml"]},
    ext_modules=[] if REASON else [Extension("fusion3d._kernels", SOURCES)],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": Wheel},
)
