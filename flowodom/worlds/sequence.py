"""A camera moving through a world: frames as a sensor delivers them, with the truth beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flowodom.frame import Frame
from flowodom.geometry import PinholeCamera
from flowodom.worlds.motion import Motion
from flowodom.worlds.threads import one_thread
from flowodom.worlds.world import FlowTruth, Rendering, World


@dataclass(frozen=True)
class Sensor:
    """What a real camera does to the ideal picture.

    Attributes:
        image_noise: Standard deviation of Gaussian noise on each colour, grey levels; 0 for none.
        depth: Whether there is a depth camera.
        depth_noise: Standard deviation of depth at one metre, metres; it grows with the square of depth; 0 for none.
        depth_range: Least and greatest depth it measures, metres; NaN outside.
        seed: Seed of the noise.
    """

    image_noise: float = 0.0
    depth: bool = True
    depth_noise: float = 0.0
    depth_range: tuple[float, float] = (0.0, float("inf"))
    seed: int = 0

    @one_thread()
    def frame(self, rendering: Rendering, stamp: int) -> Frame:
        """Returns what the sensor delivers of a rendering that has an image; ``stamp`` in nanoseconds."""
        assert rendering.image is not None
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + stamp) % (1 << 63))
        image = rendering.image.cpu()
        if self.image_noise > 0:
            noise = torch.randn(image.shape, generator=generator)
            image = (image + self.image_noise * noise).round().clamp(0, 255).to(torch.uint8)
        depth: np.ndarray | None = None
        if self.depth:
            measured = rendering.depth.cpu()
            if self.depth_noise > 0:
                noise = torch.randn(measured.shape, generator=generator, dtype=torch.float64)
                measured = measured + self.depth_noise * measured**2 * noise
            low, high = self.depth_range
            valid = torch.isfinite(measured) & (measured >= low) & (measured <= high)
            depth = torch.where(valid, measured, torch.nan).float().numpy()
        return Frame(stamp, image.numpy(), rendering.camera, depth)


@dataclass(frozen=True)
class Step:
    """One frame of a sequence and the truth about it.

    Attributes:
        frame: What the sensor delivers.
        pose: (4, 4) float64 ``T_world_camera``, optical.
        rendering: The exact geometry.
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
    for k in range(frames):
        time = k / rate
        rendering = world.render(path(time), time, camera)
        truth = world.flow_between(previous, rendering) if flow and previous is not None else None
        yield Step(sensor.frame(rendering, 1_000_000_000 + round(time * 1e9)), rendering.pose, rendering, truth)
        previous = rendering
