"""Layers on voxels: against dense convolution, by every backend with one set of weights, and how they are composed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fusion3d.encoders.sparse import (
    SparseConv3d,
    SparseInverseConv3d,
    SparseSequential,
    SparseTensor,
    SubmanifoldConv3d,
)
from fusion3d.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parent))
from encoder_cases import BACKENDS, needs_backend

SHAPE = (7, 11, 13)


def voxels(channels=4, batch=2, seed=0, occupied=0.2, device="cpu"):
    random = torch.Generator().manual_seed(seed)
    coords = (torch.rand(batch, *SHAPE, generator=random) < occupied).nonzero()
    coords = coords[torch.randperm(len(coords), generator=random)]
    features = torch.randn(len(coords), channels, generator=random)
    return SparseTensor(features.to(device).requires_grad_(), coords.to(device), SHAPE, batch)


def network(backend="ours", seed=0):
    torch.manual_seed(seed)
    return SparseSequential(
        SubmanifoldConv3d(4, 8, key="fine", backend=backend),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        SubmanifoldConv3d(8, 8, bias=False, key="fine", backend=backend),
        SparseConv3d(8, 16, 3, stride=2, padding=1, key="down", backend=backend),
        nn.ReLU(),
        SubmanifoldConv3d(16, 16, (1, 3, 3), key="coarse", backend=backend),
        SparseInverseConv3d(16, 5, 3, key="down", backend=backend),
    )


def weights_of(out, net, x):
    """Gradients of one number that depends on every output at its place in the grid."""
    grid = out.dense()
    scale = torch.sin(torch.arange(grid.numel(), device=grid.device)).reshape(grid.shape)
    return torch.autograd.grad((grid * scale).sum(), [x.features, *net.parameters()])


def test_layers_equal_masked_dense_convolution():
    x = voxels()
    mask = x.with_features(torch.ones(len(x.coords), 1)).dense()
    layer = SubmanifoldConv3d(4, 6)
    double = {"weight": layer.weight.permute(0, 4, 1, 2, 3).double(), "bias": layer.bias.double()}
    want = (F.conv3d(x.dense().double(), **double, padding=1) * mask).float()
    torch.testing.assert_close(layer(x).dense(), want, rtol=1e-5, atol=1e-5)
    layer = SparseConv3d(4, 6, 3, stride=2, padding=1)
    double = {"weight": layer.weight.permute(0, 4, 1, 2, 3).double(), "bias": layer.bias.double()}
    out = layer(x)
    reached = F.conv3d(mask.double(), torch.ones(1, 1, 3, 3, 3).double(), stride=2, padding=1) > 0.5
    want = F.conv3d(x.dense().double(), **double, stride=2, padding=1) * reached
    assert out.shape == want.shape[2:]
    torch.testing.assert_close(out.dense(), want.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_backends_agree_with_the_same_weights(backend, device):
    needs_backend(backend)
    ours, theirs = network().to(device), network(backend, seed=1).to(device)
    theirs.load_state_dict(ours.state_dict())
    x, y = voxels(device=device), voxels(device=device)
    found, want = ours(x), theirs(y)
    assert found.shape == want.shape == SHAPE
    torch.testing.assert_close(found.dense(), want.dense(), rtol=1e-4, atol=1e-4)
    for a, b in zip(weights_of(found, ours, x), weights_of(want, theirs, y), strict=True):
        scale = float(b.abs().max())
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * max(scale, 1))


def test_spconv_is_right_with_several_threads():
    """Its own sums race; the adapter gives it one thread, and torch its threads back."""
    pytest.importorskip("spconv")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        x = voxels(16, occupied=0.9)
        ours = SubmanifoldConv3d(16, 16)
        theirs = SubmanifoldConv3d(16, 16, backend="spconv")
        theirs.load_state_dict(ours.state_dict())
        want = ours(x)
        for _ in range(3):
            found = theirs(x)
            torch.testing.assert_close(found.features, want.features, rtol=1e-4, atol=1e-4)
            for a, b in zip(weights_of(found, theirs, x), weights_of(ours(x), ours, x), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * max(float(b.abs().max()), 1))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_checkpoints_of_spconv_load():
    spconv = pytest.importorskip("spconv.pytorch")
    for theirs, ours in [
        (spconv.SubMConv3d(4, 8, 3, indice_key="a"), SubmanifoldConv3d(4, 8, 3)),
        (spconv.SparseConv3d(4, 8, (3, 1, 1), stride=(2, 1, 1)), SparseConv3d(4, 8, (3, 1, 1), stride=(2, 1, 1))),
        (spconv.SparseInverseConv3d(4, 8, 3, "a", bias=False), SparseInverseConv3d(4, 8, 3, key="a", bias=False)),
    ]:
        assert {k: v.shape for k, v in theirs.state_dict().items()} == {
            k: v.shape for k, v in ours.state_dict().items()
        }
        ours.load_state_dict(theirs.state_dict())
        x = voxels()
        if not isinstance(ours, SparseInverseConv3d):
            want = theirs(spconv.SparseConvTensor(x.features, x.coords, list(SHAPE), 2)).dense()
            torch.testing.assert_close(ours(x).dense(), want, rtol=1e-4, atol=1e-4)


def test_the_peer_is_no_part_of_the_state():
    pytest.importorskip("spconv")
    net = network("spconv")
    names = set(net.state_dict())
    net(voxels())
    assert set(net.state_dict()) == names == set(network().state_dict())


def test_rulebooks_are_made_once_for_a_key(monkeypatch):
    from fusion3d import ops

    calls = []
    real = ops.sparse_rulebook
    monkeypatch.setattr(ops, "sparse_rulebook", lambda *args: calls.append(args[3]) or real(*args))
    x = voxels()
    out = network()(x)
    assert calls == [(3, 3, 3), (3, 3, 3), (1, 3, 3)]
    assert out.coords is x.coords and set(out.rulebooks) == {"fine", "down", "coarse"}


def test_a_key_of_something_else_is_an_error():
    x = SubmanifoldConv3d(4, 4, key="a")(voxels())
    for layer, message in [
        (SubmanifoldConv3d(4, 4, 5, key="a"), "another key"),
        (SubmanifoldConv3d(4, 4, dilation=2, key="a"), "another key"),
        (SparseConv3d(4, 4, key="a"), "another key"),
        (SparseInverseConv3d(4, 4, key="a"), "another key"),
        (SparseInverseConv3d(4, 4, key="b"), r"no rulebook.*found \['a'\]"),
        (SubmanifoldConv3d(5, 4), "4 channels; expected 5"),
    ]:
        with pytest.raises(ValueError, match=message):
            layer(x)
    moved = SparseTensor(x.features, x.coords.flip(0).clone(), x.shape, x.batch_size, x.rulebooks)
    with pytest.raises(ValueError, match="other voxels"):
        SubmanifoldConv3d(4, 4, key="a")(moved)


def test_wrong_tensors_and_backends_say_what_was_expected():
    x = voxels()
    with pytest.raises(ValueError, match=r"expected \[N, 4\]"):
        SparseTensor(x.features, x.coords[:, 1:], SHAPE, 2)
    with pytest.raises(ValueError, match="a row for each voxel"):
        SparseTensor(x.features[1:], x.coords, SHAPE, 2)
    with pytest.raises(ValueError, match="odd"):
        SubmanifoldConv3d(4, 4, 2)
    with pytest.raises(ConfigError, match="expected one of ours, spconv, spconv-triton"):
        SubmanifoldConv3d(4, 4, backend="minkowski")(x)
    with pytest.raises(ConfigError, match=r"pip install spconv-triton|no kernels for the CPU"):
        SubmanifoldConv3d(4, 4, backend="spconv-triton")(x)


def test_no_voxels_at_all():
    x = SparseTensor(torch.zeros(0, 4), torch.zeros(0, 4), SHAPE, 2)
    net = network().eval()
    out = net(x)
    assert out.features.shape == (0, 5) and out.dense().shape == (2, 5, *SHAPE) and not out.dense().any()


def test_it_learns():
    torch.manual_seed(0)
    x, net = voxels(), network()
    target = torch.randn(len(x.coords), 5)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = (net(voxels()).features - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
