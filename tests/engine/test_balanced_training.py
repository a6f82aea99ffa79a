"""Training in a class-balanced order: resumed exactly, and the same on two processes as on one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from fusion3d.engine.checkpoint import list_checkpoints
from fusion3d.engine.distributed import Processes
from fusion3d.engine.log import RunLog, read_log
from fusion3d.engine.seed import seed_all
from fusion3d.engine.train import Trainer
from fusion3d.errors import TrainingError

sys.path.insert(0, str(Path(__file__).parent))
from tiny import BalancedData, TinyModel, fork_ranks, tiny_config, train_tiny


def make_trainer(folder: Path, data=None, **settings) -> Trainer:
    seed_all(0)
    config = tiny_config(order="class_balanced", **settings)
    return Trainer(config, TinyModel(), data or BalancedData(10), folder, Processes())


def run(trainer: Trainer) -> None:
    with RunLog(trainer.run_dir, trainer.position.step) as log:
        trainer.run(log)


def test_an_epoch_is_as_long_as_the_classes_are_many_and_is_resumed_exactly(tmp_path):
    whole = make_trainer(tmp_path, epochs=2, checkpoint_every=6)
    assert whole.batches_per_epoch == 9, "10 + 5 + 2 draws in batches of two"
    run(whole)
    middle = list_checkpoints(tmp_path)[-2]
    assert middle.name == "step-00000012", "within the second epoch"
    again = make_trainer(tmp_path / "again", epochs=2, checkpoint_every=6)
    again.resume(middle)
    run(again)
    for (name, one), two in zip(whole.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


def test_two_processes_are_one_with_the_union_of_their_batches(tmp_path):
    quiet = {"epochs": 2, "drop_sensor": 0.0, "drop_camera": 0.0, "drop_radar": 0.0, "clip_norm": 1e9}
    quiet |= {"order": "class_balanced"}
    what = 0, {"norm": False, "dropout": 0}, 12, BalancedData
    ranks = fork_ranks(train_tiny, tmp_path / "two", *what, quiet | {"batch_size": 3})
    assert [status for status, _ in ranks] == [0, 0], ranks
    train_tiny(tmp_path / "one", *what, quiet | {"batch_size": 6})
    two, one = (read_log(tmp_path / name / "log.jsonl") for name in ("two", "one"))
    assert len(one) == len(two) == 2 * -(-21 // 6)
    assert [line["grad_norm"] for line in two[:3]] == pytest.approx([line["grad_norm"] for line in one[:3]], rel=1e-4)
    first, second = (torch.load(tmp_path / "two" / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_nothing_to_balance(tmp_path):
    class Empty(BalancedData):
        def classes(self):
            return super().classes() & False

    with pytest.raises(TrainingError, match=r"train\.order is class_balanced, and 'train' has no box"):
        make_trainer(tmp_path, Empty(4))
