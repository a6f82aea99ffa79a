"""The parts of the model; ``null`` leaves a branch or a head out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from fusion3d.config.ranges import (
    Amount,
    ClassAmounts,
    ClassCounts,
    ClassFactors,
    ClassFractions,
    Count,
    Counts,
    Even,
    Fraction,
    MultipleOf4,
    PartAmounts,
    Positive,
    Range,
)
from fusion3d.types import BEVGrid


@dataclass(frozen=True)
class ResNetConfig:
    """The image backbone."""

    depth: Literal[18, 34, 50, 101] = 50
    """Layers, as in the ResNet paper."""
    width: Count = 64
    """Channels of the stem; 64 is the standard network."""
    weights: str = ""
    """Local file of weights with torchvision names (.pt, .pth or .safetensors); empty: random start."""


@dataclass(frozen=True)
class CameraConfig:
    """Camera branch: ResNet + FPN, then lift-splat."""

    backbone: ResNetConfig = field(default_factory=ResNetConfig)
    """The image network."""
    fpn_channels: Count = 256
    """Channels of the image feature map."""
    stride: Literal[8, 16] = 16
    """Pixels per cell of the image feature map; 8 for small images."""
    channels: Count = 80
    """Channels of the camera BEV map."""
    depth: tuple[float, float, float] = (1.0, 60.0, 0.5)
    """First edge, last edge and step of the depth bins [m]."""
    depth_loss: Amount = 1.0
    """Weight of the depth loss (supervised by LiDAR where a sample has it)."""
    image_loss: Amount = 0.0
    """Weight of a loss on the class that each image cell shows, which teaches the features directly; 0: none."""


@dataclass(frozen=True)
class LidarConfig:
    """LiDAR branch: dynamic pillars."""

    channels: Even = 64
    """Channels of the LiDAR BEV map."""
    pillar: Positive = 0.15
    """Side of a pillar [m]; the grid's resolution is 2^n times it."""


@dataclass(frozen=True)
class RadarConfig:
    """Radar branch: pillars with RCS, velocity, time and validity."""

    channels: Even = 64
    """Channels of the radar BEV map."""


@dataclass(frozen=True)
class FusionConfig:
    """How the sensors' BEV maps become one."""

    operator: Literal["concat", "weighted"] = "concat"
    """concat: stack and convolve; weighted: normalised per-channel weights over the sensors that are there."""
    channels: Count = 128
    """Channels of the fused map."""


@dataclass(frozen=True)
class TemporalConfig:
    """How the fused maps of the keyframes before help the present one."""

    operator: Literal["concat", "recurrent"] = "concat"
    """concat: the last maps, each moved to where the vehicle is now, stacked and convolved; recurrent: a state that is
    moved along and updated by a gate (ConvGRU)."""
    keyframes: Annotated[int, Range("at least 2, the present one included", lambda value: value >= 2)] = 2
    """Keyframes that a sample is trained and evaluated with, the present one included."""
    max_gap: Positive = 1.0
    """Memory is forgotten when the next frame comes later than this [s] (keyframes are 0.5 s apart)."""


@dataclass(frozen=True)
class TrunkConfig:
    """The convolutions between the fused map and the heads."""

    channels: Count = 128
    """Channels at full resolution; doubled at half, doubled again at a quarter."""
    blocks: Counts = (2, 2, 2)
    """Residual blocks at full, half and quarter resolution."""
    out_channels: Count = 256
    """Channels that the heads read."""


@dataclass(frozen=True)
class QueryConfig:
    """What the query head alone reads."""

    count: Count = 200
    """Queries of a sample, and so the most objects it can find; they start from the highest peaks of the heatmap."""
    layers: Count = 1
    """Decoder layers; each says its own boxes, which start where those of the layer before are."""
    points: Count = 4
    """Points of the map that each of the 8 attention heads reads for a query."""


@dataclass(frozen=True)
class DetectionConfig:
    """Detection head. Settings by class name only what differs: ``{pedestrian: 0.3}``."""

    head: Literal["center", "query"] = "center"
    """center: boxes at the peaks of a heatmap (CenterPoint); query: a set of boxes from queries that read the map
    (TransFusion)."""
    tasks: Literal["one", "six"] = "one"
    """Of head center. one: what a cell says of its box is shared by all classes; six: CenterPoint's groups of classes,
    each with branches and a loss of its own behind a shared convolution."""
    query: QueryConfig = field(default_factory=QueryConfig)
    """Of head query."""
    channels: Count = 64
    """Hidden channels of each branch; with head query the width of a query, a multiple of 8."""
    heatmap_radius: ClassCounts = field(default_factory=dict)
    """Smallest radius of a peak of the heatmap that is learned [cells], where it is not 2."""
    nms: Literal["auto", "circle", "rotated", "none"] = "auto"
    """How boxes of one class that are too close are removed; auto: circle for head center, none for head query."""
    circle_radius: ClassAmounts = field(default_factory=dict)
    """Of nms circle: smallest distance of two centres [m], where it is not CenterPoint's (car 2, pedestrian 0.42)."""
    rotated_overlap: ClassFractions = field(default_factory=dict)
    """Of nms rotated: largest intersection over union, where it is not 0.2."""
    nms_scale: ClassFactors = field(default_factory=dict)
    """Of nms rotated: by what a box grows before overlaps are measured, where not by 1, so that small ones meet.
    BEVDet: {truck: 0.7, construction_vehicle: 0.7, bus: 0.4, trailer: 0.55, barrier: 1.1, pedestrian: 4.5,
    traffic_cone: 9}."""
    max_boxes: Count = 300
    """Boxes kept per sample (nuScenes allows 500)."""
    class_max_boxes: ClassCounts = field(default_factory=dict)
    """Boxes of a class kept per sample, where fewer."""
    score_threshold: Fraction = 0.02
    """Boxes that do not score above it are dropped."""
    class_score_threshold: ClassFractions = field(default_factory=dict)
    """The same for a class, where it is another."""
    loss_weight: Amount = 1.0
    """Weight of the whole detection loss."""
    velocity_weight: Amount = 0.2
    """Weight of the velocity regression among the box terms."""
    code_weights: PartAmounts = field(default_factory=dict)
    """Weights of offset, height, size, yaw and attribute among the box terms, where they are not 1."""
    regression_weight: Amount = 0.25
    """Weight of all box terms against the heatmap."""
    sensor_weight: Amount = 0.0
    """Weight of a heatmap loss on each sensor's own map, which keeps every branch learning; 0: none."""


@dataclass(frozen=True)
class PlanningConfig:
    """Planning head: an ego query reads the BEV map."""

    steps: Count = 6
    """Future positions, 0.5 s apart."""
    channels: MultipleOf4 = 128
    """Width of the ego query."""
    ego_status: Literal["none", "measured"] = "none"
    """none: sensors and command only; measured: velocity, acceleration and yaw rate go in too."""
    command_dropout: Fraction = 0.2
    """Probability that a training sample's command is made unknown."""
    loss_weight: Amount = 0.5
    """Weight of the planning loss."""


@dataclass(frozen=True)
class MapConfig:
    """Map head: drivable area, crossings, walkways, stop lines, car parks and dividers, cell by cell."""

    grid: BEVGrid | None = None
    """Its own grid, within the model's; null: the model's. BEVFusion: {x: [-50, 50], y: [-50, 50], resolution: 0.5}."""
    channels: Count = 256
    """Hidden channels."""
    loss_weight: Amount = 1.0
    """Weight of the map loss."""
