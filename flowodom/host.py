"""Runs a session on a thread of its own, between the callbacks and the publishers of a live host."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from flowodom.errors import FlowodomError
from flowodom.inbox import Inbox
from flowodom.session import Publication, Session

_log = logging.getLogger(__name__)

_TICK = 0.1
"""Seconds after which the session is told the time when nothing comes."""


class Host:
    """Takes messages from any thread and hands what comes of them to a publisher.

    A message that makes the odometry fail is logged and costs the present segment, not the process: a robot keeps its
    diagnostics.

    Args:
        session: The session, used by this host's thread only.
        publish: Called with an output's name and its message, in this host's thread.
        read: Turns a received message (bytes, say) into one that the session takes; called in this host's thread, so
            that a message which is dropped costs nothing.
        now: Returns the present time, nanoseconds.
    """

    def __init__(
        self,
        session: Session,
        publish: Callable[[str, Any], None],
        *,
        read: Callable[[Any], Any],
        now: Callable[[], int],
    ) -> None:
        self._session = session
        self._publish = publish
        self._read = read
        self._now = now
        self._inbox = Inbox(session.config.sync.backlog)
        self._thread = threading.Thread(target=self._run, name="session", daemon=True)

    def start(self) -> None:
        """Starts to work."""
        self._thread.start()

    def stop(self) -> None:
        """Works off what waits, then ends the thread; returns when it has ended."""
        self._inbox.close()
        if self._thread.is_alive():
            self._thread.join()

    def receive(self, topic: str, message: Any) -> None:
        """Takes in a message; from any thread.

        Args:
            topic: Name of the session's input.
            message: What ``read`` takes.
        """
        self._inbox.put(topic, message, self._now())

    def do(self, action: Callable[[Session], Any]) -> Future[Any]:
        """Has something done to the session, in order with the messages; from any thread.

        Returns:
            What ``action`` returns, or raises, once it has been done.
        """
        done: Future[Any] = Future()
        self._inbox.put("", (action, done), self._now())
        return done

    def _run(self) -> None:
        while not self._inbox.closed:
            item = self._inbox.take(_TICK)
            try:
                self._session.count_dropped(self._inbox.take_dropped())
                if item is None:
                    out = self._session.tick(self._now())
                elif item.topic:
                    out = self._handle(item.topic, item.message, item.time)
                else:
                    self._act(*item.message)
                    continue
                for name, message in out:
                    self._publish(name, message)
            except Exception:
                _log.exception("a message made the odometry fail; it goes on with a new segment")
                self._session.counts["failures"] += 1
                self._session.restart()

    def _act(self, action: Callable[[Session], Any], done: Future[Any]) -> None:
        """Does what was asked for; that it cannot be done is told to whoever asked and costs nothing else."""
        try:
            done.set_result(action(self._session))
        except FlowodomError as error:
            done.set_exception(error)
        except Exception as error:
            done.set_exception(error)
            raise

    def _handle(self, topic: str, message: Any, time: int) -> list[Publication]:
        try:
            read: Any = self._read(message)
        except FlowodomError as error:
            read = error
        return self._session.handle(topic, read, time)
