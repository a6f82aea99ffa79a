"""``check_dataset``: the geometry doctor at the command line."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import tyro

from fusion3d.config import DataConfig
from fusion3d.errors import DataError, Fusion3DError
from fusion3d.types import KEY_SWEEP, LIDAR_FIELDS, Sample


@dataclass(frozen=True)
class CheckConfig:
    """Check the geometry of a nuScenes data set. Exit status: 0 if it holds together, 1 if not."""

    root: tyro.conf.Positional[Path]
    """Folder of the data set."""
    version: str = ""
    """Table folder; empty: the only one there is."""
    split: str = "all"
    """Split whose files are read."""
    samples: int = 24
    """Keyframes whose files are read, spread over the split."""
    only: tuple[str, ...] = ()
    """Names of the checks to make; empty: all."""
    picture: Path = Path("runs/check_dataset.png")
    """One keyframe: LiDAR in the cameras, boxes, radar from above."""


def main(argv: list[str]) -> int:
    """The verb ``check_dataset DATAROOT``: prints findings, writes one picture, returns 0 (passed) or 1."""
    return check(tyro.cli(CheckConfig, args=argv, prog="check_dataset"))


def check(config: CheckConfig) -> int:
    """Print each finding and a summary, write the picture; 0 when nothing failed, else 1.

    Raises:
        DataError: the tables or the split cannot be read at all.
    """
    from fusion3d.data.doctor import examine

    data = DataConfig(root=str(config.root), version=config.version or find_version(config.root))
    counts = {True: 0, False: 0, None: 0}
    for finding in examine(data, config.split, num_samples=config.samples, only=config.only):
        counts[finding.passed] += 1
        print(finding, flush=True)
    try:
        print(f"picture: {draw(data, config.split, config.picture)}")
    except Fusion3DError as error:
        counts[False] += 1
        print(f"FAIL picture: {error}")
    verdict = "FAILED" if counts[False] else "passed"
    print(f"{verdict}: {counts[True]} ok, {counts[False]} failed, {counts[None]} could not be checked")
    return 1 if counts[False] else 0


def find_version(root: Path) -> str:
    """The only version of a data root. DataError when there is none, or more than one."""
    found = sorted(path.parent.name for path in root.glob("*/sample.json"))
    if len(found) == 1:
        return found[0]
    remedy = f"choose one with --version: {', '.join(found)}" if found else "is this a nuScenes data root?"
    raise DataError(f"{root} holds {len(found)} versions (folders with a sample.json); {remedy}")


def draw(data: DataConfig, split: str, path: Path) -> Path:
    """The keyframe with the most sensors (the first of those), its LiDAR drawn into the camera images."""
    from fusion3d.data.dataset import NuScenesDataset
    from fusion3d.types import BEVGrid
    from fusion3d.view.pictures import draw_sample

    data = dataclasses.replace(data, image_size=(450, 800), lidar_sweeps=1)
    dataset = NuScenesDataset(data, split, BEVGrid(), training=False)
    richest = max(range(len(dataset)), key=lambda i: (int((dataset.tables.key_data[dataset.rows[i]] >= 0).sum()), -i))
    return draw_sample(with_depth_dots(dataset[richest]), None, None, path, caption="LiDAR drawn in the cameras")


def with_depth_dots(sample: Sample, reach: float = 50.0) -> Sample:
    """The sample with its LiDAR points painted into its images, near ones red, far ones (``reach`` [m]) blue."""
    import torch

    from fusion3d.geometry import apply

    if sample.cameras is None or sample.lidar is None:
        return sample
    images = sample.cameras.images.clone()
    rows, cols = images.shape[-2:]
    key = sample.lidar[sample.lidar[:, LIDAR_FIELDS.index("time")].abs() < KEY_SWEEP, :3]
    for image, image_from_cam, ego_from_cam in zip(
        images, sample.cameras.image_from_cam, sample.cameras.ego_from_cam, strict=True
    ):
        cam = apply(torch.linalg.inv(ego_from_cam), key)
        cam = cam[cam[:, 2] > 0.5]
        cam = cam[cam[:, 2].argsort(descending=True)]
        pixel = apply(image_from_cam, cam)
        u, v = (pixel[:, :2] / pixel[:, 2:]).round().long().unbind(1)
        inside = (u >= 0) & (u < cols - 1) & (v >= 0) & (v < rows - 1)
        near = (1 - cam[inside, 2] / reach).clamp(0, 1)
        color = torch.stack([near, 0.6 * (1 - (2 * near - 1).abs()), 1 - near])
        for du, dv in ((0, 0), (1, 0), (0, 1), (1, 1)):
            image[:, v[inside] + dv, u[inside] + du] = color
    return dataclasses.replace(sample, cameras=dataclasses.replace(sample.cameras, images=images))
