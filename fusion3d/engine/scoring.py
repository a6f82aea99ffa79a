"""Scoring the boxes of an evaluation: submission, official numbers, and the devkit beside them where it is wanted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusion3d.config import Config
from fusion3d.engine.columns import found_columns
from fusion3d.engine.inference import SubsetOutput
from fusion3d.engine.official import Official, greatest_difference
from fusion3d.engine.submission import write_submission
from fusion3d.errors import ConfigError
from fusion3d.metrics.columns import Truth
from fusion3d.metrics.detection import score_detections
from fusion3d.metrics.protocol import CVPR_2019, DetectionProtocol


@dataclass(frozen=True)
class Scoring:
    """How boxes are scored."""

    protocol: DetectionProtocol = CVPR_2019
    official: bool = False  # the devkit beside ours


class BoxScorer:
    """Scores the boxes of one subset of sensors after the other against the same truth.

    Args:
        truth: of the samples that were evaluated.
        config: where the data set is.
        scoring: how.

    Raises:
        Fusion3DError: the devkit is wanted, and cannot be imported or cannot read the data set.
    """

    def __init__(self, truth: Truth, config: Config, scoring: Scoring) -> None:
        self.truth, self.scoring = truth, scoring
        data, tokens = config.data, truth.samples.tokens
        self.official = Official(data.root, data.version, tokens, scoring.protocol) if scoring.official else None

    def score(self, of_subset: SubsetOutput, poses: Mapping[str, np.ndarray], folder: Path) -> dict[str, Any]:
        """Write a subset's submission and score it; its boxes are dropped: of all subsets they would fill the memory.

        Args:
            of_subset: what the model said.
            poses: global_from_ego [4, 4] by token.
            folder: gets ``results_nusc.json``.

        Returns:
            The numbers of ``score_matches``; ``range_from_nearest_pose``: samples without LIDAR_TOP, where there are
            any; and, beside the devkit, ``official``: its greatest ``difference`` from ours, and ``of`` which number.
        """
        records = of_subset.records(dict(poses))
        records = {token: records[token] for token in self.truth.samples.tokens}  # the devkit's order
        of_subset.boxes.clear()
        file = write_submission(folder / "results_nusc.json", records, of_subset.used)
        scores = score_detections(self.truth, found_columns(records, self.truth.samples.tokens), self.scoring.protocol)
        if self.truth.nearest:
            scores["range_from_nearest_pose"] = self.truth.nearest
        if self.official is not None:
            difference, name = greatest_difference(scores, self.official.score(file))
            scores["official"] = {"difference": difference, "of": name}
        return scores


def read_protocol(path: str | Path) -> DetectionProtocol:
    """A protocol from a file in the devkit's form, such as its ``detection_cvpr_2019.json``.

    Raises:
        ConfigError: the file cannot be read, or a setting does not fit.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the detection protocol {path}: {error}") from error
    try:
        return DetectionProtocol.of(content)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def notes(subsets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines for a terminal on what was particular, from the numbers of all subsets."""
    lines = []
    nearest = max((row.get("range_from_nearest_pose", 0) for row in subsets.values()), default=0)
    if nearest:
        lines.append(
            f"{nearest} samples have no LIDAR_TOP (the devkit stops there): the range of their boxes is from the ego "
            "pose nearest in time"
        )
    for name, row in subsets.items():
        if "official" in row:
            of = f" ({row['official']['of']})" if row["official"]["of"] else ""
            lines.append(f"{name}: greatest difference from the devkit {row['official']['difference']:.1e}{of}")
    return lines
