"""Writer of radar clouds as nuScenes stores them: ASCII header, then packed binary rows of 18 fields.

The reader is :mod:`fusion3d.data.radar`. Two habits of the real files are kept because readers depend on them: a radar
that saw nothing is one row whose floats are NaN (``WIDTH 0`` is refused by the devkit), and bytes follow the last row
(the devkit demands at least one).
"""

from __future__ import annotations

import numpy as np

from fusion3d.errors import DataError
from fusion3d.synthetic.radar import RADAR_DTYPE


def encode_pcd(points: np.ndarray) -> bytes:
    """The bytes of a nuScenes radar ``.pcd`` file.

    Args:
        points: [R] structured array with the fields of ``RADAR_DTYPE``, in any order; zero rows are a radar that saw
            nothing.

    Raises:
        DataError: a field is missing or unknown, or a coordinate is not finite (NaN would read as an empty cloud).
    """
    names = points.dtype.names or ()
    if set(names) != set(RADAR_DTYPE.names or ()):
        expected = ", ".join(RADAR_DTYPE.names or ())
        raise DataError(f"radar cloud: expected the fields {expected}; found {', '.join(names) or 'none'}")
    rows = np.empty(max(len(points), 1), RADAR_DTYPE)
    for name in names:
        column = points[name]
        if rows[name].dtype.kind == "f" and not np.isfinite(column).all():
            raise DataError(f"radar cloud: field {name} is not finite everywhere; drop such returns before writing")
        rows[name] = column if len(points) else (np.nan if rows[name].dtype.kind == "f" else 0)
    kinds = [RADAR_DTYPE[i] for i in range(len(names))]
    header = (
        "# .PCD v0.7 - Point Cloud Data file format",
        "VERSION 0.7",
        f"FIELDS {' '.join(RADAR_DTYPE.names or ())}",
        f"SIZE {' '.join(str(kind.itemsize) for kind in kinds)}",
        f"TYPE {' '.join('F' if kind.kind == 'f' else 'I' for kind in kinds)}",
        f"COUNT {' '.join('1' for _ in kinds)}",
        f"WIDTH {len(rows)}",
        "HEIGHT 1",
        "VIEWPOINT 0 0 0 1 0 0 0",
        f"POINTS {len(rows)}",
        "DATA binary\n",
    )
    return "\n".join(header).encode() + rows.tobytes() + b"\0"
