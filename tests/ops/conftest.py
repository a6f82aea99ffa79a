"""Makes ``harness``, what the tests of all kernels share, importable by its name; and the twins alone, as a fixture."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fusion3d.ops import library

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def only_twin(monkeypatch):
    """The pure-torch versions, as where nothing is compiled."""
    monkeypatch.setattr(library, "DEVICES", frozenset())
    monkeypatch.setattr(library, "_warned", {library.PROBLEM or "the kernels of fusion3d were compiled without cpu"})
