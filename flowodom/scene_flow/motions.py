"""Rigid motions of what moves: how well each explains where every pixel came from, and several refined at once.

Source: sf2se3 (Sommer, Schroeppel and Brox, 2022); the fit is the pose's own (see ``registration.refine``), with a
prior on the motion: Bell and Cathey, "The Iterated Kalman Filter Update as a Gauss-Newton Method" (1993).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from flowodom.flow.points import follow
from flowodom.geometry import PinholeCamera, se3
from flowodom.registration.covariance import CORRELATION
from flowodom.registration.procrustes import procrustes
from flowodom.registration.refine import CONVERGED, LEAST_SPREAD, MOST_SPREAD, OUTLIER, QUANTILE_OF_TWO, SPREAD_QUANTILE
from flowodom.registration.reprojection import Reprojection, motion_jacobian, reproject
from flowodom.scene_flow.decompose import CELL, EDGE, SYSTEMATIC, Moving

SAMPLES = 90
"""Most points of one motion's fit."""

LEAST_SAMPLES = 12
"""Fewest points that a motion is looked for in."""

TRIPLES = 24
"""Motions proposed from three points each."""

ITERATIONS = 3
"""Gauss-Newton steps of a fit."""

PLACE_NOISE = 0.12
"""Standard deviation, pixels of the grid, of where the flow puts a point."""

POLISHED_NOISE = 0.05
"""The same of a point polished by Lucas-Kanade."""

MOST_POLISH = 1.5
"""Pixels of the grid by which Lucas-Kanade may differ from the flow."""


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
        seen_rho: (N,) inverse depth seen there; NaN where it is another surface's, or unknown.
        seen_variance: (N,) its variance; infinite likewise.
        usable: (N,) bool: the flow can be trusted.
        moves: (N,) bool: it moves now.
        inner: (N,) bool: usable and away from the edges of depth.
        origin: (N,) flat place on the grid where each was; -1 where that was another surface.
    """

    camera: PinholeCamera
    index: Tensor
    ray: Tensor
    rho: Tensor
    rho_variance: Tensor
    place: Tensor
    place_variance: Tensor
    seen_rho: Tensor
    seen_variance: Tensor
    usable: Tensor
    moves: Tensor
    inner: Tensor
    origin: Tensor

    @classmethod
    def of(cls, moving: Moving) -> MovingPixels:
        """Collects the pixels that are doubted; ``moving`` must know its past."""
        assert moving.stories is not None
        assert moving.past is not None
        camera, surface, stories = moving.camera, moving.surface, moving.stories
        index = ((moving.doubt > 0) & surface.known).reshape(-1).nonzero()[:, 0]
        here = _places(camera, index).float()

        def at(field: Tensor, places: Tensor = index) -> Tensor:
            return field.reshape(-1).index_select(0, places).cpu()

        place, still = stories.places.reshape(2, 2, -1).index_select(2, index).cpu()
        low, high = map(at, surface.range)
        rho, variance, usable = at(surface.rho), at(surface.variance), at(stories.usable)
        origin = at(stories.moved_at)
        seen, seen_variance = (at(field, origin.to(index)) for field in (moving.past.rho, moving.past.variance))
        same = _on_one_surface(seen, rho, variance)
        return cls(
            camera=camera,
            index=index.cpu(),
            ray=camera.rays(here).cpu().T,
            rho=rho,
            rho_variance=variance,
            place=place,
            place_variance=PLACE_NOISE**2 + SYSTEMATIC**2 * (place - still).square().sum(0),
            seen_rho=torch.where(same, seen, torch.nan),
            seen_variance=torch.where(same, seen_variance, torch.inf),
            usable=usable,
            moves=at(moving.logit) > 0,
            inner=usable & (high - low < 2 * EDGE * rho),
            origin=torch.where(same & usable, origin, -1),
        )

    def __len__(self) -> int:
        return len(self.index)

    def image(self, values: Tensor) -> Tensor:
        """Returns (..., N) values as (..., H, W) images, zero (False) elsewhere."""
        size = self.camera.height, self.camera.width
        image = values.new_zeros(*values.shape[:-1], size[0] * size[1])
        image[..., self.index] = values
        return image.reshape(*values.shape[:-1], *size)

    def flags(self, which: Tensor) -> Tensor:
        """Returns an index (M,) as (N,) bool."""
        flags = torch.zeros(len(self), dtype=torch.bool)
        flags[which] = True
        return flags

    def around(self, flags: Tensor, reach: int) -> Tensor:
        """Returns the (N,) bool pixels that are no farther than ``reach``, in rows and columns, from some of (N,)."""
        square = np.ones((2 * reach + 1, 2 * reach + 1), dtype=np.uint8)
        near = cv2.dilate(self.image(flags.to(torch.uint8)).numpy(), square)
        return torch.from_numpy(near).reshape(-1)[self.index] > 0

    def points(self, which: Tensor) -> Tensor:
        """Returns the (M, 3) float64 places, metres, of the pixels of an index (M,)."""
        return (self.ray[:, which] / self.rho[which]).T.double()

    def squared(self, motions: Tensor) -> Tensor:
        """Returns the (K, N) squared Mahalanobis distance between where pixels were and where motions put them.

        Args:
            motions: (K, 4, 4) ``T_previous_current`` of a camera that would go with each pixel.
        """
        motions = motions.to(self.rho)
        turned = motions[:, :3, :3] @ self.ray
        x, y, z = (turned + motions[:, :3, 3:] * self.rho).unbind(1)
        camera, over_z = self.camera, 1 / z.clamp_min(1e-3)
        u = camera.fx * (x * over_z) + (camera.cx - self.place[0])
        v = camera.fy * (y * over_z) + (camera.cy - self.place[1])
        gap = self.rho * over_z - self.seen_rho.nan_to_num()
        depth = 1 / (self.rho_variance + self.seen_variance)
        return (u * u + v * v) / self.place_variance + gap * gap * depth


def _places(camera: PinholeCamera, index: Tensor) -> Tensor:
    """Returns the (N, 2) integer pixels (u, v) of flat places (N,) on a camera's grid."""
    return torch.stack((index % camera.width, index // camera.width), dim=-1)


def _on_one_surface(seen: Tensor, rho: Tensor, variance: Tensor) -> Tensor:
    """Tells (N,) where the inverse depth seen before can be that of the same surface as ``rho`` with its variance."""
    return (seen - rho).abs() < EDGE * rho + 4 * variance.sqrt()


def even(group: Tensor) -> Tensor:
    """Returns at most ``SAMPLES`` of an index (N,), evenly spaced."""
    return group[torch.linspace(0, max(len(group) - 1, 0), min(len(group), SAMPLES)).long()]


@dataclass(frozen=True)
class Samples:
    """Points of K groups, n each, as pixels that were seen before; float64, padded with points of no weight.

    Attributes:
        ray: (3, K, n) direction with z = 1, current camera.
        rho: (K, n) inverse depth.
        rho_variance: (K, n).
        place: (K, n, 2) where each was, pixels of the grid.
        place_variance: (K, n).
        seen_rho: (K, n) inverse depth seen there; NaN for none.
        seen_variance: (K, n); infinite for none.
        valid: (K, n) float64: one, or zero for padding.
    """

    ray: Tensor
    rho: Tensor
    rho_variance: Tensor
    place: Tensor
    place_variance: Tensor
    seen_rho: Tensor
    seen_variance: Tensor
    valid: Tensor

    @classmethod
    def of(cls, pixels: MovingPixels, groups: list[Tensor], moving: Moving) -> Samples:
        """Takes points evenly from each group, and polishes where they were by Lucas-Kanade.

        Args:
            pixels: The pixels.
            groups: K indices into them, none empty.
            moving: What they were taken from, for its images.
        """
        thinned = [even(group) for group in groups]
        counts = torch.tensor([len(group) for group in thinned])
        index = torch.nn.utils.rnn.pad_sequence(thinned, batch_first=True)
        valid = (torch.arange(index.shape[1]) < counts[:, None]).double()
        assert moving.past is not None
        flat = index.reshape(-1)
        here = _places(pixels.camera, pixels.index[flat]).double()
        place, polished = _polish(moving, here, pixels.place[:, flat].T.double())
        rho, rho_variance = moving.surface.depth.read(pixels.camera, here)
        between = rho.isnan()
        rho = torch.where(between, pixels.rho[flat].double(), rho)
        rho_variance = torch.where(between, pixels.rho_variance[flat].double(), rho_variance)
        seen, seen_variance = moving.past.depth.read(pixels.camera, place)
        same = _on_one_surface(seen, rho, rho_variance)
        return cls(
            ray=pixels.ray[:, index].double(),
            rho=rho.reshape(index.shape),
            rho_variance=rho_variance.reshape(index.shape),
            place=place.reshape(*index.shape, 2),
            place_variance=torch.where(polished, POLISHED_NOISE**2, pixels.place_variance[flat].double()).reshape(
                index.shape
            ),
            seen_rho=torch.where(same, seen, torch.nan).reshape(index.shape),
            seen_variance=torch.where(same, seen_variance, torch.inf).reshape(index.shape),
            valid=valid,
        )

    def spread(self, squared: Tensor) -> Tensor:
        """Returns the (K, 1) factors, squared, by which residuals (K, n) scatter more than stated, see ``spread``."""
        ranked = squared.masked_fill(self.valid == 0, torch.inf).sort(dim=-1).values
        low = ranked.gather(-1, (SPREAD_QUANTILE * (self.valid.sum(-1, keepdim=True) - 1)).long())
        return (low / QUANTILE_OF_TWO).clamp(LEAST_SPREAD, MOST_SPREAD)

    def repeated(self, times: int) -> Samples:
        """Returns the points of one group as so many groups."""
        fields = {name: value.expand(times, *value.shape[1:]) for name, value in vars(self).items() if name != "ray"}
        return Samples(ray=self.ray.expand(3, times, -1), **fields)

    def seen_from(self, camera: PinholeCamera, motions: Tensor) -> tuple[Reprojection, Tensor, Tensor]:
        """Looks at the points from K motions.

        Returns:
            The reprojection of all points, (3, K * n) inverse variances of its errors, and (K, n) squared residuals.
        """
        rho = self.rho.reshape(-1)
        ray = torch.einsum("kij,jkn->ikn", motions[:, :, :3], self.ray).reshape(4, -1)
        start = motions[:, :, 3].T[:, :, None].expand(4, *self.rho.shape).reshape(4, -1)
        seen_rho, variance = self.seen_rho.reshape(1, -1).nan_to_num(), self.seen_variance.reshape(-1)
        seen = reproject(camera, ray + rho * start, start, torch.cat((self.place.reshape(-1, 2).T, seen_rho)))
        place = self.place_variance.reshape(-1)
        noise = torch.stack((place, place, variance))
        noise = 1 / (noise + self.rho_variance.reshape(-1) * seen.by_rho * seen.by_rho)
        return seen, noise, (noise * seen.error * seen.error).sum(0).reshape(self.rho.shape)


def _polish(moving: Moving, here: Tensor, guess: Tensor) -> tuple[Tensor, Tensor]:
    """Follows pixels of the grid back by Lucas-Kanade.

    Args:
        moving: Has the images.
        here: (M, 2) pixels of the grid.
        guess: (M, 2) where they were.

    Returns:
        (M, 2) where they were, and (M,) bool, whether they were found there; the others keep their guess.
    """
    assert moving.past is not None
    source, target = (view.dense.cpu().numpy() for view in (moving.surface, moving.past))
    shift = 0.5 * (CELL - 1)
    found, good = follow(source, target, here * CELL + shift, guess * CELL + shift, levels=0)
    place = (found - shift) / CELL
    good &= (place - guess).norm(dim=-1) < MOST_POLISH
    return torch.where(good[:, None], place, guess), good


def fit_motions(camera: PinholeCamera, samples: Samples, starts: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    """Refines K motions, each by its own points, by robust Gauss-Newton.

    Args:
        camera: Camera of the grid.
        samples: K groups of points.
        starts: (K, 4, 4) float64 expected ``T_previous_current``.
        prior: (K, 6, 6) information of their left perturbations.

    Returns:
        (K, 4, 4) motions and (K, 6, 6) covariances of their left perturbations, the prior being part of both.
    """
    motions, groups = se3.normalised(starts), len(starts)
    moved = torch.zeros(groups, 6, 1, dtype=torch.float64)
    for _ in range(ITERATIONS):
        seen, noise, squared = samples.seen_from(camera, motions)
        scale = samples.spread(squared)
        kernel = OUTLIER * OUTLIER * scale
        weight = samples.valid * (kernel / (kernel + squared)) ** 2 / (CORRELATION * scale)
        jacobian = motion_jacobian(camera, seen.view)
        # (6, 3, K n) to (K, 6, 3 n), so that each group has its own normal equations.
        jacobian, weighted, error = (
            field.reshape(-1, 3, groups, samples.valid.shape[1]).permute(2, 0, 1, 3).flatten(2)
            for field in (jacobian, weight.reshape(-1) * noise * jacobian, seen.error)
        )
        hessian = weighted @ jacobian.mT + prior
        # The prior is quadratic in the way from the start, which is short enough to add up its steps.
        gradient = weighted @ error.mT + prior @ moved
        step = -torch.linalg.solve(hessian, gradient)
        moved, motions = moved + step, se3.exp(step[..., 0]) @ motions
        if -float((step * gradient).sum((1, 2)).min()) < CONVERGED**2:
            break
    covariance = torch.linalg.inv(hessian)
    return motions, 0.5 * (covariance + covariance.mT)


def propose(camera: PinholeCamera, samples: Samples, expected: Tensor, generator: torch.Generator) -> Tensor:
    """Returns the (4, 4) motion, of the expected one and some from three points each, that explains most points.

    Args:
        camera: Camera of the grid.
        samples: One group of points.
        expected: (4, 4) float64 one candidate.
        generator: Source of randomness.
    """
    both = samples.seen_variance[0].isfinite() & (samples.valid[0] > 0)
    candidates = expected[None]
    if int(both.sum()) >= LEAST_SAMPLES:
        points = (samples.ray[:, 0] / samples.rho[0]).T[both]
        targets = camera.unproject(samples.place[0], 1 / samples.seen_rho[0])[both]
        triples = torch.randint(len(points), (TRIPLES, 3), generator=generator)
        ones = torch.ones(TRIPLES, 3, dtype=torch.float64)
        every = procrustes(points, targets, samples.rho[0][both] ** 4)
        candidates = torch.cat((candidates, every[None], procrustes(points[triples], targets[triples], ones)))
    squared = samples.repeated(len(candidates)).seen_from(camera, candidates)[2]
    cost = squared.clamp(max=OUTLIER * OUTLIER).sum(-1)
    return candidates[cost.argmin()]
