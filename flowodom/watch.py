"""What does not come, or no longer: topics, the clock, images that can be used."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from flowodom.errors import MessageError
from flowodom.health import Health

_PATIENCE = 5.0
"""Seconds without messages on a topic, or without an image that can be used, after which that is a problem."""
_JUMP = 1_000_000_000
"""Nanoseconds by which a clock must go back for a jump; threads may tell the time a little out of order."""
_USED = "used"
"""An image that is used, beside the topics."""


class Silence:
    """For how long nothing has come, by a clock that may not run yet and may jump back.

    Attributes:
        now: The time, nanoseconds: that of the clock, or the machine's own while the clock stands at zero, as a
            simulated one does until it is heard.
        clock_runs: Whether it is that of the clock.
    """

    def __init__(self) -> None:
        self.now = 0
        self.clock_runs = False
        self._since: dict[str, int] = {}
        self._began: int | None = None
        self._heard: set[str] = set()

    def hear(self, name: str) -> None:
        """Notes that something came."""
        self._heard.add(name)

    def tick(self, clock: int) -> None:
        """Lets time go on to that of the clock, nanoseconds."""
        now = clock or time.monotonic_ns()
        if self._began is None or self.clock_runs != bool(clock) or self.now - now > _JUMP:
            self._began = now
            self._since.clear()
        self.now, self.clock_runs = now, bool(clock)
        self._since.update(dict.fromkeys(self._heard, now))
        self._heard.clear()

    def of(self, name: str) -> float:
        """Returns for how many seconds nothing has come of that name; from the first tick on where nothing ever has."""
        return (self.now - self._since.get(name, self._began or 0)) * 1e-9

    def recent(self, name: str, seconds: float) -> bool:
        """Tells whether something of that name has come within so many seconds."""
        return name in self._since and self.of(name) <= seconds


class Watch:
    """Keeps watch over what has to come, and reports what does not.

    Attributes:
        silence: For how long nothing has come on the topics.

    Args:
        health: Takes the reports.
        expected: Topics that have to come; of ``camera_info`` one message is enough.
        resolve: Gives the real name of a topic.
    """

    def __init__(self, health: Health, expected: Collection[str], resolve: Callable[[str], str]) -> None:
        self.silence = Silence()
        self._health = health
        self._expected = expected
        self._resolve = resolve
        self._received: set[str] = set()

    @property
    def idle(self) -> bool:
        """Whether no image has come for long, or none that could be used."""
        return max(self.silence.of("image"), self.silence.of(_USED)) > _PATIENCE

    def receive(self, topic: str) -> None:
        """Notes a message."""
        self._received.add(topic)
        self.silence.hear(topic)

    def use(self) -> None:
        """Notes that an image is used."""
        self.silence.hear(_USED)

    def tick(self, clock: int, *, paused: bool) -> None:
        """Looks what is missing.

        Args:
            clock: Nanoseconds of the clock that stamps are of; 0 while it is not heard.
            paused: Whether no image is to be used.
        """
        if paused or self.silence.of("image") > _PATIENCE:
            self.use()  # none was to be expected
        self.silence.tick(clock)
        for topic in self._expected:
            self._health.report(f"missing {topic}", self._missing(topic))
        self._health.report("clock", self._standing_clock())
        self._health.report("unused", self._unused())

    def _missing(self, topic: str) -> MessageError | None:
        if topic == "camera_info" and topic in self._received:
            return None  # one that is told once may hold for good
        if (seconds := self.silence.of(topic)) <= _PATIENCE:
            return None
        return MessageError(f"no message on {self._resolve(topic)} for {seconds:.0f} s")

    def _standing_clock(self) -> MessageError | None:
        if self.silence.clock_runs or self.silence.of("/clock") <= _PATIENCE:
            return None
        return MessageError("nothing comes on /clock, which use_sim_time goes by: publish it, or unset use_sim_time")

    def _unused(self) -> MessageError | None:
        explained = self._health.problems.keys() & {"missing image", "calibration"}
        if not self.idle or "image" not in self._received or explained:
            return None
        seconds, why = self.silence.of(_USED), self._health.noted or "the log may say why"
        return MessageError(f"no image on {self._resolve('image')} could be used for {seconds:.0f} s: {why}")
