"""Bags of procedural worlds: what a depth camera or a stereo rig in one would have recorded, with the ground truth."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from flowodom.bags import BagWriter
from flowodom.errors import ConfigError
from flowodom.geometry import se3
from flowodom.messages import MessageFactory
from flowodom.worlds.motion import OPTICAL_FROM_BODY, Motion, hand_held, rotation, straight, wheeled
from flowodom.worlds.scenes import room, street
from flowodom.worlds.sequence import Sensor, Step, pinhole, sequence
from flowodom.worlds.world import World

log = logging.getLogger(__name__)

IMAGE_TOPIC = "/camera/color/image_raw"
INFO_TOPIC = "/camera/color/camera_info"
DEPTH_TOPIC = "/camera/aligned_depth_to_color/image_raw"
DEPTH_INFO_TOPIC = "/camera/aligned_depth_to_color/camera_info"
LEFT_TOPIC, LEFT_INFO_TOPIC = "/stereo/left/image_raw", "/stereo/left/camera_info"
RIGHT_TOPIC, RIGHT_INFO_TOPIC = "/stereo/right/image_raw", "/stereo/right/camera_info"
TRUTH_TOPIC = "/ground_truth/odom"
WORLD_FRAME, LINK_FRAME, OPTICAL_FRAME = "world", "camera_link", "camera_color_optical_frame"

LINK_FROM_OPTICAL = se3.inverse(OPTICAL_FROM_BODY)
"""``T_camera_link_optical``: the link looks along its x axis, as depth cameras' drivers have it."""
LINK_FROM_OPTICAL[1, 3] = 0.015

WORLDS = ("room", "street")
"""Worlds that ``render_bag`` knows."""

MOTIONS = ("hand_held", "wheeled", "rotation", "straight")
"""Camera motions that ``render_bag`` knows."""

_MILLIMETRE_RANGE = 65.535


def write_bag(
    path: Path | str,
    steps: Iterable[Step],
    *,
    compressed: bool = False,
    millimetres: bool = True,
    overwrite: bool = False,
) -> int:
    """Writes frames and their truth as an MCAP rosbag2, on the topics of a RealSense-like camera or of a stereo rig.

    Args:
        path: Where to (see ``BagWriter``).
        steps: The frames, as ``sequence`` yields them; depth and what the other eye sees, parallel to the first and to
            the right of it, are written where a frame has them.
        compressed: Whether images are CompressedImage (JPEG) instead of raw.
        millimetres: Whether depth is 16UC1 millimetres, as most cameras give it (0 invalid, under 65.5 m), instead of
            32FC1 metres.
        overwrite: Whether to replace a recording that is there.

    Returns:
        How many frames were written.

    Raises:
        BagError: The path exists or cannot be written.
    """
    count = 0
    previous: tuple[int, torch.Tensor] | None = None
    with BagWriter(path, overwrite=overwrite) as bag:
        make = MessageFactory(bag.store)
        for step in steps:
            frame, stamp = step.frame, step.frame.stamp
            link = step.pose @ se3.inverse(LINK_FROM_OPTICAL)
            if previous is None:
                fixed = make.transform(stamp, LINK_FRAME, OPTICAL_FRAME, LINK_FROM_OPTICAL)
                bag.write("/tf_static", make.tf_message([fixed]), stamp)
            info = make.camera_info(stamp, OPTICAL_FRAME, frame.camera)
            pictures = [(IMAGE_TOPIC, INFO_TOPIC, info, frame.image)]
            if (eye := frame.other) is not None:
                baseline = -float(eye.motion[0, 3])
                right = make.camera_info(stamp, OPTICAL_FRAME, eye.camera, baseline=baseline)
                pictures = [
                    (LEFT_TOPIC, LEFT_INFO_TOPIC, info, frame.image),
                    (RIGHT_TOPIC, RIGHT_INFO_TOPIC, right, eye.image),
                ]
            for topic, info_topic, calibration, image in pictures:
                bag.write(info_topic, calibration, stamp)
                if compressed:
                    bag.write(f"{topic}/compressed", make.compressed_image(stamp, OPTICAL_FRAME, image), stamp)
                else:
                    bag.write(topic, make.image(stamp, OPTICAL_FRAME, image), stamp)
            if frame.depth is not None:
                depth: np.ndarray = frame.depth
                if millimetres:
                    known = np.isfinite(depth) & (depth < _MILLIMETRE_RANGE)
                    depth = np.where(known, np.round(depth * 1000), 0).astype(np.uint16)
                bag.write(DEPTH_INFO_TOPIC, info, stamp)
                bag.write(DEPTH_TOPIC, make.image(stamp, OPTICAL_FRAME, depth), stamp)
            # The twist is the mean one since the frame before; the camera has not moved yet at the first.
            twist = torch.zeros(6, dtype=torch.float64)
            if previous is not None:
                twist = se3.log(se3.inverse(previous[1]) @ link) / ((stamp - previous[0]) * 1e-9)
            truth = make.odometry(stamp, WORLD_FRAME, LINK_FRAME, link, twist=twist)
            bag.write(TRUTH_TOPIC, truth, stamp)
            previous = (stamp, link)
            count += 1
    log.info("%d frames in %s", count, path)
    return count


def _street_path(motion: str, seed: int) -> Motion:
    if motion == "straight":
        return straight(position=(0.0, 0.0, 1.65), speed=8.0)
    if motion == "hand_held":
        return hand_held(seed, position=(0.0, 0.0, 1.5), velocity=(1.2, 0.0, 0.0), turn=15.0)
    if motion == "rotation":
        return rotation(seed, position=(5.0, 0.0, 1.5))
    raise ConfigError("the street has no room for motion 'wheeled'; choose straight, hand_held or rotation")


def _room_path(motion: str, seed: int) -> Motion:
    if motion == "hand_held":
        return hand_held(seed)
    if motion == "wheeled":
        return wheeled(seed)
    if motion == "rotation":
        return rotation(seed)
    return straight(position=(-1.2, 0.0, 1.3), speed=0.3)


def scene(
    world: str, motion: str, *, seed: int, movers: int, device: torch.device | str = "cpu"
) -> tuple[World, Motion]:
    """Returns a world of a kind and a camera path that suits it.

    Args:
        world: One of ``WORLDS``.
        motion: One of ``MOTIONS``; a street has no ``wheeled``.
        seed: The same seed gives the same world and path.
        movers: How many objects move on their own.
        device: Where to render.

    Raises:
        ConfigError: The world or motion is unknown, or they do not go together.
    """
    if world not in WORLDS:
        raise ConfigError(f"world must be one of {', '.join(WORLDS)}, got {world!r}")
    if motion not in MOTIONS:
        raise ConfigError(f"motion must be one of {', '.join(MOTIONS)}, got {motion!r}")
    if world == "street":
        return street(seed, movers=movers, device=device), _street_path(motion, seed)
    return room(seed, movers=movers, device=device), _room_path(motion, seed)


def render_bag(
    path: Path | str,
    *,
    seed: int = 11,
    world: str = "room",
    motion: str = "hand_held",
    movers: int = 1,
    frames: int = 240,
    rate: float = 30.0,
    size: tuple[int, int] = (320, 240),
    field_of_view: float | None = None,
    depth: bool = True,
    baseline: float = 0.0,
    compressed: bool = False,
    noise: float = 1.5,
    overwrite: bool = False,
    progress: bool = False,
) -> int:
    """Renders a procedural world into a bag with exact ground truth.

    Args:
        path: Where to (see ``BagWriter``).
        seed: The same seed gives the same bag.
        world: One of ``WORLDS``.
        motion: One of ``MOTIONS``.
        movers: How many objects move on their own.
        frames: How many images.
        rate: Images a second.
        size: Width and height, pixels.
        field_of_view: Across the width, degrees; 62.7 in a room and 80 in a street when None.
        depth: Whether there is a depth camera (16UC1 millimetres, 0.2 to 20 m).
        baseline: Metres between the cameras of a stereo pair, which there is in its place; 0 for none.
        compressed: Whether images are JPEG instead of raw.
        noise: Standard deviation of the image noise, grey levels.
        overwrite: Whether to replace a recording that is there.
        progress: Whether to show a progress bar.

    Returns:
        How many frames were written.

    Raises:
        ConfigError: A parameter is unknown or out of its range.
        BagError: The path exists or cannot be written.
    """
    if field_of_view is None:
        field_of_view = 62.7 if world == "room" else 80.0
    if not 0 < field_of_view < 180:
        raise ConfigError(f"field_of_view must be between 0 and 180 degrees, got {field_of_view}")
    if frames < 1 or not rate > 0 or min(size) < 16 or movers < 0 or noise < 0 or baseline < 0:
        raise ConfigError(
            "frames must be 1 or more, rate above 0, size 16 or more each way, movers, noise and baseline 0 or more, "
            f"got frames={frames}, rate={rate}, size={size}, movers={movers}, noise={noise}, baseline={baseline}"
        )
    place, camera_path = scene(world, motion, seed=seed, movers=movers)
    camera = pinhole(*size, field_of_view=field_of_view)
    with_depth = depth and not baseline
    sensor = Sensor(image_noise=noise, depth=with_depth, depth_range=(0.2, 20.0), baseline=baseline, seed=seed)
    steps = sequence(place, camera_path, camera, frames=frames, rate=rate, sensor=sensor)
    bar = tqdm(steps, total=frames, desc=f"render {place.name}", unit="frame", disable=not progress)
    return write_bag(path, bar, compressed=compressed, overwrite=overwrite)
