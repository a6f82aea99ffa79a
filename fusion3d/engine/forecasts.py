"""Forecasts of a model's own boxes against how those around really go on; as tables, and as a file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fusion3d.heads.rollout import constant_velocity
from fusion3d.metrics.forecast import WAYS, Around, ScoredAgents, score_agents
from fusion3d.metrics.protocol import CVPR_2019
from fusion3d.types import DETECTION_CLASSES, TIME_STEP, Batch, Boxes, Forecast, Predictions

FORECASTS_FILE = "forecasts.json"
COLUMNS = ("minADE_1", "minADE_5", "minADE_10", "minFDE_1", "minFDE_5", "minFDE_10", "MissRateTopK_2_5")
_SHORT = {"MissRateTopK_2_5": "MissRate_5"}


def score_predictions(predictions: Predictions, batch: Batch) -> dict[str, ScoredAgents]:
    """The samples of an annotated batch by token, each with its forecasts scored beside two that know no map.

    Args:
        predictions: with boxes and motion, on the CPU.
        batch: with boxes and motion of as many steps or more, not augmented.
    """
    assert predictions.boxes is not None and predictions.motion is not None
    assert batch.boxes is not None and batch.motion is not None
    scored = {}
    samples = zip(predictions.boxes, predictions.motion, batch.boxes, batch.motion, batch.tokens, strict=True)
    for number, (boxes, forecast, true, motion, token) in enumerate(samples):
        steps = forecast.yaw.shape[2]
        path = motion[: len(true)].path
        center = true.center[:, :2].double().cpu().numpy()
        around = Around(
            center=center,
            yaw=true.yaw.double().cpu().numpy(),
            label=true.label.cpu().numpy(),
            there=_near(true) & (true.num_points.sum(1) > 0).cpu().numpy(),
            position=path.position[:, :steps].double().cpu().numpy(),
            heading=path.yaw[:, :steps].double().cpu().numpy(),
            known=path.mask[:, :steps].cpu().numpy(),
        )
        keep = torch.from_numpy(_near(boxes))
        scored[token] = _score(around, boxes[keep], forecast[keep], batch.scenes[number])
    return scored


def _near(boxes: Boxes) -> np.ndarray:
    """[K] bool: within the benchmark's range of their class."""
    reach = np.array([CVPR_2019.class_range[name] for name in DETECTION_CLASSES])[boxes.label.cpu().numpy()]
    return boxes.center[:, :2].double().norm(dim=1).cpu().numpy() < reach


def _score(around: Around, boxes: Boxes, forecast: Forecast, scene: str) -> ScoredAgents:
    times = TIME_STEP * torch.arange(1, forecast.yaw.shape[2] + 1)

    def say(rows: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        chosen = boxes[torch.from_numpy(rows)]
        ours = forecast[torch.from_numpy(rows)]
        straight = constant_velocity(chosen, times)[0][:, None]
        stays = chosen.center[:, None, None, :2].expand_as(straight)
        sure = np.ones((len(rows), 1))
        return {
            "model": (ours.position.double().numpy(), ours.score.double().numpy()),
            "constant_velocity": (straight.double().numpy(), sure),
            "stationary": (stays.double().numpy(), sure),
        }

    found = boxes.center[:, :2].double().numpy(), boxes.label.numpy(), boxes.score.double().numpy()
    return score_agents(around, *found, say, scene)


def format_motion(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines of a table: each subset's model beside constant velocity of the same boxes, then who it is good at."""
    heads = ("recall", *(_SHORT.get(column, column) for column in COLUMNS))
    lines = [table_line(f"motion, {next(iter(rows.values()))['all']['seconds']:g} s", heads)]
    for name, groups in rows.items():
        row = groups["all"]
        lines.append(table_line(name, [row["recall"], *(row["model"][column] for column in COLUMNS)]))
        lines.append(table_line("  constant velocity", ["", *(row["constant_velocity"][column] for column in COLUMNS)]))
    groups = list(rows.values())[-1]
    for way in WAYS:
        row = groups[way]
        said = " none"
        if row["found"]:
            skill = row["skill"]["minADE_5"]
            span = "" if skill["interval"] is None else " [{:+.3f}, {:+.3f}]".format(*skill["interval"])
            note = "" if skill["distinguishable"] else ", not distinguishable"
            said = f" skill of minADE_5 over constant velocity {skill['value']:+.3f}{span}{note}, N = {row['found']}"
        lines.append(f"  {way}:{said}")
    return lines


def table_line(name: str, values: Sequence[str | float]) -> str:
    """A row of a table for a terminal; what is not a number is n/a."""
    texts = (v if isinstance(v, str) else "n/a" if math.isnan(v) else f"{v:.3f}" for v in values)
    return f"{name:<20}" + "".join(f"{text:>14}" for text in texts)


def to_json(boxes: Mapping[str, Boxes], forecasts: Mapping[str, Forecast], min_score: float) -> dict[str, Any]:
    """The content of ``FORECASTS_FILE``: in ego, by sample token, the boxes that score at least so much.

    Args:
        boxes: by token.
        forecasts: of the boxes, by token.
        min_score: boxes below it are left out, which would be most of the file.
    """

    def rounded(values: torch.Tensor) -> list[Any]:
        return np.round(values.double().numpy(), 3).tolist()

    content: dict[str, list[dict[str, Any]]] = {}
    for token, of_sample in boxes.items():
        keep = of_sample.score >= min_score
        chosen, ways = of_sample[keep], forecasts[token][keep]
        columns = zip(
            chosen.label.tolist(), rounded(chosen.score), rounded(chosen.center), rounded(ways.score),
            rounded(ways.position), rounded(ways.yaw), strict=True,
        )  # fmt: skip
        content[token] = [
            {
                "detection_name": DETECTION_CLASSES[label],
                "detection_score": score,
                "center": center,
                "probability": likely,
                "position": position,
                "yaw": yaw,
            }
            for label, score, center, likely, position, yaw in columns
        ]
    return {"time_step": TIME_STEP, "frame": "ego", "min_score": min_score, "forecasts": content}
