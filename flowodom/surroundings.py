"""What goes out beside the pose, as messages: moving objects, pictures of mask and flow, forecasts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowodom.drawing import flow_picture, weight_picture
from flowodom.frame import Frame
from flowodom.geometry import se3
from flowodom.messages import MessageFactory
from flowodom.registration.covariance import along_parent
from flowodom.scene_flow import PropertySet
from flowodom.scene_flow.forecast import forecast
from flowodom.scene_flow.moving import Moving
from flowodom.scene_flow.object_tracker import ObjectTracker
from flowodom.scene_flow.objects import MovingObject

LONGEST_FLOW = 0.05
"""Flow drawn at full strength, as a share of the image's width."""

DRAWN = 2
"""Every how manieth row and column of the fields is drawn."""

LIFETIME = 0.5
"""Seconds after which a marker vanishes when no newer one comes."""

OF_OBJECTS = ("points", "dynamic_points", "objects", "object_odometry", "forecast")
"""Outputs for which objects must be followed."""

OF_FIELDS = ("flow", "weights")
"""Pictures of the dense fields of a frame pair."""

Publication = tuple[str, Any]


class Surroundings:
    """Follows objects while somebody wants to know of them, and makes the messages.

    Args:
        make: Makes messages.
        wanted: Tells whether anybody listens to an output.
        always: Whether objects are followed even where nobody listens.
    """

    def __init__(self, make: MessageFactory, wanted: Callable[[str], bool], *, always: bool = False) -> None:
        self._make = make
        self._wanted = wanted
        self._always = always
        self._tracker = ObjectTracker()

    @property
    def objects(self) -> list[MovingObject]:
        """The confirmed objects as of the last frame."""
        return self._tracker.objects

    def reset(self) -> None:
        """Forgets the objects."""
        self._tracker.reset()

    def follow(self, frame: Frame, moving: Moving | None, pose: Tensor, motion: Tensor, interval: float) -> None:
        """Takes in a tracked frame; see ``ObjectTracker.update``."""
        if self._always or any(map(self._wanted, OF_OBJECTS)):
            self._tracker.update(moving, pose, motion, frame.stamp, interval, frame.image)

    def publish_objects(self, stamp: int, odom: str) -> list[Publication]:
        """Returns ``objects`` and ``object_odometry``, where wanted; frames are ``odom`` and ``object_<id>``."""
        out: list[Publication] = []
        if self._wanted("objects"):
            markers = [marker for known in self.objects for marker in self._markers(known, stamp, odom)]
            out.append(("objects", self._make.marker_array(markers)))
        if self._wanted("object_odometry"):
            out += [("object_odometry", self._odometry(known, stamp, odom)) for known in self.objects]
        return out

    def publish_forecast(
        self, stamp: int, odom: str, base: Tensor, twist: Tensor, covariance: Tensor | None
    ) -> list[Publication]:
        """Returns ``forecast``: the base's way and each object's with constant twists, as line strips, where wanted.

        Args:
            stamp: Nanoseconds.
            odom: Frame of the markers.
            base: (4, 4) ``T_odom_base``.
            twist: (6,) of the base, in itself.
            covariance: (6, 6) of the twist.
        """
        if not self._wanted("forecast"):
            return []
        ways = [("base", 0, forecast(base, twist, covariance).poses[:, :3, 3], base[:3, 3], _BASE)]
        for known in self.objects:
            poses = forecast(known.pose, known.twist, known.twist_covariance).poses
            ways.append(("object", known.id, se3.act(poses, known.box.mean(0)), known.centre, colour(known.id)))
        markers = [
            self._make.marker(
                stamp, odom, name, number, "line_strip", colour=tint, size=(0.02, 0, 0), lifetime=LIFETIME,
                points=torch.cat((start[None], places)),
            )
            for name, number, places, start, tint in ways
        ]  # fmt: skip
        return [("forecast", self._make.marker_array(markers))]

    def publish_pictures(
        self, frame: Frame, camera: str, moving: Moving | None, lift: Callable[[int], PropertySet] | None
    ) -> list[Publication]:
        """Returns ``moving_mask`` (255 where the image moves on its own), ``flow`` (the colour wheel) and ``weights``.

        Each only where somebody listens.

        Args:
            frame: The current frame.
            camera: Its optical frame.
            moving: What moves in it; None for nothing.
            lift: Gives the fields of the frame pair at a stride; None where there is no pair or they are not shown now.
        """
        out: list[Publication] = []
        if self._wanted("moving_mask"):
            mask = np.zeros((frame.camera.height, frame.camera.width), dtype=np.uint8)
            if moving is not None:
                mask[moving.mask(mask.shape)] = 255
            out.append(("moving_mask", self._make.image(frame.stamp, camera, mask)))
        if lift is not None and any(map(self._wanted, OF_FIELDS)):
            fields = lift(DRAWN)
            if self._wanted("flow"):
                flow = fields.flow.cpu().numpy()
                picture = flow_picture(frame.grey, flow, LONGEST_FLOW * fields.camera.width)
                out.append(("flow", self._make.image(frame.stamp, camera, picture)))
            if self._wanted("weights"):
                picture = weight_picture(frame.grey, fields.weight.cpu().numpy())
                out.append(("weights", self._make.image(frame.stamp, camera, picture)))
        return out

    def _odometry(self, known: MovingObject, stamp: int, odom: str) -> Any:
        covariance = along_parent(known.covariance, known.pose)
        return self._make.odometry(
            stamp, odom, f"object_{known.id}", known.pose, covariance, known.twist, known.twist_covariance
        )

    def _markers(self, known: MovingObject, stamp: int, odom: str) -> list[Any]:
        tint, middle = colour(known.id), known.centre
        box = known.pose.clone()
        box[:3, 3] = middle
        level = se3.identity()
        level[:3, 3] = middle
        level[2, 3] += 0.6 * float(known.extent.norm())
        make = partial(self._make.marker, stamp, odom, number=known.id, lifetime=LIFETIME)
        speed = float(known.velocity.norm())
        solid = (*tint[:3], 0.45 if known.mask is not None else 0.15)
        size = known.extent.clamp_min(0.01).tolist()
        arrow = torch.stack((middle, middle + known.velocity))
        text = f"{known.id}: {speed:.2f} m/s"
        return [
            make(namespace="box", kind="cube", colour=solid, size=size, pose=box),
            make(namespace="velocity", kind="arrow", colour=tint, size=(0.03, 0.06, 0.08), points=arrow),
            make(namespace="number", kind="text_view_facing", colour=tint, size=(0, 0, 0.15), pose=level, text=text),
            make(namespace="trail", kind="line_strip", colour=tint, size=(0.015, 0, 0), points=known.trail),
        ]


_BASE = (0.1, 0.9, 0.1, 1.0)

_GOLDEN = 0.61803398875


def colour(number: int) -> tuple[float, float, float, float]:
    """Returns the red, green, blue and opacity of an object: unlike those of the numbers around it."""
    hue = 6 * ((number * _GOLDEN) % 1.0)
    red, green, blue = (min(max(abs((hue - shift) % 6 - 3) - 1, 0.0), 1.0) for shift in (0, 2, 4))
    return 0.2 + 0.8 * red, 0.2 + 0.8 * green, 0.2 + 0.8 * blue, 1.0
