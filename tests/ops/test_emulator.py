"""The emulator of CUDA finds what it is for: faulty kernels give other results by other seeds, or end with a report."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
EMULATOR = ROOT / "csrc/emulator"
SIZE = 96
translate = runpy.run_path(str(EMULATOR / "translate.py"))["translate"]
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory):
    """The program of emulator_faults.cu, with sanitizers or without; a call runs one of its kernels."""
    folder = tmp_path_factory.mktemp("emulator")
    source = folder / "faults.cu"
    source.write_text(translate((ROOT / "tests/ops/emulator_faults.cu").read_text(), "emulator_faults.cu"))

    def program(*flags: str):
        path = folder / f"faults{len(flags)}"
        if not path.is_file():
            files = [str(EMULATOR / "emulator.cpp"), str(EMULATOR / "fiber.cpp"), "-x", "c++", str(source)]
            command = ["g++", "-std=c++17", "-O1", "-g", f"-I{EMULATOR}", "-Wno-unknown-pragmas", *flags, *files]
            done = subprocess.run([*command, "-o", str(path)], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr

        def run(kind: str, seed: int = 0) -> subprocess.CompletedProcess[bytes]:
            settings = {"FUSION3D_EMULATOR_SEED": str(seed), "ASAN_OPTIONS": "detect_leaks=0"}
            return subprocess.run([str(path), kind], capture_output=True, env={**os.environ, **settings}, timeout=60)

        return run

    return program


def numbers(done: subprocess.CompletedProcess[bytes]) -> list[int]:
    assert done.returncode == 0, done.stderr.decode()
    return [int(word) for word in done.stdout.split()]


@needs_compiler
def test_a_barrier_makes_results_the_same_and_its_lack_makes_them_differ(build):
    run = build()
    for seed in range(4):
        assert numbers(run("waits", seed)) == list(range(SIZE))[::-1]
    raced = [numbers(run("races", seed)) for seed in range(4)]
    assert len({tuple(found) for found in raced}) == 4
    assert raced[0] == numbers(run("races", 0))  # a seed tells the order


@needs_compiler
def test_blocks_come_in_any_order_each_once(build):
    orders = [numbers(build()("blocks", seed)) for seed in range(3)]
    assert all(sorted(order) == list(range(SIZE)) for order in orders)
    assert orders[0] != orders[1] != orders[2]


@needs_compiler
def test_what_is_not_there_yet_is_garbage(build):
    run = build()
    assert numbers(run("unwritten")) == [1] * SIZE  # NaN
    assert numbers(run("fetches")) == list(range(SIZE))
    assert set(numbers(run("hurries"))) == {0x7FF77FF7}


@needs_compiler
def test_threads_that_have_returned_count_as_arrived(build):
    assert build()("apart").returncode == 0
    returned = [sum(i % 3 == 0 for i in range(w, w + 32)) for w in range(0, SIZE, 32)]
    assert numbers(build()("leaves")) == [0 if i % 3 == 0 else 32 - returned[i // 32] for i in range(SIZE)]


@needs_compiler
@pytest.mark.parametrize(
    ("kind", "report"),
    [
        ("elsewhere", "), but others are in __syncthreads (emulator_faults.cu:"),
        ("asks all", "wait for others that never come; 0 have returned\n  8 in __shfl_sync (emulator_faults.cu:"),
        ("asks absent", "lane 0 reads of lane 9, which takes no part"),
        ("asks for others", "with mask 0000007f, which lacks its own lane"),
        ("bounds", "launched with 65 threads, but its __launch_bounds__ are 64"),
    ],
)
def test_what_cuda_leaves_undefined_is_reported(build, kind, report):
    for seed in range(2):
        done = build()(kind, seed)
        assert done.returncode < 0 and report in done.stderr.decode(), done.stderr.decode()


@needs_compiler
def test_some_lanes_may_talk_alone(build):
    assert numbers(build()("asks some"))[:8] == [7] * 8


@needs_compiler
def test_launches_fail_as_on_a_device(build):
    wrong, invalid = b"cudaErrorInvalidConfiguration", b"cudaErrorInvalidValue"
    assert build()("limits").stdout.split() == [wrong, wrong, wrong, invalid, invalid, b"cudaSuccess", b"7"]


@needs_compiler
def test_products_of_tensor_cores(build):
    assert build()("multiplies").stdout == b"0 wrong\n"


@needs_compiler
def test_numbers_of_16_bits_are_those_of_torch(build):
    done = build()("converts").stdout
    wide = np.frombuffer(done[: 8 << 16], np.float32).reshape(-1, 2)
    every = torch.arange(1 << 16).to(torch.uint16)
    back = np.frombuffer(done[8 << 16 :], np.dtype([("value", "f4"), ("half", "u2"), ("bfloat", "u2")]))
    value = torch.from_numpy(back["value"].copy())
    for column, (name, dtype) in enumerate({"half": torch.float16, "bfloat": torch.bfloat16}.items()):
        exact = every.view(dtype).float()
        torch.testing.assert_close(torch.from_numpy(wide[:, column].copy()), exact, rtol=0, atol=0, equal_nan=True)
        rounded = torch.from_numpy(back[name].astype(np.int32)).to(torch.uint16).view(dtype)
        torch.testing.assert_close(rounded, value.to(dtype), rtol=0, atol=0, equal_nan=True)


@needs_compiler
@pytest.mark.slow
def test_sanitizers_see_what_kernels_touch(build):
    run = build("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    assert numbers(run("waits")) == list(range(SIZE))[::-1]
    for kind, report in [("past shared", "use-after-poison"), ("past global", "heap-buffer-overflow")]:
        done = run(kind)
        assert done.returncode != 0 and report in done.stderr.decode(), done.stderr.decode()
        assert "emulator_faults.cu:" in done.stderr.decode()  # the line of the source, not of its translation


@needs_compiler
@pytest.mark.slow
def test_thread_sanitizer_takes_each_fiber_for_a_thread(build):
    run = build("-fsanitize=thread")
    for kind in ("waits", "leaves", "asks some", "multiplies", "fetches"):
        assert run(kind).returncode == 0
    for kind in ("races", "shuffles for order"):
        done = run(kind)
        assert done.returncode != 0 and "ThreadSanitizer: data race" in done.stderr.decode(), done.stderr.decode()
    assert run("syncs for order").returncode == 0


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("<<<1, 2>>>(x);", "does not follow the name of a kernel"),
        ("f<<<1>>>(x);", "a launch is kernel<<<grid"),
        ("f<<<1, 2>>>;", "a launch is kernel<<<grid"),
        ("f<<<(1, 2>>>(x);", "no >>> follows"),
        ("__shared__ int x = 3;", "a shared declaration is"),
        ("extern __shared__ int x;", r"extern __shared__ is TYPE NAME\[\];"),
        ("__constant__ int x;", "__constant__ is not understood"),
        ('asm volatile("x");', "asm is not understood"),
    ],
)
def test_the_translator_rejects_what_it_does_not_know(source, problem):
    with pytest.raises(ValueError, match=rf"line 2: .*{problem}"):
        translate(f"\n{source}\n", "x.cu")


def test_the_translator_leaves_lines_and_comments_alone():
    text = "// f<<<1, 2>>>(x)\nvoid g() {\n  f<int>\n      <<<dim3(1, 2), 3>>>(\n          x);\n}\n"
    found = translate(text, "x.cu")
    assert found.startswith('#line 1 "x.cu"\n// f<<<1, 2>>>(x)\n') and found.count("\n") == text.count("\n") + 1
    assert found.split("\n")[5] == "          x);"


@needs_compiler
@pytest.mark.slow
def test_cuda_kernels_run_on_the_emulator():
    """The essential tests of each family, as `make emulate` runs all of them."""
    files = [str(path) for path in sorted(Path(__file__).parent.glob("test_*.py"))]
    only = "equals_twin or equals_loops or equals_a_loop or analytic or gradcheck or any_shape or first_come"
    command = ["sh", str(ROOT / "tools/emulate.sh"), *files, "-k", only]
    settings = {"PYTHON": sys.executable, "SEEDS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **settings}, timeout=1800)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr
