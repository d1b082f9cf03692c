"""From matches to the motion of one camera: proposed, refined, and not invented where translation earns nothing.

Source: Horn, "Closed-form solution of absolute orientation" (1987), for motions proposed from scene flow; Fischler and
Bolles, "Random Sample Consensus" (1981), for proposing them from few points; Torr, "Geometric motion segmentation and
model selection" (1998), for choosing between rotation and a general motion by what the latter earns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from flowodom.geometry import PinholeCamera, se3
from flowodom.registration.procrustes import procrustes
from flowodom.registration.refine import ANNEALING, OUTLIER, Fit, Matches, refine, residuals, score, spread
from flowodom.registration.resection import resection
from flowodom.registration.shear import NO_SHEAR, Shear

LEAST_INLIERS = 25
"""Matches that must agree with a motion for it to be believed, and without which none is fitted."""

HYPOTHESES = 24
"""Motions proposed from three points each, beside the expected ones."""

JUDGES = 300
"""Matches by which proposals are compared, at most."""

FARTHEST = 0.33
"""Share of the points of a first pair, the farthest ones, in which nothing that moves is expected."""

WARP = 0.02
"""Deviation of a match, as a share of how far it has gone, where lens and shutter are not as they are taken to be."""

CONTESTED = 0.9
"""Share of the matches that agree, below which they may be that far off where the rest is nearer, ..."""

GAINED = 1.08
"""... and factor by which more of them must agree then."""

GROWTHS = 3
"""Fits by which it grows to all that agrees."""

MOST_STILL = 2.0
"""Displacement of a typical point by translation, pixels, above which the camera has moved beyond doubt."""

STILL = 25.0
"""Drop of the robust cost, per noise factor, that translation must earn to be believed."""

RIVAL_FLOW = 0.004
"""How far points must miss the pose, as a share of the image's width, for noise not to be taken for a motion."""

BACKED = 0.1
"""Share of what agrees with the pose that must lie behind its rival for that to be a mover before the world."""


class Rival(NamedTuple):
    """What lies behind all that agrees with a motion, and agrees on another: the world behind a large mover, maybe.

    Attributes:
        motion: (4, 4) float64 that other motion, between the same two cameras.
        share: Its share of the points.
    """

    motion: Tensor
    share: float


class MotionFit:
    """Fits ``T_current_reference`` to matches of one camera.

    Args:
        camera: The camera.
        max_iterations: Most Gauss-Newton steps of a fit.
        metric: Whether depth is measured.
    """

    def __init__(self, camera: PinholeCamera, *, max_iterations: int, metric: bool) -> None:
        self._camera = camera
        self._max_iterations = max_iterations
        self._metric = metric
        self._random = torch.Generator().manual_seed(0)

    def best(self, matches: Matches, motions: Tensor) -> Tensor:
        """Returns the one of (H, 4, 4) motions that explains matches best."""
        return motions[score(self._camera, matches, motions).argmin()]

    def propose(self, matches: Matches, expected: Sequence[Tensor]) -> Tensor:
        """Returns the best of several guesses: the expected ones (4, 4), and those that scene flow or pixels tell."""
        candidates = list(expected)
        known = matches.subset(matches.known)
        points = known.points
        lifted = known.seen_variance.isfinite()
        if int(lifted.sum()) >= LEAST_INLIERS:
            candidates += self._lifted(points[lifted], known.subset(lifted), self._random)
        else:
            sampled = resection(self._camera, points, known.pixels)
            candidates += [] if sampled is None else [sampled]
        few = torch.linspace(0, len(matches) - 1, min(len(matches), JUDGES)).long()
        return self.best(matches.subset(few), torch.stack(candidates))

    def refine(self, matches: Matches, start: Tensor, shear: Shear = NO_SHEAR, trusted: Tensor | None = None) -> Fit:
        """Refines a motion by all matches; see ``refine`` of the module of that name."""
        return refine(
            self._camera,
            matches,
            start,
            max_iterations=self._max_iterations,
            shear=shear,
            # Starts from scene flow are good; a wide kernel would only invite a compromise with what moves.
            annealing=1.0 if self._metric else ANNEALING,
            trusted=trusted,
        )

    def unmixed(
        self, matches: Matches, fit: Fit, expected: Sequence[Tensor], shear: Shear, *, biased: bool = False
    ) -> Fit:
        """Returns the fit of a first pair, or one to what lies farthest and all that agrees, where it is a compromise.

        Where nothing tells what to expect, a near mover's way can pass for parallax: one motion between the world's and
        the mover's then explains both, each of them badly. Movers stand before the world, so what lies behind is free
        of them; but where all depths may be off alike, it can agree on standing still, and decides only if more agree
        with it.

        Args:
            matches: What the fit is to.
            fit: It.
            expected: Guesses (4, 4) of the motion.
            shear: What is known of the current image's shear.
            biased: Whether all depths may be off alike.
        """
        own = matches.rho <= matches.rho.quantile(FARTHEST)
        start = self.propose(matches.subset(own), expected)
        for _ in range(GROWTHS):
            if int(own.sum()) < LEAST_INLIERS:
                return fit
            behind = self.refine(matches.subset(own), start, shear)
            squared = residuals(self._camera, matches, behind.motion, behind.shear)[1]
            most = OUTLIER * OUTLIER * spread(squared[own])
            start, own = behind.motion, squared < most
        count = int(own.sum())
        if count < LEAST_INLIERS or 2 * int(fit.agreeing[own].sum()) < count:
            return fit
        missed = residuals(self._camera, matches, fit.motion, fit.shear)[1]
        worse = float((missed - squared)[own].clamp(max=OUTLIER * OUTLIER).sum()) > STILL * behind.noise_factor
        if not worse or (biased and count < GAINED * int((missed < most).sum())):
            return fit
        return refine(self._camera, matches, behind.motion, max_iterations=0, shear=Shear(behind.shear))

    def lenient(self, matches: Matches, fit: Fit, start: Tensor, shear: Shear, trusted: Tensor) -> Fit:
        """Returns the fit, or one by which far more agrees where what has gone far may be somewhat off.

        Where lens or shutter are not as they are taken to be, what is near and goes farthest contradicts all that is
        far by more than its noise. A fit without it knows hardly where the camera went, and what is near seems to move.
        """
        agree, count = fit.agreeing, int(fit.agreeing.sum())
        if count > CONTESTED * len(matches) or matches.rho[~agree].median() < matches.rho[agree].median():
            return fit
        gone = matches.pixels - self._camera.project(matches.direction + matches.rho[:, None] * matches.offset)
        variance = (WARP**2 * gone.square().sum(-1))[:, None, None] * torch.eye(2, dtype=torch.float64)
        lenient = replace(matches, pixel_covariance=matches.pixel_covariance + variance)
        squared = residuals(self._camera, lenient, fit.motion, fit.shear)[1]
        if int((squared < OUTLIER * OUTLIER * spread(squared)).sum()) < count:
            return fit
        other = self.refine(lenient, start, shear, trusted)
        return other if int(other.agreeing.sum()) > GAINED * count else fit

    def held(self, matches: Matches, fit: Fit, trusted: Tensor) -> Fit:
        """Returns the fit, or the camera held in its place where translation earns nothing."""
        shift = self._camera.focal * float(matches.rho.median() * fit.motion[:3, 3].norm())
        agreeing = fit.agreeing
        if shift > MOST_STILL or not agreeing.any():
            return fit
        still = refine(
            self._camera,
            matches,
            se3.matrix(fit.motion[:3, :3], torch.zeros(3, dtype=torch.float64)),
            max_iterations=3,
            shear=Shear(fit.shear),
            rotation_only=True,
            annealing=1.0,
            trusted=trusted,
        )
        heard, motions = fit.weight > 0, torch.stack((fit.motion, still.motion))
        cost = score(self._camera, matches.subset(heard), motions, fit.shear, trusted=agreeing[heard])
        if float(cost[1] - cost[0]) < STILL * fit.noise_factor:
            return replace(still, information=fit.information)
        return fit

    def rival(self, matches: Matches, fit: Fit, share: float) -> Rival | None:
        """Looks among the points that contradict a fit for a motion of their own, where depth is measured.

        Args:
            matches: What the fit is to.
            fit: It.
            share: Of the points, from which on another motion is a rival.
        """
        least = max(LEAST_INLIERS, round(share * len(matches)))
        known = matches.known & matches.seen_variance.isfinite()
        agreeing = fit.agreeing
        odd = matches.subset(known & ~agreeing)
        # Most often what contradicts is noise and edges, which lie everywhere: then nothing need be fitted.
        if not self._metric or len(odd) < least or _backed(matches.rho[agreeing], odd.rho) > 2 * BACKED:
            return None
        start = self.best(odd, torch.stack(self._lifted(odd.points, odd, torch.Generator().manual_seed(0))))
        own = self.refine(odd, start, Shear(fit.shear))
        united = own.agreeing
        if int(united.sum()) < least or _backed(matches.rho[agreeing], odd.rho[united]) > BACKED:
            return None
        missed, _ = residuals(self._camera, odd, fit.motion, fit.shear)
        if float(missed[:2, united].norm(dim=0).median()) < RIVAL_FLOW * self._camera.width:
            return None
        return Rival(own.motion, float(united.sum()) / len(matches))

    def _lifted(self, points: Tensor, m: Matches, random: torch.Generator) -> list[Tensor]:
        """Returns fits of scene flow: closed form, from three points each and from all (N, 3) points together."""
        targets = self._camera.unproject(m.pixels, 1 / m.seen_rho)
        triples = torch.randint(len(m), (HYPOTHESES, 3), generator=random)
        ones = torch.ones(HYPOTHESES, 3, dtype=torch.float64)
        # The metric variance of a lifted point grows with the fourth power of its depth.
        weight = m.seen_rho**4 / (m.seen_variance + m.rho_variance)
        return [*procrustes(points[triples], targets[triples], ones), procrustes(points, targets, weight)]


def _backed(rho: Tensor, of: Tensor) -> float:
    """Returns the share of points of inverse depth ``rho`` (M,) that are farther than the middle of others (N,)."""
    return float((rho < of.median()).double().mean())
