"""What a unit of length is, and how well a single camera's is brought to metres."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from flowodom.depth import DepthSource
from flowodom.depth.fusion import FusedDepth
from flowodom.frame import Frame
from flowodom.geometry import se3
from flowodom.registration.ground import ground_height

WANDER = 0.003
"""Relative change of a single camera's scale from keyframe to keyframe, one standard deviation."""

TURNING = 0.15
"""The same for every radian by which it has turned meanwhile: what lenses are not as calibrated shows then."""

TAIL = 4.0
"""Degrees of freedom of heights above ground: how soon one that is far off is taken for that of something else."""

MOST_DEVIATION = 0.5
"""Relative deviation of a single-image field's metres from the truth, above which they are not taken for metres."""


class Scale(enum.Enum):
    """What the unit of length is."""

    UNKNOWN = "unknown"
    """Nothing but rotation has been seen so far."""
    FIRST_BASELINE = "first_baseline"
    """The distance between the first two views of a single camera."""
    LEARNED = "learned"
    """Metres, by the single-image field."""
    CAMERA_HEIGHT = "camera_height"
    """Metres, by the camera's height above the ground."""
    SENSOR = "sensor"
    """Metres, by a depth camera."""
    STEREO = "stereo"
    """Metres, by the distance between the cameras of a stereo rig."""


class Sight(Protocol):
    """What a camera sees, in a unit that may be another than the metre; see ``Tracker``."""

    def points(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns rays (M, 3) with z = 1, inverse depths (M,), their variances (M,)."""
        ...

    def been(self) -> Tensor:
        """Returns (K, 4, 4) poses at which the camera was before, as it sees them now."""
        ...


@dataclass(frozen=True)
class Unit:
    """A unit of length.

    Attributes:
        scale: What it is.
        variance: Of its logarithm, beside the metre's.
    """

    scale: Scale = Scale.UNKNOWN
    variance: float = 0.0

    @property
    def metric(self) -> bool:
        """Whether it is the metre, more or less well."""
        return self.scale not in (Scale.UNKNOWN, Scale.FIRST_BASELINE)

    @property
    def deviation(self) -> float | None:
        """Relative deviation from the metre; None where it is none."""
        return self.variance**0.5 if self.metric else None

    def by_height(self, camera_height: float, sight: Sight) -> tuple[Unit, float] | None:
        """Brings it to metres by the camera's height above the ground.

        Args:
            camera_height: That height, metres; zero where it is not known.
            sight: What the camera sees.

        Returns:
            The unit afterwards and the factor by which lengths are multiplied; None where no ground is seen.
        """
        if not camera_height > 0:
            return None
        been = sight.been()
        found = ground_height(*sight.points(), been[:, :3, 3])
        if found is None:
            return None
        height, relative = found
        factor, measured = camera_height / height, relative**2
        if self.scale is not Scale.CAMERA_HEIGHT:
            return Unit(Scale.CAMERA_HEIGHT, measured), factor
        # Kalman update of the logarithm of the scale, which wanders a little from keyframe to keyframe. What is far off
        # is most often another plane: as Student's t has it, it counts the less the farther it is.
        turned = float(se3.log(been[-1])[3:].norm())
        variance = self.variance + WANDER**2 + (TURNING * turned) ** 2
        surprise = math.log(factor) ** 2 / (variance + measured)
        measured *= (TAIL + surprise) / (TAIL + 1)
        gain = variance / (variance + measured)
        return replace(self, variance=variance * (1 - gain)), factor**gain

    def by_field(self, depth: DepthSource, frame: Frame, sight: Sight) -> tuple[Unit, float] | None:
        """Brings it to metres by the single-image field, once: it wanders less than the field does from view to view.

        Args:
            depth: The source of depth, of which the field may be a part.
            frame: The frame.
            sight: What the camera sees in it.

        Returns:
            See ``by_height``; None where the field knows no metres.
        """
        if self.metric or not isinstance(depth, FusedDepth) or depth.scale_deviation > MOST_DEVIATION:
            return None
        found = depth.metres(frame, *sight.points())
        if found is None:
            return None
        factor, deviation = found
        return Unit(Scale.LEARNED, deviation**2), factor
