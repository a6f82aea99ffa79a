"""Camera images: decoded small, resized, cropped, mirrored and turned, with the matrix that says where each
pixel went.

Two pixel coordinates occur: ``edge`` has the corner of the image at 0 (pixel i covers [i, i+1)); it is what
scaling is linear in. ``image`` has the centre of the first pixel at 0, as the whole package does; image = edge - 1/2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion3d.config import AugmentConfig
from fusion3d.data.corruptions import CLEAN, Corruptor, Reading, placed
from fusion3d.data.guard import Guard, strict
from fusion3d.data.nuscenes import Tables
from fusion3d.errors import DataError
from fusion3d.types import Cameras

_EDGE_FROM_IMAGE = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
_IMAGE_FROM_EDGE = np.linalg.inv(_EDGE_FROM_IMAGE)
_SLACK = 1e-6  # [px] rounding error that does not count


@dataclass(frozen=True)
class ImageAugmentation:
    """One image's random change; the default is none."""

    scale: float = 0.0  # added to the fitting resize factor
    shift: float = 0.5  # share of the spare width that is cropped on the left
    flip: bool = False  # left <-> right
    angle: float = 0.0  # about the centre [rad], clockwise as seen


def draw_image_augmentation(config: AugmentConfig, rng: np.random.Generator) -> ImageAugmentation:
    """A random change within the limits of ``config``; always takes the same number of draws."""
    scale, shift, flip, angle = rng.uniform(size=4)
    low, high = config.image_scale
    return ImageAugmentation(
        scale=low + (high - low) * scale,
        shift=shift if high > low else 0.5,
        flip=bool(config.image_flip and flip < 0.5),
        angle=math.radians(config.image_rotation) * (2 * angle - 1),
    )


@contextmanager
def open_image(path: Path) -> Iterator[Any]:
    """A Pillow image; what goes wrong with it in the block, too, is a DataError that names the file."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            yield file
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot decode image {path}: {error}; copy or download it again") from error


def load_image(
    path: Path,
    size: tuple[int, int],
    stated: tuple[int, int] | None = None,
    change: ImageAugmentation | None = None,
    spoil: Callable[[Tensor, float], Tensor] | None = None,
) -> tuple[Tensor, np.ndarray]:
    """Decode an image at about the size that is needed, and bring it to exactly that size.

    The factor fills the target; what is too high is cropped at the top (the bottom is kept), what is too
    wide on both sides. Where a random smaller factor leaves a margin, it is black.

    Args:
        path: JPEG or anything that Pillow reads.
        size: height and width wanted [px].
        stated: height and width in the table; an image of another size would not fit its intrinsics.
        change: random change.
        spoil: what the camera did to it (``Corruptor.image``), before it is mirrored and turned.

    Returns:
        [3, H, W] float32 RGB in [0, 1], and [3, 3] float64 new-image-from-file-image (pixel centres).

    Raises:
        DataError: the file is missing, truncated, no image or of another size than stated.
    """
    from PIL import Image

    change = change or ImageAugmentation()
    with open_image(path) as file:
        old = (file.height, file.width)
        if stated is not None and tuple(stated) != old:
            raise DataError(
                f"image {path} is {old[1]} x {old[0]} px, its table says {stated[1]} x {stated[0]}: its "
                "intrinsics do not fit; use the original file or correct height, width and intrinsics"
            )
        pixels, matrix = _cut(file, *_fit(old, size, change), size)
    if spoil is not None:
        pixels = spoil(pixels, matrix[0, 0] * old[1])
    height, width = size
    if change.flip:
        pixels = pixels.flip(-1)
        matrix = np.array([[-1, 0, width], [0, 1, 0], [0, 0, 1.0]]) @ matrix
    if change.angle:
        turn = _turn(change.angle, width / 2, height / 2)
        source = np.linalg.inv(turn)[:2].ravel().tolist()  # Pillow asks where each output pixel comes from
        flat = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        flat = flat.transform((width, height), Image.Transform.AFFINE, source, Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(flat)).permute(2, 0, 1)
        matrix = turn @ matrix
    image = torch.empty(3, height, width).copy_(pixels).div_(255)
    return image, _IMAGE_FROM_EDGE @ matrix @ _EDGE_FROM_IMAGE


def _fit(old: tuple[int, int], size: tuple[int, int], change: ImageAugmentation) -> tuple[float, float, float]:
    """Resize factor, and how many resized pixels are cropped on the left and at the top (negative: margin)."""
    factor = max(size[0] / old[0], size[1] / old[1])
    factor = max(factor + change.scale, 0.1 * factor)
    spare = factor * old[1] - size[1]
    return factor, spare * (change.shift if spare > 0 else 0.5), factor * old[0] - size[0]


def _turn(angle: float, x: float, y: float) -> np.ndarray:
    """[3, 3] rotation about (x, y), clockwise as seen because v points down."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y], [0, 0, 1]])


def _cut(file: Any, factor: float, left: float, top: float, size: tuple[int, int]) -> tuple[Tensor, np.ndarray]:
    """The target window of the resized file: [3, H, W] uint8, and where its pixels came from (edge coordinates).

    The window starts at a whole pixel of what was decoded, at most one above and left of the wanted place: the matrix
    has the place that was taken.
    """
    width, height = file.size
    drafted = file.draft("RGB", (math.ceil(factor * width - _SLACK), math.ceil(factor * height - _SLACK)))
    # A JPEG is decoded at 1/1, 1/2, 1/4 or 1/8; pixel i then covers [i k, (i+1) k) of the file, also in a
    # last half pixel.
    shrink = round(width / drafted[1][2]) if drafted else 1
    image = file if file.mode == "RGB" else file.convert("RGB")
    scale = factor * shrink
    first_u, last_u = _inside(left, size[1], factor * width)
    first_v, last_v = _inside(top, size[0], factor * height)
    u, v = (max(0, math.floor((at + crop) / scale + _SLACK)) for at, crop in ((first_u, left), (first_v, top)))
    end_u = min(image.width, u + math.ceil((last_u - first_u) / scale) + 2)
    end_v = min(image.height, v + math.ceil((last_v - first_v) / scale) + 2)
    part = torch.from_numpy(np.array(image.crop((u, v, end_u, end_v)))).permute(2, 0, 1)
    if abs(scale - 1) > 1e-9:
        # The hair's breadth keeps a product such as 255.99999 from losing its last row.
        factors = (scale * (1 + 1e-9), scale * (1 + 1e-9))
        part = torch.nn.functional.interpolate(part[None], scale_factor=factors, mode="bilinear", antialias=True)[0]
    part = part[:, : last_v - first_v, : last_u - first_u]
    matrix = np.array([[factor, 0, first_u - u * scale], [0, factor, first_v - v * scale], [0, 0, 1.0]])
    if tuple(part.shape[1:]) == size:
        return part, matrix
    whole = torch.zeros(3, *size, dtype=torch.uint8)
    whole[:, first_v : first_v + part.shape[1], first_u : first_u + part.shape[2]] = part
    return whole, matrix


def _inside(crop: float, length: int, available: float) -> tuple[int, int]:
    """Output pixels [first, last) that lie wholly on the resized image."""
    first = max(0, math.ceil(-crop - _SLACK))
    last = min(length, math.floor(available - crop + _SLACK))
    return first, max(last, first + 1)


def load_cameras(
    tables: Tables,
    sample: int,
    channels: tuple[str, ...],
    size: tuple[int, int],
    changes: dict[str, ImageAugmentation] | None = None,
    guard: Guard = strict,
    corruptor: Corruptor = CLEAN,
) -> Cameras | None:
    """The sample's images of the given channels, packed in their order. ``None`` where it has none of them.

    ``ego_from_cam`` goes through the ego pose at each camera's own time: the ego motion between triggers is
    in it.
    """
    loaded = []
    for channel in corruptor.there(tables, sample, channels):
        (reading,) = corruptor.readings(tables, sample, channel)

        def read(channel: str = channel, reading: Reading = reading) -> tuple[Tensor, np.ndarray]:
            tables.check(reading.row)
            intrinsic = tables.intrinsic(reading.row)
            height, width = tables.data_size[reading.content].tolist()
            path, change = tables.path(reading.content), (changes or {}).get(channel)
            spoil = corruptor.image(channel, tables, reading)
            image, new_from_old = load_image(path, size, (height, width), change, spoil)
            matrix = np.eye(4)
            matrix[:3, :3] = new_from_old @ intrinsic
            return image, matrix

        result = guard(read)
        if result is not None:
            loaded.append((channel, reading, *result))
    if not loaded:
        return None
    channels_there, readings, images, matrices = zip(*loaded, strict=True)
    return Cameras(
        images=torch.stack(images),
        image_from_cam=torch.from_numpy(np.stack(matrices)).float(),
        ego_from_cam=torch.from_numpy(placed(tables, sample, readings)).float(),
        batch_index=torch.zeros(len(loaded), dtype=torch.int64),
        channels=tuple(channels_there),
    )
