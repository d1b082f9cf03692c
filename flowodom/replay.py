"""A bag in; odometry, clouds, trajectory, drift and a report out. The host that needs neither ROS nor a clock."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from flowodom.bags import BagReader, BagWriter, RawMessage, Selection
from flowodom.config import SessionConfig
from flowodom.errors import BagError, FlowodomError, MessageError, TrajectoryError
from flowodom.evaluation import Evaluation
from flowodom.frame import Frame
from flowodom.frames import clean
from flowodom.geometry import se3
from flowodom.inbox import Inbox
from flowodom.messages import MessageFactory
from flowodom.odometry import Estimate
from flowodom.report import ReportBuilder
from flowodom.session import Placement, Publication, Session
from flowodom.trajectory import Trajectory, read_bag, write_tum

_log = logging.getLogger(__name__)

_INPUTS = ("image", "camera_info", "depth", "depth_info", "right", "right_info")
"""Parts of a selection that the session takes, by the same names."""
_AHEAD = 12
"""Messages decoded ahead of the odometry."""
_STATIC = "/tf_static"
_CLOUDS = ("points", "dynamic_points", "objects", "object_odometry")


@dataclass(frozen=True)
class Result:
    """What a replay gave.

    Attributes:
        files: What was written: odometry.mcap, trajectory.tum, drift.json (with a truth) and report.html.
        frames: Frames given to the odometry.
        published: Frames whose pose was believed.
        dropped: Frames dropped to keep pace (never without ``rate``).
        seconds: Wall time from the first message to the last.
        evaluation: The errors; None without a truth to compare with.
        interrupted: Whether it was stopped before the end.
        failure: The fault in the program that ended it early; None without one.
    """

    files: tuple[Path, ...]
    frames: int
    published: int
    dropped: int
    seconds: float
    evaluation: Evaluation | None
    interrupted: bool
    failure: Exception | None = None

    def summary(self) -> str:
        """Returns the drift table and what was written, for a terminal."""
        lines = [self.evaluation.table(definitions=False), ""] if self.evaluation else []
        speed = f" in {self.seconds:.1f} s ({self.frames / self.seconds:.1f} frames/s)" if self.seconds > 0 else ""
        lines.append(
            f"{self.frames} frames{speed}, {self.published} with a pose"
            + (f", {self.dropped} dropped to keep pace" if self.dropped else "")
            + ("; stopped before the end" if self.interrupted else "")
            + (f"; ended early by a fault: {self.failure!r}" if self.failure else "")
        )
        return "\n".join([*lines, *(f"wrote {path}" for path in self.files)])


class _Entry(NamedTuple):
    """One message of the bag: its topic for the session, its time, and what the session's ``decode`` made of it."""

    topic: str
    time: int
    message: Any
    raw: RawMessage


def replay(
    bag: Path,
    out: Path,
    config: SessionConfig | None = None,
    *,
    topics: Mapping[str, str | None] | None = None,
    start: float = 0.0,
    duration: float | None = None,
    rate: float | None = None,
    report: bool = True,
    points: bool = True,
    progress: bool = True,
    observe: Callable[[Frame, Estimate, Placement | None], None] | None = None,
) -> Result:
    """Runs the odometry on a recording.

    An interrupt (Ctrl-C) or a fault in the program ends it early: what was done until then is evaluated and every file
    is whole.

    Args:
        bag: The recording.
        out: Folder for the results; made where missing, its former results are replaced.
        config: Parameters.
        topics: Topics that are not to be found automatically, see ``selection.select``.
        start: Seconds to skip at the start.
        duration: Seconds to read; all when None.
        rate: Multiple of the recorded speed to keep to, as if live: frames that come while the odometry is busy are
            dropped. As fast as possible, every frame, when None.
        report: Whether to write report.html.
        points: Whether to write the clouds.
        progress: Whether to draw a progress bar on the terminal.
        observe: Shown every frame, what it told and where that puts the base.

    Raises:
        FlowodomError: The recording cannot be used, nothing came out of it, or the results cannot be written.
        Exception: A fault in the program came before any result.
    """
    with BagReader(bag) as reader:
        selection = reader.select(topics)
        names = _session_names(reader, selection)
        config = config or SessionConfig()
        config = adapt(reader, selection, config)
        camera = _camera_frame(reader, selection, config)
        builder = ReportBuilder(snapshots=8 if report else 0, optical=config.base_frame == camera)
        real = {name: topic for topic, name in names.items()}
        outputs = {"odom", "/tf", "path", "/diagnostics", *(_CLOUDS if points else ())}
        session = Session(
            config,
            inputs=set(names.values()),
            wanted=outputs.__contains__,
            on_estimate=lambda frame, estimate, placement: run.observe(frame, estimate, placement),
            resolve=lambda name: real.get(name, name),
        )
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BagError(f"cannot make the folder {out}: {error.strerror or error}") from error
        truth = _truth(bag, selection, config)
        with BagWriter(out / "odometry.mcap", overwrite=True) as writer:
            run = _Run(session, writer, names, selection.ground_truth, builder, truth, observe)
            for raw in reader.raw_messages([_STATIC]):
                run.take_static(raw)
            wanted = [*names, *([selection.ground_truth] if selection.ground_truth else [])]
            messages = reader.raw_messages(wanted, start=start, duration=duration)
            total = reader.topics[selection.image].count if start == 0 and duration is None else None
            begin = time.perf_counter()
            end = run.drive(messages, rate, total if progress else None, progress)
            seconds = time.perf_counter() - begin
        interrupted, failure = isinstance(end, KeyboardInterrupt), end if isinstance(end, Exception) else None
        if failure is not None and not session.counts["published"]:
            raise failure
        problem = session.failure()
        if problem is not None and not interrupted:
            raise problem
        files = [out / "odometry.mcap"]
        evaluation = _write_results(out, bag, builder, truth, session, report, files)
        if config.map.voxel:
            try:
                files += session.save_map().result()
            except FlowodomError as error:
                _log.error("%s", error)
    counts = session.counts
    return Result(
        tuple(files),
        counts["frames"],
        counts["published"],
        counts["dropped"],
        seconds,
        evaluation,
        interrupted,
        failure,
    )


class _Run:
    """Moves messages from a bag through the session into another."""

    def __init__(
        self,
        session: Session,
        writer: BagWriter,
        names: Mapping[str, str],
        truth_topic: str | None,
        builder: ReportBuilder,
        truth: Trajectory | None,
        observe: Callable[[Frame, Estimate, Placement | None], None] | None,
    ) -> None:
        self._session = session
        self._observe = observe
        self._writer = writer
        self._names = names
        self._truth_topic = truth_topic
        self._builder = builder
        self._truth = truth
        self._now = 0

    def take_static(self, raw: RawMessage) -> None:
        """Takes in the fixed transforms, which hold for the whole recording wherever they were recorded."""
        self._writer.copy(raw)
        self._session.handle(_STATIC, raw.message())

    def observe(self, frame: Frame, estimate: Estimate, placement: Placement | None) -> None:
        """Collects what the report and the evaluation need: the base's pose in the place of the camera's."""
        if self._observe is not None:
            self._observe(frame, estimate, placement)
        pose = None if placement is None else placement.pose
        covariance = None if placement is None else placement.covariance
        moved = dataclasses.replace(estimate, pose=pose, covariance=covariance)
        self._builder.add(frame, moved, objects=self._session.objects)
        if pose is not None:
            self._tie(estimate.stamp, pose)

    def _tie(self, stamp: int, pose: Tensor) -> None:
        """Places the odometry's frame in the world of the truth, once, so that a viewer shows both together."""
        truth, odom = self._truth, self._session.config.odom_frame
        if truth is None or not truth.frame or truth.frame == odom or not len(truth):
            return
        if truth.stamps[0] <= stamp <= truth.stamps[-1]:
            true = torch.from_numpy(truth.at(np.array([stamp]))[0])
            make = MessageFactory(self._writer.store)
            transform = make.transform(stamp, truth.frame, odom, true @ se3.inverse(pose))
            self._writer.write(_STATIC, make.tf_message([transform]), self._now)
            self._truth = None

    def drive(
        self, messages: Iterable[RawMessage], rate: float | None, total: int | None, progress: bool
    ) -> KeyboardInterrupt | Exception | None:
        """Works off all messages; returns what ended it early, an interrupt or a fault in the program.

        Raises:
            FlowodomError: A message cannot be read or written.
        """
        decoded = self._decode(messages)
        stack = contextlib.ExitStack()
        bar = stack.enter_context(tqdm(total=total, unit="frame", disable=not progress))
        try:
            with stack:
                entries = stack.enter_context(_ahead(decoded) if rate is None else _paced(decoded, rate, self._session))
                for entry in entries:
                    if self._names.get(entry.raw.topic) == "image":
                        bar.update()
                    self._now = entry.time
                    self._take(entry)
                self._write(self._session.flush(), self._now)
        except KeyboardInterrupt as interrupt:
            _log.warning("stopped; evaluating what was done")
            self._write(self._session.flush(), self._now)
            return interrupt
        except FlowodomError:
            raise
        except Exception as fault:
            _log.exception("a fault in flowodom; evaluating what was done")
            return fault
        return None

    def _decode(self, messages: Iterable[RawMessage]) -> Iterator[_Entry]:
        for raw in messages:
            name = self._names.get(raw.topic, "")
            if name == _STATIC:
                continue
            message: Any = None
            if name:
                try:
                    message = self._session.decode(name, raw.message())
                except MessageError as error:
                    message = error
            yield _Entry(name, raw.time, message, raw)

    def _take(self, entry: _Entry) -> None:
        if entry.raw.topic == self._truth_topic:
            self._writer.copy(entry.raw)
        if entry.topic:
            self._write(self._session.handle(entry.topic, entry.message, entry.time), entry.time)

    def _write(self, publications: Iterable[Publication], when: int) -> None:
        for topic, message in publications:
            self._writer.write(topic if topic.startswith("/") else f"/{topic}", message, when)


@contextlib.contextmanager
def _ahead(entries: Iterator[_Entry]) -> Iterator[Iterator[_Entry]]:
    """Makes entries in another thread, a few ahead of their use; order and content stay the same."""
    made: queue.Queue[_Entry | BaseException | None] = queue.Queue(_AHEAD)
    stop = threading.Event()

    def put(item: _Entry | BaseException | None) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                made.put(item, timeout=0.1)
                return

    def produce() -> None:
        try:
            for entry in entries:
                put(entry)
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    def consume() -> Iterator[_Entry]:
        while (item := made.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    thread = threading.Thread(target=produce, name="decode", daemon=True)
    thread.start()
    try:
        yield consume()
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def _paced(entries: Iterator[_Entry], rate: float, session: Session) -> Iterator[Iterator[_Entry]]:
    """Gives entries out at ``rate`` times the recorded speed, and drops images that nobody was ready to take."""
    inbox = Inbox(session.config.sync.backlog)
    stop = threading.Event()
    failures: list[BaseException] = []

    def produce() -> None:
        try:
            begin: float | None = None
            for entry in entries:
                now = time.monotonic()
                begin = now - entry.time * 1e-9 / rate if begin is None else begin
                if stop.wait(max(0.0, begin + entry.time * 1e-9 / rate - now)):
                    return
                inbox.put(entry.topic, entry, entry.time)
        except BaseException as error:
            failures.append(error)
        finally:
            inbox.close()

    def consume() -> Iterator[_Entry]:
        while (item := inbox.take()) is not None:
            session.count_dropped(inbox.take_dropped())
            yield item.message
        if failures:
            raise failures[0]

    thread = threading.Thread(target=produce, name="play", daemon=True)
    thread.start()
    try:
        yield consume()
    finally:
        stop.set()
        thread.join()


def _session_names(reader: BagReader, selection: Selection) -> dict[str, str]:
    """Returns the bag's topics that the session takes, each with the session's name for it."""
    chosen = {name: getattr(selection, name) for name in _INPUTS}
    names = {topic: name for name, topic in chosen.items() if topic}
    return names | {topic: topic for topic in ("/tf", _STATIC) if topic in reader.topics}


def adapt(reader: BagReader, selection: Selection, config: SessionConfig) -> SessionConfig:
    """Fills in what a recording itself says: whether images are rectified, and which frame can be the base.

    Where no transform connects ``base_frame`` with the camera, the base is the body whose true pose was recorded if
    that is connected, and otherwise what the camera is fixed to: a frame that has a parent already must not get
    another one on tf.

    Args:
        reader: The recording, open.
        selection: Its topics.
        config: Parameters.
    """
    if selection.rectified and not config.rectified:
        _log.info("%s is rectified by its name: its distortion is not applied again", selection.image)
        config = dataclasses.replace(config, rectified=True)
    tree = reader.frame_tree()
    camera = _camera_frame(reader, selection, config)
    if tree.connected(config.base_frame, camera):
        return config
    body = getattr(_first(reader, selection.ground_truth), "child_frame_id", "") if selection.ground_truth else ""
    base = body if body and tree.connected(body, camera) else tree.root(camera)
    _log.warning("no transform connects %s with the camera: %s is the base instead", config.base_frame, base)
    return dataclasses.replace(config, base_frame=base)


def _camera_frame(reader: BagReader, selection: Selection, config: SessionConfig) -> str:
    return config.camera_frame or clean(_first(reader, selection.image).header.frame_id)


def _first(reader: BagReader, topic: str) -> Any:
    for _, _, message in reader.messages([topic]):
        return message
    raise BagError(f"no message of {topic} can be read")


def _truth(bag: Path, selection: Selection, config: SessionConfig) -> Trajectory | None:
    """Returns the true trajectory of the base, None without any."""
    if selection.ground_truth is None:
        return None
    try:
        return read_bag(bag, selection.ground_truth, body=config.base_frame)
    except FlowodomError as error:
        _log.warning("the truth on %s cannot be used: %s", selection.ground_truth, error)
        return None


def _write_results(
    out: Path,
    bag: Path,
    builder: ReportBuilder,
    truth: Trajectory | None,
    session: Session,
    report: bool,
    files: list[Path],
) -> Evaluation | None:
    config = session.config
    trajectory = dataclasses.replace(builder.trajectory(), frame=config.odom_frame, body=config.base_frame)
    write_tum(out / "trajectory.tum", trajectory)
    files.append(out / "trajectory.tum")
    evaluation = None
    if truth is not None:
        try:
            evaluation = builder.evaluate(truth)
            _write_json(out / "drift.json", builder.drift(evaluation))
            files.append(out / "drift.json")
        except TrajectoryError as error:
            _log.warning("no drift: %s", error)
    if report:
        builder.write(
            out / "report.html",
            title=bag.stem,
            truth=truth,
            evaluation=evaluation,
            configuration=config,
            learned=session.learned,
        )
        files.append(out / "report.html")
    return evaluation


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    try:
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise BagError(f"cannot write {path}: {error.strerror or error}; is the disk full?") from error
