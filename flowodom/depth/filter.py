"""Depth from one moving camera: a recursive inverse-depth filter on every pixel.

Each frame, the field of the previous frame is carried along the flow and through the camera's motion, and corrected by
what epipolar triangulation of the flow measures. Both are Gaussians in inverse depth, in which the error of
triangulation is close to one.

Flow errs in two ways. Some of its errors are new in each frame: how large those are, innovations show. Others stay with
a piece of surface for many frames, so that they neither average out nor show in innovations: flow is found with whole
patches, which follow what lies beside a pixel as well. Across the epipolar line no error at all is hidden: what misses
it by much follows something that moves on its own.

Source: Matthies, Kanade and Szeliski, "Kalman Filter-based Algorithms for Estimating Depth from Image Sequences"
(1989); Engel, Sturm and Cremers, "Semi-Dense Visual Odometry for a Monocular Camera" (2013); Mehra, "Approaches to
Adaptive Filtering" (1972), for variances from innovations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from flowodom.depth import FramePair, InverseDepth
from flowodom.flow.consistency import FLOW_NOISE, shrink
from flowodom.frame import Frame
from flowodom.geometry import PinholeCamera, se3

CELL = 2
"""Pixels of the dense grid, each way, that share one depth: flow is hardly found any finer."""

GATE = 3.0
"""Deviations by which a measurement may differ from what was carried, before one of them must be wrong."""

MOST_MISS = 1.5
"""Forward-backward error, pixels, above which a pixel counts as occluded and starts anew."""

OFF_LINE = 0.1
"""Pixels by which even the surest flow may miss the epipolar line."""

DISTRUST = 4.0
"""Growth of the variance where flow contradicts what was carried, or misses the line of all that stands still."""

FORGETTING = 1.1
"""Growth of the carried variance per frame, for interpolation and small model errors."""

SYSTEMATIC = 0.08
"""Deviation, pixels, of the errors of flow that last. Measured on fifteen rendered worlds."""

REACH = 3.0
"""Pixels by which flow may be that of a place beside: half a patch."""

MEMORY = 0.2
"""Share by which one frame changes how large the errors of flow are taken to be that are new in each."""

LEAST_NOISE = 0.01
"""Least factor by which those are believed to be smaller than flow says, squared."""

LEAST_RELATIVE = 0.01
"""Least relative deviation that the filter ever claims."""

MOST_RELATIVE = 0.5
"""Greatest relative deviation at which inverse depth counts as known."""

THINNED = 4
"""Of so many rows and columns one tells how large errors are."""

TAIL, TAIL_SQUARE = 0.8, 1.642
"""Share of the errors by which they are judged, as their tails are heavy, and the square of a normal deviate there."""


@dataclass(frozen=True)
class Belief(InverseDepth):
    """What the filter tells, and what it goes on from.

    Attributes:
        whole: The same with the pixels that are too unsure to be told. Of those, the ones whose errors make them near
            are told first; a filter that began anew with all others would take what is far for near.
    """

    whole: InverseDepth

    @classmethod
    def of(cls, whole: InverseDepth) -> Belief:
        """Tells what is known of all that is believed."""
        mean, variance = whole.mean, whole.variance
        known = (mean > 0) & (variance < (MOST_RELATIVE * mean) ** 2)
        return cls(whole.camera, torch.where(known, mean, torch.nan), torch.where(known, variance, torch.inf), whole)

    def scaled(self, factor: float) -> Belief:
        """See ``InverseDepth``."""
        return Belief.of(self.whole.scaled(factor))


class FilterDepth:
    """The recursive filter; it works on the field of the previous frame, which is handed in.

    Args:
        device: Torch device of the fields.

    Attributes:
        noise: A scalar: by which factor the squares of those errors of flow that are new in each frame exceed what flow
            says of its errors; NaN before there is an innovation to tell it.
    """

    metric = False

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = device
        self.noise = torch.full((), torch.nan, device=device)

    def observe(self, frame: Frame) -> InverseDepth | None:
        """Returns None: one image of one camera tells no depth by itself."""
        return None

    def begin(self, frame: Frame) -> None:
        """Has nothing to do; see ``DepthSource``."""

    def fuse(self, observed: InverseDepth | None, previous: InverseDepth | None, pair: FramePair) -> Belief:
        """Carries the previous field to the current frame and corrects it; see ``DepthSource``."""
        dense, motion = pair.camera, pair.motion
        camera = dense.resized(dense.width // CELL, dense.height // CELL)
        back, said = (
            shrink(field, camera.height, camera.width) for field in (pair.flow.backward, pair.flow.backward_variance)
        )
        scale = back.new_tensor((camera.width / dense.width, camera.height / dense.height))
        back = back * scale[:, None, None]
        here = camera.pixels(device=self._device).movedim(-1, 0)
        there = back + here
        visible = camera.contains(there.movedim(0, -1)) & (2 * (said - FLOW_NOISE**2) < MOST_MISS**2)

        fresh = said * (self.noise.nan_to_num(1.0) * scale.prod())
        lasting = (REACH / CELL) ** 2 * _slope(back) + (SYSTEMATIC / CELL) ** 2
        seen = _triangulate(camera, here, there, (fresh, lasting), motion, pair.covariance)
        mean, variance = seen.mean, seen.fresh + seen.lasting
        if previous is not None:
            before = previous.whole if isinstance(previous, Belief) else previous
            carried, carried_variance = _carry(camera, there, before, motion)
            self._follow(*(_thinned(field) for field in (mean - carried, seen.fresh, variance + carried_variance)))
            mean, variance = combine(carried, carried_variance, mean, variance)
            variance = torch.where(seen.astray, DISTRUST * variance, variance)
        variance = torch.maximum(variance, (LEAST_RELATIVE * mean) ** 2)
        # Nothing is behind the camera, so what is told to be there was followed wrongly.
        usable = visible & variance.isfinite() & (mean > -GATE * variance.sqrt())
        mean, variance = torch.where(usable, mean, torch.nan), torch.where(usable, variance, torch.inf)
        return Belief.of(InverseDepth(camera, mean, variance))

    def complete(self, known: InverseDepth, frame: Frame) -> InverseDepth:
        """Returns ``known``: there is nothing to add. See ``DepthSource``."""
        return known

    def _follow(self, innovation: Tensor, fresh: Tensor, variance: Tensor) -> None:
        """Updates ``noise`` by innovations (H, W), of which a part of the variance, ``fresh``, is its own doing."""
        squared = innovation.square()
        # What contradicts what was carried is no noise.
        excess = _excess(torch.where(squared < GATE**2 * variance, squared / fresh, torch.nan))
        found = (self.noise.nan_to_num(1.0) * excess).clamp_min(LEAST_NOISE)
        before = torch.where(self.noise.isnan(), found, self.noise)
        self.noise = torch.where(found.isnan(), self.noise, before.lerp(found, MEMORY))


def _slope(flow: Tensor) -> Tensor:
    """Returns by how much a flow (2, H, W) changes from pixel to pixel, squared, (H, W), over two to either side."""
    squared = torch.zeros_like(flow[0])
    squared[:, 2:-2] += (flow[:, :, 4:] - flow[:, :, :-4]).square_().sum(0)
    squared[2:-2] += (flow[:, 4:] - flow[:, :-4]).square_().sum(0)
    return squared.mul_(1 / 16)


class _Triangulated(NamedTuple):
    """What the flow of one frame tells of inverse depth.

    Attributes:
        mean: (H, W), NaN unknown.
        fresh: (H, W) variance by errors that are new in each frame, infinite where unknown.
        lasting: (H, W) variance by errors that last.
        astray: (H, W) bool: pixels that have left their epipolar line, so that they tell nothing.
    """

    mean: Tensor
    fresh: Tensor
    lasting: Tensor
    astray: Tensor


def _triangulate(
    camera: PinholeCamera,
    here: Tensor,
    there: Tensor,
    pixel_variance: tuple[Tensor, Tensor],
    motion: Tensor,
    covariance: Tensor,
) -> _Triangulated:
    """Triangulates pixels ``here`` that were seen before at ``there``, (2, H, W) each.

    Rows as in ``PinholeCamera.epipolar_rows``, a component at a time. The variances (H, W) of ``there`` are those by
    errors that are new and by errors that last. What misses the epipolar line is off along it by as much.
    """
    fresh, lasting = pixel_variance
    back = se3.inverse(motion).to(here)
    shift = back[:3, 3]
    ray = _turned(camera, here, back[:3, :3])
    x, y = (there[0] - camera.cx) / camera.fx, (there[1] - camera.cy) / camera.fy
    a_u, a_v = ray[0] - x * ray[2], ray[1] - y * ray[2]
    b_u, b_v = shift[0] - x * shift[2], shift[1] - y * shift[2]
    per_pixel = 1 / (b_u * b_u + b_v * b_v).clamp_min(1e-12)
    rho = -(a_u * b_u + a_v * b_v) * per_pixel
    # Off the epipolar line by |a + rho b|, the part of a across b.
    miss = (a_u * b_v - a_v * b_u).square() * (camera.focal**2 * per_pixel)
    astray = miss.sqrt() > GATE * (fresh * _excess(_thinned(miss) / _thinned(fresh))).sqrt() + OFF_LINE / CELL
    per_pixel = per_pixel / camera.focal**2
    baseline = (covariance[:3, :3].trace() / shift.double().square().sum().clamp_min(1e-12)).to(here)
    variance = torch.maximum(fresh, miss) * per_pixel + rho * rho * baseline
    return _Triangulated(
        torch.where(astray, torch.nan, rho), torch.where(astray, torch.inf, variance), lasting * per_pixel, astray
    )


def _turned(camera: PinholeCamera, pixels: Tensor, rotation: Tensor) -> list[Tensor]:
    """Returns the components (H, W), one a row of ``rotation`` (R, 3), of the turned rays of pixels (2, H, W)."""
    x, y = (pixels[0] - camera.cx) / camera.fx, (pixels[1] - camera.cy) / camera.fy
    return [row[0] * x + row[1] * y + row[2] for row in rotation]


def _carry(camera: PinholeCamera, there: Tensor, previous: InverseDepth, motion: Tensor) -> tuple[Tensor, Tensor]:
    """Returns inverse depth and variance (H, W), now, of what the previous field shows at ``there`` (2, H, W)."""
    rho, variance = previous.at(camera, there.movedim(0, -1))
    rotation, translation = motion[:3, :3].to(there), motion[:3, 3].to(there)
    (turned,) = _turned(camera, there, rotation[2:])
    stretch = (turned + rho * translation[2]).clamp_min(1e-3)
    slope = turned / (stretch * stretch)
    carried = FORGETTING * variance * slope * slope
    return rho / stretch, torch.where(variance.isfinite(), carried, torch.inf)


def _thinned(field: Tensor) -> Tensor:
    """Returns every so manieth row and column of a field (H, W): a quantile of all of them would cost too much."""
    return field[::THINNED, ::THINNED]


def _excess(squares: Tensor) -> Tensor:
    """Returns by which factor squares (H, W), NaN unknown, exceed those of normal deviates, at the tail."""
    return squares.nanquantile(TAIL) / TAIL_SQUARE


def combine(mean_a: Tensor, variance_a: Tensor, mean_b: Tensor, variance_b: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the product of two Gaussians; where they contradict each other the surer stays, less sure than before.

    An unknown mean (NaN) comes with an infinite variance and leaves the other as it is.
    """
    a_known, b_known = variance_a.isfinite(), variance_b.isfinite()
    information_a, information_b = 1 / variance_a, 1 / variance_b
    both = (information_a * mean_a.nan_to_num() + information_b * mean_b.nan_to_num()) / (information_a + information_b)
    variance = 1 / (information_a + information_b)
    clash = a_known & b_known & ((mean_a - mean_b) ** 2 > GATE**2 * (variance_a + variance_b))
    surer = torch.where(variance_a < variance_b, mean_a, mean_b)
    mean = torch.where(clash, surer, both)
    return mean, torch.where(clash, DISTRUST * torch.minimum(variance_a, variance_b), variance)
