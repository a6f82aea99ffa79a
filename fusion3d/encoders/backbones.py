"""Image backbones: our ResNet, and those of transformers and timm behind the same face.

A backbone maps [M, 3, H, W] to a list of maps from fine to coarse, the i-th of shape [M, channels[i],
ceil(H / strides[i]), ceil(W / strides[i])], and lists its parameters from early to late.
Letters: M images, C channels, H W rows and columns.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion3d.config import BackboneConfig
from fusion3d.encoders.resnet import IMAGENET, Colours, ResNet, load_weights
from fusion3d.errors import CheckpointError, ConfigError

_PRETRAINED = "pretrained"
_PROBE = 224  # [px] side of the image that shows a network's strides: a multiple of 14, 16 and 32
_MOST, _FEW = 0.9, 4  # a module with more than this share of the parameters, or one of fewer, is no stage yet


class Backbone(Protocol):
    """What the camera encoder asks of an image network."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    colours: Colours

    def __call__(self, images_M3HW: Tensor) -> list[Tensor]:
        """Maps from fine to coarse."""
        ...

    def stages(self) -> list[list[nn.Parameter]]:
        """Every parameter once, in groups from early to late."""
        ...


def make_backbone(config: BackboneConfig, stride: int, pretrained: bool = True) -> Backbone:
    """The network that ``config`` names.

    Args:
        config: which.
        stride: pixels per cell that a plain transformer, whose maps all have one size, shall have.
        pretrained: read the weights that the configuration names, if any.

    Raises:
        ConfigError: a network that is not there, or whose maps cannot be used.
        CheckpointError: weights that cannot be read.
    """
    kind, _, name = config.name.partition(":")
    if kind in ("hf", "timm"):
        if config.width != BackboneConfig.width:
            raise ConfigError(f"camera.backbone.width: found {config.width} with camera.backbone.name {config.name}; "
                              "only a ResNet's width can be set")  # fmt: skip
        make = _from_transformers if kind == "hf" else _from_timm
        network, channels, colours = make(name, config.weights, pretrained)
        return cast(Backbone, ForeignBackbone(network, channels, colours, config, stride))
    if config.weights == _PRETRAINED:
        raise ConfigError(f"camera.backbone.weights: found {_PRETRAINED!r} with camera.backbone.name {config.name}; "
                          "expected a local file of weights with torchvision's names")  # fmt: skip
    network = ResNet(int(config.name.removeprefix("resnet")), config.width)
    if pretrained and config.weights:
        load_weights(network, config.weights)
    return cast(Backbone, network)


class ForeignBackbone(nn.Module):
    """A network of another library.

    Images are padded to whole cells and maps cut to the image, so that a cell always covers the pixels that its index
    says. Maps that have their channels last are turned. The maps of a plain transformer all have the stride of its
    patch (14 px in DINOv2); its images are resized so that a patch covers as many pixels as the feature map
    shall have per cell.
    """

    def __init__(
        self, network: nn.Module, channels: Sequence[int], colours: Colours, config: BackboneConfig, stride: int
    ) -> None:
        super().__init__()
        self.network = network
        self.channels = tuple(channels)
        self.colours = colours
        self.channels_last, own = _shapes_of(network, self.channels, config.name)
        self.patch = own[0] if len(own) > 1 and len(set(own)) == 1 else 0
        self.strides: tuple[int, ...] = (stride,) * len(own) if self.patch else own

    def forward(self, images_M3HW: Tensor) -> list[Tensor]:
        """[M, 3, H, W] to a map for each of ``strides``."""
        rows, cols = images_M3HW.shape[-2:]
        whole = self.strides[-1]
        images_M3HW = F.pad(images_M3HW, (0, -cols % whole, 0, -rows % whole))
        if self.patch:
            size = [side // whole * self.patch for side in images_M3HW.shape[-2:]]
            images_M3HW = F.interpolate(images_M3HW, size=size, mode="bilinear", align_corners=False)
        maps = _maps_of(self.network, images_M3HW)
        if self.channels_last:
            maps = [x_MHWC.permute(0, 3, 1, 2) for x_MHWC in maps]
        return [
            x_MCHW[..., : math.ceil(rows / stride), : math.ceil(cols / stride)]
            for x_MCHW, stride in zip(maps, self.strides, strict=True)
        ]

    def parts(self) -> list[nn.Module]:
        """What the network does one after the other."""
        return _chain(self.network)[0]

    def stages(self) -> list[list[nn.Parameter]]:
        """Every parameter once, in groups from early to late."""
        chain, own = _chain(self.network)
        groups = [own, *([*part.parameters()] for part in chain)]
        return [group for group in groups if group]


def _chain(network: nn.Module) -> tuple[list[nn.Module], list[nn.Parameter]]:
    """The parts of a network in its order, containers of nearly everything opened; and what containers hold besides."""
    total = sum(p.numel() for p in network.parameters())
    chain, own = [network], []
    while True:
        sizes = [sum(p.numel() for p in part.parameters()) for part in chain]
        largest = max(range(len(chain)), key=sizes.__getitem__)
        children = [*chain[largest].children()]
        if not children or (sizes[largest] <= _MOST * total and len(chain) >= _FEW):
            return chain, own
        own += chain[largest].parameters(recurse=False)
        chain[largest : largest + 1] = children


def _maps_of(network: nn.Module, images_M3HW: Tensor) -> list[Tensor]:
    output: Any = network(images_M3HW)
    return list(getattr(output, "feature_maps", output))


def _shapes_of(network: nn.Module, channels: tuple[int, ...], name: str) -> tuple[bool, tuple[int, ...]]:
    """Have a network's maps their channels last, and which strides have they? From a trial with one image."""
    training = network.training
    try:
        with torch.no_grad():
            maps = _maps_of(network.eval(), torch.zeros(1, 3, _PROBE, _PROBE))
    except Exception as error:  # other people's code: whatever it raises, this network cannot be used
        raise ConfigError(
            f"camera.backbone.name: {name} fails on an image of {_PROBE} px: {_first_line(error)}"
        ) from error
    network.train(training)
    shapes = [tuple(x.shape) for x in maps]
    sides = [shape[2] if len(shape) == 4 else 0 for shape in shapes]  # of either order
    strides = [_PROBE // side for side in sides if side]
    sizes = [(count, side, side) for count, side in zip(channels, sides, strict=False)]
    for last in (False, True):
        expected = [(1, *size[last:], *size[:last]) for size in sizes]
        if shapes and shapes == expected and strides == sorted(strides):
            return last, tuple(strides)
    raise ConfigError(
        f"camera.backbone.name: {name} gives maps of shapes {shapes} for an image of {_PROBE} px; expected "
        f"[1, C, rows, columns] or [1, rows, columns, C] from fine to coarse with C of {list(channels)}"
    )


def _from_transformers(name: str, weights: str, pretrained: bool) -> tuple[nn.Module, list[int], Colours]:
    """A backbone of transformers, its maps' channels and what its weights were learned with.

    Nothing is downloaded unless weights are ``pretrained``.
    """
    if weights not in ("", _PRETRAINED):
        raise ConfigError(f"camera.backbone.weights: found {weights!r} with camera.backbone.name hf:{name}; expected "
                          f"{_PRETRAINED!r} (the weights of that name or folder) or nothing")  # fmt: skip
    transformers: Any = _import("transformers")
    offline = weights != _PRETRAINED or Path(name).is_dir()
    try:
        settings = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, local_files_only=offline)
        count = len(settings.stage_names) - 1  # after the stem
        settings.out_indices = sorted({math.ceil(count * quarter / 4) for quarter in (1, 2, 3, 4)})
        network = transformers.AutoBackbone.from_config(settings, trust_remote_code=False)
        if pretrained and weights:  # by the class itself: AutoBackbone would ask the hub about a local folder, too
            network = type(network).from_pretrained(
                name, config=settings, use_safetensors=True, local_files_only=offline, dtype=torch.float32
            )
    except Exception as error:  # of many kinds: no such name, no network, no backbone, no safetensors
        raise ConfigError(
            f"camera.backbone.name: hf:{name} cannot be made ({_first_line(error)}); expected a folder or a "
            f"name on the hub, a backbone with safetensors, in the cache or with camera.backbone.weights {_PRETRAINED}"
        ) from error
    try:
        said, _ = transformers.ImageProcessingMixin.get_image_processor_dict(name, local_files_only=offline)
    except OSError:  # a folder may hold the network alone
        said = {}
    return network, list(network.channels), _colours_said(said, name)


def _colours_said(said: Mapping[str, Any], name: str) -> Colours:
    """What an image processor of transformers does to colours in [0, 1]; ImageNet's where it does not say."""
    if said.get("do_normalize") is False:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    mean, std = said.get("image_mean") or [*IMAGENET[0]], said.get("image_std") or [*IMAGENET[1]]
    try:
        (r, g, b), (sr, sg, sb) = (value if isinstance(value, list) else [value] * 3 for value in (mean, std))
        return (float(r), float(g), float(b)), (float(sr), float(sg), float(sb))
    except (TypeError, ValueError):
        raise ConfigError(
            f"camera.backbone.name: hf:{name}: expected a number or three in its image_mean and image_std, found "
            f"{mean!r} and {std!r}"
        ) from None


def _from_timm(name: str, weights: str, pretrained: bool) -> tuple[nn.Module, list[int], Colours]:
    """A network of timm, its maps' channels and what its weights were learned with."""
    if weights not in ("", _PRETRAINED) and not weights.endswith(".safetensors"):
        raise ConfigError(f"camera.backbone.weights: found {weights!r} with camera.backbone.name timm:{name}; expected "
                          f"{_PRETRAINED!r}, a local .safetensors file or nothing")  # fmt: skip
    if pretrained and weights.endswith(".safetensors") and not Path(weights).is_file():
        raise CheckpointError(f"backbone weights {weights}: no such file")
    timm: Any = _import("timm")
    overlay = {"file": weights} if weights.endswith(".safetensors") else None
    settings = {"features_only": True, "pretrained": pretrained and bool(weights), "pretrained_cfg_overlay": overlay}
    try:
        try:
            network = timm.create_model(name, **settings, dynamic_img_size=True)  # transformers: any size of image
        except TypeError:  # convolutions know no other, nor that setting
            network = timm.create_model(name, **settings)
    except Exception as error:  # of many kinds: no such name, no network, no map of features
        raise ConfigError(f"camera.backbone.name: timm:{name} cannot be made ({_first_line(error)})") from error
    learned = getattr(network, "pretrained_cfg", {})
    colours = learned.get("mean", IMAGENET[0]), learned.get("std", IMAGENET[1])
    return network, list(network.feature_info.channels()), colours


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except Exception as error:  # a torchvision that does not fit torch raises a RuntimeError
        prefix = {"transformers": "hf", "timm": "timm"}[package]
        raise ConfigError(
            f"camera.backbone.name: {prefix}:NAME needs {package}, which cannot be imported ({_first_line(error)}); "
            f"pip install 'fusion3d[{prefix}]', or take a ResNet"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
