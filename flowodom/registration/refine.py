"""Robust refinement of one camera's pose in pixel space, with depth as a prior.

A point is known in a reference camera on the ray ``direction`` from ``offset`` at inverse depth ``rho``: its place is
``direction / rho + offset``. Its residual in the current camera has three parts, two pixels and an inverse depth, with
a full 3x3 covariance: the noise of the match and of the depth seen now, plus what the uncertainty of ``rho`` does to
all three. So a point of unknown depth still tells the rotation, and depth noise cannot invent translation.

Source: DF-VO (Zhan et al., 2020) for refining in pixel rather than metric space; MAC-VO (Qiu et al., 2024) for the full
covariance of each point; Geman and McClure's kernel, annealed as in Yang et al., "Graduated Non-Convexity" (2020).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from flowodom.geometry import PinholeCamera, se3

OUTLIER = 3.0
"""Deviations at which the robust weight of a match has dropped to a quarter."""


ANNEALING = 4.0
"""By how much, in deviations squared, the kernel is widened for a first guess."""

LEAST_SPREAD = 0.05
"""Least factor, squared, by which the stated noise can turn out too large."""

MOST_SPREAD = 25.0
"""Greatest factor, squared, by which the stated noise is believed to be too small."""

CONVERGED = 3e-5
"""Step, radians and metres, below which the refinement has ended: far below what the noise of the matches leaves."""

SPREAD_QUANTILE = 0.35
"""Quantile of the residuals that measures their scatter: true while up to two thirds of the image move on their own."""

_QUANTILE_OF_TWO = 0.862
"""That quantile of a chi-square variable of two degrees of freedom."""


@dataclass(frozen=True)
class Matches:
    """Points known in a reference camera, and where they are seen now; all float64.

    Attributes:
        direction: (N, 3) ray of each point, reference camera.
        offset: (N, 3) from where that ray starts, reference camera.
        rho: (N,) inverse depth along the ray.
        rho_variance: (N,) its variance.
        pixels: (N, 2) where each is seen in the current image.
        pixel_variance: (N,) per component, pixels squared.
        seen_rho: (N,) inverse depth measured in the current camera; NaN for none.
        seen_variance: (N,) its variance; infinite for none.
        row: (N,) where each lies between the first (-1/2) and the last (1/2) row of the current image.
    """

    direction: Tensor
    offset: Tensor
    rho: Tensor
    rho_variance: Tensor
    pixels: Tensor
    pixel_variance: Tensor
    seen_rho: Tensor
    seen_variance: Tensor
    row: Tensor

    def __len__(self) -> int:
        return len(self.rho)

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
        shear: (3,) rotation vector, radians, by which the camera turned from first to last row, see ``Shutter``.
    """

    motion: Tensor
    information: Tensor
    weight: Tensor
    noise_factor: float
    shear: Tensor


@dataclass(frozen=True)
class Shutter:
    """What is known beforehand of a rolling shutter.

    Rows of most cameras are exposed one after another, so a camera that turns shears its image: a row lies where a
    camera turned by ``row * shear`` would see it. The fit finds the shear along with the motion.

    Attributes:
        shear: (3,) the shear of the last frame, from which the search starts.
        deviation: Standard deviation of a shear, radians; zero for a global shutter.
    """

    shear: Tensor
    deviation: float


GLOBAL_SHUTTER = Shutter(torch.zeros(3, dtype=torch.float64), 0.0)
"""All rows at once."""


def residuals(
    camera: PinholeCamera, matches: Matches, motion: Tensor, shear: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Returns how far each match is from where the motion puts it, and the inverse covariance of that.

    Args:
        camera: The current camera.
        matches: N matches.
        motion: (..., 4, 4) float64 ``T_current_reference``.
        shear: (3,) of a rolling shutter; none where None.

    Returns:
        (..., N, 3) residual (u, v pixels; inverse depth) and (..., N, 3, 3) inverse covariance.
    """
    turned = GLOBAL_SHUTTER.shear if shear is None else shear
    error, noise_inverse, by_rho, *_ = _linearise(camera, matches, motion, matches.rho, turned)
    return error, _marginal_information(noise_inverse, by_rho, matches.rho_variance)


def _linearise(
    camera: PinholeCamera, m: Matches, motion: Tensor, rho: Tensor, shear: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Linearises the residual at a motion and at inverse depths (N,).

    Returns:
        Residual (..., N, 3), noise information (N, 3), its derivatives by rho (..., N, 3) and by the point
        (..., N, 3, 3), and the point times rho in the current camera (..., N, 3).
    """
    rotation, translation = motion[..., None, :3, :3], motion[..., None, :3, 3]
    start = (rotation @ m.offset[..., None])[..., 0] + translation
    ray = (rotation @ m.direction[..., None])[..., 0]
    turn = m.row[..., None] * shear
    start = start + torch.linalg.cross(turn.expand_as(start), start)
    ray = ray + torch.linalg.cross(turn.expand_as(ray), ray)
    point = ray + rho[..., None] * start  # rho times the point in the current camera, as its row saw it
    z = point[..., 2].clamp_min(1e-3)
    by_point = torch.zeros(*point.shape, 3, dtype=point.dtype, device=point.device)
    by_point[..., :2, :] = camera.projection_jacobian(point, min_depth=1e-3)
    by_point[..., 2, 2] = -rho / (z * z)
    known = m.seen_variance.isfinite()
    error = torch.cat(
        (
            camera.project(point, min_depth=1e-3) - m.pixels,
            torch.where(known, rho / z - m.seen_rho.nan_to_num(), 0)[..., None],
        ),
        dim=-1,
    )
    by_point[..., 2, :] = torch.where(known[..., None], by_point[..., 2, :], 0)
    by_rho = (by_point @ start[..., None])[..., 0]
    by_rho[..., 2] += torch.where(known, 1 / z, 0)
    pixel_information = 1 / m.pixel_variance
    noise_inverse = torch.stack((pixel_information, pixel_information, 1 / m.seen_variance), dim=-1)
    return error, noise_inverse, by_rho, by_point, point


def _marginal_information(noise_inverse: Tensor, by_rho: Tensor, rho_variance: Tensor) -> Tensor:
    """Returns ``(N + j v j^T)^-1`` for diagonal N, by the Sherman-Morrison formula: (..., N, 3, 3)."""
    scaled = noise_inverse * by_rho
    denominator = 1 / rho_variance + (scaled * by_rho).sum(-1)
    outer = scaled[..., :, None] * scaled[..., None, :] / denominator[..., None, None]
    return torch.diag_embed(noise_inverse.expand(by_rho.shape)) - outer


def spread(squared: Tensor) -> float:
    """Returns by how much, squared, residuals scatter more than their stated noise, by a low quantile.

    Real cameras add errors that no noise figure states (rolling shutter, calibration, blur): a kernel that ignored them
    would lock on whatever part of the image happens to agree.

    Args:
        squared: (N,) squared Mahalanobis residuals of two or three parts.
    """
    return float((squared.quantile(SPREAD_QUANTILE) / _QUANTILE_OF_TWO).clamp(LEAST_SPREAD, MOST_SPREAD))


def score(camera: PinholeCamera, matches: Matches, motions: Tensor) -> Tensor:
    """Returns the (H,) truncated cost of (H, 4, 4) candidate motions: how badly each explains the matches."""
    return _squared(*residuals(camera, matches, motions)).clamp(max=ANNEALING * OUTLIER * OUTLIER).sum(-1)


def _squared(error: Tensor, information: Tensor) -> Tensor:
    """Returns the (..., N) squared Mahalanobis length of (..., N, 3) residuals."""
    return (error * (information @ error[..., None])[..., 0]).sum(-1)


def refine(
    camera: PinholeCamera,
    matches: Matches,
    start: Tensor,
    *,
    max_iterations: int,
    shutter: Shutter = GLOBAL_SHUTTER,
    rotation_only: bool = False,
    annealing: float = ANNEALING,
) -> Fit:
    """Refines a motion by robust, iteratively reweighted Gauss-Newton.

    Args:
        camera: The current camera.
        matches: N matches.
        start: (4, 4) float64 first guess of ``T_current_reference``.
        max_iterations: Most Gauss-Newton steps.
        shutter: The camera's shutter.
        rotation_only: Keep the current camera at the place where ``start`` has it.
        annealing: By how much the kernel is widened, in deviations squared, at the first step; each step shrinks it
            fourfold.

    Returns:
        The fit; its information has zero rows for what was held.
    """
    motion, rho, shear = start, matches.rho, shutter.shear
    final = OUTLIER * OUTLIER * spread(_squared(*residuals(camera, matches, motion, shear)))
    kernel = final * annealing
    # The unknowns are translation, rotation and shear; what is held has no rows in the system.
    free = torch.tensor([not rotation_only] * 3 + [True] * 3 + [shutter.deviation > 0] * 3)
    prior = torch.zeros(9, dtype=start.dtype)
    prior[6:] = 1 / max(shutter.deviation, 1e-9) ** 2
    centre = se3.inverse(start)[:3, 3]
    for _ in range(max_iterations):
        hessian, gradient, _, squared, rho = _normal_equations(camera, matches, motion, rho, shear, kernel)
        hessian = hessian + torch.diag(prior + 1e-9 * hessian.diagonal().mean())
        gradient = gradient + prior * torch.cat((torch.zeros(6, dtype=start.dtype), shear))
        step = torch.zeros(9, dtype=start.dtype)
        step[free] = torch.linalg.solve(hessian[free][:, free], -gradient[free])
        motion = se3.exp(step[:6]) @ motion
        if rotation_only:
            motion = se3.matrix(motion[:3, :3], -(motion[:3, :3] @ centre))
        shear = shear + step[6:]
        final = OUTLIER * OUTLIER * spread(squared)
        converged = step[:6].abs().amax() < CONVERGED and kernel <= final
        kernel = max(kernel / 4, final)
        if converged:
            break
    hessian, _, weight, squared, _ = _normal_equations(camera, matches, motion, rho, shear, final)
    parts = 2 + matches.seen_variance.isfinite().to(squared.dtype)
    noise_factor = (weight * squared).sum() / ((weight * parts).sum() - 6).clamp_min(1)
    information = hessian[:6, :6]
    if shutter.deviation > 0:
        sheared = hessian[6:, 6:] + torch.diag(prior[6:])
        information = information - hessian[:6, 6:] @ torch.linalg.solve(sheared, hessian[6:, :6])
    if rotation_only:
        information = information * (free[:6, None] & free[None, :6])
    return Fit(motion, information, weight, max(float(noise_factor), 0.25), shear)


def _normal_equations(
    camera: PinholeCamera, matches: Matches, motion: Tensor, rho: Tensor, shear: Tensor, kernel: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Linearises the pose and every inverse depth, and eliminates the depths.

    Returns:
        Hessian (9, 9) and gradient (9,) of translation, rotation and shear, robust weights (N,), squared Mahalanobis
        residuals (N,), and the inverse depths (N,) that fit best at ``motion``, from which to linearise next.
    """
    error, noise_inverse, by_rho, by_point, scaled_point = _linearise(camera, matches, motion, rho, shear)
    shift = matches.rho - rho
    prior_error = error + by_rho * shift[:, None]
    scaled = noise_inverse * by_rho
    denominator = 1 / matches.rho_variance + (scaled * by_rho).sum(-1)
    along = (scaled * prior_error).sum(-1) / denominator
    whitened = noise_inverse * prior_error - scaled * along[:, None]
    squared = (prior_error * whitened).sum(-1)
    weight = (kernel / (kernel + squared)) ** 2
    # d(rho exp(xi) X) / d xi = (rho I, -hat(rho X)), rho X being the scaled point.
    by_rotation = -by_point @ se3.hat(scaled_point)
    by_shear = matches.row[:, None, None] * by_rotation
    jacobian = torch.cat((rho[:, None, None] * by_point, by_rotation, by_shear), dim=-1)
    projected = (scaled[:, None, :] @ jacobian)[:, 0] / denominator[:, None]
    information = noise_inverse[..., None] * jacobian - scaled[..., None] * projected[:, None, :]
    weighted = weight[:, None, None] * information
    hessian = jacobian.reshape(-1, 9).T @ weighted.reshape(-1, 9)
    gradient = weighted.reshape(-1, 9).T @ prior_error.reshape(-1)
    best = (matches.rho - along).clamp_min(1e-3 * matches.rho)
    return 0.5 * (hessian + hessian.T), gradient, weight, squared, best
