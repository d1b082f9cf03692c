"""How cameras and objects move: functions of time that give rigid poses, smooth and reproducible.

A motion is called with a time in seconds and returns poses in float64. World and body frames have x forward, y left and
z up (REP-103); camera paths return the optical frame (z forward, x right, y down).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from flowodom.geometry import se3

OPTICAL_FROM_BODY = torch.tensor(
    [[0.0, -1.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]], dtype=torch.float64
)
"""``T_optical_body`` of a camera at the origin of its body that looks along x."""


class Motion(Protocol):
    """A rigid pose as a function of time."""

    def __call__(self, time: float | Tensor) -> Tensor:
        """Returns the (..., 4, 4) float64 poses ``T_world_body`` at (...) times, seconds."""
        ...


def level_pose(position: Tensor, angles: Tensor) -> Tensor:
    """Returns the (..., 4, 4) poses at (..., 3) positions with (..., 3) yaw, pitch and roll, radians (z-y-x order)."""
    axes = torch.eye(3, dtype=position.dtype)[[2, 1, 0]]
    rotation = se3.so3_exp(angles[..., None] * axes)
    return se3.matrix(rotation[..., 0, :, :] @ rotation[..., 1, :, :] @ rotation[..., 2, :, :], position)


def _time(time: float | Tensor) -> Tensor:
    return torch.as_tensor(time, dtype=torch.float64)


@dataclass(frozen=True)
class Waves:
    """Sums of sinusoids: one smooth, bounded, band-limited signal a channel.

    Attributes:
        amplitude: (C, K).
        rate: (C, K) radians a second.
        phase: (C, K) radians.
    """

    amplitude: Tensor
    rate: Tensor
    phase: Tensor

    def __call__(self, time: float | Tensor) -> Tensor:
        """Returns the (..., C) signals at (...) times, seconds."""
        return (self.amplitude * torch.sin(self.rate * _time(time)[..., None, None] + self.phase)).sum(-1)

    @staticmethod
    def random(speeds: list[float], generator: torch.Generator, *, band: tuple[float, float], count: int = 4) -> Waves:
        """Draws waves whose derivatives have the given root mean squares.

        Args:
            speeds: Root mean square of the derivative of each channel, units a second.
            generator: Source of randomness.
            band: Least and greatest frequency, hertz.
            count: Sinusoids in a channel.
        """
        shape = (len(speeds), count)
        low, high = math.log(band[0]), math.log(band[1])
        frequency = torch.exp(low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64))
        rate = 2 * math.pi * frequency
        share = 0.5 + torch.rand(shape, generator=generator, dtype=torch.float64)
        share = share / share.norm(dim=-1, keepdim=True)
        phase = 2 * math.pi * torch.rand(shape, generator=generator, dtype=torch.float64)
        wanted = torch.tensor(speeds, dtype=torch.float64)[:, None]
        return Waves(math.sqrt(2) * wanted * share / rate, rate, phase)

    def __add__(self, other: Waves) -> Waves:
        """Returns the waves of both, channel by channel."""
        return Waves(
            torch.cat((self.amplitude, other.amplitude), -1),
            torch.cat((self.rate, other.rate), -1),
            torch.cat((self.phase, other.phase), -1),
        )


STILL = Waves(*(torch.zeros(6, 1, dtype=torch.float64) for _ in range(3)))
"""Six channels that stay at zero."""


@dataclass(frozen=True)
class Wander:
    """A straight line at constant velocity with waves in position and attitude on it.

    Attributes:
        position: (3,) metres at time zero, before the waves.
        angles: (3,) yaw, pitch, roll, radians, before the waves.
        velocity: (3,) metres a second, world frame.
        spin: (3,) rate of yaw, pitch and roll, radians a second.
        waves: Six channels: x y z in metres, world frame, then yaw, pitch and roll in radians.
    """

    position: tuple[float, float, float] = (0.0, 0.0, 0.0)
    angles: tuple[float, float, float] = (0.0, 0.0, 0.0)
    velocity: tuple[float, float, float] = (0.0, 0.0, 0.0)
    spin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    waves: Waves = STILL

    def __call__(self, time: float | Tensor) -> Tensor:
        """Returns the (..., 4, 4) poses at (...) times."""
        t = _time(time)
        start = torch.tensor((*self.position, *self.angles), dtype=torch.float64)
        rate = torch.tensor((*self.velocity, *self.spin), dtype=torch.float64)
        state = start + rate * t[..., None] + self.waves(t)
        return level_pose(state[..., :3], state[..., 3:])


@dataclass(frozen=True)
class Loop:
    """A wheeled robot on a closed, wavy, planar curve, always heading along it.

    Attributes:
        centre: (3,) middle of the curve, metres; z is the height that is kept.
        radius: (2,) half axes of the ellipse along x and y, metres.
        wobble: Relative size of the third harmonic that makes the ellipse wavy; below 0.3 it stays smooth.
        rate: Radians of the ellipse a second.
        phase: Radians of the ellipse at time zero.
    """

    centre: tuple[float, float, float]
    radius: tuple[float, float]
    wobble: float
    rate: float
    phase: float

    def __call__(self, time: float | Tensor) -> Tensor:
        """Returns the (..., 4, 4) poses at (...) times."""
        angle = self.phase + self.rate * _time(time)
        stretch = 1 + self.wobble * torch.cos(3 * angle)
        slope = -3 * self.wobble * torch.sin(3 * angle)
        x = self.radius[0] * stretch * torch.cos(angle)
        y = self.radius[1] * stretch * torch.sin(angle)
        by_x = self.radius[0] * (slope * torch.cos(angle) - stretch * torch.sin(angle))
        by_y = self.radius[1] * (slope * torch.sin(angle) + stretch * torch.cos(angle))
        sign = math.copysign(1.0, self.rate)
        yaw = torch.atan2(sign * by_y, sign * by_x)
        zero = torch.zeros_like(x)
        position = torch.stack((x, y, zero), -1) + torch.tensor(self.centre, dtype=torch.float64)
        return level_pose(position, torch.stack((yaw, zero, zero), -1))


@dataclass(frozen=True)
class Following:
    """Something that keeps near a leader: a motion relative to the leader's level heading some time ago.

    Attributes:
        leader: A camera path (optical).
        delay: How far behind in time it follows, seconds.
        offset: Motion in the leader's level frame: x along its horizontal view direction, z up.
    """

    leader: Motion
    delay: float
    offset: Motion

    def __call__(self, time: float | Tensor) -> Tensor:
        """Returns the (..., 4, 4) poses at (...) times."""
        pose = self.leader(_time(time) - self.delay)
        yaw = torch.atan2(pose[..., 1, 2], pose[..., 0, 2])
        zero = torch.zeros_like(yaw)
        return level_pose(pose[..., :3, 3], torch.stack((yaw, zero, zero), -1)) @ self.offset(time)


@dataclass(frozen=True)
class CameraPath:
    """The optical frame of a camera that looks along the x axis of a moving body."""

    body: Motion

    def __call__(self, time: float | Tensor) -> Tensor:
        """Returns the (..., 4, 4) poses ``T_world_camera`` (optical) at (...) times."""
        return self.body(time) @ se3.inverse(OPTICAL_FROM_BODY)


def hand_held(
    seed: int,
    *,
    position: tuple[float, float, float] = (0.0, 0.0, 1.4),
    heading: float = 0.0,
    velocity: tuple[float, float, float] = (0.0, 0.0, 0.0),
    speed: float = 0.4,
    turn: float = 25.0,
    tremor: float = 1.0,
) -> CameraPath:
    """Returns the path of a camera in a hand: it drifts about, looks around, and trembles a little.

    Args:
        seed: The same seed gives the same path.
        position: Middle of the path, metres, world frame.
        heading: Mean direction of view about z, radians, 0 along x.
        velocity: Steady velocity underneath, metres a second, world frame.
        speed: Root mean square of the speed, metres a second.
        turn: Root mean square of the turn rate, degrees a second.
        tremor: Size of the tremor; 1 is a normal hand.
    """
    generator = torch.Generator().manual_seed(seed)
    rate = math.radians(turn)
    across, up = speed * math.sqrt(0.46), speed * math.sqrt(0.08)
    slow = Waves.random(
        [across, across, up, rate * math.sqrt(0.75), rate * math.sqrt(0.17), rate * math.sqrt(0.08)],
        generator,
        band=(0.12, 0.4),
    )
    shake = Waves.random([0.012 * tremor] * 3 + [0.025 * tremor] * 3, generator, band=(1.5, 5.0))
    return CameraPath(Wander(position, (heading, 0.12, 0.0), velocity, waves=slow + shake))


def wheeled(
    seed: int,
    *,
    centre: tuple[float, float, float] = (0.0, 0.0, 0.5),
    radius: float = 1.0,
    speed: float = 0.4,
) -> CameraPath:
    """Returns the path of a forward camera on a wheeled robot that drives a smooth planar loop.

    Args:
        seed: The same seed gives the same path.
        centre: Middle of the loop, metres; z is the height of the camera.
        radius: Mean radius of the loop, metres.
        speed: Mean speed, metres a second.
    """
    generator = torch.Generator().manual_seed(seed)
    a, b, c, d, e = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    side = 1.0 if e < 0.5 else -1.0
    axes = (radius * (0.85 + 0.3 * a), radius * (0.85 + 0.3 * b))
    return CameraPath(Loop(centre, axes, 0.03 + 0.05 * c, side * speed / radius, 2 * math.pi * d))


def rotation(
    seed: int,
    *,
    position: tuple[float, float, float] = (0.0, 0.0, 1.4),
    heading: float = 0.0,
    turn: float = 30.0,
) -> CameraPath:
    """Returns the path of a camera that only turns, about its optical centre.

    Args:
        seed: The same seed gives the same path.
        position: Where it stays, metres, world frame.
        heading: Mean direction of view about z, radians.
        turn: Root mean square of the turn rate, degrees a second.
    """
    generator = torch.Generator().manual_seed(seed)
    rate = math.radians(turn)
    speeds = [0.0, 0.0, 0.0, rate * math.sqrt(0.75), rate * math.sqrt(0.15), rate * math.sqrt(0.1)]
    return CameraPath(Wander(position, (heading, 0.0, 0.0), waves=Waves.random(speeds, generator, band=(0.12, 0.4))))


def straight(
    *,
    position: tuple[float, float, float] = (0.0, 0.0, 1.4),
    heading: float = 0.0,
    speed: float = 0.4,
) -> CameraPath:
    """Returns the path of a camera that moves straight ahead without turning.

    Args:
        position: Where it is at time zero, metres, world frame.
        heading: Direction of view and travel about z, radians.
        speed: Metres a second.
    """
    velocity = (speed * math.cos(heading), speed * math.sin(heading), 0.0)
    return CameraPath(Wander(position, (heading, 0.0, 0.0), velocity))
