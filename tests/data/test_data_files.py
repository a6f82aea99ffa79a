"""LiDAR and radar files: what is in them, and what is said when they are broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion3d.data.lidar import far_enough, read_lidar
from fusion3d.data.radar import passes, read_pcd
from fusion3d.errors import DataError


@pytest.fixture
def write(tmp_path: Path):
    def written(content: bytes, name: str = "cloud.pcd") -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return written


@settings(max_examples=30, deadline=None)
@given(
    fields=st.lists(st.sampled_from(["<f4", "<f8", "<i1", "<i2", "<i4", "<u1", "<u2"]), min_size=1, max_size=12),
    count=st.integers(0, 20),
    tail=st.binary(max_size=50),
)
def test_any_record_is_read_back(tmp_path_factory, fields, count, tail):
    record = np.dtype([(f"f{i}", kind) for i, kind in enumerate(fields)])
    points = np.frombuffer(np.random.default_rng(0).bytes(record.itemsize * count), dtype=record).copy()
    for name in record.names:
        if record[name].kind == "f":
            points[name] = 1.5
    kinds = {"f": "F", "i": "I", "u": "U"}
    header = (
        f"# .PCD v0.7\nVERSION 0.7\nFIELDS {' '.join(record.names)}\n"
        f"SIZE {' '.join(str(record[n].itemsize) for n in record.names)}\n"
        f"TYPE {' '.join(kinds[record[n].kind] for n in record.names)}\n"
        f"COUNT {' '.join('1' * len(fields))}\nWIDTH {count}\nHEIGHT 1\nPOINTS {count}\nDATA binary\n"
    )
    path = tmp_path_factory.getbasetemp() / "any.pcd"
    path.write_bytes(header.encode() + points.tobytes() + tail)
    np.testing.assert_array_equal(read_pcd(path), points)


def test_a_field_of_several_values(write):
    header = b"# .PCD v0.7\nFIELDS a b\nSIZE 4 1\nTYPE F U\nCOUNT 3 1\nWIDTH 2\nHEIGHT 1\nDATA binary\n"
    cloud = read_pcd(
        write(header + np.array([1, 2, 3], "<f4").tobytes() + b"\x05" + np.array([4, 5, 6], "<f4").tobytes() + b"\x06")
    )
    assert cloud["a"].tolist() == [[1, 2, 3], [4, 5, 6]] and cloud["b"].tolist() == [5, 6]


def test_nan_in_the_first_point_is_an_empty_cloud(write, returns, pcd_bytes):
    assert len(read_pcd(write(pcd_bytes(returns)))) == 17
    returns["rcs"][0] = np.nan
    assert len(read_pcd(write(pcd_bytes(returns)))) == 0
    assert len(read_pcd(write(pcd_bytes(returns[:0])))) == 0


def test_broken_radar_files_are_named(write, returns, pcd_bytes, tmp_path):
    whole = pcd_bytes(returns)
    cases = {
        "truncated": whole[:-100],
        "no DATA line": whole[:60],
        "expected DATA binary": whole.replace(b"DATA binary", b"DATA ascii "),
        "different lengths": whole.replace(b"COUNT 1", b"COUNT"),
        "TYPE Q": whole.replace(b"TYPE F", b"TYPE Q"),
        "POINTS": whole.replace(b"WIDTH 17", b"WIDTH 15"),
        "lacks SIZE": whole.replace(b"SIZE", b"SIZES"),
        "invalid literal": whole.replace(b"SIZE 4", b"SIZE x"),
    }
    for number, (said, content) in enumerate(cases.items()):
        with pytest.raises(DataError, match=f"broken{number}.pcd.*{said}"):
            read_pcd(write(content, f"broken{number}.pcd"))
    with pytest.raises(DataError, match=r"absent.pcd.*No such file"):
        read_pcd(tmp_path / "absent.pcd")


def test_radar_filters(returns):
    cases = np.repeat(returns[:1], 5)
    cases["invalid_state"] = [0, 4, 1, 0, 0]
    cases["dyn_prop"] = [0, 0, 0, 7, 6]
    cases["ambig_state"] = [3, 3, 3, 3, 4]
    assert passes(cases, "none").tolist() == [True] * 5
    assert passes(cases, "valid").tolist() == [True, True, False, True, True]
    assert passes(cases, "devkit").tolist() == [True, False, False, False, False]


def test_lidar_file(write):
    points = np.arange(15, dtype=np.float32).reshape(3, 5)
    np.testing.assert_array_equal(read_lidar(write(points.tobytes(), "a.pcd.bin")), points)
    assert read_lidar(write(b"", "empty.pcd.bin")).shape == (0, 5)
    with pytest.raises(DataError, match=r"short.pcd.bin has 58 bytes"):
        read_lidar(write(points.tobytes()[:-2], "short.pcd.bin"))
    with pytest.raises(DataError, match=r"none.pcd.bin"):
        read_lidar(Path("none.pcd.bin"))


def test_the_near_square():
    x, y = np.array([0.5, 0.5, 1.0, -0.99, 0.0]), np.array([0.5, 1.0, 0.0, 0.99, -3.0])
    assert far_enough(x, y, 1.0).tolist() == [False, True, True, False, True]
