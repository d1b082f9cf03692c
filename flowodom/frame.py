"""What the odometry takes in: one rectified image at one instant, with what is known beside it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowodom.errors import CalibrationError, ShapeError
from flowodom.geometry import PinholeCamera

STEEPEST = 0.7
"""Greatest part of an optical axis of a stereo rig that may lie along its baseline."""

SAME_PLACE = 1e-6
"""Metres and radians by which a rig may seem another because its motion was worked out anew."""


@dataclass(frozen=True, eq=False)
class OtherEye:
    """What the second camera of a stereo rig saw at the same instant.

    Attributes:
        image: (H, W) grey or (H, W, 3) RGB, uint8, free of distortion.
        camera: The pinhole camera of ``image``, which may be of another size and focal length than the first.
        motion: (4, 4) float64 ``T_other_camera``, metres: where points of the first camera are in this one. It may be
            on either side of the first, above or below it, and turned against it.

    Raises:
        ShapeError: The image does not have the camera's size or its dtype.
        CalibrationError: The cameras are in one place, or do not look the same way, across the line between them.
    """

    image: NDArray[np.uint8]
    camera: PinholeCamera
    motion: Tensor

    def __post_init__(self) -> None:
        _check_image(self.image, self.camera)
        place, axis = self.place, self.motion[2, :3]
        along = place / place.norm().clamp_min(1e-9)
        if not bool(torch.isfinite(self.motion).all() and place.norm() > 1e-6):
            raise CalibrationError("both cameras of the stereo pair are said to be in the same place")
        if max(abs(float(along[2])), abs(float(axis @ along))) > STEEPEST or float(axis[2]) < STEEPEST:
            raise CalibrationError(
                "the cameras of the stereo pair do not look the same way, across the line between them: as the first "
                f"one sees it, the other one is at {[round(x, 3) for x in place.tolist()]} m and looks along "
                f"{[round(x, 2) for x in axis.tolist()]}"
            )

    @property
    def place(self) -> Tensor:
        """(3,) where it is in the first camera, metres."""
        return -self.motion[:3, :3].T @ self.motion[:3, 3]

    @cached_property
    def upright(self) -> Tensor:
        """(3, 3) the turn of the first camera after which rows lie along the baseline, whose right end this one is."""
        x = self.place / self.place.norm()
        z = self.motion.new_tensor((0.0, 0.0, 1.0)) - x[2] * x
        z = z / z.norm()
        return torch.stack((x, torch.linalg.cross(z, x), z))

    def stands_like(self, other: OtherEye) -> bool:
        """Tells whether another one is the same camera in the same place."""
        return self.camera == other.camera and torch.allclose(self.motion, other.motion, rtol=0.0, atol=SAME_PLACE)

    @property
    def grey(self) -> NDArray[np.uint8]:
        """The (H, W) uint8 luminance of ``image``."""
        return _luminance(self.image)


@dataclass(frozen=True, eq=False)
class Frame:
    """A rectified camera image, its camera, and its registered depth if there is any.

    Attributes:
        stamp: Time of exposure, integer nanoseconds, from the message header.
        image: (H, W) grey or (H, W, 3) RGB, uint8, rectified.
        camera: The pinhole camera of ``image``.
        depth: (H, W) float32 metres along the optical axis, registered to ``image`` (at its size or a coarser one), NaN
            where unknown; None without a depth camera.
        ignore: (H, W) bool, True where pixels must not be used (the robot's own body, a user's mask); None for none.
        other: What the other camera of a stereo rig saw; None for a single camera.

    Raises:
        ShapeError: An array does not have the camera's size or its dtype.
    """

    stamp: int
    image: NDArray[np.uint8]
    camera: PinholeCamera
    depth: NDArray[np.float32] | None = None
    ignore: NDArray[np.bool_] | None = None
    other: OtherEye | None = None

    def __post_init__(self) -> None:
        size = _check_image(self.image, self.camera)
        if self.depth is not None and (self.depth.dtype != np.float32 or not _same_view(self.depth.shape, size)):
            raise ShapeError(
                f"depth must be float32 of shape {size} or a coarser one of the same proportions, "
                f"got {self.depth.dtype} {self.depth.shape}"
            )
        if self.ignore is not None and (self.ignore.dtype != np.bool_ or self.ignore.shape != size):
            raise ShapeError(f"ignore must be bool of shape {size}, got {self.ignore.dtype} {self.ignore.shape}")

    @property
    def grey(self) -> NDArray[np.uint8]:
        """The (H, W) uint8 luminance of ``image``."""
        return _luminance(self.image)


def _check_image(image: NDArray[np.uint8], camera: PinholeCamera) -> tuple[int, int]:
    """Returns (H, W) of an image that is its camera's."""
    size = (camera.height, camera.width)
    if image.dtype != np.uint8 or image.shape not in (size, (*size, 3)):
        raise ShapeError(
            f"image must be uint8 of shape {size} or {(*size, 3)} as its camera says, got {image.dtype} {image.shape}"
        )
    return size


def _same_view(shape: tuple[int, ...], size: tuple[int, int]) -> bool:
    """Tells whether an image of that shape can be one of (H, W), resampled to be coarser."""
    if len(shape) != 2 or not all(0 < length <= whole for length, whole in zip(shape, size, strict=True)):
        return False
    return abs(shape[0] * size[1] - shape[1] * size[0]) <= max(size)


def _luminance(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return image if image.ndim == 2 else np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
