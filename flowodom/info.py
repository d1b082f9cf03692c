"""What is in a recording, and what a replay would make of it: the text of ``flowodom info``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowodom.bags import BagReader
from flowodom.calibration import Calibration, between
from flowodom.errors import BagError, CalibrationError, FlowodomError, MessageError
from flowodom.frame import OtherEye
from flowodom.messages import NANOSECONDS, decode_depth, decode_image, stamp
from flowodom.selection import Selection, Topic

_SAMPLED = 60.0
"""Seconds of the recording whose stamps are looked at; all of a long one would have to be read for more."""
_TOLERANCE = 0.02
"""Seconds by which the stamps of an image and its depth may differ before they are called unpaired."""
_SLOW = 5.0
"""Images a second below which neighbouring frames share little."""


@dataclass
class _Stream:
    """What the first seconds of one topic are like."""

    stamps: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    first: Any = None

    @property
    def rate(self) -> float:
        """Messages a second, by the middle of the steps between stamps."""
        steps = np.diff(self.stamps)
        middle = float(np.median(steps[steps > 0])) if (steps > 0).any() else 0.0
        return NANOSECONDS / middle if middle else 0.0


@dataclass
class _Page:
    """The text as it grows, and what is said at its end."""

    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def title(self, text: str) -> None:
        """Begins a part."""
        self.lines += ["", text]

    def say(self, label: str, text: str) -> None:
        """Adds a line under a label."""
        self.lines.append(f"  {label:<13} {text}")

    def warn(self, text: str) -> None:
        """Adds a warning."""
        self.warnings.append(text)

    def text(self) -> str:
        """Returns the whole."""
        ending = ["", "warnings", *(f"  - {w}" for w in self.warnings)] if self.warnings else []
        return "\n".join([*self.lines, *ending])


def describe(path: Path | str, overrides: Mapping[str, str | None] | None = None) -> str:
    """Returns a page about a recording: topics, cameras, depth, truth, frames, what a replay would use, and warnings.

    Args:
        path: The recording.
        overrides: Topics that are not to be found automatically, see ``flowodom.selection.select``.

    Raises:
        BagError: The recording cannot be read, or a named topic is missing.
    """
    with BagReader(path) as bag:
        page = _Page(_head(bag), list(bag.problems))
        page.title("topics")
        page.lines += _topics(bag)
        page.title("replay would use")
        try:
            chosen = bag.select(overrides)
        except BagError as error:
            if overrides:
                raise
            page.say("nothing", "")
            page.warn(str(error))
            return page.text()
        streams = _sample(bag, chosen)
        size = _image(page, chosen, streams[chosen.image])
        _camera(page, chosen, streams, size)
        _depth(page, bag, chosen, streams, size)
        _right(page, bag, chosen, streams)
        _truth(page, chosen, streams)
        page.title("frames")
        page.lines += _frames(page, bag, streams[chosen.image])
        if bag.duration > _SAMPLED:
            page.warn(f"only the first {_SAMPLED:.0f} s were looked at for rates, gaps and sizes")
    return page.text()


def _head(bag: BagReader) -> list[str]:
    count = sum(t.count for t in bag.topics.values())
    begin = datetime.fromtimestamp(bag.start / NANOSECONDS, tz=timezone.utc)
    return [
        f"recording  {bag.path}  {_size(bag.path)}",
        f"length     {bag.duration:.2f} s from {begin:%Y-%m-%d %H:%M:%S} UTC, {count} messages",
    ]


def _size(path: Path) -> str:
    files = [path] if path.is_file() else [p for p in path.iterdir() if p.is_file()]
    size = float(sum(p.stat().st_size for p in files))
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _topics(bag: BagReader) -> list[str]:
    width = max(len(name) for name in bag.topics)
    kind = max(len(t.msgtype) for t in bag.topics.values())
    return [
        f"  {t.name:<{width}}  {t.msgtype:<{kind}}  {t.count:6d}  {_rate(bag, t)}".rstrip() for t in bag.topics.values()
    ]


def _rate(bag: BagReader, topic: Topic) -> str:
    return f"{(topic.count - 1) / bag.duration:6.1f} Hz" if topic.count > 2 and bag.duration > 0 else ""


def _sample(bag: BagReader, chosen: Selection) -> dict[str, _Stream]:
    names = {name for name in vars(chosen).values() if name}
    streams = {name: _Stream() for name in names}
    for name, _, message in bag.messages(names, duration=_SAMPLED):
        stream = streams[name]
        stream.first = stream.first or message
        stream.stamps.append(stamp(message))
        if hasattr(message, "encoding"):
            stream.sizes.append((message.width, message.height))
    return streams


def _decoded(page: _Page, topic: str, stream: _Stream, decode: Callable[[Any], NDArray[Any]]) -> NDArray[Any] | None:
    """Returns the first image of a stream, and writes its line; None, and a warning, where that fails."""
    if stream.first is None:
        page.warn(f"no message of {topic} can be decoded")
        return None
    form = getattr(stream.first, "encoding", "") or stream.first.format
    try:
        image = decode(stream.first)
    except MessageError as error:
        page.warn(f"{topic}: {error}")
        return None
    height, width = image.shape[:2]
    page.say("", f"{width}x{height} {form}, {stream.rate:.1f} Hz, frame {stream.first.header.frame_id!r}")
    return image


def _image(page: _Page, chosen: Selection, stream: _Stream) -> tuple[int, int] | None:
    page.say("image", chosen.image + (" (rectified already, by its name)" if chosen.rectified else ""))
    image = _decoded(page, chosen.image, stream, decode_image)
    if 0 < stream.rate < _SLOW:
        page.warn(f"images come at {stream.rate:.1f} Hz: neighbours share little unless the camera moves slowly")
    if len(set(stream.sizes)) > 1:
        sizes = ", ".join(f"{w}x{h}" for w, h in sorted(set(stream.sizes)))
        page.warn(f"images have several sizes ({sizes}): only those that fit the camera info can be used")
    _stamps(page, stream)
    return None if image is None else (image.shape[1], image.shape[0])


def _stamps(page: _Page, stream: _Stream) -> None:
    steps = np.diff(stream.stamps)
    forward = steps[steps > 0]
    if stream.stamps and not any(stream.stamps):
        page.warn("stamps of the images are all zero: the driver does not fill in their header")
        return
    if (steps < 0).any():
        page.warn(f"stamps of the images go back {int((steps < 0).sum())} times")
    if (steps == 0).any():
        page.warn(f"stamps of the images repeat {int((steps == 0).sum())} times")
    if forward.size:
        gaps = forward[forward > 3 * np.median(forward)]
        if gaps.size:
            page.warn(
                f"images are missing {gaps.size} times for more than three periods, "
                f"at most for {gaps.max() / NANOSECONDS:.2f} s"
            )


def _camera(page: _Page, chosen: Selection, streams: Mapping[str, _Stream], size: tuple[int, int] | None) -> None:
    page.say("camera info", chosen.camera_info or "none")
    if not chosen.camera_info:
        page.warn("there is no CameraInfo for the image; replay needs one: name it with --camera-info")
        return
    info = streams[chosen.camera_info].first
    if info is None:
        page.warn(f"no message of {chosen.camera_info} can be decoded")
        return
    try:
        calibration = Calibration.from_info(info, rectified=chosen.rectified)
    except CalibrationError as error:
        page.warn(str(error))
        return
    camera = calibration.camera
    lens = "no distortion"
    if calibration.distorted:
        lens = f"{info.distortion_model} {', '.join(f'{d:.5g}' for d in info.d)}"
    page.say("", f"{camera.width}x{camera.height}, {lens}")
    page.say(
        "",
        f"focal length {camera.fx:.1f} {camera.fy:.1f} px, centre {camera.cx:.1f} {camera.cy:.1f} px, "
        f"view {_angle(camera.width, camera.fx):.0f} x {_angle(camera.height, camera.fy):.0f} deg",
    )
    if calibration.invalid is not None:
        page.say("", f"{100 * calibration.invalid.mean():.0f} % of the rectified image has nothing to show")
    if size is not None and size != (camera.width, camera.height):
        page.warn(
            f"the image is {size[0]}x{size[1]} but its camera info says {camera.width}x{camera.height}: "
            "name the right one with --camera-info"
        )


def _angle(pixels: int, focal: float) -> float:
    return math.degrees(2 * math.atan(0.5 * pixels / focal))


def _depth(
    page: _Page, bag: BagReader, chosen: Selection, streams: Mapping[str, _Stream], size: tuple[int, int] | None
) -> None:
    if not chosen.depth:
        single = "none: a single camera, whose scale is unknown without --camera-height"
        page.say("depth", "none: it comes from the stereo pair" if chosen.right else single)
        return
    page.say("depth", chosen.depth)
    stream, image = streams[chosen.depth], streams[chosen.image]
    depth = _decoded(page, chosen.depth, stream, decode_depth)
    if depth is None:
        return
    height, width = depth.shape
    valid = depth[np.isfinite(depth)]
    if valid.size:
        low, high = np.percentile(valid, (1, 99))
        page.say("", f"{100 * valid.size / depth.size:.0f} % of the first is valid, {low:.2f} to {high:.2f} m")
    else:
        page.warn("the first depth image has no valid pixel")
    _paired(page, image, stream, "depth")
    frame, picture = stream.first.header.frame_id, image.first.header.frame_id if image.first is not None else ""
    if (size is None or (width, height) == size) and (not picture or frame == picture):
        return
    across, down = size or (width, height)
    unlike = f"depth is {width}x{height} in frame {frame!r}, but the image {across}x{down} in {picture!r}"
    info = streams[chosen.depth_info].first if chosen.depth_info else None
    page.say("depth info", chosen.depth_info or "none")
    if info is None:
        page.warn(f"{unlike}, and there is no CameraInfo of the depth camera, without which it must be registered")
        return
    try:
        camera = Calibration.from_info(info, rectified=chosen.rectified).camera
        place = bag.frame_tree().lookup(picture, frame, image.stamps[0])[:3, 3].tolist()
    except FlowodomError as error:
        page.warn(f"{unlike}, and how they stand is not known: {error}")
        return
    page.say("", f"{camera.width}x{camera.height}, seen from {1000 * math.hypot(*place):.1f} mm beside the camera")


def _paired(page: _Page, image: _Stream, other: _Stream, what: str) -> None:
    """Warns of images that have no companion."""
    if not image.stamps or not other.stamps:
        return
    times, wanted = np.sort(other.stamps), np.asarray(image.stamps)
    after = np.searchsorted(times, wanted).clip(0, times.size - 1)
    before = (after - 1).clip(0)
    apart = np.minimum(abs(times[after] - wanted), abs(times[before] - wanted))
    alone = int((apart > _TOLERANCE * NANOSECONDS).sum())
    if alone:
        page.warn(f"{alone} of {wanted.size} images have no {what} within {1000 * _TOLERANCE:.0f} ms")


def _right(page: _Page, bag: BagReader, chosen: Selection, streams: Mapping[str, _Stream]) -> None:
    if not chosen.right:
        return
    page.say("right", chosen.right)
    stream, image = streams[chosen.right], streams[chosen.image]
    right = _decoded(page, chosen.right, stream, decode_image)
    page.say("right info", chosen.right_info or "none")
    _paired(page, image, stream, "right image")
    infos = [streams[name].first for name in (chosen.camera_info, chosen.right_info) if name]
    if right is None or image.first is None or len(infos) < 2 or None in infos:
        page.warn("the stereo pair needs a CameraInfo of both cameras; name the right one's with --right-info")
        return
    try:
        camera = Calibration.from_info(infos[1], rectified=chosen.rectified).camera
        motion = between(*infos, rectified=chosen.rectified)
        by = "camera infos"
        if motion is None:
            frames, by = [s.first.header.frame_id for s in (stream, image)], "tf"
            motion = bag.frame_tree().lookup(frames[0], frames[1], image.stamps[0])
        place = OtherEye(right, camera, motion).place.tolist()
    except FlowodomError as error:
        page.warn(f"the stereo pair cannot be used, replay goes on with one camera: {error}")
        return
    where = ", ".join(f"{x:.4f}" for x in place)
    page.say("", f"{1000 * math.hypot(*place):.1f} mm from the left one by {by}: {where} m")


def _truth(page: _Page, chosen: Selection, streams: Mapping[str, _Stream]) -> None:
    if not chosen.ground_truth:
        page.say("ground truth", "none: drift cannot be measured")
        return
    page.say("ground truth", chosen.ground_truth)
    stream = streams[chosen.ground_truth]
    if stream.first is None:
        page.warn(f"no message of {chosen.ground_truth} can be decoded")
        return
    child = getattr(stream.first, "child_frame_id", "")
    kind = stream.first.__msgtype__.rpartition("/")[2]
    body = f" of {child!r}" if child else ""
    page.say("", f"{kind} in frame {stream.first.header.frame_id!r}{body}, {stream.rate:.1f} Hz")


def _frames(page: _Page, bag: BagReader, image: _Stream) -> list[str]:
    """Returns the tree of frames, as far as the first of the moving transforms tell."""
    parents: dict[str, tuple[str, str]] = {}
    for topic, kind, most in (("/tf_static", "fixed", None), ("/tf", "moving", 200)):
        if topic in bag.topics:
            for _, _, message in itertools.islice(bag.messages([topic]), most):
                for transform in message.transforms:
                    parents[transform.child_frame_id] = (transform.header.frame_id, kind)
    if image.first is not None and image.first.header.frame_id not in parents:
        page.warn(
            f"no transform leads to the camera's frame {image.first.header.frame_id!r}: "
            "poses will be those of the camera itself"
        )
    order = sorted(parents.items(), key=lambda item: (item[1], item[0]))
    return [f"  {parent} -> {child} ({kind})" for child, (parent, kind) in order] or ["  none"]
