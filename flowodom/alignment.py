"""Depth of a depth camera as another camera would have seen it, which is called registering it to that one's images."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowodom.errors import ShapeError
from flowodom.geometry import PinholeCamera

ONE_SURFACE = 0.05
"""Share by which the inverse depths around a gap may differ for it to be a gap in one surface."""

NEIGHBOURS = 5
"""Of the eight pixels around a gap, how many must be known for it to be filled."""


class DepthAlignment:
    """Moves depth images from the camera that took them to one beside it.

    Each pixel is lifted, moved and falls on the pixel of the other image that it lies nearest to, where the nearest of
    all that fall there hides the rest. The other image is made no finer than the depth image is, so that surfaces stay
    closed but for single pixels, which are filled from around.

    Args:
        source: Camera of the depth images, free of distortion.
        target: The camera that they are wanted for.
        motion: (4, 4) float64 ``T_target_source``, metres.
    """

    def __init__(self, source: PinholeCamera, target: PinholeCamera, motion: Tensor) -> None:
        coarser = min(1.0, source.focal / target.focal)
        self.camera = target.resized(round(coarser * target.width), round(coarser * target.height))
        """The target camera at the resolution of the result."""
        self._source = source
        matrix = self.camera.matrix
        rays = source.rays(source.pixels(dtype=torch.float64)).reshape(-1, 3)
        self._rays = (matrix @ motion[:3, :3] @ rays.T).float()
        self._shift = (matrix @ motion[:3, 3:]).float()

    def __call__(self, depth: NDArray[np.float32]) -> NDArray[np.float32]:
        """Moves one image.

        Args:
            depth: (h, w) metres along the optical axis of ``source``, NaN or 0 where unknown.

        Returns:
            (H, W) metres along the optical axis of the target, NaN where unknown, of the size of ``camera``.

        Raises:
            ShapeError: The image is not of the source's size.
        """
        if depth.shape != (self._source.height, self._source.width):
            size = (self._source.height, self._source.width)
            raise ShapeError(f"depth must have the shape {size} of its camera, got {depth.shape}")
        z = torch.from_numpy(np.ascontiguousarray(depth)).reshape(-1)
        u, v, away = self._rays * z + self._shift
        rho = 1 / away
        column, row = (u * rho).round(), (v * rho).round()
        width, height = self.camera.width, self.camera.height
        falls = (z > 0) & (away > 0) & (column >= 0) & (row >= 0) & (column < width) & (row < height)
        index = (row * width + column)[falls].long()
        nearest = torch.zeros(height * width).scatter_reduce_(0, index, rho[falls], "amax")
        closed = _close(nearest.reshape(height, width).numpy())
        with np.errstate(divide="ignore"):
            return np.where(closed > 0, 1 / closed, np.float32(np.nan))


def _close(rho: NDArray[np.float32]) -> NDArray[np.float32]:
    """Fills the gaps, zero, of an inverse depth image (H, W) that lie within one surface, by the mean around them."""
    around = np.ones((3, 3), np.uint8)
    count = cv2.boxFilter((rho > 0).astype(np.float32), -1, (3, 3), normalize=False, borderType=cv2.BORDER_CONSTANT)
    total = cv2.boxFilter(rho, -1, (3, 3), normalize=False, borderType=cv2.BORDER_CONSTANT)
    high = cv2.dilate(rho, around)
    low = -cv2.dilate(np.where(rho > 0, -rho, np.float32(-np.inf)), around)
    gap = (rho == 0) & (count >= NEIGHBOURS) & (high - low <= ONE_SURFACE * high)
    return np.where(gap, total / np.maximum(count, 1), rho).astype(np.float32)
