"""A procedural world, its sensors, and a writer of both as a nuScenes dataroot.

``world.build_scene`` simulates a scene; ``lidar``, ``camera`` and ``radar`` look at it from the ``rig``; ``recording``
turns that into files and records; ``writer.make_dataset`` makes a whole data set of scenes, in parallel and resumable.
"""
