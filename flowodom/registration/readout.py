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


@dataclass(frozen=True)
class Exposure:
    """How one image was exposed.

    Attributes:
        shear: (3,) by which its points were freed from its shear, see ``refine.Shutter``.
        rate: (3,) radians per second at which the camera turned meanwhile; None before anything is known of it.
        settled: Whether the rate is known from both sides, the images before and after.
    """

    shear: Tensor
    rate: Tensor | None = None
    settled: bool = False


class _Told(NamedTuple):
    """What the points of the last image told of its shear, as ``Fit`` has it, and the keyframe they are known from."""

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
        told: What the last one told, which is understood with the next.
        information: Inverse variance of the time of readout, seconds.
        vector: That, times the time.
    """

    stamp: float
    last: Exposure
    key: Exposure
    gap: float = math.inf
    told: _Told | None = None
    information: float = 1 / DEVIATION**2
    vector: float = 0.0

    @staticmethod
    def of(stamp: float, shear: Tensor) -> Readout:
        """Returns what is known at the first image, a keyframe of a (3,) shear; the stamp in seconds."""
        first = Exposure(shear)
        return Readout(stamp, first, first)

    def anew(self, stamp: float, shear: Tensor) -> Readout:
        """Returns the same at a keyframe to which no motion is known."""
        return replace(Readout.of(stamp, shear), information=self.information, vector=self.vector)

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
        if last.rate is None:
            last = replace(last, rate=rate)
        elif gap + self.gap < LONGEST:
            change = rate - last.rate
            last = Exposure(last.shear, last.rate + change * self.gap / (gap + self.gap), settled=True)
            known = self._understood(last, float(change.norm()))
        key = last if self.key is self.last else self.key
        told = _Told(fit.shear_information / fit.noise_factor, fit.shear_vector / fit.noise_factor, key)
        return replace(known, stamp=stamp, last=Exposure(fit.shear, rate), key=key, gap=gap, told=told)

    def _understood(self, last: Exposure, change: float) -> Readout:
        """Returns what is known after what the last image told, whose rate has settled after a ``change``."""
        if self.told is None or not self.told.key.settled:
            return self
        changed = _known(last.rate) - _known(self.told.key.rate)
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


def _known(rate: Tensor | None) -> Tensor:
    assert rate is not None
    return rate
