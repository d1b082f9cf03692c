"""Depth as inverse depth with its variance: one class a source behind one protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from flowodom.flow import FlowField
from flowodom.frame import Frame
from flowodom.geometry import PinholeCamera


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
        u, v = pixels.unbind(-1)
        u, v = (u + 0.5) * (width / camera.width) - 0.5, (v + 0.5) * (height / camera.height) - 0.5
        nearest_u, nearest_v = u.clamp(0, width - 1), v.clamp(0, height - 1)
        inside = torch.maximum((u - nearest_u).abs_(), (v - nearest_v).abs_()) <= 0.5
        u, v = nearest_u.nan_to_num_(), nearest_v.nan_to_num_()
        u0, v0 = u.clamp_max(width - 2).floor_(), v.clamp_max(height - 2).floor_()
        index = torch.add(u0, v0, alpha=width).long()
        (a, b, c, d), mean = _bilinear(self.mean, index, u - u0, v - v0)
        _, variance = _bilinear(self.variance, index, u - u0, v - v0)
        nearest = torch.maximum(torch.maximum(a, b), torch.maximum(c, d))
        farthest = torch.minimum(torch.minimum(a, b), torch.minimum(c, d))
        one_surface = nearest - farthest <= EDGE_RATIO * mean.abs() + 3 * variance.sqrt()
        unknown = ~(inside & one_surface)
        return mean.masked_fill_(unknown, torch.nan), variance.masked_fill_(unknown, torch.inf)

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


def _bilinear(field: Tensor, index: Tensor, right: Tensor, down: Tensor) -> tuple[list[Tensor], Tensor]:
    """Returns the four neighbours of places in a field (H, W), and what lies between them.

    Args:
        field: (H, W).
        index: (...) of the upper left neighbour.
        right: (...) how far, from 0 to 1, the place lies to the right of it.
        down: (...) likewise below it.
    """
    width = field.shape[1]
    flat, index = field.reshape(-1), index.reshape(-1)
    a, b, c, d = corners = [
        flat.index_select(0, index + step).reshape(right.shape).to(right.dtype) for step in (0, 1, width, width + 1)
    ]
    return corners, torch.lerp(torch.lerp(a, b, right), torch.lerp(c, d, right), down)


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
