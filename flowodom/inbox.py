"""What waits between a host's receiving threads and the one that runs the session."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, NamedTuple

_IMAGES = ("image", "depth", "right", "mask")


class Item(NamedTuple):
    """One message that waits: the session's name of its topic, the message, and when it came (nanoseconds)."""

    topic: str
    message: Any
    time: int


class Inbox:
    """A queue that loses old images rather than falling behind, and never loses anything else.

    When more than ``backlog`` images wait, all but the newest are dropped (depth, right images and masks likewise), so
    that a short delay costs nothing and a long one costs no latency.

    Args:
        backlog: Most images that may wait.
    """

    def __init__(self, backlog: int) -> None:
        self._backlog = backlog
        self._items: deque[Item] = deque()
        self._ready = threading.Condition()
        self._dropped = 0
        self._closed = False

    def put(self, topic: str, message: Any, time: int) -> None:
        """Adds a message; from any thread."""
        with self._ready:
            if self._closed:
                return
            self._items.append(Item(topic, message, time))
            if topic == "image" and sum(item.topic == topic for item in self._items) > self._backlog:
                self._drop()
            self._ready.notify()

    def take(self, timeout: float | None = None) -> Item | None:
        """Returns the oldest message; None when none came within ``timeout`` seconds or the inbox was closed."""
        with self._ready:
            self._ready.wait_for(lambda: self._items or self._closed, timeout)
            return self._items.popleft() if self._items else None

    def take_dropped(self) -> int:
        """Returns how many images were dropped since this was last asked."""
        with self._ready:
            dropped, self._dropped = self._dropped, 0
            return dropped

    def clear(self) -> None:
        """Forgets all that waits."""
        with self._ready:
            self._items.clear()

    def close(self) -> None:
        """Takes nothing more in; what waits can still be taken."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()

    @property
    def closed(self) -> bool:
        """Whether nothing will ever come out any more."""
        with self._ready:
            return self._closed and not self._items

    def _drop(self) -> None:
        newest = {item.topic: i for i, item in enumerate(self._items) if item.topic in _IMAGES}
        kept = [item for i, item in enumerate(self._items) if newest.get(item.topic, i) == i]
        self._dropped += sum(item.topic == "image" for item in self._items) - 1
        self._items = deque(kept)
