"""Where points of known inverse depth are seen, and how that depends on motion and depth.

A point lies at ``ray + rho start`` in the current camera, up to the factor rho: ``ray`` is the direction in which its
first view saw it, turned into the current camera, and ``start`` the place of that view there. With rho for a fourth
coordinate that is a homogeneous place, which a motion maps as a matrix does, and points at infinity are ordinary ones.
Points come last in all arrays, which makes every operation one over long rows.

Source: Civera, Davison and Montiel, "Inverse Depth Parametrization for Monocular SLAM" (2008).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Generic

import torch
from torch import Tensor

from flowodom.geometry import PinholeCamera, se3
from flowodom.geometry.arrays import Array, like

LEAST_DEPTH = 1e-3
"""Depth below which a point, behind the camera perhaps, is taken to lie at that depth, as a share of its own depth."""


@dataclass(frozen=True)
class Reprojection(Generic[Array]):
    """N points as the current camera should see them.

    Attributes:
        error: (..., 3, N) predicted minus seen: u and v, pixels, and inverse depth.
        by_rho: (..., 3, N) its derivative by the point's own inverse depth.
        view: (..., 4, N) predicted (x, y, 1, inverse depth): the place on the plane of unit depth, and the depth.
        ahead: (..., N) bool, whether the point lies in front of the camera.
    """

    error: Array
    by_rho: Array
    view: Array
    ahead: Array


def reproject(camera: PinholeCamera, place: Array, by_rho: Array, seen: Array) -> Reprojection[Array]:
    """Predicts where points are seen.

    Args:
        camera: The current camera.
        place: (..., 4, N) homogeneous place of each point, current camera.
        by_rho: (..., 4, N) its derivative by the point's own inverse depth, or (..., 4, 1) that of all.
        seen: (..., 3, N) pixel u and v and inverse depth where each is seen; the last is any number where none is.
    """
    z = place[..., 2:3, :]
    over_z = 1 / z.clip(min=LEAST_DEPTH)
    view = place * over_z
    projection = like(_projection(camera), view)
    error = projection @ view - seen
    slope = projection @ ((by_rho - view * by_rho[..., 2:3, :]) * over_z)
    return Reprojection(error, slope, view, z[..., 0, :] > LEAST_DEPTH)


def motion_jacobian(camera: PinholeCamera, view: Array) -> Array:
    """Returns the (..., 6, 3, N) derivatives of the error by the left perturbation ``exp(xi)`` of the motion.

    Args:
        camera: The current camera.
        view: (..., 4, N) float64 predicted views, see ``Reprojection``.
    """
    products = (view[..., :, None, :] * view[..., None, :, :]).reshape(*view.shape[:-2], 16, -1)
    return (like(_jacobian_of_products(camera), view) @ products).reshape(*view.shape[:-2], 6, 3, -1)


def whitening(pixel_covariance: Tensor, seen_variance: Tensor) -> Tensor:
    """Returns the (4, N) coefficients by which ``whitened`` brings errors to unit covariance.

    Args:
        pixel_covariance: (N, 2, 2) of a pixel seen.
        seen_variance: (N,) of the inverse depth seen, infinite for none.
    """
    uu, uv, vv = pixel_covariance[:, 0, 0], pixel_covariance[:, 0, 1], pixel_covariance[:, 1, 1]
    # How u depends on v, and what is left of it then.
    by_v = uv / vv
    of_u = (uu - by_v * uv).rsqrt()
    return torch.stack((-by_v * of_u, of_u, vv.rsqrt(), seen_variance.rsqrt()))


def whitened(white: Tensor, error: Tensor) -> Tensor:
    """Returns errors, or derivatives of them, in deviations of their own, which are independent.

    Args:
        white: (4, N) see ``whitening``.
        error: (..., 3, N) the errors: u and v, pixels, and inverse depth; or (..., 2, N) without the latter.
    """
    result = error * white[1 : 1 + error.shape[-2]]
    result[..., 0, :] += white[0] * error[..., 1, :]
    return result


@lru_cache(maxsize=16)
def _projection(camera: PinholeCamera) -> Tensor:
    """Returns the (3, 4) matrix that takes a view (x, y, 1, inverse depth) to pixels and inverse depth."""
    rows = ((camera.fx, 0, camera.cx, 0), (0, camera.fy, camera.cy, 0), (0, 0, 0, 1))
    return torch.tensor(rows, dtype=torch.float64)


@lru_cache(maxsize=16)
def _jacobian_of_products(camera: PinholeCamera) -> Tensor:
    """Returns the (6 * 3, 4 * 4) matrix from products ``h_a h_b`` of a view to the derivatives by the motion.

    A perturbation moves the homogeneous view h by ``G_j h``, with the generators G_j of SE(3). Its third coordinate
    being held at one, what is seen of that is ``h_2 (G_j h)_c - h_c (G_j h)_2``, which is quadratic in h.
    """
    eye = torch.eye(4, dtype=torch.float64)
    moved = torch.einsum("a,jcb->jcab", eye[2], se3.GENERATORS)
    moved = moved - torch.einsum("ca,jb->jcab", eye, se3.GENERATORS[:, 2])
    return torch.einsum("ic,jcab->jiab", _projection(camera), moved).reshape(18, 16)
