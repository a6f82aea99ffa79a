"""Scoring the boxes of an evaluation: submission, official numbers, and the devkit beside them where it is wanted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion3d.config import DataConfig
from fusion3d.engine.columns import found_columns
from fusion3d.engine.matches import MATCHES, write_matches
from fusion3d.engine.official import Official, greatest_difference
from fusion3d.engine.submission import RESULTS_FILE, write_submission
from fusion3d.errors import ConfigError
from fusion3d.files import read_json
from fusion3d.metrics.bootstrap import RESAMPLES, Draws, Sampled, draw_scenes, sample_numbers
from fusion3d.metrics.columns import BoxColumns, Truth
from fusion3d.metrics.detection import MEANS, nested, score_matches
from fusion3d.metrics.matching import Matches, match_detections
from fusion3d.metrics.protocol import CVPR_2019, DetectionProtocol
from fusion3d.metrics.strata import make_strata

Records = Mapping[str, Sequence[Mapping[str, Any]]]  # boxes in the submission's format, by sample token
SURE = ("NDS", "mAP")  # what is printed with intervals


@dataclass(frozen=True)
class Scoring:
    """How boxes are scored."""

    protocol: DetectionProtocol = CVPR_2019
    official: bool = False  # the devkit beside ours
    resamples: int = RESAMPLES  # of the scenes, for intervals; 0: none


class BoxScorer:
    """Scores the boxes of one subset of sensors after the other against the same truth.

    Args:
        truth: of the samples that were evaluated.
        data: where the data set is.
        scoring: how.

    Raises:
        Fusion3DError: the devkit is wanted, and cannot be imported or cannot read the data set.
    """

    def __init__(self, truth: Truth, data: DataConfig, scoring: Scoring) -> None:
        self.truth, self.scoring = truth, scoring
        where = data.root, data.version, truth.samples.tokens
        self.official = Official(*where, scoring.protocol) if scoring.official else None

    def score(self, records: Records, sensors: Iterable[str], folder: Path) -> dict[str, Any]:
        """Write a subset's submission and score it.

        Args:
            records: boxes in the submission's format, by sample token; their order decides between equal scores.
            sensors: that really went in.
            folder: gets ``results_nusc.json`` and ``matches.npz``.

        Returns:
            The numbers of ``score_matches``, and of ``with_intervals``; ``range_from_nearest_pose``: samples without
            LIDAR_TOP, where there are any; and, beside the devkit, ``official``: its greatest ``difference`` from ours,
            and ``of`` which number.
        """
        found = found_columns(records, self.truth.samples.tokens)
        file = write_submission(folder / RESULTS_FILE, records, sensors)
        return self.score_columns(found, folder, file, list(records))

    def score_columns(
        self, found: BoxColumns, folder: Path, submission: Path | None, order: Sequence[str]
    ) -> dict[str, Any]:
        """``score`` for boxes that somebody has written down already.

        Args:
            found: boxes; their order decides between equal scores.
            folder: gets ``matches.npz``.
            submission: the same boxes as a file, for the devkit where it is wanted.
            order: of the samples in that file.
        """
        matches = match_detections(self.truth, found, self.scoring.protocol)
        write_matches(folder / MATCHES, matches)
        scores = score_matches(matches)
        if self.scoring.resamples:
            scores |= with_intervals(matches, self.scoring.resamples)
        if self.truth.nearest:
            scores["range_from_nearest_pose"] = self.truth.nearest
        if self.official is not None:
            assert submission is not None
            difference, name = greatest_difference(scores, self.official.score(submission, order))
            scores["official"] = {"difference": difference, "of": name}
        return scores


def with_intervals(matches: Matches, resamples: int = RESAMPLES) -> dict[str, Any]:
    """What a result says beyond its numbers: how sure they are, and where they come from.

    Args:
        matches: the result.
        resamples: of its scenes; strata, which are many, get a quarter of them.

    Returns:
        ``num_scenes``; ``intervals``: by number (MEANS, ``AP.car`` ..., ``micro.AP`` ...) the 95 % interval, None where
        the scenes are too few for any. ``strata``: by dimension and stratum ``num_truth``, ``num_classes``, MEANS over
        the classes that the stratum has, ``AP`` by class, ``micro``, and ``intervals``.
    """
    num_scenes = len(matches.samples.scenes)
    draws, fewer = draw_scenes(num_scenes, resamples), draw_scenes(num_scenes, -(-resamples // 4))
    strata = {
        dimension: {name: _part(sample_numbers(matches, fewer, of.stratum(name)), fewer) for name in of.names}
        for dimension, of in make_strata(matches).items()
    }
    whole = sample_numbers(matches, draws).intervals(draws)
    return {"num_scenes": num_scenes, "intervals": whole, "strata": strata}


def _part(sampled: Sampled, draws: Draws) -> dict[str, Any]:
    """A stratum's numbers; its intervals of means and of what is pooled."""
    rows = nested(sampled.value)
    told = {name: rows[name] for name in (*MEANS, "AP", "micro")}
    shown = (*MEANS, *(name for name in sampled.value if name.startswith("micro.")))
    counts = {"num_truth": sampled.num_truth, "num_classes": sampled.num_classes}
    return {**counts, **told, "intervals": sampled.intervals(draws, shown)}


def read_protocol(path: str | Path) -> DetectionProtocol:
    """A protocol from a file in the devkit's form, such as its ``detection_cvpr_2019.json``.

    Raises:
        ConfigError: the file cannot be read, or a setting does not fit.
    """
    content = read_json(path, "expected a detection protocol, such as the devkit's", error=ConfigError)
    try:
        return DetectionProtocol.of(content)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def notes(subsets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines for a terminal on what was particular, from the numbers of all subsets."""
    lines = []
    last = list(subsets.values())[-1] if subsets else {}
    if "intervals" in last:
        lines += ["", f"95 % intervals over {last['num_scenes']} scenes:"]
        lines += [f"{name:<20}" + "".join(f"{_sure(row, of):>28}" for of in SURE) for name, row in subsets.items()]
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


def _sure(row: Mapping[str, Any], name: str) -> str:
    between = row["intervals"][name]
    return f"{name} {row[name]:.3f} " + ("[one scene]" if between is None else f"[{between[0]:.3f}, {between[1]:.3f}]")
