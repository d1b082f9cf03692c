"""All that is known of depth, together.

Motion tells depth through the filter, with errors that shrink frame by frame, of what has moved past the camera. The
single-image field tells it of every pixel of every image, with errors that neighbouring pixels and frames share. The
filter never learns of the field, so that the two stay independent: where somebody wants to know the depth of all
pixels their Gaussians are multiplied, and the field's one opinion is not counted anew with every frame. A depth camera
overrules both where it measures.

The field's unit is its own metre, the filter's that of the odometry. A Kalman filter on the logarithm of their ratio
follows it, from the pixels that the filter has triangulated well; how far those scatter about the field says how far
the field is to be trusted in this scene. What the filter believes of pixels that it does not tell yet counts as well.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from flowodom.depth import FramePair, InverseDepth
from flowodom.depth.filter import Belief, FilterDepth
from flowodom.depth.measured import MeasuredDepth
from flowodom.frame import Frame

SURE = 0.35
"""Relative deviation of triangulated depth below which it tells the ratio of the units."""

LEAST_SHARE = 0.03
"""Share of the pixels that must be triangulated so well to tell the ratio of the units."""

LEAST_POINTS = 30
"""Points of known depth that must be there to tell how many metres the odometry's unit has."""

FRAME_DEVIATION = 0.1
"""Relative deviation of the field's scale from frame to frame."""

WANDER = 0.03
"""Relative change of the ratio of the units from one frame to the next, one standard deviation: what the field takes a
metre to be changes with what it sees. Measured on eight rendered worlds."""

TRUST_RATE = 0.05
"""Share by which one frame changes how far the field is trusted."""

NORMAL_MEDIAN = 0.455
"""Median of the square of a normal deviate."""


class SingleImage(Protocol):
    """Anything that tells depth from one image, in metres.

    Attributes:
        scale_deviation: Relative deviation of its metres from the truth, from one scene to another.
    """

    @property
    def scale_deviation(self) -> float:
        """See the class."""
        ...

    def observe(self, frame: Frame) -> InverseDepth | None:
        """Returns inverse depth, 1/m, at any resolution."""
        ...


class FusedDepth:
    """Field, filter and, where there is one, a depth camera.

    Args:
        field: The single-image field, or what stands in for it.
        sensor: The depth camera, or the stereo pair; None for a single camera.
        device: Torch device of the fields.
    """

    def __init__(
        self, field: SingleImage, sensor: MeasuredDepth | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.metric = sensor is not None
        self._field, self._sensor, self._filter = field, sensor, FilterDepth(device)
        self._log_ratio, self._excess = torch.zeros((), device=device), torch.ones((), device=device)
        self._variance = torch.full((), torch.inf, device=device)
        # A frame is asked for twice, as the current one and then as the previous.
        thread = ThreadPoolExecutor(1, "field")
        self._asked = lru_cache(2)(lambda frame: thread.submit(self._field.observe, frame))
        self._completed = lru_cache(2)(self._complete)

    @property
    def scale_deviation(self) -> float:
        """Relative deviation of the field's metres from the truth."""
        return self._field.scale_deviation

    def observe(self, frame: Frame) -> InverseDepth | None:
        """Returns what a depth camera measured; the field waits for ``complete``, as its unit is another."""
        return None if self._sensor is None else self._sensor.observe(frame)

    def begin(self, frame: Frame) -> None:
        """Asks the field on a thread of its own; see ``DepthSource``."""
        self._asked(frame)

    def fuse(self, observed: InverseDepth | None, previous: InverseDepth | None, pair: FramePair) -> InverseDepth:
        """Carries and corrects what is known by motion, and overrules it by what a depth camera measured.

        The result is on the depth camera's grid where there is one. See ``DepthSource``.
        """
        belief = self._filter.fuse(None, previous, pair)
        if observed is None:
            return belief
        known, there = belief.on(observed.camera), observed.variance.isfinite()
        mean = torch.where(there, observed.mean, known.mean)
        return replace(observed, mean=mean, variance=torch.where(there, observed.variance, known.variance))

    def complete(self, known: InverseDepth, frame: Frame) -> InverseDepth:
        """Multiplies what is known with what the field says of the frame, once; see ``DepthSource``."""
        return self._completed(known, frame)

    def _complete(self, known: InverseDepth, frame: Frame) -> InverseDepth:
        field = self._asked(frame).result()
        if field is None:
            return known
        self._align(known.on(field.camera), field)
        ratio = self._log_ratio.exp()
        guess = torch.stack((ratio * field.mean, ratio**2 * self._excess * field.variance))[None]
        guess = functional.interpolate(guess, known.mean.shape, mode="bilinear", align_corners=False)[0]
        believed = known.whole if isinstance(known, Belief) else known
        mean, variance = _in_front(*_product(believed.mean, believed.variance, *guess))
        # All pixels share the ratio's error, so it does not weigh the two against each other at any one of them; what
        # comes from the field is that much less sure, and nothing at all before there is a ratio.
        shared = (variance / guess[1]).clamp_max(1) * guess[0]
        found = self._variance.isfinite()
        mean = torch.where(found, mean, known.mean)
        variance = torch.where(found, variance + self._variance * shared**2, known.variance)
        return InverseDepth(known.camera, mean, variance)

    def metres(self, frame: Frame, rays: Tensor, rho: Tensor, variance: Tensor) -> tuple[float, float] | None:
        """Returns how many metres the odometry's unit of length has, by the field.

        Args:
            frame: A frame.
            rays: (M, 3) rays of points that it sees, z = 1, optical frame.
            rho: (M,) their inverse depths, one over the odometry's unit.
            variance: (M,) of those.

        Returns:
            Metres, and their relative deviation; None where too few points are known.
        """
        field = self._asked(frame).result()
        if field is None:
            return None
        expected = field.at(frame.camera, frame.camera.project(rays).to(field.mean.device))[0].to(rho.device)
        sure = (rho > 0) & (variance < (SURE * rho) ** 2) & expected.isfinite()
        if int(sure.sum()) < LEAST_POINTS:
            return None
        log_ratio = float((rho[sure] / expected[sure]).log().median())
        self._log_ratio = torch.full_like(self._log_ratio, log_ratio)
        self._variance = self._variance.clamp_max(FRAME_DEVIATION**2)
        return math.exp(log_ratio), math.hypot(FRAME_DEVIATION, self.scale_deviation)

    def rescale(self, factor: float) -> None:
        """Follows the odometry, all of whose lengths are multiplied by ``factor``."""
        self._log_ratio = self._log_ratio - math.log(factor)

    def _align(self, known: InverseDepth, field: InverseDepth) -> None:
        """Updates the ratio of the units, and the trust in the field, from one frame; on the device alone."""
        relative, guessed = known.variance / known.mean**2, field.variance / field.mean**2
        sure = relative < SURE**2
        enough = sure.float().mean() >= LEAST_SHARE
        difference = torch.where(sure, (known.mean / field.mean).log(), torch.nan)
        measured = difference.nanmedian()
        spread = (difference - measured).square().nanmedian() / NORMAL_MEDIAN
        relative, guessed = (torch.where(sure, part, torch.nan).nanmedian() for part in (relative, guessed))
        # A scene in which the field does better than on average does not make it better than it was found to be.
        excess = ((spread - relative) / guessed).clamp_min(1)

        noise, before = FRAME_DEVIATION**2 + relative, self._variance + WANDER**2
        gain = torch.where(before.isinf(), 1, before / (before + noise))
        rate = gain.clamp_min(TRUST_RATE)
        self._log_ratio = torch.where(enough, torch.lerp(self._log_ratio, measured, gain), self._log_ratio)
        self._excess = torch.where(enough, torch.lerp(self._excess, excess, rate), self._excess)
        self._variance = torch.where(enough, gain * noise, before)


def _product(mean_a: Tensor, variance_a: Tensor, mean_b: Tensor, variance_b: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the product of two Gaussians, less sure the farther they are apart.

    An unknown mean comes with an infinite variance and leaves the other as it is; of two unknown ones nothing is known.

    Source: Birge, "The Calculation of Errors by the Method of Least Squares" (1932), for what contradicts itself.
    """
    information_a, information_b = 1 / variance_a, 1 / variance_b
    total = information_a + information_b
    mean = (information_a * mean_a.nan_to_num() + information_b * mean_b.nan_to_num()) / total
    birge = ((mean_a - mean_b).square() / (variance_a + variance_b)).nan_to_num().clamp_min(1)
    return mean, birge / total


def _in_front(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and variance (H, W) of what Gaussians say of inverse depth, as nothing is seen behind the camera."""
    deviation = variance.sqrt()
    level = mean / deviation
    hazard = (-0.5 * level.square() - 0.5 * math.log(2 * math.pi) - torch.special.log_ndtr(level)).exp()
    return mean + deviation * hazard, variance * (1 - hazard * (hazard + level))
