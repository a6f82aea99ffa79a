"""ResNet (He et al., 2015) whose weights carry torchvision's names, so that published files load.

Letters: M images, C channels, H W rows and columns.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from fusion3d.encoders.blocks import Subsampled1x1
from fusion3d.errors import CheckpointError, ConfigError

_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (ResNet-18 and -34)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _downsample(inputs, width * self.expansion, stride)

    def forward(self, x_MCHW: Tensor) -> Tensor:
        """[M, inputs, H, W] to [M, width, H / stride, W / stride]."""
        y_MCHW = self.relu(self.bn1(self.conv1(x_MCHW)))
        y_MCHW = self.bn2(self.conv2(y_MCHW))
        return self.relu(y_MCHW + (x_MCHW if self.downsample is None else self.downsample(x_MCHW)))


class Bottleneck(nn.Module):
    """1x1, 3x3 (which carries the stride, as torchvision's does), 1x1 (ResNet-50 and -101)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(inputs, width * self.expansion, stride)

    def forward(self, x_MCHW: Tensor) -> Tensor:
        """[M, inputs, H, W] to [M, 4 width, H / stride, W / stride]."""
        y_MCHW = self.relu(self.bn1(self.conv1(x_MCHW)))
        y_MCHW = self.relu(self.bn2(self.conv2(y_MCHW)))
        y_MCHW = self.bn3(self.conv3(y_MCHW))
        return self.relu(y_MCHW + (x_MCHW if self.downsample is None else self.downsample(x_MCHW)))


def _downsample(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(Subsampled1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))


Colours = tuple[tuple[float, float, float], tuple[float, float, float]]  # mean and deviation of RGB in [0, 1]
IMAGENET: Colours = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ResNet(nn.Module):
    """The network without its classifier; ``channels`` are those of the maps at strides 4, 8, 16 and 32."""

    def __init__(self, depth: int = 50, width: int = 64) -> None:
        super().__init__()
        if depth not in _STAGES:
            raise ConfigError(f"ResNet depth: expected one of {', '.join(map(str, _STAGES))}, found {depth}")
        block = BasicBlock if depth in (18, 34) else Bottleneck
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs, stages = width, []
        for index, count in enumerate(_STAGES[depth]):
            blocks = []
            for position in range(count):
                blocks.append(block(inputs, width * 2**index, stride=2 if index and not position else 1))
                inputs = width * 2**index * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.channels = tuple(width * 2**index * block.expansion for index in range(4))
        self.strides = (4, 8, 16, 32)
        self.colours = IMAGENET
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images_M3HW: Tensor) -> list[Tensor]:
        """[M, 3, H, W] to four maps, at strides 4, 8, 16 and 32 (sizes rounded up)."""
        x_MCHW = self.maxpool(self.relu(self.bn1(self.conv1(images_M3HW))))
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x_MCHW = stage(x_MCHW)
            maps.append(x_MCHW)
        return maps

    def stages(self) -> list[list[nn.Parameter]]:
        """Every parameter once, in groups from early to late: the stem and the four stages."""
        stem = [*self.conv1.parameters(), *self.bn1.parameters()]
        return [stem, *([*stage.parameters()] for stage in (self.layer1, self.layer2, self.layer3, self.layer4))]


def load_weights(network: ResNet, path: str | Path) -> None:
    """Fill ``network`` from a local file with torchvision's names; the classifier (``fc``) is passed over.

    Args:
        network: changed in place.
        path: .safetensors, or .pt/.pth (read with ``weights_only``, so nothing in it is executed).

    Raises:
        CheckpointError: the file is missing or unreadable, or its names or shapes are not this network's.
    """
    path = Path(path)
    found = {name: value for name, value in _read(path).items() if not name.startswith("fc.")}
    wanted = network.state_dict()
    optional = {name for name in wanted if name.endswith("num_batches_tracked")}
    missing = sorted(wanted.keys() - found.keys() - optional)
    extra = sorted(found.keys() - wanted.keys())
    if missing or extra:
        raise CheckpointError(
            f"backbone weights {path}: not the weights of this ResNet; missing {missing[:3]} ({len(missing)} in all), "
            f"unknown {extra[:3]} ({len(extra)} in all); set camera.backbone.name to the network of the file"
        )
    for name, value in found.items():
        if value.shape != wanted[name].shape:
            raise CheckpointError(
                f"backbone weights {path}: {name} has shape {list(value.shape)}, expected {list(wanted[name].shape)}; "
                "camera.backbone.name and .width must be those of the file (width 64 is the standard network)"
            )
    network.load_state_dict(found, strict=False)


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file by name."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if path.suffix in (".pt", ".pth"):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
            loaded = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
            if isinstance(loaded, dict) and all(isinstance(value, Tensor) for value in loaded.values()):
                return loaded
            raise CheckpointError(f"backbone weights {path}: expected a dictionary of tensors by name")
    except CheckpointError:
        raise
    except Exception as error:  # the readers raise many kinds; all mean the same to the user
        raise CheckpointError(f"backbone weights {path}: cannot be read ({error}); give a weight file") from error
    raise CheckpointError(f"backbone weights {path}: expected a .pt, .pth or .safetensors file")
