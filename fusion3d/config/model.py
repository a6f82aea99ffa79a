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
    Sides,
    Widths4,
)
from fusion3d.types import BEVGrid

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
    """Channels of the camera BEV map; in fusion.stage early, of the features that points are painted with."""
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
    dense: DenseConfig | None = field(default_factory=DenseConfig)
    """voxels and windows: the network behind it; null: none, where the trunk is to be the first to see all sensors."""


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
    """Channels of the radar BEV map, those of ``velocity`` and ``odometry`` included."""
    advance: bool = True
    """Move returns by their velocity times their age, to where they are now; in ``radar_lift`` and ``early`` too."""
    velocity: bool = True
    """Let three channels hold what was measured: mean velocity of the moving returns of a cell (x, y) [10 m/s], and how
    far there are any, 0 to 1."""
    odometry: bool = False
    """Let a channel hold in how many seconds the vehicle would be in each cell at its speed, as its radars measure that
    by what rests. No ego status: without radar nothing is known of it. The world must not be shifted."""
    footprint: Positive = 0.5
    """Standard deviation [m] of the area that a return of 0 dBsm stands for, in ``velocity`` and in dual; 10 dBsm
    more make it 10^(1/4) times as wide."""
    dual: DualConfig = field(default_factory=DualConfig)
    """dual: the two streams."""


@dataclass(frozen=True)
class FusionConfig:
    """Where and how the sensors meet."""

    stage: Literal["early", "middle", "hierarchical", "late", "hybrid"] = "middle"
    """early: as one cloud of points, painted by the images; middle: in their maps; hierarchical: in their maps at
    several scales; late: each sensor has a model of its own, and the boxes are merged; hybrid: those models and one of
    all sensors, whose boxes are merged too. Of the branches, early reads that of the images, lidar for the whole cloud
    (dynamic pillars as wide as a cell, where it is null) and radar.advance. Early and late have no operator."""
    paint: Literal["features", "scores"] = "features"
    """early: what is appended to a point from where it is in the images. features: those of the image network, which
    learn from it; scores: of the ten classes, which learn from camera.image_loss alone."""
    virtual_points: Count = 8
    """early: points that each image cell adds to the cloud, at its likeliest depths."""
    scales: Count = 3
    """hierarchical: how many, each with half the resolution of the one before."""
    merge: Literal["weighted", "voting"] = "weighted"
    """late and hybrid: weighted: boxes of an object are averaged by score, and a model that missed it counts 0; voting:
    what at least half of the models found, with the best one's box and the chance that not all are wrong. Of planners
    that choose: one path, by the mean cost that all models expect."""
    operator: Literal[
        "concat", "add", "weighted", "gated", "bilinear", "tensor", "low_rank", "channel_exchange",
        "cross_attention", "bottleneck", "perceiver",
    ] = "concat"  # fmt: skip
    """What joins the maps: concat: stack and convolve; add: sum; weighted: normalised per-channel weights over the
    sensors that are there; gated: a gate for each sensor, cell and channel; bilinear: products of pairs; tensor: outer
    product of all; low_rank: the same, factorised; channel_exchange: idle channels are given to the others;
    cross_attention: deformable; bottleneck: attention through a few tokens; perceiver: through a latent array."""
    channels: Count = 128
    """Channels of the fused map."""
    rank: Count = 4
    """Terms of the sum of products in bilinear and low_rank."""
    layers: Count = 2
    """Rounds of attention in cross_attention, bottleneck (at least 2) and perceiver."""
    exchange_below: Amount = 0.02
    """channel_exchange: a channel whose scale is smaller is given to the other sensors."""
    sparsity_weight: Amount = 1e-3
    """channel_exchange: weight of the L1 loss on the scales of the channels that may be given away."""
    representation: Literal["joint", "coordinated", "factorised"] = "joint"
    """joint: the maps as they are; coordinated: a contrastive loss makes the sensors say alike of the same cell;
    factorised: each map becomes a part that the sensors share and a private one."""
    contrast_weight: Amount = 0.1
    """coordinated: weight of the contrastive loss."""
    temperature: Positive = 0.1
    """coordinated: of the softmax over cells; the smaller, the more the hardest cells count."""
    similarity_weight: Amount = 0.1
    """factorised: weight of the distance between the sensors' shared parts."""
    difference_weight: Amount = 0.1
    """factorised: weight of the correlation between parts that should be orthogonal."""
    reconstruction_weight: Amount = 0.1
    """factorised: weight of the error of each map rebuilt from its two parts."""
    align: Literal["none", "deformable"] = "none"
    """deformable: each sensor's map is moved by learned offsets to agree with the others (calibration errors)."""


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
    """Weight of a heatmap loss on each sensor's own map, which keeps every branch learning; 0: none. Without use in
    fusion.stage early and late, where sensors have no maps of their own or a whole loss each."""


@dataclass(frozen=True)
class MotionConfig:
    """Motion head: how the detected boxes go on; it needs ``detection``."""

    steps: Count = 6
    """Future positions, 0.5 s apart; 12 are the 6 s of the nuScenes prediction challenge."""
    modes: Count = 6
    """Ways in which each box may go on."""
    channels: MultipleOf4 = 64
    """Width of a box's query."""
    layers: Count = 2
    """Rounds in which the boxes look at each other."""
    neighbours: Count = 16
    """Nearest boxes that each one looks at."""
    min_score: Fraction = 0.1
    """Boxes that do not score above it are looked at by no other, though they get a forecast."""
    passes: Count = 2
    """Times that paths are refined by what the map holds along them."""
    truth_weight: Amount = 1.0
    """Weight in training of ground-truth boxes, from which motion can be learned while few boxes are found yet, beside
    the model's own, whose weight is 1; 0: without them."""
    truth_noise: Amount = 1.0
    """How far those are from the truth: 1 is about as far as found boxes are (0.3 m, 0.1 rad, 5 % in size, 0.5 m/s)."""
    loss_weight: Amount = 0.5
    """Weight of the whole motion loss."""


@dataclass(frozen=True)
class MapConfig:
    """Map head: drivable area, crossings, walkways, stop lines, car parks and dividers, cell by cell."""

    grid: BEVGrid | None = None
    """Its own grid, within the model's; null: the model's. BEVFusion: {x: [-50, 50], y: [-50, 50], resolution: 0.5}."""
    channels: Count = 256
    """Hidden channels."""
    loss_weight: Amount = 1.0
    """Weight of the map loss."""
