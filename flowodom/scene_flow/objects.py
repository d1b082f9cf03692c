"""Things that move on their own, as data: pose, twist, extent and trail of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowodom.geometry import PinholeCamera, se3
from flowodom.scene_flow.grids import Array

TRAIL = 100
"""Most places kept of each object's way."""


@dataclass(frozen=True)
class MovingObject:
    """One thing that moves on its own.

    Attributes:
        id: Its number, never given twice.
        pose: (4, 4) float64 ``T_odom_object``; it starts in the middle of what was first seen of it, with odom's axes.
        covariance: (6, 6) of its right perturbation, where it was first seen being known.
        twist: (6,) velocity of that frame in itself, m/s and rad/s, translation first.
        twist_covariance: (6, 6).
        box: (2, 3) least and greatest coordinates of it in its frame, metres.
        frames: In how many frames it was seen.
        confirmed: Whether it is believed.
        seen: Stamp, nanoseconds, at which it was last seen.
        stamp: Stamp for which all this holds.
        trail: (K, 3) where it was, odom, oldest first.
        mask: (H, W) bool array on the grid of what moves; None while it is not seen.
    """

    id: int
    pose: Tensor
    covariance: Tensor
    twist: Tensor
    twist_covariance: Tensor
    box: Tensor
    frames: int
    confirmed: bool
    seen: int
    stamp: int
    trail: Tensor
    mask: NDArray[np.bool_] | None

    @property
    def centre(self) -> Tensor:
        """(3,) middle of its box, odom."""
        return se3.act(self.pose, self.box.mean(0))

    @property
    def velocity(self) -> Tensor:
        """(3,) velocity of its middle, odom, m/s."""
        middle = self.twist[:3] + torch.linalg.cross(self.twist[3:], self.box.mean(0))
        return self.pose[:3, :3] @ middle

    def velocity_at(self, points: Tensor, pose: Tensor) -> Tensor:
        """Returns the velocities (N, 3), m/s, of (N, 3) points on it, in a camera at ``pose``, ``T_odom_camera``."""
        local = (se3.inverse(pose) @ self.pose).to(points)
        twist = self.twist.to(points)
        place = (points - local[:3, 3]) @ local[:3, :3]
        return (twist[:3] + torch.linalg.cross(twist[3:].expand_as(place), place)) @ local[:3, :3].T

    @property
    def extent(self) -> Tensor:
        """(3,) size of its box along its own axes, metres."""
        return self.box[1] - self.box[0]

    def after(self, seconds: float) -> Tensor:
        """Returns the (4, 4) pose ``T_odom_object`` that its constant twist leads to."""
        return self.pose @ se3.exp(self.twist * seconds)


def extent_of(points: Array) -> Array:
    """Returns the (..., 2, 3) least and greatest coordinates of (..., N, 3) points, without the outermost."""
    last = points.shape[-2] - 1
    ends = round(0.02 * last), last - round(0.02 * last)
    return np.partition(points, ends, axis=-2)[..., ends, :]


def label(objects: Iterable[MovingObject], camera: PinholeCamera, size: tuple[int, int]) -> NDArray[np.int32]:
    """Returns the (H, W) numbers of the objects that pixels of an image of ``size`` belong to, 0 for none.

    Args:
        objects: Objects, those seen now on one grid.
        camera: Camera of that grid.
        size: Height and width of the image.
    """
    numbers = np.zeros((camera.height, camera.width), dtype=np.int32)
    for known in objects:
        if known.mask is not None:
            numbers[known.mask] = known.id
    rows = (np.arange(size[0]) * camera.height) // size[0]
    columns = (np.arange(size[1]) * camera.width) // size[1]
    return np.ascontiguousarray(numbers[rows[:, None], columns])
