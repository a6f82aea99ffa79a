"""Backbones of other libraries behind our face, and activation checkpointing that changes nothing but memory."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import sys
from functools import partial
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from fusion3d.config import BackboneConfig, from_dict
from fusion3d.encoders.backbones import make_backbone
from fusion3d.encoders.camera import StackedTopDown, make_camera_encoder
from fusion3d.encoders.checkpointing import checkpoint_activations, checkpoint_blocks
from fusion3d.encoders.resnet import IMAGENET
from fusion3d.errors import CheckpointError, ConfigError
from tests.test_model import TINY, make_batch, make_model, run

CHANNELS = (4, 6, 8, 10)


class Pyramid(nn.Module):
    """A convolutional network as the libraries have them, whose maps shrink from stride 4 to 32, rounded down."""

    def __init__(self, norm: type[nn.Module] = nn.BatchNorm2d, strides: tuple[int, ...] = (4, 2, 2, 2)) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList()})
        inputs = 3
        for count, step in zip(CHANNELS, strides, strict=False):
            layers = [nn.Conv2d(inputs, count, step, step), norm(count), nn.Tanh(), nn.Dropout(0.2)]
            self.encoder["layers"].append(nn.Sequential(*layers))  # type: ignore[operator]
            inputs = count
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        maps = []
        for layer in self.encoder["layers"]:  # type: ignore[union-attr]
            x = layer(x * self.scale)
            maps.append(x)
        return maps


class Plain(nn.Module):
    """A plain transformer's shape: every map has the stride of the patch, 14."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 4, 14, 14)
        self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(8))

    def forward(self, x):
        assert x.shape[-1] % 14 == x.shape[-2] % 14 == 0
        x, maps = self.patches(x), []
        for number, block in enumerate(self.blocks, 1):
            x = block(x)
            maps += [x] if number % 2 == 0 else []
        return maps


@pytest.fixture
def fake_transformers(monkeypatch):
    """What the adapter uses of transformers, which notes what it is asked."""
    asked: list[tuple[str, dict]] = []

    class Network(Pyramid):
        channels = CHANNELS

        def forward(self, x):
            return SimpleNamespace(feature_maps=tuple(super().forward(x)))

        @classmethod
        def from_pretrained(cls, name, **options):
            asked.append((name, options))
            network = cls()
            nn.init.constant_(network.scale, 2.0)
            return network

    class AutoConfig:
        @staticmethod
        def from_pretrained(name, **options):
            asked.append((name, options))
            if name == "absent":
                raise OSError("no such thing\nin two lines")
            return SimpleNamespace(stage_names=["stem", "stage1", "stage2", "stage3", "stage4"], out_indices=None)

    class AutoBackbone:
        @staticmethod
        def from_config(settings, **options):
            asked.append((str(settings.out_indices), options))
            return Network()

    class ImageProcessingMixin:
        @staticmethod
        def get_image_processor_dict(name, **options):
            asked.append((name, options))
            if name != "some/vit":
                raise OSError("no preprocessor_config.json")
            return {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}, {}

    module = ModuleType("transformers")
    for of in (AutoConfig, AutoBackbone, ImageProcessingMixin):
        setattr(module, of.__name__, of)
    monkeypatch.setitem(sys.modules, "transformers", module)
    return asked


def test_a_backbone_of_transformers_downloads_only_what_is_asked_for(fake_transformers, tmp_path):
    backbone = make_backbone(BackboneConfig("hf:some/swin"), 16)
    assert backbone.channels == CHANNELS and backbone.strides == (4, 8, 16, 32)
    assert fake_transformers == [
        ("some/swin", {"trust_remote_code": False, "local_files_only": True}),
        ("[1, 2, 3, 4]", {"trust_remote_code": False}),
        ("some/swin", {"local_files_only": True}),
    ]
    fake_transformers.clear()
    named = make_backbone(BackboneConfig("hf:some/swin", weights="pretrained"), 16)
    assert [options.get("local_files_only") for _, options in fake_transformers] == [False, None, False, False]
    assert fake_transformers[-2][1]["use_safetensors"] is True
    assert named.state_dict()["network.scale"] == 2.0  # type: ignore[attr-defined]
    fake_transformers.clear()
    make_backbone(BackboneConfig(f"hf:{tmp_path}", weights="pretrained"), 16)
    assert all(options.get("local_files_only", True) for _, options in fake_transformers), "a folder needs no network"
    fake_transformers.clear()
    filled = make_backbone(BackboneConfig("hf:some/swin", weights="pretrained"), 16, pretrained=False)
    assert filled.state_dict()["network.scale"] == 1.0, "a checkpoint brings the weights"  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"hf:absent cannot be made \(no such thing\)"):
        make_backbone(BackboneConfig("hf:absent"), 16)
    with pytest.raises(ConfigError, match=r"camera\.backbone\.weights.*'swin\.pt'"):
        make_backbone(BackboneConfig("hf:some/swin", weights="swin.pt"), 16)


def test_maps_cover_the_pixels_that_their_index_says(fake_transformers):
    backbone = make_backbone(BackboneConfig("hf:any"), 16)
    images = torch.rand(1, 3, 70, 97)
    shapes = [tuple(m.shape[-2:]) for m in backbone(images)]
    assert shapes == [(18, 25), (9, 13), (5, 7), (3, 4)]
    backbone.eval()  # type: ignore[attr-defined]
    changed = images.clone()
    changed[:, :, 64:68, 48:52] += 1.0  # the whole of one finest cell
    moved = [
        (a - b).abs().sum((0, 1)).nonzero().tolist() for a, b in zip(backbone(images), backbone(changed), strict=True)
    ]
    assert moved == [[[16, 12]], [[8, 6]], [[4, 3]], [[2, 1]]]


@pytest.fixture
def fake_timm(monkeypatch):
    asked: list[tuple[str, dict]] = []
    networks = {"pyramid": Pyramid, "plain": Plain}

    def create_model(name, **options):
        asked.append((name, options))
        if name not in networks:
            raise RuntimeError(f"Unknown model ({name})")
        if name == "pyramid" and "dynamic_img_size" in options:
            raise TypeError("unexpected keyword argument 'dynamic_img_size'")
        network = networks[name]()
        network.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)} if name == "plain" else {}
        channels = list(CHANNELS) if name == "pyramid" else [4] * 4
        network.feature_info = SimpleNamespace(channels=lambda: channels)
        return network

    module = ModuleType("timm")
    module.create_model = create_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", module)
    return asked


def test_a_network_of_timm(fake_timm, tmp_path):
    backbone = make_backbone(BackboneConfig("timm:pyramid"), 8)
    assert backbone.channels == CHANNELS and backbone.strides == (4, 8, 16, 32)
    plain = {"features_only": True, "pretrained": False, "pretrained_cfg_overlay": None}
    assert [options for _, options in fake_timm] == [plain | {"dynamic_img_size": True}, plain]
    path = tmp_path / "weights.safetensors"
    with pytest.raises(CheckpointError, match="no such file"):
        make_backbone(BackboneConfig("timm:pyramid", weights=str(path)), 8)
    path.write_bytes(b"")
    make_backbone(BackboneConfig("timm:pyramid", weights=str(path)), 8)
    assert fake_timm[-1][1]["pretrained"] is True and fake_timm[-1][1]["pretrained_cfg_overlay"] == {"file": str(path)}
    make_backbone(BackboneConfig("timm:pyramid", weights="pretrained"), 8, pretrained=False)
    assert fake_timm[-1][1]["pretrained"] is False
    with pytest.raises(ConfigError, match=r"timm:nothing cannot be made \(Unknown model"):
        make_backbone(BackboneConfig("timm:nothing"), 8)
    with pytest.raises(ConfigError, match=r"safetensors"):
        make_backbone(BackboneConfig("timm:pyramid", weights="weights.pth"), 8)


@pytest.mark.parametrize("stride", [8, 16])
def test_a_plain_transformers_patch_covers_a_cell(fake_timm, stride):
    backbone = make_backbone(BackboneConfig("timm:plain"), stride)
    assert backbone.strides == (stride,) * 4
    images = torch.rand(1, 3, 70, 97)
    assert {tuple(m.shape[-2:]) for m in backbone(images)} == {(-(-70 // stride), -(-97 // stride))}
    changed = images.clone()
    changed[:, :, 2 * stride + 3, 3 * stride + 4] += 1.0
    moved = (backbone(images)[-1] - backbone(changed)[-1]).abs().sum((0, 1)).nonzero().tolist()
    assert moved == [[2, 3]]


def test_what_cannot_be_used_is_named(fake_timm, monkeypatch):
    with pytest.raises(ConfigError, match=r"camera\.backbone\.width.*camera\.backbone\.name timm:pyramid"):
        make_backbone(BackboneConfig("timm:pyramid", width=8), 8)
    with pytest.raises(ConfigError, match=r"pretrained.*resnet18"):
        make_backbone(BackboneConfig("resnet18", weights="pretrained"), 8)
    monkeypatch.setattr(sys.modules["timm"], "create_model", lambda *_, **__: Wrong())
    with pytest.raises(ConfigError, match=r"timm:pyramid gives maps of shapes \[\(1, 56, 4, 56\)\]"):
        make_backbone(BackboneConfig("timm:pyramid"), 8)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"pip install 'fusion3d\[timm\]'"):
        make_backbone(BackboneConfig("timm:pyramid"), 8)
    for name in ("resnet19", "hf:", "swin"):
        with pytest.raises(ConfigError, match=r"camera\.backbone\.name: expected resnet18"):
            from_dict({"camera": {"backbone": {"name": name}}})


class Wrong(nn.Module):
    """Channels where nobody looks for them."""

    feature_info = SimpleNamespace(channels=lambda: [4])

    def forward(self, x):
        return [torch.zeros(1, x.shape[2] // 4, 4, x.shape[3] // 4)]


def test_maps_with_channels_last_are_turned(fake_timm, monkeypatch):
    class Last(Pyramid):
        feature_info = SimpleNamespace(channels=lambda: list(CHANNELS))

        def forward(self, x):
            return [x_MCHW.permute(0, 2, 3, 1) for x_MCHW in super().forward(x)]

    torch.manual_seed(0)
    last, images = Last().eval(), torch.rand(2, 3, 64, 96)
    monkeypatch.setattr(sys.modules["timm"], "create_model", lambda *_, **__: last)
    backbone = make_backbone(BackboneConfig("timm:swin"), 8)
    for ours, theirs in zip(backbone(images), Pyramid.forward(last, images), strict=True):
        assert torch.equal(ours, theirs)


def test_images_are_normalised_as_the_weights_were_learned(fake_timm, fake_transformers):
    """And how is kept with the weights: what is evaluated elsewhere may not find it there."""
    for name, mean, std in (
        ("timm:plain", 0.5, 0.5), ("hf:some/vit", 0.5, 0.25), ("hf:some/swin", 0.485, 0.229), ("resnet18", 0.485, 0.229)
    ):  # fmt: skip
        camera = from_dict({"camera": {"backbone": {"name": name}, "fpn_channels": 8, "channels": 8}}).camera
        assert camera is not None
        encoder = make_camera_encoder(camera, 4)
        assert (float(encoder.mean[0]), float(encoder.std[0])) == pytest.approx((mean, std))
        assert ("mean" in encoder.state_dict()) == (name != "resnet18")


@pytest.mark.parametrize(
    ("said", "mean", "std"),
    [
        ({"image_mean": None, "image_std": 0.5}, (0.485, 0.456, 0.406), (0.5, 0.5, 0.5)),
        ({"do_normalize": False, "image_mean": [0.5, 0.5, 0.5]}, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        ({}, *IMAGENET),
    ],
)
def test_what_an_image_processor_may_say_of_colours(fake_transformers, monkeypatch, said, mean, std):
    mixin = sys.modules["transformers"].ImageProcessingMixin
    monkeypatch.setattr(mixin, "get_image_processor_dict", staticmethod(lambda *_, **__: (said, {})))
    assert make_backbone(BackboneConfig("hf:some/vit"), 16).colours == (mean, std)
    said |= {"image_mean": [0.5, 0.5]}
    if said.get("do_normalize", True):
        with pytest.raises(ConfigError, match=r"hf:some/vit: expected a number or three .* found \[0\.5, 0\.5\]"):
            make_backbone(BackboneConfig("hf:some/vit"), 16)


def test_colours_come_with_the_checkpoint_where_nobody_says_them(fake_timm, monkeypatch):
    camera = from_dict({"camera": {"backbone": {"name": "timm:plain"}, "fpn_channels": 8, "channels": 8}}).camera
    assert camera is not None
    learned, create = make_camera_encoder(camera, 4), sys.modules["timm"].create_model

    def forgetful(*args, **options):
        network = create(*args, **options)
        network.pretrained_cfg = {}
        return network

    monkeypatch.setattr(sys.modules["timm"], "create_model", forgetful)
    evaluated = make_camera_encoder(camera, 4)
    assert not torch.equal(evaluated.mean, learned.mean)
    evaluated.load_state_dict(learned.state_dict())
    assert torch.equal(evaluated.mean, learned.mean) and torch.equal(evaluated.std, learned.std)


def test_a_stride_that_a_network_has_not(monkeypatch, fake_timm):
    def coarse(*_, **__):
        network = Pyramid(strides=(16, 2))
        network.feature_info = SimpleNamespace(channels=lambda: list(CHANNELS[:2]))
        return network

    monkeypatch.setattr(sys.modules["timm"], "create_model", coarse)
    camera = from_dict({"camera": {"backbone": {"name": "timm:coarse"}, "stride": 8}}).camera
    assert camera is not None
    with pytest.raises(ConfigError, match=r"camera\.stride: found 8.*camera\.backbone\.name timm:coarse.*16, 32"):
        make_camera_encoder(camera, 4)


def test_stages_hold_every_parameter_once_from_early_to_late(fake_timm):
    layers = [f"network.encoder.layers.{i}." for i in range(4)]
    for name, starts in (
        ("resnet18", ["conv1.weight", "layer1.", "layer2.", "layer3.", "layer4."]),
        ("timm:pyramid", ["network.scale", *layers]),
    ):
        width = {"width": 4} if name == "resnet18" else {}
        backbone = make_backbone(BackboneConfig(name, **width), 16)
        names = {id(p): n for n, p in backbone.named_parameters()}  # type: ignore[attr-defined]
        groups = backbone.stages()
        assert [names[id(group[0])].startswith(start) for group, start in zip(groups, starts, strict=True)] == [
            True
        ] * 5
        assert sorted(id(p) for group in groups for p in group) == sorted(names)


def keep(sizes: list[int], tensor: torch.Tensor) -> torch.Tensor:
    sizes.append(tensor.numel())
    return tensor


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "timm:pyramid"])
def test_checkpointed_stages_change_no_bit(fake_timm, name):
    width = {} if name == "timm:pyramid" else {"width": 4}
    results, sizes = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        backbone = make_backbone(BackboneConfig(name, **width), 16)
        assert isinstance(backbone, nn.Module)
        if checkpointing:
            checkpoint_blocks(backbone)
        backbone = copy.deepcopy(backbone).train()  # a copy is checkpointed by itself
        kept: list[int] = []
        images = torch.rand(2, 3, 64, 96)
        torch.manual_seed(1)  # of the dropout
        with torch.autograd.graph.saved_tensors_hooks(partial(keep, kept), lambda t: t):
            maps = backbone(images)
        loss = sum((m.square().mean() for m in maps), torch.zeros(()))
        loss.backward()
        results.append([loss, *maps, *(p.grad for p in backbone.parameters()), *backbone.buffers()])
        sizes.append(sum(kept))
        assert len(results[-1]) == 1 + 4 + len(backbone.state_dict())
        with torch.no_grad():
            results[-1] += backbone.eval()(images)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert sizes[1] < 0.9 * sizes[0], "what is kept for the backward pass"


def test_names_do_not_change_and_twice_is_once():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    before = list(network.state_dict())
    checkpoint_activations(network)
    kind = type(network)
    checkpoint_activations(network)
    assert type(network) is kind and isinstance(network, nn.Sequential) and list(network.state_dict()) == before


def test_stacked_neck_by_hand():
    torch.manual_seed(0)
    neck = StackedTopDown([3, 4, 5], 6).eval()
    maps = [torch.rand(2, 3, 7, 9), torch.rand(2, 4, 4, 5), torch.rand(2, 5, 2, 3)]
    found = neck(maps)
    assert found.shape == (2, 6, 7, 9) and [join[0].in_channels for join in neck.joins] == [9, 9]  # type: ignore[index]
    rows, cols = torch.arange(7) * 4 // 7, torch.arange(9) * 5 // 9
    deep = neck.joins[0](
        torch.cat([maps[1], maps[2][:, :, torch.arange(4) * 2 // 4][:, :, :, torch.arange(5) * 3 // 5]], 1)
    )
    torch.testing.assert_close(found, neck.out(neck.joins[1](torch.cat([maps[0], deep[:, :, rows][..., cols]], 1))))
    assert StackedTopDown([3], 6)([maps[0]]).shape == (2, 6, 7, 9)


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.parametrize("kind", ["Swin", "Dinov2"])
def test_a_real_backbone_of_transformers(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    small = {
        "Swin": {"image_size": 64, "embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 2], "window_size": 4},
        "Dinov2": {
            "hidden_size": 16,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "image_size": 56,
            "mlp_ratio": 1,
        },
    }[kind]
    settings = getattr(transformers, f"{kind}Config")(**small)
    source = transformers.AutoBackbone.from_config(settings)
    source.save_pretrained(tmp_path)
    backbone = make_backbone(BackboneConfig(f"hf:{tmp_path}", weights="pretrained"), 16)
    assert isinstance(backbone, nn.Module)
    checkpoint_blocks(backbone)
    loaded = dict(backbone.named_parameters())
    assert all(torch.equal(loaded[f"network.{name}"], value) for name, value in source.named_parameters())
    maps = backbone.train()(torch.rand(1, 3, 60, 100))
    assert [m.shape[-1] for m in maps] == [-(-100 // stride) for stride in backbone.strides]
    sum((m.sum() for m in maps), torch.zeros(())).backward()


@pytest.mark.parametrize(
    "backbone",
    [BackboneConfig("resnet18", width=4), BackboneConfig("timm:plain")],
    ids=lambda backbone: backbone.name,
)
def test_the_whole_model_trains_with_any_backbone_and_neck(fake_timm, backbone):
    assert TINY.camera is not None
    camera = dataclasses.replace(TINY.camera, backbone=backbone, neck="lss_fpn")
    model, batch = make_model(dataclasses.replace(TINY, camera=camera)), make_batch(1)
    assert model.camera is not None
    checkpoint_blocks(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(2):
        run(model, batch, batch)
        assert all(p.grad is not None and p.grad.any() for p in model.camera.encoder.parameters())
        optimizer.step()
