"""fusion3d: camera, LiDAR and radar fused in one bird's-eye-view grid, for detection and planning on nuScenes."""

__version__ = "0.1.0"
