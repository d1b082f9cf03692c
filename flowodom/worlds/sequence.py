"""A camera moving through a world: frames as a sensor delivers them, with the truth beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowodom.frame import Frame, OtherEye
from flowodom.geometry import PinholeCamera, se3
from flowodom.threads import one_thread
from flowodom.worlds.motion import Motion
from flowodom.worlds.world import FlowTruth, Rendering, World

STRIP = 3
"""Rows of a rolling shutter that are exposed at once."""


@dataclass(frozen=True)
class Sensor:
    """What a real camera does to the ideal picture.

    Attributes:
        image_noise: Standard deviation of Gaussian noise on each colour, grey levels; 0 for none.
        depth: Whether there is a depth camera.
        depth_noise: Standard deviation of depth at one metre, metres; it grows with the square of depth; 0 for none.
        depth_range: Least and greatest depth it measures, metres; NaN outside.
        baseline: Metres from the camera to the other one of a stereo pair, along x; 0 for a single camera.
        turn: How the other camera is turned beside what its motion says: rotation vector, radians, in its own axes.
        readout: Seconds from the exposure of the first row to that of the last, the middle one being exposed at the
            stamp; 0 for a global shutter.
        seed: Seed of the noise.
    """

    image_noise: float = 0.0
    depth: bool = True
    depth_noise: float = 0.0
    depth_range: tuple[float, float] = (0.0, float("inf"))
    baseline: float = 0.0
    turn: tuple[float, float, float] = (0.0, 0.0, 0.0)
    readout: float = 0.0
    seed: int = 0

    @property
    def other_from_camera(self) -> Tensor:
        """(4, 4) float64 ``T_other_camera`` of the stereo pair."""
        motion = se3.identity()
        motion[0, 3] = -self.baseline
        return motion

    @one_thread()
    def frame(self, rendering: Rendering, stamp: int, other: Rendering | None = None) -> Frame:
        """Returns what the sensor delivers.

        Args:
            rendering: The camera's view, with its image.
            stamp: Nanoseconds.
            other: The view of the other camera of a stereo pair, with its image.
        """
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + stamp) % (1 << 63))
        image = self._image(rendering, generator)
        depth: np.ndarray | None = None
        if self.depth:
            measured = rendering.depth.cpu()
            if self.depth_noise > 0:
                noise = torch.randn(measured.shape, generator=generator, dtype=torch.float64)
                measured = measured + self.depth_noise * measured**2 * noise
            low, high = self.depth_range
            valid = torch.isfinite(measured) & (measured >= low) & (measured <= high)
            depth = torch.where(valid, measured, torch.nan).float().numpy()
        eye = None
        if other is not None:
            claimed = se3.exp(-rendering.pose.new_tensor((0.0, 0.0, 0.0, *self.turn)))
            motion = claimed @ se3.inverse(other.pose) @ rendering.pose
            eye = OtherEye(self._image(other, generator), other.camera, motion)
        return Frame(stamp, image, rendering.camera, depth, other=eye)

    def _image(self, rendering: Rendering, generator: torch.Generator) -> NDArray[np.uint8]:
        assert rendering.image is not None
        image = rendering.image.cpu()
        if self.image_noise > 0:
            noise = torch.randn(image.shape, generator=generator)
            image = (image + self.image_noise * noise).round().clamp(0, 255).to(torch.uint8)
        return np.asarray(image.numpy(), dtype=np.uint8)


@dataclass(frozen=True)
class Step:
    """One frame of a sequence and the truth about it.

    Attributes:
        frame: What the sensor delivers.
        pose: (4, 4) float64 ``T_world_camera``, optical, of the middle row.
        rendering: The exact geometry, all rows at once.
        flow: Exact flow from the previous step's image to this one's; None at the first step or when not asked for.
    """

    frame: Frame
    pose: Tensor
    rendering: Rendering
    flow: FlowTruth | None


def pinhole(width: int = 320, height: int = 240, *, field_of_view: float = 62.7) -> PinholeCamera:
    """Returns a camera with square pixels and a centred image; the horizontal field of view is in degrees."""
    focal = 0.5 * width / float(np.tan(0.5 * np.radians(field_of_view)))
    return PinholeCamera(focal, focal, 0.5 * (width - 1), 0.5 * (height - 1), width, height)


def sequence(
    world: World,
    path: Motion,
    camera: PinholeCamera,
    *,
    frames: int,
    rate: float = 30.0,
    sensor: Sensor = Sensor(),
    flow: bool = False,
) -> Iterator[Step]:
    """Renders a camera's way through a world.

    Args:
        world: The world.
        path: Camera path, ``T_world_camera`` (optical) over time.
        camera: The camera.
        frames: How many.
        rate: Frames a second.
        sensor: Noise and range.
        flow: Whether to work out the exact flow from each frame to the next.

    Yields:
        The steps in order. Stamps start at one second.
    """
    previous: Rendering | None = None
    camera_from_other = se3.inverse(sensor.other_from_camera)
    for k in range(frames):
        time = k / rate
        pose = path(time)
        rendering = world.render(pose, time, camera)
        seen, other = _exposed(world, path, rendering, sensor.readout), None
        if sensor.baseline:
            beside = world.render(pose @ camera_from_other, time, camera)
            other = _exposed(world, lambda t: path(t) @ camera_from_other, beside, sensor.readout)
        truth = world.flow_between(previous, rendering) if flow and previous is not None else None
        frame = sensor.frame(seen, 1_000_000_000 + round(time * 1e9), other)
        yield Step(frame, rendering.pose, rendering, truth)
        previous = rendering


def _exposed(world: World, path: Motion, still: Rendering, readout: float) -> Rendering:
    """Returns a rendering with image and depth exposed row by row on a path, instead of all rows at once."""
    if not readout:
        return still
    camera, strips = still.camera, []
    for top in range(0, camera.height, STRIP):
        height = min(STRIP, camera.height - top)
        moment = still.time + readout * ((top + 0.5 * (height - 1)) / (camera.height - 1) - 0.5)
        strips.append(world.render(path(moment), moment, replace(camera, cy=camera.cy - top, height=height)))
    images = [strip.image for strip in strips if strip.image is not None]
    return replace(still, image=torch.cat(images), depth=torch.cat([strip.depth for strip in strips]))
