import logging

import pytest

from flowodom.errors import MessageError
from flowodom.health import Health


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
