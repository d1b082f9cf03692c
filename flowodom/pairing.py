"""What belongs to one moment, brought together by stamp: the image, its depth, the mask and the calibration."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowodom.calibration import Calibration
from flowodom.config import SessionConfig
from flowodom.errors import CalibrationError, MessageError
from flowodom.frame import Frame
from flowodom.health import Health

_log = logging.getLogger(__name__)

_JUMP = 0.1
"""Seconds by which a stamp must go back to count as a jump of the clock; less is one only if the next goes on there."""
_PENDING = 100


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


class Pairing:
    """Holds images until their calibration and their depth have come, or need not be waited for any longer.

    Args:
        config: Of the session; ``sync``, ``depth.source`` and ``rectified`` are used.
        health: Takes note of what does not fit.
        with_depth: Whether depth may come at all.
        resolve: Gives the real name of a topic, for errors.
    """

    def __init__(
        self, config: SessionConfig, health: Health, *, with_depth: bool = True, resolve: Callable[[str], str] = str
    ) -> None:
        self._config = config
        self._health = health
        self._resolve = resolve
        self._images: deque[Picture] = deque(maxlen=_PENDING)
        self._depths: deque[Picture] = deque(maxlen=_PENDING)
        self._mask: NDArray[np.uint8] | None = None
        self._calibration: Calibration | None = None
        self._calibrated_by: tuple[Any, ...] = ()
        self._without_depth = config.depth.source == "filter" or not with_depth
        self._depth_given_up = False
        self._last_stamp: int | None = None
        self._late_stamp: int | None = None
        self._last_depth: int | None = None
        self._depth_ahead = 0
        self._jumped_to = 0
        self._newest = 0

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
        self._newest = max(self._newest, picture.stamp)
        if len(self._images) == _PENDING:
            self._health.counts["unpaired"] += 1
        self._images.append(picture)
        return jumped

    def add_depth(self, picture: Picture) -> None:
        """Takes in a depth image; a straggler of the time before a jump is passed over."""
        if self._without_depth:
            return
        if self._depth_given_up:
            _log.info("depth is back on %s", self._resolve("depth"))
            self._depth_given_up = False
        if self._last_depth is not None and picture.stamp < self._last_depth - _JUMP * 1e9:
            self._depths.clear()
            self._depth_ahead = min(self._depth_ahead + 1, 1)
        elif (
            self._depth_ahead < 0
            and picture.stamp > self._newest + self._config.sync.tolerance * 1e9
            and self._newest - self._jumped_to < self._config.sync.wait * 1e9
        ):
            return
        self._last_depth = picture.stamp
        self._depths.append(picture)
        if self._depth_ahead <= 0:
            self._newest = max(self._newest, picture.stamp)

    def set_mask(self, picture: Picture) -> None:
        """Takes in the mask that holds from now on."""
        grey = picture.pixels if picture.pixels.ndim == 2 else picture.pixels[..., 0]
        self._mask = np.where(grey == 255, np.uint8(255), np.uint8(0))

    def calibrate(self, info: Any) -> None:
        """Takes in the sensor_msgs/CameraInfo that holds from now on; one that cannot be used changes nothing."""
        try:
            content = _content(info)
            if self._calibration is None or content != self._calibrated_by:
                self._calibration = Calibration.from_info(info, rectified=self._config.rectified)
                self._calibrated_by = content
        except CalibrationError as error:
            self._health.skip("bad_calibration", "calibration", error)
        else:
            self._health.report("calibration", None)

    def ready(self, *, final: bool = False) -> Iterator[tuple[Picture, Picture | None]]:
        """Yields the images that need not wait any longer, each with its depth where there is one.

        Args:
            final: Whether nothing more will come.
        """
        while self._images:
            picture = self._images[0]
            overdue = final or self._newest - picture.stamp > self._config.sync.wait * 1e9
            problem = self._calibration_problem(picture)
            if problem is not None:
                if not overdue:
                    return
                self._images.popleft()
                self._health.skip("uncalibrated", "calibration", problem)
                continue
            if self._without_depth or self._depth_given_up:
                yield self._images.popleft(), None
                continue
            depth, decided = self._match(picture.stamp)
            if not decided and not overdue:
                return
            self._images.popleft()
            if depth is not None or self._give_up_depth(picture, decided=decided):
                yield picture, depth

    def frame(self, picture: Picture, depth: Picture | None) -> Frame:
        """Returns what the odometry takes in: an image that is ready, rectified, with what of the rest fits it."""
        assert self._calibration is not None
        calibration = self._calibration
        field: NDArray[np.float32] | None = None
        if depth is not None and self._fits(depth.pixels, picture, "depth"):
            field = calibration.rectify_depth(depth.pixels)
        ignore = calibration.invalid
        if self._mask is not None and self._fits(self._mask, picture, "mask"):
            masked = calibration.rectify(self._mask) > 0
            ignore = masked if ignore is None else ignore | masked
        return Frame(picture.stamp, calibration.rectify(picture.pixels), calibration.camera, field, ignore)

    def _jump_back(self, before: int, stamp: int) -> None:
        _log.warning(
            "the clock jumped back by %.3f s: a new segment starts at the last trusted pose", (before - stamp) * 1e-9
        )
        self._health.counts["jumps"] += 1
        self._images.clear()
        if self._depth_ahead <= 0:
            self._depths.clear()
        self._depth_ahead = max(self._depth_ahead - 1, -1)
        self._newest = self._jumped_to = stamp

    def _calibration_problem(self, picture: Picture) -> CalibrationError | None:
        if self._calibration is None:
            return CalibrationError(
                f"no usable message on {self._resolve('camera_info')}: the odometry needs the camera's calibration; "
                "record or publish its CameraInfo, or name the right topic"
            )
        size = (self._calibration.camera.width, self._calibration.camera.height)
        came = picture.pixels.shape[1::-1]
        if came != size:
            return CalibrationError(
                f"images of {came[0]}x{came[1]} came with a camera_info of {size[0]}x{size[1]}: publish one that fits"
            )
        return None

    def _match(self, stamp: int) -> tuple[Picture | None, bool]:
        """Finds the depth nearest to ``stamp``, and whether a nearer one can no longer come."""
        tolerance = round(self._config.sync.tolerance * 1e9)
        while self._depths and self._depths[0].stamp < stamp - tolerance:
            self._depths.popleft()
        near = [d for d in self._depths if abs(d.stamp - stamp) <= tolerance]
        best = min(near, key=lambda d: abs(d.stamp - stamp)) if near else None
        return best, any(d.stamp >= stamp for d in self._depths)

    def _give_up_depth(self, picture: Picture, *, decided: bool) -> bool:
        """Decides what becomes of an image without depth: True to go on without, False to skip it."""
        if decided:
            self._health.note(
                "unpaired",
                f"no depth within {self._config.sync.tolerance} s of the image at {picture.stamp * 1e-9:.3f} s; "
                "skipped (raise sync.tolerance if the two cameras are not triggered together)",
            )
            return False
        name = self._resolve("depth")
        if self._config.depth.source == "sensor":
            self._health.skip(
                "unpaired", "depth", MessageError(f"no depth on {name}; images are skipped (depth.source: sensor)")
            )
            return False
        self._depth_given_up = True
        self._health.report(
            "depth", MessageError(f"no depth on {name} for {self._config.sync.wait} s: going on with the camera alone")
        )
        return True

    def _fits(self, pixels: NDArray[Any], picture: Picture, topic: str) -> bool:
        came, size = pixels.shape[1::-1], picture.pixels.shape[1::-1]
        mend = "publish depth registered to the image" if topic == "depth" else "make it the image's size"
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
        *(np.asarray(values).tobytes() for values in (info.k, info.d, info.p)),
    )
