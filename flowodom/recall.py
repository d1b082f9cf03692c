"""Looking back at a remembered keyframe: what the view of now tells of the pose beside it.

Source: Klein and Murray, "Parallel Tracking and Mapping for Small AR Workspaces" (ISMAR 2007).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flowodom.geometry import PinholeCamera, se3
from flowodom.local_map import LEAST_POINTS, Keyframe
from flowodom.registration.covariance import fit_covariance
from flowodom.registration.motion_fit import MotionFit
from flowodom.registration.refine import Fit, Matches
from flowodom.registration.shear import Shear
from flowodom.scene_flow.moving import Moving
from flowodom.view import View

WORTH = 16.0
"""Variance lost since a keyframe was new, in units of that of one look, from which it is looked back at."""

SURPRISE = 400.0
"""Squared deviations, stated, by which the pose may turn out wrong for the look to be believed."""

CORRECTION = 0.002
"""How far one correction moves what is seen at most, as a share of the image's width: poses do not jump."""

LEAST_AGREEING = 30
"""Points that must agree with a look."""

RECOGNISED_SHARE = 0.3
"""Share of a keyframe's points that must agree for it to be recognised."""

SURE = 0.1
"""Deviation of inverse depths, as a share of them, by which a single camera's unit is compared, and ..."""

BESIDE = 0.015
"""... how far points may lie apart for it, as a share of the image's width."""


class Look(NamedTuple):
    """What a view tells of its place beside a keyframe.

    Attributes:
        keyframe: The keyframe.
        fit: Of ``T_view_keyframe``.
        matches: The keyframe's points that agree with it.
        covariance: (6, 6) of the right perturbation of ``T_keyframe_view``.
    """

    keyframe: Keyframe
    fit: Fit
    matches: Matches
    covariance: Tensor

    @property
    def recognised(self) -> bool:
        """Whether so much agrees that the view beyond doubt shows what the keyframe saw."""
        return len(self.matches) >= max(LEAST_POINTS, RECOGNISED_SHARE * len(self.keyframe.rho))


class Correction(NamedTuple):
    """What a look back does to a pose.

    Attributes:
        step: (6,) by which the pose is moved, a right perturbation.
        left: (6, 6) covariance of what is then still lost since the keyframe.
        missed: Squared deviations by which the look missed the pose.
    """

    step: Tensor
    left: Tensor
    missed: float


def look_back(
    fitter: MotionFit,
    keyframe: Keyframe,
    view: View,
    motion: Tensor,
    *,
    shear: Tensor,
    pixel_noise: float,
    doubt: float,
    moving: Moving | None = None,
) -> Look | None:
    """Looks for a keyframe's points in a view.

    Args:
        fitter: What fits motions of the camera.
        keyframe: The keyframe.
        view: The view.
        motion: (4, 4) ``T_view_keyframe``, about.
        shear: (6,) of the view.
        pixel_noise: Standard deviation of a match, pixels.
        doubt: By how much the covariance of the fit is to be widened.
        moving: What moves on its own in the view; None for nothing.

    Returns:
        The look; None where too few points agree.
    """
    unseen = keyframe.matches()
    sight = view.find(keyframe.patches, motion, unseen.pixels, moving, levels=2)
    matches = view.matched(unseen, sight, pixel_noise).subset(sight.found)
    if len(matches) < LEAST_AGREEING:
        return None
    fit = fitter.refine(matches, motion, Shear(shear))
    if int(fit.agreeing.sum()) < max(LEAST_AGREEING, 0.5 * len(matches)):
        return None
    return Look(keyframe, fit, matches.subset(fit.agreeing), doubt * fit_covariance(fit))


def is_worth_a_look(lost: Tensor, look: Tensor) -> bool:
    """Tells whether one look, of covariance (6, 6), tells much of what has been lost, (6, 6)."""
    return float(torch.linalg.eigvals(torch.linalg.solve(look, lost)).real.max()) >= WORTH


def correction(camera: PinholeCamera, pose: Tensor, lost: Tensor, look: Look) -> Correction | None:
    """Returns the Kalman update of a pose by a look back; None where pose and look contradict each other.

    Args:
        camera: The camera.
        pose: (4, 4) ``T_odom_view``.
        lost: (6, 6) what the pose has lost since the keyframe, of its right perturbation.
        look: The look.
    """
    missed = se3.log(se3.inverse(pose) @ look.keyframe.pose @ se3.inverse(look.fit.motion))
    uncertain = look.covariance
    total = lost + uncertain
    squared = float(missed @ torch.linalg.solve(total, missed))
    if squared > SURPRISE:
        return None
    gain = torch.linalg.solve(total, lost).T
    step = gain @ missed
    shift = camera.focal * float(step[:3].norm() * look.matches.rho.median() + step[3:].norm())
    gain = gain * min(1.0, CORRECTION * camera.width / max(shift, 1e-9))
    kept = torch.eye(6, dtype=torch.float64) - gain
    return Correction(gain @ missed, kept @ lost @ kept.T + gain @ uncertain @ gain.T, squared)


def unit_change(camera: PinholeCamera, look: Look, rays: Tensor, rho: Tensor, variance: Tensor) -> float:
    """Returns by how much a single camera's unit has grown since a keyframe; 1 where too little is seen of it again.

    Args:
        camera: The camera.
        look: At the keyframe, from the newest one.
        rays: (M, 3) to what the newest one sees, z = 1.
        rho: (M,) its inverse depths, in today's unit.
        variance: (M,) of those.
    """
    then = look.matches.rho_after(look.fit.motion)
    sure = variance < (SURE * rho) ** 2
    distance, nearest = torch.cdist(camera.project(rays[sure]), look.matches.pixels).min(1)
    beside = distance < BESIDE * camera.width
    if int(beside.sum()) < LEAST_POINTS:
        return 1.0
    return float((rho[sure] / then[nearest])[beside].median())
