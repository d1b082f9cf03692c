"""Pure, batched geometry: cameras and rigid motions. No state, no I/O."""

from flowodom.geometry import se3
from flowodom.geometry.camera import PinholeCamera

__all__ = ["PinholeCamera", "se3"]
