"""Build of fusion3d: the Python package, and csrc/ as one library that torch loads.

The library speaks torch's stable ABI: one file serves every Python and every torch from 2.10 on. Building it
needs torch's headers, never a running torch: they are looked for on disk, so `pip install .` finds them in
isolation too. Without GCC or torch the package installs as pure Python, with one warning, and runs on its
pure-torch operations.

    FUSION3D_NO_EXT=1         no library at all
    FUSION3D_CUDA=0 | 1       leave the CUDA kernels out | fail without them; default: built where nvcc is
    FUSION3D_CUDA_ARCHS="90"  GPU architectures, by spaces; default those of "80 90 100 120" that nvcc knows; "native":
                              of the GPUs that are here, or 80 and 90; PTX of the lowest and of the highest
    FUSION3D_SANITIZE=address the CPU kernels with sanitizers (address and UBSan, or thread): build/sanitize-address/
    FUSION3D_EMULATE=1        the CUDA kernels for the CPU, by csrc/emulator, sanitized or not: build/emulated*/
    CXX, NVCC, MAX_JOBS       compilers (CXX: GCC 9 or newer, for nvcc too unless NVCC_CCBIN is set), and how many run
                              at once
    FUSION3D_OBJECTS=folder   where objects are kept; default build/objects

Objects lie there under a name that says what went into them (compiler, flags, the source and what it
includes), beside what the compiler said: whatever is built again with the same is not compiled again.
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
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import ClassVar

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
LIBRARY = "_kernels.abi3.so"
TORCH_TARGET = "0x020a000000000000"  # 2.10: the oldest torch that the library runs with
OLDEST_GCC = 9  # for its conversions of vectors
ARCHS = "80 90 100 120"
OLDEST_ARCH = 80  # the first with bfloat16 on tensor cores
ARCHS_WITHOUT_GPU = "80 90"  # of "native": with PTX of both they serve every later GPU, in half the time of all four
CXX_FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi"]
NVCC_FLAGS = ["-O3", "-std=c++17", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
SANITIZERS = {  # float-cast-overflow: a NaN or far coordinate that becomes an index
    "address": ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize=vptr", "-D_GLIBCXX_ASSERTIONS"],
    "thread": ["-fsanitize=thread"],
}
SANITIZER_FLAGS = ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
SANITIZE = os.environ.get("FUSION3D_SANITIZE", "")
EMULATE = os.environ.get("FUSION3D_EMULATE") == "1"
EMULATOR_FLAGS = ["-Icsrc/emulator", "-D__CUDACC__", "-include", "cuda_runtime.h", "-x", "c++"]
EMULATOR_FLAGS += ["-fno-strict-aliasing", "-Wno-unknown-pragmas"]
EMULATOR_GLUE = "csrc/emulator/ops/registration.h"


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


def gcc_version(compiler: str) -> int:
    """Major version of GCC, 0 of other compilers (Clang says that it is a GCC, and that it is Clang)."""
    command = [*compiler.split(), "-dM", "-E", "-x", "c++", os.devnull]
    said = subprocess.run(command, capture_output=True, text=True).stdout
    found = re.search(r"#define __GNUC__ (\d+)", said)
    return int(found[1]) if found and "__clang__" not in said else 0


def why_pure() -> str:
    """Why no library can be built here, or nothing."""
    if os.environ.get("FUSION3D_NO_EXT") == "1":
        return "FUSION3D_NO_EXT=1"
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler.split()[0]) is None:
        return "there is no C++ compiler (g++, or what CXX names)"
    if gcc_version(compiler) < OLDEST_GCC:
        return f"{compiler} is not GCC {OLDEST_GCC} or newer, whose vectors the kernels are written in"
    if torch_folder() is None:
        return "torch 2.10 or newer is not installed where this Python looks"
    return ""


def run(command: list[str]) -> str:
    """Run a compiler and return what it said; where it fails, show the command too."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


@lru_cache
def version_of(compiler: str) -> str:
    """What a compiler says of itself: another version at the same place makes other objects."""
    return subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout


@lru_cache
def includes(path: Path) -> frozenset[Path]:
    """The headers of csrc/ that a file reads, and those that they read."""
    found: set[Path] = set()
    for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', path.read_text(), re.MULTILINE):
        for folder in (path.parent, ROOT / "csrc/include"):
            if (header := folder / name).is_file():
                found |= {header, *includes(header)}
                break
    return frozenset(found)


def emulated() -> tuple[Path, str]:
    """The folder of the CUDA sources in C++, and all headers of the emulator, which stand for those of their name."""
    folder, emulator = ROOT / "build/emulated/cuda", ROOT / "csrc/emulator"
    folder.mkdir(parents=True, exist_ok=True)
    for source in (ROOT / "csrc/cuda").iterdir():
        if not (emulator / source.name).is_file():
            translation = [str(emulator / "translate.py"), str(source.relative_to(ROOT)), str(folder / source.name)]
            run([sys.executable, *translation])
    headers = sorted(path for path in emulator.rglob("*.*") if path.suffix in (".h", ".cuh"))
    return folder.relative_to(ROOT), "".join(path.read_text() for path in headers)


def choose_archs(known: list[str]) -> list[str]:
    """The architectures to compile for, ascending. One that is asked for by its name must be known to nvcc."""
    asked = re.split(r"[\s,;]+", os.environ.get("FUSION3D_CUDA_ARCHS", "").strip(" ,;"))
    if asked == ["native"]:
        asked = [arch for arch in archs_here() if arch in known] or ARCHS_WITHOUT_GPU.split()
    elif asked != [""]:
        if known and (unknown := [arch for arch in asked if arch not in known]):
            raise SystemExit(
                f"fusion3d: FUSION3D_CUDA_ARCHS names {', '.join(unknown)}, but of the kernels this nvcc makes only "
                f"{', '.join(known)}: name others, take a newer nvcc, or leave the CUDA kernels out (FUSION3D_CUDA=0)"
            )
    else:
        asked = ARCHS.split()
    archs = sorted((arch for arch in dict.fromkeys(asked) if arch in known), key=lambda arch: int(arch.rstrip("af")))
    if not archs:
        raise RuntimeError(f"nvcc knows none of the architectures {', '.join(asked)}, only: {', '.join(known)}")
    return archs


def archs_here() -> list[str]:
    """Of the GPUs of this machine, by the driver's own tool: 8.0 is called 80."""
    if not (tool := shutil.which("nvidia-smi")):
        return []
    query = [tool, "--query-gpu=compute_cap", "--format=csv,noheader"]
    said = subprocess.run(query, capture_output=True, text=True).stdout
    return [f"{major}{minor}" for major, minor in re.findall(r"^(\d+)\.(\d)\s*$", said, re.MULTILINE)]


class Cuda:
    """The CUDA compiler, if there is one: its folder, and what it knows of the architectures asked for."""

    def __init__(self) -> None:
        self.nvcc = shutil.which(os.environ.get("NVCC", "nvcc")) or ""
        if not self.nvcc and (Path("/usr/local/cuda/bin/nvcc")).is_file():
            self.nvcc = "/usr/local/cuda/bin/nvcc"
        if os.environ.get("FUSION3D_CUDA") == "0" or SANITIZE or EMULATE:
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
        known = re.findall(r"compute_(\w+)", listed)
        self.archs = choose_archs([arch for arch in known if int(arch.rstrip("af")) >= OLDEST_ARCH])

    def flags(self) -> list[str]:
        """Code for every architecture; PTX of the highest for those to come, of the lowest for those between."""
        codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in self.archs]
        ends = dict.fromkeys((self.archs[0], self.archs[-1]))
        return [*codes, *(f"-gencode=arch=compute_{arch},code=compute_{arch}" for arch in ends)]

    def host(self) -> list[str]:
        """The C++ compiler that nvcc is to use: what CXX names, behind a launcher or not; else nvcc's own choice."""
        programs = list(takewhile(lambda word: not word.startswith("-"), os.environ.get("CXX", "").split()))
        return ["-ccbin", programs[-1]] if programs and "NVCC_CCBIN" not in os.environ else []

    def libraries(self) -> list[str]:
        """Link flags for the static runtime."""
        folders = [
            f for f in (self.top / "lib64", self.top / "targets/x86_64-linux/lib", self.top / "lib") if f.is_dir()
        ]
        return [*(f"-L{f}" for f in folders), "-lcudart_static", "-lrt", "-lpthread", "-ldl"]


class BuildKernels(build_ext):
    """Compiles csrc/ with g++ and nvcc, in parallel, and only what has changed; then links one library."""

    user_options: ClassVar = [*build_ext.user_options, ("only=", None, "compile this source alone, print its object")]

    def initialize_options(self) -> None:
        """Nothing is chosen."""
        super().initialize_options()
        self.only = ""
        self.build_base: str | None = None

    def finalize_options(self) -> None:
        """One folder of objects for every Python: they know nothing of it."""
        self.set_undefined_options("build", ("build_base", "build_base"))
        if self.build_temp is None:
            self.build_temp = os.environ.get("FUSION3D_OBJECTS") or str(Path(self.build_base or "build") / "objects")
        super().finalize_options()

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
        instruments = [*SANITIZER_FLAGS, *SANITIZERS[SANITIZE]] if SANITIZE else []
        jobs = self.jobs(ext, [*cxx, *CXX_FLAGS, *instruments], torch, cuda)
        todo = [command for command, target in jobs if not target.is_file()]
        todo.sort(key=lambda command: not command[-3].endswith(".cu"))  # what takes longest first
        archs = f" and CUDA for sm_{', sm_'.join(cuda.archs)}" if cuda else ""
        print(f"fusion3d: kernels for CPU{archs}: {len(todo)} of {len(jobs)} files to compile", flush=True)
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
            list(pool.map(self.compile_one, todo))
        if self.only:
            return print(*(target for _, target in jobs), sep="\n")
        library = Path(self.get_ext_fullpath(ext.name))
        if SANITIZE or EMULATE:
            kind = "emulated" if EMULATE else "sanitize"
            library = Path(self.build_temp).parent / (f"{kind}-{SANITIZE}" if SANITIZE else kind) / LIBRARY
        library.parent.mkdir(parents=True, exist_ok=True)
        partial = library.with_suffix(f".{os.getpid()}")
        command = [*cxx, "-shared", *instruments, "-o", str(partial), *(str(target) for _, target in jobs)]
        # Nothing of libtorch is used by name, but it leads the loader to libtorch_cuda where torch has it.
        command += [f"-L{torch / 'lib'}", "-Wl,--no-as-needed", "-ltorch", "-Wl,--as-needed", "-ltorch_cpu", "-lc10"]
        command += ["-Wl,-Bsymbolic-functions"] if EMULATE else []  # what the emulator says of devices, not torch
        run([*command, *(cuda.libraries() if cuda else []), "-Wl,--exclude-libs,ALL"])
        partial.replace(library)

    def jobs(self, ext: Extension, cxx: list[str], torch: Path, cuda: Cuda | None) -> list[tuple[list[str], Path]]:
        """A command for every source, and its object. Only the glue is compiled with torch, and knows of CUDA."""
        glue = ["-isystem", str(torch / "include"), f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"]
        glue += ["-DFUSION3D_WITH_CUDA"] if cuda or EMULATE else []
        glue += ["-include", EMULATOR_GLUE] if EMULATE else []
        read = (torch / "version.py").read_text() + (Path(EMULATOR_GLUE).read_text() if EMULATE else "")
        folder, emulator = emulated() if EMULATE else (Path(), "")
        jobs = []
        for source in sorted(map(str, ext.sources)):
            if self.only not in ("", source):
                continue
            if source.startswith(("csrc/ops/", "csrc/emulator/ops/")):
                jobs.append(self.job([*cxx, "-Icsrc/include", *glue], source, read))
            elif source.endswith(".cpp"):
                jobs.append(self.job([*cxx, "-Icsrc/include"], source))
            elif EMULATE:
                translated = str(folder / Path(source).name)
                jobs.append(self.job([*cxx, "-Icsrc/include", *EMULATOR_FLAGS], translated, emulator))
            elif cuda:
                jobs.append(self.job([cuda.nvcc, *cuda.host(), *NVCC_FLAGS, "-Icsrc/include", *cuda.flags()], source))
        if not jobs:
            raise RuntimeError(f"--only={self.only}: no source that is compiled here: {', '.join(ext.sources)}")
        return jobs

    def job(self, command: list[str], source: str, also: str = "") -> tuple[list[str], Path]:
        """The whole command for one source, and its object, named by all that goes into it."""
        digest = hashlib.sha256(" ".join([*command, source, version_of(command[0]), also]).encode())
        path = ROOT / source
        for file in [path, *sorted(includes(path))]:
            digest.update(file.read_bytes())
        target = Path(self.build_temp).absolute() / f"{path.name}.{digest.hexdigest()[:16]}.o"
        target.parent.mkdir(parents=True, exist_ok=True)
        return [*command, "-c", source, "-o", str(target)], target

    def compile_one(self, command: list[str]) -> None:
        """Compile to another name first: an object that exists is whole. What the compiler said lies beside it."""
        target = Path(command[-1])
        partial = target.with_suffix(f".{os.getpid()}")
        said = run([*command[:-1], str(partial)])
        target.with_suffix(".log").write_text(said)
        partial.replace(target)


class Wheel(bdist_wheel):
    """A wheel with the library serves every CPython from 3.10 on; one without it, every machine."""

    def finalize_options(self) -> None:
        """The stable-ABI tag, only where there is something compiled."""
        if self.distribution.has_ext_modules():
            self.py_limited_api = "cp310"
        super().finalize_options()


if SANITIZE not in ("", *SANITIZERS):
    raise SystemExit(f"fusion3d: FUSION3D_SANITIZE={SANITIZE}: expected one of {', '.join(SANITIZERS)}")
REASON = why_pure()
if REASON:
    warn(f"no compiled kernels: {REASON}. The package runs, slower, on its pure-torch operations.")

FILES = [path.relative_to(ROOT) for kind in ("*.cpp", "*.cu") for path in sorted((ROOT / "csrc").rglob(kind))]
SOURCES = [str(path) for path in FILES if path.parts[1] != ("cpu" if EMULATE else "emulator")]
setup(
    packages=[*find_packages(include=["fusion3d", "fusion3d.*"]), "fusion3d.configs"],
    package_dir={"fusion3d.configs": "configs"},
    package_data={"fusion3d.configs": ["*.yaml"]},
    ext_modules=[] if REASON else [Extension("fusion3d._kernels", SOURCES)],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": Wheel},
)
