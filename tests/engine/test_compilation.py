from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fusion3d.build import build_model
from fusion3d.data.subset import select_sensors
from fusion3d.engine.checkpoint import list_checkpoints
from fusion3d.engine.compilation import compile_parts, dense_parts
from fusion3d.engine.random_batch import random_batch
from fusion3d.engine.split import check_training
from fusion3d.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parent))
from small import small_config, train_small
from tiny import fork_ranks


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_the_dense_parts_are_whole_graphs_and_say_the_same(backend):
    config, models, graphs = small_config(), [], []

    def eager(graph, inputs):
        graphs.append(graph)
        return graph

    for compiled in (False, True):
        torch.manual_seed(0)
        models.append(build_model(config).train())
        if compiled:
            chosen = eager if backend == "eager" else backend
            parts = compile_parts(models[-1], backend=chosen, fullgraph=True)  # a graph break is an error
            assert len(parts) == 6
    plain, fast = models
    assert plain.state_dict().keys() == fast.state_dict().keys()
    full = random_batch(config, 2, 300, 30, 6)
    for seen in (full, select_sensors(full, ["CAM_FRONT", "CAM_BACK", "lidar"])):  # 12 images, then 4
        losses = []
        for model in models:
            terms = model.losses(model(seen), full)
            torch.stack(list(terms.values())).sum().backward()
            losses.append(terms)
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
    assert backend != "eager" or len(graphs) == 6 + 2, "once more for another number of images, in backbone and neck"
    for (name, a), b in zip(plain.named_parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_parts_of_a_model_without_cameras():
    config = small_config(camera=None, planning=None)
    model = build_model(config)
    task = model.detection.tasks[0]
    assert list(dense_parts(model)) == [model.trunk, task.heatmap, task.box]
    assert not list(dense_parts(torch.nn.Linear(2, 2)))


def test_compiled_or_recomputed():
    with pytest.raises(ConfigError, match=r"train\.compile and train\.checkpoint_activations"):
        check_training(small_config({"compile": True, "checkpoint_activations": True}))


@pytest.mark.slow
def test_compiled_by_inductor_it_trains_goes_on_and_goes_with_others(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    train, more = {"epochs": 2, "checkpoint_every": 7, "compile": True}, {"camera": None, "planning": None}
    train_small(tmp_path / "plain", small_config(train | {"compile": False}, **more))
    train_small(tmp_path / "fast", small_config(train, **more))
    last = list_checkpoints(tmp_path / "fast")[-1]
    runs = [tmp_path / run / "checkpoints" / last.name / "ema.safetensors" for run in ("plain", "fast")]
    plain, fast = map(load_file, runs)
    assert plain.keys() == fast.keys()
    for name, value in plain.items():
        torch.testing.assert_close(fast[name], value, rtol=1e-2, atol=1e-3, msg=name)
    shutil.rmtree(last)
    train_small(tmp_path / "fast", small_config(train, **more))
    again = load_file(last / "ema.safetensors")
    assert all(torch.equal(again[name], value) for name, value in fast.items())
    ranks = fork_ranks(
        train_small, tmp_path / "two", small_config(train | {"batch_size": 1, "sync_batchnorm": True}, **more)
    )
    assert [status for status, _ in ranks] == [0, 0], ranks[0][1] + ranks[1][1]
