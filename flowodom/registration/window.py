"""A sliding window of keyframes whose poses, and the inverse depths of the points they see, are refined together.

Each point lives on a ray of the keyframe that first saw it (its host) and is observed in later ones. The depths are
eliminated by the Schur complement, so a step solves for the few poses only, and for what a stereo pair's depths are all
off by. The window has a fixed lag: the oldest keyframe leaves, its points move on to the next keyframe that saw them,
and the poses it fixed stay fixed.

Source: Triggs et al., "Bundle Adjustment - A Modern Synthesis" (2000); the host-and-inverse-depth form follows Engel,
Koltun and Cremers, "Direct Sparse Odometry" (2018), with flow correspondences in place of intensities.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flowodom.geometry import PinholeCamera, se3
from flowodom.registration.refine import OUTLIER, Matches, is_known, spread
from flowodom.registration.reprojection import motion_jacobian, reproject, whitened, whitening
from flowodom.registration.shear import sheared
from flowodom.registration.turn import Turn
from flowodom.registration.two_view import triangulate

LEAST_BASELINE = 0.1
"""Distance between two keyframes, as a share of the usual depth, from which it keeps a single camera's unit."""

UNKNOWN_DEVIATION = 30.0
"""Deviation of an unknown inverse depth, as a share of the typical one: so large that it says nothing of scale."""

LEAST_RHO = 1e-4
"""Inverse depths are kept above it, as a share of the typical one: a point at 10,000 times the usual depth."""


@dataclass
class _Points:
    """Structure of arrays: N points, K keyframes; float64."""

    host: Tensor  # (N,) index of the keyframe on whose ray the point lives
    ray: Tensor  # (N, 3) that ray, host camera, z = 1
    rho: Tensor  # (N,) inverse depth in the host
    variance: Tensor  # (N,) its variance as last estimated
    prior: Tensor  # (N,) inverse depth measured in the host, NaN none
    prior_variance: Tensor  # (N,) infinite for none
    pixels: Tensor  # (N, K, 2) where each keyframe sees it, NaN unseen (and in the host, where it lies by definition)
    noise: Tensor  # (N, K, 2, 2) covariance of that
    seen_rho: Tensor  # (N, K) inverse depth measured there, NaN none
    seen_variance: Tensor  # (N, K) infinite for none
    place: Tensor  # (N, 2) where the newest keyframe's image shows it, shutter and all

    def keep(self, mask: Tensor) -> None:
        for name, value in vars(self).items():
            setattr(self, name, value[mask])


class KeyframeWindow:
    """The keyframes and points that the odometry holds on to.

    Args:
        camera: The camera.
        size: Most keyframes.
        metric: Whether depths are measured; without, the unit of length is kept.
    """

    def __init__(self, camera: PinholeCamera, *, size: int, metric: bool) -> None:
        self.camera = camera
        self.metric = metric
        self.poses: list[Tensor] = []
        """(4, 4) float64 ``T_odom_keyframe``, oldest first."""
        self._size = size
        none = torch.zeros(0, dtype=torch.float64)
        self._points = _Points(
            host=none.long(),
            ray=none.reshape(0, 3),
            rho=none,
            variance=none,
            prior=none,
            prior_variance=none,
            pixels=none.reshape(0, 0, 2),
            noise=none.reshape(0, 0, 2, 2),
            seen_rho=none.reshape(0, 0),
            seen_variance=none.reshape(0, 0),
            place=none.reshape(0, 2),
        )
        self.active = torch.zeros(0, dtype=torch.long)
        """(M,) indices of the points that the newest keyframe sees."""

    @property
    def typical_rho(self) -> float:
        """Median inverse depth of the points known to better than half their value; 1 where there are none."""
        p = self._points
        known = (p.rho > 0) & (p.variance < (0.5 * p.rho) ** 2)
        return float(p.rho[known].median()) if known.any() else 1.0

    @property
    def scaled(self) -> bool:
        """Whether any inverse depth is known, and with it what a length is."""
        p = self._points
        return bool(is_known(p.rho, p.variance).any())

    @property
    def places(self) -> Tensor:
        """(M, 2) pixels at which the newest keyframe's image shows the active points."""
        return self._points.place[self.active]

    @property
    def proven(self) -> Tensor:
        """(M,) bool: which of the active points an older keyframe has seen too."""
        return self._points.host[self.active] < len(self.poses) - 1

    def points(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns what the newest keyframe sees: rays (M, 3) with z = 1, inverse depths (M,), their variances (M,)."""
        p = self._points
        direction, offset = self._seen_from(-1, self.active)
        rho, variance = p.rho[self.active], p.variance[self.active]
        scaled = direction + rho[:, None] * offset
        z = scaled[:, 2:].clamp_min(1e-3)
        return scaled / z, rho / z[:, 0], variance / z[:, 0] ** 2

    def _seen_from(self, keyframe: int, which: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the rays of points, an index or a mask, in a keyframe, and from where they start: (M, 3) each."""
        p = self._points
        change = (se3.inverse(self.poses[keyframe]) @ torch.stack(self.poses))[p.host[which], :3]
        return (change[..., :3] * p.ray[which, None]).sum(-1), change[..., 3]

    def matches(self, pixels: Tensor, pixel_noise: float, row: Tensor) -> Matches:
        """Returns the active points as matches of a new camera, which measures no depth, against the newest keyframe.

        Args:
            pixels: (M, 2) where the new camera sees the active points.
            pixel_noise: Standard deviation of that, pixels.
            row: (M,) in which row, from -1/2 to 1/2.
        """
        p = self._points
        direction, offset = self._seen_from(-1, self.active)
        return Matches(
            direction=direction,
            offset=offset,
            rho=p.rho[self.active],
            rho_variance=p.variance[self.active],
            pixels=pixels,
            pixel_covariance=(pixel_noise**2 * torch.eye(2, dtype=torch.float64)).expand(len(row), 2, 2),
            seen_rho=torch.full_like(row, torch.nan),
            seen_variance=torch.full_like(row, torch.inf),
            row=row,
        )

    def add(
        self,
        pose: Tensor,
        observed: Tensor,
        pixels: Tensor,
        noise: Tensor,
        places: Tensor,
        seen_rho: Tensor,
        seen_variance: Tensor,
        fresh: Tensor,
        fresh_places: Tensor,
        fresh_rho: Tensor,
        fresh_variance: Tensor,
    ) -> None:
        """Adds a keyframe.

        Args:
            pose: (4, 4) ``T_odom_keyframe``.
            observed: (M,) bool, which active points it sees.
            pixels: (M, 2) where it sees them, freed from the shear of its shutter.
            noise: (M, 2, 2) covariance of that.
            places: (M, 2) where its image shows them.
            seen_rho: (M,) inverse depth measured there, NaN none.
            seen_variance: (M,) infinite for none.
            fresh: (F, 2) pixels of new points, freed from the shear.
            fresh_places: (F, 2) where the image shows them.
            fresh_rho: (F,) their inverse depth, NaN unknown.
            fresh_variance: (F,) its variance, infinite for unknown.
        """
        if self.full:
            still = self._drop_oldest()
            observed, pixels, noise, places = observed[still], pixels[still], noise[still], places[still]
            seen_rho, seen_variance = seen_rho[still], seen_variance[still]
        active = torch.zeros(len(self._points.rho), dtype=torch.bool)
        active[self.active] = True
        # A point that nobody follows and no other keyframe ever saw tells nothing.
        self._forget(active | self._points.pixels[..., 0].isfinite().any(1))
        p = self._points
        n, f, k = len(p.rho), len(fresh), len(self.poses)
        self.poses.append(pose)

        column = torch.full((n, 1, 2), torch.nan, dtype=torch.float64)
        column[self.active, 0] = torch.where(observed[:, None], pixels, torch.nan)
        noise_column = torch.full((n, 1, 2, 2), torch.nan, dtype=torch.float64)
        noise_column[self.active, 0] = noise
        rho_column = torch.full((n, 1), torch.nan, dtype=torch.float64)
        rho_column[self.active, 0] = torch.where(observed, seen_rho, torch.nan)
        variance_column = torch.full((n, 1), torch.inf, dtype=torch.float64)
        variance_column[self.active, 0] = torch.where(observed, seen_variance, torch.inf)

        typical = self.typical_rho
        known = fresh_variance.isfinite() & fresh_rho.isfinite()
        rho = torch.where(known, fresh_rho.clamp_min(LEAST_RHO * typical), typical)
        variance = torch.where(known, fresh_variance, (UNKNOWN_DEVIATION * typical) ** 2)
        measured = known & self.metric
        blank = torch.full((f, k + 1), torch.nan, dtype=torch.float64)
        self._points = _Points(
            host=torch.cat((p.host, torch.full((f,), k))),
            ray=torch.cat((p.ray, self.camera.rays(fresh))),
            rho=torch.cat((p.rho, rho)),
            variance=torch.cat((p.variance, variance)),
            prior=torch.cat((p.prior, torch.where(measured, fresh_rho, torch.nan))),
            prior_variance=torch.cat((p.prior_variance, torch.where(measured, fresh_variance, torch.inf))),
            pixels=torch.cat((torch.cat((p.pixels, column), 1), blank[..., None].expand(-1, -1, 2))),
            noise=torch.cat((torch.cat((p.noise, noise_column), 1), blank[..., None, None].expand(-1, -1, 2, 2))),
            seen_rho=torch.cat((torch.cat((p.seen_rho, rho_column), 1), blank)),
            seen_variance=torch.cat(
                (torch.cat((p.seen_variance, variance_column), 1), torch.full_like(blank, torch.inf))
            ),
            place=torch.cat((p.place.index_copy(0, self.active, places), fresh_places)),
        )
        self.active = torch.cat((self.active[observed], torch.arange(n, n + f)))

    def _drop_oldest(self) -> Tensor:
        """Drops the oldest keyframe; its points move to the next keyframe that saw them.

        Returns:
            (M,) bool, which of the active points are still there.
        """
        p = self._points
        seen = p.pixels[..., 0].isfinite()
        orphan = p.host == 0
        heir = seen.to(torch.int8).argmax(1)
        alive = ~orphan | seen.any(1)
        moved = (orphan & alive).nonzero()[:, 0]
        to = heir[moved]
        poses = torch.stack(self.poses)
        change = se3.inverse(poses[to]) @ poses[0]
        scaled = (change[:, :3, :3] @ p.ray[moved][..., None])[..., 0] + p.rho[moved, None] * change[:, :3, 3]
        stretch = scaled[:, 2].clamp_min(1e-3)
        p.rho[moved] = p.rho[moved] / stretch
        p.variance[moved] = p.variance[moved] / stretch**2
        p.host[moved] = to
        p.ray[moved] = self.camera.rays(p.pixels[moved, to])
        p.prior[moved] = p.seen_rho[moved, to]
        p.prior_variance[moved] = p.seen_variance[moved, to]
        p.pixels[moved, to] = torch.nan
        p.seen_rho[moved, to] = torch.nan
        p.seen_variance[moved, to] = torch.inf

        still = alive[self.active]
        self._forget(alive)
        p.host -= 1
        p.pixels, p.noise, p.seen_rho, p.seen_variance = (
            seen[:, 1:] for seen in (p.pixels, p.noise, p.seen_rho, p.seen_variance)
        )
        self.poses.pop(0)
        return still

    def _forget(self, keep: Tensor) -> None:
        """Forgets all points but those of a bool mask."""
        renumber = torch.cumsum(keep.long(), 0) - 1
        self.active = renumber[self.active[keep[self.active]]]
        self._points.keep(keep)

    @property
    def full(self) -> bool:
        """Whether the oldest keyframe leaves when another one comes."""
        return len(self.poses) == self._size

    def oldest(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns what is well known of what the oldest keyframe sees, as ``points`` does for the newest."""
        p = self._points
        own = (p.host == 0) & is_known(p.rho, p.variance)
        return p.ray[own], p.rho[own], p.variance[own]

    def unshear(self, keyframe: int, shear: Tensor) -> None:
        """Frees what a keyframe sees from a shear (6,), beside that from which it was freed before."""
        p = self._points
        own, seen = p.host == keyframe, p.pixels[:, keyframe, 0].isfinite()
        pixels, farther = sheared(self.camera, self.camera.project(p.ray[own]), p.rho[own], -shear)
        p.ray[own] = self.camera.rays(pixels)
        p.rho[own] /= farther
        p.prior[own] /= farther
        direction, offset = self._seen_from(keyframe, seen)
        rho = p.rho[seen] / (direction[:, 2] + p.rho[seen] * offset[:, 2]).clamp_min(1e-3)
        p.pixels[seen, keyframe], farther = sheared(self.camera, p.pixels[seen, keyframe], rho, -shear)
        p.seen_rho[seen, keyframe] /= farther

    def move(self, pose: Tensor) -> None:
        """Moves all keyframes together, the newest of them to ``T_odom_keyframe`` (4, 4)."""
        change = pose @ se3.inverse(self.poses[-1])
        self.poses = [se3.normalised(change @ each) for each in self.poses]

    def rescale(self, factor: float) -> None:
        """Multiplies every length by ``factor``, leaving the newest keyframe where it is."""
        origin = self.poses[-1][:3, 3].clone()
        for pose in self.poses:
            pose[:3, 3] = origin + factor * (pose[:3, 3] - origin)
        p = self._points
        p.rho /= factor
        p.variance /= factor**2

    def optimise(self, *, max_iterations: int, turn: Turn | None = None) -> Turn | None:
        """Refines all poses but the oldest, and all inverse depths, by robust Levenberg-Marquardt.

        Args:
            max_iterations: Most iterations.
            turn: What is known of that of the pair by which inverse depths are measured; None where none measures them.

        Returns:
            What is known of it now, which what the window holds is brought to.
        """
        if len(self.poses) < 2:
            return turn
        p, k = self._points, len(self.poses)
        point, frame = p.pixels[..., 0].isfinite().nonzero(as_tuple=True)
        if len(point) < 6:
            return turn
        white = whitening(p.noise[point, frame], p.seen_variance[point, frame])
        if not self.metric:
            self._triangulate(point, frame, white)
        unit = None if self.metric else self._unit()
        problem = _Problem(self.camera, p, point, frame, white, k, turn)
        poses, rho, yaw = torch.stack(self.poses), p.rho.clone(), p.rho.new_zeros(())
        floor = LEAST_RHO * self.typical_rho
        damping = 1e-4
        system = problem.linearise(poses, rho, yaw)
        for _ in range(max_iterations):
            step_pose, step_yaw, step_rho = problem.solve(system, damping)
            new_poses = torch.cat((poses[:1], poses[1:] @ se3.exp(step_pose)))
            new_rho, new_yaw = (rho + step_rho).clamp_min(floor), yaw + step_yaw
            candidate = problem.linearise(new_poses, new_rho, new_yaw)
            if candidate.cost < system.cost:
                gain = (system.cost - candidate.cost) / system.cost
                poses, rho, yaw, system = new_poses, new_rho, new_yaw, candidate
                damping = max(damping / 10, 1e-8)
                if gain < 1e-3:
                    break
            else:
                damping *= 10
                if damping > 1e3:
                    break
        self.poses = list(poses.unbind())
        p.rho = rho
        # What nothing tells keeps the variance that it had.
        found = problem.rho_variance(system, 0.0)
        p.variance = torch.where(found > 0, found, p.variance)
        if unit is not None:
            self._rescale_about_oldest(1 / max(unit(), 1e-9))
        if turn is not None:
            p.prior -= yaw * turn.nearer_by_yaw(p.ray)
            p.seen_rho -= yaw * turn.nearer_by_yaw(self.camera.rays(p.pixels))
            turn = turn.learn(float(yaw), problem.yaw_variance(system))
        self._discard_outliers(system, point, frame)
        return turn

    def _unit(self) -> Callable[[], float]:
        """Returns what tells, once the window has changed, how many of today's units the same length then has.

        Longest known is how far the middle keyframe is from the oldest. Where the camera hardly moved between them, or
        came back, that says little, and the inverse depths that are known say more.
        """
        p, middle = self._points, max(1, (len(self.poses) - 1) // 2)

        def distance() -> float:
            return float((self.poses[middle][:3, 3] - self.poses[0][:3, 3]).norm())

        known = is_known(p.rho, p.variance)
        before, depths, weight = distance(), p.rho[known].log(), (p.rho**2 / p.variance)[known]
        if before * self.typical_rho > (LEAST_BASELINE if len(depths) else 0.0):
            return lambda: distance() / before
        if not len(depths):
            return lambda: 1.0
        return lambda: math.exp(-float((weight * (p.rho[known].log() - depths)).sum() / weight.sum()))

    def _rescale_about_oldest(self, factor: float) -> None:
        origin = self.poses[0][:3, 3]
        for pose in self.poses[1:]:
            pose[:3, 3] = origin + factor * (pose[:3, 3] - origin)
        self._points.rho /= factor
        self._points.variance /= factor**2

    def _triangulate(self, point: Tensor, frame: Tensor, white: Tensor) -> None:
        """Gives points that are poorly known a linear least-squares inverse depth, the poses being fixed."""
        p = self._points
        poses = torch.stack(self.poses)
        change = se3.inverse(poses[frame]) @ poses[p.host[point]]
        ray = (change[:, :3, :3] @ p.ray[point][..., None])[..., 0]
        told, known = triangulate(self.camera, ray, change[:, :3, 3], p.pixels[point, frame], white)
        total = torch.zeros_like(p.rho).index_add_(0, point, known).clamp_min(1e-12)
        rho, variance = torch.zeros_like(p.rho).index_add_(0, point, told) / total, 1 / total
        floor = LEAST_RHO * self.typical_rho
        better = ~is_known(p.rho, p.variance) & (variance < p.variance) & (rho > floor)
        p.rho = torch.where(better, rho, p.rho)

    def _discard_outliers(self, system: _System, point: Tensor, frame: Tensor) -> None:
        """Forgets observations that the robust kernel has rejected, and points with none left that were never sure."""
        p = self._points
        bad = system.weight < 0.1
        p.pixels[point[bad], frame[bad]] = torch.nan
        p.seen_rho[point[bad], frame[bad]] = torch.nan
        p.seen_variance[point[bad], frame[bad]] = torch.inf
        last = len(self.poses) - 1
        visible = (p.host[self.active] == last) | p.pixels[self.active, last, 0].isfinite()
        self.active = self.active[visible]


@dataclass(frozen=True)
class _System:
    cost: float
    weight: Tensor  # (M,) of each observation
    hessian: Tensor  # (6K + 1, 6K + 1) of all poses, and of the pair's yaw
    gradient: Tensor  # (6K + 1,)
    cross: Tensor  # (N, 6K + 1)
    rho_information: Tensor  # (N,)
    rho_gradient: Tensor  # (N,)


class _Problem:
    """The normal equations of one window: M observations of N points in K keyframes.

    Beside the poses, one unknown is of all keyframes: by how much a stereo pair yaws more than it is known to.
    Without a pair it is held at zero.
    """

    def __init__(
        self,
        camera: PinholeCamera,
        points: _Points,
        point: Tensor,
        frame: Tensor,
        white: Tensor,
        k: int,
        turn: Turn | None,
    ) -> None:
        self._camera, self._points, self._point, self._frame, self._k = camera, points, point, frame, k
        self._host = points.host[point]
        self._ray = points.ray[point].T.contiguous()
        seen_rho = points.seen_rho[point, frame].nan_to_num()
        self._seen = torch.cat((points.pixels[point, frame].T, seen_rho[None]))
        self._white = white
        self._kernel = 0.0
        self._has_prior = points.prior_variance.isfinite()
        self._yaw_information = 1.0 if turn is None else 1 / turn.yaw_variance
        rays = camera.rays(points.pixels[point, frame]), points.ray
        self._seen_by_yaw, self._prior_by_yaw = (
            ray.new_zeros(len(ray)) if turn is None else turn.nearer_by_yaw(ray) for ray in rays
        )
        # Observations of one frame that share a host share their relative motion.
        self._pair = frame * k + self._host
        self._members = torch.nn.functional.one_hot(self._pair, k * k).to(torch.float64)

    def linearise(self, poses: Tensor, rho: Tensor, yaw: Tensor) -> _System:
        n, k = len(rho), self._k
        change = se3.inverse(poses)[:, None] @ poses
        motion = change.reshape(-1, 4, 4).movedim(0, -1)[..., self._pair]
        start = motion[:, 3]
        place = (motion[:, :3] * self._ray).sum(1) + rho[self._point] * start
        seen = reproject(self._camera, place, start, self._seen)
        seen.error[2] += yaw * self._seen_by_yaw
        error, by_rho = whitened(self._white, seen.error), whitened(self._white, seen.by_rho)
        by_yaw = self._white[3] * self._seen_by_yaw
        squared = (error * error).sum(0)
        if self._kernel == 0.0:
            self._kernel = OUTLIER * OUTLIER * spread(squared)
        kernel = self._kernel
        weight = torch.where(seen.ahead, (kernel / (kernel + squared)) ** 2, 0)
        cost = float((kernel * squared / (kernel + squared)).sum() + self._yaw_information * yaw * yaw)

        # Everything by the left perturbation of each pair's relative motion first ...
        jacobian = whitened(self._white, motion_jacobian(self._camera, seen.view))
        weighted = weight * jacobian
        squares = (weighted[:, None] * jacobian).sum(2).reshape(36, -1) @ self._members
        squares = squares.T.reshape(k, k, 6, 6)
        slopes = torch.stack(((weighted * error).sum(1), weighted[:, 2] * by_yaw), -1)
        slopes = (self._members.T @ slopes.movedim(1, 0).reshape(-1, 12)).reshape(k, k, 6, 2)
        cross = (weighted * by_rho).sum(1)
        # ... then by the right perturbations of its two poses: exp(-xi_frame) and exp(Ad xi_host).
        adjoint = se3.adjoint(change)
        mixed = -squares @ adjoint
        own = squares.sum(1) - (adjoint.mT @ mixed).sum(0)
        by_poses = mixed + mixed.transpose(0, 1).mT + torch.eye(k).to(poses)[..., None, None] * own
        gradient, pose_by_yaw = ((adjoint.mT @ slopes).sum(0) - slopes.sum(1)).reshape(-1, 2).unbind(-1)
        by_pose = poses.new_zeros(n * k, 6)
        by_pose.index_add_(0, self._point * k + self._frame, -cross.T)
        by_host = (adjoint.reshape(-1, 6, 6).movedim(0, -1)[..., self._pair] * cross[:, None]).sum(0)
        by_pose.index_add_(0, self._point * k + self._host, by_host.T)

        weighted_rho = weight * by_rho
        rho_information = rho.new_zeros(n).index_add_(0, self._point, (weighted_rho * by_rho).sum(0))
        rho_gradient = rho.new_zeros(n).index_add_(0, self._point, (weighted_rho * error).sum(0))
        rho_by_yaw = rho.new_zeros(n).index_add_(0, self._point, weighted_rho[2] * by_yaw)
        p = self._points
        miss = torch.where(self._has_prior, rho - p.prior + yaw * self._prior_by_yaw, 0)
        squared = miss * miss / p.prior_variance
        prior_weight = (kernel / (kernel + squared)) ** 2 / p.prior_variance
        cost += float((kernel * squared / (kernel + squared)).sum())
        rho_information = rho_information + prior_weight
        rho_gradient = rho_gradient + prior_weight * miss
        prior_by_yaw = prior_weight * self._prior_by_yaw
        rho_by_yaw = rho_by_yaw + prior_by_yaw

        yaw_information = weight @ by_yaw.square() + prior_by_yaw @ self._prior_by_yaw
        yaw_gradient = (weight * by_yaw) @ error[2] + prior_by_yaw @ miss
        hessian = poses.new_empty(6 * k + 1, 6 * k + 1)
        hessian[:-1, :-1] = by_poses.permute(0, 2, 1, 3).reshape(6 * k, 6 * k)
        hessian[-1, :-1] = hessian[:-1, -1] = pose_by_yaw
        hessian[-1, -1] = yaw_information + self._yaw_information
        gradient = torch.cat((gradient, (yaw_gradient + self._yaw_information * yaw)[None]))
        cross = torch.cat((by_pose.reshape(n, 6 * k), rho_by_yaw[:, None]), dim=1)
        return _System(cost, weight, hessian, gradient, cross, rho_information, rho_gradient)

    def solve(self, system: _System, damping: float) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the step of every pose but the oldest, (K - 1, 6), of the yaw, and of inverse depths, (N,)."""
        cross, inverse = system.cross[:, 6:], self.rho_variance(system, damping)
        hessian = system.hessian[6:, 6:]
        hessian = hessian + torch.diag(damping * hessian.diagonal() + 1e-9 * hessian.diagonal().mean())
        scaled = inverse[:, None] * cross
        step = torch.linalg.solve(hessian - cross.T @ scaled, scaled.T @ system.rho_gradient - system.gradient[6:])
        return step[:-1].reshape(-1, 6), step[-1], -inverse * (system.rho_gradient + cross @ step)

    def yaw_variance(self, system: _System) -> float:
        """Returns the variance of the yaw, whatever poses and inverse depths are."""
        cross = system.cross[:, 6:]
        reduced = system.hessian[6:, 6:] - cross.T @ (self.rho_variance(system, 0.0)[:, None] * cross)
        last = torch.eye(len(reduced), dtype=reduced.dtype)[-1]
        return float(torch.linalg.solve(reduced + torch.diag(1e-9 * reduced.diagonal()), last)[-1])

    @staticmethod
    def rho_variance(system: _System, damping: float) -> Tensor:
        """Returns the (N,) variances of inverse depths, all else being known; zero for what nothing tells."""
        told = system.rho_information > 0
        return torch.where(told, 1 / (system.rho_information * (1 + damping)).clamp_min(1e-18), 0)
