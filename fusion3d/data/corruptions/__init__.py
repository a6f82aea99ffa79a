"""Sensors that fail, or see badly, or are not where or when they are believed to be; on the fly, as the data are read.

kinds       what there is, and how it is written in a configuration: ``lidar.fog:2``
corruptor   some of them, at work on a data set's files
rig         what is there, from where and from when: missing, misaligned, late
camera      images
lidar       clouds
radar       returns

Everything random is drawn from (seed, kind, file or sample token and channel): not from the order of reading, nor the
process that reads, nor the severity, so that what is lost in light fog is lost in dense fog too. A sweep that two
keyframes share is the same for both. Clouds are corrupted in their sensor's frame as they are in the file, images
where they have been brought to the network's size (lengths are scaled with them), and the truth never.
"""

from fusion3d.data.corruptions.corruptor import CLEAN, Corruptor, Reading, placed
from fusion3d.data.corruptions.kinds import KINDS, Corruption, Kind, draw_one, parse

__all__ = ["CLEAN", "KINDS", "Corruption", "Corruptor", "Kind", "Reading", "draw_one", "parse", "placed"]
