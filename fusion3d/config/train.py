"""The optimisation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fusion3d.config.ranges import Amount, ClassAmounts, Count, Drops, Fraction, Positive


@dataclass(frozen=True)
class TrainConfig:
    """The optimisation."""

    epochs: Count = 20
    """Passes over the training split."""
    batch_size: Count = 4
    """Samples per process and step."""
    order: Literal["shuffled", "class_balanced"] = "shuffled"
    """shuffled: each sample once in an epoch; class_balanced: every class is drawn equally often (CBGS)."""
    accumulate: Count = 1
    """Batches whose gradients are summed before a step."""
    learning_rate: Positive = 2e-4
    """Its peak."""
    drops: Drops = ()
    """Fractions of the steps after which the learning rate is a tenth of what it was, as in BEVDepth and CRN; none: a
    cosine up to the peak and another one down."""
    weight_decay: Amount = 0.01
    """AdamW."""
    backbone_rate: Fraction = 1.0
    """Learning rate of the image backbone over that of all else; below 1 where its weights are pretrained."""
    layer_decay: Fraction = 1.0
    """Learning rate of each stage of the image backbone over that of the stage after it."""
    warmup: Fraction = 0.3
    """Fraction of the steps that rise to the peak: in a cosine, or with ``drops`` in a line."""
    clip_norm: Positive = 35.0
    """Largest gradient norm."""
    ema: Fraction = 0.999
    """Decay of the averaged weights that are evaluated; 0 switches them off."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Autocast type of the forward pass."""
    checkpoint_activations: bool = False
    """Keep only the inputs of residual blocks, and of the stages of hf and timm backbones, and compute their inside
    again in the backward pass: less memory, more time."""
    compile: bool = False
    """Compile the dense parts (image backbone and neck, trunk, the heads' convolutions) with torch.compile."""
    sync_batchnorm: bool = False
    """Statistics of batch normalisation over the batches of all processes."""
    shard: bool = False
    """Each process keeps only its part of weights, gradients, averages and optimiser state (FSDP2)."""
    drop_sensor: Fraction = 0.25
    """Probability that a training sample loses each kind of sensor (never all of those it has)."""
    subsets: Count = 1
    """Different subsets of its kinds of sensors under which a sample is seen in each step, drawn one after the other as
    ``drop_sensor`` says; three kinds have 7. The encoders run once for all of them, unless one looks at another's
    sensor (camera.view lidar_lift and radar_lift, fusion.stage early); losses are means over the subsets."""
    drop_camera: Fraction = 0.1
    """Probability that a single camera is lost."""
    drop_radar: Fraction = 0.1
    """Probability that a single radar is lost."""
    checkpoint_every: Count = 500
    """Steps between checkpoints; one is always written at the end."""
    start: tuple[str, ...] = ()
    """Folders of checkpoints or runs whose (averaged) weights a new run begins with, where names and shapes fit. Models
    of the same sensors come first, then in this order; what one filled stays. Not looked at when a run goes on."""
    fresh: tuple[str, ...] = ()
    """Parts of the model, such as fuse or models.joint.trunk, that begin anew whatever ``start`` has. Looked at when it
    is."""
    log_every: Count = 20
    """Steps between lines of the log."""


@dataclass(frozen=True)
class TrackerConfig:
    """How detections become tracks."""

    max_age: Count = 3
    """Keyframes after its last detection in which a track can still be found again."""
    min_score: Fraction = 0.0
    """Detections with less score are no part of a track."""
    gates: ClassAmounts = field(default_factory=dict)
    """How far from where its velocity puts it before [m] a detection may be from its track, for classes whose gate is
    not that of CenterPoint."""


@dataclass(frozen=True)
class EvaluationConfig:
    """How a trained model is run."""

    tta: Literal["none", "flip", "rotate", "flip_rotate"] = "none"
    """Test-time augmentation: views of each sample that are predicted and merged. flip: 4, mirrored in x and y; rotate:
    5, turned by up to 12.5 degrees; flip_rotate: 20, all of those. Planners that choose do so once, by the mean cost
    that all views expect."""
    stream: bool = False
    """With temporal: samples come one by one and are read once; the model remembers all of the scene so far, as it does
    in a vehicle, instead of reading the last ``temporal.keyframes`` for each of them."""
    strict: bool = False
    """Refuse to run a model that reads more of the past than the nuScenes leaderboard allows."""
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    """For the task tracking."""
    calibrated: bool = False
    """Scores at the checkpoint's temperatures, which ``calibrate`` wrote beside its weights: as sure as they are right.
    No AP changes."""
    stride: Count = 1
    """Every how many-th keyframe of each scene is looked at, at least one; above 1 numbers are of a sample of it."""
