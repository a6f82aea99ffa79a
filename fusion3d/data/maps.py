"""What a data set's maps say, cut into the BEV grid: vectors where there are any, the drivable area's mask where not.

A mask has up to 20 000 x 16 000 pixels of 0.1 m. It is decoded once per machine, packed to one bit a pixel
in the cache folder and mapped from there, so that workers share 40 MB instead of holding 320 MB each.
"""

from __future__ import annotations

import hashlib
import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fusion3d.data.nuscenes import Tables
from fusion3d.data.vector_map import open_map
from fusion3d.errors import DataError
from fusion3d.files import cache_folder, write_cache
from fusion3d.types import MAP_CLASSES, BEVGrid

METRES_PER_PIXEL = 0.1
_DRIVABLE = MAP_CLASSES.index("drivable_area")


def crop_map(
    tables: Tables, sample: int, grid: BEVGrid, aug_from_ego: np.ndarray | None = None
) -> tuple[Tensor, Tensor] | None:
    """What lies at the centre of each grid cell, as far as the data set's maps say it.

    A map of polygons and lines is that of the sample's location in the map expansion, which the synthetic data sets
    have too. Where there is the mask alone, the drivable area alone is known.

    Args:
        tables: the data set.
        sample: sample row.
        grid: in the augmented frame.
        aug_from_ego: [4, 4] BEV augmentation.

    Returns:
        [6, Y, X] bool mask of MAP_CLASSES and [6] bool, which of them are known; None without any map of the place.

    Raises:
        DataError: a map cannot be read.
    """
    mask = np.zeros((len(MAP_CLASSES), *grid.shape), dtype=bool)
    known = np.zeros(len(MAP_CLASSES), dtype=bool)
    path = vector_file(tables, sample)
    if path is not None:
        shapes = open_map(path)
        mask = shapes.rasterise(grid, np.linalg.inv(_global_from_grid(tables, sample, aug_from_ego)))
        known = shapes.known.copy()
    if not known[_DRIVABLE] and (drivable := crop_mask(tables, sample, grid, aug_from_ego)) is not None:
        mask[_DRIVABLE], known[_DRIVABLE] = drivable, True
    return (torch.from_numpy(mask), torch.from_numpy(known)) if known.any() else None


def crop_mask(tables: Tables, sample: int, grid: BEVGrid, aug_from_ego: np.ndarray | None = None) -> np.ndarray | None:
    """[Y, X] bool: is the centre of each cell drivable in the mask? None without one; arguments as ``crop_map``'s."""
    path = mask_file(tables, sample)
    if path is None or not path.is_file():
        return None
    global_from_grid = _global_from_grid(tables, sample, aug_from_ego)
    centers = grid.centers().double().numpy()  # [Y, X, 2]
    return on_mask(path, centers @ global_from_grid[:2, :2].T + global_from_grid[:2, 2])


def _global_from_grid(tables: Tables, sample: int, aug_from_ego: np.ndarray | None) -> np.ndarray:
    """[3, 3] of positions seen from above (x, y, 1): the grid lies in the vehicle's plane z = 0, tilted as it is."""
    aug_from_ego = np.eye(4) if aug_from_ego is None else np.asarray(aug_from_ego, dtype=np.float64)
    global_from_aug = tables.global_from_ego(sample) @ np.linalg.inv(aug_from_ego)
    # The ground is where ego has z = 0, to which a shift may have given another height.
    global_from_aug[:, 3] += global_from_aug[:, 2] * aug_from_ego[2, 3]
    return global_from_aug[np.ix_([0, 1, 3], [0, 1, 3])]


def mask_file(tables: Tables, sample: int) -> Path | None:
    """The mask of a sample's place, if the tables name one; it may not be there."""
    row = tables.scene_map[tables.sample_scene[sample]]
    return None if row < 0 else tables.inside(bytes(tables.map_file[row]).decode(), "map.json")


def vector_file(tables: Tables, sample: int) -> Path | None:
    """The file of the map expansion of a sample's place, if there is one."""
    location = bytes(tables.scene_location[tables.sample_scene[sample]]).decode()
    path = tables.inside(f"maps/expansion/{location}.json", "log.json")
    if path.is_file():
        return path
    mask = mask_file(tables, sample)
    if mask is not None and mask.with_suffix(".json").is_file():
        warnings.warn(
            f"{mask.parent} has maps of an older synthetic data set, which are no longer read: of it the drivable "
            "area alone is known; make the data set again (make_synthetic)",
            stacklevel=2,
        )
    return None


def on_mask(path: Path, position: np.ndarray) -> np.ndarray:
    """Which global positions [..., 2] [m] lie on a mask's foreground (rounding as the devkit's ``MapMask``)."""
    stat = path.stat()
    packed, (height, width) = _open_mask(path, stat.st_size, stat.st_mtime_ns)
    column = np.round(position[..., 0] / METRES_PER_PIXEL).astype(np.int64)
    row = np.round(height - position[..., 1] / METRES_PER_PIXEL).astype(np.int64)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    column, row = np.where(inside, column, 0), np.where(inside, row, 0)
    bits = packed[row, column >> 3] >> (7 - (column & 7)).astype(np.uint8)
    return inside & (bits & 1).astype(bool)


@lru_cache(maxsize=8)
def _open_mask(path: Path, size: int, modified: int) -> tuple[np.ndarray, tuple[int, int]]:
    """The mask as packed bits [height, ceil(width / 8)] and its (height, width)."""
    digest = hashlib.sha256(f"{path.resolve()}\n{size}\n{modified}".encode()).hexdigest()[:16]
    cached = cache_folder() / "maps" / f"{digest}.npy"
    shape = _shape(path)
    row_bytes = (shape[1] + 7) // 8
    if cached.is_file():
        try:
            packed = np.load(cached, mmap_mode="r", allow_pickle=False)
            if packed.shape == (shape[0], row_bytes) and packed.dtype == np.uint8:
                return packed, shape
        except (OSError, ValueError, EOFError):
            packed = None  # a damaged cache: it is decoded and written again below
    packed = _decode(path)
    write_cache(cached, lambda file: np.save(file, packed))
    return packed, shape


def _shape(path: Path) -> tuple[int, int]:
    with _open_png(path) as image:
        return image.height, image.width


def _decode(path: Path) -> np.ndarray:
    try:
        with _open_png(path) as image:
            return np.packbits(np.asarray(image.convert("L")) == 255, axis=1)
    except (OSError, SyntaxError) as error:
        raise DataError(f"cannot decode the map mask {path}: {error}; download the map again") from error


def _open_png(path: Path):
    from PIL import Image

    limit, Image.MAX_IMAGE_PIXELS = (
        Image.MAX_IMAGE_PIXELS,
        None,
    )  # masks are larger than Pillow's guard allows
    try:
        return Image.open(path)
    except (OSError, SyntaxError) as error:
        raise DataError(f"cannot open the map mask {path}: {error}; download the map again") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit
