"""Detections matched with the truth, once: whatever is asked afterwards only counts again.

Letters: G truth boxes and P detections that are scored, H pairs of both, T distance thresholds.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numba
import numpy as np

from fusion3d.errors import Fusion3DError
from fusion3d.metrics.columns import BoxColumns, Samples, Truth
from fusion3d.metrics.filters import ego_offset, scored
from fusion3d.metrics.protocol import CVPR_2019, DetectionProtocol
from fusion3d.types import DETECTION_CLASSES

TP_ERRORS = (
    "ATE",
    "ASE",
    "AOE",
    "AVE",
    "AAE",
)  # position [m], size [1 - IoU], heading [rad], velocity [m/s], attribute
_BARRIER = DETECTION_CLASSES.index("barrier")
_ALIKE = 1 + 1e-9  # distances are compared exactly; this only finds who is compared


@dataclass(frozen=True)
class Objects:
    """What is known of the boxes that are scored, by row: what they are counted by."""

    sample: np.ndarray  # int32, row in Samples
    label: np.ndarray  # int8, index in DETECTION_CLASSES
    distance: np.ndarray  # float32 [m] from the ego, in the plane
    azimuth: np.ndarray  # float32 [rad] in ego: 0 ahead, positive to the left
    speed: np.ndarray  # float32 [m/s], NaN unknown
    num_points: np.ndarray  # int32, LiDAR and radar points inside; -1 for detections
    visibility: np.ndarray  # int8, nuScenes level 1..4, 0 unknown

    def __len__(self) -> int:
        return len(self.sample)

    @staticmethod
    def of(boxes: BoxColumns, samples: Samples) -> Objects:
        """The properties of boxes."""
        offset = ego_offset(boxes, samples)
        azimuth = np.arctan2(offset[:, 1], offset[:, 0]) - samples.heading[boxes.sample]
        return Objects(
            sample=boxes.sample.astype(np.int32),
            label=boxes.label.astype(np.int8),
            distance=np.hypot(offset[:, 0], offset[:, 1]).astype(np.float32),
            azimuth=((azimuth + np.pi) % (2 * np.pi) - np.pi).astype(np.float32),
            speed=np.hypot(boxes.velocity[:, 0], boxes.velocity[:, 1]).astype(np.float32),
            num_points=boxes.num_points.astype(np.int32),
            visibility=boxes.visibility.astype(np.int8),
        )


@dataclass(frozen=True)
class Matches:
    """A split's detections, best first (of equal scores the later goes first), and the truth that each one found."""

    protocol: DetectionProtocol
    samples: Samples
    truth: Objects  # G
    found: Objects  # P
    score: np.ndarray  # [P] float64, falling
    pair: np.ndarray  # [P, T] int32: row of the pair at each of protocol.dist_ths, -1 where nothing was found
    pair_truth: np.ndarray  # [H] int32, row in truth
    pair_error: np.ndarray  # [H, 5] float64, TP_ERRORS; NaN unknown

    @property
    def found_scene(self) -> np.ndarray:
        """[P] the scene of each detection."""
        return self.samples.scene[self.found.sample]

    @property
    def truth_scene(self) -> np.ndarray:
        """[G] the scene of each truth box."""
        return self.samples.scene[self.truth.sample]


def match_detections(truth: Truth, found: BoxColumns, protocol: DetectionProtocol = CVPR_2019) -> Matches:
    """Filter and match, class by class and threshold by threshold, as the benchmark does.

    The best detection chooses first: of the boxes of its class and sample that nobody took, the nearest in the plane
    (of equally near ones the first), if that is nearer than the threshold.

    Args:
        truth: of the split.
        found: detections, in the order of the result file.
        protocol: ranges, thresholds and limits.

    Raises:
        Fusion3DError: a sample has too many detections, or a box is none.
    """
    samples = truth.samples
    for boxes in (found, truth.boxes):
        boxes.check(samples.tokens)
    counts = np.bincount(found.sample, minlength=len(samples))
    if counts.max(initial=0) > protocol.max_boxes_per_sample:
        row = int(counts.argmax())
        raise Fusion3DError(
            f"sample {samples.tokens[row]} has {counts[row]} detections; at most {protocol.max_boxes_per_sample} "
            "are allowed: keep those of the highest scores"
        )
    found = found[scored(found, truth, protocol)]
    found = found[np.argsort(found.score, kind="stable")[::-1]]
    true = truth.boxes[scored(truth.boxes, truth, protocol)]
    order, start = _by_sample_and_class(true, len(samples))
    first, candidate = _candidates(
        found.center, _group(found), true.center, order, start, max(protocol.dist_ths) * _ALIKE
    )
    seeker = np.repeat(np.arange(len(found)), np.diff(first))
    distance = _norm(found.center[seeker, :2] - true.center[candidate, :2])
    chosen = _choose(first, candidate, distance, np.array(protocol.dist_ths, dtype=np.float64), len(true))
    used, pair = np.unique(chosen, return_inverse=True)  # places among the candidates; -1, where there is one, is first
    pair = pair.reshape(chosen.shape) - int(len(used) > 0 and used[0] < 0)
    used = used[used >= 0]
    return Matches(
        protocol=protocol,
        samples=samples,
        truth=Objects.of(true, samples),
        found=Objects.of(found, samples),
        score=found.score,
        pair=pair.astype(np.int32),
        pair_truth=candidate[used].astype(np.int32),
        pair_error=_errors(found[seeker[used]], true[candidate[used]], distance[used]),
    )


def _group(boxes: BoxColumns) -> np.ndarray:
    return boxes.sample * len(DETECTION_CLASSES) + boxes.label


def _by_sample_and_class(boxes: BoxColumns, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows by group, in their order within one, and where each group starts among them."""
    group = _group(boxes)
    order = np.argsort(group, kind="stable")
    return order, np.searchsorted(group[order], np.arange(num_samples * len(DETECTION_CLASSES) + 1))


@numba.njit(cache=True)
def _candidates(
    center: np.ndarray, group: np.ndarray, truth: np.ndarray, order: np.ndarray, start: np.ndarray, reach: float
) -> tuple[np.ndarray, np.ndarray]:
    """For each detection the truth boxes of its group within reach, in their order: [P + 1] starts, [M] rows."""
    first = np.zeros(len(group) + 1, dtype=np.int64)
    rows = np.empty(max(len(group), 16), dtype=np.int64)
    count = 0
    for i in range(len(group)):
        for place in range(start[group[i]], start[group[i] + 1]):
            row = order[place]
            x, y = truth[row, 0] - center[i, 0], truth[row, 1] - center[i, 1]
            if x * x + y * y <= reach * reach:
                if count == len(rows):
                    longer = np.empty(2 * count, dtype=np.int64)
                    longer[:count] = rows
                    rows = longer
                rows[count] = row
                count += 1
        first[i + 1] = count
    return first, rows[:count]


@numba.njit(cache=True)
def _choose(
    first: np.ndarray, candidate: np.ndarray, distance: np.ndarray, thresholds: np.ndarray, num_truth: int
) -> np.ndarray:
    """[P, T] the place among the candidates of what each detection takes, -1 nothing."""
    chosen = np.full((len(first) - 1, len(thresholds)), -1, dtype=np.int64)
    for t in range(len(thresholds)):
        taken = np.zeros(num_truth, dtype=np.bool_)
        for i in range(len(first) - 1):
            least, best = np.inf, -1
            for place in range(first[i], first[i + 1]):
                if not taken[candidate[place]] and distance[place] < least:
                    least, best = distance[place], place
            if least < thresholds[t]:
                taken[candidate[best]] = True
                chosen[i, t] = best
    return chosen


def _norm(offset: np.ndarray) -> np.ndarray:
    """[M, 2] to [M] lengths, to the bit those of ``np.linalg.norm`` of each row.

    That one asks BLAS for a dot product, which may round once where a sum of squares rounds twice; so does matmul.
    Then the same side of a threshold is the same side for the devkit.
    """
    offset = np.ascontiguousarray(offset)
    return np.sqrt(np.matmul(offset[:, None, :], offset[:, :, None])[:, 0, 0])


def _errors(found: BoxColumns, true: BoxColumns, distance: np.ndarray) -> np.ndarray:
    """[H, 5] TP_ERRORS of pairs; NaN where the truth has no velocity or attribute."""
    common = np.minimum(found.size, true.size).prod(axis=1)
    union = found.size.prod(axis=1) + true.size.prod(axis=1) - common
    period = np.where(true.label == _BARRIER, np.pi, 2 * np.pi)  # a barrier has no front
    turn = np.abs((true.yaw - found.yaw + period / 2) % period - period / 2)
    speed = _norm(found.velocity - true.velocity)
    wrong = np.where(true.attribute < 0, np.nan, (found.attribute != true.attribute).astype(np.float64))
    return np.stack([distance, 1 - common / union, turn, speed, wrong], axis=1)


def same_truth(one: Matches, other: Matches) -> bool:
    """Were two results scored against the same truth, by the same protocol?"""
    fields = [f.name for f in dataclasses.fields(Objects)]
    return (
        one.protocol == other.protocol
        and one.samples.tokens == other.samples.tokens
        and all(
            np.array_equal(getattr(one.truth, name), getattr(other.truth, name), equal_nan=name == "speed")
            for name in fields
        )
    )
