"""A camera's motion from features of which many are matched wrongly: where to look after too large a step.

The motion is a start, no more: flow and the fit begin there, and tell whether it was right.

Source: Fischler and Bolles, "Random Sample Consensus" (1981).
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowodom.geometry import PinholeCamera, se3
from flowodom.registration.procrustes import procrustes
from flowodom.registration.resection import resection

LEAST_SUPPORT = 20
"""Matches that must agree with a motion."""

TURNED = 0.03
"""Angle, radians, by which a match may miss a pure rotation: the camera has moved sideways as well."""

SAMPLES = 200
"""Rotations proposed from two matches each."""


def relocate(camera: PinholeCamera, previous: Tensor, current: Tensor, rho: Tensor) -> Tensor | None:
    """Finds how a camera has moved between two of its images.

    Args:
        camera: The camera.
        previous: (N, 2) float64 pixels in the previous image.
        current: (N, 2) float64 pixels in the current image, many of them wrong.
        rho: (N,) inverse depths in the previous image, NaN unknown.

    Returns:
        (4, 4) float64 ``T_current_previous``; a mere rotation where too few depths are known, None where nothing is
        supported.
    """
    known = rho.isfinite() & (rho > 0)
    if int(known.sum()) >= LEAST_SUPPORT:
        points = camera.rays(previous[known]) / rho[known, None]
        motion = resection(camera, points, current[known])
        if motion is not None:
            there = camera.project(se3.act(motion, points), min_depth=1e-3)
            agree = (there - current[known]).norm(dim=-1) < TURNED * camera.focal
            if int(agree.sum()) >= LEAST_SUPPORT:
                return motion
    return _turned(camera.rays(previous), camera.rays(current))


def _turned(previous: Tensor, current: Tensor) -> Tensor | None:
    """Returns the rotation on which most of (N, 3) rays agree, as (4, 4), None where there is none."""
    if len(previous) < LEAST_SUPPORT:
        return None
    previous, current = (rays / rays.norm(dim=-1, keepdim=True) for rays in (previous, current))
    pick = torch.randint(len(previous), (SAMPLES, 2), generator=torch.Generator().manual_seed(0))
    rotations = _rotation(previous[pick], current[pick])
    agree = (previous @ rotations.mT - current).norm(dim=-1) < TURNED
    best = agree[agree.sum(-1).argmax()]
    if int(best.sum()) < LEAST_SUPPORT:
        return None
    rotation = _rotation(previous[best], current[best])
    return se3.matrix(rotation, torch.zeros(3, dtype=rotation.dtype))


def _rotation(previous: Tensor, current: Tensor) -> Tensor:
    """Returns the (..., 3, 3) rotations that carry unit vectors (..., N, 3) over to others."""
    # With each its opposite, so that their centre is the origin, which stays.
    previous, current = (torch.cat((rays, -rays), dim=-2) for rays in (previous, current))
    return procrustes(previous, current, torch.ones_like(previous[..., 0]))[..., :3, :3]
