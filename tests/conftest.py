"""Fixtures that several rooms share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REAL_DATA = Path(os.environ.get("FUSION3D_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def real_root() -> Path:
    """Dataroot of real nuScenes bytes (scene-0061, version v1.0-mini, split real_0061), where it is at hand."""
    root = REAL_DATA / "nuscenes-0061"
    if not root.is_dir():
        pytest.skip("the real nuScenes scene is not beside the project (set FUSION3D_REAL_DATA)")
    return root
