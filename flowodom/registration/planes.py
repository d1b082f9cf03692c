"""The surfaces that points lie on, each a small plane, and how patches around the points change as the camera moves.

On a plane, inverse depth is linear in the ray: ``rho = n . ray``. A camera that moves by ``(R, t)`` sees the ray ``x``
of such a plane at ``(R + t n^T) x``, the homography that the plane induces, whose derivative at the point is how a
patch around it is stretched and slanted on the image.

Source: Hartley and Zisserman, "Multiple View Geometry in Computer Vision" (2004), section 13.1; for patches that are
warped before they are compared, Klein and Murray, "Parallel Tracking and Mapping for Small AR Workspaces" (ISMAR 2007).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowodom.flow.points import match_noise
from flowodom.geometry import PinholeCamera

NEIGHBOURS = 8
"""Points around each that tell how its surface is slanted."""

SLANT = 1.0
"""Tangent of the angle between surfaces and the image that is usual, one standard deviation."""

ROUGH = 0.025
"""Share of its depth by which a neighbour on the same surface lies off the plane, one standard deviation."""

WIDTHS = (0.2, 0.1, 0.05, ROUGH)
"""The same for the width of the robust kernel, narrower in every round."""

STRETCH = 8.0
"""By how much the area of a patch may grow or shrink and still be recognised."""


def local_planes(rays: Tensor, rho: Tensor, variance: Tensor) -> Tensor:
    """Fits a plane through each point, to its neighbours on the image.

    Neighbours on another surface, whose depth jumps, have no say; where hardly any is known the plane faces the camera.

    Args:
        rays: (M, 3) float64 rays of points, z = 1, optical frame.
        rho: (M,) float64 their inverse depths, positive.
        variance: (M,) float64 of those, infinite where they are unknown.

    Returns:
        (M, 3) float64 ``n`` with ``n . ray = rho`` at each point.
    """
    place = rays[:, :2]
    slope = torch.zeros_like(place)
    if len(rays) > NEIGHBOURS:
        # The nearest of all is the point itself, which says nothing of a slope.
        near = place.float()
        around = torch.cdist(near, near).topk(NEIGHBOURS + 1, largest=False, sorted=False).indices
        step = place[around] - place[:, None]
        rise = rho[around] / rho[:, None] - 1
        doubt = (variance[around] + variance[:, None]) / rho[:, None] ** 2
        for wide in WIDTHS:
            off = rise - (step @ slope[..., None])[..., 0]
            weight = (4 / (4 + off.square() / (doubt + wide**2))).square() / (doubt + ROUGH**2)
            known = weight[..., None] * step
            information = step.transpose(1, 2) @ known + torch.eye(2, dtype=rays.dtype, device=rays.device) / SLANT**2
            slope = torch.linalg.solve(information, (known * rise[..., None]).sum(1))
    ahead = 1 - (slope * place).sum(1, keepdim=True)
    return rho[:, None] * torch.cat((slope, ahead), dim=1)


@dataclass(frozen=True, eq=False)
class Patches:
    """What a keyframe's image shows around its points.

    Attributes:
        grey: (H, W) uint8 image.
        places: (M, 2) float64 pixels of the points in it, as its shutter has it.
        rays: (M, 3) float64 rays to them, z = 1, free of the shutter.
        planes: (M, 3) float64 what they lie on, see ``local_planes``.
        noise: (M, 2, 2) float64 how errors of matches are distributed, see ``match_noise``.
    """

    grey: NDArray[np.uint8]
    places: Tensor
    rays: Tensor
    planes: Tensor
    noise: Tensor

    @classmethod
    def around(cls, grey: NDArray[np.uint8], places: Tensor, rays: Tensor, rho: Tensor, variance: Tensor) -> Patches:
        """Returns the patches around points (M,) of inverse depth ``rho``, which has a ``variance``."""
        return cls(grey, places, rays, local_planes(rays, rho, variance), match_noise(grey, places))

    def rescaled(self, factor: float) -> Patches:
        """Returns the same where all lengths are multiplied by ``factor``."""
        return replace(self, planes=self.planes / factor)

    def seen(self, camera: PinholeCamera, motion: Tensor) -> tuple[Tensor, Tensor]:
        """Returns how the patches are seen after a motion.

        Args:
            camera: The camera, that of the keyframe.
            motion: (4, 4) float64 ``T_camera_keyframe``.

        Returns:
            (M, 2) pixels of their middles, and the (M, 2, 2) derivative of pixels now by pixels in the keyframe, that
            of a mere shift where a patch could not be recognised.
        """
        homography = motion[:3, :3] + motion[:3, 3, None] * self.planes[:, None, :]
        points = (homography @ self.rays[..., None])[..., 0]
        focal = torch.tensor((camera.fx, camera.fy), dtype=points.dtype, device=points.device)
        warps = camera.projection_jacobian(points) @ homography[..., :2] / focal
        area = torch.linalg.det(warps)
        known = (area > 1 / STRETCH) & (area < STRETCH)
        return camera.project(points), torch.where(known[:, None, None], warps, torch.eye(2).to(warps))
