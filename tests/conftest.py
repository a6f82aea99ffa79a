"""Fixtures that several rooms share."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch comes: workers that each take all cores wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# The first parallel loop of numba would otherwise set OpenMP's number of threads, which is torch's too, to all cores.
os.environ.setdefault("NUMBA_THREADING_LAYER", "workqueue")

REAL_DATA = Path(os.environ.get("FUSION3D_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the CUDA kernels are skipped where no GPU is."""
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            for item in items:
                if item.get_closest_marker("gpu"):
                    item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_collection_finish() -> None:
    """What is there when the tests begin stays to the end: no garbage collection need look at it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    """Caches go to a folder of the session, never to the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSION3D_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def real_root() -> Path:
    """Dataroot of real nuScenes bytes (scene-0061, version v1.0-mini, split real_0061), where it is at hand."""
    root = REAL_DATA / "nuscenes-0061"
    if not root.is_dir():
        pytest.skip("the real nuScenes scene is not beside the project (set FUSION3D_REAL_DATA)")
    return root


@pytest.fixture(scope="session")
def tracks_root() -> Path:
    """Folder of real ego and agent tracks of eight nuScenes scenes, where it is at hand."""
    root = REAL_DATA / "nuscenes-mini-tracks"
    if not root.is_dir():
        pytest.skip("the real nuScenes tracks are not beside the project (set FUSION3D_REAL_DATA)")
    return root


@pytest.fixture(scope="session")
def synthetic_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dataroot of a tiny synthetic data set: version v1.0-synthetic, 2 train scenes and 1 val scene of 6 keyframes,
    images of 99 x 176 px, 2 sweeps before each keyframe. Made once a session, for all its processes. Not to be changed.
    """
    from fusion3d.synthetic.writer import make_dataset

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    lock = shared / "synthetic.lock"
    patience = time.monotonic() + 300
    while True:
        try:
            lock.mkdir()
            break
        except FileExistsError:
            if time.monotonic() > patience:
                pytest.fail(f"{lock}: another test process has held it for 5 minutes; remove it and run again")
            time.sleep(0.2)
    try:  # a second process finds the set finished and gets it at once
        return make_dataset(
            shared / "synthetic",
            scenes=3,
            keyframes=6,
            image_size=(99, 176),
            sweeps=2,
            val_scenes=1,
            workers=1,
            quiet=True,
        )
    finally:
        lock.rmdir()
