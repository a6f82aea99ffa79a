"""Checkpoints: folders of safetensors and JSON, written whole or not at all, read without executing code.

``model.safetensors`` the weights, ``ema.safetensors`` their average (when there is one), ``optimizer.pt``
what the optimiser remembers, ``state.json`` where training stands, ``config.json`` the configuration,
resolved.
"""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from fusion3d.config import Config, differences, from_dict, to_dict
from fusion3d.errors import CheckpointError, Fusion3DError
from fusion3d.files import read_json, whole_folder, write_json

if TYPE_CHECKING:
    from fusion3d.late import Model

MODEL, EMA, OPTIMIZER, STATE, CONFIG = (
    "model.safetensors", "ema.safetensors", "optimizer.pt", "state.json", "config.json",
)  # fmt: skip
FREE_KEYS = {
    "data.root", "data.workers", "data.split", "detection.nms", "detection.circle_radius", "detection.rotated_overlap",
    "detection.nms_scale", "detection.score_threshold", "detection.class_score_threshold", "detection.max_boxes",
    "detection.class_max_boxes", "train.log_every", "train.checkpoint_every", "fusion.merge",
    "augment.paste.database", "train.start", "train.fresh", "planning.anchors.prices", "planning.anchors.reject",
    "planning.anchors.reject_score",
}  # change nothing that is still learned, as all of "evaluation." does not  # fmt: skip


@dataclass(frozen=True)
class Position:
    """Where training stands. Randomness is derived from it and the seed: no generator's state is kept."""

    step: int = 0  # optimiser steps done
    epoch: int = 0  # the epoch of the next batch
    batch: int = 0  # batches of that epoch already used by each process
    num_samples: int = 0  # size of the data set
    world: int = 1  # processes that share it
    data: str = ""  # ``data_digest``; empty: not noted


def checkpoint_folder(run_dir: str | Path, step: int) -> Path:
    """Where a run keeps the checkpoint of a step."""
    return Path(run_dir) / "checkpoints" / f"step-{step:08d}"


def list_checkpoints(run_dir: str | Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = Path(run_dir, "checkpoints").glob("step-*")
    return sorted(path for path in found if re.fullmatch(r"step-\d+", path.name))


def find_checkpoint(path: str | Path) -> Path:
    """``path`` itself if it is a checkpoint, else the newest checkpoint of the run in ``path``.

    Raises:
        CheckpointError: neither.
    """
    path = Path(path)
    if (path / CONFIG).is_file():
        return path
    of_run = list_checkpoints(path)
    if not of_run:
        raise CheckpointError(
            f"no checkpoint in {path}: expected a folder with {CONFIG} and {MODEL}, or a run folder with checkpoints/; "
            "give the folder that training printed"
        )
    return of_run[-1]


def save_checkpoint(
    folder: Path,
    config: Config,
    model: Mapping[str, Tensor],
    position: Position,
    ema: Mapping[str, Tensor] | None = None,
    optimizer: Mapping[str, Any] | None = None,
    keep: int = 2,
) -> Path:
    """Write a checkpoint, then remove all but the newest ``keep`` beside it.

    Args:
        folder: where it will stand; must be named by ``checkpoint_folder`` for ``keep`` to apply.
        config: the resolved configuration.
        model, ema: state dicts.
        position: where training stands.
        optimizer: plain nested state of optimiser and gradient scaler.
        keep: number of checkpoints kept.

    Raises:
        CheckpointError: it could not be written; nothing half-written is left, earlier checkpoints stay.
    """
    parent = folder.parent
    for stale in parent.glob(".step-*"):  # a kill in the middle of an earlier save left it
        shutil.rmtree(stale, ignore_errors=True)
    try:
        with whole_folder(folder) as temporary:
            (temporary / MODEL).write_bytes(to_safetensors(_plain(model)))
            if ema is not None:
                (temporary / EMA).write_bytes(to_safetensors(_plain(ema)))
            if optimizer is not None:
                buffer = io.BytesIO()
                torch.save(optimizer, buffer)
                (temporary / OPTIMIZER).write_bytes(buffer.getbuffer())
            write_json(temporary / STATE, asdict(position))
            write_json(temporary / CONFIG, to_dict(config))
    except Fusion3DError as error:
        raise CheckpointError(f"checkpoint not saved: {error}") from error
    for old in list_checkpoints(parent.parent)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def load_config_of(checkpoint: str | Path) -> Config:
    """The configuration that a checkpoint (or the newest one of a run) was trained with."""
    path = find_checkpoint(checkpoint) / CONFIG
    return from_dict(_read_json(path), source=str(path))


def load_model(checkpoint: str | Path, ema: bool = True, config: Config | None = None) -> tuple[Model, Config]:
    """The model of a checkpoint folder, or of a run's newest one, in evaluation mode on the CPU.

    Args:
        checkpoint: folder.
        ema: take the averaged weights where there are any.
        config: to build the model from instead of the checkpoint's own, e.g. with another score threshold.

    Raises:
        CheckpointError: missing, damaged, or the weights do not fit the configuration.
    """
    from fusion3d.build import build_model

    folder = find_checkpoint(checkpoint)
    config = load_config_of(folder) if config is None else config
    model = build_model(config, pretrained=False)
    load_weights(model, weights_file(folder, ema), config)
    return model.eval(), config


def weights_file(folder: str | Path, ema: bool = True) -> Path:
    """The weights of a checkpoint, or of a run's newest one, that are evaluated.

    Args:
        folder: of the checkpoint or the run.
        ema: their average, where there is one.
    """
    checkpoint = find_checkpoint(folder)
    return checkpoint / (EMA if ema and (checkpoint / EMA).is_file() else MODEL)


def load_weights(module: nn.Module, path: Path, config: Config) -> None:
    """Fill a module from a safetensors file, strictly.

    Args:
        module: built from ``config``.
        path: file in a checkpoint folder.
        config: to tell how it differs from the checkpoint's own.

    Raises:
        CheckpointError: unreadable, or names or shapes differ: the first of them and the settings that differ
            are named.
    """
    module.load_state_dict(read_weights(module.state_dict(), path, config))


def read_weights(expected: Mapping[str, Tensor], path: Path, config: Config) -> dict[str, Tensor]:
    """The tensors of a file, checked to be just those ``expected``; errors as in ``load_weights``."""
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot read {path}: {error}; the file is missing or damaged, take another one"
        ) from error
    wrong = [f"{name} is not in the checkpoint" for name in expected if name not in found]
    wrong += [f"{name} is only in the checkpoint" for name in found if name not in expected]
    wrong += [
        f"{name} is {tuple(found[name].shape)} in the checkpoint, {tuple(tensor.shape)} here"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(
            f"{path} belongs to another model: {'; '.join(wrong[:3])}{more}. "
            f"{_settings_that_differ(config, path.parent)}; use the checkpoint's own configuration or, where that is "
            "what was used, the version of fusion3d that it was trained with"
        )
    return found


def check_same_config(config: Config, folder: Path) -> None:
    """Refuse to resume a run under other settings.

    Raises:
        CheckpointError: a setting that changes what is learned differs; all of them are named.
    """
    different = set(differences(config, load_config_of(folder))) | set(differences(load_config_of(folder), config))
    if any(key not in FREE_KEYS and not key.startswith("evaluation.") for key in different):
        raise CheckpointError(
            f"{folder} cannot be resumed. {_settings_that_differ(config, folder)}; "
            "use the same configuration, another --run folder, or --no-resume"
        )


def load_state(folder: Path) -> tuple[Position, dict[str, Any]]:
    """Where a checkpoint's training stood, and its optimiser's state.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    path = folder / STATE
    try:
        position = Position(**_read_json(path))
        path = folder / OPTIMIZER
        return position, torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file surfaces as any of a dozen types
        raise CheckpointError(
            f"cannot resume from {path}: {error}; remove {folder} to resume from the one before"
        ) from error


def _settings_that_differ(config: Config, folder: Path) -> str:
    try:
        theirs = load_config_of(folder)
    except Fusion3DError as error:
        return f"Its configuration cannot be read ({error})"
    new, old = differences(config, theirs), differences(theirs, config)
    told = [f"{key}: {old.get(key)!r} in the checkpoint, {new.get(key)!r} here" for key in sorted({*new, *old})]
    return f"Settings that differ: {'; '.join(told) or 'none'}"


def _read_json(path: Path) -> dict[str, Any]:
    return read_json(path, "the checkpoint is incomplete or damaged: take another", error=CheckpointError)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
