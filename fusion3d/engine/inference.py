"""Running a trained model over a split under several subsets of its sensors: each batch is read and encoded once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion3d.config import Config
from fusion3d.data.loader import make_loader
from fusion3d.data.subset import select_sensors
from fusion3d.engine.forecasts import score_predictions
from fusion3d.engine.submission import MAX_BOXES, to_records
from fusion3d.engine.views import predict_views, sense_views
from fusion3d.errors import ConfigError
from fusion3d.heads.occupancy import truth_of
from fusion3d.metrics.forecast import ScoredAgents
from fusion3d.metrics.map import MapTruth, map_overlap
from fusion3d.metrics.occupancy import add_still, occupancy_overlap
from fusion3d.metrics.overlap import Overlap
from fusion3d.types import SENSORS, Batch, BEVGrid, Boxes, Forecast, Occupancy, PlanModes, Trajectory


@dataclass
class SubsetOutput:
    """What the model said with some of its sensors, over a split."""

    sensors: tuple[str, ...]
    used: set[str] = field(default_factory=set)  # sensors that really were there
    boxes: dict[str, Boxes] = field(default_factory=dict)  # by sample token, in ego
    plans: dict[str, Trajectory] = field(default_factory=dict)  # by sample token, [T], in ego
    forecasts: dict[str, Forecast] = field(default_factory=dict)  # of the boxes, where they are kept
    agents: dict[str, ScoredAgents] = field(default_factory=dict)  # by token, where they are not and the truth is known
    modes: dict[str, PlanModes] = field(default_factory=dict)  # by token, [K, T], in ego; of the last subset alone
    map: Overlap = field(default_factory=map_overlap)
    occupancy: Overlap = field(default_factory=occupancy_overlap)
    seconds: float = 0.0  # forward and decode; without the encoders, where they ran for all subsets

    def records(self, poses: dict[str, np.ndarray], limit: int = MAX_BOXES) -> dict[str, list[dict[str, Any]]]:
        """The boxes in the submission's format; ``poses`` are global_from_ego [4, 4] by token, ``limit`` is of each."""
        return {token: to_records(boxes, poses[token], token, limit) for token, boxes in self.boxes.items()}


@dataclass
class SplitOutput:
    """All subsets of one split, and what the data set says about its samples' poses and maps."""

    subsets: dict[str, SubsetOutput]
    poses: dict[str, np.ndarray] = field(default_factory=dict)  # by token, global_from_ego [4, 4] float64
    map_truth: MapTruth = field(default_factory=MapTruth)
    still: Overlap = field(default_factory=occupancy_overlap)  # an occupancy that stays as it is now
    reading_seconds: float = 0.0  # waiting for the loader
    sensing_seconds: float = 0.0  # the encoders, where they ran for all subsets


def sensor_subsets(config: Config) -> dict[str, tuple[str, ...]]:
    """Every non-empty subset of the sensors that the model has branches for and the configuration reads.

    By name: sensors joined with "+" in the order of ``SENSORS``; single sensors come first, all of them last.

    Raises:
        ConfigError: there is none.
    """
    there = [s for s in config.branches if s in config.data.sensors]
    if not there:
        raise ConfigError(f"the checkpoint has no branch for any of data.sensors = {config.data.sensors}")
    chosen = [subset for size in range(1, len(there) + 1) for subset in combinations(there, size)]
    return {"+".join(subset): subset for subset in chosen}


def choose_subsets(config: Config, names: Sequence[str] | None) -> dict[str, tuple[str, ...]]:
    """The subsets asked for by name, in the order of ``sensor_subsets``, the largest last; all of them for None.

    Args:
        config: see ``sensor_subsets``.
        names: sensors joined with "+", in any order.

    Raises:
        ConfigError: a name is none that this model can take, or it can take none.
    """
    possible = sensor_subsets(config)
    chosen = set()
    for name in possible if names is None else names:
        key = "+".join(sorted(name.split("+"), key=lambda s: SENSORS.index(s) if s in SENSORS else -1))
        if key not in possible:
            raise ConfigError(
                f"no sensor subset {name!r} for this checkpoint and data.sensors; possible: {', '.join(possible)}"
            )
        chosen.add(key)
    return {key: subset for key, subset in possible.items() if key in chosen}


@torch.inference_mode()
def run_split(
    model: Any,
    dataset: Any,
    subsets: dict[str, tuple[str, ...]],
    batch_size: int,
    workers: int,
    device: torch.device,
    views: Sequence[np.ndarray] = (np.eye(4),),
    stream: bool = False,
    keep_forecasts: bool = False,
    grids: tuple[BEVGrid, BEVGrid] | None = None,
) -> SplitOutput:
    """Predict a whole split under every subset.

    Args:
        model: with ``forward`` and ``decode``, in evaluation mode; if it is ``separable``, with ``sense`` and
            ``conclude`` too.
        dataset: without augmentation.
        subsets: sensors by subset name.
        batch_size: samples per forward pass.
        workers: loader processes.
        device: where the model runs.
        views: of each sample, that are predicted and merged (``views_of``).
        stream: samples follow each other, one in a batch, and the model remembers.
        keep_forecasts: keep what is forecast of every box, instead of scoring it at once: it is ten times the boxes.
        grids: of the model and of the data set's maps, where its occupancy is to be scored.
    """
    loader = make_loader(dataset, 1 if stream else batch_size, workers=workers)
    memories: dict[str, list[Any] | None] = {name: [None] * len(views) if stream else None for name in subsets}
    model = model.to(device)
    output = SplitOutput({name: SubsetOutput(sensors) for name, sensors in subsets.items()})
    asked, last = set().union(*subsets.values()), list(subsets)[-1]
    start = last_told = tick = time.perf_counter()
    for batch in loader:
        output.reading_seconds += time.perf_counter() - tick
        _note_poses(output, batch)
        if batch.map_mask is not None and batch.map_known is not None:
            output.map_truth.add(batch.map_mask.numpy(), batch.map_known.numpy())
        cells = None if grids is None else [_layers(of).numpy() for of in truth_of(batch, *grids)]
        if cells is not None:
            add_still(output.still, *cells)
        batch, tick = batch.to(device), time.perf_counter()
        sensed = sense_views(model, select_sensors(batch, asked), views)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        output.sensing_seconds += time.perf_counter() - tick
        for name, of_subset in output.subsets.items():
            keep = keep_forecasts, name == last
            _predict(model, batch, of_subset, views, memories[name], sensed, cells, *keep)
        tick = time.perf_counter()
        if tick - last_told > 5 or len(output.poses) == len(dataset):
            last_told, done = tick, len(output.poses)
            left = (tick - start) / done * (len(dataset) - done)
            print(f"  {done}/{len(dataset)} samples x {len(subsets)} subsets, {left:.0f} s left", flush=True)
    return output


def _predict(
    model: Any,
    batch: Batch,
    of_subset: SubsetOutput,
    views: Sequence[np.ndarray],
    memories: list[Any] | None,
    sensed: list[Any] | None,
    cells: Sequence[np.ndarray] | None,
    keep_forecasts: bool,
    keep_modes: bool,
) -> None:
    start = time.perf_counter()
    seen = select_sensors(batch, of_subset.sensors)
    for read in (seen, *(history.batch for history in seen.history)):
        of_subset.used |= {sensor for sensor, there in read.present.items() if bool(there.any())}
    predictions = predict_views(model, seen, views, memories, sensed)
    of_subset.seconds += time.perf_counter() - start
    if predictions.boxes is not None:
        of_subset.boxes |= dict(zip(predictions.tokens, predictions.boxes, strict=True))
    if predictions.plan is not None:
        of_subset.plans |= _split(predictions.tokens, predictions.plan)
    if predictions.motion is not None and keep_forecasts:
        of_subset.forecasts |= dict(zip(predictions.tokens, predictions.motion, strict=True))
    elif predictions.motion is not None and batch.motion is not None:
        of_subset.agents |= score_predictions(predictions, batch)
    if predictions.modes is not None and keep_modes:
        of_subset.modes |= _split_modes(predictions.tokens, predictions.modes)
    if predictions.map is not None and batch.map_mask is not None and batch.map_known is not None:
        of_subset.map.add(predictions.map.numpy(), batch.map_mask.cpu().numpy(), batch.map_known.cpu().numpy())
    if predictions.occupancy is not None and cells is not None:
        of_subset.occupancy.add(_layers(predictions.occupancy).numpy(), *cells)


def _layers(occupancy: Occupancy) -> Tensor:
    """[B, N, Y, X] in the order of ``metrics.occupancy.LAYERS``."""
    return torch.cat([occupancy.agents.flatten(1, 2), occupancy.drivable[:, None]], dim=1)


def _note_poses(output: SplitOutput, batch: Batch) -> None:
    # A loader's worker hands its tensors over in shared memory, a file descriptor each: what is kept is copied.
    output.poses |= dict(zip(batch.tokens, batch.global_from_ego.double().numpy().copy(), strict=True))


def _split_modes(tokens: Sequence[str], modes: PlanModes) -> dict[str, PlanModes]:
    """A copy of each sample's modes, by its token."""
    paths = _split(tokens, modes.path).values()
    rows = zip(paths, *(getattr(modes, of.name).clone() for of in fields(modes)[1:]), strict=True)
    return {token: PlanModes(*row) for token, row in zip(tokens, rows, strict=True)}


def _split(tokens: Sequence[str], paths: Trajectory) -> dict[str, Trajectory]:
    """A copy of each sample's path, by its token."""
    rows = zip(paths.position.clone(), paths.yaw.clone(), paths.mask.clone(), strict=True)
    return {token: Trajectory(*row) for token, row in zip(tokens, rows, strict=True)}
