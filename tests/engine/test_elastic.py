"""A worker that is killed under torchrun is started again, and training goes on from the last checkpoint."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fusion3d.engine.checkpoint import list_checkpoints
from fusion3d.engine.log import read_log

sys.path.insert(0, str(Path(__file__).parent))
from small import job

ROOT = Path(__file__).parents[2]
TRAIN = {"batch_size": 1, "checkpoint_every": 3, "sync_batchnorm": True}


def torchrun(out: Path, told: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", "1", *job(out, TRAIN)[1:]]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    with open(told, "wb") as file:
        return subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT)


def workers_of(agent: int) -> list[int]:
    """The processes that torchrun started, by rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(folder.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            environment = dict(e.split("=", 1) for e in folder.joinpath("environ").read_text().split("\0") if "=" in e)
        except (OSError, UnicodeDecodeError):
            continue
        if parent == agent and "RANK" in environment:
            found[int(environment["RANK"])] = int(folder.name)
    return [found[rank] for rank in sorted(found)]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_is_restarted_and_training_goes_on(tmp_path, victim):
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert torchrun(whole, tmp_path / "whole.txt").wait(timeout=300) == 0, (tmp_path / "whole.txt").read_text()

    agent = torchrun(run, tmp_path / "run.txt")
    try:
        patience = time.monotonic() + 200
        while len(read_log(run / "log.jsonl")) < 8:
            assert agent.poll() is None and time.monotonic() < patience, (tmp_path / "run.txt").read_text()
            time.sleep(0.01)
        before = workers_of(agent.pid)
        half = run / "checkpoints" / ".step-00000099.0123"  # as a kill in the middle of saving leaves it
        half.mkdir()
        half.joinpath("model.safetensors").write_bytes(b"half")
        os.kill(before[victim], signal.SIGKILL)
        assert agent.wait(timeout=300) == 0, (tmp_path / "run.txt").read_text()
    finally:
        agent.kill()
    told = (tmp_path / "run.txt").read_text()
    steps = [int(line.split()[1].split("/")[0]) for line in told.splitlines() if line.startswith("step ")]
    again = steps.index(next(b for a, b in itertools.pairwise(steps) if b <= a), 1)
    assert steps[again] in (7, 10, 13, 16, 19), "it did not go on right after a checkpoint"
    assert len(read_log(run / "log.jsonl")) == 20 and steps[-1] == 20
    assert not half.exists(), "what was half-written is cleaned up"
    assert [path.name for path in list_checkpoints(run)] == ["step-00000018", "step-00000020"]
    for name in ("model.safetensors", "ema.safetensors"):
        expected, found = (load_file(list_checkpoints(path)[-1] / name) for path in (whole, run))
        assert all(torch.equal(expected[key], found[key]) for key in expected), name
    losses = [[line["loss"] for line in read_log(path / "log.jsonl")] for path in (whole, run)]
    assert losses[0] == losses[1], json.dumps(losses)
