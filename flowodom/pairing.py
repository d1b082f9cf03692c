"""What belongs to one moment, brought together by stamp: the image, its depth or what another camera saw, the mask.

Images wait for their calibration as well. Depth goes before the other camera of a stereo rig, and either before none.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from flowodom.alignment import DepthAlignment
from flowodom.calibration import Calibration, between
from flowodom.config import SessionConfig, SyncConfig
from flowodom.errors import CalibrationError, FrameError, MessageError
from flowodom.frame import Frame, OtherEye
from flowodom.frames import FrameTree, stamp_of
from flowodom.geometry import se3
from flowodom.health import Health

_log = logging.getLogger(__name__)

_JUMP = 0.1
"""Seconds by which a stamp must go back to count as a jump of the clock; less is one only if the next goes on there."""
_PENDING = 100
_INTERVALS = 8
"""Images of a topic whose intervals are known before the next one is foretold, unless it comes seldom."""
_REGULAR = 0.8
"""Share of the shortest interval of late within which the next image does not come."""
_NOWHERE_ELSE = se3.identity()


@dataclass(frozen=True)
class Picture:
    """A decoded image, depth image or mask.

    Attributes:
        stamp: Nanoseconds, from the header.
        frame_id: Optical frame, from the header.
        pixels: (H, W) or (H, W, 3) uint8 image or mask, or (H, W) float32 depth in metres.
    """

    stamp: int
    frame_id: str
    pixels: NDArray[Any]


class Moment(NamedTuple):
    """An image and what was seen with it: depth, or what the right camera saw, or neither."""

    image: Picture
    depth: Picture | None = None
    right: Picture | None = None


class _Clock:
    """How far time has come, by the stamps of the images.

    Attributes:
        newest: The newest stamp, nanoseconds.
        jumped_to: Where the last jump back has led.
    """

    def __init__(self) -> None:
        self.newest = 0
        self.jumped_to = 0


class _Lens:
    """What the CameraInfos of one camera say; nothing at first.

    A lens that focuses by itself is told anew with every image. As long as it is about the same lens, all images are
    brought to the camera of the first of them, so that whoever looks at them sees one camera.

    Attributes:
        info: The newest message.
        changes: Whether it was told anew, but about the same.

    Args:
        sync: How near in time what belongs together is, and how long it is waited for.
    """

    def __init__(self, sync: SyncConfig) -> None:
        self._sync = sync
        self.info: Any = None
        self.changes = False
        self._content: tuple[Any, ...] = ()
        self._told: deque[tuple[int, Calibration]] = deque(maxlen=_PENDING)

    @property
    def calibration(self) -> Calibration | None:
        """What was made of the newest message."""
        return self._told[-1][1] if self._told else None

    def take(self, info: Any, *, rectified: bool) -> bool:
        """Takes a message in, and returns whether it says anything new.

        Raises:
            CalibrationError: It cannot be used; it changes nothing.
        """
        content, known = _content(info), self.calibration
        new = known is None or content != self._content
        if new:
            like = None if known is None else known.camera
            known = Calibration.from_info(info, rectified=rectified, like=like)
            self.changes = known.camera == like
        self.info, self._content = info, content
        assert known is not None
        self._told.append((stamp_of(info.header), known))
        return new

    def at(self, stamp: int) -> Calibration | None:
        """Returns the calibration that was told for a stamp, about; else the newest."""
        near = [(abs(told - stamp), calibration) for told, calibration in reversed(self._told)]
        off, calibration = min(near, key=lambda one: one[0], default=(0, None))
        return calibration if off <= self._sync.tolerance * 1e9 else self.calibration

    def may_change_by(self, stamp: int) -> bool:
        """Tells whether a lens that changes has been told about of late, but not yet for a stamp."""
        since = (stamp - self._told[-1][0]) * 1e-9 if self._told else 0.0
        return self.changes and self._sync.tolerance < since < self._sync.wait


class _Companions:
    """Images of a topic each of which may belong to one of the camera's.

    Args:
        sync: Which belong together.
        clock: The camera's.
        expected: Whether they are waited for.
    """

    def __init__(self, sync: SyncConfig, clock: _Clock, *, expected: bool) -> None:
        self.expected = expected
        self.given_up = False
        self._sync, self._clock = sync, clock
        self._waiting: deque[Picture] = deque(maxlen=_PENDING)
        self._intervals: deque[int] = deque(maxlen=_INTERVALS)
        self._last: int | None = None
        self._ahead = 0

    @property
    def heard(self) -> bool:
        """Whether any has ever come."""
        return self._last is not None

    def add(self, picture: Picture) -> None:
        """Takes one in; a straggler of the time before a jump is passed over."""
        if self._last is not None and picture.stamp < self._last - _JUMP * 1e9:
            self._waiting.clear()
            self._ahead = min(self._ahead + 1, 1)
        elif (
            self._ahead < 0
            and picture.stamp > self._clock.newest + self._sync.tolerance * 1e9
            and self._clock.newest - self._clock.jumped_to < self._sync.wait * 1e9
        ):
            return
        if self._last is not None and picture.stamp > self._last:
            self._intervals.append(picture.stamp - self._last)
        self._last = picture.stamp
        self._waiting.append(picture)
        if self._ahead <= 0:
            self._clock.newest = max(self._clock.newest, picture.stamp)

    def jump_back(self) -> None:
        """Follows the camera, whose clock has jumped back."""
        self._intervals.clear()
        if self._ahead <= 0:
            self._waiting.clear()
        self._ahead = max(self._ahead - 1, -1)

    def match(self, stamp: int) -> tuple[Picture | None, bool]:
        """Finds the one nearest to ``stamp``, and whether a nearer one can no longer come."""
        tolerance = round(self._sync.tolerance * 1e9)
        while self._waiting and self._waiting[0].stamp < stamp - tolerance:
            self._waiting.popleft()
        near = [picture for picture in self._waiting if abs(picture.stamp - stamp) <= tolerance]
        best = min(near, key=lambda picture: abs(picture.stamp - stamp)) if near else None
        return best, stamp < self._soonest - tolerance or any(picture.stamp >= stamp for picture in self._waiting)

    @property
    def _soonest(self) -> int:
        """Stamp before which the next one will not be, by the intervals of late, or by one longer than any wait."""
        slow = bool(self._intervals) and min(self._intervals) > self._sync.wait * 1e9
        if self._last is None or not (slow or len(self._intervals) == _INTERVALS):
            return 0
        return self._last + round(_REGULAR * min(self._intervals))


class Pairing:
    """Holds images until their calibration and their depth have come, or need not be waited for any longer.

    Args:
        config: Of the session; ``sync``, ``depth.source`` and ``rectified`` are used.
        health: Takes note of what does not fit.
        with_depth: Whether depth may come at all.
        with_right: Whether a right camera is waited for from the start, and not only once it has been heard of.
        resolve: Gives the real name of a topic, for errors.
        locate: Returns the (4, 4) ``T_target_source`` of two frames at a stamp, or raises FrameError; never knows where
            None.
    """

    def __init__(
        self,
        config: SessionConfig,
        health: Health,
        *,
        with_depth: bool = True,
        with_right: bool = False,
        resolve: Callable[[str], str] = str,
        locate: Callable[[str, str, int], Tensor] | None = None,
    ) -> None:
        self._config = config
        self._health = health
        self._resolve = resolve
        self._locate = locate or FrameTree().lookup
        self._images: deque[Picture] = deque(maxlen=_PENDING)
        self._clock = _Clock()
        source = config.depth.source
        self._depth = _Companions(config.sync, self._clock, expected=with_depth and source != "filter")
        self._right = _Companions(config.sync, self._clock, expected=with_right and source == "auto")
        self._companions = {"depth": self._depth, "right": self._right}
        self._mask: NDArray[np.uint8] | None = None
        self._lens, self._depth_lens, self._right_lens = (_Lens(config.sync) for _ in range(3))
        self._between: Tensor | None = None
        self._alignment: tuple[tuple[Any, ...], DepthAlignment] | None = None
        self._unplaced: set[str] = set()
        self._with_depth_once = False
        self._last_stamp: int | None = None
        self._late_stamp: int | None = None

    def clear(self) -> None:
        """Forgets the images that wait."""
        self._images.clear()

    def add_image(self, picture: Picture) -> bool:
        """Takes in an image; one that comes twice or a little late is passed over.

        Returns:
            Whether the clock has jumped back to it, so that nothing of before goes on.
        """
        jumped = False
        if self._last_stamp is not None and picture.stamp <= self._last_stamp:
            if picture.stamp == self._last_stamp:
                self._health.note("repeated", f"an image repeats the stamp {picture.stamp * 1e-9:.3f} s; skipped")
                return False
            continues = self._late_stamp is not None and picture.stamp > self._late_stamp
            if self._last_stamp - picture.stamp < _JUMP * 1e9 and not continues:
                self._health.note("out_of_order", f"image at {picture.stamp * 1e-9:.3f} s comes too late; skipped")
                self._late_stamp = picture.stamp
                return False
            self._jump_back(self._last_stamp, picture.stamp)
            jumped = True
        self._last_stamp, self._late_stamp = picture.stamp, None
        self._clock.newest = max(self._clock.newest, picture.stamp)
        if len(self._images) == _PENDING:
            self._health.counts["unpaired"] += 1
        self._images.append(picture)
        return jumped

    def add_depth(self, picture: Picture) -> None:
        """Takes in a depth image; a straggler of the time before a jump is passed over."""
        if self._depth.expected:
            self._add("depth", picture)

    def add_right(self, picture: Picture) -> None:
        """Takes in an image of the right camera, likewise; from the first one on they are waited for."""
        if self._config.depth.source == "auto":
            self._right.expected = True
            self._add("right", picture)

    def _add(self, topic: str, picture: Picture) -> None:
        companions = self._companions[topic]
        if companions.given_up:
            _log.info("%s is back on %s", topic, self._resolve(topic))
            companions.given_up = False
        companions.add(picture)

    def set_mask(self, picture: Picture) -> None:
        """Takes in the mask that holds from now on."""
        grey = picture.pixels if picture.pixels.ndim == 2 else picture.pixels[..., 0]
        self._mask = np.where(grey == 255, np.uint8(255), np.uint8(0))

    def calibrate(self, info: Any) -> None:
        """Takes in the sensor_msgs/CameraInfo that holds from now on; one that cannot be used changes nothing."""
        self._take_info(self._lens, info, "calibration")

    def calibrate_depth(self, info: Any) -> None:
        """Takes in that of the depth camera, likewise."""
        self._take_info(self._depth_lens, info, "depth calibration")

    def calibrate_right(self, info: Any) -> None:
        """Takes in that of the right camera, likewise."""
        self._take_info(self._right_lens, info, "right calibration")

    def _take_info(self, lens: _Lens, info: Any, key: str) -> None:
        changed = lens.changes
        try:
            new = lens.take(info, rectified=self._config.rectified)
        except CalibrationError as error:
            self._health.skip("bad_calibration", key, error)
            return
        if lens.changes and not changed:
            _log.info("the lens of %r changes: its images are brought to its first camera", info.header.frame_id)
        self._health.report(key, None)
        if new and self._lens.info is not None and self._right_lens.info is not None:
            self._between = between(self._lens.info, self._right_lens.info, rectified=self._config.rectified)

    def ready(self, *, final: bool = False) -> Iterator[Moment]:
        """Yields the images that need not wait any longer, each with what belongs to it.

        Args:
            final: Whether nothing more will come.
        """
        while self._images:
            picture = self._images[0]
            overdue = final or self._clock.newest - picture.stamp > self._config.sync.wait * 1e9
            problem = self._calibration_problem(picture)
            if not overdue and self._lens.may_change_by(picture.stamp):
                return
            if problem is not None:
                if not overdue:
                    return
                self._images.popleft()
                self._health.skip("uncalibrated", "calibration", problem)
                continue
            topic = next((name for name, c in self._companions.items() if c.expected and not c.given_up), None)
            if topic is None:
                yield Moment(self._images.popleft())
                continue
            companions = self._companions[topic]
            found, decided = companions.match(picture.stamp)
            decided |= final and companions.heard
            if not overdue and (not decided or (found and self._waits_for_place(topic, picture, found))):
                return
            if found is None and not decided and self._gives_up(topic):
                continue
            self._images.popleft()
            self._with_depth_once |= topic == "depth" and found is not None
            if found is not None or self._goes_alone(topic, picture, decided=decided):
                yield Moment(picture, **{topic: found})

    def frame(self, moment: Moment) -> Frame:
        """Returns what the odometry takes in: an image that is ready, rectified, with what of the rest fits it."""
        picture, depth, right = moment
        calibration = self._lens.at(picture.stamp)
        assert calibration is not None
        field = None if depth is None else self._registered(calibration, picture, depth)
        ignore = calibration.invalid
        if self._mask is not None and self._fits(self._mask, picture, "mask"):
            masked = calibration.rectify(self._mask) > 0
            ignore = masked if ignore is None else ignore | masked
        eye = None if right is None else self._other_eye(picture, right)
        return Frame(picture.stamp, calibration.rectify(picture.pixels), calibration.camera, field, ignore, eye)

    def _registered(self, calibration: Calibration, picture: Picture, depth: Picture) -> NDArray[np.float32] | None:
        """Returns depth as the camera would have seen it; None, and a report, where it does not fit."""
        try:
            place = self._image_from_depth(picture, depth)
        except CalibrationError as error:
            self._unplaced.add("depth")
            self._health.report("depth place", CalibrationError(f"{error}; it is taken for registered to the image"))
            place = None
        else:
            self._health.report("depth place", None)
        if place is None:
            return calibration.rectify_depth(depth.pixels) if self._fits(depth.pixels, picture, "depth") else None
        motion, own = place
        try:
            pixels = own.rectify_depth(depth.pixels)
        except CalibrationError as error:
            self._health.report("depth size", CalibrationError(f"depth is not used: {error}"))
            return None
        self._health.report("depth size", None)
        key = (own.camera, calibration.camera, motion)
        if self._alignment is None or any(a is not b for a, b in zip(self._alignment[0], key, strict=True)):
            self._alignment = key, DepthAlignment(own.camera, calibration.camera, motion)
        return self._alignment[1](pixels)

    def _image_from_depth(self, picture: Picture, depth: Picture) -> tuple[Tensor, Calibration] | None:
        """Returns ``T_image_depth`` (4, 4) and the depth camera's calibration; None where depth is registered.

        Raises:
            CalibrationError: Depth seems not to be registered, but how the two cameras stand is not known.
        """
        same_frame, same_size = depth.frame_id == picture.frame_id, depth.pixels.shape == picture.pixels.shape[:2]
        if same_frame and same_size:
            return None
        own, info = self._depth_lens.at(depth.stamp), self._resolve("depth_info")
        what = f"depth is in the frame {depth.frame_id!r}, the image in {picture.frame_id!r}"
        if own is None:
            raise CalibrationError(f"{what}, and there is no usable message on {info}, the depth camera's CameraInfo")
        assert self._lens.calibration is not None
        if same_frame:
            return _NOWHERE_ELSE, own
        if same_size and own.camera == self._lens.calibration.camera:
            return None
        try:
            return self._locate(picture.frame_id, depth.frame_id, picture.stamp), own
        except FrameError as error:
            raise CalibrationError(f"{what}, and tf does not say how they stand: {error}") from error

    def _other_eye(self, picture: Picture, right: Picture) -> OtherEye | None:
        """Returns what the right camera saw; None, and a report, where it is not known how the two stand."""
        eye = None
        try:
            motion, calibration = self._right_from_left(picture, right)
            eye = OtherEye(calibration.rectify(right.pixels), calibration.camera, motion)
        except CalibrationError as error:
            self._health.report("stereo", CalibrationError(f"{error}; going on with one camera"))
        else:
            self._health.report("stereo", None)
            self._unplaced.discard("right")
        if eye is None:
            self._unplaced.add("right")
        return eye

    def _right_from_left(self, picture: Picture, right: Picture) -> tuple[Tensor, Calibration]:
        """Returns ``T_right_left`` (4, 4), and the right camera's calibration.

        Raises:
            CalibrationError: Neither the CameraInfos nor tf say how the two cameras stand.
        """
        calibration, info = self._right_lens.at(right.stamp), self._resolve("right_info")
        if calibration is None:
            raise CalibrationError(f"no usable message on {info}: record or publish the right camera's CameraInfo")
        if self._between is not None:
            return self._between, calibration
        cause = f"both images are in the frame {picture.frame_id!r}"
        if right.frame_id != picture.frame_id:
            try:
                return self._locate(right.frame_id, picture.frame_id, picture.stamp), calibration
            except FrameError as error:
                cause = str(error)
        raise CalibrationError(
            f"{info} has no baseline (P[3], which is minus fx times metres, is 0), and tf does not say where the right "
            f"camera is: {cause}; publish a CameraInfo or a transform that does"
        )

    def _waits_for_place(self, topic: str, picture: Picture, found: Picture) -> bool:
        """Tells whether it is not known yet how the two cameras stand; once was waited for that in vain."""
        try:
            (self._image_from_depth if topic == "depth" else self._right_from_left)(picture, found)
        except CalibrationError:
            return topic not in self._unplaced
        return False

    def _jump_back(self, before: int, stamp: int) -> None:
        _log.warning(
            "the clock jumped back by %.3f s: a new segment starts at the last trusted pose", (before - stamp) * 1e-9
        )
        self._health.counts["jumps"] += 1
        self._with_depth_once = False
        self._images.clear()
        for companions in self._companions.values():
            companions.jump_back()
        self._clock.newest = self._clock.jumped_to = stamp

    def _calibration_problem(self, picture: Picture) -> CalibrationError | None:
        calibration = self._lens.at(picture.stamp)
        if calibration is None:
            return CalibrationError(
                f"no usable message on {self._resolve('camera_info')}: the odometry needs the camera's calibration; "
                "record or publish its CameraInfo, or name the right topic"
            )
        size = (calibration.camera.width, calibration.camera.height)
        came = picture.pixels.shape[1::-1]
        if came != size:
            return CalibrationError(
                f"images of {came[0]}x{came[1]} came with a camera_info of {size[0]}x{size[1]}: publish one that fits"
            )
        return None

    def _gives_up(self, topic: str) -> bool:
        """Goes on for good without what has not come for so long, unless it must be a sensor's depth."""
        if self._config.depth.source == "sensor":
            return False
        self._companions[topic].given_up = True
        what, rest = ("depth", "the camera alone") if topic == "depth" else ("right image", "the left camera alone")
        if topic == "depth" and self._right.expected:
            rest = "the stereo pair"
        text = f"no {what} on {self._resolve(topic)} for {self._config.sync.wait} s: going on with {rest}"
        if topic == "depth" and self._right.expected and not self._depth.heard:
            _log.info("%s", text)  # nothing is missing: a stereo rig need not have depth
        else:
            self._health.report(topic, MessageError(text))
        return True

    def _goes_alone(self, topic: str, picture: Picture, *, decided: bool) -> bool:
        """Tells whether an image is used whose companion is missing; a recording must not begin without its depth."""
        if decided:
            what = "depth" if topic == "depth" else "right image"
            alone = topic == "right" or (self._with_depth_once and self._config.depth.source == "auto")
            fate = "used without" if alone else "skipped"
            self._health.note(
                "unpaired",
                f"no {what} within {self._config.sync.tolerance} s of the image at {picture.stamp * 1e-9:.3f} s; "
                f"{fate} (raise sync.tolerance if the two cameras are not triggered together)",
            )
            return alone
        name = self._resolve(topic)
        self._health.skip(
            "unpaired", "depth", MessageError(f"no depth on {name}; images are skipped (depth.source: sensor)")
        )
        return False

    def _fits(self, pixels: NDArray[Any], picture: Picture, topic: str) -> bool:
        came, size = pixels.shape[1::-1], picture.pixels.shape[1::-1]
        mend = (
            "publish its CameraInfo, or depth registered to the image"
            if topic == "depth"
            else "make it the image's size"
        )
        problem = MessageError(
            f"{self._resolve(topic)} is {came[0]}x{came[1]} but the image is {size[0]}x{size[1]}: not used; {mend}"
        )
        self._health.report(f"{topic} size", None if came == size else problem)
        return came == size


def _content(info: Any) -> tuple[Any, ...]:
    """Returns all of a CameraInfo that says what the camera is, to be compared."""
    region = info.roi
    return (
        (info.width, info.height, info.distortion_model, info.binning_x, info.binning_y),
        (region.x_offset, region.y_offset, region.width, region.height),
        *(np.asarray(values).tobytes() for values in (info.k, info.d, info.r, info.p)),
    )
