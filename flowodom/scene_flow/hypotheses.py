"""Two hypotheses for every pixel, that it moves and that it stands still: where each of them has it in another view.

The two are compared by the distance between the two places, the pose fit's measure, in pixels and inverse depth, with
its covariance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from flowodom.registration.reprojection import LEAST_DEPTH
from flowodom.scene_flow.grids import Array, Flags, index_of, inside, square
from flowodom.scene_flow.surfaces import Surface, pixel_rays

SYSTEMATIC = 0.06
"""Error of the predicted place, as a share of the flow: calibration and rolling shutter turn with the camera."""

RELATIVE_FLOOR = 0.01
"""Relative deviation of inverse depth that no depth is surer than."""

EDGE = 0.06
"""Relative difference of inverse depth between two surfaces."""


@dataclass(frozen=True)
class Stories:
    """Both explanations of where each pixel (H, W) of one view is in another: by the flow, and by the camera's motion.

    Attributes:
        places: (2, 2, H, W) float32 where the two put it; pixels (u, v) of the grid.
        at: (2, H, W) flat places of the other view's pixels nearest to these.
        nearest: (2, H, W) greatest inverse depth around these, NaN unknown.
        still_rho: (H, W) inverse depth where the camera's motion puts it, NaN unknown.
        squared: (H, W) squared Mahalanobis distance between the two, in pixels and inverse depth.
        usable: (H, W) bool: the flow can be trusted and stays in the image.
        margin: (H, W) differences of inverse depth up to which two surfaces are one; NaN where depth is unknown.
    """

    places: Array
    at: NDArray[np.intp]
    nearest: Array
    still_rho: Array
    squared: Array
    usable: Flags
    margin: Array


def tell(other: Surface, view: Surface, flow: Array, flow_variance: Array | float, motion: Tensor) -> Stories:
    """Works out both stories of where each pixel of one view is in another.

    Args:
        other: The other view.
        view: The view whose pixels are asked for.
        flow: (2, H, W) flow from this view to the other, pixels of their grid.
        flow_variance: (H, W) its variance per component, pixels squared, of which the floors are part, or that of all.
        motion: (4, 4) float64 ``T_other_view`` of the camera.
    """
    camera, rho, size = view.camera, view.filled, view.rho.shape
    pixels, rays = pixel_rays(camera)
    places = np.empty((2, 2, *size), dtype=np.float32)
    moved, still = np.add(flow, pixels, out=places[0]), places[1]

    rho_variance = np.where(view.known, view.variance + np.square(RELATIVE_FLOOR * rho), np.square(3 * view.typical))
    rows = motion[:3].numpy().astype(np.float32)
    place, shift = (rows[:, :3] @ rays).reshape(3, *size), rows[:, 3, None, None]
    place += shift * rho
    over_z = 1 / np.maximum(place[2], np.float32(LEAST_DEPTH))
    focal, centre = (
        np.array(pair, dtype=np.float32)[:, None, None] for pair in ((camera.fx, camera.fy), (camera.cx, camera.cy))
    )
    on_plane = place[:2] * over_z
    np.add(on_plane * focal, centre, out=still)
    by_rho = (shift[:2] - shift[2] * on_plane) * (over_z * focal)

    error = moved - still
    variance = flow_variance + np.float32(SYSTEMATIC**2) * square(still - pixels)
    along = error[0] * by_rho[0] + error[1] * by_rho[1]
    squared = square(error) - rho_variance * np.square(along) / (variance + rho_variance * square(by_rho))
    squared /= variance

    # Depth counts as different only when nothing about the place has the right one.
    still_rho = view.rho * over_z
    at = index_of(size, places[:, 0], places[:, 1])
    far, near = other.range
    nearest = near.take(at)
    gap = np.fmax(np.maximum(far.take(at[0]) - still_rho, still_rho - nearest[0]), np.float32(0))
    with np.errstate(over="ignore"):
        squared += np.square(gap) / (2 * rho_variance)
    return Stories(
        places=places,
        at=at,
        nearest=nearest,
        still_rho=still_rho,
        squared=squared,
        usable=inside(size, moved),
        margin=3 * np.sqrt(rho_variance) + EDGE * still_rho,
    )
