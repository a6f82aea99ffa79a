"""The operations' benchmark: equal first, then timed; what is not there is said, and what is wrong fails the run."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib
import itertools
import json
import pkgutil
import runpy
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fusion3d.engine import benchmark_ops
from fusion3d.engine.benchmark_ops import atomics, inputs, pooling, run, table, timing
from fusion3d.engine.benchmark_ops.case import Case
from fusion3d.errors import DataError, Fusion3DError


def agree(ours, peer):
    torch.testing.assert_close(ours, peer)


def make(peers, op="add", target=None, ours=None):
    x = torch.arange(1000.0)
    return Case(op, "1000 numbers", ours or (lambda: x + x), peers(x), agree, 8000, target or {})


def slow(x):
    def double():
        time.sleep(2e-3)
        return 2 * x

    return double


def wrong(x):
    timed = []

    def triple():
        assert not timed, "a peer that disagrees is not timed"
        timed.append(1)
        return 3 * x

    return triple


def missing():
    raise ModuleNotFoundError("No module named 'spconv'", name="spconv")


@pytest.fixture
def bench(monkeypatch, tmp_path, capsys):
    """Run the verb on given cases; returns its exit status, what it printed and the JSON's content."""
    path = tmp_path / "out" / "ops.json"

    def call(*made, arguments=()):
        monkeypatch.setattr(run, "FAMILIES", ("fake",))
        module = type("Fake", (), {"cases": staticmethod(lambda device, quick: iter(made))})
        monkeypatch.setattr(run.importlib, "import_module", lambda name: module)
        arguments = ["--device", "cpu", "--repeats", "5", "--seconds", "0", *arguments]
        status = run.main([*arguments, "--json", str(path), "--markdown", str(path.with_suffix(".md"))])
        return status, capsys.readouterr().out, json.loads(path.read_text())

    monkeypatch.setattr(timing, "copy_rate", lambda device: 1e9)
    return call


def test_equal_results_are_timed_in_turn(bench, tmp_path):
    peers = {"sleeper": 2.0, "dreamer": 1e9}
    case = make(lambda x: {name: slow(x) for name in peers}, target=peers)
    status, printed, content = bench(case)
    assert status == 0
    first, second = content["rows"]
    assert first["peer"] == "sleeper" and first["met"] is True and second["met"] is False
    assert first["theirs"]["least"] >= 2e-3 and first["ratio"] > 2 and first["ours"]["readings"] == 3
    assert first["bound"] == pytest.approx(8e-6) and content["copy_rate"] == 1e9
    assert content["environment"]["threads"] == torch.get_num_threads()
    assert content["environment"]["torch"] == torch.__version__
    assert ">= 2 yes" in printed and ">= 1e+09 NO" in printed and "8 us" in printed
    page = (tmp_path / "out" / "ops.md").read_text()
    assert page.startswith("# Operations") and page.count("| add |") == 2


def test_the_table_fits_a_terminal():
    time = timing.Timing(0.123456, 0.2, 0.05, 5, 1)
    long = "disagrees: AssertionError: " + "many words " * 20
    about = {"op": "box_iou_bev_aligned backward", "shape": "270000 points, 0.075 m, 160000 voxels", "device": "cuda"}
    rows = [
        table.Row(**about, peer="multi-head attention", ours=time, theirs=time, graph=time, target=1.5, bound=1e-3),
        table.Row(**about, peer="spconv", note="not installed (spconv)", target=4.0, bound=1e-3),
        table.Row(**about, peer="grid_sample", note=long.strip(), wrong=True),
    ]
    lines = table.text(rows).splitlines()
    assert max(map(len, lines)) <= 120 and sum(about["shape"] in line for line in lines) == 1
    assert "1x" in lines[2] and ">= 1.5 NO" in lines[2] and "123 ms +5% (123 ms +5% graph)" in lines[2]
    assert ">= 4" in lines[3] and lines[3].endswith("not installed (spconv)")
    assert " ".join(" ".join(lines[5:]).split()) == long.strip()


def test_order_of_readings():
    def order(seconds):
        calls = []
        pair = [lambda: calls.append("a") or time.sleep(seconds), lambda: calls.append("b") or time.sleep(seconds)]
        timings = timing.race(pair, "cpu", 4, 10)
        return calls[2:], timings[0].calls

    assert order(0.03) == (["a", "b"] * 4, 1)
    calls, count = order(2e-3)
    turns = [(name, len(list(turn))) for name, turn in itertools.groupby(calls)]
    assert [name for name, _ in turns] == ["a", "b"] * 4
    assert 1 < count == turns[0][1] - 1, "one call before those that are read"


def test_a_peer_that_disagrees_fails_the_run_untimed(bench):
    status, printed, content = bench(make(lambda x: {"wrong": wrong(x), "right": slow(x)}))
    assert status == 1
    bad, good = content["rows"]
    assert bad["note"].startswith("disagrees: AssertionError") and bad["theirs"] is None and bad["ratio"] is None
    assert good["ratio"] > 1 and "disagrees" in printed


def test_a_peer_that_is_not_there_is_said(bench):
    status, printed, content = bench(make(lambda x: {"spconv": missing, "right": slow(x)}))
    assert status == 0 and content["rows"][0]["note"] == "not installed (spconv)"
    assert "not installed (spconv)" in printed and content["rows"][1]["ratio"] > 1


def test_errors_are_rows_and_the_others_are_timed(bench):
    def broken():
        raise RuntimeError("out of memory")

    good = make(lambda x: {"right": slow(x)}, op="multiply")
    status, _, content = bench(make(lambda x: {"right": slow(x)}, ours=broken), good, make(lambda x: {"b": broken}))
    assert status == 1
    first, second, alone, third = content["rows"]
    assert first["note"] == "ours failed: RuntimeError: out of memory" and second["ratio"] > 1
    assert third["note"] == "failed: RuntimeError: out of memory"
    assert alone["peer"] == "" and alone["ours"]["least"] > 0 and alone["ratio"] is None


def test_ops_are_chosen_by_name_and_a_case_may_have_no_peer(bench):
    several = [make(lambda x: {}), make(lambda x: {"right": slow(x)}, op="multiply backward")]
    _, _, content = bench(*several, arguments=["--ops", "multiply"])
    assert [row["op"] for row in content["rows"]] == ["multiply backward"]
    _, _, content = bench(*several)
    assert content["rows"][0]["peer"] == "" and content["rows"][0]["ours"]["least"] > 0
    with pytest.raises(Fusion3DError, match="no such operation; there are add, multiply backward"):
        bench(*several, arguments=["--ops", "divide"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_not_run(bench):
    case = make(lambda x: {"right": missing}, target={"right": 60.0})
    status, _, content = bench(case, arguments=["--device", "cuda"])
    assert content["rows"][0]["target"] is None  # a case made on the CPU knows what is wanted there
    assert status == 0 and content["rows"][0]["note"] == "not run: torch sees no CUDA device"
    assert content["rows"][0]["device"] == "cuda" and content["copy_rate"] == 0


def test_every_family_has_cases_and_is_listed():
    names = [module.name for module in pkgutil.iter_modules(benchmark_ops.__path__, f"{benchmark_ops.__name__}.")]
    there = {name.split(".")[-1] for name in names if hasattr(importlib.import_module(name), "cases")} - {"run"}
    assert there == set(run.FAMILIES)
    for case in run.cases("cpu", quick=True):
        assert case.op and case.shape and case.num_bytes > 0 and set(case.target) <= set(case.peers), case.op


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_the_peer_of_atomic_additions_adds_right(tmp_path, monkeypatch):
    """Its CUDA source, on the emulator: the grid is that of its launch, and the results are those of index_add."""
    launches = "".join(
        f'extern "C" void launch_{name}(int blocks, {types}) {{ {name}<<<blocks, {atomics.THREADS}>>>({names}); }}\n'
        for name, types, names in (
            ("pool", "P a, P b, I c, I d, I e, int f, int g, F h", "a, b, c, d, e, f, g, h"),
            ("pool_backward", "P a, P b, P c, I d, I e, I f, int g, int h, F i, F j", "a, b, c, d, e, f, g, h, i, j"),
        )
    )
    add = "inline float atomicAdd(float* at, float value) { const float old = *at; *at += value; return old; }\n"
    types = "typedef const float* P;\ntypedef const int* I;\ntypedef float* F;\n"
    emulator = Path(__file__).parents[2] / "csrc/emulator"
    translate = runpy.run_path(str(emulator / "translate.py"))["translate"]
    source = types + add + atomics.SOURCE + launches
    (tmp_path / "peer.cpp").write_text('#include "cuda_runtime.h"\n' + translate(source, "peer.cu"))
    files = [str(path) for path in (tmp_path / "peer.cpp", emulator / "emulator.cpp", emulator / "fiber.cpp")]
    command = ["g++", "-std=c++17", "-shared", "-fPIC", "-Wno-unknown-pragmas", f"-I{emulator}", *files]
    subprocess.run([*command, "-o", str(tmp_path / "peer.so")], check=True)
    library = ctypes.CDLL(str(tmp_path / "peer.so"))

    def compiled(name):
        def launch(grid, block, args):
            assert block == (atomics.THREADS, 1, 1) and grid[1:] == (1, 1)
            pointers = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor) else a for a in args]
            getattr(library, f"launch_{name}")(grid[0], *pointers)

        return launch

    monkeypatch.setattr(atomics, "_kernel", compiled)
    cell = torch.randint(-1, 20, (2, 5, 3, 4), generator=torch.Generator().manual_seed(0))
    depth, feat = torch.rand(cell.shape).requires_grad_(), torch.randn(2, 3, 4, 7).requires_grad_()
    lists, grad = pooling.Lists(cell, 20), torch.randn(20, 7)
    want = lists.index_add(depth, feat)
    plain = depth.detach(), feat.detach()
    torch.testing.assert_close(atomics.pool(*plain, lists.short, 20), want)
    found = atomics.pool_backward(grad, *plain, lists.short)
    for a, b in zip(found, torch.autograd.grad(want, (depth, feat), grad), strict=True):
        torch.testing.assert_close(a, b)


def test_limits_are_times_at_most_and_floors_are_for_their_device(bench):
    fast = make(lambda x: {"right": slow(x)}, target={"right": 1.0})
    rows = bench(
        dataclasses.replace(fast, limit=10.0),
        dataclasses.replace(fast, limit=1e-12),
        dataclasses.replace(fast, limit_of_bound=1e9),
    )[2]["rows"]
    assert [row["met"] for row in rows] == [True, False, True]
    assert [row["limit"] for row in rows] == [10.0, 1e-12, pytest.approx(8e3)]
    about = {"op": "nms_bev", "shape": "4096 boxes", "device": "cuda", "peer": "torch"}
    device, host = timing.Timing(2e-5, 2e-5, 0, 5, 1), timing.Timing(5e-5, 5e-5, 0, 5, 1)
    row = table.Row(**about, ours=host, theirs=host, graph=device, limit=25e-6)
    assert "<= 25 us yes" in row.cells() and row.met
    assert "<= 25 us NO" in dataclasses.replace(row, graph=None).cells()
    both = dataclasses.replace(row, target=10.0)
    assert ">= 10, <= 25 us NO" in both.cells() and both.met is False


def test_copy_rate_is_plausible():
    assert 1e8 < timing.copy_rate("cpu", 1 << 22) < 1e13


def test_cloud_of_a_data_set(synthetic_root, monkeypatch):
    synthetic = inputs.lidar_sweeps(30_000)
    try:
        inputs.use_data(synthetic_root)
        few, many = inputs.lidar_sweeps(3_000), inputs.lidar_sweeps(400_000)
        assert inputs.described() == f"LiDAR of {synthetic_root.name}"
    finally:
        inputs.use_data(None)
    assert few.shape == (3_000, 5) and many.shape == (400_000, 5) and many.dtype == np.float32
    assert np.isfinite(many).all() and np.array_equal(few, many[:3_000])
    assert len(np.unique(many[:, 4])) > 8 and np.median(np.linalg.norm(many[:, :2], axis=1)) > 2
    assert len(np.unique(many[:, :3], axis=0)) > 390_000  # repeated turns are no copies
    assert np.array_equal(inputs.lidar_sweeps(30_000), synthetic) and inputs.described() == "synthetic LiDAR"


def test_a_root_without_tables_is_named(tmp_path):
    try:
        inputs.use_data(tmp_path)
        with pytest.raises(DataError, match=r"no folder with tables \(sample_data.json\)"):
            inputs.lidar_sweeps()
    finally:
        inputs.use_data(None)


def test_cloud_of_the_real_scene(real_root):
    try:
        inputs.use_data(real_root)
        cloud = inputs.lidar_sweeps()
    finally:
        inputs.use_data(None)
    assert cloud.shape == (270_000, 5) and np.isfinite(cloud).all()
