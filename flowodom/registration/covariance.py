"""From the solver's Hessian to a covariance that can be believed, and how covariances travel along motions."""

from __future__ import annotations

import torch
from torch import Tensor

from flowodom.geometry import se3
from flowodom.geometry.arrays import Array
from flowodom.registration.refine import Fit

UNOBSERVED = 1e6
"""Variance, m^2 or rad^2, given to directions of which the matches say nothing."""


def fit_covariance(fit: Fit) -> Tensor:
    """Returns the (6, 6) covariance of a fitted motion.

    It is the inverse Hessian, scaled by how far the matches really scatter and by how much they repeat each other;
    directions that are not observable get a huge variance in place of an infinite one.

    Args:
        fit: The fit of ``T_current_reference``.

    Returns:
        (6, 6) float64, of the left perturbation of ``T_current_reference``, which is the right perturbation of its
        inverse, the pose of the current camera in the reference.
    """
    values, vectors = torch.linalg.eigh(fit.information)
    variances = (fit.inflation / values.clamp_min(1e-18)).clamp_max(UNOBSERVED)
    return (vectors * variances) @ vectors.T


def compose(covariance: Array, motion: Array, motion_covariance: Array) -> Array:
    """Returns the covariance of ``pose @ motion``, all of right perturbations, to first order.

    Args:
        covariance: (..., 6, 6) of the pose.
        motion: (..., 4, 4) motion appended to it.
        motion_covariance: (..., 6, 6) of the motion, independent of the pose.
    """
    adjoint = se3.adjoint(se3.inverse(motion))
    return adjoint @ covariance @ adjoint.swapaxes(-1, -2) + motion_covariance


def stretched(covariance: Tensor, pose: Tensor, deviation: Tensor) -> Tensor:
    """Returns the covariance of a pose whose place is unsure along one direction beside.

    Args:
        covariance: (6, 6) of the right perturbation of the pose.
        pose: (4, 4) the pose.
        deviation: (3,) that direction, in the frame in which the pose is given, as long as one standard deviation.
    """
    along = torch.cat((pose[:3, :3].T @ deviation, deviation.new_zeros(3)))
    return covariance + torch.outer(along, along)


def miscalibrated(covariance: Tensor, motion: Tensor, deviation: float) -> Tensor:
    """Returns the covariance of a motion of a camera that is not quite as it was calibrated.

    A focal length, a centre or a lens that is off bends turns and distances by about the same share of them, the same
    way all along: it does not average out, and where the camera comes back to nothing of it is left.

    Args:
        covariance: (6, 6) of the right perturbation of the motion, as the noise of images alone has it.
        motion: (4, 4) float64.
        deviation: That share, one standard deviation.
    """
    way, turn = motion[:3, 3].norm(), se3.log(motion)[3:].norm()
    return covariance + anywhere(deviation * way, deviation * turn)


def anywhere(way: Tensor, turn: Tensor) -> Tensor:
    """Returns the (6, 6) covariance of a pose that is off by a way and a turn, scalars, in whatever direction."""
    return torch.diag(torch.stack((way, way, way, turn, turn, turn)) ** 2)


def since(covariance: Tensor, pose: Tensor, past_covariance: Tensor, past: Tensor) -> Tensor:
    """Returns what a pose has lost since a past one of the same odometry: (6, 6), of its right perturbation.

    The motion between them is what ``compose`` would add. Where it has been corrected since, the pose can be known
    better than the past one in some directions: there nothing is lost.

    Args:
        covariance: (6, 6) of the right perturbation of the pose.
        pose: (4, 4) ``T_odom_camera``.
        past_covariance: (6, 6) of the past one.
        past: (4, 4) ``T_odom_camera`` of it.
    """
    added = covariance - compose(past_covariance, se3.inverse(past) @ pose, torch.zeros_like(covariance))
    values, vectors = torch.linalg.eigh(added)
    return (vectors * values.clamp_min(0)) @ vectors.T


def along_parent(covariance: Tensor, pose: Tensor) -> Tensor:
    """Returns a covariance along the axes in which a pose is given, as nav_msgs/Odometry wants it.

    Args:
        covariance: (6, 6) of the right perturbation of the pose, along the body's own axes.
        pose: (4, 4) ``T_parent_body``.

    Returns:
        (6, 6) of the body's place and of a small rotation, both along the parent's axes.
    """
    turn = torch.zeros(6, 6, dtype=torch.float64)
    turn[:3, :3] = turn[3:, 3:] = pose[:3, :3]
    return turn @ covariance @ turn.T
