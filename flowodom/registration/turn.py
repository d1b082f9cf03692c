"""How the cameras of a stereo pair are turned against each other beside what their calibration says, from their images.

A mounting that gives way, warmth, or a calibration of another day turns one camera by hundredths of a degree. Across
the line between them that shows at once: rows do not meet. Along it all disparities are off by about the same, by a
pixel or so, which one pair of images does not show. What is far then seems much nearer or farther than it is, and every
length is wrong with it. But when the rig moves, points pass by as fast as their true depths say: so the window of
keyframes finds the turn by which what the pair measures agrees with how points move.

Source: Dang, Hoffmann and Stiller, "Continuous Stereo Self-Calibration by Camera Parameter Tracking" (2009).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowodom.frame import OtherEye
from flowodom.geometry import se3

WANDER = 1e-5
"""By how much yaw changes, or a window is wrong about it, from keyframe to keyframe, radians, ..."""

ALIKE = 3e-5
"""... and by how much all windows err alike."""


@dataclass(frozen=True)
class Turn:
    """What is known of it.

    Attributes:
        eye: The other camera, as its calibration has it.
        angles: (3,) rotation vector, radians, by which what it sees is turned, in the axes of ``eye.upright``: pitch,
            yaw and roll.
        yaw_variance: Variance of yaw, as far as one window knows more than another.
        unknown: What that was before anything was known.
    """

    eye: OtherEye
    angles: Tensor
    yaw_variance: float
    unknown: float

    @classmethod
    def begin(cls, eye: OtherEye, deviation: float) -> Turn:
        """Returns what is known of a pair before its images have told: yaw is within ``deviation`` radians of zero."""
        return cls(eye, torch.zeros(3, dtype=torch.float64), deviation**2, deviation**2)

    def applied(self, eye: OtherEye) -> OtherEye:
        """Returns an eye that stands like this one, as it is turned by what is known."""
        axes = self.eye.motion[:3, :3] @ self.eye.upright.T
        turn = se3.matrix(axes @ se3.so3_exp(self.angles) @ axes.T, torch.zeros(3, dtype=torch.float64))
        return replace(eye, motion=turn @ self.eye.motion)

    def nearer_by_yaw(self, rays: Tensor) -> Tensor:
        """Returns by how much yaw of one radian makes what the first camera sees seem nearer than it is.

        Args:
            rays: (..., 3) rays of the first camera, z = 1.

        Returns:
            (...) difference of inverse depth, 1/m, for small angles and for what is far beside the baseline.
        """
        x, _, z = (rays @ self.eye.upright.T).unbind(-1)
        return -(x * x + z * z) / (z * self.eye.place.norm())

    @property
    def yaw_deviation(self) -> float:
        """Standard deviation of yaw, radians."""
        return math.sqrt(self.yaw_variance + ALIKE**2)

    def unit_deviation(self, rho: Tensor) -> float:
        """Returns the relative deviation of lengths that follows for what is seen at inverse depths (N,)."""
        return self.yaw_deviation / float((rho * self.eye.place.norm()).median())

    def levelled(self, pitch: float, roll: float) -> Turn:
        """Returns the same once rows have told that pitch and roll are greater by so much, radians."""
        return replace(self, angles=self.angles + self.angles.new_tensor((pitch, 0.0, roll)))

    def learn(self, yaw: float, variance: float) -> Turn:
        """Returns the same once motion has told that yaw is greater by so much, radians, with that variance."""
        angles = self.angles + self.angles.new_tensor((0.0, yaw, 0.0))
        return replace(self, angles=angles, yaw_variance=min(variance + WANDER**2, self.unknown))

    @property
    def verdict(self) -> str:
        """What is known, in words."""
        pitch, yaw, roll = (math.degrees(angle) for angle in self.angles.tolist())
        return f"yaw {yaw:.3f} ± {math.degrees(self.yaw_deviation):.3f}, pitch {pitch:.3f}, roll {roll:.3f} deg"
