"""The synthetic data set as plans are scored against it."""

from __future__ import annotations

import pytest

from fusion3d.data.nuscenes import Tables
from fusion3d.data.splits import samples_of
from fusion3d.engine.drives import drives_of

VERSION = "v1.0-synthetic"


@pytest.fixture(scope="module")
def tables(synthetic_root):
    return Tables.open(synthetic_root, VERSION)


@pytest.fixture(scope="module")
def tokens(tables):
    return [tables.token(row) for row in samples_of(tables, "all")]


@pytest.fixture(scope="module")
def drives(tables, tokens):
    return drives_of(tables, tokens)
