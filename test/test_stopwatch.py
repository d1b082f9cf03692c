"""What stages take is added up by name."""

import pytest

from flowodom import stopwatch
from flowodom.stopwatch import Stopwatch


def test_stages_are_added_up(monkeypatch):
    times = iter((1.0, 1.5, 2.0, 2.25, 3.0, 7.0))
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: next(times))
    clock = Stopwatch()
    for stage in ("flow", "flow", "pose"):
        with clock(stage):
            pass
    assert clock.seconds == {"flow": 0.75, "pose": 4.0}


def test_what_fails_is_not_counted():
    clock = Stopwatch()
    with pytest.raises(ValueError, match="no"), clock("pose"):
        raise ValueError("no")
    assert clock.seconds == {}
