"""Visual odometry from dense optical flow: camera messages in, poses and moving point clouds out."""

from flowodom.errors import FlowodomError

__version__ = "0.1.0"

__all__ = ["FlowodomError", "__version__"]
