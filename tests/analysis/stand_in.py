"""What a process of a comparison may do instead of training."""

from __future__ import annotations

import os
import time

from fusion3d.analysis.comparison.runs import METRICS, Run
from fusion3d.errors import CheckpointError
from fusion3d.files import write_json


def work(run: Run) -> None:
    print(f"threads {os.environ['OMP_NUM_THREADS']}, process {os.getpid()}", flush=True)
    if run.seed == 1:
        raise CheckpointError("this one was not to be")
    if run.seed == 2:
        time.sleep(60)
    write_json(run.folder / METRICS, {})
