"""A row and a seed as a run: its configuration, its folder, and whether what lies there is the same run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fusion3d.analysis.comparison.rows import TOGETHER, Row
from fusion3d.build import build_model
from fusion3d.config import Config, differences, from_dict, to_dict
from fusion3d.engine.checkpoint import check_same_config, list_checkpoints, weights_file
from fusion3d.engine.environment import RUN, headline
from fusion3d.engine.split import check_training, data_digest
from fusion3d.engine.train import num_subsets
from fusion3d.errors import CheckpointError, ConfigError
from fusion3d.files import read_json, write_json

RECORD, METRICS = "record.json", Path("evaluation", "metrics.json")
# Whose trunk and heads the model of all sensors begins with: the first one's. Only the radar's know a velocity that is
# measured, and a trunk that has done without is slow to use it.
FILL_ORDER = ("radar", "lidar", "camera")
FUSES = {"late": (), "hybrid": ("models.joint.fuse",)}  # by stage, what begins anew in every row; elsewhere "fuse"
MAY_DIFFER = {  # neither learned nor scored otherwise; the beginnings are compared by what is in them
    "data.root", "data.workers", "train.log_every", "train.checkpoint_every", "train.start", "augment.paste.database",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Budget:
    """What every row gets. The same for all of a kind, but for ``early``: its encoder is its own."""

    alone_epochs: tuple[int, ...]  # of each sensor's own model, in the order of SENSORS
    together_epochs: int  # of the model of all sensors, from the sensors' models on
    joint_epochs: int  # of each row that fuses, from that model on
    joint_rate: float  # peak learning rate of these two

    def arguments(self) -> str:
        """As on the command line of ``compare_fusion``."""
        alone = " ".join(map(str, self.alone_epochs))
        return (
            f"--alone-epochs {alone} --together-epochs {self.together_epochs} --epochs {self.joint_epochs} "
            f"--rate {self.joint_rate:g}"
        )

    def describe(self, base: Config) -> str:
        """In words."""
        alone = ", ".join(f"{name} {count}" for name, count in zip(base.branches, self.alone_epochs, strict=True))
        return (
            f"epochs of each sensor alone (peak rate {base.train.learning_rate:g}): {alone}; "
            f"of all together with {TOGETHER.operator}: {self.together_epochs}; of each row: {self.joint_epochs}, but "
            f"early, whose encoder of points is no sensor's: {self.early_epochs(base)} (peak rate {self.joint_rate:g}, "
            f"each sample under {num_subsets(base)} of its subsets of sensors in a step)"
        )

    def early_epochs(self, base: Config) -> int:
        """Of a row whose encoder is its own: as many as the encoders of points in other rows have had in the end."""
        alone = dict(zip(base.branches, self.alone_epochs, strict=True))
        of_points = [count for name, count in alone.items() if name != "camera"]
        return max(of_points or alone.values()) + self.together_epochs + self.joint_epochs


@dataclasses.dataclass(frozen=True)
class Run:
    """One training and its evaluation."""

    row: Row
    seed: int
    config: Config
    folder: Path
    scored: tuple[str, ...] | None = None  # subsets of its sensors; None: all

    def __str__(self) -> str:
        return f"{self.row.name} seed {self.seed}"

    @property
    def finished(self) -> bool:
        """Is it evaluated?"""
        return (self.folder / METRICS).is_file()

    def metrics(self) -> dict[str, Any]:
        """What ``evaluate`` said.

        Raises:
            CheckpointError: the file cannot be read.
        """
        return _read(self.folder / METRICS)

    def environment(self) -> dict[str, Any] | None:
        """What it was evaluated on, and trained; None where an older version did not note it.

        Raises:
            CheckpointError: the file cannot be read.
        """
        path = (self.folder / METRICS).with_name(RUN)
        return _read(path).get("environment") if path.is_file() else None


def make_run(base: Config, row: Row, seed: int, budget: Budget, out: Path) -> Run:
    """The run of a row: of one sensor, of them all before any is compared, or of them all as it is compared.

    Whatever it begins with is of the same seed: what differs between seeds is all that chance does.
    """
    if row.alone:
        epochs = dict(zip(base.branches, budget.alone_epochs, strict=True))[row.alone[0]]
        return trained(base, row, seed, out, epochs=epochs, subsets=1, start=(), fresh=())
    singles = tuple(str(run_folder(out, name, seed)) for name in FILL_ORDER if name in base.branches)
    together = str(run_folder(out, TOGETHER.name, seed))
    fresh = FUSES.get(row.stage, ("fuse",))
    if row == TOGETHER:
        start, epochs, fresh = singles, budget.together_epochs, ()
    elif row.stage == "early":  # with a camera's branch alone it would take the trunk of the camera's own model
        start, epochs = (together,), budget.early_epochs(base)
    else:
        start, epochs = (together, *singles), budget.joint_epochs
    return trained(base, row, seed, out, epochs=epochs, learning_rate=budget.joint_rate, start=start, fresh=fresh)


def trained(base: Config, row: Row, seed: int, out: Path, **train: Any) -> Run:
    """The run of a row with some settings of ``train`` of its own."""
    config = dataclasses.replace(
        row.config(base),
        seed=seed,
        train=dataclasses.replace(base.train, checkpoint_every=50, **train),
        data=dataclasses.replace(base.data, workers=0),
    )
    return Run(row, seed, config, run_folder(out, row.name, seed))


def check(run: Run) -> None:
    """See that the settings of a row are in their ranges, fit each other and can be scored.

    Raises:
        ConfigError: they are or do not.
    """
    if run.config.detection is None:
        raise ConfigError("detection: found null; models are compared by their NDS, of boxes")
    try:
        check_training(run.config)
        with torch.device("meta"):  # shapes alone
            build_model(from_dict(to_dict(run.config)), pretrained=False)
    except ConfigError as error:
        raise ConfigError(f"row {run.row.name}: {error}") from error


def run_folder(out: Path, row: str, seed: int) -> Path:
    """Where a run lies."""
    return out / row / f"seed-{seed}"


def claim(run: Run) -> None:
    """Note in a run's folder what it is, or see that what was noted is the same.

    Raises:
        CheckpointError: the folder holds a run of other settings, data or weights to begin with.
    """
    path = run.folder / RECORD
    if not path.is_file():
        for checkpoint in list_checkpoints(run.folder)[-1:]:
            check_same_config(run.config, checkpoint)
        write_json(path, {"config": to_dict(run.config), "data": digest_of(run.config), "start": _starts(run.config)})
        return
    noted = _read(path)
    theirs = from_dict(noted["config"], source=str(path))
    wrong = settings_that_differ(theirs, run.config)
    wrong += ["other data"] * (noted["data"] != digest_of(run.config))
    wrong += ["other weights to begin with"] * (noted["start"] != _starts(run.config))
    if wrong:
        raise CheckpointError(
            f"{run.folder} holds another run ({'; '.join(wrong)}); take another --out, or remove that folder"
        )


def settings_that_differ(there: Config, here: Config) -> list[str]:
    """A line for each setting that makes other numbers."""
    old, new = differences(there, here), differences(here, there)
    return [f"{key}: {old.get(key)!r} there, {new.get(key)!r} here" for key in sorted({*old, *new} - MAY_DIFFER)]


def digest_of(config: Config) -> str:
    """``data_digest`` of what a run learns from and is scored on."""
    return data_digest(config.data, config.data.train_split, config.data.split)


def changes(config: Config, base: Config | None = None) -> dict[str, Any]:
    """The settings that make other numbers than those of ``base``, by default than the defaults."""
    return {key: value for key, value in differences(config, base).items() if key not in MAY_DIFFER}


def config_digest(config: Config) -> str:
    """Tells settings that make other numbers from one another."""
    settings = to_dict(config)
    for key in MAY_DIFFER:
        *sections, name = key.split(".")
        section: dict[str, Any] | None = settings
        for part in sections:
            section = (section or {}).get(part)
        if section is not None:
            section.pop(name)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _starts(config: Config) -> list[str]:
    """Digests of the weights that a run begins with."""
    return [weights_digest(weights_file(folder)) for folder in config.train.start]


def weights_digest(path: Path) -> str:
    """Tells a file of weights from another."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def unfinished(runs: Sequence[Run]) -> list[Run]:
    """Those still to be done; all are claimed."""
    for run in runs:
        claim(run)
    return [run for run in runs if not run.finished]


def finished(runs: Iterable[Run]) -> dict[int, Mapping[str, Any]]:
    """By seed, the metrics of a row's runs that are there.

    Raises:
        CheckpointError: one is of other settings, data or beginnings.
    """
    found = [run for run in runs if run.finished]
    for run in found:
        claim(run)
    return {run.seed: run.metrics() for run in found}


def environments(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """What the finished runs were made on: one for each ``headline``; empty where no run says it.

    Raises:
        CheckpointError: a file cannot be read.
    """
    found = [about for run in runs if run.finished and (about := run.environment()) is not None]
    return [*{headline(about): about for about in found}.values()]


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, "remove it to do this again", error=CheckpointError)
