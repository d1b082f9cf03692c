"""What goes wrong while messages are worked off: counted, named while it lasts, and logged once."""

from __future__ import annotations

import logging
from collections import Counter

from flowodom.errors import FlowodomError

_log = logging.getLogger(__name__)


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
