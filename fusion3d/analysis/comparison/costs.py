"""What each row costs: parameters, operations, and the time of one sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch

from fusion3d.analysis.comparison.runs import Run
from fusion3d.data.collate import collate
from fusion3d.engine.describe import describe
from fusion3d.engine.split import open_split

REPEATS = 11


@dataclass(frozen=True)
class Cost:
    """Of the inference of one sample with all of a row's sensors."""

    parameters: int
    gflops: float  # two operations for a multiply-add
    milliseconds: float  # median; on all threads of this process


def measure(runs: Sequence[Run], device: str, say: Callable[[str], None] = print) -> dict[str, dict[str, float]]:
    """The cost of each run's row, one after the other, on the first sample of the evaluated split.

    Args:
        runs: one of each row.
        device: torch device name.
        say: gets a line for each.

    Returns:
        The fields of ``Cost``, by row.
    """
    costs: dict[str, dict[str, float]] = {}
    for run in runs:
        dataset = open_split(run.config, run.config.data.split, training=False)
        batch = collate([dataset[0]]).to(torch.device(device))
        whole = next(stage for stage in describe(run.config, batch, REPEATS) if stage.name == "whole")
        cost = Cost(whole.parameters, whole.flops / 1e9, whole.milliseconds)
        costs[run.row.name] = asdict(cost)
        say(f"{run.row.name}: {cost.parameters:,} parameters, {cost.gflops:.2f} GFLOPs, {cost.milliseconds:.1f} ms")
    return costs
