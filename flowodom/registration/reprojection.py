"""Where points of known inverse depth are seen, and how that depends on motion and depth.

A point lies at ``ray + rho start`` in the current camera, up to the factor rho: ``ray`` is the direction in which its
first view saw it, turned into the current camera, and ``start`` the place of that view there. So points at infinity are
ordinary points. Components come first in all arrays, which makes every operation elementwise.

Source: Civera, Davison and Montiel, "Inverse Depth Parametrization for Monocular SLAM" (2008).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowodom.geometry import PinholeCamera

LEAST_DEPTH = 1e-3
"""Depth below which a point, behind the camera perhaps, is taken to lie at that depth, as a share of its own depth."""


@dataclass(frozen=True)
class Reprojection:
    """N points as the current camera should see them, float64.

    Attributes:
        error: (3, ..., N) predicted minus seen: u and v, pixels, and inverse depth, zero where no depth is seen.
        by_rho: (3, ..., N) its derivative by the point's own inverse depth.
        x: (..., N) predicted place on the plane of unit depth.
        y: (..., N) likewise.
        inverse_depth: (..., N) predicted, current camera.
        known: (N,) one where a depth is seen, else zero.
        ahead: (..., N) bool, whether the point lies in front of the camera.
    """

    error: Tensor
    by_rho: Tensor
    x: Tensor
    y: Tensor
    inverse_depth: Tensor
    known: Tensor
    ahead: Tensor


def reproject(
    camera: PinholeCamera,
    ray: Tensor,
    start: Tensor,
    rho: Tensor,
    pixels: Tensor,
    seen_rho: Tensor,
    seen_variance: Tensor,
) -> Reprojection:
    """Predicts where points are seen.

    Args:
        camera: The current camera.
        ray: (3, ..., N) of each point, current camera.
        start: (3, ..., N) of each point, current camera.
        rho: (N,) inverse depth along the ray.
        pixels: (N, 2) where each is seen.
        seen_rho: (N,) inverse depth measured there; NaN for none.
        seen_variance: (N,) its variance; infinite for none.
    """
    point = ray + rho * start
    over_z = 1 / point[2].clamp_min(LEAST_DEPTH)
    x, y, inverse_depth = point[0] * over_z, point[1] * over_z, rho * over_z
    known = seen_variance.isfinite().to(rho.dtype)
    error = (
        camera.fx * x + (camera.cx - pixels[:, 0]),
        camera.fy * y + (camera.cy - pixels[:, 1]),
        known * (inverse_depth - seen_rho.nan_to_num()),
    )
    by_rho = (
        camera.fx * over_z * (start[0] - x * start[2]),
        camera.fy * over_z * (start[1] - y * start[2]),
        known * over_z * (1 - inverse_depth * start[2]),
    )
    return Reprojection(torch.stack(error), torch.stack(by_rho), x, y, inverse_depth, known, point[2] > LEAST_DEPTH)


def motion_jacobian(camera: PinholeCamera, seen: Reprojection) -> Tensor:
    """Returns the (6, 3, N) derivatives of the error by the left perturbation ``exp(xi)`` of the motion.

    The point moves by ``rho t + phi x (rho X)``, all of it times its inverse depth, which cancels.
    """
    x, y, inverse = seen.x, seen.y, seen.inverse_depth
    j = x.new_zeros(6, 3, len(x))
    j[0, 0] = inverse
    j[2, 0] = -x * inverse
    j[3, 0] = -x * y
    j[4, 0] = 1 + x * x
    j[5, 0] = -y
    j[1, 1] = inverse
    j[2, 1] = -y * inverse
    j[3, 1] = -1 - y * y
    j[4, 1] = -j[3, 0]
    j[5, 1] = x
    j[:, 0] *= camera.fx
    j[:, 1] *= camera.fy
    depth = seen.known * inverse
    j[2, 2] = -depth * inverse
    j[3, 2] = -depth * y
    j[4, 2] = depth * x
    return j
