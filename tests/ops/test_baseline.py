"""The code for processors without AVX2 computes the same, and 16-bit numbers are read and rounded as torch does it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from harness import compiled

from fusion3d import ops

HERE = Path(__file__).parent
FAMILIES = (
    "bev_pool", "box_overlap", "ms_deform_attn", "nms", "points_in_boxes", "segments", "sparse", "voxels", "windows",
)  # fmt: skip
WIDE = ("bev_pool", "sparse")  # that have code for AVX-512 too
CHOSEN = "equals_twin or equal_twin or equals_a_loop_over_windows or sixteen_bits or nan_of_the_baseline"
LARGE = "30000-150 or 1500-83 or 1000-1000 or 8-16 or 4-32"  # more of what smaller cases show too


def values_of_16_bits(dtype, columns):
    """Every number that there is, [65536 / columns rounded up, columns]."""
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    return torch.cat([every, every[: -len(every) % columns]]).view(dtype).view(-1, columns)


@compiled
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("columns", [1, 7, 8, 9, 64])  # by vectors, one by one, and both
def test_sixteen_bits_are_read_and_rounded_as_torch_does_it(dtype, columns):
    first = values_of_16_bits(dtype, columns)
    second = first.flatten()[torch.randperm(first.numel(), generator=torch.Generator().manual_seed(0))].view(
        first.shape
    )
    plan = ops.segment_plan(torch.arange(len(first)).repeat(2), len(first))
    found = ops.segment_reduce(torch.cat([first, second]), plan, "sum")
    want = (first.float() + second.float()).to(dtype)
    nan = want.isnan()
    assert torch.equal(found.isnan(), nan) and nan.any() and want.isinf().any()
    assert torch.equal(found[~nan].view(torch.int16), want[~nan].view(torch.int16))


@compiled
@pytest.mark.skipif(
    os.environ.get("FUSION3D_SIMD") != "baseline", reason="tells which code runs under FUSION3D_SIMD=baseline"
)
def test_nan_of_the_baseline():
    # The instruction that rounds to half keeps the bits of a NaN; the baseline has one NaN alone.
    nan = torch.tensor([[0x7E01]], dtype=torch.int16).view(torch.float16)
    found = ops.segment_reduce(nan, ops.segment_plan(torch.tensor([0]), 1), "sum")
    assert found.view(torch.int16).item() == 0x7E00


@compiled
@pytest.mark.parametrize(("simd", "families"), [("baseline", FAMILIES), ("avx2", WIDE)])
def test_every_family_equals_its_twin_on_older_processors(simd, families):
    files = [str(HERE / f"test_{family}.py") for family in families]
    command = [sys.executable, "-m", "pytest", "-v", "-x", "-p", "no:cacheprovider", "-m", "not gpu"]
    command += ["-k", f"({CHOSEN}) and not ({LARGE})"]
    done = subprocess.run(
        [*command, *files, __file__],
        env={**os.environ, "FUSION3D_SIMD": simd},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    passed = [line for line in done.stdout.splitlines() if "PASSED" in line]
    for name in (*families, "baseline"):
        assert any(f"test_{name}.py::" in line for line in passed), f"no test of {name} ran"
    assert any("test_nan_of_the_baseline" in line for line in passed) == (simd == "baseline")


BITS = """
import hashlib, torch
from fusion3d import ops
torch.manual_seed(0)
digest = hashlib.sha256()
def note(*tensors):
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
coords = torch.unique(torch.randint(0, 14, (900, 3)), dim=0)
coords = torch.cat([torch.zeros(len(coords), 1), coords], dim=1).int()
for inputs, outputs in ((5, 16), (16, 9), (16, 32), (40, 64), (17, 33)):
    for geometry in ({"submanifold": True}, {"stride": 2, "padding": 1}):
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            book = ops.sparse_rulebook(coords, (14, 14, 14), 1, 3, **geometry)
            features = torch.randn(len(coords), inputs, dtype=dtype, requires_grad=True)
            weight = torch.randn(outputs, 3, 3, 3, inputs, dtype=dtype, requires_grad=True)
            out = ops.sparse_conv(features, weight, book)
            note(out, *torch.autograd.grad(out.float().square().sum(), (features, weight)))
cell = torch.randint(-1, 60, (2, 6, 3, 5))
for channels in (1, 15, 16, 17, 80, 200):
    for dtype in (torch.float32, torch.bfloat16):
        plan = ops.bev_pool_plan(cell, 60)
        note(ops.bev_pool(torch.rand(2, 6, 3, 5).to(dtype), torch.randn(2, channels, 3, 5).to(dtype), plan))
print(digest.hexdigest())
"""


@compiled
@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="this processor has no AVX-512 to compare with AVX2"
)
def test_wider_vectors_change_no_bit():
    """The order of no sum depends on them: what AVX-512 computes is what AVX2 does."""
    found = [
        subprocess.run(
            [sys.executable, "-c", BITS],
            env={**os.environ, "FUSION3D_SIMD": simd},
            cwd=HERE.parents[1],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for simd in ("", "avx2")
    ]
    assert len(found[0]) > 60 and found[0] == found[1]
