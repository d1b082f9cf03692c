"""What goes wrong while messages are worked off: counted, named while it lasts, and logged once."""

from __future__ import annotations

import logging
import time
from collections import Counter

from flowodom.errors import FlowodomError

_log = logging.getLogger(__name__)

_JUMP = 1_000_000_000
"""Nanoseconds by which a clock must go back for a jump; threads may tell the time a little out of order."""


class Health:
    """Counts of what happened, and the problems that there are at present.

    Attributes:
        counts: How often each thing happened, by its name in the diagnostics.
        problems: What is wrong at present, by key.
        noted: What was noted last that needs no mending; empty for nothing yet.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.problems: dict[str, FlowodomError] = {}
        self.noted = ""

    def report(self, key: str, error: FlowodomError | None) -> None:
        """Notes what is wrong, or that it is right again.

        Args:
            key: What it is about; each is logged once and stands until it is right again.
            error: Says what is wrong and what to do; None when it is right.
        """
        if error is None:
            self.problems.pop(key, None)
            return
        if key not in self.problems:
            _log.warning("%s", error)
        self.problems[key] = error

    def skip(self, count: str, key: str, error: FlowodomError) -> None:
        """Counts a message that is passed over, and reports why."""
        self.counts[count] += 1
        self.report(key, error)

    def note(self, count: str, text: str) -> None:
        """Counts what needs no mending and is logged the first time only."""
        self.counts[count] += 1
        self.noted = text
        if self.counts[count] == 1:
            _log.warning("%s (further ones are only counted)", text)


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
