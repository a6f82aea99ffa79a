"""Sparse convolution: sums against dense ones, twin against kernel, and what torch asks of an op."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from harness import DEVICES, assert_same_bits, compiled, exported, opcheck
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_cases import STRIDED, assert_near, dense, grads, make, read, voxels

from fusion3d import ops
from fusion3d.ops import library, reference

axis = st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2))


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=40, deadline=None)
@given(axes=st.tuples(axis, axis, axis), occupied=st.sampled_from([0.0, 0.05, 0.4, 1.0]), seed=st.integers(0, 99))
def test_strided_and_inverse_equal_dense_convolution(device, axes, occupied, seed):
    shape, kernel, stride, padding, dilation = zip(*axes, strict=True)
    coords = voxels(shape, 2, occupied, device, seed)
    rulebook = ops.sparse_rulebook(coords, shape, 2, kernel, stride, padding, dilation)
    # Outputs are the cells that a kernel of ones reaches. (Dense in float64: in float32 those of
    # torch 2.13 return memory that was never written, for some of these shapes.)
    double = {"device": device, "dtype": torch.float64}
    ones = dense(torch.ones(len(coords), 1, **double), coords, shape, 2)
    room = [n + 2 * p - d * (k - 1) for n, k, _, p, d in axes]
    if min(room) < 1:
        assert len(rulebook.out_coords) == 0
        return
    geometry = {"stride": stride, "padding": padding, "dilation": dilation}
    reached = F.conv3d(ones, torch.ones(1, 1, *kernel, **double), **geometry)
    assert rulebook.out_shape == reached.shape[2:]
    assert torch.equal(rulebook.out_coords.long(), (reached[:, 0] > 0.5).nonzero())
    features = torch.randn(len(coords), 3, **double).requires_grad_()
    weight = torch.randn(4, *kernel, 3, **double).requires_grad_()
    out = ops.sparse_conv(features, weight, rulebook)
    full = F.conv3d(dense(features, coords, shape, 2), weight.permute(0, 4, 1, 2, 3), **geometry)
    want = read(full, rulebook.out_coords)
    assert_near(out, want, 1e-9)
    for found, expected in zip(grads(out, features, weight), grads(want, features, weight), strict=True):
        assert_near(found, expected, 1e-9)
    # The inverse reads the same pairs backwards: a transposed convolution, seen at the inputs.
    inverse = rulebook.inverse()
    above = torch.randn(len(rulebook.out_coords), 3, **double).requires_grad_()
    back = ops.sparse_conv(above, weight, inverse)
    target = [
        (n - 1) * s - 2 * p + d * (k - 1) + 1 for n, (_, k, s, p, d) in zip(rulebook.out_shape, axes, strict=True)
    ]
    extra = [n - t for n, t in zip(shape, target, strict=True)]
    grid = dense(above, rulebook.out_coords, rulebook.out_shape, 2)
    grid = torch.ops.aten.convolution(
        grid, weight.permute(4, 0, 1, 2, 3), None, stride, padding, dilation, True, extra, 1
    ) if all(e < max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True)) else None  # fmt: skip
    if grid is not None:
        want = read(grid, coords)
        assert_near(back, want, 1e-9)
        for found, expected in zip(grads(back, above, weight), grads(want, above, weight), strict=True):
            assert_near(found, expected, 1e-9)


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=25, deadline=None)
@given(
    axes=st.tuples(*[st.tuples(st.integers(1, 20), st.sampled_from([1, 3, 5]), st.integers(1, 2))] * 3),
    seed=st.integers(0, 99),
)
def test_submanifold_equals_masked_dense_convolution(device, axes, seed):
    shape, kernel, dilation = zip(*axes, strict=True)
    coords = voxels(shape, 1, min(1.0, 300 / (shape[0] * shape[1] * shape[2])), device, seed)
    rulebook = ops.sparse_rulebook(coords, shape, 1, kernel, dilation=dilation, submanifold=True)
    features = torch.randn(len(coords), 3, device=device).requires_grad_()
    weight = torch.randn(4, *kernel, 3, device=device).requires_grad_()
    out = ops.sparse_conv(features, weight, rulebook)
    padding = [k // 2 * d for k, d in zip(kernel, dilation, strict=True)]
    grid = dense(features.double(), coords, shape, 1)
    full = F.conv3d(grid, weight.double().permute(0, 4, 1, 2, 3), padding=padding, dilation=dilation)
    want = read(full, coords)
    assert_near(out, want, 1e-5)
    for found, expected in zip(grads(out, features, weight), grads(want, features, weight), strict=True):
        assert_near(found, expected, 1e-5)


@compiled
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)],
)
@pytest.mark.parametrize(
    ("cin", "cout"), [(1, 1), (5, 16), (16, 16), (3, 8), (17, 33), (64, 64), (32, 12), (128, 5), (13, 131)]
)
def test_kernel_equals_twin(device, dtype, tolerance, cin, cout):
    for geometry in ({"submanifold": True}, {"submanifold": False, **STRIDED}):
        features, weight, rulebook = make(cin, cout, dtype, device, **geometry)
        exact = [t.detach().double().requires_grad_() for t in (features, weight)]
        out = ops.sparse_conv(features, weight, rulebook)
        want = reference.sparse_conv(exact[0], exact[1].flatten(1, 3), rulebook.table)
        grad = torch.randn(want.shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
        out.backward(grad)
        want.backward(grad.double())
        assert out.dtype == features.grad.dtype == weight.grad.dtype == dtype
        for found, expected in ((out, want), (features.grad, exact[0].grad), (weight.grad, exact[1].grad)):
            assert_near(found, expected, tolerance)


@compiled
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("geometry", [{}, STRIDED])
def test_weight_gradient_of_several_parts_equals_twin(device, geometry):
    coords = voxels((12, 60, 61), 1, 0.4, device)
    rulebook = ops.sparse_rulebook(coords, (12, 60, 61), 1, 3, submanifold=not geometry, **geometry)
    assert len(coords) > 3 * 4096 + 1 and len(rulebook.out_coords) % 8
    random = torch.Generator().manual_seed(2)
    features = torch.randn(len(coords), 3, generator=random, dtype=torch.float64).to(device)
    weight = torch.randn(18, 3, 3, 3, 3, generator=random, dtype=torch.float64).to(device).requires_grad_()
    out = ops.sparse_conv(features, weight, rulebook)
    want = reference.sparse_conv(features, weight.flatten(1, 3), rulebook.table)
    assert_near(out, want, 1e-12)
    assert_near(grads(out, weight)[0], grads(want, weight)[0], 1e-11)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("submanifold", [True, False])
def test_gradcheck(device, submanifold):
    coords = voxels((4, 7, 9), 1, 0.05, device)
    geometry = {} if submanifold else STRIDED
    inputs = make(2, 3, torch.float64, device, submanifold=submanifold, coords=coords, **geometry)
    assert torch.autograd.gradcheck(lambda f, w: ops.sparse_conv(f, w, inputs[2]), inputs[:2])


@compiled
@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    coords = voxels(device=device)
    kernels = torch.ops.fusion3d
    opcheck(kernels.sparse_submanifold, coords, 2, [4, 7, 9], [3, 3, 3], [1, 1, 1])
    geometry = ([4, 7, 9], [3, 3, 3], [2, 2, 2], [1, 1, 1], [1, 1, 1])
    opcheck(kernels.sparse_strided, coords, 2, *geometry)
    for geometry in ({"submanifold": True}, {"submanifold": False, **STRIDED}):
        features, weight, rulebook = make(device=device, **geometry)
        flat = weight.detach().flatten(1, 3).requires_grad_()
        tables = (rulebook.table, rulebook.transposed)
        opcheck(kernels.sparse_conv, features, flat, *tables)
        grad = torch.randn(len(rulebook.out_coords), 7, device=device, requires_grad=True)
        opcheck(kernels.sparse_conv, grad, flat, *tables, True)
        opcheck(kernels.sparse_weight_grad, grad.detach(), features.detach(), rulebook.table)


def test_gradient_of_the_adjoint():
    for geometry in ({"submanifold": True}, {"submanifold": False, **STRIDED}):
        _, weight, rulebook = make(2, 3, torch.float64, **geometry)
        grad = torch.randn(len(rulebook.out_coords), 3, dtype=torch.float64, requires_grad=True)
        flat = weight.detach().flatten(1, 3).requires_grad_()
        args = (rulebook.table, rulebook.transposed, True)
        if "cpu" in library.DEVICES:
            back = torch.ops.fusion3d.sparse_conv(grad, flat, *args)
            scale = torch.randn_like(back)
            found = torch.autograd.grad((back * scale).sum(), (grad, flat))
            want = (ops.sparse_conv(scale, weight, rulebook) * grad).sum()
            torch.testing.assert_close(found[0], ops.sparse_conv(scale, weight, rulebook).detach())
            torch.testing.assert_close(found[1], torch.autograd.grad(want, weight)[0].flatten(1, 3))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("coords", [torch.zeros(0, 4), torch.tensor([[1, 3, 6, 8]])])
def test_none_and_one(device, coords):
    for geometry in ({"submanifold": True}, {"submanifold": False, **STRIDED}):
        features, weight, rulebook = make(device=device, coords=coords.int().to(device), **geometry)
        out = ops.sparse_conv(features, weight, rulebook)
        out.sum().backward()
        assert len(out) == len(rulebook.out_coords) and features.grad.shape == features.shape
        if len(coords) and rulebook.transposed is None:
            torch.testing.assert_close(out[0], weight[:, 1, 1, 1] @ features[0])
        assert bool(weight.grad.any()) == bool(len(coords))


def test_a_kernel_that_does_not_fit_has_no_outputs():
    features, weight, rulebook = make(kernel=(5, 3, 3), submanifold=False)
    out = ops.sparse_conv(features, weight, rulebook)
    out.sum().backward()
    assert out.shape == (0, 7) and rulebook.out_shape == (0, 5, 7)
    assert not features.grad.any() and not weight.grad.any()


@pytest.mark.parametrize("submanifold", [True, False])
def test_compiles_into_one_graph(submanifold):
    coords, geometry = voxels(), {} if submanifold else STRIDED
    features, weight, rulebook = make(submanifold=submanifold, **geometry)

    def both(coords, features, weight):
        book = ops.sparse_rulebook(coords, (4, 7, 9), 2, 3, submanifold=submanifold, **geometry)
        return ops.sparse_conv(features, weight, book)

    want = ops.sparse_conv(features, weight, rulebook)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        for backend in ("eager", "aot_eager"):
            torch._dynamo.reset()
            out = torch.compile(both, backend=backend, fullgraph=True)(coords, features, weight)
            torch.testing.assert_close(out, want, rtol=0, atol=0)
            for found, expected in zip(grads(out, features, weight), grads(want, features, weight), strict=True):
                torch.testing.assert_close(found, expected, rtol=0, atol=0)
            want = ops.sparse_conv(features, weight, rulebook)

    inputs = (coords, features.detach(), weight.detach())
    torch.testing.assert_close(exported(both, *inputs)(*inputs), want.detach(), rtol=0, atol=0)


@compiled
@pytest.mark.parametrize("submanifold", [True, False])
def test_exports_for_any_number_of_voxels_and_samples(submanifold):
    def run(coords, features, weight, batch_ptr):
        book = ops.sparse_rulebook(coords, (4, 7, 9), batch_ptr.shape[0] - 1, 3, 1, 1, submanifold=submanifold)
        return ops.sparse_conv(features, weight, book)

    def inputs(samples):
        coords = voxels((4, 7, 9), samples, 0.2)
        random = torch.Generator().manual_seed(0)
        features = torch.randn(len(coords), 5, generator=random), torch.randn(7, 3, 3, 3, 5, generator=random)
        return coords, *features, torch.zeros(samples + 1, dtype=torch.int64)

    rows, bounds = {0: torch.export.Dim("rows")}, {0: torch.export.Dim("bounds", min=3)}
    program = exported(run, *inputs(3), dynamic_shapes=[rows, rows, None, bounds])
    for samples in (5, 2):
        assert torch.equal(program(*inputs(samples)), run(*inputs(samples)))


@pytest.mark.parametrize("device", DEVICES)
def test_same_bits_for_any_run_and_thread_count(device):
    shape = (20, 60, 60)
    coords = voxels(shape, 1, 0.5, device)
    random = torch.Generator().manual_seed(1)
    values = torch.randn(len(coords), 9, generator=random), torch.randn(20, 3, 3, 3, 9, generator=random)

    def bits():
        features, weight = (t.to(device, copy=True).requires_grad_() for t in values)
        found = []
        for geometry in ({"submanifold": True}, STRIDED):
            rulebook = ops.sparse_rulebook(coords, shape, 1, 3, **geometry)
            out = ops.sparse_conv(features, weight, rulebook)
            found += [rulebook.table, rulebook.out_coords, out.detach(), *grads(out, features, weight)]
        return found

    assert_same_bits(bits)


def test_not_contiguous():
    features, weight, rulebook = make()
    want = ops.sparse_conv(features, weight, rulebook)
    turned = features.T.contiguous().T, weight.permute(4, 0, 1, 2, 3).contiguous().permute(1, 2, 3, 4, 0)
    assert torch.equal(ops.sparse_conv(*turned, rulebook), want)
    loose = torch.stack([rulebook.coords, rulebook.coords], 2)[..., 0]
    assert torch.equal(ops.sparse_rulebook(loose, (4, 7, 9), 2, 3, submanifold=True).table, rulebook.table)


def test_autocast_casts_both():
    features, weight, rulebook = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = ops.sparse_conv(features, weight, rulebook)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), ops.sparse_conv(features, weight, rulebook), rtol=5e-2, atol=2e-1)
    out.float().sum().backward()
    assert features.grad.dtype == weight.grad.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ops.sparse_conv(features.double(), weight.double(), rulebook).dtype == torch.float64


def test_without_library_the_twin_runs_with_one_warning(monkeypatch):
    features, weight, rulebook = make(submanifold=False, **STRIDED)
    want = ops.sparse_conv(features, weight, rulebook)
    monkeypatch.setattr(library, "DEVICES", frozenset())
    monkeypatch.setattr(library, "_warned", set())
    with pytest.warns(RuntimeWarning, match="pure-torch") as caught:
        again = ops.sparse_rulebook(rulebook.coords, (4, 7, 9), 2, 3, **STRIDED)
        outs = [ops.sparse_conv(features, weight, again) for _ in range(3)]
    assert len(caught) == 1 and torch.equal(again.table, rulebook.table)
    torch.testing.assert_close(outs[0], want, rtol=1e-5, atol=1e-5)


def test_wrong_input_says_what_was_expected():
    features, weight, rulebook = make()
    other = dataclasses.replace(rulebook, coords=rulebook.coords[:3])
    for args, message in [
        ((features[0], weight, rulebook), r"features has shape \[5\]; expected \[N, I\]"),
        ((features, weight[0], rulebook), r"expected \[O, Z, Y, X, I\]"),
        ((features.int(), weight, rulebook), r"features is torch.int32"),
        ((features, weight.double(), rulebook), "expected one dtype"),
        ((features, weight[..., :4], rulebook), r"expected \[O, 3, 3, 3, 5\]"),
        ((features, weight[:, :1], rulebook), r"expected \[O, 3, 3, 3, 5\]"),
        ((features, weight, other), "expected 3, one for each voxel"),
        ((features, weight.to("meta"), rulebook), "expected one"),
    ]:
        with pytest.raises(ValueError, match=message):
            ops.sparse_conv(*args)


@compiled
def test_gradient_of_large_weights_is_whole():
    """Whose parts are fewer than the rows would make, for together they are bounded."""
    rows, channels = 20_000, 256
    table = torch.full((27, rows), -1, dtype=torch.int32)
    table[5] = torch.arange(rows)
    table[20, ::7] = torch.arange(rows)[::7].flip(0).int()
    random = torch.Generator().manual_seed(0)
    grad, features = (torch.randn(rows, channels, generator=random) for _ in range(2))
    found = torch.ops.fusion3d.sparse_weight_grad(grad, features, table)
    assert found.shape == (channels, 27, channels)
    torch.testing.assert_close(found[:, 5], grad.T @ features, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found[:, 20], grad[::7].T @ features[table[20, ::7]], rtol=1e-4, atol=1e-3)
    assert not found[:, [k for k in range(27) if k not in (5, 20)]].any()


@compiled
def test_the_operation_itself_rejects_what_it_cannot_read():
    features, weight, rulebook = make(submanifold=False, **STRIDED)
    flat, op = weight.detach().flatten(1, 3), torch.ops.fusion3d.sparse_conv
    tables = (rulebook.table, rulebook.transposed)
    for args, message in [
        ((features.T.contiguous().T, flat, *tables), "contiguous"),
        ((features, flat, rulebook.table.long(), None), "wrong dtype"),
        ((features, flat[:, :3].contiguous(), *tables), "taps"),
        ((features[:, :3].contiguous(), flat, *tables), "channels"),
        ((features[1:], flat, *tables), "row for each"),
        ((features, flat, rulebook.table, rulebook.transposed[:3]), "as many taps"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            op(*args)
