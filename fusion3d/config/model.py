"""The parts of the model; ``null`` leaves a branch or a head out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from fusion3d.config.ranges import Amount, Count, Counts, Even, Fraction, MultipleOf4, Positive, Range, Sides, Widths4


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
class VoxelConfig:
    """The sparse 3-D network of ``lidar.encoder: voxels``."""

    side: Positive = 0.075
    """Side of a voxel on the ground [m]; the grid's resolution is 8 * 2^n times it, for any whole number n."""
    height: Positive = 0.2
    """Height of a voxel [m]; the grid is a whole number of voxels high, at least 24."""
    channels: Widths4 = (16, 32, 64, 128)
    """Channels at the four scales."""
    blocks: Count = 2
    """Residual blocks at each scale."""
    backend: Literal["ours", "spconv", "spconv-triton"] = "ours"
    """Who computes the sparse convolutions; the weights are the same."""


@dataclass(frozen=True)
class WindowConfig:
    """The attention network of ``lidar.encoder: windows``."""

    pillar: Positive = 0.3
    """Side of a pillar [m]; the grid's resolution is 2^n times it."""
    channels: Even = 128
    """Channels of a pillar."""
    heads: Count = 8
    """Heads of attention, which share the channels."""
    blocks: Count = 4
    """Blocks of two layers each; every other block has its windows shifted by half."""
    window: Sides = (30, 6)
    """Long and short side of a window [pillars]: long in x in a block's first layer, in y in its second."""


@dataclass(frozen=True)
class DenseConfig:
    """The dense 2-D network behind voxels and windows."""

    channels: Counts = (128, 256)
    """Channels at each scale: the first is the grid's (or the voxels', where those are coarser), then half, ..."""
    blocks: Counts = (5, 5)
    """3x3 convolutions at each scale, besides the one that begins it."""


@dataclass(frozen=True)
class LidarConfig:
    """LiDAR branch. Each encoder reads ``channels`` and what is said to be its own; the rest waits for the others."""

    encoder: Literal["pillars", "voxels", "windows"] = "pillars"
    """pillars: dynamic pillars and strided convolutions; voxels: sparse 3-D convolution (SECOND), then ``dense``;
    windows: attention among the pillars of a window (DSVT), then ``dense``."""
    channels: Even = 64
    """Channels of the LiDAR BEV map; a multiple of the number of scales of ``dense`` where that is read."""
    pillar: Positive = 0.15
    """pillars: side of a pillar [m]; the grid's resolution is 2^n times it."""
    voxels: VoxelConfig = field(default_factory=VoxelConfig)
    """voxels: the sparse network."""
    windows: WindowConfig = field(default_factory=WindowConfig)
    """windows: the attention network."""
    dense: DenseConfig = field(default_factory=DenseConfig)
    """voxels and windows: the network behind it."""


@dataclass(frozen=True)
class DualConfig:
    """The two streams of ``radar.encoder: dual``."""

    channels: Count = 64
    """Channels of each stream."""
    heads: Count = 4
    """Heads of attention, which share the channels."""
    blocks: Count = 3
    """Blocks; the streams exchange what they know after each."""


@dataclass(frozen=True)
class RadarConfig:
    """Radar branch: RCS, velocity, age and validity of the returns."""

    encoder: Literal["pillars", "dual"] = "pillars"
    """pillars: one cell for each return; dual: a point and an attention stream, and returns that cover more cells the
    larger their RCS (RadarBEVNet)."""
    channels: Even = 64
    """Channels of the radar BEV map, those of ``velocity`` included."""
    advance: bool = True
    """Move returns by their velocity times their age, to where they should be now."""
    velocity: bool = True
    """Let three channels hold what was measured: mean velocity of the moving returns of a cell (x, y) [10 m/s], and how
    far there are any, 0 to 1."""
    footprint: Positive = 0.5
    """Standard deviation [m] of the area that a return of 0 dBsm stands for, in ``velocity`` and in dual; 10 dBsm
    more make it 10^(1/4) times as wide."""
    dual: DualConfig = field(default_factory=DualConfig)
    """dual: the two streams."""


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
