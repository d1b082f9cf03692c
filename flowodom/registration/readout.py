"""How long a camera's image takes from the exposure of its first row to that of its last, from its images.

The shear of an image is how fast the camera moves times that time, which one camera never changes. How fast it moves
follows from its own poses before and after. So each image's shear is expected; and what its points tell of the shear,
beside that of the keyframe they are known from, is the time times the change of rate between both: a line through the
origin, whose slope is zero for a global shutter.

Source: Oth et al., "Rolling shutter camera calibration" (CVPR 2013), for the time of a row as an unknown; Hedborg et
al., "Rolling shutter bundle adjustment" (CVPR 2012), for the motion within an image from poses beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from flowodom.geometry import se3
from flowodom.registration.refine import Fit
from flowodom.registration.shear import Shear

SHORT = 0.003
"""Time of readout, seconds, below which a shutter counts as global, ..."""

SURE = 3.0
"""... and by how many standard deviations it must be known to be that short."""

KNOWN = 0.003
"""Standard deviation of the time of readout, seconds, up to which keyframes are freed from the shear that follows from
it, and not from that which their points told."""

QUICK = 0.03
"""Change of the rate of turning, radians per second, below which noise of the poses would be taken for it."""

LONGEST = 0.25
"""Time from the image before to the one after, seconds, up to which they tell how fast the camera moved between."""

BENT = 0.1
"""Share of the change of rate there by which that rate may be wrong."""

UNSTEADY = 0.5
"""Share of the usual change of rate, from one image to the next, by which the rate carried on from there may be."""

STEADY = 1e-5
"""Standard deviation of a shear that nothing known causes, radians or times inverse depth."""

REPEATED = 10.0
"""Images that err alike, since they are held against the same keyframe."""

NO_TWIST = torch.zeros(6, dtype=torch.float64)
"""No shear, or no rate."""


@dataclass(frozen=True)
class Exposure:
    """How one image was exposed.

    Attributes:
        shear: (6,) by which its points were freed from its shear, see ``registration.shear``.
        rate: (6,) twist per second of the camera meanwhile; None before anything is known of it.
        settled: Whether that is known from both sides, by the images before and after.
    """

    shear: Tensor
    rate: Tensor | None = None
    settled: bool = False

    def rescaled(self, factor: float) -> Exposure:
        """Returns the same with all lengths multiplied by ``factor``."""
        rate = None if self.rate is None else se3.rescaled(self.rate, factor)
        return replace(self, shear=se3.rescaled(self.shear, factor), rate=rate)


class _Told(NamedTuple):
    """What points of the last image told of its shear, see ``_shear_told``, and the keyframe they are known from."""

    information: Tensor
    vector: Tensor
    key: Exposure


@dataclass(frozen=True)
class Readout:
    """What is known of a camera's time of readout.

    Attributes:
        seconds: Time from first to last row, seconds; negative where the last is exposed first.
        variance: Its variance.
        stamp: Of the last image, seconds.
        last: That image.
        key: The newest keyframe.
        gap: Time from the image before to the last one, seconds.
        rate: (6,) twist per second of the camera between these.
        changing: (6,) by how much that usually changes from image to image, for translation and for rotation; None
            before it has.
        assumed: The time by which keyframes were freed from their shear; None before they are.
        told: What the last one told, which is understood with the next.
    """

    seconds: float
    variance: float
    stamp: float
    last: Exposure
    key: Exposure
    gap: float = math.inf
    rate: Tensor = NO_TWIST
    changing: Tensor | None = None
    assumed: float | None = None
    told: _Told | None = None

    @staticmethod
    def begin(stamp: float, seconds: float, deviation: float) -> Readout:
        """Returns what is known at a camera's first image, a keyframe.

        Args:
            stamp: Of the image, seconds.
            seconds: What the time of readout is said to be.
            deviation: By how much it may be something else; zero for not at all.
        """
        first = Exposure(NO_TWIST)
        return Readout(seconds, deviation**2, stamp, first, first)

    def anew(self, stamp: float) -> Readout:
        """Returns the same at an image, a keyframe, to which no motion is known; the stamp in seconds."""
        return Readout.begin(stamp, self.seconds, self.deviation)

    def keyframe(self) -> Readout:
        """Returns the same with the last image as the newest keyframe."""
        return replace(self, key=self.last)

    def rescaled(self, factor: float) -> Readout:
        """Returns the same with all lengths multiplied by ``factor``."""
        last, key = self.last.rescaled(factor), self.key.rescaled(factor)
        return replace(
            self,
            last=last,
            key=last if self.key is self.last else key,
            rate=se3.rescaled(self.rate, factor),
            changing=None if self.changing is None else se3.rescaled(self.changing, factor),
            told=None,
        )

    @property
    def deviation(self) -> float:
        """Standard deviation of ``seconds``."""
        return math.sqrt(self.variance)

    @property
    def doubt(self) -> float:
        """By how much, one standard deviation, keyframes may have been freed by a wrong time, seconds."""
        return math.hypot(self.deviation, self.seconds - (self.assumed or 0.0))

    @property
    def verdict(self) -> str:
        """Whether the shutter rolls, in words."""
        if abs(self.seconds) + SURE * self.deviation < SHORT:
            return "global"
        if abs(self.seconds) < max(SHORT, SURE * self.deviation):
            return "not told"
        return f"rolling, {1e3 * self.seconds:.0f} ms"

    def expect(self, motion: Tensor, before: Tensor, noise: Tensor, stamp: float) -> Shear:
        """Returns what is known of the shear of an image beside that of the newest keyframe.

        The camera is expected to go on as its rate has changed from the image before last to the last.

        Args:
            motion: (4, 4) ``T_current_keyframe``, as far as it is known.
            before: (4, 4) ``T_keyframe_previous``.
            noise: (6, 6) covariance of its right perturbation.
            stamp: Of the image, seconds.
        """
        gap = stamp - self.stamp
        mean = se3.log(motion @ before) / gap
        ahead = self._ahead(gap)
        rate = mean + ahead * (mean - self.rate)
        then = rate if self.key.rate is None else self.key.rate
        gain = 0.0 if self.key.rate is None else self.seconds * (1 + ahead) / gap
        changing = _lengths(mean) if self.changing is None else self.changing
        unsteady = (self.seconds**2 + self.variance) * (UNSTEADY * changing) ** 2
        covariance = self.variance * torch.outer(rate - then, rate - then) + gain**2 * noise
        covariance.diagonal().add_(unsteady + STEADY**2)
        constant = self.key.shear + self.seconds * (rate - then) - gain * gap * mean
        return Shear(constant, gain, before, torch.linalg.inv(covariance))

    def learn(self, motion: Tensor, stamp: float, fit: Fit) -> Readout:
        """Returns what is known after an image that was tracked.

        What the image tells is understood with the next one, by which it is known how fast the camera moved meanwhile.

        Args:
            motion: (4, 4) ``T_current_previous``.
            stamp: Of the image, seconds.
            fit: Of the image to the newest keyframe.
        """
        gap = stamp - self.stamp
        rate, ahead = se3.log(motion) / gap, self._ahead(gap)
        last, known, changing = self.last, self, None
        change = rate - self.rate
        if ahead:
            last = replace(last, rate=rate - ahead * change, settled=True)
            known = self._understood(rate - ahead * change, change)
            usual = _lengths(change)
            changing = usual if self.changing is None else ((self.changing**2 + usual**2) / 2).sqrt()
        elif last.rate is None:
            last = replace(last, rate=rate)
        key = last if self.key is self.last else self.key
        now, told = Exposure(fit.shear, rate + ahead * change), _Told(*_shear_told(fit), key)
        return replace(known, stamp=stamp, last=now, key=key, gap=gap, rate=rate, changing=changing, told=told)

    def bent(self, down: float) -> Tensor:
        """Returns (6,) by how much a motion from the newest keyframe is off per second that its readout takes.

        A keyframe that was not freed from its shear carries it along, and where its points are seen in other rows by
        now, it is not that of the image. Zero where it was freed.

        Args:
            down: Share of the image by which the keyframe's points have gone down.
        """
        if self.assumed is not None:
            return NO_TWIST
        return down * (self.rate if self.key.rate is None else self.key.rate)

    def freed(self, exposure: Exposure) -> Exposure:
        """Returns how an image is freed from its shear by what is known today."""
        if exposure.rate is None or self.variance > KNOWN**2:
            return exposure
        return replace(exposure, shear=self.seconds * exposure.rate)

    def freed_anew(self) -> Readout:
        """Returns the same after the newest keyframe was freed from its shear by what is known today.

        The last image's shear is known beside that of the keyframe alone, and changes with it.
        """
        key = self.freed(self.key)
        last = replace(self.last, shear=self.last.shear + key.shear - self.key.shear)
        assumed = self.assumed if self.variance > KNOWN**2 else self.seconds
        return replace(self, key=key, last=key if self.key is self.last else last, assumed=assumed)

    def _ahead(self, gap: float) -> float:
        """Returns from the middle of a gap to its end, in units of from the middle of the last one to that of it.

        It is zero where both together are so long that the one tells nothing of the other.
        """
        return gap / (gap + self.gap) if gap + self.gap < LONGEST else 0.0

    def _understood(self, rate: Tensor, change: Tensor) -> Readout:
        """Returns what is known after what the last image told, its rate (6,) being known, which was changing so."""
        if self.told is None or self.told.key.rate is None or not self.told.key.settled:
            return self
        changed = rate - self.told.key.rate
        if float(changed[3:].norm()) < QUICK:
            return self
        missed = torch.diag((self.seconds**2 + self.variance) * (BENT * _lengths(change)) ** 2)
        less = torch.linalg.inv(torch.eye(6, dtype=torch.float64) + self.told.information @ missed) / REPEATED
        information, vector = less @ self.told.information, less @ self.told.vector
        more = float(changed @ information @ changed)
        slope = float(changed @ (vector - information @ self.told.key.shear))
        if not math.isfinite(more + slope):
            return self
        share = 1 / (1 + self.variance * more)
        seconds = share * (self.seconds + self.variance * slope)
        # The first row of the next image cannot be exposed before the last one of this.
        return replace(self, seconds=min(max(seconds, -self.gap), self.gap), variance=share * self.variance)


def _shear_told(fit: Fit) -> tuple[Tensor, Tensor]:
    """Returns information (6, 6) of the shear, whatever the motion, and that times the shear that the matches tell."""
    motion, mixed, shear = fit.hessian[:6, :6], fit.hessian[:6, 6:], fit.hessian[6:, 6:]
    held = motion + 1e-9 * motion.diagonal().mean() * torch.eye(6, dtype=motion.dtype)
    by_shear = torch.linalg.solve(held, mixed).T
    information = shear - by_shear @ mixed
    vector = information @ fit.shear - (fit.gradient[6:] - by_shear @ fit.gradient[:6])
    return information / fit.noise_factor, vector / fit.noise_factor


def _lengths(twist: Tensor) -> Tensor:
    """Returns (6,) the length of a twist's translation, thrice, and that of its rotation, thrice."""
    return twist.reshape(2, 3).norm(dim=1).repeat_interleave(3)
