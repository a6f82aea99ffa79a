"""What figures depend on: versions, processor, device, and the source that made them."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fusion3d.config import Config, to_dict
from fusion3d.files import write_json
from fusion3d.ops import library

RUN = "run.json"  # in the folder of an evaluation


def environment(device: str | torch.device, root: str) -> dict[str, Any]:
    """What figures depend on: versions, processor, threads, and the source they were made by.

    Args:
        device: that they were made on.
        root: the data that they were made of.
    """
    device = torch.device(device)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" and torch.cuda.is_available() else None
    return {
        "device": device.type,
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "cuda": torch.version.cuda if gpu else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "kernels": sorted(library.DEVICES),
        "commit": _commit(),
        "cloud": root,
    }


def note_run(folder: str | Path, what: Mapping[str, Any], config: Config, device: str | torch.device) -> Path:
    """Write ``run.json``: what was evaluated, how, and on what.

    Raises:
        Fusion3DError: it cannot be written.
    """
    about = {**what, "config": to_dict(config), "environment": environment(device, config.data.version)}
    return write_json(Path(folder, RUN), about)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str | None:
    """Of the source folder, with a + where it has been changed since; None where it is no repository."""
    folder = Path(__file__).parent
    try:
        asked = [["git", "rev-parse", "--short=12", "HEAD"], ["git", "status", "--porcelain", "-uno"]]
        head, changed = (subprocess.run(a, cwd=folder, capture_output=True, text=True, check=True) for a in asked)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def headline(about: Mapping[str, Any], rate: float | None = None) -> str:
    """One line on where figures come from.

    Args:
        about: of ``environment``.
        rate: bytes a second that the device copies, where it was measured.
    """
    where = f"{about['gpu']}, CUDA {about['cuda']}" if about["gpu"] else f"{about['cpu']}, {about['threads']} threads"
    copied = f"; copy {rate / 1e9:.3g} GB/s read and written" if rate else ""
    return f"{where}; torch {about['torch']}; commit {about['commit'] or 'unknown'}; {about['cloud']}{copied}"
