"""Odometry: a frame in, an estimate of the camera's pose and of the scene's flow out."""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple, TypeVar

import cv2
import torch
from torch import Tensor

from flowodom.config import OdometryConfig, override
from flowodom.depth import DepthSource, InverseDepth
from flowodom.depth.fusion import FusedDepth
from flowodom.depth.sources import choose_depth, find_field, measures
from flowodom.depth.stereo import StereoDepth
from flowodom.errors import ConfigError
from flowodom.flow import FlowMethod
from flowodom.flow.features import match
from flowodom.flow.methods import make_flow, method_for
from flowodom.frame import Frame
from flowodom.geometry import PinholeCamera, se3
from flowodom.judgement import Judgement, Known, Undecided
from flowodom.local_map import LocalMap
from flowodom.registration.first_baseline import OutOfSight, Parallax
from flowodom.registration.innovations import Innovations
from flowodom.registration.motion_fit import LEAST_INLIERS
from flowodom.registration.readout import Readout
from flowodom.registration.relocation import relocate
from flowodom.registration.turn import Turn
from flowodom.scene_flow import PropertySet, lift
from flowodom.scene_flow.moving import Moving
from flowodom.stopwatch import Stopwatch
from flowodom.threads import one_thread
from flowodom.tracking import NotTracked, Tracker
from flowodom.unit import Scale, Unit
from flowodom.view import View

_log = logging.getLogger(__name__)

Configured = TypeVar("Configured", bound=OdometryConfig)

PATIENCE = 1.0
"""Seconds without a trusted pose after which a new segment starts at the last one; with the image in which the way was
lost where the next would come later than that."""

WATCHED = 0.003
"""Share of the image that moves on its own, or did so shortly, from which it is looked for in every frame."""

GUESS_DEVIATION = 0.06
"""Angle, radians, by which points may lie off from where a guess has them, in a frame that is tracked only by it."""

LEVELLINGS = 2
"""How often the rows of a stereo pair are made to meet at first: each time more of what both see is found."""

STEADY = 0.3
"""Longest time, seconds, for which a camera is expected to go on as before."""

FAR = 0.02
"""Expected median displacement, as a share of the image's width, from which flow starts from what is expected."""

LOOK_PERIOD = 0.2
"""Longest time, seconds, for which nobody looks for what moves on its own."""


class Status(enum.Enum):
    """What the odometry knows of where it is."""

    INITIALIZING = enum.auto()
    TRACKING = enum.auto()
    LOST = enum.auto()


@dataclass(frozen=True)
class Estimate:
    """What one frame told.

    Attributes:
        stamp: Time of the frame, integer nanoseconds.
        status: INITIALIZING, TRACKING or LOST.
        segment: Poses of one segment are seen from one place: a new start after LOST, a reset or a change of camera
            begins another, and what is recognised leads back to the one that saw it.
        reason: Why the frame is not TRACKING; empty where it is.
        pose: (4, 4) float64 ``T_odom_camera``, optical frame; None where no pose is believed.
        covariance: (6, 6) float64 of ``xi = (rho, phi)`` in ``T_true = pose @ exp(xi)``; None with ``pose``.
        motion: (4, 4) float64 ``T_previous_camera``; None where there is no tracked previous frame.
        motion_covariance: (6, 6) of its right perturbation.
        interval: Seconds from the previous tracked frame to this one, zero without one.
        keyframe: Whether the frame became a keyframe.
        scale: What the unit of length is.
        scale_deviation: Relative deviation of that unit from the metre; None where it is no metre.
        matches: Points followed into the frame.
        inliers: Those that agree with the pose.
        timing: Seconds spent in each stage.
        moving: What moves on its own in this frame; None where nothing does or no pose is believed.
        lift: Gives P, F, W, C of every so manieth row and column of the previous frame; None without a tracked pair.
    """

    stamp: int
    status: Status
    segment: int
    reason: str = ""
    pose: Tensor | None = None
    covariance: Tensor | None = None
    motion: Tensor | None = None
    motion_covariance: Tensor | None = None
    interval: float = 0.0
    keyframe: bool = False
    scale: Scale = Scale.UNKNOWN
    scale_deviation: float | None = None
    matches: int = 0
    inliers: int = 0
    timing: dict[str, float] = field(default_factory=dict)
    moving: Moving | None = None
    lift: Callable[[int], PropertySet] | None = field(default=None, repr=False)

    @cached_property
    def properties(self) -> PropertySet | None:
        """P, F, W, C of every pixel of the previous frame, lifted when first asked for; None without a tracked pair."""
        return None if self.lift is None else self.lift(1)


class _Start(NamedTuple):
    """Where the search for a frame's motion begins."""

    flow: Tensor | None
    """(H, W, 2) from which flow starts; None for none at all."""
    motions: tuple[Tensor, ...]
    """Guesses of ``T_previous_camera`` from which the fit may start."""
    doubtful: bool = False
    """Whether the motion must end up near the first of them to be believed."""


class _Past(NamedTuple):
    """What an earlier segment has seen, and in which unit."""

    seen: LocalMap
    segment: int
    unit: Unit


class Odometry:
    """Visual odometry of one camera.

    Args:
        config: Parameters.
    """

    def __init__(self, config: OdometryConfig | None = None) -> None:
        self._config = decided(config or OdometryConfig())
        self._device = torch.device(self._config.device)
        self._flow: FlowMethod = make_flow(self._config.flow)
        self._single_image = find_field(self._config.depth, self._device)
        self._segment, self._segments = 0, 1
        self._origin = se3.identity()
        self._origin_covariance = torch.zeros(6, 6, dtype=torch.float64)
        self._left: Known | None = None
        self._tracker: Tracker | None = None
        self._past: _Past | None = None
        self._usual_rho: float | None = None
        self._readout: Readout | None = None
        self._turn: Turn | None = None
        self._innovations = Innovations()
        self._depth: DepthSource
        self._unit = Unit()
        self._known: Known
        self._looked = 0
        self._lost = 0
        self._clock = Stopwatch()

    @property
    def readout(self) -> Readout | None:
        """What is known of the camera's shutter; None before the first frame."""
        return self._readout if self._tracker is None else self._tracker.readout

    @property
    def turn(self) -> Turn | None:
        """What is known of the turn of the stereo pair beside its calibration; None without one."""
        return self._turn if self._tracker is None else self._tracker.turn

    @property
    def innovations(self) -> Innovations:
        """What is known of how far covariances can be believed."""
        return self._innovations if self._tracker is None else self._tracker.innovations

    def reset(self, pose: Tensor | None = None) -> None:
        """Starts a new segment with the next frame.

        Args:
            pose: (4, 4) float64 ``T_odom_camera`` of the next frame; the last trusted pose where None, unless the frame
                shows a place that has been seen.
        """
        self._restart(forget=pose is not None)
        if pose is not None:
            self._origin, self._origin_covariance = pose.to(torch.float64), torch.zeros(6, 6, dtype=torch.float64)
            self._left = None

    def _restart(self, *, forget: bool = False) -> None:
        """Starts a new segment with the next frame; ``forget`` what has been seen where it is of no use to it."""
        if self._tracker is not None:
            self._origin, self._origin_covariance = self._tracker.pose, self._tracker.passed_on
            self._left = self._known
            self._tracker.remember_newest()
            if self._past is None or len(self._tracker.local_map) >= len(self._past.seen):
                self._past = _Past(self._tracker.local_map, self._segment, self._unit)
            self._usual_rho = self._tracker.typical_rho or self._usual_rho
            self._readout, self._turn = self._tracker.readout, self._tracker.turn
            self._innovations = self._tracker.innovations
            self._segment, self._segments = self._segments, self._segments + 1
        if forget:
            self._past, self._usual_rho = None, None
        self._tracker, self._lost = None, 0

    def step(self, frame: Frame, *, fields: bool = False, guess: Tensor | None = None) -> Estimate:
        """Takes in the next frame.

        Args:
            frame: The frame, later than all before it.
            fields: Whether the estimate's P, F, W, C will be asked for, so that they are begun early.
            guess: (4, 4) float64 ``T_tracked_camera``, metres: the motion since the last frame that was tracked, as
                another source saw it. The fit starts there where the images agree, and flow where it is lost otherwise;
                a wrong guess costs time only. None for none.

        Returns:
            What it tells. A frame of another size or calibration starts a new segment.
        """
        self._clock = Stopwatch()
        self._start_anew_if_need_be(frame)
        with self._clock("prepare"):
            view = self._look(frame)
            if fields:
                self._depth.begin(frame)
        if self._tracker is None:
            return self._begin(view)
        losses: list[NotTracked] = []
        for start in self._starts(view, guess):
            try:
                return self._follow(view, start, fields=fields)
            except Parallax as wait:
                return self._wait(view, wait)
            except NotTracked as loss:
                losses.append(loss)
        return self._lose(view, losses)

    def _start_anew_if_need_be(self, frame: Frame) -> None:
        """Starts a new segment where a frame is of another camera or rig, or the first one whose depth is measured."""
        if self._tracker is not None and frame.camera != self._known.view.camera:
            _log.warning("the camera has changed from %s to %s: new segment", self._known.view.camera, frame.camera)
            self._restart(forget=True)
            self._readout, self._innovations = None, Innovations()
        if self._turn_is_another(frame):
            _log.warning("the cameras of the stereo pair stand otherwise than before: new segment")
            self._restart(forget=True)
        if self._tracker is not None and not self._depth.metric and measures(self._config.depth, frame):
            _log.info("depth has come: new segment, in metres")
            self._restart(forget=True)

    def _follow(self, view: View, start: _Start, *, fields: bool) -> Estimate:
        """Finds out where the camera is and what moves, from a start, and goes on from there.

        Raises:
            NotTracked, Parallax: See ``Judgement.opinion``.
        """
        assert self._tracker is not None
        before, frame = self._known, view.frame
        camera = view.dense_camera
        search = fields or self._is_watching(frame.stamp)
        with self._clock("flow"):
            flow = self._flow(before.view.dense, view.dense, start.flow)
            if search or not self._depth.metric or before.moving is not None:
                flow.begin()
        judgement = Judgement(
            view,
            flow,
            tracker=self._tracker,
            depth=self._depth,
            known=before,
            search=search,
            lost=self._lost > 0,
            clock=self._clock,
        )
        try:
            opinion = judgement.opinion(start.motions)
        except Parallax:
            self._tracker = judgement.tracker
            raise
        tracker, track, field, moving, looked = opinion
        if start.doubtful:
            self._check(track.motion, start.motions[0])
        if looked:
            self._looked = frame.stamp
        interval = before.until(view)
        self._tracker, self._lost = tracker, 0
        self._known = Known(view, field, moving, se3.log(track.motion) / interval)
        factor = 1.0
        if track.keyframe:
            with self._clock("window"):
                factor = tracker.add_keyframe(view, field, moving)
            self._rescale(factor)
            if tracker.turn is not None:
                self._unit = replace(self._unit, variance=tracker.unit_deviation**2)
        factor *= self._measure_scale(frame, track.keyframe)
        former, now, depth, to_current = before.field, self._known.field, self._depth, se3.inverse(track.motion)

        @one_thread()
        def lifted(stride: int) -> PropertySet:
            unknown = InverseDepth.unknown(camera, self._device)
            past, present = depth.complete(former or unknown, before.view.frame), depth.complete(now or unknown, frame)
            return lift(camera, flow, past, present, to_current, stride=stride)

        return self._estimate(
            view,
            Status.TRACKING,
            pose=tracker.pose,
            covariance=tracker.covariance,
            motion=_scaled(track.motion, factor),
            motion_covariance=track.motion_covariance,
            interval=interval,
            keyframe=track.keyframe,
            matches=track.matches,
            inliers=track.inliers,
            moving=moving,
            lift=lifted,
        )

    def _wait(self, view: View, wait: Parallax) -> Estimate:
        """Goes on with a single camera that has moved too little, unless it recognises where it is."""
        assert self._tracker is not None
        if self._past is not None and (found := self._recognised(self._tracker, view)) is not None:
            return self._go_on(found, view)
        self._known = replace(self._known, view=view)
        if isinstance(wait, OutOfSight):
            self._restart()
        return self._estimate(view, Status.INITIALIZING, reason=str(wait))

    def _turn_is_another(self, frame: Frame) -> bool:
        """Tells whether what is known of the stereo pair that is followed does not hold for a frame's."""
        known = None if self._tracker is None else self._tracker.turn
        return known is not None and frame.other is not None and not known.eye.stands_like(frame.other)

    def _is_watching(self, stamp: int) -> bool:
        """Tells whether to look for what moves on its own: where something does or shortly did, and now and then.

        It is looked for as well where fields are asked for, and where many points contradict the pose; and nothing is
        taken for still before a first pair of frames, or the one after a loss, has been looked at.
        """
        moving = self._known.moving
        known = moving is not None and moving.doubted_share > WATCHED
        unsure = self._known.velocity is None or self._lost > 0
        return known or unsure or stamp - self._looked >= round(1e9 * LOOK_PERIOD)

    def _usable(self, guess: Tensor | None) -> Tensor | None:
        """Returns what of a guess in metres holds in the present unit: nothing, the turn alone, or all of it."""
        assert self._tracker is not None
        if guess is None or not self._tracker.started:
            return None
        if self._unit.metric:
            return guess
        return se3.matrix(guess[:3, :3], torch.zeros(3, dtype=torch.float64))

    def _check(self, motion: Tensor, guess: Tensor) -> None:
        """Makes sure that a motion which only a guess has led to is the one that was guessed.

        Raises:
            NotTracked: It is another one.
        """
        difference = se3.log(se3.inverse(guess) @ motion)
        off = float(difference[3:].norm())
        if self._unit.metric and self._known.field is not None:
            off += float(difference[:3].norm() * self._known.field.mean.nanmedian().nan_to_num())
        if off > GUESS_DEVIATION:
            raise NotTracked("the motion found is not the one that was guessed")

    def _starts(self, view: View, guess: Tensor | None) -> Iterator[_Start]:
        """Yields where to begin: going on as before; where that finds nothing, as guessed; and as features tell."""
        guess, camera = self._usable(guess), view.dense_camera
        velocity = torch.zeros(6, dtype=torch.float64) if self._known.velocity is None else self._known.velocity
        before = se3.exp(velocity * min(self._known.until(view), STEADY))
        motions = (before,) if guess is None else (before, guess)
        far = (
            float(self._foretell(camera, before, stride=camera.width // 10).norm(dim=-1).median()) > FAR * camera.width
        )
        yield _Start(self._foretell(camera, before) if far else None, motions)
        if guess is not None:
            yield _Start(self._foretell(camera, guess), (guess,), doubtful=True)
        with self._clock("features"):
            pixels, there = match(self._known.view.grey, view.grey)
            rho = torch.full((len(pixels),), torch.nan, dtype=torch.float64)
            if (field := self._known.field) is not None:
                rho = field.at(view.camera, pixels.to(field.mean.device))[0].to(rho)
            motion = relocate(view.camera, pixels, there, rho)
        if motion is not None:
            back = se3.inverse(motion)
            yield _Start(self._foretell(camera, back), (back,))

    @one_thread()
    def _foretell(self, camera: PinholeCamera, motion: Tensor, stride: int = 1) -> Tensor:
        """Returns the flow that a motion ``T_previous_camera`` causes, as far as depth is known.

        Args:
            camera: Camera of the dense grid (H, W).
            motion: (4, 4) float64.
            stride: Every how manieth row and column is wanted.
        """
        forward = se3.inverse(motion).to(torch.float32)
        pixels = camera.pixels(which=slice(None, None, stride))
        rho = torch.zeros(pixels.shape[:2])
        if (field := self._known.field) is not None:
            rho = field.at(camera, pixels.to(field.mean.device))[0].cpu().nan_to_num()
        ahead = camera.rays(pixels) @ forward[:3, :3].T + rho[..., None] * forward[:3, 3]
        return (camera.project(ahead, min_depth=1e-3) - pixels).to(self._device)

    @one_thread()
    def _look(self, frame: Frame) -> View:
        """Prepares a frame: grey, its dense-size copy, and the depth that it carries."""
        if self._tracker is None:
            self._depth = self._choose_depth(frame)
            self._level(frame)
        if frame.other is not None and self.turn is not None:
            frame = replace(frame, other=self.turn.applied(frame.other))
        grey = frame.grey
        scale = min(1.0, (self._config.flow.max_pixels / grey.size) ** 0.5)
        size = (max(16, round(grey.shape[1] * scale)), max(16, round(grey.shape[0] * scale)))
        dense = grey if scale == 1.0 else cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
        return View(frame, grey, torch.from_numpy(dense).to(self._device), self._depth.observe(frame))

    def _level(self, frame: Frame) -> None:
        """Finds out how the stereo pair that measures depth in a first frame is turned, as far as one frame tells."""
        if frame.other is None or not isinstance(self._depth, StereoDepth) or not self._config.depth.turn_deviation:
            self._turn = None
            return
        if self._turn is None or not self._turn.eye.stands_like(frame.other):
            self._turn = Turn.begin(frame.other, self._config.depth.turn_deviation)
        for _ in range(LEVELLINGS):
            seen = self._depth.observe(replace(frame, other=self._turn.applied(frame.other)))
            if seen is not None:
                self._turn = self._turn.levelled(*seen.tilt())

    def _choose_depth(self, frame: Frame) -> DepthSource:
        """Returns a source of depth that knows nothing yet of the unit of length."""
        return choose_depth(self._config.depth, self._single_image, frame, self._device)

    def _begin(self, view: View) -> Estimate:
        """Makes the view the first keyframe of a segment."""
        if self._depth.metric and view.depth is None:
            reason = "no valid depth in the first frame"
            if view.frame.depth is None and view.frame.other is not None:
                reason = "the images of the stereo pair do not match: is it their calibration, is a lens covered?"
            return self._estimate(view, Status.INITIALIZING, reason=reason)
        tracker = Tracker(
            self._config.registration,
            view,
            metric=self._depth.metric,
            pose=self._origin,
            covariance=self._origin_covariance + (0 if self._left is None else self._left.astray(view)),
            readout=self._readout,
            turn=self._turn,
            innovations=self._innovations,
        )
        if (count := len(tracker.points()[0])) < LEAST_INLIERS:
            reason = f"the image shows only {count} points that could be followed, {LEAST_INLIERS} are needed"
            return self._estimate(view, Status.INITIALIZING, reason=reason)
        stereo = view.frame.depth is None and view.frame.other is not None
        measured = Scale.STEREO if stereo else Scale.SENSOR
        self._unit = Unit(measured if self._depth.metric else Scale.UNKNOWN, tracker.unit_deviation**2)
        return self._go_on(self._recognised(tracker, view) or tracker, view)

    def _recognised(self, tracker: Tracker, view: View) -> Tracker | None:
        """Returns a tracker that goes on from a place which the given one or an earlier one has seen; None for none."""
        with self._clock("features"):
            found = tracker.recognise(view, tracker.local_map)
            if found is None and self._past is not None and self._past.seen is not tracker.local_map:
                found = tracker.recognise(view, self._past.seen)
                if found is not None:
                    _, self._segment, self._unit = self._past
                    self._depth = self._choose_depth(view.frame)
            return found

    def _go_on(self, tracker: Tracker, view: View) -> Estimate:
        """Goes on from the view with which a tracker starts."""
        if not self._depth.metric:
            tracker.unit_deviation = self._unit.deviation or 0.0
        self._tracker, self._known, self._lost = tracker, Known(view, view.depth), 0
        return self._estimate(view, Status.TRACKING, pose=tracker.pose, covariance=tracker.covariance, keyframe=True)

    def _lose(self, view: View, losses: Sequence[NotTracked]) -> Estimate:
        """Goes on from a place that is recognised; else reports LOST, and after a while starts a new segment here.

        None is recognised where it is not told what stands still, by what may be the mover.
        """
        assert self._tracker is not None
        if not self._lost:
            self._tracker.remember_newest()
        self._lost += 1
        undecided = any(isinstance(loss, Undecided) for loss in losses)
        if not undecided and (found := self._recognised(self._tracker, view)) is not None:
            return self._go_on(found, view)
        if self._known.until(view) * (1 + 1 / self._lost) >= PATIENCE:
            self._restart(forget=undecided)
            self._begin(self._look(view.frame))
        return self._estimate(view, Status.LOST, reason=str(losses[0]))

    def _measure_scale(self, frame: Frame, keyframe: bool) -> float:
        """Brings a single camera to metres where something tells them; returns by how much lengths were multiplied."""
        assert self._tracker is not None
        started = self._unit.scale is Scale.UNKNOWN and self._tracker.started
        if started:
            self._unit = Unit(Scale.FIRST_BASELINE)
        if not keyframe or self._depth.metric or self._known.field is None:
            return 1.0
        told = self._unit.by_height(self._config.camera_height, self._tracker)
        told = told or self._unit.by_field(self._depth, frame, self._tracker)
        if told is not None:
            self._unit, factor = told
        else:
            factor = self._as_usual() if started else 1.0
        if factor != 1.0:
            self._tracker.rescale(factor, from_start=started)
            self._rescale(factor)
        self._tracker.unit_deviation = self._unit.deviation or 0.0
        return factor

    def _rescale(self, factor: float) -> None:
        """Brings all but the tracker to another unit of length."""
        if factor == 1.0 or self._known.field is None:
            return
        self._known = self._known.rescaled(factor)
        if isinstance(self._depth, FusedDepth):
            self._depth.rescale(factor)

    def _as_usual(self) -> float:
        """Returns the factor by which what is seen is about as far as it was before the camera was lost.

        A first baseline may have any length; so those who read poses need not expect another order of magnitude.
        """
        assert self._tracker is not None
        if self._usual_rho is None or self._tracker.typical_rho is None:
            return 1.0
        return self._tracker.typical_rho / self._usual_rho

    def _estimate(self, view: View, status: Status, **known: object) -> Estimate:
        return Estimate(
            view.frame.stamp,
            status,
            self._segment,
            scale=self._unit.scale,
            scale_deviation=self._unit.deviation,
            timing=self._clock.seconds,
            **known,  # type: ignore[arg-type]
        )


def decided(config: Configured) -> Configured:
    """Returns a configuration in which device and flow method are no longer ``auto`` but what that means here.

    Raises:
        ConfigError: The device cannot be used, or the flow method is unknown.
    """
    device = resolve_device(config.device)
    return override(config, {"device": str(device), "flow.method": method_for(config.flow, device)})


def resolve_device(name: str) -> torch.device:
    """Returns the torch device of a parameter: ``auto`` is CUDA where there is one, else the CPU.

    Raises:
        ConfigError: The name is no torch device, or the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used: {error}; try auto or cpu") from error
    return device


def _scaled(motion: Tensor, factor: float) -> Tensor:
    """Returns a motion with its translation multiplied."""
    result = motion.clone()
    result[:3, 3] *= factor
    return result
