"""The ends of a topic, told alike by every middleware, and whether two of them can hear each other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flowodom.config import SessionConfig
from flowodom.errors import FlowodomError, MessageError
from flowodom.session import Port

_CAMERA = ("image", "camera_info", "depth", "depth_info", "right", "right_info", "mask")
_DEPTH = 100


@dataclass(frozen=True)
class Quality:
    """Quality of service of one end of a topic.

    Attributes:
        reliable: Whether lost messages are sent again.
        latched: Whether late subscribers get what was sent before (transient local).
        depth: Messages kept.
    """

    reliable: bool = True
    latched: bool = False
    depth: int = 10


@dataclass(frozen=True)
class Endpoint:
    """One publisher or subscription of somebody else.

    Attributes:
        topic: ROS name of the topic.
        msgtype: ROS type, ``sensor_msgs/msg/Image``.
        quality: What it offers or asks for.
    """

    topic: str
    msgtype: str
    quality: Quality


def input_quality(port: Port, config: SessionConfig) -> Quality:
    """Returns what a host asks for on an input: sensor data may get lost, all else may not."""
    if port.name in _CAMERA:
        return Quality(config.qos.reliable, port.latched, config.qos.depth)
    return Quality(port.reliable, port.latched, _DEPTH)


def output_quality(port: Port) -> Quality:
    """Returns what a host offers on an output."""
    return Quality(port.reliable, port.latched, 1 if port.latched else 10)


def likely_type(port: Port, topic: str) -> str:
    """Returns the type that an input will probably have, so that it need not wait until its publisher is seen.

    Args:
        port: The input.
        topic: Its name after remapping; image transports put theirs at the end.
    """
    compressed = topic.rpartition("/")[2] in ("compressed", "compressedDepth")
    return port.types[-1] if compressed else port.types[0]


def mismatch(port: Port, offered: Iterable[Endpoint], asked: Quality) -> FlowodomError | None:
    """Returns why nothing will come from some publisher of an input, None when all fits.

    Args:
        port: The input.
        offered: The publishers on its topic.
        asked: What the host asks for.
    """
    for endpoint in offered:
        if endpoint.msgtype not in port.types:
            return MessageError(f"{endpoint.topic} carries {endpoint.msgtype}, but must be {' or '.join(port.types)}")
        if asked.reliable and not endpoint.quality.reliable:
            return MessageError(f"{endpoint.topic} is offered best effort, but reliable was asked for: nothing comes")
        if asked.latched and not endpoint.quality.latched:
            return MessageError(f"{endpoint.topic} is not latched (transient local) by its publisher: nothing comes")
    return None
