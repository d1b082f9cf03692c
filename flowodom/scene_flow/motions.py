"""Rigid motions of what moves: how well each explains where every pixel came from, and several refined at once.

Source: sf2se3 (Sommer, Schroeppel and Brox, 2022); the fit is the pose's own (see ``registration.refine``), with a
prior on the motion: Bell and Cathey, "The Iterated Kalman Filter Update as a Gauss-Newton Method" (1993).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from flowodom.flow.points import lucas_kanade
from flowodom.geometry import PinholeCamera, se3
from flowodom.registration.procrustes import procrustes
from flowodom.registration.refine import (
    CONVERGED,
    CORRELATION,
    LEAST_SPREAD,
    MOST_SPREAD,
    OUTLIER,
    QUANTILE_OF_TWO,
    SPREAD_QUANTILE,
)
from flowodom.registration.reprojection import Reprojection, motion_jacobian, reproject
from flowodom.scene_flow.grids import Array, square
from flowodom.scene_flow.hypotheses import EDGE, SYSTEMATIC
from flowodom.scene_flow.moving import Moving
from flowodom.scene_flow.surfaces import pixel_rays

SAMPLES = 90
"""Points of one motion's fit."""

LEAST_SAMPLES = 12
"""Fewest points that a motion is looked for in."""

TRIPLES = 24
"""Motions proposed from three points each."""

ITERATIONS = 3
"""Gauss-Newton steps of a fit."""

PLACE_NOISE = 0.24
"""Standard deviation, pixels of the dense grid, of where the flow puts a point."""

POLISHED_NOISE = 0.1
"""The same of a point polished by Lucas-Kanade."""

MOST_POLISH = 3.0
"""Pixels of the dense grid by which Lucas-Kanade may differ from the flow."""


@dataclass(frozen=True)
class MovingPixels:
    """The N pixels of an image that move or did so shortly, and where each was in the image before; on the CPU.

    Attributes:
        camera: Camera of the grid (H, W), of both images.
        index: (N,) flat place on the grid.
        ray: (3, N) float32 direction with z = 1.
        rho: (N,) float32 inverse depth.
        rho_variance: (N,) its variance.
        place: (2, N) float32 where each was, pixels of the grid.
        place_variance: (N,) its variance a component.
        seen_rho: (N,) inverse depth seen there; zero where it is another surface's, or unknown.
        seen_variance: (N,) its variance; infinite likewise.
        usable: (N,) bool: the flow can be trusted.
        moves: (N,) bool: it moves now.
        inner: (N,) bool: usable and away from the edges of depth.
        origin: (N,) flat place on the grid where each was; -1 where that was another surface.
    """

    camera: PinholeCamera
    index: Array
    ray: Array
    rho: Array
    rho_variance: Array
    place: Array
    place_variance: Array
    seen_rho: Array
    seen_variance: Array
    usable: Array
    moves: Array
    inner: Array
    origin: Array

    @classmethod
    def of(cls, moving: Moving) -> MovingPixels:
        """Collects the pixels that are doubted; ``moving`` must know its past."""
        assert moving.stories is not None
        assert moving.past is not None
        camera, surface, stories = moving.camera, moving.surface, moving.stories
        index = np.flatnonzero((moving.doubt > 0) & surface.known)
        place, still = stories.places.reshape(2, 2, -1)[..., index]
        fields: tuple[Array, ...] = (*surface.range, surface.rho, surface.variance, stories.usable, stories.at[0])
        low, high, rho, variance, usable, origin = (field.take(index) for field in fields)
        seen, seen_variance = moving.past.rho.take(origin), moving.past.variance.take(origin)
        same = _on_one_surface(seen, rho, variance)
        return cls(
            camera=camera,
            index=index,
            ray=pixel_rays(camera)[1].take(index, axis=1),
            rho=rho,
            rho_variance=variance,
            place=place,
            place_variance=(PLACE_NOISE / surface.cell) ** 2 + SYSTEMATIC**2 * square(place - still),
            seen_rho=np.where(same, seen, np.float32(0)),
            seen_variance=np.where(same, seen_variance, np.float32(np.inf)),
            usable=usable,
            moves=moving.logit.take(index) > 0,
            inner=usable & (high - low < 2 * EDGE * rho),
            origin=np.where(same & usable, origin, -1),
        )

    def __len__(self) -> int:
        return len(self.index)

    def image(self, values: Array) -> Array:
        """Returns (..., N) values as (..., H, W) images, zero (False) elsewhere."""
        size = self.camera.height, self.camera.width
        image = np.zeros((*values.shape[:-1], size[0] * size[1]), dtype=values.dtype)
        image[..., self.index] = values
        return image.reshape(*values.shape[:-1], *size)

    def flags(self, which: Array) -> Array:
        """Returns an index (M,) as (N,) bool."""
        flags = np.zeros(len(self), dtype=np.bool_)
        flags[which] = True
        return flags

    def around(self, flags: Array, reach: int) -> Array:
        """Returns the (K, N) bool pixels within ``reach``, in rows and columns, of some of each of (K, N)."""
        square = np.ones((2 * reach + 1, 2 * reach + 1), dtype=np.uint8)
        images = self.image(flags.astype(np.uint8))
        return np.stack([cv2.dilate(image, square).reshape(-1)[self.index] for image in images]) > 0

    def points(self, which: Array) -> Array:
        """Returns the (..., 3) float64 places, metres, of the pixels of an index (...)."""
        return (self.ray.T[which] / self.rho[which, None]).astype(np.float64)

    def squared(self, motions: Array) -> Array:
        """Returns the (K, N) float32 squared Mahalanobis distance between where pixels were and where motions put them.

        Args:
            motions: (K, 4, 4) ``T_previous_current`` of cameras that would go with each pixel.
        """
        rows = motions[:, :3].astype(np.float32)
        place = rows[..., :3] @ self.ray
        place += rows[..., 3:] * self.rho
        camera, over_z = self.camera, 1 / np.maximum(place[:, 2], np.float32(1e-3))
        u = place[:, 0] * over_z * camera.fx + (camera.cx - self.place[0])
        v = place[:, 1] * over_z * camera.fy + (camera.cy - self.place[1])
        gap = self.rho * over_z - self.seen_rho
        return (u * u + v * v) / self.place_variance + gap * gap / (self.rho_variance + self.seen_variance)


def _places(camera: PinholeCamera, index: Array) -> Array:
    """Returns the (N, 2) float64 pixels (u, v) of flat places (N,) on a camera's grid."""
    row, column = np.divmod(index, camera.width)
    return np.stack((column, row), axis=-1).astype(np.float64)


def _on_one_surface(seen: Array, rho: Array, variance: Array) -> Array:
    """Tells (N,) where the inverse depth seen before can be that of the same surface as ``rho`` with its variance."""
    return np.abs(seen - rho) < EDGE * rho + 4 * np.sqrt(variance)


def even(groups: Sequence[Array]) -> Array:
    """Returns (K, SAMPLES) evenly spaced entries of K indices (N,), none empty: of short ones some more than once."""
    return np.stack([group[np.arange(SAMPLES) * (len(group) - 1) // (SAMPLES - 1)] for group in groups])


@dataclass(frozen=True)
class Samples:
    """Points of K groups, n each, as pixels that were seen before; float64.

    Attributes:
        place: (K, 4, n) homogeneous: direction with z = 1, current camera, and inverse depth.
        rho_variance: (K, 1, n) that of the inverse depth.
        seen: (K, 3, n) where each was: pixel u and v of the grid, and inverse depth seen there, zero for none.
        variance: (K, 3, n) their variances; infinite for none.
        weight: (K, 1) what each point counts: less than one where a group is so small that some are taken twice.
    """

    place: Array
    rho_variance: Array
    seen: Array
    variance: Array
    weight: Array

    @classmethod
    def of(cls, pixels: MovingPixels, groups: Sequence[Array], moving: Moving) -> Samples:
        """Takes points evenly from each group, and polishes where they were by Lucas-Kanade.

        Args:
            pixels: The pixels.
            groups: K indices into them, none empty.
            moving: What they were taken from, for its images.
        """
        assert moving.past is not None
        index = even(groups).reshape(-1)
        here = _places(pixels.camera, pixels.index[index])
        place, polished = _polish(moving, here, pixels.place.T[index])
        (rho, rho_variance), (seen_rho, seen_variance) = (
            [field.numpy() for field in view.depth.read(pixels.camera, torch.from_numpy(at))]
            for view, at in ((moving.surface, here), (moving.past, place))
        )
        between = np.isnan(rho)
        rho = np.where(between, pixels.rho[index], rho)
        rho_variance = np.where(between, pixels.rho_variance[index], rho_variance)
        same = _on_one_surface(seen_rho, rho, rho_variance)
        noise = np.where(polished, (POLISHED_NOISE / moving.surface.cell) ** 2, pixels.place_variance[index])

        def by_group(*rows: Array) -> Array:
            stacked = np.stack(rows).astype(np.float64)
            return stacked.reshape(len(rows), len(groups), SAMPLES).swapaxes(0, 1)

        return cls(
            place=by_group(*pixels.ray[:, index], rho),
            rho_variance=by_group(rho_variance),
            seen=by_group(*place.T, np.where(same, seen_rho, 0)),
            variance=by_group(noise, noise, np.where(same, seen_variance, np.inf)),
            weight=np.array([[min(1.0, len(group) / SAMPLES)] for group in groups]),
        )

    def seen_from(self, camera: PinholeCamera, motions: Array) -> tuple[Reprojection[Array], Array, Array]:
        """Looks at the points from K motions (K, 4, 4), or at those of one group from any number of them.

        Returns:
            The reprojection of all points, (K, 3, n) inverse variances of its errors, and (K, n) squared residuals.
        """
        seen = reproject(camera, motions @ self.place, motions[..., 3:], self.seen)
        noise = 1 / (self.variance + self.rho_variance * np.square(seen.by_rho))
        return seen, noise, (noise * np.square(seen.error)).sum(-2)


def _polish(moving: Moving, here: Array, guess: Array) -> tuple[Array, Array]:
    """Follows pixels of the grid back by Lucas-Kanade.

    Args:
        moving: Has the images.
        here: (M, 2) pixels of the grid.
        guess: (M, 2) where they were.

    Returns:
        (M, 2) float64 where they were, and (M,) bool, whether they were found there; the others keep their guess.
    """
    assert moving.past is not None
    source, target = (view.dense.cpu().numpy() for view in (moving.surface, moving.past))
    cell = moving.surface.cell
    start, there = ((place * cell + 0.5 * (cell - 1)).astype(np.float32) for place in (here, guess))
    found, good = lucas_kanade(source, target, start, there)
    place = (found.astype(np.float64) - 0.5 * (cell - 1)) / cell
    good &= np.linalg.norm(place - guess, axis=-1) < MOST_POLISH / cell
    return np.where(good[:, None], place, guess), good


def fit_motions(camera: PinholeCamera, samples: Samples, starts: Array, prior: Array) -> tuple[Array, Array]:
    """Refines K motions, each by its own points, by robust Gauss-Newton.

    Args:
        camera: Camera of the grid.
        samples: K groups of points.
        starts: (K, 4, 4) float64 expected ``T_previous_current``.
        prior: (K, 6, 6) information of their left perturbations.

    Returns:
        (K, 4, 4) motions and (K, 6, 6) covariances of their left perturbations, the prior being part of both.
    """
    motions, moved, rank = starts, np.zeros((len(starts), 6, 1)), int(SPREAD_QUANTILE * (SAMPLES - 1))
    for _ in range(ITERATIONS):
        seen, noise, squared = samples.seen_from(camera, motions)
        low = np.partition(squared, rank, axis=-1)[:, rank, None]
        scale = (low / QUANTILE_OF_TWO).clip(LEAST_SPREAD, MOST_SPREAD)
        kernel = OUTLIER * OUTLIER * scale
        weight = samples.weight * np.square(kernel / (kernel + squared)) / (CORRELATION * scale)
        jacobian = motion_jacobian(camera, seen.view)
        weighted = (jacobian * (weight[:, None] * noise)[:, None]).reshape(len(motions), 6, -1)
        hessian = weighted @ jacobian.reshape(weighted.shape).swapaxes(-1, -2) + prior
        # The prior is quadratic in the way from the start, which is short enough to add up its steps.
        gradient = weighted @ seen.error.reshape(len(motions), -1, 1) + prior @ moved
        step = -np.linalg.solve(hessian, gradient)
        twist = se3.wedge(step[..., 0])
        # The exponential's series: what four factors of a step add is beyond any noise.
        moved, motions = moved + step, motions + twist @ (motions + twist @ (motions + twist @ motions / 3) / 2)
        if -(step * gradient).sum(1).min() < CONVERGED**2:
            break
    covariance = np.linalg.inv(hessian)
    return motions, 0.5 * (covariance + covariance.swapaxes(-1, -2))


def propose(camera: PinholeCamera, samples: Samples, expected: Array, random: np.random.Generator) -> Array:
    """Returns the (4, 4) motion, of the expected one and some from three points each, that explains most points.

    Args:
        camera: Camera of the grid.
        samples: One group of points.
        expected: (4, 4) float64 one candidate.
        random: Source of randomness.
    """
    both = np.isfinite(samples.variance[0, 2])
    candidates = expected[None]
    if both.sum() >= LEAST_SAMPLES:
        place, seen = (torch.from_numpy(field[0][:, both].T) for field in (samples.place, samples.seen))
        points, targets = place[:, :3] / place[:, 3:], camera.unproject(seen[:, :2], 1 / seen[:, 2])
        triples = torch.from_numpy(random.integers(len(points), size=(TRIPLES, 3)))
        ones = torch.ones(TRIPLES, 3, dtype=torch.float64)
        every = procrustes(points, targets, place[:, 3] ** 4)[None]
        some = procrustes(points[triples], targets[triples], ones)
        candidates = np.concatenate((candidates, every.numpy(), some.numpy()))
    squared = samples.seen_from(camera, candidates)[2]
    return candidates[int(squared.clip(max=OUTLIER * OUTLIER).sum(-1).argmin())]
