"""Each fusion operator against what its paper says, written out."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from fusion3d.bev.fusion import (
    AddFusion,
    BilinearFusion,
    BottleneckFusion,
    ChannelExchangeFusion,
    CrossAttentionFusion,
    GatedFusion,
    LowRankFusion,
    PerceiverFusion,
    TensorFusion,
)
from fusion3d.bev.fusion.attention import Attention
from fusion3d.bev.fusion.bottleneck import window_rows
from fusion3d.bev.fusion.products import normalise, outer_product, tensor_width
from fusion3d.bev.tokens import encode_positions
from fusion3d.types import BEVGrid

GRID = BEVGrid(x=(-4.0, 4.0), y=(-3.0, 4.0), resolution=1.0)
Y, X = GRID.shape
THERE = [torch.ones(2, dtype=torch.bool)] * 3


def maps(*channels: int, seed: int = 0, grid: BEVGrid = GRID) -> list[torch.Tensor]:
    torch.manual_seed(seed)
    return [torch.randn(2, count, *grid.shape) for count in channels]


def noisy(module: torch.nn.Module, amount: float = 0.3) -> torch.nn.Module:
    for parameter in module.parameters():
        parameter.data += amount * torch.randn_like(parameter)
    return module


def test_add_is_a_sum():
    fuse = AddFusion((4, 6), 8, GRID)
    fuse.mix = torch.nn.Identity()
    camera, lidar = maps(4, 6)
    there = [torch.tensor([True, True]), torch.tensor([True, False])]
    out = fuse([camera, lidar], there)
    torch.testing.assert_close(out[0], (fuse.project[0](camera) + fuse.project[1](lidar))[0])
    torch.testing.assert_close(out[1], fuse.project[0](camera)[1] + fuse.absent[1][:, None, None])


def test_gated_multimodal_unit():
    """h = sum of sigmoid(Z_i [x_1, x_2] + c_i) * tanh(W_i x_i + b_i), in one cell, with loops."""
    fuse = noisy(GatedFusion((2, 3), 4, GRID))
    inputs, cell = maps(2, 3), (1, 2, 5)
    passed = fuse.pass_gates(inputs, THERE[:2])[cell[0], :, cell[1], cell[2]]
    x = [m[cell[0], :, cell[1], cell[2]] for m in inputs]
    both = torch.cat(x)
    for channel in range(4):
        total = 0.0
        for i in range(2):
            row = 4 * i + channel
            gate = sum(fuse.gates.weight[row, k, 0, 0] * both[k] for k in range(5)) + fuse.gates.bias[row]
            word = fuse.words[i]
            said = sum(word.weight[channel, k, 0, 0] * x[i][k] for k in range(len(x[i]))) + word.bias[channel]
            total = total + torch.tanh(said) / (1 + torch.exp(-gate))
        torch.testing.assert_close(passed[channel], total)


def test_bilinear_pooling_is_a_form_of_low_rank():
    rank, channels = 3, 5
    fuse = BilinearFusion((4, 6), channels, GRID, rank)
    a, b = maps(4, 6)
    factors = [layer.weight.view(rank, channels, -1) for layer in fuse.factors]
    bias = [layer.bias.view(rank, channels, 1) for layer in fuse.factors]
    u, v = (torch.cat(pair, dim=-1) for pair in zip(factors, bias, strict=True))
    form_OIJ = sum(u[r, :, :, None] * v[r, :, None, :] for r in range(rank))  # of [x; 1] and [y; 1]
    assert torch.linalg.matrix_rank(form_OIJ[0]) == rank
    ones = torch.ones(2, 1, Y, X)
    expected = torch.einsum("biyx,oij,bjyx->boyx", torch.cat([a, ones], 1), form_OIJ, torch.cat([b, ones], 1))
    actual = fuse.pool(fuse.factors[0](a), fuse.factors[1](b))
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_bilinear_normalisation():
    x = torch.tensor([4.0, -9.0, 0.0, 1.0])[None, :, None, None] * 100
    root = torch.tensor([2.0, -3.0, 0.0, 1.0])
    torch.testing.assert_close(normalise(x)[0, :, 0, 0], root / root.square().mean().sqrt(), atol=1e-3, rtol=1e-3)
    zero = torch.zeros(1, 3, 1, 1, requires_grad=True)
    normalise(zero).sum().backward()
    assert zero.grad is not None and zero.grad.isfinite().all()


def test_pairs_need_both_sensors():
    fuse = noisy(BilinearFusion((4, 6, 2), 8, GRID, 2))
    fuse.mix = torch.nn.Identity()
    camera, lidar, radar = maps(4, 6, 2)
    there = [torch.tensor([True, True]), torch.tensor([True, False]), torch.tensor([False, False])]
    out = fuse([camera, lidar, radar], there)
    first = [project(x) for project, x in zip(fuse.project, (camera, lidar, radar), strict=True)]
    absent = [vector[:, None, None] for vector in fuse.absent]
    pair = normalise(fuse.pool(fuse.factors[0](camera), fuse.factors[1](lidar)))
    torch.testing.assert_close(out[0], first[0][0] + first[1][0] + absent[2] + pair[0])
    torch.testing.assert_close(out[1], first[0][1] + absent[1] + absent[2])


def test_outer_product_has_every_product():
    a, b, c = torch.tensor([2.0, 3.0]), torch.tensor([5.0]), torch.tensor([7.0, 11.0])
    expected = [x * y * z for x, y, z in itertools.product([2, 3, 1], [5, 1], [7, 11, 1])]
    assert outer_product([a, b, c]).tolist() == expected


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 12])
def test_tensor_stays_small(count):
    width = tensor_width(count)
    assert width >= 1 and (width == 1 or (width + 1) ** count <= 512) and (width + 2) ** count > 512


def test_tensor_fusion_of_a_cell():
    fuse = noisy(TensorFusion((4, 6, 2), 8, GRID))
    fuse.out = torch.nn.Identity()
    inputs = maps(4, 6, 2)
    x = [layer(m)[1, :, 3, 4] for layer, m in zip(fuse.narrow, inputs, strict=True)]
    a, b, c = (torch.cat([part, torch.ones(1)]) for part in x)
    weight = fuse.read.weight.view(8, len(a), len(b), len(c))
    expected = torch.einsum("oijk,i,j,k->o", weight, a, b, c)
    torch.testing.assert_close(fuse(inputs, THERE)[1, :, 3, 4], expected, atol=1e-4, rtol=1e-4)


def test_low_rank_fusion_is_tensor_fusion_with_the_decomposed_weight():
    widths, channels, rank = (4, 6, 2), 8, 3
    fuse = noisy(LowRankFusion(widths, channels, GRID, rank))
    vectors = [m.permute(0, 2, 3, 1) for m in maps(*widths)]
    weight = torch.zeros(channels, *(width + 1 for width in widths))
    for r in range(rank):
        rows = slice(r * channels, (r + 1) * channels)
        a, b, c = (torch.cat([f.weight[rows], f.bias[rows, None]], dim=1) for f in fuse.factors)
        for o in range(channels):
            weight[o] += fuse.weight[r] * a[o, :, None, None] * b[o, None, :, None] * c[o, None, None, :]
    expected = F.linear(outer_product(vectors), weight.flatten(1))
    torch.testing.assert_close(fuse.multiply(vectors), expected, atol=1e-4, rtol=1e-4)


def test_low_rank_products_start_around_zero():
    """The normalisation loses digits where the mean is much larger than the spread."""
    fuse = LowRankFusion((4, 6, 2), 8, GRID, 4)
    seen = []
    fuse.out[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    fuse(maps(4, 6, 2), THERE)
    assert seen[0].mean().abs() < seen[0].std()


def exchange(threshold: float = 0.1) -> ChannelExchangeFusion:
    torch.manual_seed(3)
    fuse = ChannelExchangeFusion((4, 6, 2), 9, GRID, threshold, 0.5)
    for norm in fuse.before:
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.uniform_(norm.bias, -1.0, 1.0)
    return fuse


def test_idle_channels_are_exchanged():
    fuse = exchange()
    assert fuse.own_SC.sum(0).tolist() == [1] * 9 and fuse.own_SC.sum(1).tolist() == [3, 3, 3]
    fuse.before[1].weight.data[[4, 7]] = 0.01  # 4 is its own to give away, 7 is not
    streams = maps(9, 9, 9)
    there = [torch.tensor([True, True]), torch.tensor([True, True]), torch.tensor([True, False])]
    first, second, third = (norm(x) for norm, x in zip(fuse.before, streams, strict=True))
    out = fuse.exchange(streams, there, fuse.before)
    torch.testing.assert_close(out[0], first.relu())
    expected = second.clone()
    expected[0, 4] = (first[0, 4] + third[0, 4]) / 2
    expected[1, 4] = first[1, 4]
    torch.testing.assert_close(out[1], expected.relu())
    assert (out[2][1] == 0).all()


def test_a_sensor_alone_keeps_its_channels():
    fuse = exchange()
    fuse.before[1].weight.data[4], fuse.before[1].bias.data[4] = 0.01, 0.7
    _, stream, _ = maps(9, 9, 9)
    nobody, somebody = torch.tensor([False, False]), torch.tensor([True, True])
    for other in (None, stream):
        out = fuse.exchange([other, stream, None], [nobody, somebody, nobody], fuse.before)
        torch.testing.assert_close(out[1], fuse.before[1](stream).relu())


def test_sparsity_draws_only_what_may_be_given_away():
    fuse = exchange()
    terms = fuse.auxiliary_losses({}, None)  # type: ignore[arg-type]
    expected = 0.5 * sum(
        norm.weight[i * 3 : i * 3 + 3].abs().sum()
        for norms in (fuse.before, fuse.after)
        for i, norm in enumerate(norms)
    )
    torch.testing.assert_close(terms["sparsity"], torch.as_tensor(expected))
    optimizer = torch.optim.SGD([*fuse.before.parameters(), *fuse.after.parameters()], 0.1)
    for _ in range(40):
        optimizer.zero_grad()
        fuse.auxiliary_losses({}, None)["sparsity"].backward()  # type: ignore[arg-type]
        optimizer.step()
    for i, norm in enumerate(fuse.before):
        assert (norm.weight[fuse.own_SC[i]].abs() < 0.1).all() and (norm.weight[~fuse.own_SC[i]] >= 0.5).all()
    lone = ChannelExchangeFusion((4,), 8, GRID, 0.1, 0.5)
    assert lone.auxiliary_losses({}, None)["sparsity"] == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [CrossAttentionFusion, BottleneckFusion, PerceiverFusion], ids=lambda k: k.__name__)
def test_an_absent_sensor_is_as_if_it_had_never_been_there(kind):
    """Three sensors of which one is absent: the operator for two, with the same weights."""
    torch.manual_seed(0)
    three, two = noisy(kind((4, 6, 2), 8, GRID, 2)), kind((4, 6), 8, GRID, 2)
    state = {}
    for name, tensor in three.state_dict().items():
        if name in ("weight", "mark"):
            tensor = tensor[:2]
        elif ".offsets." in name or ".logits." in name:
            tensor = tensor.unflatten(0, (4, 3, -1))[:, :2].flatten(0, 2)
        state[name] = tensor
    two.load_state_dict({name: state[name] for name in two.state_dict()})
    inputs, absent = maps(4, 6, 2), torch.zeros(2, dtype=torch.bool)
    expected = two(inputs[:2], THERE[:2])
    torch.testing.assert_close(three(inputs, [*THERE[:2], absent]), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(three([*inputs[:2], None], [*THERE[:2], absent]), expected, atol=1e-5, rtol=1e-5)


def test_deformable_attention_reads_sensors_where_it_should():
    """At the start: three cells off at most, in four directions, every place alike."""
    grid = BEVGrid(x=(-10.0, 10.0), y=(-6.0, 6.0), resolution=1.0)
    fuse = CrossAttentionFusion((4,), 8, grid, 1)
    fuse.project[0][1] = torch.nn.Identity()  # a normalisation would look at the whole map
    inputs = maps(4, grid=grid)
    before = fuse(inputs, THERE[:1])
    inputs[0][0, :, 5, 10] += 5
    changed = (fuse(inputs, THERE[:1]) - before).abs().amax(1)[0] > 1e-6
    reach = {(5, 10)} | {(5 + s * d, 10 + t * d) for d in (1, 2, 3) for s, t in ((0, 1), (1, 0), (0, -1), (-1, 0))}
    assert {(int(y), int(x)) for y, x in changed.nonzero()} == reach


def test_windows_hold_their_cells_and_their_tokens():
    order, ends = window_rows((7, 13))
    rows, cols, cells = 7, 13, 7 * 13
    groups = [set(part.tolist()) for part in order.tensor_split(ends.tolist())[:-1]]
    expected = []
    for top, left in itertools.product((0, 6), (0, 6, 12)):
        number = len(expected)
        inside = {y * cols + x for y in range(top, min(top + 6, rows)) for x in range(left, min(left + 6, cols))}
        expected.append(inside | {cells + 4 * number + i for i in range(4)})
    assert groups == expected and ends[-1] == cells + 6 * 4


def test_bottleneck_of_one_window_written_out():
    """Two sensors in one window of 4 x 5 cells: attention over cells and bottleneck, which is then averaged."""
    grid = BEVGrid(x=(0.0, 5.0), y=(0.0, 4.0), resolution=1.0)
    torch.manual_seed(0)
    fuse = noisy(BottleneckFusion((4, 6), 8, grid, 3), 0.2)
    inputs = maps(4, 6, grid=grid)
    tokens = [
        project(x).flatten(2).mT + fuse.place[:4, :5].reshape(20, 8)
        for project, x in zip(fuse.project, inputs, strict=True)
    ]
    shared = fuse.bottleneck.expand(2, 4, 8)
    for layer in fuse.layers:
        versions = []
        for i, block in enumerate(layer):
            z = torch.cat([tokens[i], shared], dim=1)
            q, k, v = (p.view(2, 24, 4, 2).transpose(1, 2) for p in block.qkv(block.norm(z)).chunk(3, dim=-1))
            heard = ((q @ k.mT / 2**0.5).softmax(-1) @ v).transpose(1, 2).reshape(2, 24, 8)
            z = block.feed(z + block.out(heard))
            tokens[i], version = z[:, :20], z[:, 20:]
            versions.append(version)
        shared = (versions[0] + versions[1]) / 2
    expected = ((fuse.norm(tokens[0]) + fuse.norm(tokens[1])) / 2).mT.reshape(2, 8, 4, 5)
    torch.testing.assert_close(fuse(inputs, THERE[:2]), expected, atol=1e-4, rtol=1e-4)


def test_what_is_told_passes_through_the_bottleneck_only():
    """Without bottleneck tokens' values, the sensors do not hear of each other."""
    fuse = noisy(BottleneckFusion((4, 6), 8, GRID, 2))
    heard = []
    for layer in fuse.layers:
        layer[1].register_forward_hook(lambda _, __, out: heard.append(out[:, : Y * X]))
    camera, lidar = maps(4, 6)
    for said in (camera, camera + 1):
        fuse([said, lidar], THERE[:2])
    first, second, first_too, second_too = heard
    torch.testing.assert_close(first, first_too, atol=0, rtol=0)  # in the first layer, nothing has been told yet
    assert (second - second_too).abs().amax() > 1e-4


def test_perceiver_sees_the_whole_grid():
    fuse = noisy(PerceiverFusion((4,), 8, GRID, 1))
    fuse.project[0][1] = torch.nn.Identity()
    inputs = maps(4)
    before = fuse(inputs, THERE[:1])
    inputs[0][0, :, 0, 0] += 5
    change = (fuse(inputs, THERE[:1]) - before).abs().amax(1)
    assert (change[0] > 0).all() and (change[1] == 0).all() and change[0, 0, 0] > 5 * change[0].median()


def test_attention_written_out():
    torch.manual_seed(0)
    layer = noisy(Attention(8))
    query, read = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    there = torch.tensor([[True, False, True, True, False], [False] * 5])
    out = layer(query, read, there)
    q, kv = layer.query(layer.norm(query)), layer.read(layer.norm_read(read))
    heard = torch.zeros(2, 3, 8)
    for head in range(4):
        part = slice(2 * head, 2 * head + 2)
        k, v = kv[0, [0, 2, 3]][:, :8][:, part], kv[0, [0, 2, 3]][:, 8:][:, part]
        heard[0, :, part] = (q[0, :, part] @ k.T / 2**0.5).softmax(-1) @ v
    torch.testing.assert_close(out, layer.feed(query + layer.out(heard)), atol=1e-5, rtol=1e-5)


def test_positions_are_told_apart():
    codes = encode_positions((30, 20))
    assert codes.shape == (600, 26)
    nearest = torch.cdist(codes, codes) + 100 * torch.eye(600)
    assert nearest.amin() > 0.1
    torch.testing.assert_close(codes[0, :2], torch.tensor([-1 + 1 / 30, -1 + 1 / 20]))
    torch.testing.assert_close(codes[0, 2], torch.sin(torch.pi * codes[0, 0]))
