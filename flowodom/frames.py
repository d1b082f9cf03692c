"""The tree of coordinate frames: keeps what ``/tf`` and ``/tf_static`` say and answers where one frame is in another.

``T_a_b`` maps a point in frame b to frame a; a transform message with parent a and child b carries ``T_a_b``.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from flowodom.errors import ConfigError, FrameError
from flowodom.geometry import se3

_AGREEMENT = 1e-3
"""Routes whose motions differ by less than it (metres, radians) agree."""


@dataclass
class _Edge:
    """What is known of one child in one parent: a single motion when static, a short history otherwise."""

    static: bool
    stamps: list[int] = field(default_factory=list)
    motions: list[Tensor] = field(default_factory=list)

    def insert(self, stamp: int, motion: Tensor, duration: int) -> None:
        if self.static:
            self.stamps, self.motions = [stamp], [motion]
            return
        at = bisect.bisect_left(self.stamps, stamp)
        if at < len(self.stamps) and self.stamps[at] == stamp:
            self.motions[at] = motion
            return
        self.stamps.insert(at, stamp)
        self.motions.insert(at, motion)
        old = bisect.bisect_left(self.stamps, self.stamps[-1] - duration)
        del self.stamps[:old], self.motions[:old]

    def at(self, stamp: int, tolerance: int) -> Tensor | None:
        """The motion at ``stamp``, interpolated on the geodesic; None when the history does not reach it."""
        if self.static:
            return self.motions[0]
        after = bisect.bisect_left(self.stamps, stamp)
        if after < len(self.stamps) and self.stamps[after] == stamp:
            return self.motions[after]
        if after == 0:
            return self.motions[0] if self.stamps[0] - stamp <= tolerance else None
        if after == len(self.stamps):
            return self.motions[-1] if stamp - self.stamps[-1] <= tolerance else None
        first, second = self.stamps[after - 1], self.stamps[after]
        start = self.motions[after - 1]
        step = se3.log(se3.inverse(start) @ self.motions[after])
        return start @ se3.exp(step * ((stamp - first) / (second - first)))


Euler = Callable[[float, float, float], Sequence[float]]
"""Turns roll, pitch, yaw (radians, about fixed axes) into x, y, z, w: ``tf_transformations.quaternion_from_euler``."""

_Route = list[tuple[tuple[str, str], bool]]
"""The edges of a route, (parent, child), and whether each is walked from the child to the parent."""


class FrameTree:
    """A buffer of transforms, as tf2 keeps one, that also notices when the tree contradicts itself.

    Names are compared without a leading slash. A child that is given two parents is no error by itself (only one of
    them may lead to where a caller wants to go); two routes that disagree are.

    Args:
        duration: Seconds of history kept of each moving transform.
        tolerance: Seconds by which a lookup may lie outside the history; the nearest transform is held there.
    """

    def __init__(self, *, duration: float = 10.0, tolerance: float = 0.2) -> None:
        self._duration = round(duration * 1e9)
        self._tolerance = round(tolerance * 1e9)
        self._edges: dict[tuple[str, str], _Edge] = {}
        self._newest = 0
        self._fixed: dict[tuple[str, str], Tensor] = {}

    def insert(self, parent: str, child: str, stamp: int, motion: Tensor, *, static: bool = False) -> None:
        """Adds a transform.

        Args:
            parent: Frame in which ``child`` is placed.
            child: The frame that is placed.
            stamp: Nanoseconds; ignored for a static transform.
            motion: (4, 4) float64 ``T_parent_child``.
            static: Whether it holds for all times.

        Raises:
            FrameError: A name is empty, parent and child are the same, or the motion is not finite.
        """
        parent, child = clean(parent), clean(child)
        if not parent or not child or parent == child:
            raise FrameError(f"a transform needs two different frame names, got parent {parent!r} and child {child!r}")
        if not bool(torch.isfinite(motion).all()):
            raise FrameError(f"the transform from {parent} to {child} holds NaN or infinity; mend its publisher")
        edge = self._edges.get((parent, child))
        if edge is None or edge.static != static:
            edge = self._edges[parent, child] = _Edge(static)
        edge.insert(stamp, motion.to(torch.float64), self._duration)
        if static:
            self._fixed.clear()
        else:
            self._newest = max(self._newest, stamp)
            self._forget()

    def insert_message(self, message: Any, *, static: bool = False, without: Collection[str] = ()) -> None:
        """Adds every transform of a tf2_msgs/TFMessage; those that cannot be used are named in one error at the end.

        Args:
            message: The message.
            static: Whether they hold for all times.
            without: Two frames whose transform is passed over, either way round: the one that the caller publishes.

        Raises:
            FrameError: One or more transforms were refused; the others are in.
        """
        refused = []
        for transform in message.transforms:
            if {clean(transform.header.frame_id), clean(transform.child_frame_id)} == set(without):
                continue
            try:
                self.insert(
                    transform.header.frame_id,
                    transform.child_frame_id,
                    stamp_of(transform.header),
                    motion_of(transform.transform),
                    static=static,
                )
            except FrameError as error:
                refused.append(str(error))
        if refused:
            raise FrameError("; ".join(refused))

    def lookup(self, target: str, source: str, stamp: int) -> Tensor:
        """Returns the (4, 4) float64 ``T_target_source`` at ``stamp`` nanoseconds.

        Raises:
            FrameError: A frame is unknown, the two are not connected at that time, or two routes contradict each other.
        """
        target, source = clean(target), clean(source)
        if target == source:
            return se3.identity()
        if (target, source) in self._fixed:
            return self._fixed[target, source]
        routes = list(self._routes(target, source))
        if not routes:
            raise FrameError(self._why_not(target, source))
        answers = [(route, motion) for route in routes if (motion := self._compose(route, stamp)) is not None]
        if not answers:
            raise FrameError(
                f"the transform from {source} to {target} is not known at {stamp * 1e-9:.3f} s "
                f"(newest transform {self._newest * 1e-9:.3f} s): do its publisher and the camera share a clock?"
            )
        (route, motion), *others = answers
        for _, other in others:
            if float(se3.log(se3.inverse(motion) @ other).abs().max()) > _AGREEMENT:
                raise FrameError(
                    f"tf contradicts itself between {source} and {target}: {self._describe_contradictions()}; "
                    "stop all but one of their publishers"
                )
        if all(self._edges[edge].static for edge, _ in route):
            self._fixed[target, source] = motion
        return motion

    def contradictions(self) -> dict[str, tuple[str, ...]]:
        """Returns the children that have more than one parent at present, each with its parents."""
        parents: dict[str, list[str]] = {}
        for parent, child in self._edges:
            parents.setdefault(child, []).append(parent)
        return {child: tuple(found) for child, found in parents.items() if len(found) > 1}

    def frames(self) -> set[str]:
        """Returns the names of all known frames."""
        return {name for edge in self._edges for name in edge}

    def connected(self, target: str, source: str) -> bool:
        """Tells whether some route leads from ``source`` to ``target``, at whatever time."""
        return clean(target) == clean(source) or next(self._routes(clean(target), clean(source)), None) is not None

    def root(self, frame: str) -> str:
        """Returns what ``frame`` is fixed to: the frame that static transforms lead up to, itself where none does."""
        parents = {child: parent for (parent, child), edge in self._edges.items() if edge.static}
        way = [clean(frame)]
        while (parent := parents.get(way[-1])) is not None and parent not in way:
            way.append(parent)
        return way[-1]

    def clear_moving(self) -> None:
        """Forgets all transforms that are not static, as after a jump of the clock."""
        self._edges = {names: edge for names, edge in self._edges.items() if edge.static}
        self._newest = 0

    def _forget(self) -> None:
        old = self._newest - self._duration
        stale = [names for names, edge in self._edges.items() if not edge.static and edge.stamps[-1] < old]
        for names in stale:
            del self._edges[names]

    def _routes(self, target: str, source: str) -> Iterator[_Route]:
        """Yields every simple route from ``source`` to ``target``: its edges, and whether each is walked upwards."""
        neighbours: dict[str, list[tuple[str, tuple[str, str], bool]]] = {}
        for parent, child in self._edges:
            neighbours.setdefault(child, []).append((parent, (parent, child), True))
            neighbours.setdefault(parent, []).append((child, (parent, child), False))
        stack: list[tuple[str, _Route, frozenset[str]]] = [(source, [], frozenset((source,)))]
        while stack:
            here, route, seen = stack.pop()
            if here == target:
                yield route
                continue
            for name, edge, up in neighbours.get(here, ()):
                if name not in seen:
                    stack.append((name, [*route, (edge, up)], seen | {name}))

    def _compose(self, route: _Route, stamp: int) -> Tensor | None:
        result = se3.identity()
        for names, up in route:
            motion = self._edges[names].at(stamp, self._tolerance)
            if motion is None:
                return None
            result = (motion if up else se3.inverse(motion)) @ result
        return result

    def _why_not(self, target: str, source: str) -> str:
        known = self.frames()
        missing = [name for name in (target, source) if name not in known]
        listed = ", ".join(sorted(known)) or "none at all"
        if missing:
            return f"no transform names the frame {' or '.join(missing)} (known frames: {listed})"
        return f"the frames {source} and {target} are not connected in the tf tree (known frames: {listed})"

    def _describe_contradictions(self) -> str:
        found = self.contradictions()
        return ", ".join(f"{child} has the parents {' and '.join(parents)}" for child, parents in found.items())


def clean(name: str) -> str:
    """Returns a frame name without the leading slash that ROS 1 recordings may carry."""
    return name.lstrip("/")


def stamp_of(header: Any) -> int:
    """Returns the stamp of a std_msgs/Header in nanoseconds."""
    return int(header.stamp.sec) * 1_000_000_000 + int(header.stamp.nanosec)


def motion_of(message: Any) -> Tensor:
    """Returns the (4, 4) float64 motion of a geometry_msgs Transform or Pose.

    An all-zero quaternion, which uninitialised messages carry, is read as no rotation.
    """
    if hasattr(message, "rotation"):
        place, turn = message.translation, message.rotation
    else:
        place, turn = message.position, message.orientation
    q = torch.tensor([turn.x, turn.y, turn.z, turn.w], dtype=torch.float64)
    if not bool(q.any()):
        q[3] = 1.0
    return se3.matrix(se3.from_quaternion(q), torch.tensor([place.x, place.y, place.z], dtype=torch.float64))


def quaternion_from_euler(roll: float, pitch: float, yaw: float) -> tuple[float, float, float, float]:
    """Returns the quaternion x, y, z, w of turns about the fixed axes x, then y, then z, radians (REP-103)."""
    angles = torch.diag(torch.tensor([roll, pitch, yaw], dtype=torch.float64))
    about_x, about_y, about_z = se3.so3_exp(angles)
    x, y, z, w = se3.quaternion(about_z @ about_y @ about_x).tolist()
    return x, y, z, w


def parse_pose(name: str, text: str, euler: Euler | None = None) -> Tensor | None:
    """Reads a pose among the parameters.

    Args:
        name: The parameter's name, for the error.
        text: ``x y z roll pitch yaw`` (metres, radians) or ``x y z qx qy qz qw``; empty for none.
        euler: What turns the angles into a quaternion; ``quaternion_from_euler`` when None.

    Returns:
        The (4, 4) float64 motion, None for an empty text.

    Raises:
        ConfigError: The text is neither.
    """
    if not text.strip():
        return None
    try:
        numbers = [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        numbers = []
    if len(numbers) not in (6, 7) or (len(numbers) == 7 and not any(numbers[3:])):
        raise ConfigError(f"parameter {name} must be 'x y z roll pitch yaw' or 'x y z qx qy qz qw', got {text!r}")
    turn = numbers[3:] if len(numbers) == 7 else (euler or quaternion_from_euler)(*numbers[3:])
    rotation = se3.from_quaternion(torch.tensor(list(turn), dtype=torch.float64))
    return se3.matrix(rotation, torch.tensor(numbers[:3], dtype=torch.float64))
