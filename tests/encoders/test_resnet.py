"""The backbone carries torchvision's names, and its weight files are read with care."""

from __future__ import annotations

import pytest
import torch

from fusion3d.encoders.resnet import ResNet, load_weights
from fusion3d.errors import CheckpointError

# Published with torchvision's models: state-dict entries and parameters, the classifier included.
KNOWN = {
    18: (122, 11_689_512, 512),
    34: (218, 21_797_672, 512),
    50: (320, 25_557_032, 2048),
    101: (626, 44_549_160, 2048),
}


@pytest.mark.parametrize("depth", KNOWN)
def test_entries_and_parameters_are_those_of_torchvision(depth):
    network = ResNet(depth)
    entries, parameters, features = KNOWN[depth]
    classifier = features * 1000 + 1000
    assert len(network.state_dict()) + 2 == entries
    assert sum(p.numel() for p in network.parameters()) + classifier == parameters


def test_names_and_shapes_written_down():
    state = {name: tuple(value.shape) for name, value in ResNet(18).state_dict().items()}
    block = {
        f"{layer}.{kind}": shape
        for layer in ("bn1", "bn2")
        for kind, shape in {
            "weight": (64,), "bias": (64,), "running_mean": (64,), "running_var": (64,), "num_batches_tracked": ()
        }.items()
    } | {"conv1.weight": (64, 64, 3, 3), "conv2.weight": (64, 64, 3, 3)}  # fmt: skip
    assert {name: shape for name, shape in state.items() if name.startswith("layer1.0.")} == {
        f"layer1.0.{name}": shape for name, shape in block.items()
    }
    assert state["conv1.weight"] == (64, 3, 7, 7)
    assert state["layer2.0.downsample.0.weight"] == (128, 64, 1, 1)
    assert state["layer4.1.conv2.weight"] == (512, 512, 3, 3)
    deep = {name: tuple(value.shape) for name, value in ResNet(50).state_dict().items()}
    assert deep["layer1.0.downsample.1.running_var"] == (256,)
    assert deep["layer3.5.conv3.weight"] == (1024, 256, 1, 1)
    assert deep["layer4.0.conv2.weight"] == (512, 512, 3, 3)


def test_strides_and_channels():
    network = ResNet(50, width=8).eval()
    maps = network(torch.rand(1, 3, 70, 97))
    assert [tuple(m.shape) for m in maps] == [(1, 32, 18, 25), (1, 64, 9, 13), (1, 128, 5, 7), (1, 256, 3, 4)]
    assert network.channels == (32, 64, 128, 256)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_weight_file_round_trip(tmp_path, suffix):
    source, target = ResNet(18, 8), ResNet(18, 8)
    path = tmp_path / f"weights{suffix}"
    state = source.state_dict() | {"fc.weight": torch.zeros(10, 64), "fc.bias": torch.zeros(10)}
    if suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
    else:
        torch.save(state, path)
    load_weights(target, path)
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )


def test_unfitting_weight_files_are_refused(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(ResNet(18, 8).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"conv1.weight has shape \[8, 3, 7, 7\], expected \[16, 3, 7, 7\]"):
        load_weights(ResNet(18, 16), path)
    with pytest.raises(CheckpointError, match="not the weights of this ResNet"):
        load_weights(ResNet(34, 8), path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_weights(ResNet(18, 8), tmp_path / "absent.pt")
    (tmp_path / "damaged.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_weights(ResNet(18, 8), tmp_path / "damaged.safetensors")
    with pytest.raises(CheckpointError, match=r"expected a \.pt"):
        load_weights(ResNet(18, 8), tmp_path / "weights.onnx")
    with pytest.raises(CheckpointError, match="dictionary of tensors"):
        torch.save([1, 2], path)
        load_weights(ResNet(18, 8), path)


def test_a_weight_file_cannot_run_code(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"conv1.weight": Bomb()}, tmp_path / "bomb.pt", _use_new_zipfile_serialization=True)
    with pytest.raises(CheckpointError):
        load_weights(ResNet(18, 8), tmp_path / "bomb.pt")
    assert not (tmp_path / "ran").exists()
