import pytest

from flowodom.watch import Silence

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
