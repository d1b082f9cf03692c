"""What the odometry takes in: one rectified image at one instant, with what is known beside it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from flowodom.errors import ShapeError
from flowodom.geometry import PinholeCamera


@dataclass(frozen=True, eq=False)
class Frame:
    """A rectified camera image, its camera, and its registered depth if there is any.

    Attributes:
        stamp: Time of exposure, integer nanoseconds, from the message header.
        image: (H, W) grey or (H, W, 3) RGB, uint8, rectified.
        camera: The pinhole camera of ``image``.
        depth: (H, W) float32 metres along the optical axis, registered to ``image``, NaN where unknown; None without
            a depth camera.
        ignore: (H, W) bool, True where pixels must not be used (the robot's own body, a user's mask); None for none.

    Raises:
        ShapeError: An array does not have the camera's size or its dtype.
    """

    stamp: int
    image: NDArray[np.uint8]
    camera: PinholeCamera
    depth: NDArray[np.float32] | None = None
    ignore: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        size = (self.camera.height, self.camera.width)
        if self.image.dtype != np.uint8 or self.image.shape not in (size, (*size, 3)):
            raise ShapeError(
                f"image must be uint8 of shape {size} or {(*size, 3)} as its camera says, "
                f"got {self.image.dtype} {self.image.shape}"
            )
        if self.depth is not None and (self.depth.dtype != np.float32 or self.depth.shape != size):
            raise ShapeError(f"depth must be float32 of shape {size}, got {self.depth.dtype} {self.depth.shape}")
        if self.ignore is not None and (self.ignore.dtype != np.bool_ or self.ignore.shape != size):
            raise ShapeError(f"ignore must be bool of shape {size}, got {self.ignore.dtype} {self.ignore.shape}")

    @property
    def grey(self) -> NDArray[np.uint8]:
        """The (H, W) uint8 luminance of ``image``."""
        if self.image.ndim == 2:
            return self.image
        return np.asarray(cv2.cvtColor(self.image, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
