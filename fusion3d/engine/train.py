"""Training, visibly: read ``Trainer.run``. Each step seeds itself from (seed, step): resuming is exact."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusion3d.build import build_model
from fusion3d.config import Config, differences, load_config
from fusion3d.data.loader import make_loader
from fusion3d.data.subset import draw_subsets, drop_sensors, select_sensors
from fusion3d.encoders.checkpointing import checkpoint_blocks
from fusion3d.engine.anchors import check_anchors, find_anchors
from fusion3d.engine.averaging import Average
from fusion3d.engine.batchnorm import join_batchnorms
from fusion3d.engine.checkpoint import (
    EMA,
    MODEL,
    Position,
    check_same_config,
    checkpoint_folder,
    list_checkpoints,
    load_state,
    read_weights,
    save_checkpoint,
)
from fusion3d.engine.compilation import compile_parts
from fusion3d.engine.distributed import Processes, processes
from fusion3d.engine.log import Clock, RunLog
from fusion3d.engine.optimizer import build_optimizer, in_steps, load_optimizer, one_cycle, set_learning_rate
from fusion3d.engine.parallel import Objective, accumulating, drop_untouched, fill, share_out, whole
from fusion3d.engine.seed import generator, seed_all, set_deterministic
from fusion3d.engine.split import check_training, data_digest, open_split
from fusion3d.engine.start import start_from
from fusion3d.errors import CheckpointError, ConfigError, TrainingError
from fusion3d.files import held
from fusion3d.types import Batch

LOCK = "training.lock"
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Trainer:
    """One run: model, data and optimiser, and the loop over them.

    Args:
        config: everything about the run.
        model: with ``forward(batch)`` and ``losses(outputs, batch)``.
        dataset: ``dataset[epoch, index] -> Sample``, deterministic in these and its seed.
        run_dir: gets ``checkpoints/``, ``log.jsonl`` and ``tensorboard/``.
        where: this process among those that train together.
    """

    def __init__(self, config: Config, model: nn.Module, dataset: Any, run_dir: Path, where: Processes) -> None:
        classes = dataset.classes() if config.train.order == "class_balanced" else None
        if classes is not None and not classes.any():
            raise TrainingError(f"train.order is class_balanced, and {config.data.train_split!r} has no box to balance")
        if len(dataset) == 0:
            raise TrainingError(f"split {config.data.train_split!r} of {config.data.root} has no sample to train on")
        self.config, self.run_dir, self.where, self.dataset = config, run_dir, where, dataset
        self.model = model.to(where.device).train()
        self.objective = self.prepare(self.model)
        self.optimizer = build_optimizer(self.model, config.train)
        self.average = Average(self.model, config.train.ema) if config.train.ema > 0 else None
        half_on_gpu = config.train.precision == "float16" and where.device.type == "cuda"
        self.scaler = torch.amp.GradScaler(where.device.type, enabled=half_on_gpu)
        self.loader = make_loader(
            dataset,
            config.train.batch_size,
            shuffle=True,
            seed=config.seed,
            workers=config.data.workers,
            rank=where.rank,
            world=where.world,
            classes=classes,
        )
        self.batches_per_epoch = len(self.loader)
        self.total_steps = math.ceil(self.batches_per_epoch / config.train.accumulate) * config.train.epochs
        data = data_digest(config.data, config.data.train_split)
        self.position = Position(num_samples=len(dataset), world=where.world, data=data)

    def prepare(self, model: nn.Module) -> nn.Module:
        """The losses of a model as one module, ready for these processes; the model is changed in place."""
        settings, where = self.config.train, self.where
        together = settings.sync_batchnorm and where.world > 1
        if together:
            join_batchnorms(model)
        if settings.checkpoint_activations:
            checkpoint_blocks(model)
        if settings.compile:
            compile_parts(model)
        return share_out(Objective(model, where, together, touch=settings.shard), where, settings.shard)

    def run(self, log: RunLog) -> Path:
        """Train to the end; returns the last checkpoint.

        Raises:
            TrainingError: a loss or a gradient is not finite.
            CheckpointError: a checkpoint cannot be written.
        """
        settings = self.config.train
        clock, tick, seen = Clock(self.position.step, self.total_steps), time.perf_counter(), 0
        for group in self.groups():
            step = self.position.step + 1
            self.set_learning_rate(step)
            losses, norm = self.take_step(step, group)
            if self.average is not None:
                self.average.update(self.model, step)
            self.advance(step, len(group))
            seen += sum(len(batch) for batch in group) * self.where.world
            if step % settings.log_every == 0 or step == self.total_steps:
                self.report(log, clock, losses, norm, seen / (time.perf_counter() - tick))
                tick, seen = time.perf_counter(), 0
            if step % settings.checkpoint_every == 0 and step < self.total_steps:
                self.save()
        assert self.position.step == self.total_steps
        return self.save()

    def groups(self) -> Iterator[list[Batch]]:
        """The batches still to come, in groups that share one step; none spans two epochs."""
        for epoch in range(self.position.epoch, self.config.train.epochs):
            start = self.position.batch  # 0, but for the epoch in which training was stopped
            self.loader.batch_sampler.set_epoch(epoch, start)  # type: ignore[union-attr]
            group: list[Batch] = []
            for number, batch in enumerate(self.loader, start + 1):
                group.append(batch)
                if len(group) == self.config.train.accumulate or number == self.batches_per_epoch:
                    yield group
                    group = []

    def set_learning_rate(self, step: int) -> None:
        """The rate for step number ``step``, counted from 1."""
        settings, progress = self.config.train, (step - 1) / max(self.total_steps - 1, 1)
        warmup, drops = settings.warmup, settings.drops
        share = in_steps(progress, warmup, drops) if drops else one_cycle(progress, warmup)
        set_learning_rate(self.optimizer, settings.learning_rate * share)

    def take_step(self, step: int, group: list[Batch]) -> tuple[dict[str, Tensor], Tensor]:
        """One optimiser step over a group of batches: mean loss parts and the gradient's norm, unclipped.

        Both stay on the device. A GPU is waited for to see that each batch's loss, and the norm, are finite.
        """
        settings = self.config.train
        sums: dict[str, Tensor] = {}
        self.optimizer.zero_grad(set_to_none=True)
        for number, batch in enumerate(group):
            draw, where = (self.config.seed, step, number), self.where
            seed_all(*draw, where.rank)
            full = batch.to(where.device)
            seen, subsets = self.show(full, generator(*draw, 0, 1))
            with accumulating(self.objective, last=number == len(group) - 1):
                with torch.autocast(
                    where.device.type, PRECISIONS[settings.precision], enabled=settings.precision != "float32"
                ):
                    losses = self.objective(seen, full, subsets)
                total = torch.stack([value.float() for value in losses.values()]).sum()
                self.check_finite(total, losses, batch, step)
                self.scaler.scale(total / len(group)).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, torch.zeros((), device=total.device)) + value.detach().float() / len(group)
        drop_untouched(self.objective)
        self.scaler.unscale_(self.optimizer)
        norm = whole(nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm))
        if not self.scaler.is_enabled() and not torch.isfinite(norm):
            raise TrainingError(
                f"step {step}: the gradient is not finite although the loss is; batches: {_tokens(group)}. "
                "No weight was changed; lower train.learning_rate or use --train.precision float32"
            )
        self.scaler.step(self.optimizer)  # with fp16 on a GPU, skips the step when a gradient overflowed
        self.scaler.update()
        return sums, norm

    def show(self, full: Batch, draw: torch.Generator) -> tuple[Batch, tuple[Batch, ...]]:
        """What the model sees of a batch, and under which subsets of its sensors; none: as it is."""
        settings, share = self.config.train, (self.where.rank, self.where.world)
        # Sensors that only supervise, such as LiDAR of a camera's depth, do not count as those left to a sample.
        seen = select_sensors(full, self.config.branches)
        count = num_subsets(self.config)
        if count > 1:
            return draw_subsets(seen, settings, count, draw, *share)
        return drop_sensors(seen, settings, draw, *share), ()

    def check_finite(self, total: Tensor, losses: dict[str, Tensor], batch: Batch, step: int) -> None:
        """Stop before a loss that is not a number reaches any weight."""
        if not torch.isfinite(total):
            values = {name: float(value.detach()) for name, value in losses.items()}
            parts = ", ".join(f"{name} = {value}" for name, value in values.items() if not math.isfinite(value))
            raise TrainingError(
                f"step {step}: the loss is not finite ({parts or 'only the sum'}) for the samples {_tokens([batch])}. "
                "No weight was changed; look at these samples with check_dataset, or lower train.learning_rate"
            )

    def advance(self, step: int, num_batches: int) -> None:
        """Note that a step is done."""
        batch = self.position.batch + num_batches
        over = batch == self.batches_per_epoch
        self.position = replace(self.position, step=step, epoch=self.position.epoch + over, batch=0 if over else batch)

    def report(self, log: RunLog, clock: Clock, terms: dict[str, Tensor], norm: Tensor, rate: float) -> None:
        """One line to the person and one to the log: the losses of all processes, which must all ask."""
        every = self.where.gather({name: float(value) for name, value in terms.items()})
        names = dict.fromkeys(name for theirs in every for name in theirs)
        losses = {name: sum(theirs.get(name, 0.0) for theirs in every) / len(every) for name in names}
        step, lr, total = self.position.step, self.optimizer.param_groups[0]["lr"], sum(losses.values())
        parts = " ".join(f"{name} {value:.3f}" for name, value in losses.items())
        log.say(
            f"step {step}/{self.total_steps}  loss {total:.3f} ({parts})  grad {norm:.1f}  lr {lr:.1e}  "
            f"{rate:.1f} samples/s  {clock.left(step)} left"
        )
        values = {f"loss/{name}": value for name, value in losses.items()}
        log.write(step, {"loss": total, **values, "grad_norm": float(norm), "lr": lr, "samples_per_second": rate})

    def save(self) -> Path:
        """Write a checkpoint (the first process does, all must ask) and return its folder."""
        folder = checkpoint_folder(self.run_dir, self.position.step)
        model, optimizer = whole(self.model.state_dict()), whole(self.optimizer.state_dict())
        ema = None if self.average is None else whole(self.average.tensors)
        if self.where.first:
            state = {"optimizer": optimizer, "scaler": self.scaler.state_dict()}
            save_checkpoint(folder, self.config, model, self.position, ema, state)
        if self.where.world > 1:
            torch.distributed.barrier()
        return folder

    def resume(self, folder: Path) -> None:
        """Go on from a checkpoint of the same configuration.

        Raises:
            CheckpointError: another configuration, data set or number of processes, or damaged.
        """
        check_same_config(self.config, folder)
        position, state = load_state(folder)
        if (position.num_samples, position.world) != (self.position.num_samples, self.position.world):
            raise CheckpointError(
                f"{folder} cannot be resumed: it was trained on {position.num_samples} samples by {position.world} "
                f"processes, here are {self.position.num_samples} samples and {self.position.world} processes; use the "
                "same data and number of processes, or another --run folder"
            )
        if position.data not in ("", self.position.data):
            raise CheckpointError(
                f"{folder} cannot be resumed: it was trained on other data than {self.config.data.root} holds "
                f"({self.config.data.version}, {self.config.data.train_split!r}); use the same data, or another --run "
                "folder"
            )
        self.position = replace(position, data=self.position.data)
        weights = self.model.state_dict()
        fill(weights, read_weights(weights, folder / MODEL, self.config))
        if self.average is not None:
            fill(self.average.tensors, read_weights(self.average.tensors, folder / EMA, self.config))
        try:
            load_optimizer(self.optimizer, state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{folder}: the optimiser's state does not fit: {error}") from error


def train(config: Config, run_dir: str | Path, resume: bool = True, device: str | None = None) -> Path:
    """Train a model and return its last checkpoint folder.

    Args:
        config: everything about the run.
        run_dir: folder of the run.
        resume: go on from the newest checkpoint in ``run_dir``, if there is one; the end is bit-identical to
            a run that was never stopped (on the same machine and number of threads).
        device: torch device name; None takes the GPU where there is one.

    Raises:
        ConfigError: as of ``check_training``.
        TrainingError: a loss is not finite, or there is nothing to train on.
        CheckpointError: what is there cannot be resumed, or a checkpoint cannot be written.
        DataError: the data set cannot be read.
        Fusion3DError: another process trains in this folder.
    """
    run_dir = Path(run_dir)
    with processes(device) as where, ExitStack() as kept:
        set_deterministic(config.deterministic)
        seed_all(config.seed)
        check_training(config)
        dataset = open_split(config, config.data.train_split, training=True)
        if where.first:
            kept.enter_context(held(run_dir / LOCK))
        found = where.gather(list_checkpoints(run_dir))[0]
        if found and not resume:
            raise CheckpointError(
                f"{run_dir} holds a run already (up to {found[-1].name}); resume it, remove it, or choose another --run"
            )
        model = build_model(config, pretrained=not found)
        started: list[str] = []
        if not found:
            started = find_anchors(model, config, dataset) + start_from(model, config.train.start, config.train.fresh)
            check_anchors(model)
        trainer = Trainer(config, model, dataset, run_dir, where)
        if found:
            trainer.resume(found[-1])
        with RunLog(run_dir, trainer.position.step, active=where.first) as log:
            count = sum(p.numel() for p in trainer.model.parameters())
            log.say(
                f"{len(dataset)} samples, {count / 1e6:.2f} M parameters, {trainer.total_steps} steps on {where.device}"
            )
            for line in started:
                log.say(line)
            if found:
                log.say(f"resumed from {found[-1]}")
            if trainer.position.step >= trainer.total_steps and found:
                return found[-1]
            return trainer.run(log)


def num_subsets(config: Config) -> int:
    """Under how many subsets of the sensors a sample is seen in each step: ``train.subsets``, if there are as many."""
    kinds = [sensor for sensor in config.branches if sensor in config.data.sensors]
    return min(config.train.subsets, 2 ** len(kinds) - 1) if config.train.drop_sensor > 0 else 1


def _tokens(batches: list[Batch]) -> str:
    return ", ".join(token for batch in batches for token in batch.tokens)


def main(argv: list[str] | None = None) -> int:
    """``train.py CONFIG [--run DIR] [--no-resume] [--device NAME] [--a.b value ...]``.

    Under torchrun say ``--run-dir``: torchrun takes ``--run`` for an abbreviation of an option of its own.
    """
    parser = argparse.ArgumentParser("train", description="Train a model, or go on.", allow_abbrev=False)
    parser.add_argument("config", help="YAML file, e.g. configs/demo.yaml")
    parser.add_argument(
        "--run",
        "--run-dir",
        dest="run",
        help="folder of the run (default: runs/<name of the file>); resumed if it holds one",
    )
    parser.add_argument("--no-resume", action="store_true", help="refuse to go on from a run that is already there")
    parser.add_argument("--device", help="torch device, e.g. cpu or cuda:0 (default: the GPU where there is one)")
    parser.epilog = "Every setting can be overridden, e.g. --train.epochs 3 --data.root PATH: fusion3d/config/."
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0].startswith("-") and argv[0] not in ("-h", "--help"):
        raise ConfigError(f"train: expected the configuration file first, found {argv[0]!r}: train.py CONFIG [options]")
    options, overrides = parser.parse_known_args(argv)
    config = load_config(options.config, overrides)
    if os.environ.get("RANK", "0") == "0":
        for key, value in differences(config).items():
            print(f"  {key} = {value!r}")
    run_dir = options.run or Path("runs") / Path(options.config).stem
    checkpoint = train(config, run_dir, not options.no_resume, options.device)
    if os.environ.get("RANK", "0") == "0":
        print(f"checkpoint: {checkpoint}")
    return 0
