"""Configuration: frozen dataclasses are the schema, the documentation and the defaults; YAML holds only differences.

The only file that knows YAML. ``load_config(path, overrides)`` reads a file strictly (an unknown key is an error that
names the nearest known one) and applies ``--a.b value`` overrides; ``differences`` prints what is not default.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from fusion3d.errors import ConfigError
from fusion3d.types import CAMERAS, RADARS, SENSORS, BEVGrid


@dataclass(frozen=True)
class DataConfig:
    """Where the data are and how a sample is read."""

    root: str = "data/nuscenes"
    """Folder that holds ``samples/``, ``sweeps/``, ``maps/`` and the table folder named by ``version``."""
    version: str = "v1.0-trainval"
    """Table folder: v1.0-mini, v1.0-trainval, v1.0-test or one of your own."""
    train_split: str = "train"
    """Split for training: an official name, or a key of the version's ``splits.json``."""
    split: str = "val"
    """Split for evaluation and prediction."""
    sensors: tuple[str, ...] = ("camera", "lidar", "radar")
    """Which kinds of sensor are read at all."""
    cameras: tuple[str, ...] = CAMERAS
    """Camera channels to read."""
    radars: tuple[str, ...] = RADARS
    """Radar channels to read."""
    image_size: tuple[int, int] = (256, 704)
    """Height and width of the network's images [px]."""
    lidar_sweeps: int = 10
    """LiDAR clouds per sample, the keyframe's included."""
    radar_sweeps: int = 6
    """Clouds per radar, the keyframe's included."""
    radar_filter: Literal["none", "valid", "devkit"] = "none"
    """none: every return; valid: invalid_state 0 and its documented usable codes; devkit: the devkit's defaults."""
    lidar_min_distance: float = 1.0
    """Points closer than this in x and y of their own sensor [m] are the vehicle itself and are dropped."""
    min_points: int = 1
    """Boxes with fewer LiDAR + radar points are no training targets (evaluation uses the devkit's own rule)."""
    skip_broken: bool = False
    """True: a sample with a damaged sensor file loads without that sensor and warns; False: it is an error."""
    workers: int = 2
    """Loader processes; 0 loads in the main process."""


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes while training; ``augment: null`` switches them off."""

    image_scale: tuple[float, float] = (-0.06, 0.11)
    """Uniform change of the resize factor around the fitting one."""
    image_rotation: float = 5.4
    """Largest image rotation [degrees]."""
    image_flip: bool = True
    """Mirror each image with probability 1/2 (the projection follows; no label changes)."""
    bev_rotation: float = 22.5
    """Largest rotation about z [degrees]."""
    bev_scale: tuple[float, float] = (0.95, 1.05)
    """Uniform scale of the world."""
    bev_flip: bool = True
    """Mirror along x and along y, each with probability 1/2."""


@dataclass(frozen=True)
class ResNetConfig:
    """The image backbone."""

    depth: Literal[18, 34, 50, 101] = 50
    """Layers, as in the ResNet paper."""
    width: int = 64
    """Channels of the stem; 64 is the standard network."""
    weights: str = ""
    """Local file of weights with torchvision names (.pt, .pth or .safetensors); empty: random start."""


@dataclass(frozen=True)
class CameraConfig:
    """Camera branch: ResNet + FPN, then lift-splat."""

    backbone: ResNetConfig = field(default_factory=ResNetConfig)
    """The image network."""
    fpn_channels: int = 256
    """Channels of the image feature map."""
    stride: Literal[8, 16] = 16
    """Pixels per cell of the image feature map; 8 for small images."""
    channels: int = 80
    """Channels of the camera BEV map."""
    depth: tuple[float, float, float] = (1.0, 60.0, 0.5)
    """First edge, last edge and step of the depth bins [m]."""
    depth_loss: float = 1.0
    """Weight of the depth loss (supervised by LiDAR where a sample has it)."""
    image_loss: float = 0.0
    """Weight of a loss on the class that each image cell shows, which teaches the features directly; 0: none."""


@dataclass(frozen=True)
class LidarConfig:
    """LiDAR branch: dynamic pillars."""

    channels: int = 64
    """Channels of the LiDAR BEV map."""
    pillar: float = 0.15
    """Side of a pillar [m]; the grid's resolution is 2^n times it."""


@dataclass(frozen=True)
class RadarConfig:
    """Radar branch: pillars with RCS, velocity, time and validity."""

    channels: int = 64
    """Channels of the radar BEV map."""


@dataclass(frozen=True)
class FusionConfig:
    """How the sensors' BEV maps become one."""

    operator: Literal["concat", "weighted"] = "concat"
    """concat: stack and convolve; weighted: normalised per-channel weights over the sensors that are there."""
    channels: int = 128
    """Channels of the fused map."""


@dataclass(frozen=True)
class TrunkConfig:
    """The convolutions between the fused map and the heads."""

    channels: int = 128
    """Channels at full resolution; doubled at half, doubled again at a quarter."""
    blocks: tuple[int, ...] = (2, 2, 2)
    """Residual blocks at full, half and quarter resolution."""
    out_channels: int = 256
    """Channels that the heads read."""


@dataclass(frozen=True)
class DetectionConfig:
    """CenterPoint-style detection head."""

    channels: int = 64
    """Hidden channels of each branch."""
    nms: Literal["circle", "rotated", "none"] = "circle"
    """How overlapping boxes are removed, per class."""
    max_boxes: int = 300
    """Boxes kept per sample (nuScenes allows 500)."""
    score_threshold: float = 0.02
    """Boxes below it are dropped."""
    loss_weight: float = 1.0
    """Weight of the whole detection loss."""
    velocity_weight: float = 0.2
    """Weight of the velocity regression among the box terms."""
    regression_weight: float = 0.25
    """Weight of all box terms against the heatmap."""
    sensor_weight: float = 0.0
    """Weight of a heatmap loss on each sensor's own map, which keeps every branch learning; 0: none."""


@dataclass(frozen=True)
class PlanningConfig:
    """Planning head: an ego query reads the BEV map."""

    steps: int = 6
    """Future positions, 0.5 s apart."""
    channels: int = 128
    """Width of the ego query."""
    ego_status: Literal["none", "measured"] = "none"
    """none: sensors and command only; measured: velocity, acceleration and yaw rate go in too."""
    command_dropout: float = 0.2
    """Probability that a training sample's command is made unknown."""
    loss_weight: float = 0.5
    """Weight of the planning loss."""


@dataclass(frozen=True)
class TrainConfig:
    """The optimisation."""

    epochs: int = 20
    """Passes over the training split."""
    batch_size: int = 4
    """Samples per process and step."""
    accumulate: int = 1
    """Batches whose gradients are summed before a step."""
    learning_rate: float = 2e-4
    """Peak of the one-cycle schedule."""
    weight_decay: float = 0.01
    """AdamW."""
    warmup: float = 0.3
    """Fraction of the steps that rise to the peak."""
    clip_norm: float = 35.0
    """Largest gradient norm."""
    ema: float = 0.999
    """Decay of the averaged weights that are evaluated; 0 switches them off."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Autocast type of the forward pass."""
    drop_sensor: float = 0.25
    """Probability that a training sample loses each kind of sensor (never all of those it has)."""
    drop_camera: float = 0.1
    """Probability that a single camera is lost."""
    drop_radar: float = 0.1
    """Probability that a single radar is lost."""
    checkpoint_every: int = 500
    """Steps between checkpoints; one is always written at the end."""
    log_every: int = 20
    """Steps between lines of the log."""


@dataclass(frozen=True)
class Config:
    """One run, whole."""

    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig | None = field(default_factory=AugmentConfig)
    grid: BEVGrid = field(default_factory=BEVGrid)
    camera: CameraConfig | None = field(default_factory=CameraConfig)
    lidar: LidarConfig | None = field(default_factory=LidarConfig)
    radar: RadarConfig | None = field(default_factory=RadarConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    detection: DetectionConfig | None = field(default_factory=DetectionConfig)
    planning: PlanningConfig | None = field(default_factory=PlanningConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 0
    """Everything random starts from it."""
    deterministic: bool = True
    """Bit-identical results on the same machine, at some cost on GPU."""

    @property
    def branches(self) -> tuple[str, ...]:
        """The kinds of sensor that the model has a branch for, in the order of ``SENSORS``."""
        return tuple(sensor for sensor in SENSORS if getattr(self, sensor) is not None)


T = TypeVar("T")


def load_config(path: str | Path | None = None, overrides: list[str] | None = None) -> Config:
    """The configuration in a YAML file (or the defaults), with ``--a.b value`` overrides applied.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, or a value has the wrong type or range.
    """
    import yaml

    values: dict[str, Any] = {}
    if path is not None:
        path = Path(path)
        if path.parent == Path("configs") and not path.exists():  # in another folder it is the shipped one
            package = Path(__file__).parent
            shipped = (folder / path for folder in (package, package.parent))
            path = next((candidate for candidate in shipped if candidate.is_file()), path)
        try:
            loaded = yaml.safe_load(path.read_text())
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the configuration {path}: {error}") from error
        values = {} if loaded is None else loaded
    config = from_dict(values, source=str(path) if path is not None else "defaults")
    return override(config, overrides) if overrides else config


def override(config: Config, overrides: list[str]) -> Config:
    """``config`` with command-line overrides such as ``["--train.epochs", "3"]`` (``--help`` lists every key).

    Raises:
        ConfigError: a value is out of its range.
    """
    import tyro

    return check(tyro.cli(Config, default=config, args=overrides, config=(tyro.conf.AvoidSubcommands,)))


def from_dict(values: Any, source: str = "configuration") -> Config:
    """A ``Config`` from nested plain values, strictly; errors as in ``load_config``."""
    return check(_build(Config, values, source), source)


_RANGES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "data.lidar_sweeps data.radar_sweeps camera.backbone.width camera.fpn_channels camera.channels fusion.channels "
        "trunk.channels trunk.out_channels detection.channels detection.max_boxes planning.steps train.epochs "
        "train.batch_size train.accumulate train.checkpoint_every train.log_every",
        lambda value: value >= 1,
        "at least 1",
    ),
    (
        "seed data.workers data.min_points data.lidar_min_distance camera.depth_loss camera.image_loss "
        "detection.loss_weight "
        "detection.velocity_weight detection.regression_weight detection.sensor_weight planning.loss_weight "
        "train.weight_decay",
        lambda value: 0 <= value < math.inf,
        "0 or more",
    ),
    ("lidar.pillar train.learning_rate train.clip_norm", lambda value: value > 0, "more than 0"),
    (
        "detection.score_threshold planning.command_dropout train.warmup train.ema train.drop_sensor train.drop_camera "
        "train.drop_radar",
        lambda value: 0 <= value <= 1,
        "0 to 1",
    ),
    ("lidar.channels radar.channels", lambda value: value > 0 and value % 2 == 0, "an even number, half for maxima"),
    ("planning.channels", lambda value: value > 0 and value % 4 == 0, "a multiple of 4, for its attention heads"),
    ("augment.image_scale", lambda value: -1 < value[0] <= value[1] < math.inf, "-1 < low <= high"),
    ("augment.bev_scale", lambda value: 0 < value[0] <= value[1] < math.inf, "0 < low <= high"),
    ("trunk.blocks", lambda value: len(value) > 0 and min(value) > 0, "at least one block at each of the scales"),
)


def check(config: Config, source: str = "configuration") -> Config:
    """``config`` itself, if every setting is in its range.

    Raises:
        ConfigError: the first that is not, with what it may be.
    """
    for keys, holds, expected in _RANGES:
        for key in keys.split():
            value: Any = config
            for name in key.split("."):
                value = None if value is None else getattr(value, name)
            if value is not None and not holds(value):
                raise ConfigError(f"{source}: {key}: expected {expected}, found {value!r}")
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain values of a configuration, for JSON or YAML."""
    return dataclasses.asdict(config)


def differences(config: Any, default: Any = None, path: str = "") -> dict[str, Any]:
    """Dotted keys whose value is not the default."""
    default = type(config)() if default is None else default
    found: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value, usual = getattr(config, f.name), getattr(default, f.name)
        if dataclasses.is_dataclass(value) and usual is not None:
            found |= differences(value, usual, f"{path}{f.name}.")
        elif value != usual:
            found[f"{path}{f.name}"] = value
    return found


def _build(schema: type[T], values: Any, path: str) -> T:
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values, found {values!r}")
    hints = typing.get_type_hints(schema)
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1, cutoff=0.0)
            raise ConfigError(f"{path}: unknown key {key!r}; did you mean {near[0]!r}? known: {', '.join(hints)}")
    built = {key: _coerce(hints[key], value, f"{path}: {key}") for key, value in values.items()}
    try:
        return schema(**built)
    except ConfigError as error:  # of a section that checks itself and names itself, as the grid does
        raise ConfigError(f"{path.rpartition(': ')[0]}: {error}") from error


def _coerce(hint: Any, value: Any, path: str) -> Any:
    """``value`` as the type that the schema asks for, or a ConfigError that names the key."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _coerce(next(a for a in args if a is not type(None)), value, path)
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, path)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{path}: expected one of {', '.join(map(repr, args))}, found {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{path}: expected a list, found {value!r}")
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) != len(value):
            raise ConfigError(f"{path}: expected {len(kinds)} values, found {value!r}")
        return tuple(_coerce(kind, item, path) for kind, item in zip(kinds, value, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ConfigError(f"{path}: expected {hint.__name__}, found {value!r}")
    return value
