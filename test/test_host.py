import logging
import threading
from typing import Any

import pytest

from flowodom.config import SessionConfig
from flowodom.errors import ConfigError, MessageError
from flowodom.host import Host
from flowodom.session import Session


class FakeSession:
    """Records what it is asked, and answers every message with one of its own."""

    def __init__(self) -> None:
        self.config = SessionConfig()
        self.counts = {"failures": 0}
        self.handled: list[tuple[str, Any, int]] = []
        self.ticks = threading.Event()
        self.restarts = 0

    def handle(self, topic: str, message: Any, time: int) -> list[tuple[str, Any]]:
        if message == "poison":
            raise RuntimeError("poisoned")
        self.handled.append((topic, message, time))
        return [("odom", message)]

    def tick(self, now: int) -> list[tuple[str, Any]]:
        self.ticks.set()
        return []

    def count_dropped(self, count: int) -> None:
        pass

    def restart(self) -> None:
        self.restarts += 1


def host(session: FakeSession, published: list[Any], **options: Any) -> Host:
    options = {"read": lambda message: message, "now": lambda: 7, **options}
    return Host(session, lambda *item: published.append(item), **options)  # type: ignore[arg-type]


def test_messages_go_through_the_session_in_order_and_its_answers_out() -> None:
    session, published = FakeSession(), []
    live = host(session, published, read=str.upper)
    live.start()
    live.receive("image", "a")
    live.receive("camera_info", "b")
    live.stop()
    assert session.handled == [("image", "A", 7), ("camera_info", "B", 7)]
    assert published == [("odom", "A"), ("odom", "B")]


def test_actions_are_done_in_order_with_the_messages() -> None:
    session, published = FakeSession(), []
    live = host(session, published)
    live.receive("image", "a")
    live.do(lambda given: session.handled.append(("action", given is session, 0)))
    live.receive("image", "b")
    live.start()
    live.stop()
    assert session.handled == [("image", "a", 7), ("action", True, 0), ("image", "b", 7)]


def test_who_asks_for_an_action_gets_what_comes_of_it() -> None:
    live = host(FakeSession(), [])
    done = live.do(lambda session: session.config)
    assert not done.done()
    live.start()
    live.stop()
    assert done.result(0) == SessionConfig()


def test_an_action_that_cannot_be_done_is_told_and_costs_nothing() -> None:
    session, published = FakeSession(), []
    live = host(session, published)
    refusal = ConfigError("there is no map")

    def refuse(_: Session) -> None:
        raise refusal

    done = live.do(refuse)
    live.receive("image", "a")
    live.start()
    live.stop()
    assert done.exception(0) is refusal
    assert session.restarts == 0
    assert published == [("odom", "a")]


def test_an_action_that_fails_is_told_logged_and_survived(caplog: pytest.LogCaptureFixture) -> None:
    session, published = FakeSession(), []
    live = host(session, published)
    with caplog.at_level(logging.ERROR):
        done = live.do(lambda _: 1 // 0)
        live.receive("image", "a")
        live.start()
        live.stop()
    assert isinstance(done.exception(0), ZeroDivisionError)
    assert (session.counts["failures"], session.restarts) == (1, 1)
    assert published == [("odom", "a")]
    assert "by zero" in caplog.text


def test_the_session_is_told_the_time_when_nothing_comes() -> None:
    session = FakeSession()
    live = host(session, [])
    live.start()
    assert session.ticks.wait(10)
    live.stop()


def test_a_message_that_cannot_be_read_is_handed_on_as_its_error() -> None:
    session, error = FakeSession(), MessageError("truncated")

    def read(_: Any) -> Any:
        raise error

    live = host(session, [], read=read)
    live.receive("image", b"")
    live.start()
    live.stop()
    assert session.handled == [("image", error, 7)]


def test_a_failure_is_logged_and_survived(caplog: pytest.LogCaptureFixture) -> None:
    session, published = FakeSession(), []
    live = host(session, published)
    with caplog.at_level(logging.ERROR):
        live.receive("image", "poison")
        live.receive("image", "a")
        live.start()
        live.stop()
    assert published == [("odom", "a")]
    assert (session.counts["failures"], session.restarts) == (1, 1)
    assert "poisoned" in caplog.text


def test_a_host_that_was_never_started_can_be_stopped() -> None:
    host(FakeSession(), []).stop()


def test_a_real_session_runs_in_a_host() -> None:
    published: list[Any] = []
    live = Host(
        Session(), lambda *item: published.append(item), read=lambda message: message, now=lambda: 1_000_000_000
    )
    live.start()
    live.receive("~/pause", None)
    live.stop()
    assert published[0][0] == "/diagnostics"
