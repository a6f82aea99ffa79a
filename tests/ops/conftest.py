"""Makes ``harness``, what the tests of all kernels share, importable by its name."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
