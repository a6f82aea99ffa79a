"""The planner, and the occupancy that it can read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fusion3d.config.ranges import Amount, Count, Fraction, MultipleOf4, Positive, ScoreAmounts


@dataclass(frozen=True)
class AnchorConfig:
    """What the anchor planner alone reads."""

    count: Count = 32
    """Anchors, and so paths that are chosen among; 32 for some dozens of scenes, 256 for all of nuScenes."""
    spread: Positive = 1.5
    """Mean distance from the driven path at which an anchor counts 1/e as likely as one that is the path [m]. Much less
    than what anchors are apart, and few drives teach little."""
    imitation_weight: Amount = 0.5
    """Weight of telling which anchor the human drives."""
    position_weight: Amount = 1.0
    """Weight of the distance from the driven path of those that are likely it, refined."""
    heading_weight: Amount = 0.2
    """Weight of their heading."""
    score_weight: Amount = 0.5
    """Weight of foreseeing what every path is worth."""
    prices: ScoreAmounts = field(default_factory=dict)
    """The path is chosen that is expected to cost least: a metre for every metre from where the human drives, and for a
    collision or what else is bad, were it certain, these [m], where they are not the usual ones (collision 40, off_road
    5, all others 0). Of occupied and undrivable: with ``occupancy``."""
    reject: bool = False
    """Do not choose a path that hits a detected box, rolled out, if there is another."""
    reject_score: Fraction = 0.3
    """Of reject: boxes below it are not looked at."""


@dataclass(frozen=True)
class PlanningConfig:
    """Planning head."""

    head: Literal["query", "anchors"] = "query"
    """query: a query for the vehicle reads the map and says a path (BEV-Planner); anchors: typical paths of the
    training split are refined by what lies under them, scored by the definitions of the metric, and one is chosen.
    Query is the default because it needs nothing but a configuration."""
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    """Of head anchors."""
    steps: Count = 6
    """Future positions, 0.5 s apart."""
    channels: MultipleOf4 = 128
    """Width of the ego query and of the paths'."""
    ego_status: Literal["none", "predicted", "measured"] = "none"
    """none: sensors and command only; predicted: speed and yaw rate are told from the map, learned from past poses, and
    go in; measured: velocity, acceleration and yaw rate go in."""
    status_dropout: Fraction = 0.5
    """Of measured: probability that a training sample's status is made unknown."""
    status_weight: Amount = 0.2
    """Of predicted: weight of telling speed and yaw rate."""
    command_dropout: Fraction = 0.2
    """Probability that a training sample's command is made unknown."""
    loss_weight: Amount = 0.5
    """Weight of the planning loss."""


@dataclass(frozen=True)
class OccupancyConfig:
    """Occupancy head: who is where, now and in 1, 2 and 3 s, and the drivable area, for head anchors to read."""

    channels: Count = 64
    """Hidden channels."""
    loss_weight: Amount = 1.0
    """Weight of the occupancy loss."""
