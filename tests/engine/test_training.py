from __future__ import annotations

import copy
import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fusion3d.build import build_model
from fusion3d.config import EvaluationConfig
from fusion3d.data.collate import collate
from fusion3d.engine.averaging import Average
from fusion3d.engine.checkpoint import list_checkpoints
from fusion3d.engine.distributed import Processes, processes
from fusion3d.engine.inference import run_split
from fusion3d.engine.log import Clock, RunLog, read_log
from fusion3d.engine.seed import derive_seed, seed_all
from fusion3d.engine.split import check_training
from fusion3d.engine.train import LOCK, Trainer, train
from fusion3d.errors import CheckpointError, ConfigError, Fusion3DError, TrainingError
from fusion3d.files import held
from fusion3d.types import Predictions

sys.path.insert(0, str(Path(__file__).parent))
from small import RandomData, small_config
from tiny import TinyData, TinyModel, fork_ranks, tiny_config, train_tiny, with_train


def make_trainer(config, folder, model=None, data=None) -> Trainer:
    seed_all(config.seed)
    return Trainer(config, model or TinyModel(), data or TinyData(), folder, Processes())


def run(trainer: Trainer) -> Path:
    with RunLog(trainer.run_dir, trainer.position.step) as log:
        return trainer.run(log)


def test_average_against_a_written_out_sum():
    module = nn.BatchNorm1d(1)
    average = Average(module, decay=0.9)
    expected, expected_mean = 1.0, 0.0
    for step, value in enumerate([5.0, -2.0, 8.0], start=1):
        with torch.no_grad():
            module.weight.fill_(value)
            module.running_mean.fill_(10 * value)
            module.num_batches_tracked.fill_(step)
        average.update(module, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        expected_mean = decay * expected_mean + (1 - decay) * 10 * value
    assert float(average.tensors["weight"]) == pytest.approx(expected)
    assert float(average.tensors["running_mean"]) == pytest.approx(expected_mean)
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
        assert not torch.equal(a, dict(model.named_parameters())[name]), f"{name} did not train"


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
    data = dataclasses.replace(config.data, root="/elsewhere", split="test")
    assert config.detection is not None
    decoding = dataclasses.replace(config.detection, nms="rotated", score_threshold=0.3, max_boxes=7)
    later = {"detection": decoding, "evaluation": EvaluationConfig("flip", stream=True)}
    fusion = dataclasses.replace(config.fusion, merge="voting")
    make_trainer(dataclasses.replace(config, data=data, fusion=fusion, **later), tmp_path).resume(folder)


def test_resuming_with_other_data_or_processes_is_refused(tmp_path):
    folder = run(make_trainer(tiny_config(), tmp_path))
    with pytest.raises(CheckpointError, match=r"trained on 7 samples by 1 processes, here are 8 samples and 1 proc"):
        make_trainer(tiny_config(), tmp_path, data=TinyData(8)).resume(folder)
    one = make_trainer(tiny_config(), tmp_path)
    one.position = dataclasses.replace(one.position, world=2)  # what a run of two processes starts from
    with pytest.raises(CheckpointError, match=r"by 1 processes, here are 7 samples and 2 processes"):
        one.resume(folder)


def test_a_branch_that_would_learn_nothing_is_an_error(tmp_path):
    sensors = {"image_size": [64, 64], "workers": 0, "sensors": ["camera", "lidar"]}
    with pytest.raises(
        ConfigError, match=r"radar is not null, and data\.sensors \(camera, lidar\) leaves it out"
    ) as said:
        train(small_config(data=sensors), tmp_path, device="cpu")
    assert "\n" not in str(said.value) and not list(tmp_path.iterdir())
    check_training(small_config(data=sensors, radar=None))
    check_training(small_config({"start": ["elsewhere"]}, data=sensors))  # where it has learned already


@pytest.mark.parametrize(
    ("train", "augment", "keys"),
    [
        ({"subsets": 7, "drop_sensor": 0.0}, {}, r"train\.subsets is 7, and train\.drop_sensor 0"),
        ({"fresh": ["fuse"]}, {}, r"train\.fresh .*train\.start"),
        ({"drops": [0.2], "warmup": 0.3}, {}, r"train\.drops: 0\.2 .*train\.warmup"),
        ({}, {"fade_epochs": 2}, r"augment\.fade_epochs is 2, and augment\.paste null"),
        ({}, {"fade_epochs": 2, "fade": []}, r"augment\.fade_epochs is 2, and augment\.fade names nothing"),
    ],
)
def test_a_setting_without_effect_is_an_error(train, augment, keys):
    with pytest.raises(ConfigError, match=keys) as said:
        check_training(small_config(train, augment=augment))
    assert "\n" not in str(said.value)
    check_training(small_config(augment={"fade_epochs": 2, "fade": ["bev"]}))


def test_other_data_of_the_same_size_is_not_gone_on_with(tmp_path):
    folder = run(make_trainer(tiny_config(), tmp_path))
    other = make_trainer(tiny_config(), tmp_path)
    other.position = dataclasses.replace(other.position, data="0123456789abcdef")
    with pytest.raises(CheckpointError, match=r"trained on other data than .* holds"):
        other.resume(folder)
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({key: of for key, of in state.items() if key != "data"}))
    other.resume(folder)  # an older version did not note it
    assert other.position.step == state["step"] and other.position.data == "0123456789abcdef"


def test_two_trainings_in_one_folder_are_refused(tmp_path, monkeypatch):
    config = small_config({"epochs": 1}, data={"image_size": [64, 64], "workers": 0})
    monkeypatch.setattr("fusion3d.engine.train.open_split", lambda *_, **__: RandomData(config, 2))
    with held(tmp_path / LOCK), pytest.raises(Fusion3DError, match=f"another process works in {tmp_path}") as said:
        train(config, tmp_path, device="cpu")
    assert "\n" not in str(said.value) and not list_checkpoints(tmp_path)
    train(config, tmp_path, device="cpu")  # it ends with the block


def test_a_worker_that_outlives_a_killed_training_does_not_lock_its_folder(tmp_path):
    """As those of a loader do for some seconds: a training that is started again at once must not be refused."""
    folder = repr(str(tmp_path / LOCK))
    code = f"""
import os, signal, time
from fusion3d.files import held
with held({folder}):
    worker = os.fork()
    if worker == 0:
        time.sleep(60)
        os._exit(0)
    print(worker, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    worker = int(killed.stdout)
    try:
        assert killed.returncode == -signal.SIGKILL
        os.kill(worker, 0)  # it lives
        with held(tmp_path / LOCK):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_every_sample_keeps_a_sensor_that_the_model_has(tmp_path):
    """LiDAR is read, for supervision, but the model has no branch for it: losing the radar would leave nothing."""
    seen_by_model, supervised_by = [], []

    class Watched(TinyModel):
        def forward(self, batch):
            seen_by_model.append(batch)
            return super().forward(batch)

        def losses(self, outputs, batch):
            supervised_by.append(batch)
            return super().losses(outputs, batch)

    config = dataclasses.replace(tiny_config(drop_sensor=0.9), camera=None, lidar=None)
    run(make_trainer(config, tmp_path, Watched()))
    assert all(batch.present["radar"].all() and batch.lidar is None for batch in seen_by_model)
    assert all(batch.present["lidar"].all() for batch in supervised_by)


def test_what_evaluation_keeps_holds_no_file_of_the_loader():
    """A tensor that comes out of a loader's process is shared memory, and each holds a file descriptor."""
    held = []

    class Silent(nn.Module):
        def forward(self, batch):
            held.append(len(os.listdir("/proc/self/fd")))

        def decode(self, outputs, batch):
            return Predictions(batch.tokens)

    output = run_split(Silent(), TinyData(30), {"lidar": ("lidar",)}, 1, 1, torch.device("cpu"))
    assert len(output.poses) == len(held) == 30
    assert max(held[20:]) <= max(held[:10]) + 10, held


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


def test_a_run_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(Fusion3DError, match=r"cannot write .*file/run/log\.jsonl: Not a directory; check free space"):
        RunLog(tmp_path / "file" / "run")
    log = RunLog(tmp_path / "run")
    log._file.close()
    log._file = open("/dev/full", "w", buffering=1)
    with pytest.raises(Fusion3DError, match=r"cannot write .*log\.jsonl: No space left on device; check free space"):
        log.write(1, {"loss": 1.0})


def test_time_left():
    clock = Clock(done=10, total=100)
    clock.start -= 20  # 20 s for the steps 10 to 20: 160 s for the other 80
    assert clock.left(20) == "2m40s"


def test_two_processes_end_with_the_same_weights(tmp_path):
    """Branches are skipped at random on each rank, gradients accumulate over two batches: DDP must keep them equal."""
    settings = {"epochs": 2, "accumulate": 2, "drop_sensor": 0.5}
    ranks = fork_ranks(train_tiny, tmp_path, None, {}, 9, TinyData, settings)  # DDP itself must make weights equal
    (first_status, first_told), (second_status, second_told) = ranks
    assert first_status == second_status == 0, first_told + second_told
    assert "step 4/4" in first_told and "step" not in second_told
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    seed_all(0)
    start = dict(TinyModel().named_parameters())
    for name in first:
        assert torch.equal(first[name], second[name]), name
        assert not torch.equal(first[name], start[name]), f"{name} did not train"


def test_two_processes_are_one_with_the_union_of_their_batches(tmp_path):
    """Weights alone would not show a wrong scale of the gradients, which AdamW takes out: their norm does."""
    quiet = {"epochs": 2, "drop_sensor": 0.0, "drop_camera": 0.0, "drop_radar": 0.0, "clip_norm": 1e9}
    what = 0, {"norm": False, "dropout": 0}, 8, TinyData
    ranks = fork_ranks(train_tiny, tmp_path / "two", *what, quiet | {"batch_size": 2})
    assert [status for status, _ in ranks] == [0, 0], ranks
    train_tiny(tmp_path / "one", *what, quiet | {"batch_size": 4})
    two, one = (read_log(tmp_path / name / "log.jsonl") for name in ("two", "one"))
    assert len(one) == 4
    assert [line["grad_norm"] for line in two] == pytest.approx([line["grad_norm"] for line in one], rel=1e-4)
    theirs, ours = (torch.load(tmp_path / name / "rank0.pt", weights_only=True) for name in ("two", "one"))
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], rtol=1e-4, atol=1e-5, msg=name)


def test_a_gpu_without_a_number_is_that_of_the_process(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "3")
    with processes("cuda") as where:
        assert where.device == torch.device("cuda:3")
    with processes("cuda:1") as where:
        assert where.device == torch.device("cuda:1")
    assert chosen == [torch.device("cuda:3"), torch.device("cuda:1")]


def test_bfloat16_of_the_real_model_stays_near_float32(tmp_path):
    """What must be exact is in float32 whatever the autocast type: geometry, depth, losses, sums over points."""
    lines = []
    for precision in ("float32", "bfloat16"):
        config = small_config({"precision": precision, "learning_rate": 3e-4, "drop_sensor": 0.0, "epochs": 2})
        seed_all(config.seed)
        trainer = make_trainer(config, tmp_path / precision, build_model(config), RandomData(config))
        assert trainer.total_steps == 8
        run(trainer)
        assert all(
            p.isfinite().all() and p.dtype == torch.float32 for p in trainer.model.state_dict().values() if p.ndim
        )
        lines.append(read_log(tmp_path / precision / "log.jsonl"))
    for exact, half in zip(*lines, strict=True):
        assert half["loss"] == pytest.approx(exact["loss"], rel=0.1), exact["step"]
        assert half["grad_norm"] == pytest.approx(exact["grad_norm"], rel=0.5), exact["step"]


def test_under_autocast_losses_outputs_and_geometry_are_float32(monkeypatch):
    config = small_config()
    model, batch = build_model(config).train(), RandomData(config)
    batch, seen = collate([batch[0, 4], batch[0, 9]]), {}

    def watch(module, name, pick):
        whole = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given: seen.update({name: pick(given)}) or whole(*given))

    assert model.camera is not None and model.lidar is not None
    watch(model.camera.view, "splat", lambda given: [given[0].dtype, given[1].dtype])
    watch(model.lidar.net.pillars, "describe", lambda given: [given[0].dtype, torch.is_autocast_enabled("cpu")])
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(batch)
        frustum = model.camera.view.frustum(batch.cameras, (8, 8))
        losses = model.losses(outputs, batch)
    assert seen == {"splat": [torch.float32] * 2, "describe": [torch.float32, False]}
    assert outputs["detection"].heatmap.dtype == torch.bfloat16, "the convolutions are not in float32"
    assert frustum.dtype == outputs["planning"].position.dtype == torch.float32
    assert {name: value.dtype for name, value in losses.items()} == dict.fromkeys(losses, torch.float32)
