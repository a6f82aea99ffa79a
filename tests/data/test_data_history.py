"""The keyframes before: those of the same scene, as they are by themselves, changed as the present one is."""

from __future__ import annotations

import torch

from fusion3d.config import AugmentConfig, DataConfig
from fusion3d.data.collate import collate
from fusion3d.data.dataset import NuScenesDataset
from fusion3d.types import BEVGrid


def test_history_is_the_keyframes_before_in_the_scene(tiny_root):
    config = DataConfig(root=str(tiny_root), version="v1.0-tiny", image_size=(45, 80))
    alone = NuScenesDataset(config, "mine", BEVGrid())
    clips = NuScenesDataset(config, "mine", BEVGrid(), keyframes=3)
    by_token = {sample.token: sample for sample in (alone[i] for i in range(len(alone)))}
    lengths = []
    for index in range(len(clips)):
        clip = clips[index]
        lengths.append(len(clip.history))
        later = clip
        for before in clip.history:
            assert before.scene == clip.scene and 300_000 < later.timestamp - before.timestamp < 700_000
            plain = by_token[before.token]
            for name in ("lidar", "radar", "global_from_ego"):
                assert torch.equal(getattr(before, name), getattr(plain, name))
            assert before.cameras is not None and plain.cameras is not None
            assert torch.equal(before.cameras.images, plain.cameras.images)
            assert before.boxes is None and before.future is None and before.status is None and not before.history
            later = before
    assert lengths == [0, 1, 2, 2, 2] * (len(clips) // 5)  # two scenes of five keyframes: each starts anew


def test_the_past_is_augmented_like_the_present(tiny_root):
    config = DataConfig(root=str(tiny_root), version="v1.0-tiny", image_size=(45, 80))
    augment = AugmentConfig(bev_rotation=45.0)
    alone = NuScenesDataset(config, "mine", BEVGrid(), augment, seed=3)
    clips = NuScenesDataset(config, "mine", BEVGrid(), augment, seed=3, keyframes=2)
    clip, single = clips[4], alone[4]
    (before,) = clip.history
    for name in ("lidar", "radar", "aug_from_ego"):
        assert torch.equal(getattr(clip, name), getattr(single, name)), "reading a history changes the present"
    assert torch.equal(before.aug_from_ego, clip.aug_from_ego)
    assert before.cameras is not None and clip.cameras is not None
    assert torch.equal(before.cameras.image_from_cam, clip.cameras.image_from_cam)


def test_a_batch_packs_the_samples_that_have_a_past(tiny_root):
    config = DataConfig(root=str(tiny_root), version="v1.0-tiny", sensors=("lidar",))
    clips = NuScenesDataset(config, "mine", BEVGrid(), keyframes=3)
    batch = collate([clips[0], clips[4], clips[1]])  # with 0, 2 and 1 keyframes before
    assert [past.row for past in batch.history] == [(1, 2), (1,)]
    newest, oldest = (past.batch for past in batch.history)
    assert newest.tokens == (clips[3].token, clips[0].token) and oldest.tokens == (clips[2].token,)
    assert newest.boxes is None and newest.lidar is not None and newest.lidar.present.all()
    assert batch.scenes == tuple(clips[i].scene for i in (0, 4, 1))
    assert batch.timestamp.tolist() == [clips[i].timestamp for i in (0, 4, 1)]
