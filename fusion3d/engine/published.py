"""What has been published about the size of the models that the recipes in ``configs/`` follow, and where.

Figures are copied, never worked out: where nobody prints one there is none. What others call FLOPs are multiply-adds in
every source below, and are called so here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Published:
    """What is known of the model that a recipe follows."""

    model: str
    sources: tuple[str, ...]  # where the figures stand
    differs: str  # why ours is smaller or larger
    parameters: str = ""  # [millions], and how that is known where it is not printed; empty: not published
    macs: str = ""  # [billions of multiply-adds] of inference; empty: not published
    parts: Mapping[str, float] = field(default_factory=dict)  # by part of ours: parameters [millions]


_OPENPCDET = "https://github.com/open-mmlab/OpenPCDet (README: sizes of float32 checkpoints without optimiser)"
_BEVFUSION = "https://github.com/mit-han-lab/bevfusion/issues/181 (an author on the operations)"
_CRN = "https://github.com/youngskkim/CRN (exps/det: a table of parameters by module)"
_BEVDET = "https://github.com/HuangJunJie2017/BEVDet/issues/88 (mmcv's counter, all six images)"

PUBLISHED: dict[str, Published] = {
    "centerpoint_pillar": Published(
        model="CenterPoint, pillars of 0.2 m",
        sources=(_OPENPCDET,),
        parameters="about 5.9: a checkpoint of 23 MB",
        differs="three convolutions fewer at 0.4 m; heads read 256 channels, not 384, and have one branch for a box "
        "where there are five",
    ),
    "centerpoint_voxel": Published(
        model="CenterPoint, voxels of 0.075 m",
        sources=(_OPENPCDET,),
        parameters="about 8.7: a checkpoint of 34 MB",
        differs="heads read 256 channels, not 512, and have one branch for a box where there are five",
    ),
    "transfusion_lidar": Published(
        model="TransFusion-L, voxels of 0.075 m",
        sources=(_OPENPCDET,),
        parameters="about 8.2: a checkpoint of 32 MB",
        differs="the two scales of the 2-D network are added up behind a 3x3 convolution, not stacked",
    ),
    "bevfusion": Published(
        model="BEVFusion, Swin-T, voxels of 0.075 m",
        sources=(_OPENPCDET, _BEVFUSION),
        parameters="about 40: a checkpoint of 157 MB",
        macs="about 250",
        differs="ResNet-50 is 4 M smaller than Swin-T; no convolutions that halve a finer camera map; a 1x1 "
        "convolution joins the sensors, not a 3x3 one; one more 3x3 convolution behind the trunk",
    ),
    "bevdepth": Published(
        model="BEVDepth, ResNet-50, in CRN's version of four keyframes",
        sources=(_CRN, _BEVDET),
        parameters="77.6",
        macs="not published (BEVDet-R50, without depth tower and past: 177)",
        parts={"camera.encoder": 53.3, "trunk": 22.8, "detection": 1.5},
        differs="two keyframes, joined by a 1x1 convolution, where the trunk begins with 7x7 over four; its scales are "
        "added up, not stacked by transposed convolutions; one branch for a box where there are five",
    ),
    "crn": Published(
        model="CRN, ResNet-50, four keyframes",
        sources=(_CRN,),
        parameters="61.4",
        parts={"camera.encoder": 30.9, "camera.view": 0.8, "radar": 5.7, "fuse": 1.2, "trunk": 21.3, "detection": 1.5},
        differs="its radar network over image columns is large where ours is a pillar network in the grid; trunk and "
        "heads as in bevdepth",
    ),
}
