"""Two processes do what one does with both their batches. Samples lack sensors, and each process has one at a time."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fusion3d.config import TrainConfig
from fusion3d.counts import counting, divisor
from fusion3d.data.collate import collate
from fusion3d.data.subset import drop_sensors
from fusion3d.engine.checkpoint import list_checkpoints, load_model
from fusion3d.engine.distributed import Processes
from fusion3d.engine.inference import SplitOutput, SubsetOutput
from fusion3d.engine.log import read_log
from fusion3d.engine.parallel import used_parameters
from fusion3d.engine.share import Share, join_outputs, stretches
from fusion3d.types import Boxes

sys.path.insert(0, str(Path(__file__).parent))
from ranks import check_all, train_with_own_counts
from small import RandomData, small_config, train_small
from tiny import fork_ranks

# Shifting all keys of an attention alike changes no answer: the true gradient is 0, and AdamW makes steps of rounding.
SHIFTS = ("norm_keys.bias", "attention.in_proj_bias")


def train_ranks(out: Path, train: dict, **more) -> None:
    ranks = fork_ranks(train_small, out, small_config({"sync_batchnorm": True, "batch_size": 1} | train, **more))
    assert [status for status, _ in ranks] == [0, 0], ranks[0][1] + ranks[1][1]


def same_run(one: Path, two: Path, tolerance: float) -> None:
    """Losses of every step, last weights and last averages."""
    logs = [read_log(run / "log.jsonl") for run in (one, two)]
    assert len(logs[0]) == len(logs[1]) == 20
    for a, b in zip(*logs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=tolerance)
        names = {name for name in {**a, **b} if name.startswith("loss/")}
        terms = [{name: line.get(name, 0.0) for name in names} for line in (a, b)]
        assert terms[0] == pytest.approx(terms[1], rel=10 * tolerance, abs=10 * tolerance)
    for name in ("model.safetensors", "ema.safetensors"):
        a, b = (load_file(list_checkpoints(run)[-1] / name) for run in (one, two))
        assert a.keys() == b.keys()
        for key in a:
            if not key.endswith(SHIFTS):
                torch.testing.assert_close(a[key], b[key], rtol=tolerance, atol=tolerance, msg=f"{name}: {key}")


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """20 steps of one process, two samples in each."""
    run = tmp_path_factory.mktemp("alone")
    train_small(run, small_config())
    return run


def test_layers_and_counts_of_two_processes():
    ranks = fork_ranks(check_all)
    assert [status for status, _ in ranks] == [0, 0], ranks[0][1] + ranks[1][1]


def test_two_processes_are_one_with_the_joint_batch(alone, tmp_path):
    train_ranks(tmp_path, {})
    same_run(alone, tmp_path, 1e-5)


@pytest.mark.slow
def test_without_joint_counts_they_are_not(alone, tmp_path):
    """The test above can fail: the mean of each process's means is another loss."""
    config = small_config({"sync_batchnorm": True, "batch_size": 1})
    assert [status for status, _ in fork_ranks(train_with_own_counts, tmp_path, config)] == [0, 0]
    with pytest.raises(AssertionError):
        same_run(alone, tmp_path, 1e-3)


@pytest.mark.slow
def test_in_parts_they_are_one_too_and_go_on_after_a_stop(alone, tmp_path):
    train_ranks(tmp_path / "parts", {"shard": True, "checkpoint_every": 19, "checkpoint_activations": True})
    same_run(alone, tmp_path / "parts", 1e-5)
    last = list_checkpoints(tmp_path / "parts")[-1]
    model, _ = load_model(last)
    assert all(type(p.data) is torch.Tensor for p in model.parameters())
    states = [
        torch.load(list_checkpoints(run)[-1] / "optimizer.pt", weights_only=True) for run in (alone, last.parents[1])
    ]
    shapes = [{k: v["exp_avg"].shape for k, v in s["optimizer"]["state"].items()} for s in states]
    assert shapes[0] == shapes[1], "a checkpoint does not say how it was trained"
    shutil.copytree(tmp_path / "parts", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / last.name)
    train_ranks(tmp_path / "again", {"shard": True, "checkpoint_every": 19, "checkpoint_activations": True})
    for name in ("model.safetensors", "ema.safetensors"):
        a, b = (load_file(tmp_path / run / "checkpoints" / last.name / name) for run in ("parts", "again"))
        assert all(torch.equal(a[key], b[key]) for key in a), name


_SPARSE = {"encoder": "voxels", "voxels": {"side": 0.1, "channels": [4, 4, 8, 8]}}
_WINDOWS = {"encoder": "windows", "windows": {"pillar": 0.4, "channels": 8, "heads": 2, "blocks": 1}}
_DENSE = {"channels": 8, "dense": {"channels": [8], "blocks": [1]}}


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        {"fusion": {"channels": 8, "stage": "hybrid", "representation": "coordinated"}, "planning": None},
        {
            "detection": {"channels": 8, "head": "query", "query": {"count": 5}},
            "map": {"channels": 8},
            "lidar": _SPARSE | _DENSE,
        },
        {
            "detection": {"channels": 8, "tasks": "six"},
            "temporal": {"operator": "recurrent"},
            "lidar": _WINDOWS | _DENSE,
        },
        {"temporal": {"operator": "concat"}},  # half of the samples have no past: a process goes through it for nothing
        {"temporal": {"operator": "concat"}, "fusion": {"channels": 8, "stage": "early", "paint": "scores"}},
        {
            "planning": {
                "head": "anchors",
                "anchors": {"count": 4},
                "channels": 8,
                "command_dropout": 0.0,
                "ego_status": "predicted",
            },
            "occupancy": {"channels": 8},
        },
    ],
    ids=["hybrid", "query", "six", "keyframes", "early", "anchors"],
)
def test_other_parts_are_one_too_until_rounding_opens_a_relu_or_matches_other_boxes(tmp_path, more):
    train_small(tmp_path / "alone", small_config(**more))
    train_ranks(tmp_path / "two", {}, **more)
    alone, two = (read_log(tmp_path / run / "log.jsonl")[:4] for run in ("alone", "two"))
    assert [line["loss"] for line in alone] == pytest.approx([line["loss"] for line in two], rel=1e-5)


def test_divisors():
    assert divisor("boxes", torch.tensor([0, 3])).tolist() == [1, 3]
    with counting(lambda name, count: count + len(name)):
        assert divisor("boxes", torch.tensor(0)) == 5
    assert divisor("boxes", torch.tensor(0)) == 1


def test_parameters_that_losses_depend_on():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "c": nn.Linear(2, 2, bias=False)})
    x = model["a"](torch.ones(1, 2))
    losses = {"one": model["c"](x).sum(), "zero": torch.zeros(()), "again": x.sum()}
    assert used_parameters(model, losses) == {"a.weight", "a.bias", "c.weight"}


def test_what_a_sample_loses_does_not_depend_on_the_number_of_processes():
    data = RandomData(small_config())
    samples, config = [data[0, i] for i in range(8)], TrainConfig(drop_sensor=0.6, drop_camera=0.4, drop_radar=0.4)

    def lost(batch, rank, world):
        left = drop_sensors(batch, config, torch.Generator().manual_seed(3), rank, world)
        cameras = [[] for _ in left.tokens]
        for sample, channel in zip(left.cameras.batch_index.tolist(), left.cameras.channels, strict=True):
            cameras[sample].append(channel)
        points = [int((left.radar.batch_index == i).sum()) for i in range(len(left))]
        present = torch.stack(list(left.present.values()), 1).tolist()
        return dict(zip(left.tokens, zip(cameras, points, present, strict=True), strict=True))

    together = lost(collate(samples), 0, 1)
    shares = [lost(collate(samples[rank::2]), rank, 2) for rank in range(2)]
    assert shares[0] | shares[1] == together
    assert any(not all(present) for _, _, present in together.values())


class Names:
    """A data set whose samples are their names."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, key: tuple[int, int]) -> str:
        return self.names[key[1]]


@pytest.mark.parametrize("size", [0, 1, 5, 12, 13])
def test_shares_are_whole_batches_and_join_in_order(size):
    samples = [f"sample-{i}" for i in range(size)]
    batches = [samples[i : i + 3] for i in range(0, size, 3)]
    parts = []
    for rank in range(2):
        share = Share(Names(samples), stretches(Names(samples), 3, False), Processes(rank, 2))
        mine = [share[0, i] for i in range(len(share))]
        assert [mine[i : i + 3] for i in range(0, len(mine), 3)] == batches[rank::2]
        boxes = {name: Boxes.of(*torch.zeros(3, 1, 3)[:2], yaw=torch.zeros(1)) for name in mine}
        of_subset = SubsetOutput(("lidar",), {f"rank{rank}"}, boxes, seconds=rank)
        parts.append(SplitOutput({"lidar": of_subset}, dict.fromkeys(mine), reading_seconds=5 - rank))
    joined = join_outputs(parts, samples)
    assert list(joined.poses) == list(joined.subsets["lidar"].boxes) == samples
    assert joined.subsets["lidar"].used == {"rank0", "rank1"}
    assert (joined.subsets["lidar"].seconds, joined.reading_seconds) == (1, 5)
