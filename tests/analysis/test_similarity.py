"""CKA between the maps of a model, against the direct formula on all its cells."""

from __future__ import annotations

import dataclasses
import json
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from fusion3d.analysis.features import bev_modules, watch
from fusion3d.analysis.similarity import add_batch, compare_maps, main
from fusion3d.data.subset import select_sensors
from fusion3d.errors import ConfigError
from fusion3d.metrics.cka import Alignment
from fusion3d.types import History

sys.path.insert(0, str(Path(__file__).parent))
from small_models import batch_of, build, on_synthetic, saved, small


def cells(map_BCYX: torch.Tensor) -> np.ndarray:
    return map_BCYX.movedim(1, -1).flatten(0, 2).double().numpy()


def direct(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    of = [np.linalg.norm(a.T @ b) for a, b in ((x, y), (x, x), (y, y))]
    return of[0] ** 2 / (of[1] * of[2])


def test_over_batches_it_is_that_of_all_cells_of_samples_with_both():
    config = small()
    model, known = build(config), {}
    batches = [batch_of(config, 2, seed) for seed in range(3)]
    batches[1] = select_sensors(batches[1], ("camera", "lidar"))
    seen = []
    for batch in batches:
        add_batch(known, model, batch)
        with torch.no_grad(), watch(bev_modules(model)) as maps:
            model(batch)
        seen.append(maps)
    assert set(known) == set(combinations(("camera", "lidar", "radar", "fused"), 2))
    for (a, b), found in known.items():
        rows = [np.concatenate([cells(maps[name]) for maps in seen if {a, b} <= set(maps)]) for name in (a, b)]
        assert found.count == (4 if "radar" in (a, b) else 6) * 256 == len(rows[0])
        assert found.biased() == pytest.approx(direct(*rows), rel=1e-6)
        assert isinstance(found, Alignment) and found.unbiased() <= found.biased() + 1e-9


def test_what_only_the_past_has_is_not_compared():
    config = small(temporal={"keyframes": 2})
    batch, alone, known = batch_of(config, 2), batch_of(config), {}
    history = (History(alone.history[0].batch, (1,)),)  # of one of the two samples
    add_batch(known, build(config), dataclasses.replace(batch, lidar=None, history=history))
    assert set(known) == set(combinations(("camera", "radar", "fused"), 2))


@pytest.mark.parametrize("stage", ["hierarchical", "late", "hybrid"])
def test_other_stages_have_pairs_too(stage):
    config = small(fusion__stage=stage)
    known: dict = {}
    add_batch(known, build(config), batch_of(config))
    assert len(known) == {"hierarchical": 6, "late": 3, "hybrid": 21}[stage]
    assert all(0 <= found.biased() <= 1 for found in known.values())


def test_a_model_that_remembers_is_given_the_past_of_every_sample(synthetic_root, tmp_path):
    config = on_synthetic(synthetic_root, camera=None, temporal={"keyframes": 2}, trunk__blocks=[1])
    checkpoint = saved(config, tmp_path / "checkpoints" / "step-00000001")
    streamed = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, stream=True))
    clips, stream = (compare_maps(checkpoint, of, tmp_path)["pairs"] for of in (config, streamed))
    assert clips == stream


def test_the_verb_writes_what_it_says(synthetic_root, tmp_path, capsys):
    checkpoint = saved(on_synthetic(synthetic_root, camera=None), tmp_path / "checkpoints" / "step-00000001")
    assert main(["--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")]) == 0
    told = json.loads((tmp_path / "out" / "similarity.json").read_text())
    assert told["split"] == "val" and [pair["maps"] for pair in told["pairs"]] == [
        ["lidar", "radar"], ["lidar", "fused"], ["radar", "fused"],
    ]  # fmt: skip
    assert all(pair["cells"] == 6 * 256 and 0 <= pair["cka"] <= 1 for pair in told["pairs"])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:4] == ["lidar", "-", "radar", f"{told['pairs'][0]['cka']:.3f}"] for line in lines)
    with pytest.raises(SystemExit):  # nothing is predicted: options that would change nothing are none
        main(["--checkpoint", str(checkpoint), "--out", str(tmp_path), "--tta", "flip"])
    assert "Unrecognized options: --tta" in capsys.readouterr().err
    early = on_synthetic(synthetic_root, camera=None, fusion__stage="early", fusion__virtual_points=2)
    with pytest.raises(ConfigError, match=r"1 map from above \(points\), and CKA compares two"):
        main(["--checkpoint", str(saved(early, tmp_path / "early")), "--out", str(tmp_path)])
