"""Trajectories: stamped poses of one body, read from TUM, KITTI and bags, and two of them brought to the same instants.

Depends on geometry, frames and bags only, so that an evaluation never needs the odometry.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flowodom.bags import BagReader
from flowodom.errors import FrameError, TrajectoryError
from flowodom.frames import FrameTree, clean, motion_of, stamp_of
from flowodom.geometry import se3
from flowodom.salvage import kind_of
from flowodom.selection import POSE_TYPES, listing

_LOG = logging.getLogger(__name__)

TOLERANCE = 0.05
"""Default of the most seconds between a pose and the nearest pose of the truth that may stand for it."""

KITTI_PERIOD = 100_000_000
"""Nanoseconds between the lines of a KITTI pose file that comes without times: KITTI's 10 Hz."""

_ROTATION_TOLERANCE = 0.02
"""A matrix or quaternion of a file whose norm is off by more than it is no rounded rotation but something else."""

_PATH = "nav_msgs/msg/Path"

_FOREVER = 1e9
"""Seconds of transforms to keep: all."""

Array = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Poses of one body over time.

    Attributes:
        stamps: (N,) int64, nanoseconds, strictly increasing.
        poses: (N, 4, 4) float64, ``T_world_body``, metres.
        segments: (N,) int64, the number of the tracker's run that each pose belongs to: poses of two segments have no
            measured motion between them. None is a single segment.
        covariances: (N, 6, 6) float64 of the tangent ``(rho, phi)`` in ``T_true = pose @ exp(xi)``, metres and
            radians; None where nobody knows.
        frame: Name of the world frame, empty when unknown.
        body: Name of the body frame, empty when unknown.

    Raises:
        TrajectoryError: A shape is wrong, a value is not finite, or the stamps do not increase.
    """

    stamps: NDArray[np.int64]
    poses: Array
    segments: NDArray[np.int64] | None = None
    covariances: Array | None = None
    frame: str = ""
    body: str = ""

    def __post_init__(self) -> None:
        n = len(self.stamps)
        shapes: list[tuple[str, NDArray[Any] | None, tuple[int, ...]]] = [
            ("stamps", self.stamps, (n,)),
            ("poses", self.poses, (n, 4, 4)),
            ("segments", self.segments, (n,)),
            ("covariances", self.covariances, (n, 6, 6)),
        ]
        for name, value, shape in shapes:
            if value is not None and value.shape != shape:
                raise TrajectoryError(f"{name} of a trajectory of {n} stamps must be {shape}, got {value.shape}")
        if self.stamps.dtype != np.int64:
            raise TrajectoryError(f"stamps must be int64 nanoseconds, got {self.stamps.dtype}")
        bad = np.flatnonzero(~np.isfinite(self.poses).all(axis=(1, 2)))
        if len(bad):
            raise TrajectoryError(f"pose {bad[0]} of {n} holds NaN or infinity; leave out poses that are not known")
        bad = np.flatnonzero(np.diff(self.stamps) <= 0)
        if len(bad):
            at = int(bad[0])
            raise TrajectoryError(
                f"stamps must increase, but pose {at + 1} at {seconds_text(int(self.stamps[at + 1]))} s does not come "
                f"after pose {at} at {seconds_text(int(self.stamps[at]))} s"
            )

    def __len__(self) -> int:
        return len(self.stamps)

    @property
    def positions(self) -> Array:
        """(N, 3) places of the body, metres, world."""
        return self.poses[:, :3, 3]

    @property
    def rotations(self) -> Array:
        """(N, 3, 3) rotations ``R_world_body``."""
        return self.poses[:, :3, :3]

    @property
    def seconds(self) -> Array:
        """(N,) seconds since the first pose."""
        return np.asarray((self.stamps - self.stamps[:1]) * 1e-9, dtype=np.float64)

    @property
    def distances(self) -> Array:
        """(N,) metres travelled since the first pose."""
        steps = np.linalg.norm(np.diff(self.positions, axis=0), axis=1)
        return np.concatenate((np.zeros(min(1, len(self))), np.cumsum(steps)))

    def select(self, index: Indices | NDArray[np.bool_] | slice) -> Trajectory:
        """Returns the poses at ``index`` (indices in increasing order, a mask or a slice) with all that is theirs."""
        return replace(
            self,
            stamps=self.stamps[index],
            poses=self.poses[index],
            segments=None if self.segments is None else self.segments[index],
            covariances=None if self.covariances is None else self.covariances[index],
        )

    def split(self) -> list[Trajectory]:
        """Returns one trajectory for each segment, in order."""
        if self.segments is None:
            return [self]
        return [self.select(self.segments == number) for number in np.unique(self.segments)]

    def in_body(self, motion: Array, body: str = "") -> Trajectory:
        """Returns the trajectory of another frame that is fixed to the body.

        Args:
            motion: (4, 4) ``T_body_other``, where the other frame is in the present body.
            body: Name of the other frame.
        """
        covariances = self.covariances
        if covariances is not None:
            adjoint = se3.adjoint(torch.linalg.inv(torch.from_numpy(np.array(motion)))).numpy()
            covariances = adjoint @ covariances @ adjoint.T
        return replace(self, poses=self.poses @ motion, covariances=covariances, body=body)

    def at(self, stamps: NDArray[np.int64]) -> Array:
        """Returns the (M, 4, 4) poses at stamps within the trajectory.

        Between two poses a and b the body moves at constant body velocity: ``T_a exp(s log(inverse(T_a) T_b))``.

        Args:
            stamps: (M,) int64 nanoseconds, from the first stamp to the last.

        Raises:
            TrajectoryError: A stamp lies outside: nothing is extrapolated.
        """
        if len(stamps) and (not len(self) or stamps.min() < self.stamps[0] or stamps.max() > self.stamps[-1]):
            raise TrajectoryError(f"cannot tell poses outside the trajectory's time, {self._span()}")
        after = np.searchsorted(self.stamps, stamps, side="left")
        exact = self.stamps[after] == stamps
        before = np.where(exact, after, after - 1)
        gap = np.where(exact, 1, self.stamps[after] - self.stamps[before])
        share = torch.from_numpy((stamps - self.stamps[before]) / gap)
        start = torch.from_numpy(self.poses[before])
        step = se3.log(se3.inverse(start) @ torch.from_numpy(self.poses[after]))
        between = np.asarray((start @ se3.exp(share[:, None] * step)).numpy(), dtype=np.float64)
        between[exact] = self.poses[after[exact]]
        return between

    def _span(self) -> str:
        if not len(self):
            return "no poses"
        return f"{seconds_text(int(self.stamps[0]))} s to {seconds_text(int(self.stamps[-1]))} s"


def associate(estimate: Trajectory, truth: Trajectory, tolerance: float = TOLERANCE) -> tuple[Trajectory, Trajectory]:
    """Brings two trajectories to the same instants, those of the estimate.

    The truth is interpolated (constant body velocity between its poses, see ``Trajectory.at``), not matched to its
    nearest pose: where the rates differ, the nearest pose is up to half a period old, and at walking speed 10 ms are
    15 mm, more than a good odometry's error. Nothing is extrapolated. An estimated pose is left out when the nearest
    true pose is more than ``tolerance`` away, or when it lies before the first or after the last true pose.

    Args:
        estimate: The trajectory to be judged.
        truth: The trajectory it is judged by.
        tolerance: Seconds.

    Returns:
        The matched poses of the estimate, and the truth at their stamps (segments and covariances are the estimate's).

    Raises:
        TrajectoryError: A trajectory is empty, or not one pose matches.
    """
    for name, trajectory in (("estimated", estimate), ("true", truth)):
        if not len(trajectory):
            raise TrajectoryError(f"the {name} trajectory has no poses")
    after = np.searchsorted(truth.stamps, estimate.stamps, side="left")
    inside = (after < len(truth)) & (estimate.stamps >= truth.stamps[0])
    after = np.minimum(after, len(truth) - 1)
    nearest = np.minimum(
        np.abs(truth.stamps[after] - estimate.stamps), np.abs(truth.stamps[np.maximum(after - 1, 0)] - estimate.stamps)
    )
    matched = estimate.select(np.flatnonzero(inside & (nearest <= tolerance * 1e9)))
    if not len(matched):
        raise TrajectoryError(
            f"no pose of the estimate ({estimate._span()}) lies within {tolerance:g} s of a pose of the truth "
            f"({truth._span()}): do both use the same clock? A KITTI file has no stamps, give its times; a truth of "
            "low rate needs a greater tolerance"
        )
    return matched, replace(truth, stamps=matched.stamps, poses=truth.at(matched.stamps), segments=None)


def seconds_text(stamp: int) -> str:
    """Returns integer nanoseconds as decimal seconds, exactly."""
    sign = "-" if stamp < 0 else ""
    return f"{sign}{abs(stamp) // 1_000_000_000}.{abs(stamp) % 1_000_000_000:09d}"


def write_tum(path: Path, trajectory: Trajectory) -> None:
    """Writes a TUM file: ``stamp tx ty tz qx qy qz qw`` a line, seconds and metres.

    Frames and segments go into comment lines (``# frame: odom``, ``# body: base_link``, ``# segment: 1``), which
    ``read_tum`` understands and every other reader of TUM files skips.

    Raises:
        TrajectoryError: The file cannot be written.
    """
    lines = ["# stamp[s] tx[m] ty tz qx qy qz qw"]
    lines += [f"# {key}: {name}" for key, name in (("frame", trajectory.frame), ("body", trajectory.body)) if name]
    quaternions = se3.quaternion(torch.from_numpy(trajectory.rotations.copy())).numpy()
    segment = None
    for i, (stamp, position, q) in enumerate(zip(trajectory.stamps, trajectory.positions, quaternions, strict=True)):
        if trajectory.segments is not None and trajectory.segments[i] != segment:
            segment = trajectory.segments[i]
            lines.append(f"# segment: {segment}")
        lines.append(" ".join([seconds_text(int(stamp)), *(f"{value:.9f}" for value in (*position, *q))]))
    _write(path, lines)


def read_tum(path: Path) -> Trajectory:
    """Reads a TUM file: ``stamp tx ty tz qx qy qz qw`` a line, ``#`` begins a comment.

    Stamps are kept to the nanosecond; quaternions are normalised.

    Raises:
        TrajectoryError: The file cannot be read, or a line is not as above; the message names the line.
    """
    notes: dict[str, str] = {}
    segment, segments = 0, []

    def comment(text: str, where: str) -> None:
        nonlocal segment
        key, colon, value = (part.strip() for part in text.partition(":"))
        if colon and key in ("frame", "body"):
            notes[key] = value
        if colon and key == "segment":
            if not value.isdecimal():
                raise TrajectoryError(f"{where}: the number of a segment must be a whole number, got {value!r}")
            segment = int(value)

    stamps, rows, lines = [], [], []
    for where, number, fields in _rows(path, comment):
        if len(fields) != 8:
            raise TrajectoryError(f"{where}: a TUM line has 8 numbers (stamp tx ty tz qx qy qz qw), got {len(fields)}")
        stamps.append(_stamp(fields[0], where))
        rows.append(_numbers(fields[1:], where))
        norm = float(np.linalg.norm(rows[-1][3:]))
        if abs(norm - 1) > _ROTATION_TOLERANCE:
            raise TrajectoryError(f"{where}: the quaternion (last four numbers) must have length 1, got {norm:g}")
        segments.append(segment)
        lines.append(number)
    table = np.array(rows, dtype=np.float64).reshape(-1, 7)
    poses = _poses(table[:, :3], _rotations(table[:, 3:]))
    numbers = np.array(segments, dtype=np.int64)
    return Trajectory(
        _increasing(stamps, lines, path),
        poses,
        numbers if numbers.any() else None,
        frame=notes.get("frame", ""),
        body=notes.get("body", ""),
    )


def write_kitti(path: Path, trajectory: Trajectory) -> None:
    """Writes a KITTI pose file: the 3x4 matrix ``T_world_body`` row by row, 12 numbers a line, metres, no stamps.

    Raises:
        TrajectoryError: The file cannot be written.
    """
    _write(path, [" ".join(f"{v:.9e}" for v in row) for row in trajectory.poses[:, :3].reshape(-1, 12)])


def read_kitti(path: Path, times: Path | None = None) -> Trajectory:
    """Reads a KITTI pose file: the 3x4 matrix ``T_world_body`` row by row, 12 numbers a line, metres.

    Rotations, which such files round to six digits, are brought back to the nearest rotation.

    Args:
        path: The poses.
        times: A file of one stamp a line, seconds (KITTI's ``times.txt``). Without it pose i is at i times 0.1 s, so
            that it can only be compared with another file of the same frames.

    Raises:
        TrajectoryError: A file cannot be read, a line is not as above (the message names it), or the files differ in
            length.
    """
    rows, lines = [], []
    for where, number, fields in _rows(path):
        if len(fields) != 12:
            raise TrajectoryError(f"{where}: a KITTI line has 12 numbers (a 3x4 matrix by rows), got {len(fields)}")
        rows.append(_numbers(fields, where))
        lines.append(number)
    tops = np.array(rows, dtype=np.float64).reshape(-1, 3, 4)
    u, singular, vt = np.linalg.svd(tops[:, :, :3])
    off = (np.abs(singular - 1) > _ROTATION_TOLERANCE).any(axis=1) | (np.linalg.det(tops[:, :, :3]) < 0)
    if off.any():
        raise TrajectoryError(f"{path}, line {lines[int(np.argmax(off))]}: the left 3x3 block must be a rotation")
    if times is None:
        stamps = np.arange(len(rows), dtype=np.int64) * KITTI_PERIOD
    else:
        found, numbers = [], []
        for where, number, fields in _rows(times):
            if len(fields) != 1:
                raise TrajectoryError(f"{where}: a line of a times file has one number, got {len(fields)}")
            found.append(_stamp(fields[0], where))
            numbers.append(number)
        stamps = _increasing(found, numbers, times)
        if len(stamps) != len(rows):
            raise TrajectoryError(f"{times} has {len(stamps)} stamps for the {len(rows)} poses of {path}")
    return Trajectory(stamps, _poses(tops[:, :, 3], u @ vt))


def read_bag(path: Path, topic: str | None = None, *, body: str = "") -> Trajectory:
    """Reads a trajectory from a recording.

    A topic of nav_msgs/Odometry, geometry_msgs/PoseStamped, PoseWithCovarianceStamped or TransformStamped gives one
    pose a message; of nav_msgs/Path the last message, which has them all. ``/tf:PARENT:CHILD`` gives the place of one
    frame in another as the recording's transforms have it, at the stamps of the most frequent of them.

    Poses with NaN, and those whose stamp does not come after all before, are left out with a warning.

    Args:
        path: The recording.
        topic: Its topic. None takes the only one there is; among several ``/odom``.
        body: Frame whose trajectory is wanted, when it is another than the recorded one: the recording's static
            transforms say where it is. Where they do not, the recorded body is taken, with a warning.

    Raises:
        TrajectoryError: No topic fits, or it holds no poses.
        BagError: The recording cannot be read.
    """
    with BagReader(path) as reader:
        if topic is not None and topic.startswith("/tf:"):
            result = _read_tf(reader, topic)
        else:
            result = _read_topic(reader, _choose(reader, topic))
        return _seen_from(result, body, _static_tree([reader])) if body else result


def read(path: Path, topic: str | None = None, *, times: Path | None = None) -> Trajectory:
    """Reads a trajectory of any kind, told by what the file holds: a bag, TUM (8 numbers a line) or KITTI (12).

    Args:
        path: The file, or a recording's folder.
        topic: Topic of a bag, see ``read_bag``.
        times: Stamps of a KITTI file, see ``read_kitti``.

    Raises:
        TrajectoryError: It is of no such kind, or malformed.
        BagError: A recording cannot be read.
    """
    if _is_bag(path):
        return read_bag(path, topic)
    if topic is not None:
        raise TrajectoryError(f"{path} is a text file and has no topic {topic}")
    _, _, fields = next(iter(_rows(path)))
    if len(fields) == 8:
        return read_tum(path)
    if len(fields) == 12:
        return read_kitti(path, times)
    raise TrajectoryError(
        f"{path} is neither a bag nor a trajectory: its first line has {len(fields)} fields, a TUM file has 8 "
        "(stamp tx ty tz qx qy qz qw, spaces between) and a KITTI file 12 (a 3x4 matrix by rows)"
    )


def read_pair(
    estimate: Path,
    truth: Path,
    *,
    est_topic: str | None = None,
    truth_topic: str | None = None,
    times: Path | None = None,
) -> tuple[Trajectory, Trajectory]:
    """Reads an estimate and the truth, the truth as of the estimate's body.

    Where both name their body, the bodies differ, and a bag among the two has static transforms between them, the
    truth is moved to the estimate's body. Otherwise they are taken to be the same, with a warning when their names
    differ.

    Args:
        estimate: TUM file, KITTI file or bag.
        truth: TUM file, KITTI file or bag.
        est_topic: Topic of the estimate in a bag; None takes the only one there is, among several ``/odom``.
        truth_topic: Topic of the truth in a bag; None takes the only one there is, among several the one that is
            called ground truth.
        times: Stamps of KITTI files.

    Raises:
        TrajectoryError: A file is malformed, or no topic fits.
        BagError: A recording cannot be read.
    """
    estimated = read(estimate, est_topic, times=times)
    if truth_topic is None and _is_bag(truth):
        with BagReader(truth) as reader:
            truth_topic = _choose(reader, None, hint="truth")
    true = read(truth, truth_topic, times=times)
    if not estimated.body or not true.body or estimated.body == true.body:
        return estimated, true
    with contextlib.ExitStack() as stack:
        tree = _static_tree([stack.enter_context(BagReader(p)) for p in (truth, estimate) if _is_bag(p)])
    return estimated, _seen_from(true, estimated.body, tree)


def pose_of(message: Any) -> tuple[int, str, str, Array]:
    """Returns what a pose message says.

    Args:
        message: nav_msgs/Odometry, geometry_msgs/PoseStamped, PoseWithCovarianceStamped or TransformStamped.

    Returns:
        Stamp in nanoseconds, frame, body (empty where the type has none), and the (4, 4) pose.
    """
    body = clean(getattr(message, "child_frame_id", ""))
    held = message.transform if hasattr(message, "transform") else message.pose
    pose = motion_of(getattr(held, "pose", held)).numpy()
    return stamp_of(message.header), clean(message.header.frame_id), body, pose


def _is_bag(path: Path) -> bool:
    if path.is_dir() or path.name == "metadata.yaml":
        return True
    try:
        return bool(kind_of(path))
    except OSError as error:
        raise TrajectoryError(f"cannot read a trajectory from {path}: {error.strerror or error}") from error


def _choose(reader: BagReader, topic: str | None, *, hint: str = "") -> str:
    """Returns the topic to read, with its leading slash."""
    fitting = [t for t in reader.topics.values() if t.msgtype in (*POSE_TYPES, _PATH) and t.count]
    if topic is not None:
        name = topic if topic.startswith("/") else f"/{topic}"
        if not any(t.name == name for t in fitting):
            raise TrajectoryError(f"{reader.path} has no poses on {name}; topics with poses:\n{listing(fitting)}")
        return name
    if hint:
        fitting = [t for t in fitting if hint in t.name] or fitting
    if len(fitting) > 1:
        fitting = [t for t in fitting if t.name == "/odom"] or fitting
    if len(fitting) == 1:
        return fitting[0].name
    if fitting:
        raise TrajectoryError(f"{reader.path} has several topics with poses, name one:\n{listing(fitting)}")
    raise TrajectoryError(
        f"{reader.path} has no topic with poses; the place of one frame in another can be read as /tf:PARENT:CHILD. "
        f"There are:\n{listing(reader.topics.values())}"
    )


def _read_topic(reader: BagReader, topic: str) -> Trajectory:
    messages: Iterable[tuple[int, Any]] = ((time, message) for _, time, message in reader.messages([topic]))
    if reader.topics[topic].msgtype == _PATH:
        # Poses of a path have stamps of their own, no child frame, and stand in the path's frame.
        last = max(messages, key=lambda item: item[0], default=(0, None))[1]
        messages = ((0, pose) for pose in (last.poses if last is not None else ()))
    found = [(time, *pose_of(message)) for time, message in messages]
    unstamped = sum(stamp == 0 for _, stamp, *_ in found)
    if unstamped:
        _LOG.warning("%d messages of %s carry no stamp; the time of recording stands in", unstamped, topic)
    poses = [(stamp or time, pose) for time, stamp, _, _, pose in found]
    frame, body = (found[0][2], found[0][3]) if found else ("", "")
    return _assemble(poses, f"{topic} of {reader.path}", frame, body)


def _read_tf(reader: BagReader, spelled: str) -> Trajectory:
    """Reads ``/tf:PARENT:CHILD``."""
    parts = spelled.split(":")
    if len(parts) != 3 or not all(parts):
        raise TrajectoryError(f"a pair of frames is spelled /tf:PARENT:CHILD, got {spelled!r}")
    parent, child = map(clean, parts[1:])
    tree = FrameTree(duration=_FOREVER, tolerance=0.0)
    parents: dict[str, str] = {}
    stamps: dict[str, set[int]] = {}
    for topic, _, message in reader.messages([t for t in ("/tf", "/tf_static") if t in reader.topics]):
        _insert(tree, message, static=topic == "/tf_static")
        for transform in message.transforms:
            moved = clean(transform.child_frame_id)
            parents[moved] = clean(transform.header.frame_id)
            if topic == "/tf":
                stamps.setdefault(moved, set()).add(stamp_of(transform.header))
    clock: set[int] = set()
    for name in (_ancestry(parent, parents) ^ _ancestry(child, parents)) & stamps.keys():
        clock = max(clock, stamps[name], key=len)
    poses = []
    problem = "they do not move against each other" if tree.connected(parent, child) else "no transforms connect them"
    for stamp in sorted(clock):
        try:
            poses.append((stamp, tree.lookup(parent, child, stamp).numpy()))
        except FrameError as error:
            problem = str(error)
    if not poses:
        raise TrajectoryError(f"{reader.path} does not tell where {child} is in {parent}: {problem}")
    return _assemble(poses, f"{spelled} of {reader.path}", parent, child)


def _ancestry(name: str, parents: dict[str, str]) -> set[str]:
    """Returns a frame with all its parents' parents."""
    found: set[str] = set()
    while name in parents and name not in found:
        found.add(name)
        name = parents[name]
    return found


def _assemble(poses: Iterable[tuple[int, Array]], source: str, frame: str, body: str) -> Trajectory:
    kept: list[tuple[int, Array]] = []
    dropped = 0
    for stamp, pose in poses:
        if np.isfinite(pose).all() and (not kept or stamp > kept[-1][0]):
            kept.append((stamp, pose))
        else:
            dropped += 1
    if not kept:
        raise TrajectoryError(f"{source} holds no poses that can be used ({dropped} with NaN)")
    if dropped:
        _LOG.warning(
            "%d poses of %s were left out: NaN, or a stamp that does not come after those before", dropped, source
        )
    stamps = np.array([stamp for stamp, _ in kept], dtype=np.int64)
    return Trajectory(stamps, np.stack([pose for _, pose in kept]), frame=frame, body=body)


def _static_tree(readers: Iterable[BagReader]) -> FrameTree:
    tree = FrameTree(duration=_FOREVER)
    for reader in readers:
        if "/tf_static" in reader.topics:
            for _, _, message in reader.messages(["/tf_static"]):
                _insert(tree, message, static=True)
    return tree


def _insert(tree: FrameTree, message: Any, *, static: bool) -> None:
    try:
        tree.insert_message(message, static=static)
    except FrameError as error:
        _LOG.warning("transforms were left out: %s", error)


def _seen_from(trajectory: Trajectory, body: str, tree: FrameTree) -> Trajectory:
    """Returns the trajectory of ``body``, or as it is, with a warning, where nobody knows how that is mounted."""
    body = clean(body)
    if trajectory.body == body:
        return trajectory
    try:
        if not trajectory.body:
            raise FrameError("its messages do not name their body")
        return trajectory.in_body(tree.lookup(trajectory.body, body, 0).numpy(), body)
    except FrameError as error:
        _LOG.warning(
            "the trajectory of %s is taken for that of %s (%s); when they are mounted apart, relative errors are wrong",
            trajectory.body or "an unnamed body",
            body,
            error,
        )
        return trajectory


def _write(path: Path, lines: Iterable[str]) -> None:
    try:
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    except OSError as error:
        reason = error.strerror or str(error)
        raise TrajectoryError(f"cannot write {path}: {reason}; is the disk full or the folder missing?") from error


def _rows(path: Path, comment: Callable[[str, str], None] | None = None) -> Iterable[tuple[str, int, list[str]]]:
    """Yields place (for messages), line number and fields of each line that is neither empty nor a comment."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TrajectoryError(f"cannot read a trajectory from {path}: {error}") from error
    count = 0
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        where = f"{path}, line {number}"
        if line.startswith("#"):
            if comment is not None:
                comment(line[1:], where)
        elif line:
            count += 1
            yield where, number, line.split()
    if not count:
        raise TrajectoryError(f"{path} holds no poses")


def _stamp(text: str, where: str) -> int:
    """Reads decimal seconds as integer nanoseconds; a float would lose half a microsecond of today's time."""
    try:
        value = Decimal(text)
        if not value.is_finite():
            raise InvalidOperation
        return int((value * 1_000_000_000).to_integral_value())
    except InvalidOperation as error:
        raise TrajectoryError(f"{where}: expected a stamp in seconds, got {text!r}") from error


def _numbers(fields: Sequence[str], where: str) -> list[float]:
    values = []
    for text in fields:
        try:
            value = float(text)
        except ValueError as error:
            raise TrajectoryError(f"{where}: expected a number, got {text!r}") from error
        if not np.isfinite(value):
            raise TrajectoryError(
                f"{where}: expected a finite number, got {text!r}; leave out poses that are not known"
            )
        values.append(value)
    return values


def _increasing(stamps: Sequence[int], lines: Sequence[int], path: Path) -> NDArray[np.int64]:
    result = np.array(stamps, dtype=np.int64)
    bad = np.flatnonzero(np.diff(result) <= 0)
    if len(bad):
        at = int(bad[0])
        raise TrajectoryError(
            f"{path}, line {lines[at + 1]}: the stamp {seconds_text(stamps[at + 1])} s does not come after "
            f"{seconds_text(stamps[at])} s of line {lines[at]}; sort the file by stamp and leave out repeated lines"
        )
    return result


def _rotations(quaternions: Array) -> Array:
    return np.asarray(se3.from_quaternion(torch.from_numpy(quaternions)).numpy(), dtype=np.float64)


def _poses(positions: Array, rotations: Array) -> Array:
    poses = np.zeros((len(positions), 4, 4))
    poses[:, :3, :3] = rotations
    poses[:, :3, 3] = positions
    poses[:, 3, 3] = 1
    return poses
