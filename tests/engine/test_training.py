from __future__ import annotations

import copy
import dataclasses
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fusion3d.engine.averaging import Average
from fusion3d.engine.checkpoint import list_checkpoints
from fusion3d.engine.distributed import Processes
from fusion3d.engine.log import Clock, RunLog, read_log
from fusion3d.engine.seed import derive_seed, seed_all
from fusion3d.engine.train import Trainer, build_optimizer, one_cycle
from fusion3d.errors import CheckpointError, TrainingError

sys.path.insert(0, str(Path(__file__).parent))
from tiny import TinyData, TinyModel, tiny_config, with_train


def make_trainer(config, folder, model=None, data=None) -> Trainer:
    seed_all(config.seed)
    return Trainer(config, model or TinyModel(), data or TinyData(), folder, Processes())


def run(trainer: Trainer) -> Path:
    with RunLog(trainer.run_dir, trainer.position.step) as log:
        return trainer.run(log)


@pytest.mark.parametrize("warmup", [0.3, 0.1, 0.0])
def test_one_cycle_is_torchs(warmup):
    total, peak = 40, 0.5
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1)
    if warmup == 0:  # torch cannot do without a rise; the fall alone is a cosine
        expected = [one_cycle(0, 0), one_cycle(1, 0)]
        assert expected == pytest.approx([1, 4e-6])
        return
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peak, total_steps=total, pct_start=(warmup * (total - 1) + 1) / total, cycle_momentum=False
    )
    for step in range(total):
        ours = peak * one_cycle(step / (total - 1), warmup)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), step
        if step < total - 1:
            optimizer.step()
            theirs.step()


def test_weight_decay_spares_norms_and_biases():
    config = tiny_config(weight_decay=0.1).train
    model = TinyModel()
    decay = {id(p): g["weight_decay"] for g in build_optimizer(model, config).param_groups for p in g["params"]}
    assert len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.1 if name in ("lidar.0.weight", "radar.weight", "out.1.weight") else 0)


def test_average_against_a_written_out_sum():
    module = nn.BatchNorm1d(1)
    average = Average(module, decay=0.9)
    expected = 1.0
    for step, value in enumerate([5.0, -2.0, 8.0], start=1):
        with torch.no_grad():
            module.weight.fill_(value)
            module.running_mean.fill_(10 * value)
            module.num_batches_tracked.fill_(step)
        average.update(module, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert float(average.tensors["weight"]) == pytest.approx(expected)
    assert float(average.tensors["running_mean"]) != 0, "buffers are averaged too"
    assert int(average.tensors["num_batches_tracked"]) == 3, "a counter is copied"


def test_accumulated_batches_are_one_big_batch(tmp_path):
    seed_all(0)
    model = TinyModel(norm=False, dropout=0)
    quiet = {"drop_sensor": 0.0, "drop_radar": 0.0, "epochs": 2}
    data = TinyData(size=8)
    small = make_trainer(tiny_config(batch_size=2, accumulate=4, **quiet), tmp_path / "a", copy.deepcopy(model), data)
    big = make_trainer(tiny_config(batch_size=8, accumulate=1, **quiet), tmp_path / "b", copy.deepcopy(model), data)
    assert small.total_steps == big.total_steps == 2
    run(small), run(big)
    for (name, a), b in zip(small.model.named_parameters(), big.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)
        assert not torch.equal(a, dict(model.named_parameters())[name]) or "lidar.0" in name


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_stopped_run_ends_as_one_that_was_not(tmp_path, accumulate):
    config = tiny_config(accumulate=accumulate, checkpoint_every=1)
    whole = make_trainer(config, tmp_path / "whole")
    last = run(whole)
    assert 2 <= whole.total_steps <= 12
    seen = read_log(tmp_path / "whole" / "log.jsonl")

    stopped = make_trainer(config, tmp_path / "stopped")

    def stop(*_):
        raise KeyboardInterrupt

    stopped.report_step = stopped.report
    stopped.report = lambda log, clock, *rest: (  # type: ignore[method-assign]
        stop() if stopped.position.step == 2 else stopped.report_step(log, clock, *rest)
    )
    with pytest.raises(KeyboardInterrupt):
        run(stopped)
    resumed = make_trainer(config, tmp_path / "stopped")
    resumed.resume(list_checkpoints(tmp_path / "stopped")[-1])
    assert resumed.position.step == 1
    again = run(resumed)
    for name in ("model.safetensors", "ema.safetensors"):
        first, second = load_file(last / name), load_file(again / name)
        assert all(torch.equal(first[key], second[key]) for key in first), name
    assert [line["loss"] for line in read_log(tmp_path / "stopped" / "log.jsonl")] == [line["loss"] for line in seen]


def test_training_learns(tmp_path):
    trainer = make_trainer(tiny_config(epochs=30, learning_rate=0.03, checkpoint_every=1000), tmp_path)
    run(trainer)
    losses = [line["loss"] for line in read_log(tmp_path / "log.jsonl")]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_a_loss_that_is_not_finite_names_the_samples_and_changes_nothing(tmp_path):
    config = tiny_config(epochs=1, checkpoint_every=1, drop_sensor=0.0)
    trainer = make_trainer(config, tmp_path, data=TinyData(broken=3))
    with pytest.raises(TrainingError, match=r"plan = nan.*sample-3"):
        run(trainer)
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    for checkpoint in list_checkpoints(tmp_path):
        assert all(t.isfinite().all() for t in load_file(checkpoint / "model.safetensors").values())


def test_an_infinite_gradient_stops_before_the_step(tmp_path):
    model = TinyModel(dropout=0)
    model.out[1].weight.register_hook(lambda grad: grad * torch.inf)
    trainer = make_trainer(tiny_config(), tmp_path, model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TrainingError, match="gradient is not finite"):
        run(trainer)
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_resuming_another_configuration_names_the_settings(tmp_path):
    config = tiny_config()
    folder = run(make_trainer(config, tmp_path))
    other = make_trainer(with_train(config, learning_rate=0.5), tmp_path)
    with pytest.raises(CheckpointError, match=r"train.learning_rate: 0.01 in the checkpoint, 0.5 here"):
        other.resume(folder)
    moved = dataclasses.replace(config, data=dataclasses.replace(config.data, root="/elsewhere"))
    make_trainer(moved, tmp_path).resume(folder)


def test_bfloat16_runs_and_differs(tmp_path):
    losses = []
    for precision in ("float32", "bfloat16"):
        trainer = make_trainer(tiny_config(epochs=1, precision=precision), tmp_path / precision)
        run(trainer)
        losses.append([line["loss"] for line in read_log(tmp_path / precision / "log.jsonl")])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.2)


def test_seeds_differ_by_every_part():
    seeds = {derive_seed(a, b, c) for a in range(3) for b in range(3) for c in range(3)}
    assert len(seeds) == 27
    assert derive_seed(1, 2) == derive_seed(1, 2)


def test_a_log_cut_short_is_read_and_continued(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n{"step": 3, "lo')
    with RunLog(tmp_path, step=1) as log:
        log.write(2, {"loss": 1.4})
    assert read_log(tmp_path / "log.jsonl") == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.4}]
    assert list((tmp_path / "tensorboard").iterdir())


def test_time_left():
    clock = Clock(done=10, total=100)
    clock.start -= 20  # 20 s for the steps 10 to 20: 160 s for the other 80
    assert clock.left(20) == "2m40s"


WORKER = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, {tests!r})
from tiny import TinyData, TinyModel, tiny_config
from fusion3d.engine.distributed import processes
from fusion3d.engine.log import RunLog
from fusion3d.engine.seed import seed_all
from fusion3d.engine.train import Trainer
torch.set_num_threads(1)
with processes("cpu") as where:
    seed_all(where.rank)  # DDP itself must make the weights equal
    config = tiny_config(epochs=2, accumulate=2, drop_sensor=0.5)
    trainer = Trainer(config, TinyModel(), TinyData(9), Path({out!r}), where)
    with RunLog(Path({out!r}), active=where.first) as log:
        trainer.run(log)
    torch.save(dict(trainer.model.named_parameters()), {out!r} + f"/rank{{where.rank}}.pt")
"""


def test_two_processes_end_with_the_same_weights(tmp_path):
    """Branches are skipped at random on each rank, gradients accumulate over two batches: DDP must keep them equal."""
    script = tmp_path / "worker.py"
    script.write_text(textwrap.dedent(WORKER).format(tests=str(Path(__file__).parent), out=str(tmp_path)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = str(Path(__file__).parents[2])
    common = os.environ | {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": root,
    }
    workers = [
        subprocess.Popen(
            [sys.executable, str(script)],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        told = [worker.communicate(timeout=120)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], told
    assert "step 4/4" in told[0] and "step" not in told[1]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    seed_all(0)
    start = dict(TinyModel().named_parameters())
    for name in first:
        assert torch.equal(first[name], second[name]), name
        assert not torch.equal(first[name], start[name]), f"{name} did not train"
