"""The start of a single camera: it waits for parallax, and makes the length of its first baseline the unit.

A bad start is never mended by the window, so a camera starts late rather than wrong: it stays in its place while only
rotation is seen, and begins once the direction of the baseline is known.

A plane seen twice leaves two motions open, of which one is ruled out only where it has a part of the plane behind the
camera; so the start of the fit comes from both of them and from the essential matrix, and what explains the matches
best must do so clearly better than what else does.

Source: Nister, "An Efficient Solution to the Five-Point Relative Pose Problem" (2004), and Longuet-Higgins, "The
reconstruction of a plane surface from two perspective projections" (1986), for the starts of the fit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from flowodom.geometry import PinholeCamera, se3
from flowodom.registration.covariance import fit_covariance
from flowodom.registration.refine import OUTLIER, Fit, Matches, refine, residuals, spread
from flowodom.registration.two_view import planar_views, triangulate, two_view

PARALLAX_QUANTILE = 0.7
"""Quantile of the displacements left after the best rotation that counts as parallax: what is nearer than the rest of
the scene shows first that a camera has moved sideways, and has not turned."""

HELD_PARALLAX = 1.2
"""Parallax, pixels, below which a single camera has not left its place."""

START_PARALLAX = 0.006
"""Parallax, as a share of the image's width, from which a single camera may start, and ..."""

ENOUGH_PARALLAX = 4.0
"""... pixels that are enough however wide the image is: places are as sure in a large one."""

START_ITERATIONS = 30
"""Most iterations of the fit of the first baseline, whose start is poor."""

START_SHARE = 0.6
"""Share of the first view's points that must still be seen, and of those that must agree with the first baseline."""

START_CLEARLY = 6.0
"""How many times farther points must lie from where rotation has them than from where the first baseline does: with
little parallax, errors of the lens or a plane leave more than one motion."""

START_DEVIATION = 0.05
"""Deviation, as a share of its length, to which the first baseline must be known across its direction."""

OTHERWISE = 0.2
"""Radians between the directions of two first baselines, from which on they are different ones, and ..."""

CONTEST = 1.2
"""... how many times what one costs the other must cost to be told from it: by chance the costs of 500 matches, which
two motions explain equally, differ by a tenth."""

CONTEST_OUTLIER = 3.7
"""Deviations, as the best of them leaves them, beyond which a match costs no more in it: were it far more, in traffic a
motion between the world's and that of vehicles would cost less than the world's."""

LEAST_START = 1e-3
"""Least inverse depth, per first baseline, from which a single camera's points start."""

LEAST_INFORMATION = 1e-6
"""Of a rotation, and of a way beside it, per square radian: next to nothing."""

UNIT_VARIANCE = 1e-6
"""Variance of the length of the first baseline, which is one by definition."""


class Parallax(Exception):
    """A single camera has moved, but not yet far enough to tell how. Never leaves the odometry."""


class OutOfSight(Parallax):
    """What its first view showed has gone before that; only a new first view helps."""


def first_baseline(
    camera: PinholeCamera, matches: Matches, start: Tensor, *, max_iterations: int
) -> tuple[Fit, Matches | None]:
    """Fits a single camera that has not moved from its first view's place yet, or starts it when it has.

    Args:
        camera: The camera.
        matches: Points of the first view, of unknown depth.
        start: (3, 3) first guess of the rotation of ``T_current_first``.
        max_iterations: Most steps of the fit of a rotation.

    Returns:
        The fit, and the matches at the depths that it gives them where it is a baseline, of length one; None where it
        is a rotation.

    Raises:
        Parallax: It has moved, but not far enough, or in a way that does not tell one motion from another.
    """
    turned = refine(
        camera,
        matches,
        se3.matrix(start, torch.zeros(3, dtype=torch.float64)),
        max_iterations=max_iterations,
        rotation_only=True,
        annealing=256.0,
    )
    error, missed = residuals(camera, matches, turned.motion, turned.shear)
    parallax = float(error[:2].norm(dim=0).quantile(PARALLAX_QUANTILE))
    if parallax < HELD_PARALLAX:
        return replace(turned, information=_turn_information(camera, matches, turned, max_iterations)), None
    if parallax > min(START_PARALLAX * camera.width, ENOUGH_PARALLAX):
        best = _best_baseline(camera, matches)
        if best is not None:
            clearly = float(missed.quantile(START_SHARE) / best.left.quantile(START_SHARE)) ** 0.5
            agreeing = float(best.fit.agreeing.double().mean())
            unsure = float(torch.linalg.eigvalsh(fit_covariance(best.fit)[:3, :3])[-1]) ** 0.5
            if agreeing > START_SHARE and clearly > START_CLEARLY and unsure < START_DEVIATION:
                return best.fit, best.matches
    raise Parallax(f"{parallax:.1f} px of parallax since the first view; waiting for a longer baseline")


def _turn_information(camera: PinholeCamera, matches: Matches, turned: Fit, max_iterations: int) -> Tensor:
    """Returns the (6, 6) information of a rotation beside which the camera may have moved, though it was held.

    Before a plane parallel to the image a small way looks almost as a small turn does. So the rotation is as unsure as
    that of a fit in which the way is free, all points being about as far as each other, and as this one is off from it:
    by no more than what has been seen to turn.

    Args:
        camera: The camera.
        matches: What the fit is to.
        turned: It.
        max_iterations: Most steps of the other one.
    """
    plane = replace(matches, rho=torch.ones_like(matches.rho), rho_variance=torch.ones_like(matches.rho))
    free = refine(camera, plane, turned.motion, max_iterations=max_iterations, annealing=1.0)
    # What few points on a line do not tell at all stays finite.
    known = free.information + LEAST_INFORMATION * torch.eye(6, dtype=torch.float64)
    by_way = known[3:, :3] @ torch.linalg.solve(known[:3, :3], known[:3, 3:])
    off, most = (se3.log(motion)[3:] for motion in (free.motion @ se3.inverse(turned.motion), turned.motion))
    off = off * (most.norm() / off.norm().clamp_min(1e-12)).clamp_max(1)
    covariance = turned.inflation * torch.linalg.inv(known[3:, 3:] - by_way) + torch.outer(off, off)
    information = torch.zeros_like(known)
    information[3:, 3:] = turned.inflation * torch.linalg.inv(covariance)
    return information


class _Baseline(NamedTuple):
    """A motion of length one, the matches at the depths that it gives them, and (N,) squared what it leaves of each."""

    fit: Fit
    matches: Matches
    left: Tensor


def _best_baseline(camera: PinholeCamera, matches: Matches) -> _Baseline | None:
    """Returns the motion that explains matches best; None where none does.

    Raises:
        Parallax: Another one does so nearly as well.
    """
    seen = camera.project(matches.direction), matches.pixels
    general = two_view(camera, *seen)
    motions = planar_views(camera, *seen) + ([] if general is None else [general])
    found = [_refined(camera, matches, motion) for motion in motions]
    if not found:
        return None
    left = torch.stack([baseline.left for baseline in found])
    cost = left.clamp(max=CONTEST_OUTLIER**2 * spread(left)).sum(-1)
    best = found[int(cost.argmin())]
    apart = torch.stack([(baseline.fit.motion - best.fit.motion)[:3, 3].norm() for baseline in found])
    if ((apart > OTHERWISE) & (cost < CONTEST * cost.min())).any():
        raise Parallax("two motions explain equally well what has been seen since the first view, as before a plane")
    return best


def _refined(camera: PinholeCamera, matches: Matches, motion: Tensor) -> _Baseline:
    """Refines the first motion of a single camera and makes its length, which nothing observes, the unit."""
    start = replace(matches, rho=_placed(camera, matches, motion).rho)
    fit = refine(camera, start, motion, max_iterations=START_ITERATIONS, annealing=1.0)
    unit = fit.motion.clone()
    unit[:3, 3] /= unit[:3, 3].norm()
    along = torch.cat((unit[:3, 3], torch.zeros(3, dtype=torch.float64)))
    known = fit.information + torch.outer(along, along) / UNIT_VARIANCE
    # What it has behind the camera, and not about at infinity, contradicts it.
    placed = _placed(camera, matches, unit)
    left = residuals(camera, placed, unit, fit.shear)[1]
    kernel = OUTLIER * OUTLIER * spread(left)
    fit = replace(fit, motion=unit, information=known, weight=(kernel / (kernel + left)) ** 2)
    return _Baseline(fit, placed, left)


def _placed(camera: PinholeCamera, matches: Matches, motion: Tensor) -> Matches:
    """Returns matches at the depths that a motion ``T_current_first`` (4, 4) gives them, none behind the camera.

    What lies in the direction of the motion has none: it is taken to be about as far as the rest.
    """
    turned = matches.direction @ motion[:3, :3].T
    told, information = triangulate(camera, turned, motion[:3, 3], matches.pixels, matches.white)
    usual = (told / information.clamp_min(1e-12)).median().clamp_min(LEAST_START)
    variance = 1 / (information + 1 / usual**2)
    return replace(matches, rho=(variance * (told + 1 / usual)).clamp_min(LEAST_START), rho_variance=variance)
