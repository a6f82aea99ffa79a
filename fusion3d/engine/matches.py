"""Matches as a file: what an evaluation leaves behind, so that it can be compared and divided without its data set."""

from __future__ import annotations

import dataclasses
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from fusion3d.errors import ConfigError, DataError
from fusion3d.files import read_json, write_whole
from fusion3d.metrics.columns import Samples
from fusion3d.metrics.matching import TP_ERRORS, Matches, Objects
from fusion3d.metrics.protocol import DetectionProtocol
from fusion3d.types import DETECTION_CLASSES

MATCHES = "matches.npz"
_FORMAT = 1  # raised when an array changes its meaning
_SHARED = ("sample", "label")  # by a detection and the truth box that it found
_DAMAGED = (
    OSError, ValueError, KeyError, TypeError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile,
    zlib.error, ConfigError,
)  # what damaged bytes raise, wherever in the file they are  # fmt: skip


def matches_of(folder: Path) -> dict[str, Path]:
    """The files of matches of an evaluation, by subset of the sensors, smaller ones first.

    What the folder's ``metrics.json`` does not speak of is of an earlier evaluation, and left out. The matches of a
    result file lie in the folder itself.
    """
    files = {path.parent.name: path for path in sorted(folder.glob(f"*/{MATCHES}"))}
    metrics = folder / "metrics.json"
    if metrics.is_file() and "subsets" in (scored := read_json(metrics, "evaluate again")):
        rows = {name: row for name, row in scored["subsets"].items() if "AP" in row}
        own = {name: folder / MATCHES for name in rows if "meta" in scored}
        files = {name: path for name, path in (files | own).items() if name in rows}
    elif (folder / MATCHES).is_file():
        files = {folder.absolute().name: folder / MATCHES}
    files = {name: path for name, path in files.items() if path.is_file()}
    return dict(sorted(files.items(), key=lambda pair: (pair[0].count("+"), pair[0])))


def write_matches(path: str | Path, matches: Matches) -> Path:
    """Write matches, compressed; no pickle.

    Raises:
        Fusion3DError: the file cannot be written.
    """
    samples = matches.samples
    header = {
        "format": _FORMAT, "protocol": matches.protocol.as_dict(), "classes": list(DETECTION_CLASSES),
        "tokens": list(samples.tokens), "scenes": list(samples.scenes), "descriptions": list(samples.descriptions),
    }  # fmt: skip
    arrays = {name: getattr(samples, name) for name in ("scene", "ego", "heading")}
    for kind in ("truth", "found"):
        arrays |= {f"{kind}_{f.name}": getattr(getattr(matches, kind), f.name) for f in dataclasses.fields(Objects)}
    arrays |= {name: getattr(matches, name) for name in ("score", "pair", "pair_truth", "pair_error")}
    named: dict[str, Any] = {"header": np.frombuffer(json.dumps(header).encode(), dtype=np.uint8), **arrays}
    return write_whole(path, lambda file: np.savez_compressed(file, allow_pickle=False, **named))


def read_matches(path: str | Path) -> Matches:
    """What ``write_matches`` wrote.

    Raises:
        DataError: the file is missing, damaged, or of another format.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        matches = _matches(json.loads(bytes(arrays.pop("header"))), arrays)
        _check(matches)
    except FileNotFoundError as error:
        raise DataError(f"no {path}; evaluate writes it where the model has a detection head") from error
    except _DAMAGED as error:
        raise DataError(f"{path} holds no matches of this version ({error}); evaluate again") from error
    return matches


def _matches(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> Matches:
    if header["format"] != _FORMAT or header["classes"] != list(DETECTION_CLASSES):
        raise ValueError(f"format {header['format']}, classes {header['classes']}")
    tokens, scenes, descriptions = (tuple(header[name]) for name in ("tokens", "scenes", "descriptions"))
    names = [f.name for f in dataclasses.fields(Objects)]
    truth, found = (Objects(*(arrays[f"{kind}_{name}"] for name in names)) for kind in ("truth", "found"))
    return Matches(
        DetectionProtocol.of(header["protocol"]),
        Samples(tokens, arrays["scene"], scenes, descriptions, arrays["ego"], arrays["heading"]),
        truth,
        found,
        *(arrays[name] for name in ("score", "pair", "pair_truth", "pair_error")),
    )


def _check(matches: Matches) -> None:
    """ValueError where rows lead to what is not there: compiled loops would not notice."""
    samples, pairs = matches.samples, len(matches.pair_truth)
    shapes = {
        "scene": (samples.scene, (len(samples),)),
        "descriptions": (np.array(samples.descriptions), (len(samples.scenes),)),
        "score": (matches.score, (len(matches.found),)),
        "pair": (matches.pair, (len(matches.found), len(matches.protocol.dist_ths))),
        "pair_error": (matches.pair_error, (pairs, len(TP_ERRORS))),
    }
    rows = {
        "scene": (samples.scene, 0, len(samples.scenes)),
        "pair": (matches.pair, -1, pairs),
        "pair_truth": (matches.pair_truth, 0, len(matches.truth)),
    }
    for kind, objects in (("truth", matches.truth), ("found", matches.found)):
        shapes |= {f"{kind}_{f.name}": (getattr(objects, f.name), (len(objects),)) for f in dataclasses.fields(Objects)}
        rows[f"{kind}_sample"] = objects.sample, 0, len(samples)
        rows[f"{kind}_label"] = objects.label, 0, len(DETECTION_CLASSES)
    for name, (array, shape) in shapes.items():
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
    for name, (array, low, high) in rows.items():
        if array.dtype.kind != "i" or (array.size and not (low <= array.min() and array.max() < high)):
            raise ValueError(f"{name} has rows out of {low}..{high - 1}")
    if not (np.diff(matches.score) <= 0).all():
        raise ValueError("scores do not fall")
    for pair in matches.pair.T:
        found, true = np.flatnonzero(pair >= 0), matches.pair_truth[pair[pair >= 0]]
        same = [np.array_equal(getattr(matches.found, n)[found], getattr(matches.truth, n)[true]) for n in _SHARED]
        if not all(same) or len(np.unique(true)) < len(true):
            raise ValueError("a truth box is found twice, or by a detection of another sample or class")
