"""What runs on the ROS 2 graph without ROS: the odometry, a bag player, a recorder and a listener."""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flowodom.bags import BagReader, BagWriter, RawMessage
from flowodom.config import SessionConfig
from flowodom.dds import Participant, Publisher
from flowodom.endpoints import Endpoint, Quality, input_quality, likely_type, mismatch, output_quality
from flowodom.errors import ConfigError, MessageError
from flowodom.host import Host
from flowodom.messages import MessageFactory
from flowodom.session import INPUTS, OUTPUTS, Port, Session

_log = logging.getLogger(__name__)

_LOOK = 0.2
"""Seconds between looks at who has come to the graph."""
_CLOCK_PERIOD = 0.01
_SETTLED = 1.0
"""Seconds without another subscriber after which the player no longer waits for more."""
_LATCHED_DEPTH = 100
_CAMERA_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage", "sensor_msgs/msg/CameraInfo")


class Odometry:
    """The odometry as a node: subscribes, publishes, and looks after what does not fit.

    Args:
        participant: The node's place on the graph.
        config: Parameters.
    """

    def __init__(self, participant: Participant, config: SessionConfig) -> None:
        self._participant = participant
        self._config = config
        self._clock: int | None = None
        self._subscribed: set[tuple[str, str]] = set()
        resolve = participant.names.resolve
        self._publishers = {
            port.name: participant.publisher(port.name, port.types[0], output_quality(port)) for port in OUTPUTS
        }
        name = participant.names.full_name.strip("/")
        session = Session(
            config, store=participant.store, wanted=self._wanted, resolve=resolve, name=name, clock=self._now
        )
        session.warm_up()
        self._host = Host(session, self._publish, read=self._read, now=self._now)
        if config.use_sim_time:
            quality = Quality(reliable=False, depth=1)
            participant.subscribe("/clock", "rosgraph_msgs/msg/Clock", self._take_clock, quality)
        for port in INPUTS:
            self._subscribe(port, likely_type(port, resolve(port.name)))

    def run(self, stop: threading.Event) -> None:
        """Works until ``stop`` is set."""
        self._host.start()
        try:
            while not stop.wait(_LOOK):
                self.look()
        finally:
            self._host.stop()

    def look(self) -> None:
        """Subscribes to the types that are published by now, and notes those that cannot be taken."""
        offered = self._participant.publications()
        for port in INPUTS:
            name = self._participant.names.resolve(port.name)
            here = [endpoint for endpoint in offered if endpoint.topic == name]
            for endpoint in here:
                if endpoint.msgtype in port.types:
                    self._subscribe(port, endpoint.msgtype)
            problem = mismatch(port, here, input_quality(port, self._config))
            self._host.do(partial(Session.report, key=f"offer {port.name}", error=problem))

    def _subscribe(self, port: Port, msgtype: str) -> None:
        if (port.name, msgtype) not in self._subscribed:
            self._subscribed.add((port.name, msgtype))
            self._participant.subscribe(
                port.name,
                msgtype,
                lambda data: self._host.receive(port.name, (msgtype, data)),
                input_quality(port, self._config),
            )

    def _wanted(self, name: str) -> bool:
        return self._publishers[name].subscribers > 0

    def _publish(self, name: str, message: Any) -> None:
        self._publishers[name].publish(message)

    def _read(self, item: tuple[str, bytes]) -> Any:
        msgtype, data = item
        return self._participant.deserialize(data, msgtype)

    def _take_clock(self, data: bytes) -> None:
        now = self._participant.deserialize(data, "rosgraph_msgs/msg/Clock").clock
        self._clock = now.sec * 1_000_000_000 + now.nanosec

    def _now(self) -> int:
        if self._config.use_sim_time:
            return self._clock or 0
        return time.time_ns()


def play(
    participant: Participant,
    bag: Path,
    *,
    rate: float = 1.0,
    loop: bool = False,
    clock: bool = False,
    start: float = 0.0,
    duration: float | None = None,
    topics: Iterable[str] | None = None,
    wait: float = 0.0,
    stop: threading.Event | None = None,
) -> int:
    """Plays a bag onto the graph at its own pace.

    Args:
        participant: The player's place on the graph; its remappings hold for the bag's topics.
        bag: The recording.
        rate: Multiple of the recorded speed.
        loop: Whether to begin again at the end.
        clock: Whether to publish the recorded time on ``/clock``.
        start: Seconds to skip.
        duration: Seconds to play; all when None.
        topics: Topics to play; all when None.
        wait: Most seconds to wait before beginning until somebody subscribes to the camera's topics.
        stop: Ends the play when set.

    Returns:
        How many messages were published.

    Raises:
        BagError: The recording cannot be read.
    """
    stop = stop or threading.Event()
    count = 0
    with BagReader(bag) as reader:
        wanted = set(reader.topics if topics is None else topics)
        unknown = wanted - set(reader.topics)
        if unknown:
            raise ConfigError(f"{bag} has no topic {', '.join(sorted(unknown))}; there are: {', '.join(reader.topics)}")
        player = _Player(participant, clock, rate, stop)
        for raw in _first_of_each(reader, wanted):
            player.offer(raw)
        player.wait_for_subscribers(wait)
        while not stop.is_set():
            for raw in reader.raw_messages(wanted, start=start, duration=duration):
                if not player.play(raw):
                    break
                count += 1
            if not loop:
                break
            player.rewind()
        player.drain()
    return count


def _first_of_each(reader: BagReader, topics: Iterable[str]) -> Iterator[RawMessage]:
    for topic in topics:
        yield from _take(reader.raw_messages([topic]), 1)


def _take(messages: Iterable[RawMessage], count: int) -> Iterator[RawMessage]:
    for index, message in enumerate(messages):
        if index >= count:
            return
        yield message


class _Player:
    """Publishes recorded messages when they are due."""

    def __init__(self, participant: Participant, clock: bool, rate: float, stop: threading.Event) -> None:
        self._participant = participant
        self._rate = rate
        self._stop = stop
        self._publishers: dict[str, Publisher] = {}
        self._cameras: set[str] = set()
        self._begin: float | None = None
        self._make = MessageFactory(participant.store)
        quality = Quality(reliable=True, depth=1)
        self._clock = participant.publisher("/clock", "rosgraph_msgs/msg/Clock", quality) if clock else None

    def offer(self, raw: RawMessage) -> None:
        """Makes the publisher of a message's topic."""
        latched = raw.topic in ("/tf_static", "/robot_description", "/map")
        quality = Quality(reliable=True, latched=latched, depth=_LATCHED_DEPTH if latched else 10)
        self._publishers[raw.topic] = self._participant.publisher(raw.topic, raw.msgtype, quality, store=raw.store)
        if raw.msgtype in _CAMERA_TYPES:
            self._cameras.add(raw.topic)

    def wait_for_subscribers(self, seconds: float) -> None:
        """Waits until somebody subscribes to a camera topic and for a second nobody has come after."""
        end, settled, before = time.monotonic() + seconds, 0.0, -1
        while time.monotonic() < end and not self._stop.wait(_LOOK):
            now = sum(self._publishers[topic].subscribers for topic in self._cameras)
            settled = time.monotonic() + _SETTLED if now != before else settled
            before = now
            if now and time.monotonic() > settled:
                return
        if seconds and before < 1:
            _log.warning("nobody subscribes to %s", ", ".join(sorted(self._cameras)))

    def play(self, raw: RawMessage) -> bool:
        """Publishes a message when it is due; False when the play was stopped before."""
        due = raw.time * 1e-9 / self._rate
        if self._begin is None:
            self._begin = time.monotonic() - due
        while (rest := self._begin + due - time.monotonic()) > 0:
            if self._clock is None:
                self._stop.wait(rest)
            else:
                self._tell(raw.time - round(rest * self._rate * 1e9))
                self._stop.wait(min(rest, _CLOCK_PERIOD))
            if self._stop.is_set():
                return False
        if self._clock is not None:
            self._tell(raw.time)
        self._publishers[raw.topic].publish_bytes(bytes(raw.data))
        return True

    def rewind(self) -> None:
        """Begins again with the next message."""
        self._begin = None

    def drain(self) -> None:
        """Waits a little for the subscribers to get everything."""
        for publisher in self._publishers.values():
            if publisher.subscribers and not self._stop.is_set():
                publisher.wait_for_acks(1.0)

    def _tell(self, now: int) -> None:
        assert self._clock is not None
        message = self._participant.store.types["rosgraph_msgs/msg/Clock"](clock=self._make.time(now))
        self._clock.publish(message)


def record(
    participant: Participant,
    out: Path,
    *,
    topics: Iterable[str] | None = None,
    stop: threading.Event | None = None,
    overwrite: bool = False,
) -> int:
    """Records topics into an MCAP bag until stopped.

    Args:
        participant: The recorder's place on the graph.
        out: Where to, see ``BagWriter``.
        topics: Topics to record; all when None.
        stop: Ends the recording when set.
        overwrite: Whether to replace a recording that is there.

    Returns:
        How many messages were recorded.

    Raises:
        BagError: The recording cannot be written.
    """
    stop = stop or threading.Event()
    wanted = None if topics is None else {participant.names.resolve(topic) for topic in topics}
    count = 0
    with BagWriter(out, distribution=participant.distribution, overwrite=overwrite) as writer:
        for endpoint, data, when in _listen(participant, wanted, stop):
            writer.write_raw(endpoint.topic, endpoint.msgtype, data, when, store=participant.store)
            count += 1
    return count


def echo(
    participant: Participant,
    topic: str,
    *,
    count: int | None = None,
    stop: threading.Event | None = None,
    show: Callable[[str], None] = print,
) -> int:
    """Shows the messages of a topic.

    Args:
        participant: The listener's place on the graph.
        topic: The topic.
        count: How many messages; until stopped when None.
        stop: Ends it when set.
        show: Called with the text of each message.

    Returns:
        How many messages were shown.
    """
    stop = stop or threading.Event()
    shown = 0
    if count == 0:
        return 0
    for endpoint, data, _ in _listen(participant, {participant.names.resolve(topic)}, stop):
        show("\n".join(_lines(participant.deserialize(data, endpoint.msgtype), "")) + "\n---")
        shown += 1
        if shown == count:
            break
    return shown


def _listen(
    participant: Participant, wanted: set[str] | None, stop: threading.Event
) -> Iterator[tuple[Endpoint, bytes, int]]:
    """Yields (where it came from, CDR, time) of every message on the wanted topics, whoever comes when."""
    heard: queue.SimpleQueue[tuple[Endpoint, bytes, int]] = queue.SimpleQueue()
    subscribed: set[tuple[str, str]] = set()

    def hear(endpoint: Endpoint, data: bytes) -> None:
        heard.put((endpoint, data, time.time_ns()))

    while True:
        for endpoint in participant.publications():
            key = (endpoint.topic, endpoint.msgtype)
            if key in subscribed or (wanted is not None and endpoint.topic not in wanted):
                continue
            subscribed.add(key)
            quality = dataclasses.replace(endpoint.quality, depth=_LATCHED_DEPTH)
            try:
                participant.subscribe(endpoint.topic, endpoint.msgtype, partial(hear, endpoint), quality)
            except MessageError as error:
                _log.warning("%s is left out: %s", endpoint.topic, error)
        stopped = stop.is_set()
        end = time.monotonic() + _LOOK
        while (rest := end - time.monotonic()) > 0 and not (stopped and heard.empty()):
            try:
                yield heard.get(timeout=rest)
            except queue.Empty:
                break
            stopped = stopped or stop.is_set()
        if stopped:
            while not heard.empty():
                yield heard.get()
            return


def _lines(value: Any, indent: str) -> Iterator[str]:
    """Yields the lines of a message as ``ros2 topic echo`` prints them; long arrays are only told by their size."""
    for entry in dataclasses.fields(value):
        if entry.name == "__msgtype__":
            continue
        item = getattr(value, entry.name)
        if dataclasses.is_dataclass(item):
            yield f"{indent}{entry.name}:"
            yield from _lines(item, indent + "  ")
        elif isinstance(item, list) and item and dataclasses.is_dataclass(item[0]):
            yield f"{indent}{entry.name}:"
            for part in item[:20]:
                first, *rest = _lines(part, indent + "  ")
                yield f"{indent}- {first.strip()}"
                yield from rest
            if len(item) > 20:
                yield f"{indent}  ... {len(item) - 20} more"
        elif isinstance(item, np.ndarray) and item.size > 40:
            yield f"{indent}{entry.name}: <{item.size} {item.dtype}>"
        else:
            yield f"{indent}{entry.name}: {item.tolist() if isinstance(item, np.ndarray) else item!r}"
