import logging

import pytest

from flowodom.errors import MessageError
from flowodom.health import Health, Silence


def test_a_problem_is_logged_once_and_stands_until_it_is_right_again(caplog: pytest.LogCaptureFixture) -> None:
    health, error = Health(), MessageError("no depth on /depth")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            health.report("depth", error)
    assert health.problems == {"depth": error}
    assert caplog.text.count("no depth on /depth") == 1
    health.report("depth", None)
    assert health.problems == {}
    with caplog.at_level(logging.WARNING):
        health.report("depth", error)
    assert caplog.text.count("no depth on /depth") == 2


def test_what_was_never_wrong_can_be_reported_right() -> None:
    health = Health()
    health.report("depth", None)
    assert health.problems == {}


def test_what_is_passed_over_is_counted_and_named() -> None:
    health = Health()
    for _ in range(2):
        health.skip("unreadable", "image", MessageError("truncated"))
    assert health.counts == {"unreadable": 2}
    assert str(health.problems["image"]) == "truncated"


def test_what_needs_no_mending_is_counted_and_logged_the_first_time(caplog: pytest.LogCaptureFixture) -> None:
    health = Health()
    with caplog.at_level(logging.WARNING):
        for i in range(3):
            health.note("repeated", f"image {i} comes twice")
    assert health.counts == {"repeated": 3}
    assert health.problems == {}
    assert "image 0" in caplog.text
    assert "image 1" not in caplog.text
    assert health.noted == "image 2 comes twice"


SECOND = 1_000_000_000


def test_silence_begins_with_what_came_last_or_with_the_first_tick() -> None:
    silence = Silence()
    silence.tick(100 * SECOND)
    silence.hear("image")
    silence.tick(103 * SECOND)
    silence.tick(107 * SECOND)
    assert silence.of("image") == pytest.approx(4)
    assert silence.of("depth") == pytest.approx(7)
    assert silence.recent("image", 4.5)
    assert not silence.recent("image", 3.5)
    assert not silence.recent("depth", 10)


def test_silence_begins_anew_where_the_clock_jumps_back() -> None:
    silence = Silence()
    silence.tick(100 * SECOND)
    silence.hear("image")
    silence.tick(106 * SECOND)
    silence.tick(3 * SECOND)
    assert (silence.of("image"), silence.of("depth")) == (0, 0)
    silence.tick(5 * SECOND)
    assert silence.of("image") == pytest.approx(2)
    silence.tick(5 * SECOND - 1000)  # no jump, but two threads
    assert silence.of("image") == pytest.approx(2)


def test_while_the_clock_stands_at_zero_time_is_that_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic_ns", iter((2 * SECOND, 9 * SECOND)).__next__)
    silence = Silence()
    silence.tick(0)
    silence.tick(0)
    assert (silence.clock_runs, silence.of("/clock")) == (False, pytest.approx(7))
    silence.tick(1_700_000_000 * SECOND)
    assert (silence.clock_runs, silence.of("image")) == (True, 0)
