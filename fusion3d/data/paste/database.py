"""The database of objects: a folder with ``index.json`` and a safetensors file for each object.

A file holds what the sensors saw of the object, where it stood in ego: ``lidar`` [P, 5] LIDAR_FIELDS, ``radar`` [R, 14]
RADAR_FIELDS, and for each camera that saw it ``image.CHANNEL``, the bytes of a JPEG as uint8, with ``corners.CHANNEL``
[8, 2], the pixels in it of the box's corners. The index holds the boxes, as columns.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fusion3d.errors import DataError
from fusion3d.files import read_json
from fusion3d.types import ATTRIBUTES, CAMERAS, DETECTION_CLASSES, LIDAR_FIELDS, RADAR_FIELDS, RADARS, Boxes

FORMAT = 1
INDEX, MAX_INDEX = "index.json", 1 << 30  # bytes, of some millions of objects
# Columns of the index, and how many numbers each has for an object; 0: one number, not in a list; None: a text.
COLUMNS: dict[str, int | None] = {
    "file": None, "class": None, "instance": None, "attribute": None, "visibility": 0, "num_points": 2, "center": 3,
    "size": 3, "yaw": 0, "velocity": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Patch:
    """What a camera saw of an object."""

    image: Tensor  # [3, H, W] uint8
    corners: Tensor  # [8, 2] float32, pixels in it of the box's corners (some may be outside)


@dataclass(frozen=True)
class Cutting:
    """What the sensors saw of an object, in ego."""

    lidar: Tensor  # [P, 5] float32
    radar: Tensor  # [R, 14] float32
    patches: Mapping[str, Patch]  # by channel


@dataclass(frozen=True, eq=False)
class Objects:
    """An opened database of K objects."""

    root: Path
    lidar_sweeps: int
    radar_sweeps: int
    source: tuple[str, str]  # version and split that they are cut out of
    boxes: Boxes  # K, in the ego frame of where each was cut out
    files: np.ndarray  # [K] bytes, relative to the root

    @staticmethod
    def open(root: str | Path) -> Objects:
        """The database in a folder.

        Raises:
            DataError: there is none, it is unfinished, empty or damaged, or it has a class that is not known.
        """
        root = Path(root).expanduser().resolve()
        path = root / INDEX
        if not path.is_file():
            raise DataError(f"no objects to paste in {root}: it has no {INDEX}; make (or finish) it: make_objects")
        content = read_json(path, remedy := f"remove {root} and run make_objects again", max_bytes=MAX_INDEX)
        try:
            made, columns = content["made"], content["objects"]
            if made["format"] != FORMAT:
                raise ValueError(f"format {made['format']}, expected {FORMAT}")
            boxes, files = _parse(columns)
            source = str(made["version"]), str(made["split"])
            return Objects(root, int(made["lidar_sweeps"]), int(made["radar_sweeps"]), source, boxes, files)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{path}: {reason}; {remedy}") from error

    def __reduce__(self) -> tuple[Any, ...]:
        """Workers that are spawned open the index themselves."""
        return Objects.open, (str(self.root),)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int, channels: Sequence[str] = CAMERAS) -> Cutting:
        """What the sensors saw of an object, with the patches of the channels that are asked for.

        Raises:
            DataError: its file is missing or damaged.
        """
        path = self.root / self.files[index].decode()
        try:
            with safe_open(path, framework="pt") as file:
                names = set(file.keys())
                found = {name: file.get_tensor(name) for name in ("lidar", "radar")}
                patches = {
                    channel: Patch(_decode(file.get_tensor(f"image.{channel}")), file.get_tensor(f"corners.{channel}"))
                    for channel in channels
                    if f"image.{channel}" in names
                }
        except (OSError, SafetensorError, ValueError, SyntaxError) as error:
            raise DataError(f"cannot read the object {path}: {error}; remove {self.root} and make it again") from error
        lidar, radar = found["lidar"], found["radar"]
        shapes = [(lidar, (len(lidar), len(LIDAR_FIELDS))), (radar, (len(radar), len(RADAR_FIELDS)))]
        shapes += [(patch.corners, (8, 2)) for patch in patches.values()]
        if any(tuple(tensor.shape) != shape or not tensor.isfinite().all() for tensor, shape in shapes):
            raise DataError(
                f"object {path} holds tensors of another shape or NaN; remove {self.root} and make it again"
            )
        sensor = radar[:, RADAR_FIELDS.index("sensor")]
        if not ((sensor >= 0) & (sensor < len(RADARS))).all():
            raise DataError(f"object {path} names a radar that is not known; remove {self.root} and make it again")
        return Cutting(lidar, radar, patches)


def _decode(jpeg: Tensor) -> Tensor:
    from PIL import Image

    with Image.open(io.BytesIO(jpeg.numpy().tobytes())) as file:
        return torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)


def encode(pixels: Any) -> Tensor:
    """A Pillow image as the bytes of a JPEG that is nearly without loss, [N] uint8."""
    buffer = io.BytesIO()
    pixels.save(buffer, "JPEG", quality=95, subsampling=0)
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def describe(boxes: Boxes, files: Sequence[str]) -> dict[str, list[Any]]:
    """The columns of the index for some objects; what is unknown is null."""
    velocity = [[x if x == x else None for x in row] for row in boxes.velocity.tolist()]
    return {
        "file": list(files),
        "class": [DETECTION_CLASSES[i] for i in boxes.label.tolist()],
        "instance": list(boxes.instance),
        "attribute": [ATTRIBUTES[i] if i >= 0 else "" for i in boxes.attribute.tolist()],
        "visibility": boxes.visibility.tolist(),
        "num_points": boxes.num_points.tolist(),
        "center": boxes.center.tolist(),
        "size": boxes.size.tolist(),
        "yaw": boxes.yaw.tolist(),
        "velocity": velocity,
    }


def _parse(columns: Mapping[str, list[Any]]) -> tuple[Boxes, np.ndarray]:
    """The boxes and files of an index; KeyError or ValueError where it is damaged."""
    parsed: dict[str, Any] = {}
    for name, width in COLUMNS.items():
        values = columns[name]
        if len(values) != len(columns["file"]):
            raise ValueError(f"{len(values)} values of {name} for {len(columns['file'])} objects")
        if width is not None:
            parsed[name] = torch.tensor(
                np.array(values, dtype=np.float64).reshape(len(values), *([width] if width else []))
            )
    if not columns["file"]:
        raise ValueError("it holds no object")
    unknown = sorted({*columns["class"]} - {*DETECTION_CLASSES} | {*columns["attribute"]} - {*ATTRIBUTES, ""})
    if unknown:
        raise ValueError(f"unknown {', '.join(map(repr, unknown))}; known classes: {', '.join(DETECTION_CLASSES)}")
    for name in columns["file"]:
        pure = PurePosixPath(name)
        if not name or pure.is_absolute() or ".." in pure.parts or "\0" in name:
            raise ValueError(f"file name {name!r} leads out of the folder")
    if not all(parsed[name].isfinite().all() for name in ("center", "size", "yaw", "num_points", "visibility")):
        raise ValueError("a box has NaN")
    boxes = Boxes.of(
        *(parsed[name] for name in ("center", "size", "yaw", "velocity")),
        label=torch.tensor([DETECTION_CLASSES.index(name) for name in columns["class"]]),
        attribute=torch.tensor([ATTRIBUTES.index(name) if name else -1 for name in columns["attribute"]]),
        visibility=parsed["visibility"],
        num_points=parsed["num_points"],
        instance=tuple(map(str, columns["instance"])),
    )
    return boxes, np.array([str(name).encode() for name in columns["file"]])
