"""The parts of the model; ``null`` leaves a branch or a head out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from fusion3d.config.ranges import Amount, Count, Counts, Even, Fraction, MultipleOf4, Positive, Range

BackboneName = Annotated[
    str,
    Range(
        "resnet18, resnet34, resnet50, resnet101, hf:NAME (transformers) or timm:NAME",
        lambda value: (
            value in ("resnet18", "resnet34", "resnet50", "resnet101")
            or (value.startswith(("hf:", "timm:")) and bool(value.partition(":")[2].strip()))
        ),
    ),
]


@dataclass(frozen=True)
class BackboneConfig:
    """The image backbone."""

    name: BackboneName = "resnet50"
    """resnet18, resnet34, resnet50 or resnet101; hf:NAME, a backbone of transformers by its local folder or its name on
    the hub; timm:NAME, a network of timm."""
    width: Count = 64
    """Channels of a ResNet's stem; 64 is the standard network."""
    weights: str = ""
    """Local file of weights: for a ResNet with torchvision names (.pt, .pth or .safetensors), for timm .safetensors.
    pretrained: those that a hf or timm name stands for, downloaded where they are not in the cache. Empty: random."""
    checkpointing: bool = False
    """Keep only what goes in and out of each stage, and compute the rest again in the backward pass: less memory."""


@dataclass(frozen=True)
class CameraConfig:
    """Camera branch: backbone and neck, then the view transform."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The image network."""
    neck: Literal["fpn", "lss_fpn"] = "fpn"
    """fpn: maps of all scales are added up; lss_fpn: the deeper is stacked onto the shallower and convolved."""
    fpn_channels: Count = 256
    """Channels of the image feature map."""
    stride: Literal[8, 16] = 16
    """Pixels per cell of the image feature map; 8 for small images."""
    view: Literal["lift", "aware_lift", "lidar_lift", "radar_lift", "deformable", "unproject"] = "lift"
    """How image features come into the grid. lift: out along a depth distribution; aware_lift: the same with a depth
    network that knows the camera; lidar_lift: depth helped by LiDAR; radar_lift: by radar; deformable: cells look into
    the images by attention; unproject: cells read the images where they are seen, without depth."""
    channels: Count = 80
    """Channels of the camera BEV map."""
    depth: tuple[float, float, float] = (1.0, 60.0, 0.5)
    """First edge, last edge and step of the depth bins [m]."""
    heights: Count = 8
    """Points above each other in a cell that deformable and unproject look at, evenly spread over the grid's z."""
    layers: Annotated[int, Range("1 to 3", lambda value: 1 <= value <= 3)] = 2
    """Layers of attention of deformable."""
    depth_loss: Amount = 1.0
    """Weight of the depth loss (supervised by LiDAR where a sample has it); 0 for views without depth."""
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
class DetectionConfig:
    """CenterPoint-style detection head."""

    channels: Count = 64
    """Hidden channels of each branch."""
    nms: Literal["circle", "rotated", "none"] = "circle"
    """How overlapping boxes are removed, per class."""
    max_boxes: Count = 300
    """Boxes kept per sample (nuScenes allows 500)."""
    score_threshold: Fraction = 0.02
    """Boxes below it are dropped."""
    loss_weight: Amount = 1.0
    """Weight of the whole detection loss."""
    velocity_weight: Amount = 0.2
    """Weight of the velocity regression among the box terms."""
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
