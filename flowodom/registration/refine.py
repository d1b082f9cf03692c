"""Robust refinement of one camera's pose in pixel space, with depth as a prior.

A point is known in a reference camera on the ray ``direction`` from ``offset`` at inverse depth ``rho``: its place is
``direction / rho + offset``. Its residual in the current camera has three parts, two pixels and an inverse depth, with
a full 3x3 covariance: the noise of the match and of the depth seen now, plus what the uncertainty of ``rho`` does to
all three. So a point of unknown depth still tells the rotation, and depth noise cannot invent translation.

Source: DF-VO (Zhan et al., 2020) for refining in pixel rather than metric space; MAC-VO (Qiu et al., 2024) for the full
covariance of each point; Geman and McClure's kernel, annealed as in Yang et al., "Graduated Non-Convexity" (2020);
Liang and Zeger, "Longitudinal data analysis using generalized linear models" (1986), for errors alike in clusters;
Huber, "Robust Statistics" (1981), for the covariance of what a kernel tells.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from flowodom.geometry import PinholeCamera, se3
from flowodom.registration.reprojection import Reprojection, motion_jacobian, reproject, whitened, whitening
from flowodom.registration.shear import NO_SHEAR, Shear

KNOWN = 0.3
"""Deviation of an inverse depth, as a share of it, up to which it is known at all."""

CORRELATION = 3.0
"""How many matches share one error, as long as no fit tells: those of neighbours are alike, so the Hessian counts too
many as independent."""

CELLS = 48
"""Parts of the image between which errors are independent: blur, lens and shutter err alike within one."""

LONGEST = 1.5
"""By how much a step may be longer than that of reweighted least squares."""

EXPECTED = 6.0
"""As how many parts of the image what is expected of that counts."""

OUTLIER = 3.0
"""Deviations at which the robust weight of a match has dropped to a quarter."""


ANNEALING = 4.0
"""By how much, in deviations squared, the kernel is widened for a first guess."""

LEAST_SPREAD = 0.05
"""Least factor, squared, by which the stated noise can turn out too large."""

MOST_SPREAD = 25.0
"""Greatest factor, squared, by which the stated noise is believed to be too small."""

CONVERGED = 0.1
"""Step, in standard deviations of the motion, below which the refinement has ended: nothing that could be told."""

SPREAD_QUANTILE = 0.35
"""Quantile of the residuals that measures their scatter: true while up to two thirds of the image move on their own."""

QUANTILE_OF_TWO = 0.862
"""That quantile of a chi-square variable of two degrees of freedom."""


def is_known(rho: Tensor, variance: Tensor) -> Tensor:
    """Returns which inverse depths (N,), of these variances (N,), are known: (N,) bool; none below zero is."""
    return (rho > 0) & (variance < (KNOWN * rho) ** 2)


@dataclass(frozen=True)
class Matches:
    """Points known in a reference camera, and where they are seen now; all float64.

    Attributes:
        direction: (N, 3) ray of each point, reference camera.
        offset: (N, 3) from where that ray starts, reference camera.
        rho: (N,) inverse depth along the ray.
        rho_variance: (N,) its variance.
        pixels: (N, 2) where each is seen in the current image.
        pixel_covariance: (N, 2, 2) of that, pixels squared.
        seen_rho: (N,) inverse depth measured in the current camera; NaN for none.
        seen_variance: (N,) its variance; infinite for none.
        row: (N,) where each lies between the first (-1/2) and the last (1/2) row of the current image.
    """

    direction: Tensor
    offset: Tensor
    rho: Tensor
    rho_variance: Tensor
    pixels: Tensor
    pixel_covariance: Tensor
    seen_rho: Tensor
    seen_variance: Tensor
    row: Tensor

    def __len__(self) -> int:
        return len(self.rho)

    @property
    def known(self) -> Tensor:
        """(N,) bool: whose inverse depth is known."""
        return is_known(self.rho, self.rho_variance)

    @property
    def points(self) -> Tensor:
        """(N, 3) where they are, reference camera."""
        return self.direction / self.rho[:, None] + self.offset

    @cached_property
    def ray(self) -> Tensor:
        """(4, N) homogeneous direction of each, reference camera."""
        return torch.cat((self.direction.T, torch.zeros_like(self.rho)[None]))

    @cached_property
    def start(self) -> Tensor:
        """(4, N) homogeneous place from where the ray starts, reference camera."""
        return torch.cat((self.offset.T, torch.ones_like(self.rho)[None]))

    @cached_property
    def seen(self) -> Tensor:
        """(3, N) pixels and inverse depth seen now, the latter zero for none."""
        return torch.cat((self.pixels.T, self.seen_rho.nan_to_num()[None]))

    @cached_property
    def white(self) -> Tensor:
        """(4, N) what brings errors of ``seen`` to unit covariance, see ``whitened``; to zero where none is seen."""
        return whitening(self.pixel_covariance, self.seen_variance)

    def rho_after(self, motion: Tensor) -> Tensor:
        """Returns the inverse depths (N,) in the camera that (4, 4) ``T_current_reference`` leads to."""
        ahead = self.direction @ motion[2, :3] + self.rho * (self.offset @ motion[2, :3] + motion[2, 3])
        return self.rho / ahead.clamp_min(1e-3)

    def subset(self, keep: Tensor) -> Matches:
        """Returns the matches picked by a bool mask or an index."""
        return Matches(*(getattr(self, f.name)[keep] for f in fields(self)))


@dataclass(frozen=True)
class Fit:
    """A fitted motion and what is known of it.

    Attributes:
        motion: (4, 4) float64 ``T_current_reference``.
        information: (6, 6) float64, of the left perturbation ``exp(xi) @ motion``, in units of the stated noise.
        weight: (N,) robust weight of each match, in [0, 1].
        noise_factor: By how much, squared, the matches scatter more than their stated noise (at least a quarter).
        inflation: By how much the motion's covariance exceeds the inverse of ``information``: matches scatter more than
            their stated noise, and neighbours err alike.
        shear: (6,) twist by which the camera moved from first to last row, see ``registration.shear``.
        hessian: (12, 12) of motion and shear, as matches alone tell them, in units of the stated noise.
        gradient: (12,) likewise, where the fit ended.
    """

    motion: Tensor
    information: Tensor
    weight: Tensor
    noise_factor: float
    inflation: float
    shear: Tensor
    hessian: Tensor
    gradient: Tensor

    @property
    def agreeing(self) -> Tensor:
        """(N,) bool: which matches are no outliers; see ``OUTLIER``."""
        return self.weight > 0.25


def residuals(
    camera: PinholeCamera, matches: Matches, motion: Tensor, shear: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Returns how far each match is from where the motion puts it.

    Args:
        camera: The current camera.
        matches: N matches.
        motion: (..., 4, 4) float64 ``T_current_reference``.
        shear: (6,) of the current image; none where None.

    Returns:
        (..., 3, N) residual (u, v pixels; inverse depth) and (..., N) squared Mahalanobis length, the inverse depth of
        each point being uncertain.
    """
    seen = _look(camera, matches, motion, matches.rho, shear)
    return seen.error, _Elimination(matches, seen, 0.0).squared


def _look(camera: PinholeCamera, m: Matches, motion: Tensor, rho: Tensor, shear: Tensor | None) -> Reprojection[Tensor]:
    """Predicts where points of inverse depth ``rho`` (N,) are seen from motions (..., 4, 4), each by its row."""
    both = torch.cat((m.ray + rho * m.start, m.start), dim=-1)
    if shear is None:
        both = motion @ both
    else:
        still, moved = (torch.cat((motion, se3.wedge(shear) @ motion), dim=-2) @ both).chunk(2, dim=-2)
        both = still + m.row.repeat(2) * moved
    place, by_rho = both.chunk(2, dim=-1)
    return reproject(camera, place, by_rho, m.seen)


class _Elimination:
    """The inverse depth of every match, eliminated from its three residuals.

    The covariance of a residual is ``N + j v j^T``: the noise of match and depth seen now, N, and what the variance v
    of the point's own inverse depth does through ``j = by_rho``. All is brought to where N is one; the inverse is then
    applied by the Sherman-Morrison formula.

    Args:
        m: N matches.
        seen: Them, linearised at some inverse depth.
        shift: The expected inverse depth minus that at which they are linearised.
    """

    def __init__(self, m: Matches, seen: Reprojection[Tensor], shift: Tensor | float) -> None:
        self.by_rho = whitened(m.white, seen.by_rho)
        self.denominator = 1 / m.rho_variance + (self.by_rho * self.by_rho).sum(-2)
        error = whitened(m.white, seen.error) + self.by_rho * shift
        self.along = (self.by_rho * error).sum(-2) / self.denominator
        self.left = error - self.by_rho * self.along[..., None, :]
        self.squared = (error * self.left).sum(-2)


def spread(squared: Tensor) -> float:
    """Returns by how much, squared, residuals scatter more than their stated noise, by a low quantile.

    Real cameras add errors that no noise figure states (rolling shutter, calibration, blur): a kernel that ignored them
    would lock on whatever part of the image happens to agree.

    Args:
        squared: (..., N) squared Mahalanobis residuals of two or three parts; of several sets the one that scatters
            least counts.
    """
    rank = 1 + int(SPREAD_QUANTILE * (squared.shape[-1] - 1))
    return min(max(float(squared.kthvalue(rank).values.min()) / QUANTILE_OF_TWO, LEAST_SPREAD), MOST_SPREAD)


def score(
    camera: PinholeCamera,
    matches: Matches,
    motions: Tensor,
    shear: Tensor | None = None,
    *,
    trusted: Tensor | None = None,
) -> Tensor:
    """Returns the (H,) truncated cost of (H, 4, 4) candidate motions: how badly each explains the matches.

    Args:
        camera: The current camera.
        matches: N matches.
        motions: The candidates.
        shear: (6,) of the current image; none where None.
        trusted: (N,) bool, which matches tell the scatter; None for all.
    """
    _, squared = residuals(camera, matches, motions, shear)
    # What outliers cost grows with the scatter that the best leaves: where that is far beyond the stated noise, a cost
    # that ignored it would be the same for all.
    scatter = spread(squared if trusted is None else squared[:, trusted])
    return squared.clamp(max=OUTLIER * OUTLIER * max(ANNEALING, scatter)).sum(-1)


def refine(
    camera: PinholeCamera,
    matches: Matches,
    start: Tensor,
    *,
    max_iterations: int,
    shear: Shear = NO_SHEAR,
    rotation_only: bool = False,
    annealing: float = ANNEALING,
    trusted: Tensor | None = None,
) -> Fit:
    """Refines a motion by robust, iteratively reweighted Gauss-Newton.

    Args:
        camera: The current camera.
        matches: N matches.
        start: (4, 4) float64 first guess of ``T_current_reference``.
        max_iterations: Most Gauss-Newton steps.
        shear: What is known beforehand of the current image's shear, which the fit finds along with the motion.
        rotation_only: Keep the current camera at the place where ``start`` has it.
        annealing: By how much the kernel is widened, in deviations squared, at the first step; each step shrinks it
            fourfold.
        trusted: (N,) bool, which matches tell the scatter. The others have a say once the fit to those has settled,
            and only where they are no outliers to it, as well as it is known by then; elsewhere their weight is zero.
            None for all.

    Returns:
        The fit; its information has zero rows for what was held. Where no match has a say any more, because the motion
        has them all behind the camera, it ends there, and all weights are zero.
    """
    motion, rho = se3.normalised(start), matches.rho
    twist = expected = shear.expected(motion)
    prior, tie = shear.normal_equations()
    trusted = torch.ones_like(rho, dtype=torch.bool) if trusted is None else trusted
    squared = residuals(camera, matches, motion, twist)[1]
    final = OUTLIER * OUTLIER * spread(squared[trusted])
    kernel = final * annealing
    # The unknowns are translation, rotation and shear, of which a part can be held.
    free = slice(3 if rotation_only else 0, 6 if shear.information is None else 12)
    centre = se3.inverse(start)[:3, 3]
    parts = 2 + matches.seen_variance.isfinite().to(squared.dtype)
    say, settled = trusted, bool(trusted.all())
    for _ in range(max_iterations):
        hessian, pulls, weight, squared, rho = _normal_equations(camera, matches, motion, rho, twist, kernel, say)
        if not weight.any():
            break
        hessian, gradient = hessian + prior, pulls.sum(1) + tie @ (twist - expected)
        hessian.diagonal().add_(1e-9 * hessian.diagonal()[:6].mean())
        step = torch.zeros(12, dtype=start.dtype)
        step[free] = torch.linalg.solve(hessian[free, free], -_flatter(weight, parts) * gradient[free])
        decrement = -float(step @ gradient)
        motion = se3.exp(step[:6]) @ motion
        if rotation_only:
            motion = se3.matrix(motion[:3, :3], -(motion[:3, :3] @ centre))
        # To first order in the step, which is small after the first.
        twist, expected = twist + step[6:], expected + shear.gain * step[:6]
        final = OUTLIER * OUTLIER * spread(squared[trusted])
        converged = decrement < CONVERGED**2 * final / OUTLIER**2 and kernel <= final * (1 + CONVERGED)
        kernel = max(kernel / 4, final)
        if converged and settled:
            break
        if converged:
            unsure = torch.zeros_like(hessian)
            unsure[free, free] = CORRELATION * spread(squared[trusted]) * torch.linalg.inv(hessian[free, free])
            say, settled = trusted | (_surprise(camera, matches, motion, twist, unsure) < final), True
    if not settled:
        say = trusted | (squared < final)
    hessian, pulls, weight, squared, _ = _normal_equations(camera, matches, motion, rho, twist, final, say)
    noise_factor = max(float((weight * squared).sum() / ((weight * parts).sum() - 6).clamp_min(1)), 0.25)
    known, own = hessian + prior, pulls[:6]
    information = known[:6, :6]
    if shear.information is not None:
        by_shear = torch.linalg.solve(known[6:, 6:], known[6:, :6])
        information, own = information - known[:6, 6:] @ by_shear, own - by_shear.T @ pulls[6:]
    own = _flatter(weight, parts) * own[free]
    inflation = _inflation(camera, matches, information[free, free], own, noise_factor)
    if rotation_only:
        information = information.clone()
        information[:3], information[:, :3] = 0, 0
    return Fit(motion, information, weight, noise_factor, inflation, twist, hessian, pulls.sum(1))


def _flatter(weight: Tensor, parts: Tensor) -> Tensor:
    """Returns by how much the kernel bends less than what is reweighted by it, one at least.

    Its cost has the slope ``weight * r`` in a residual r of so many parts, and the derivative of that is, in the mean
    of all directions, ``weight * (1 - 4 / parts * (1 - sqrt(weight)))``. Reweighted least squares takes it for
    ``weight``: their steps are too short, and their covariance is too small.

    Args:
        weight: (N,) robust weights.
        parts: (N,) of the residuals.
    """
    bent = weight * (1 - 4 / parts * (1 - weight.sqrt()))
    return (weight.sum() / bent.sum().clamp_min(1e-9)).clamp(1.0, LONGEST)


def _inflation(camera: PinholeCamera, matches: Matches, information: Tensor, pulls: Tensor, expected: float) -> float:
    """Returns by how much a motion's covariance exceeds the inverse of its information, see ``Fit``.

    Were matches independent and as noisy as stated, what those of one part of the image pull at the motion would
    scatter from part to part as the information has it.

    Args:
        camera: The current camera.
        matches: N matches.
        information: (D, D) of the motion's free part.
        pulls: (D, N) gradient of the cost of each by it, as if the cost bent as the information has it.
        expected: By how much the matches scatter more than their stated noise.
    """
    side = (camera.width * camera.height / CELLS) ** 0.5
    column, row = (matches.pixels / side).long().clamp_min(0).unbind(-1)
    cell = row * (int(camera.width / side) + 1) + column
    parts = pulls.new_zeros(len(pulls), int(cell.max()) + 1).index_add_(1, cell, pulls)
    count, size = int((parts != 0).any(0).sum()), len(pulls)
    # Least squares of LAPACK's would do as well, but for its last digit, which depends on where its memory lies.
    scatter = float((parts * (torch.linalg.pinv(information, hermitian=True) @ parts)).sum()) / size
    # As many parts as it has unknowns the motion fits whatever they tell.
    return (count * scatter + EXPECTED * CORRELATION * expected) / (max(count - size, 0) + EXPECTED)


def _surprise(camera: PinholeCamera, matches: Matches, motion: Tensor, twist: Tensor, unsure: Tensor) -> Tensor:
    """Returns the (N,) squared residuals along their own directions, in deviations of matches and motion together.

    A fit to one side of the image alone is not well known at the other: what it misses there need not be an outlier.

    Args:
        camera: The current camera.
        matches: N matches, which have had no say in the motion.
        motion: (4, 4) float64 ``T_current_reference``.
        twist: (6,) shear of the current image.
        unsure: (12, 12) covariance of motion and shear, in units of the stated noise.
    """
    seen = _look(camera, matches, motion, matches.rho, twist)
    point = _Elimination(matches, seen, 0.0)
    by_motion = (whitened(matches.white, motion_jacobian(camera, seen.view)) * point.left).sum(1)
    slope = torch.cat((by_motion, matches.row * by_motion))
    return point.squared**2 / (point.squared + (slope * (unsure @ slope)).sum(0)).clamp_min(1e-12)


def _normal_equations(
    camera: PinholeCamera,
    matches: Matches,
    motion: Tensor,
    rho: Tensor,
    twist: Tensor,
    kernel: float,
    say: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Linearises the pose and every inverse depth, and eliminates the depths.

    Returns:
        Hessian (12, 12) of motion and shear, what each match adds to the gradient (12, N), robust weights (N,), zero
        but for those that have a say, (N,) bool, squared Mahalanobis residuals (N,), and the inverse depths (N,) that
        fit best at ``motion``, from which to linearise next.
    """
    seen = _look(camera, matches, motion, rho, twist)
    point = _Elimination(matches, seen, matches.rho - rho)
    weight = (kernel / (kernel + point.squared)) ** 2 * (say & seen.ahead)
    by_motion = whitened(matches.white, motion_jacobian(camera, seen.view))
    jacobian = torch.cat((by_motion, matches.row * by_motion))
    projected = (point.by_rho * jacobian).sum(1)
    hessian = (weight * jacobian).reshape(12, -1) @ jacobian.reshape(12, -1).T
    hessian = hessian - (projected * (weight / point.denominator)) @ projected.T
    pulls = (jacobian * (weight * point.left)).sum(1)
    best = torch.maximum(matches.rho - point.along, 1e-3 * matches.rho)
    return hessian, pulls, weight, point.squared, best
