"""Depth as inverse depth with its variance: one class a source behind one protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from flowodom.flow import FlowField
from flowodom.frame import Frame
from flowodom.geometry import PinholeCamera
from flowodom.geometry.arrays import Array, in_numpy, library


@dataclass(frozen=True)
class InverseDepth:
    """Inverse depth of every pixel of one image, as independent Gaussians.

    Attributes:
        camera: Camera of the grid.
        mean: (H, W) float32, 1/m (or one over the odometry's own unit where the scale is not metric), NaN unknown.
        variance: (H, W) float32, 1/m^2, infinite where unknown.
    """

    camera: PinholeCamera
    mean: Tensor
    variance: Tensor

    @classmethod
    def unknown(cls, camera: PinholeCamera, device: torch.device | str = "cpu") -> InverseDepth:
        """Returns a field in which nothing is known."""
        size = (camera.height, camera.width)
        return cls(camera, torch.full(size, torch.nan, device=device), torch.full(size, torch.inf, device=device))

    def scaled(self, factor: float) -> InverseDepth:
        """Returns the field when all lengths are multiplied by ``factor``."""
        return InverseDepth(self.camera, self.mean / factor, self.variance / factor**2)

    def on(self, camera: PinholeCamera) -> InverseDepth:
        """Returns the field read on the grid of another camera of the same view; itself where that is its own."""
        if self.camera == camera:
            return self
        return InverseDepth(camera, *self.at(camera, camera.pixels(device=self.mean.device)))

    def at(self, camera: PinholeCamera, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Reads the field at pixels, never mixing the two sides of a depth edge.

        The four neighbours are interpolated where all are known and lie on one surface; elsewhere nothing is known.

        Args:
            camera: Camera in whose grid the pixels are given; it sees the same view at any resolution.
            pixels: (..., 2) pixel coordinates (u, v).

        Returns:
            (...) inverse depth, NaN unknown, and (...) variance, infinite where unknown, in the dtype of ``pixels``.
        """
        height, width = self.mean.shape
        u = (pixels[..., 0] + 0.5) * (width / camera.width) - 0.5
        v = (pixels[..., 1] + 0.5) * (height / camera.height) - 0.5
        mean, variance = _on_one_surface(self.mean, self.variance, u, v)
        return mean, variance

    def read(self, camera: PinholeCamera, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Does as ``at``, for pixels (..., 2) on the processor, whose answer is there too."""
        rho, variance = self.at(camera, pixels.to(self.mean.device))
        return rho.cpu(), variance.cpu()

    def of_points(self, camera: PinholeCamera, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Reads a few points, on the processor: as ``read`` does, or better where their source can.

        Args:
            camera: Camera of the frame, in whose grid the pixels are given.
            pixels: (M, 2) float64 pixel coordinates (u, v).

        Returns:
            (M,) inverse depth, NaN unknown, and (M,) variance, infinite where unknown.
        """
        return self.read(camera, pixels)


@in_numpy
def _on_one_surface(mean: Array, variance: Array, u: Array, v: Array) -> tuple[Array, Array]:
    """Interpolates a field (H, W) and its variance at columns and rows (...) whose four neighbours are one surface."""
    lib, (height, width) = library(mean), mean.shape
    across, down = 0.5 * (width - 1), 0.5 * (height - 1)
    inside = (abs(u - across) <= across + 0.5) & (abs(v - down) <= down + 0.5)
    u, v = lib.where(inside, u, 0.0).clip(0, width - 1), lib.where(inside, v, 0.0).clip(0, height - 1)
    left, top = lib.floor(u.clip(max=width - 2)), lib.floor(v.clip(max=height - 2))
    u, v = u - left, v - top
    # Left and right above, left and right below.
    share = lib.stack(((1 - u) * (1 - v), u * (1 - v), (1 - u) * v, u * v))
    first = top * width + left
    index = lib.stack([first + step for step in (0, 1, width, width + 1)])
    index = index.long() if isinstance(index, Tensor) else index.astype(np.intp)
    corners = mean.reshape(-1)[index]
    with np.errstate(invalid="ignore"):
        value, noise = (share * corners).sum(0), (share * variance.reshape(-1)[index]).sum(0)
    one_surface = lib.amax(corners, 0) - lib.amin(corners, 0) <= EDGE_RATIO * abs(value) + 3 * lib.sqrt(noise)
    known = inside & one_surface
    return lib.where(known, value, lib.nan), lib.where(known, noise, lib.inf)


EDGE_RATIO = 0.03
"""Neighbouring inverse depths that differ by more than this share (and three deviations) lie on two surfaces."""


@dataclass(frozen=True)
class FramePair:
    """The last two frames, and how they hang together.

    Attributes:
        frame: The current frame.
        flow: Dense flow from the previous to the current frame, on the grid of ``camera``.
        camera: Camera of the dense grid.
        motion: (4, 4) float64 ``T_current_previous``.
        covariance: (6, 6) of the right perturbation of its inverse, the pose of the current camera in the previous.
    """

    frame: Frame
    flow: FlowField
    camera: PinholeCamera
    motion: Tensor
    covariance: Tensor


class DepthSource(Protocol):
    """Anything that gives a frame its depth.

    Attributes:
        metric: Whether its depths are in metres, measured independently of the flow.
    """

    metric: bool

    def observe(self, frame: Frame) -> InverseDepth | None:
        """Returns what the image alone tells, before any motion is known; None for nothing."""
        ...

    def begin(self, frame: Frame) -> None:
        """Starts, in the background, what ``complete`` is going to be asked for."""
        ...

    def fuse(self, observed: InverseDepth | None, previous: InverseDepth | None, pair: FramePair) -> InverseDepth:
        """Combines it with the past, now that the motion is known.

        Args:
            observed: Of the current frame, from ``observe``.
            previous: The field of the previous frame, None at the start.
            pair: The previous and the current frame, and how they hang together.

        Returns:
            The field of the current frame.
        """
        ...

    def complete(self, known: InverseDepth, frame: Frame) -> InverseDepth:
        """Adds what can be told of a frame beside motion, for who wants to know the depth of all its pixels.

        Args:
            known: The field of the frame, from ``fuse``.
            frame: The frame.
        """
        ...
