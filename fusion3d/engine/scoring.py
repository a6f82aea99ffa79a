"""Scoring the boxes of an evaluation: submission, official numbers, and the devkit beside them where it is wanted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion3d.config import DataConfig
from fusion3d.data.nuscenes import Tables
from fusion3d.data.splits import samples_of
from fusion3d.engine.columns import found_columns
from fusion3d.engine.ground_truth import without_reference
from fusion3d.engine.matches import MATCHES, write_matches
from fusion3d.engine.official import Official, devkit, greatest_difference
from fusion3d.engine.submission import RESULTS_FILE, write_submission
from fusion3d.errors import ConfigError, Fusion3DError
from fusion3d.files import read_json
from fusion3d.metrics.bootstrap import FEWEST_RESAMPLES, RESAMPLES, Draws, Sampled, draw_scenes, mix, sample_numbers
from fusion3d.metrics.columns import BoxColumns, Truth, told_nearest
from fusion3d.metrics.detection import MEANS, nested, score_matches
from fusion3d.metrics.matching import Matches, match_detections
from fusion3d.metrics.protocol import CVPR_2019, DetectionProtocol
from fusion3d.metrics.shapley import has_every_subset, sensor_worth, shares
from fusion3d.metrics.strata import make_strata
from fusion3d.types import DETECTION_CLASSES

Records = Mapping[str, Sequence[Mapping[str, Any]]]  # boxes in the submission's format, by sample token
SURE = ("NDS", "mAP")  # what is printed with intervals


@dataclass(frozen=True)
class Scoring:
    """How boxes are scored."""

    protocol: DetectionProtocol = CVPR_2019
    official: bool = False  # the devkit beside ours
    resamples: int = RESAMPLES  # of the scenes, for intervals; 0: none

    def check(self, tables: Tables, split: str, tasks: Sequence[str]) -> None:
        """See, before anything runs, that what is wanted is scored, and that the devkit can where it is wanted.

        Raises:
            ConfigError: detections are not scored at all.
            Fusion3DError: the devkit cannot be imported, or stops at samples without LIDAR_TOP.
        """
        if "detection" not in tasks and (self.official or self.protocol != CVPR_2019):
            raise ConfigError(f"--official and --protocol are of detections; to be scored: {', '.join(tasks)}")
        if self.official:
            devkit()
            nearest = without_reference(tables, samples_of(tables, split))
            if nearest:
                raise Fusion3DError(
                    f"--official: {nearest} samples of {split!r} have no LIDAR_TOP, at which the devkit stops; without "
                    "--official ours can score them"
                )


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
        self.draws = draw_scenes(len(truth.samples.scenes), scoring.resamples)
        self.sampled: dict[str, Sampled] = {}  # by subset

    def score(self, name: str, records: Records, sensors: Iterable[str], folder: Path) -> dict[str, Any]:
        """Write a subset's submission and score it.

        Args:
            name: of the subset.
            records: boxes in the submission's format, by sample token; their order decides between equal scores.
            sensors: that really went in.
            folder: gets ``results_nusc.json`` and ``matches.npz``.

        Returns:
            The numbers of ``score_matches``; ``num_scenes``; ``intervals``: by number (MEANS, ``AP.car`` ...,
            ``micro.AP`` ...) the 95 % interval, None where the scenes are too few for any; ``strata`` as ``in_strata``
            gives them; ``range_from_nearest_pose``: samples without LIDAR_TOP, where there are any; and, beside the
            devkit, ``official``: its greatest ``difference`` from ours, and ``of`` which number.
        """
        found = found_columns(records, self.truth.samples.tokens)
        file = write_submission(folder / RESULTS_FILE, records, sensors)
        return self.score_columns(name, found, folder, file, list(records))

    def score_columns(
        self, name: str, found: BoxColumns, folder: Path, submission: Path | None, order: Sequence[str]
    ) -> dict[str, Any]:
        """``score`` for boxes that somebody has written down already.

        Args:
            name: of what found them.
            found: boxes; their order decides between equal scores.
            folder: gets ``matches.npz``.
            submission: the same boxes as a file, for the devkit where it is wanted.
            order: of the samples in that file.
        """
        matches = match_detections(self.truth, found, self.scoring.protocol)
        write_matches(folder / MATCHES, matches)
        scores = score_matches(matches)
        sampled = self.sampled[name] = sample_numbers(matches, self.draws)
        scores["num_scenes"] = len(self.truth.samples.scenes)
        if self.scoring.resamples:
            scores["intervals"] = sampled.intervals(self.draws)
        scores["strata"] = in_strata(matches, self.scoring.resamples)
        if self.truth.nearest:
            scores["range_from_nearest_pose"] = self.truth.nearest
        if self.official is not None:
            assert submission is not None
            difference, of = greatest_difference(scores, self.official.score(submission, order))
            scores["official"] = {"difference": difference, "of": of}
        return scores

    def beside(self, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """What the subsets say together; on the same draws, so that what is hard for all of them is no difference.

        Args:
            rows: by subset, what ``score`` returned.

        Returns:
            ``kept``: by subset what is left of the last one's ``NDS`` and ``mAP``, and ``intervals`` of these;
            ``shapley``: where every subset of several is there, what ``sensor_worth`` gives, and ``intervals`` by
            number and sensor.
        """
        whole = [*self.sampled.values()][-1]
        kept = {name: of / whole for name, of in self.sampled.items()}
        found = {
            "kept": {
                name: {**{key: of.value[key] for key in SURE}, "intervals": of.intervals(self.draws, SURE)}
                for name, of in kept.items()
            }
        }
        if len(rows) > 1 and has_every_subset(rows):
            worth = {
                sensor: mix([(share, self.sampled[name]) for name, share in of.items()]).intervals(self.draws)
                for sensor, of in shares(rows).items()
            }
            shown = [*SURE, *(f"AP.{label}" for label in DETECTION_CLASSES)]
            between = {key: {sensor: of[key] for sensor, of in worth.items()} for key in shown}
            found["shapley"] = {**sensor_worth(rows), "intervals": between}
        return found


def in_strata(matches: Matches, resamples: int = RESAMPLES) -> dict[str, dict[str, Any]]:
    """Where the numbers of a result come from.

    Args:
        matches: the result.
        resamples: of its scenes; strata, which are many, get a quarter of them, but ``FEWEST_RESAMPLES``.

    Returns:
        By dimension and stratum ``num_truth``, ``num_classes``, MEANS over the classes that the stratum has, ``AP`` by
        class, ``micro``, and ``intervals``.
    """
    fewer = max(FEWEST_RESAMPLES, -(-resamples // 4)) if resamples else 0
    draws = draw_scenes(len(matches.samples.scenes), fewer)
    return {
        dimension: {name: _part(sample_numbers(matches, draws, of.stratum(name)), draws) for name in of.names}
        for dimension, of in make_strata(matches).items()
    }


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
    lines += told_nearest(subsets)
    for name, row in subsets.items():
        if "official" in row:
            of = f" ({row['official']['of']})" if row["official"]["of"] else ""
            lines.append(f"{name}: greatest difference from the devkit {row['official']['difference']:.1e}{of}")
    return lines


def _sure(row: Mapping[str, Any], name: str) -> str:
    between = row["intervals"][name]
    return f"{name} {row[name]:.3f} " + ("[one scene]" if between is None else f"[{between[0]:.3f}, {between[1]:.3f}]")
