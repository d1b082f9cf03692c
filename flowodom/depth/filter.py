"""Depth from one moving camera: a recursive inverse-depth filter on every pixel.

Each frame, the field of the previous frame is carried along the flow and through the camera's motion, and corrected by
what epipolar triangulation of the flow measures. Both are Gaussians in inverse depth, in which the error of
triangulation is close to one.

Source: Matthies, Kanade and Szeliski, "Kalman Filter-based Algorithms for Estimating Depth from Image Sequences"
(1989); Engel, Sturm and Cremers, "Semi-Dense Visual Odometry for a Monocular Camera" (2013).
"""

from __future__ import annotations

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

OFF_LINE = 0.3
"""Pixels by which even the surest flow may miss the epipolar line."""

FORGETTING = 1.1
"""Growth of the carried variance per frame, for interpolation and small model errors."""

LEAST_RELATIVE = 0.01
"""Least relative deviation that the filter ever claims: flow errors of neighbouring frames are not independent."""

MOST_RELATIVE = 0.5
"""Greatest relative deviation at which inverse depth counts as known."""

THINNED = 2
"""Of so many rows and columns one tells how large the innovations are."""

TAIL, TAIL_SQUARE = 0.8, 1.642
"""Share of the errors by which they are judged, as their tails are heavy, and the square of a normal deviate there."""


class FilterDepth:
    """The recursive filter; it works on the field of the previous frame, which is handed in.

    Args:
        device: Torch device of the fields.

    Attributes:
        innovation: A scalar: by which factor the squares of the last frame's innovations exceed their variance, 1 where
            flow is as sure as it says and its errors are new in every frame; NaN before there is any.
    """

    metric = False

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = device
        self.innovation = torch.full((), torch.nan, device=device)

    def observe(self, frame: Frame) -> InverseDepth | None:
        """Returns None: one image of one camera tells no depth by itself."""
        return None

    def begin(self, frame: Frame) -> None:
        """Has nothing to do; see ``DepthSource``."""

    def fuse(self, observed: InverseDepth | None, previous: InverseDepth | None, pair: FramePair) -> InverseDepth:
        """Carries the previous field to the current frame and corrects it; see ``DepthSource``."""
        dense, motion = pair.camera, pair.motion
        camera = dense.resized(dense.width // CELL, dense.height // CELL)
        back, variance = (
            shrink(field, camera.height, camera.width) for field in (pair.flow.backward, pair.flow.backward_variance)
        )
        scale = back.new_tensor((camera.width / dense.width, camera.height / dense.height))
        here = camera.pixels(device=self._device).movedim(-1, 0)
        there = back * scale[:, None, None] + here
        visible = camera.contains(there.movedim(0, -1)) & (2 * (variance - FLOW_NOISE**2) < MOST_MISS**2)

        measured, measured_variance = _triangulate(
            camera, here, there, variance * scale.prod(), motion, pair.covariance
        )
        if previous is None:
            mean, variance = measured, measured_variance
        else:
            carried, carried_variance = _carry(camera, there, previous, motion)
            self.innovation = _excess((measured - carried).square() / (measured_variance + carried_variance))
            mean, variance = combine(carried, carried_variance, measured, measured_variance)
        variance = torch.maximum(variance, (LEAST_RELATIVE * mean) ** 2)
        known = visible & (mean > 0) & (variance < (MOST_RELATIVE * mean) ** 2)
        return InverseDepth(camera, torch.where(known, mean, torch.nan), torch.where(known, variance, torch.inf))

    def complete(self, known: InverseDepth, frame: Frame) -> InverseDepth:
        """Returns ``known``: there is nothing to add. See ``DepthSource``."""
        return known


def _triangulate(
    camera: PinholeCamera, here: Tensor, there: Tensor, pixel_variance: Tensor, motion: Tensor, covariance: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the inverse depth (H, W) of pixels ``here`` seen before at ``there``, (2, H, W) each, and its variance.

    Rows as in ``PinholeCamera.epipolar_rows``, a component at a time.
    """
    back = se3.inverse(motion).to(here)
    shift = back[:3, 3]
    ray = _turned(camera, here, back[:3, :3])
    x, y = (there[0] - camera.cx) / camera.fx, (there[1] - camera.cy) / camera.fy
    a_u, a_v = ray[0] - x * ray[2], ray[1] - y * ray[2]
    b_u, b_v = shift[0] - x * shift[2], shift[1] - y * shift[2]
    bb = (b_u * b_u + b_v * b_v).clamp_min(1e-12)
    rho = -(a_u * b_u + a_v * b_v) / bb
    # Off the epipolar line by |a + rho b|, the part of a across b.
    across = a_u * b_v - a_v * b_u
    off_line = across.abs() * bb.rsqrt() * camera.focal
    baseline = (covariance[:3, :3].trace() / shift.double().square().sum().clamp_min(1e-12)).to(here)
    variance = pixel_variance / camera.focal**2 / bb + rho * rho * baseline
    good = off_line < GATE * pixel_variance.sqrt() + OFF_LINE / CELL
    return torch.where(good, rho, torch.nan), torch.where(good, variance, torch.inf)


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


def _excess(squares: Tensor) -> Tensor:
    """Returns by which factor squares (H, W), NaN unknown, exceed those of normal deviates, at the quantile."""
    return squares[::THINNED, ::THINNED].nanquantile(TAIL) / TAIL_SQUARE


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
    return mean, torch.where(clash, 4 * torch.minimum(variance_a, variance_b), variance)
