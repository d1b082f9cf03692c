"""Whether a camera's shutter rolls: the time from the exposure of its first row to that of its last, from its images.

The shear of an image is how fast the camera turns times that time, which one camera never changes. What the points of
an image tell of its shear, beside that of the keyframe they are known from, is therefore the time times the change of
the rate of turning between both: a line through the origin, whose slope is zero for a global shutter.

Source: Forssén and Ringaby, "Rectifying rolling shutter video from hand-held devices" (CVPR 2010) for a shear by the
camera's own rotation; Oth et al., "Rolling shutter camera calibration" (CVPR 2013) for the time of a row as an unknown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from flowodom.geometry import se3
from flowodom.registration.refine import Fit

DEVIATION = 0.02
"""Standard deviation of the time of readout before anything is known, seconds."""

SHORT = 0.003
"""Time of readout, seconds, below which a shutter counts as global, ..."""

SURE = 3.0
"""... and by how many standard deviations it must be known to be that short."""

QUICK = 0.05
"""Change of the rate of turning, radians per second, below which noise of the poses would be taken for it."""

LONGEST = 0.25
"""Time from the image before to the one after, seconds, up to which they tell how fast the camera turned between."""

BENT = 0.1
"""Share of the change of rate there by which that rate may be wrong."""

REPEATED = 10.0
"""Images that err alike, since they are held against the same keyframe."""


NO_TURN = torch.zeros(3, dtype=torch.float64)
"""No shear, or no rate of turning."""


@dataclass(frozen=True)
class Exposure:
    """How one image was exposed.

    Attributes:
        shear: (3,) by which its points were freed from its shear, see ``refine.Shutter``.
        rate: (3,) radians per second at which the camera turned meanwhile; None until the next image tells it.
    """

    shear: Tensor
    rate: Tensor | None = None


class _Told(NamedTuple):
    """What points of the last image told of its shear, see ``_shear_told``, and the keyframe they are known from."""

    information: Tensor
    vector: Tensor
    key: Exposure


@dataclass(frozen=True)
class Readout:
    """What is known of a camera's time of readout.

    Attributes:
        stamp: Of the last image, seconds.
        last: That image.
        key: The newest keyframe.
        gap: Time from the image before to the last one, seconds.
        rate: (3,) radians per second at which the camera turned between these.
        told: What the last one told, which is understood with the next.
        information: Inverse variance of the time of readout, seconds.
        vector: That, times the time.
    """

    stamp: float
    last: Exposure
    key: Exposure
    gap: float = math.inf
    rate: Tensor = NO_TURN
    told: _Told | None = None
    information: float = 1 / DEVIATION**2
    vector: float = 0.0

    @staticmethod
    def begin(stamp: float, known: Readout | None = None) -> Readout:
        """Returns what is known at a first image, a keyframe: what was known before; the stamp in seconds."""
        first = Exposure(NO_TURN)
        begun = Readout(stamp, first, first)
        return begun if known is None else replace(begun, information=known.information, vector=known.vector)

    def keyframe(self) -> Readout:
        """Returns the same with the last image as the newest keyframe."""
        return replace(self, key=self.last)

    @property
    def seconds(self) -> float:
        """Time from first to last row, seconds; negative where the last is exposed first."""
        return self.vector / self.information

    @property
    def deviation(self) -> float:
        """Standard deviation of ``seconds``."""
        return self.information**-0.5

    @property
    def short(self) -> bool:
        """Whether all rows are exposed at once, as far as matters, beyond doubt."""
        return abs(self.seconds) + SURE * self.deviation < SHORT

    @property
    def verdict(self) -> str:
        """The same in words."""
        if self.short:
            return "global"
        if abs(self.seconds) < max(SHORT, SURE * self.deviation):
            return "not told"
        return f"rolling, {1e3 * self.seconds:.0f} ms"

    def learn(self, motion: Tensor, stamp: float, fit: Fit) -> Readout:
        """Returns what is known after an image that was tracked.

        Args:
            motion: (4, 4) ``T_current_previous``.
            stamp: Of the image, seconds.
            fit: Of the image to the newest keyframe.
        """
        gap = stamp - self.stamp
        rate, last, known = se3.so3_log(motion[:3, :3]) / gap, self.last, self
        if gap + self.gap < LONGEST:
            change = rate - self.rate
            between = self.rate + change * self.gap / (gap + self.gap)
            last, known = replace(last, rate=between), self._understood(between, float(change.norm()))
        key = last if self.key is self.last else self.key
        told = _Told(*_shear_told(fit), key)
        return replace(known, stamp=stamp, last=Exposure(fit.shear), key=key, gap=gap, rate=rate, told=told)

    def _understood(self, rate: Tensor, change: float) -> Readout:
        """Returns what is known after what the last image told, its rate (3,) being known, which was changing so."""
        if self.told is None or self.told.key.rate is None:
            return self
        changed = rate - self.told.key.rate
        if float(changed.norm()) < QUICK:
            return self
        missed = (self.seconds**2 + self.deviation**2) * (BENT * change) ** 2
        less = torch.linalg.inv(torch.eye(3, dtype=torch.float64) + self.told.information * missed) / REPEATED
        information, vector = less @ self.told.information, less @ self.told.vector
        more = float(changed @ information @ changed)
        slope = float(changed @ (vector - information @ self.told.key.shear))
        if not math.isfinite(more + slope):
            return self
        return replace(self, information=self.information + more, vector=self.vector + slope)


def _shear_told(fit: Fit) -> tuple[Tensor, Tensor]:
    """Returns information (3, 3) of the shear, whatever the motion, and that times the shear that the matches tell."""
    motion, mixed, shear = fit.hessian[:6, :6], fit.hessian[:6, 6:], fit.hessian[6:, 6:]
    held = motion + 1e-9 * motion.diagonal().mean() * torch.eye(6, dtype=motion.dtype)
    by_shear = torch.linalg.solve(held, mixed).T
    information = shear - by_shear @ mixed
    vector = information @ fit.shear - (fit.gradient[6:] - by_shear @ fit.gradient[:6])
    return information / fit.noise_factor, vector / fit.noise_factor
