"""Messages in, messages out: everything that a host of the odometry does, without the host.

Topics are named as a ROS node would name them before remapping (``INPUTS``, ``OUTPUTS``); hosts resolve the names, move
the bytes, and add no behaviour of their own.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rosbags.typesys.store import Typestore
from torch import Tensor

from flowodom import mapping, messages, object_maps
from flowodom.clouds import make_cloud
from flowodom.config import SessionConfig
from flowodom.errors import BagError, ConfigError, FlowodomError, FrameError, MessageError
from flowodom.frame import Frame
from flowodom.frames import Euler, FrameTree, clean, motion_of, parse_pose, stamp_of
from flowodom.geometry import PinholeCamera, se3
from flowodom.health import Health
from flowodom.messages import DiagnosticStatus, MessageFactory
from flowodom.odometry import Estimate, Odometry, Status, decided
from flowodom.pairing import Moment, Pairing, Picture
from flowodom.registration.covariance import along_parent
from flowodom.scene_flow import PropertySet
from flowodom.scene_flow.objects import MovingObject
from flowodom.surroundings import OF_FIELDS, Surroundings
from flowodom.watch import Watch

_log = logging.getLogger(__name__)

_IMAGES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
_STATIC = 0.5
"""Least weight in the pose fit of a point of the map."""
_FINER = 0.5
"""Size of the voxels of objects, as a share of the map's."""

_UNKNOWN_VARIANCE = 9999.0
_RIVAL = "rival"
"""A transform like the one that is published, by somebody else."""
_RIVALRY = 5.0
"""Seconds for which it is named in the diagnostics."""
_RATE_SPAN = 5.0
"""Seconds of which the diagnostics tell the rate and the latency."""
_CLOUDS = ("points", "dynamic_points")
_PATH_PERIOD = 1.0
_DIAGNOSTICS_PERIOD = 1.0
_TOLD = 100
"""Transforms that are published, and may be heard again, of which the stamps are remembered."""
_OK, _WARN, _ERROR = 0, 1, 2


@dataclass(frozen=True)
class Port:
    """One topic of a session.

    Attributes:
        name: Name before remapping; absolute where ROS has it so, ``~/`` for a node's own.
        types: Message types; the first is the usual one.
        description: One line for documentation.
        latched: Whether late subscribers get the last message (transient local).
        reliable: Whether no message may get lost.
    """

    name: str
    types: tuple[str, ...]
    description: str
    latched: bool = False
    reliable: bool = False


INPUTS = (
    Port("image", _IMAGES, "camera image, raw or compressed"),
    Port("camera_info", ("sensor_msgs/msg/CameraInfo",), "calibration of the camera"),
    Port("depth", _IMAGES, "depth, raw or compressedDepth; optional"),
    Port(
        "depth_info", ("sensor_msgs/msg/CameraInfo",), "calibration of the depth camera, where depth is not registered"
    ),
    Port("right", _IMAGES, "image of the right camera of a stereo pair, raw or compressed; optional"),
    Port("right_info", ("sensor_msgs/msg/CameraInfo",), "calibration of the right camera; optional"),
    Port("mask", _IMAGES, "pixels to ignore are 255; optional"),
    Port("/tf", ("tf2_msgs/msg/TFMessage",), "moving transforms", reliable=True),
    Port("/tf_static", ("tf2_msgs/msg/TFMessage",), "fixed transforms", latched=True, reliable=True),
    Port("~/reset", ("std_msgs/msg/Empty",), "start anew at the origin", reliable=True),
    Port("~/pause", ("std_msgs/msg/Empty",), "ignore images until resumed", reliable=True),
    Port("~/resume", ("std_msgs/msg/Empty",), "go on at the last pose", reliable=True),
    Port(
        "~/set_pose",
        ("geometry_msgs/msg/PoseWithCovarianceStamped",),
        "start anew with the base at this pose of the odometry frame",
        reliable=True,
    ),
)
OUTPUTS = (
    Port("odom", ("nav_msgs/msg/Odometry",), "pose and twist of the base with covariances", reliable=True),
    Port("/tf", ("tf2_msgs/msg/TFMessage",), "odom_frame to base_frame", reliable=True),
    Port("path", ("nav_msgs/msg/Path",), "the way travelled, thinned out", latched=True, reliable=True),
    Port("points", ("sensor_msgs/msg/PointCloud2",), "the scene, a velocity with every point", reliable=True),
    Port("dynamic_points", ("sensor_msgs/msg/PointCloud2",), "the points that move on their own", reliable=True),
    Port("objects", ("visualization_msgs/msg/MarkerArray",), "boxes, velocities, numbers and trails", reliable=True),
    Port("object_odometry", ("nav_msgs/msg/Odometry",), "pose and twist of every moving object", reliable=True),
    Port("forecast", ("visualization_msgs/msg/MarkerArray",), "where base and objects will be", reliable=True),
    Port("moving_mask", ("sensor_msgs/msg/Image",), "pixels that move on their own are 255", reliable=True),
    Port("flow", ("sensor_msgs/msg/Image",), "optical flow by the colour wheel", reliable=True),
    Port("weights", ("sensor_msgs/msg/Image",), "the image, tinted by the weight in the pose fit", reliable=True),
    Port("/diagnostics", ("diagnostic_msgs/msg/DiagnosticArray",), "state, rates, latencies, problems", reliable=True),
)

Publication = tuple[str, Any]
"""An output's name and its message."""


@dataclass(frozen=True)
class Placement:
    """Where the base is, and how it moves.

    Attributes:
        pose: (4, 4) float64 ``T_odom_base``.
        covariance: (6, 6) float64 of ``xi`` in ``T_odom_base exp(xi)``; None when not known.
        extrinsic: (4, 4) float64 ``T_base_camera``.
        twist: (6,) float64 of the base in itself; zero where it is not known.
        twist_covariance: (6, 6) float64 of ``twist``.
    """

    pose: Tensor
    covariance: Tensor | None
    extrinsic: Tensor
    twist: Tensor
    twist_covariance: Tensor


class _Mounting(NamedTuple):
    """Where the camera is on its base, with what is made of that for every frame."""

    motion: Tensor
    inverse: Tensor
    adjoint: Tensor


class _Work(NamedTuple):
    """What one frame took: its stamp (nanoseconds), the seconds of work, and those from the stamp to its pose."""

    stamp: int
    seconds: float
    delay: float | None


class Session:
    """The odometry in message clothes.

    Not thread-safe: a host calls it from one thread (``decode`` excepted, which may run anywhere).

    Args:
        config: All parameters.
        odometry: What estimates the motion; made from ``config`` when None.
        store: Typestore of the messages that go out; that of the newest long-term distribution when None.
        inputs: Names of the inputs that the host feeds, all when None; images do not wait for one that it does not.
        wanted: Tells whether anybody listens to an output; what nobody wants is not computed.
        on_estimate: Called with every frame, its estimate and where that places the base (None when nothing does).
        resolve: Gives the real name of a topic, for diagnostics.
        name: What the host is called, for diagnostics.
        clock: Returns the present time, nanoseconds of the clock that stamps are of, 0 while it is not known; the
            diagnostics tell by it how late poses are. They do not when None.
        convert: Converts raw colour images in place of the built-in decoder.
        euler: Turns roll, pitch and yaw of a pose among the parameters into a quaternion x, y, z, w, in place of the
            built-in formula.

    Raises:
        ConfigError: A pose among the parameters is malformed.
    """

    def __init__(
        self,
        config: SessionConfig | None = None,
        *,
        odometry: Odometry | None = None,
        store: Typestore | None = None,
        inputs: Collection[str] | None = None,
        wanted: Callable[[str], bool] = lambda _: True,
        on_estimate: Callable[[Frame, Estimate, Placement | None], None] | None = None,
        resolve: Callable[[str], str] = str,
        name: str = "flowodom",
        clock: Callable[[], int] | None = None,
        convert: messages.Converter | None = None,
        euler: Euler | None = None,
    ) -> None:
        self.config = decided(config or SessionConfig())
        self.frames = FrameTree()
        self._health = Health()
        self.counts = self._health.counts
        self._odometry = odometry or Odometry(self.config)
        self._make = MessageFactory(store)
        self._map = mapping.RigidMap(self.config.map.voxel) if self.config.map.voxel else None
        self._object_maps = object_maps.ObjectMaps(_FINER * self.config.map.voxel)
        self._surroundings = Surroundings(self._make, wanted, always=self._map is not None)
        self._inputs = frozenset((port.name for port in INPUTS) if inputs is None else inputs)
        self._wanted = wanted
        self._on_estimate = on_estimate
        self._resolve = resolve
        self._name = name
        self._clock = clock
        self._convert = convert
        self._paused = False
        self._pairing = Pairing(
            self.config,
            self._health,
            with_depth="depth" in self._inputs,
            with_right=inputs is not None and "right" in inputs,
            resolve=resolve,
            locate=self.frames.lookup,
        )
        expected = [topic for topic in ("image", "camera_info", "depth") if topic in self._inputs]
        if "depth" in expected and self.config.depth.source != "sensor":
            expected.remove("depth")
        self._watch = Watch(self._health, expected, resolve)

        self._extrinsic_given = parse_pose("extrinsic", self.config.extrinsic, euler)
        start = parse_pose("initial_pose", self.config.initial_pose, euler)
        self._start = se3.identity() if start is None else start
        self._anchors: dict[int, Tensor] = {}
        self._base_pose: Tensor | None = None
        self._guess: Tensor | None = None
        self._mounting: _Mounting | None = None
        self._estimate: Estimate | None = None
        self._map_writer = ThreadPoolExecutor(1, "map")
        self._path: list[Any] = []
        self._path_shown = True
        self._path_interval = 0.0
        self._last: dict[str, int] = {}
        self._window: deque[_Work] = deque()
        self._told: deque[int] = deque(maxlen=_TOLD)

    @property
    def learned(self) -> dict[str, str]:
        """What images have told of the cameras that no calibration says, in words; nothing before the first one."""
        looked = self._odometry.innovations
        known = {
            "shutter": self._odometry.readout,
            "stereo pair": self._odometry.turn,
            "uncertainty": looked if looked.count else None,
        }
        return {name: what.verdict for name, what in known.items() if what is not None}

    @property
    def objects(self) -> list[MovingObject]:
        """What moves on its own, as of the last tracked frame; followed only where somebody wants to know."""
        return self._surroundings.objects

    def warm_up(self) -> None:
        """Has everything loaded and run once, so that the first real frame does not wait for it."""
        camera = PinholeCamera(fx=200.0, fy=200.0, cx=159.5, cy=119.5, width=320, height=240)
        image = np.random.default_rng(0).integers(0, 255, (240, 320), dtype=np.uint8)
        spare = Odometry(self.config)
        for stamp in (0, 33_333_333):
            spare.step(Frame(stamp, image, camera, np.full((240, 320), 2.0, dtype=np.float32)))

    def decode(self, topic: str, message: Any) -> Any:
        """Does the part of ``handle`` that needs no state, so that a host may do it ahead and elsewhere.

        Returns:
            What ``handle`` takes in the place of ``message``: a ``Picture`` for images, the error for those that cannot
            be read, everything else as it came.
        """
        if topic not in ("image", "depth", "right", "mask") or isinstance(message, (Picture, FlowodomError)):
            return message
        try:
            if topic == "depth":
                pixels: NDArray[Any] = messages.decode_depth(message)
            else:
                pixels = messages.decode_image(message, convert=self._convert)
            return Picture(messages.stamp(message), message.header.frame_id, pixels)
        except FlowodomError as error:
            return error

    def handle(self, topic: str, message: Any, receive_time: int | None = None) -> list[Publication]:
        """Takes one message in.

        Args:
            topic: Name of an input.
            message: The message, or what ``decode`` made of it.
            receive_time: When it came, nanoseconds of the clock that stamps are of.

        Returns:
            The messages that go out because of it, in order.
        """
        self._watch.receive(topic)
        message = self.decode(topic, message)
        out: list[Publication] = []
        if isinstance(message, FlowodomError):
            self._health.skip("unreadable", topic, message)
        else:
            self._health.report(topic, None)
            out += self._take(topic, message)
        if receive_time is not None:
            out += self.tick(receive_time)
        return out

    def flush(self) -> list[Publication]:
        """Works off the images that still wait for something, as at the end of a recording."""
        return self._work(final=True) + self._whole_path()

    def tick(self, now: int) -> list[Publication]:
        """Tells the session the time, which lets it notice what does not come.

        Args:
            now: Nanoseconds of the clock that stamps are of.

        Returns:
            The diagnostics, once a second, and the whole path where no more images come.
        """
        self._watch.tick(now, paused=self._paused)
        self._health.report("rival", self._rival())
        silence = self._watch.silence
        out = self._whole_path() if silence.of("path") > _PATH_PERIOD else []
        if self._due("/diagnostics", silence.now, _DIAGNOSTICS_PERIOD) and self._wanted("/diagnostics"):
            out.append(("/diagnostics", self._make.diagnostics(now, [self.status()])))
        return out

    def _rival(self) -> FrameError | None:
        if not self.config.publish_tf or not self._watch.silence.recent(_RIVAL, _RIVALRY):
            return None
        parent, child = self._edge
        return FrameError(
            f"somebody else publishes the transform from {parent} to {child} as well, so that it jumps to and fro: "
            "stop them, or set publish_tf to false"
        )

    @property
    def _edge(self) -> tuple[str, str]:
        """Parent and child of the transform that is published."""
        odom, base = clean(self.config.odom_frame), clean(self.config.base_frame)
        return (base, odom) if self.config.invert_tf else (odom, base)

    def status(self) -> DiagnosticStatus:
        """Returns the state as diagnostics show it."""
        estimate = self._estimate
        state = "PAUSED" if self._paused else estimate.status.name if estimate and not self._watch.idle else "WAITING"
        summary = f"{state}: {estimate.reason}" if estimate and estimate.reason and not self._paused else state
        level = _OK if estimate is None or estimate.pose is not None or self._paused else _WARN
        if self._health.problems:
            level = _WARN
            summary += "; " + "; ".join(str(error) for error in self._health.problems.values())
        if estimate is not None and estimate.status is Status.LOST:
            level = _ERROR
        values: dict[str, object] = {"state": state, "device": self.config.device, "flow": self.config.flow.method}
        if estimate is not None:
            values |= {
                "segment": estimate.segment,
                "scale": estimate.scale.value,
                "matches": estimate.matches,
                "inliers": estimate.inliers,
            }
            if estimate.moving is not None:
                values["moving [%]"] = f"{100 * estimate.moving.share:.0f}"
            values |= self.learned
            if estimate.scale_deviation:
                values["scale deviation [%]"] = f"{100 * estimate.scale_deviation:.1f}"
            if len(self._window) > 1 and not self._watch.idle:
                span = (self._window[-1].stamp - self._window[0].stamp) * 1e-9
                values["rate [Hz]"] = f"{(len(self._window) - 1) / span:.1f}"
                values["latency [ms]"] = f"{1e3 * mean(work.seconds for work in self._window):.1f}"
                if delays := [work.delay for work in self._window if work.delay is not None]:
                    values["delay [ms]"] = f"{1e3 * mean(delays):.1f}"
            values |= {f"{stage} [ms]": f"{1e3 * seconds:.2f}" for stage, seconds in estimate.timing.items()}
        values |= {name: str(count) for name, count in sorted(self.counts.items())}
        return DiagnosticStatus(f"{self._name}: odometry", level, summary, values)

    def failure(self) -> FlowodomError | None:
        """Returns why nothing was published although images may have come, None when something was."""
        if self.counts["published"]:
            return None
        order = ("extrinsic",) if self.counts["frames"] else ("calibration", "image", "depth")
        for key in order:
            if key in self._health.problems:
                return self._health.problems[key]
        if self.counts["frames"]:
            return None
        return BagError(f"no image came on {self._resolve('image')}; name the right topic")

    def configure(self, config: SessionConfig) -> None:
        """Takes new values of the parameters that may change while running."""
        self.config = decided(config)

    def count_dropped(self, count: int) -> None:
        """Adds to the number of frames that the host dropped because it fell behind."""
        self.counts["dropped"] += count

    def reset(self) -> None:
        """Starts anew with the base at the origin of the odometry frame."""
        self.set_pose(se3.identity())

    def set_pose(self, pose: Tensor) -> None:
        """Starts anew with the base at ``pose``, (4, 4) ``T_odom_base``."""
        _log.info("reset to %s", [round(x, 3) for x in pose[:3, 3].tolist()])
        self._odometry.reset(se3.identity())
        self._start = pose
        self._anchors.clear()
        self._base_pose = self._guess = None
        self._surroundings.reset()
        self._path.clear()
        self._path_shown = True
        self._path_interval = 0.0
        self._pairing.clear()

    def pause(self) -> None:
        """Ignores images from now on."""
        self._paused = True
        self._pairing.clear()

    def resume(self) -> None:
        """Goes on after a pause, in a new segment that starts at the last trusted pose."""
        if self._paused:
            self._paused = False
            self.restart()

    def restart(self) -> None:
        """Starts a new segment at the last trusted pose."""
        self._pairing.clear()
        self._odometry.reset()

    def save_map(self) -> Future[list[Path]]:
        """Begins to write the map of the static world, as it is now, to ``map.file``, and each object beside it.

        Frames need not wait for it.

        Returns:
            The files once they are written, or the ``FlowodomError`` that says why it is not.

        Raises:
            ConfigError: There is no map.
        """
        if self._map is None:
            raise ConfigError("there is no map: set map.voxel to the size of its voxels in metres, for example 0.05")
        path = Path(self.config.map.file).expanduser()
        return self._map_writer.submit(
            _write_maps, path, self._map.cloud(), self._object_maps.clouds(self.config.odom_frame), self._map.voxel
        )

    def report(self, key: str, error: FlowodomError | None) -> None:
        """Notes something that its host found wrong, for the diagnostics; None when it is right again.

        Args:
            key: What is wrong; each key is logged once and shown until it is right again.
            error: Says what is wrong and what to do.
        """
        self._health.report(key, error)

    def _take(self, topic: str, message: Any) -> list[Publication]:
        if topic == "image":
            self._take_image(message)
        elif topic == "depth":
            if not self._paused:
                self._pairing.add_depth(message)
        elif topic == "right":
            if not self._paused:
                self._pairing.add_right(message)
        elif topic == "camera_info":
            self._pairing.calibrate(message)
        elif topic == "depth_info":
            self._pairing.calibrate_depth(message)
        elif topic == "right_info":
            self._pairing.calibrate_right(message)
        elif topic == "mask":
            self._pairing.set_mask(message)
        elif topic in ("/tf", "/tf_static"):
            self._take_transforms(message, static=topic == "/tf_static")
        elif topic == "~/reset":
            self.reset()
        elif topic == "~/pause":
            self.pause()
        elif topic == "~/resume":
            self.resume()
        elif topic == "~/set_pose":
            self._take_pose(message)
        else:
            raise MessageError(f"no input is called {topic!r}; there are: {', '.join(p.name for p in INPUTS)}")
        return self._work()

    def _take_image(self, picture: Picture) -> None:
        if self._paused or not self._pairing.add_image(picture):
            return
        self._last.clear()
        self._window.clear()
        self._guess = None
        self.frames.clear_moving()
        self._surroundings.reset()
        self._odometry.reset()

    def _take_transforms(self, message: Any, *, static: bool) -> None:
        for transform in message.transforms:
            edge = clean(transform.header.frame_id), clean(transform.child_frame_id)
            if edge == self._edge and stamp_of(transform.header) not in self._told:
                self._watch.silence.hear(_RIVAL)
        try:
            own = {self.config.odom_frame, self.config.base_frame}
            self.frames.insert_message(message, static=static, without=own)
        except FrameError as error:
            self._health.note("bad_transforms", str(error))

    def _take_pose(self, message: Any) -> None:
        frame = message.header.frame_id
        if frame and clean(frame) != self.config.odom_frame:
            wanted = self.config.odom_frame
            self._health.report(
                "set_pose", FrameError(f"set_pose must be given in {wanted}, but came in {frame}: not done")
            )
            return
        self._health.report("set_pose", None)
        self.set_pose(motion_of(message.pose.pose))

    def _work(self, *, final: bool = False) -> list[Publication]:
        out: list[Publication] = []
        for moment in self._pairing.ready(final=final):
            out += self._process(moment)
        return out

    def _process(self, moment: Moment) -> list[Publication]:
        begin = time.perf_counter()
        picture, frame = moment.image, self._pairing.frame(moment)
        prepared = time.perf_counter()
        extrinsic = self._extrinsic(self.config.camera_frame or picture.frame_id, frame.stamp)
        seen, moved = self._moved_by_guess(frame.stamp)
        guess = None
        if moved is not None and extrinsic is not None and self._mounting is not None:
            guess = self._mounting.inverse @ moved @ extrinsic
        estimate = self._odometry.step(frame, fields=self._wants_fields(frame.stamp), guess=guess)
        stepped = time.perf_counter()
        self._estimate = estimate
        self.counts["frames"] += 1
        if estimate.status is Status.LOST:
            self.counts["lost"] += 1
        placement = self._place(estimate, extrinsic, moved)
        if placement is not None:
            self._guess = seen
        out = self._publish(frame, picture.frame_id, estimate, placement)
        done = time.perf_counter()
        estimate.timing["session"] = (prepared - begin) + (done - stepped)
        self._watch.use()
        now = self._clock() if self._clock is not None else 0
        delay = (now - picture.stamp) * 1e-9 if now else None
        self._window.append(_Work(picture.stamp, done - begin, delay))
        while picture.stamp - self._window[0].stamp > _RATE_SPAN * 1e9:
            self._window.popleft()
        if self._on_estimate is not None:
            self._on_estimate(frame, estimate, placement)
        return out

    def _extrinsic(self, camera: str, stamp: int) -> Tensor | None:
        """Returns ``T_base_camera`` at ``stamp``, None where tf does not say."""
        if self._extrinsic_given is not None:
            return self._extrinsic_given
        motion = self._lookup("extrinsic", self.config.base_frame, camera, stamp)
        return se3.identity() if motion is None and self.config.identity_extrinsic else motion

    def _lookup(self, key: str, target: str, source: str, stamp: int) -> Tensor | None:
        try:
            motion = self.frames.lookup(target, source, stamp)
        except FrameError as error:
            self._health.report(key, error)
            return None
        self._health.report(key, None)
        return motion

    def _moved_by_guess(self, stamp: int) -> tuple[Tensor | None, Tensor | None]:
        """Returns where ``guess_frame`` has the base, and how that has moved since the last trusted pose."""
        if not self.config.guess_frame:
            return None, None
        seen = self._lookup("guess", self.config.guess_frame, self.config.base_frame, stamp)
        return seen, None if seen is None or self._guess is None else se3.inverse(self._guess) @ seen

    def _place(self, estimate: Estimate, extrinsic: Tensor | None, moved: Tensor | None) -> Placement | None:
        """Finds the base from the camera: ``T_odom_base = anchor T_odom_camera inverse(T_base_camera)`` of its segment.

        Args:
            estimate: What the odometry says.
            extrinsic: ``T_base_camera``; None where it is not known.
            moved: What another source saw of the base's motion since the last trusted pose, which bridges segments.
        """
        if estimate.pose is None:
            return None
        if extrinsic is None:
            self.counts["unplaced"] += 1
            return None
        if self._mounting is None or self._mounting.motion is not extrinsic:
            self._mounting = _Mounting(extrinsic, se3.inverse(extrinsic), se3.adjoint(extrinsic))
        if estimate.segment not in self._anchors:
            start = self._start
            if self._base_pose is not None:
                start = self._base_pose if moved is None else self._base_pose @ moved
            self._anchors[estimate.segment] = start @ extrinsic @ se3.inverse(estimate.pose)
        self._base_pose = self._anchors[estimate.segment] @ estimate.pose @ self._mounting.inverse
        covariance = None
        if estimate.covariance is not None:
            covariance = self._mounting.adjoint @ estimate.covariance @ self._mounting.adjoint.T
        return Placement(self._base_pose, covariance, extrinsic, *self._twist(estimate))

    def _publish(self, frame: Frame, camera: str, estimate: Estimate, placement: Placement | None) -> list[Publication]:
        odom, base, stamp = self.config.odom_frame, self.config.base_frame, estimate.stamp
        if placement is None:
            if self.config.publish_null_when_lost and self._wanted("odom"):
                return [("odom", self._null_odometry(stamp))]
            return []
        self.counts["published"] += 1
        out: list[Publication] = []
        if self._wanted("odom"):
            out.append(("odom", self._odometry_message(estimate, placement)))
        self._health.report("parent", self._second_parent())
        if self.config.publish_tf and self._wanted("/tf"):
            self._told.append(stamp)
            if self.config.invert_tf:
                transform = self._make.transform(stamp, base, odom, se3.inverse(placement.pose))
            else:
                transform = self._make.transform(stamp, odom, base, placement.pose)
            out.append(("/tf", self._make.tf_message([transform])))
        out += self._publish_path(stamp, placement.pose)
        return out + self._publish_surroundings(frame, camera, estimate, placement)

    def _second_parent(self) -> FrameError | None:
        """Returns what is wrong with giving the base a parent on tf, of which a frame may have one only."""
        odom, base = self.config.odom_frame, self.config.base_frame
        root = self.frames.root(base)
        if root == clean(base) or not self.config.publish_tf or self.config.invert_tf:
            return None
        return FrameError(
            f"{base} is fixed to {root} on tf, and must not get {odom} as a second parent: set base_frame to {root}, "
            "or publish_tf to false"
        )

    def _publish_surroundings(
        self, frame: Frame, camera: str, estimate: Estimate, placement: Placement
    ) -> list[Publication]:
        camera, odom, stamp = self.config.camera_frame or camera, self.config.odom_frame, estimate.stamp
        out: list[Publication] = []
        pose = placement.pose @ placement.extrinsic
        if estimate.motion is not None and estimate.interval > 0:
            self._surroundings.follow(frame, estimate.moving, pose, estimate.motion, estimate.interval)
            out += self._surroundings.publish_objects(stamp, odom)
            out += self._surroundings.publish_forecast(
                stamp, odom, placement.pose, placement.twist, placement.twist_covariance
            )
        lift = estimate.lift if self._wants_fields(stamp) else None
        if lift is not None:
            self._last["fields"] = stamp
            if self._wants_clouds:
                out += self._publish_clouds(frame, camera, estimate, lift(self.config.cloud.stride), pose)
        return out + self._surroundings.publish_pictures(frame, camera, estimate.moving, lift)

    def _twist(self, estimate: Estimate) -> tuple[Tensor, Tensor]:
        """Returns the (6,) twist of the base in itself and its (6, 6) covariance."""
        unknown = torch.eye(6, dtype=torch.float64) * _UNKNOWN_VARIANCE
        if estimate.motion is None or estimate.interval <= 0:
            return torch.zeros(6, dtype=torch.float64), unknown
        assert self._mounting is not None
        adjoint = self._mounting.adjoint
        twist = adjoint @ se3.log(estimate.motion) / estimate.interval
        if estimate.motion_covariance is None:
            return twist, unknown
        # The Jacobian of the logarithm is left out: it is the identity up to half the angle of one frame.
        return twist, adjoint @ estimate.motion_covariance @ adjoint.T / estimate.interval**2

    def _odometry_message(self, estimate: Estimate, placement: Placement) -> Any:
        covariance = torch.eye(6, dtype=torch.float64) * _UNKNOWN_VARIANCE
        if placement.covariance is not None:
            covariance = along_parent(placement.covariance, placement.pose)
        odom, base = self.config.odom_frame, self.config.base_frame
        return self._make.odometry(
            estimate.stamp, odom, base, placement.pose, covariance, placement.twist, placement.twist_covariance
        )

    def _null_odometry(self, stamp: int) -> Any:
        unknown = torch.eye(6, dtype=torch.float64) * _UNKNOWN_VARIANCE
        message = self._make.odometry(
            stamp, self.config.odom_frame, self.config.base_frame, se3.identity(), unknown, None, unknown
        )
        message.pose.pose.orientation.w = 0.0
        return message

    def _publish_path(self, stamp: int, pose: Tensor) -> list[Publication]:
        self._watch.silence.hear("path")
        interval = max(self._path_interval, 1 / self.config.path.rate)
        if self._due("pose of path", stamp, interval):
            self._path.append(self._make.pose_stamped(stamp, self.config.odom_frame, pose))
            self._path_shown = False
            if len(self._path) > self.config.path.length:
                del self._path[1::2]
                self._path_interval = 2 * interval
        return self._whole_path() if self._due("path", stamp, _PATH_PERIOD) else []

    def _whole_path(self) -> list[Publication]:
        """Returns the path, where somebody wants it and it has grown since."""
        if self._path_shown or not self._wanted("path"):
            return []
        self._path_shown = True
        return [("path", self._make.path(messages.stamp(self._path[-1]), self.config.odom_frame, self._path))]

    def _publish_clouds(
        self, frame: Frame, camera: str, estimate: Estimate, properties: PropertySet, pose: Tensor
    ) -> list[Publication]:
        cloud = make_cloud(
            frame, properties, estimate.interval, self.config.cloud, estimate.moving, self._surroundings.objects, pose
        )
        if self._map is not None:
            points = np.column_stack([cloud.fields[axis] for axis in "xyz"]).astype(np.float64)
            moving = cloud.moving | (cloud.fields["weight"] < _STATIC)
            colours, numbers = cloud.fields["rgb"], np.where(cloud.moving, cloud.fields["object_id"], 0)
            self._map.add(points, colours, moving, pose.numpy())
            self._object_maps.add(points, colours, numbers, self._surroundings.objects, pose)
        clouds = {"points": cloud, "dynamic_points": cloud.select(cloud.moving)}
        return [
            (name, self._make.point_cloud(estimate.stamp, camera, clouds[name].fields))
            for name in _CLOUDS
            if self._wanted(name)
        ]

    @property
    def _wants_clouds(self) -> bool:
        return self._map is not None or any(map(self._wanted, _CLOUDS))

    def _wants_fields(self, stamp: int) -> bool:
        """Tells whether the frame's dense fields are shown, as points or as pictures, which is not done for each."""
        period = 1 / self.config.cloud.rate if self.config.cloud.rate else 0.0
        return (self._wants_clouds or any(map(self._wanted, OF_FIELDS))) and self._passed("fields", stamp, period)

    def _passed(self, what: str, now: int, period: float) -> bool:
        """Tells whether ``period`` seconds have passed since this was last due; a little early is not too early."""
        last = self._last.get(what)
        return last is None or not 0 <= now - last < 0.95 * period * 1e9

    def _due(self, what: str, now: int, period: float) -> bool:
        """Tells whether this is due, and takes note that it was."""
        due = self._passed(what, now, period)
        if due:
            self._last[what] = now
        return due


def _write_maps(
    path: Path,
    static: tuple[NDArray[np.float64], NDArray[np.uint8]],
    objects: list[object_maps.ObjectCloud],
    voxel: float,
) -> list[Path]:
    """Writes the static world and the objects beside it; see ``Session.save_map``."""
    return [mapping.write(path, *static, voxel), *object_maps.write(path, objects, _FINER * voxel)]
