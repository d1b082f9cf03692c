"""What one view tells of the camera's motion and of what moves on its own, and which of the two is which.

A pose is fitted to what seems to stand still, what moves is found beside the pose, and has no say in a second fit where
it has swayed the first. Where much of the image moves otherwise than the rest, either part may be the world; then the
nearer one moves, or the view tells nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from flowodom.depth import DepthSource, FramePair, InverseDepth
from flowodom.flow import FlowField
from flowodom.geometry import se3
from flowodom.registration.covariance import anywhere
from flowodom.registration.first_baseline import Parallax
from flowodom.registration.motion_fit import BACKED
from flowodom.scene_flow.decompose import find_moving
from flowodom.scene_flow.moving import Carried, Moving
from flowodom.stopwatch import Stopwatch
from flowodom.threads import one_thread
from flowodom.tracking import NotTracked, Track, Tracker
from flowodom.view import View

SWAY = 0.03
"""Share of the points that agree with a pose yet lie on what moves on its own, from which they have swayed it."""

AMBIGUOUS = 0.25
"""Share of the image that may begin to move on its own from one frame to the next without being doubted."""

UNTOLD = "which is still, is not told"
"""What it comes to where much of the image moves otherwise than the rest."""

MOST = 0.5
"""Share of the image that moves on its own, from which a camera that leaps by the rest is not believed."""

NEARER = 0.1
"""Logarithm of the ratio of inverse depths by which what moves must stand out from what is still beside it."""

CLEARLY_NEARER = 0.25
"""The same where it had been taken for still at first, or nothing has been watched standing still yet."""

MOST_ACCELERATION = (12.0, 30.0)
"""What a camera is believed to do, m/s^2 and rad/s^2, where much of the image moves otherwise than the rest."""

USUAL_DEPTH = 2.0
"""Metres, about, at which what a single camera sees is taken to be where nothing tells metres."""

LEAP = 3.0
"""Times that acceleration, from which on the camera leaps: it is not believed to where few points agree on it."""

MAJORITY = 0.5
"""Share of the points followed, below which those that agree are few, ..."""

MINORITY = 0.2
"""... and share of the points that should be seen."""

CROWDED = 0.7
"""Share of the points that agree with a pose, below which what moves on its own is looked for."""

RIVAL_SHARE = 0.08
"""Share of the points that must agree on another motion for it to rival the pose; where the camera is lost, half."""


class Undecided(NotTracked):
    """Which part of the frame stands still is not told: where the camera is seems so in more ways than one."""


@dataclass(frozen=True)
class Known:
    """What is known of the last view that was tracked.

    Attributes:
        view: The view.
        field: Its depth; None where none is known.
        moving: What moved on its own in it; None where nothing did.
        velocity: (6,) twist per second by which the camera came to it; None where none is known.
    """

    view: View
    field: InverseDepth | None = None
    moving: Moving | None = None
    velocity: Tensor | None = None

    def until(self, view: View) -> float:
        """Returns the seconds from this view to another."""
        return (view.frame.stamp - self.view.frame.stamp) * 1e-9

    def astray(self, view: View) -> Tensor:
        """Returns where a camera may be in another view that was seen by none in between.

        Returns:
            (6, 6) covariance of its pose's right perturbation, that in this view being known: it may have gone on as
            fast as it came, whichever way. Zero where no speed is known, or the clock has jumped back.
        """
        if self.velocity is None:
            return torch.zeros(6, 6, dtype=torch.float64)
        way, turn = (part.norm() * max(self.until(view), 0.0) for part in self.velocity.reshape(2, 3))
        return anywhere(way, turn.clamp_max(math.pi))

    def rescaled(self, factor: float) -> Known:
        """Returns the same where all lengths are multiplied by ``factor``."""
        field = None if self.field is None else self.field.scaled(factor)
        velocity = None if self.velocity is None else se3.rescaled(self.velocity, factor)
        return replace(self, field=field, velocity=velocity)


class Opinion(NamedTuple):
    """What a view tells, given what may move.

    Attributes:
        tracker: What follows the camera from here.
        track: Where it is.
        field: The view's depth; None where none is known.
        moving: What moves on its own in it; None where nothing does.
        looked: Whether that was looked for.
    """

    tracker: Tracker
    track: Track
    field: InverseDepth | None
    moving: Moving | None
    looked: bool


class Judgement:
    """Judges one view.

    Args:
        view: The view.
        flow: Dense flow to it from the last one that was tracked.
        tracker: What has followed the camera until now; it stays as it is.
        depth: The source of depth.
        known: What is known of the last view.
        search: Whether to look for what moves on its own in any case.
        lost: Whether the views since then have told nothing.
        clock: Counts what it takes.
    """

    def __init__(
        self,
        view: View,
        flow: FlowField,
        *,
        tracker: Tracker,
        depth: DepthSource,
        known: Known,
        search: bool,
        lost: bool,
        clock: Stopwatch,
    ) -> None:
        self._view, self._flow, self._camera = view, flow, view.dense_camera
        self._tracker, self._depth, self._known = tracker, depth, known
        self._search = search
        self._rival_share = 0.5 * RIVAL_SHARE if lost else RIVAL_SHARE
        self._clock = clock

    @property
    def tracker(self) -> Tracker:
        """What a single camera that is still waiting for parallax goes on with."""
        return self._tracker

    @one_thread()
    def opinion(self, expected: Sequence[Tensor]) -> Opinion:
        """Finds pose, depth and what moves on its own; again without the latter where it has swayed the pose.

        Args:
            expected: Guesses of (4, 4) ``T_previous_camera``.

        Raises:
            NotTracked, Parallax: See ``Tracker.track``.
            Undecided: Which part of the image stands still is not told.
        """
        before = self._known.moving
        moving = None if before is None else before.carried(self._flow)
        opinion = self._fit(expected, moving, before, search=self._search)
        if opinion.moving is not None and opinion.tracker.share_on(opinion.moving) > SWAY:
            opinion = self._fit(expected, opinion.moving, before, search=True)
        if doubt := self._doubt(opinion):
            opinion = self._other_way_round(expected, opinion, doubt)
        if self._known.velocity is not None and self._is_rash(opinion.track) and not self._steady(opinion, LEAP):
            inliers, sought = opinion.track.inliers, opinion.track.sought
            raise NotTracked(f"only {inliers} of {sought} points agree on a motion by which the camera leaps")
        return opinion

    @staticmethod
    def _is_rash(track: Track) -> bool:
        """Tells whether so little speaks for where the camera is that it must not have leapt there."""
        return track.inliers < max(MAJORITY * track.matches, MINORITY * track.sought)

    def _fit(
        self, expected: Sequence[Tensor], moving: Moving | Carried | None, before: Moving | None, *, search: bool
    ) -> Opinion:
        """Finds pose, depth and, if need be, what moves on its own, where ``moving`` has no say in the pose.

        What moved in the view before is ``before``.
        """
        view, flow, camera, former = self._view, self._flow, self._camera, self._known.field
        tracker = copy(self._tracker)
        with self._clock("pose"):
            try:
                track = tracker.track(view, flow, expected, moving, rival=self._rival_share)
            except Parallax:
                self._tracker = tracker
                raise
        to_current, field = se3.inverse(track.motion), former
        with self._clock("depth"):
            if tracker.started:
                pair = FramePair(view.frame, flow, camera, to_current, track.motion_covariance)
                field = self._depth.fuse(view.depth, former, pair)
        with self._clock("moving"):
            found, looked = None, False
            crowded = track.inliers < CROWDED * track.matches
            if former is not None and field is not None and (search or crowded):
                looked = True
                past, now = (self._known.view.dense, former), (view.dense, field)
                suspected = crowded or moving is not None
                found = find_moving(camera, past, now, flow, to_current, before, suspected=suspected)
        if found is not None and self._known.velocity is None:
            # At first nobody has been watched standing still.
            found = found.unbiased()
        return Opinion(tracker, track, field, found, looked)

    def _doubt(self, opinion: Opinion) -> str:
        """Returns why what moves and what stands still may be the wrong way round; empty where it is not in doubt."""
        if share := self._behind(opinion):
            return f"{share:.0%} of what is seen, all of it behind the rest, moves otherwise: " + UNTOLD
        if opinion.moving is None or self._steady(opinion):
            return ""
        unwatched, share = self._known.velocity is None, opinion.moving.share
        if not unwatched and share > MOST:
            return f"{share:.0%} of the image moves otherwise than the rest, by which the camera leaps: " + UNTOLD
        grown = share - (0.0 if self._known.moving is None else self._known.moving.share)
        if grown > AMBIGUOUS and opinion.moving.nearness < (CLEARLY_NEARER if unwatched else NEARER):
            return f"{grown:.0%} of the image moves otherwise than the rest: " + UNTOLD
        return ""

    def _behind(self, opinion: Opinion) -> float:
        """Returns the share of what is seen that moves, but lies behind all that stands still; 0 for too little."""
        moving, rival = opinion.moving, opinion.tracker.rival
        share = 0.0 if moving is None else moving.share
        if rival is not None and (moving is None or share < rival.share or moving.backed < BACKED):
            return rival.share
        behind = moving is not None and self._depth.metric and share > self._rival_share and moving.backed < BACKED
        return share if behind else 0.0

    def _steady(self, opinion: Opinion, leap: float = 1.0) -> bool:
        """Tells whether the camera can have come to its motion from that of the last tracked pair.

        Args:
            opinion: Has its motion.
            leap: By how many times what a camera is believed to do it may accelerate.
        """
        if self._known.velocity is None:
            return False
        interval = self._known.until(self._view)
        change = (se3.log(opinion.track.motion) / interval - self._known.velocity) / interval
        metres = 1.0 if self._depth.metric else USUAL_DEPTH * (opinion.tracker.typical_rho or 0.0)
        shift, turn = (leap * most for most in MOST_ACCELERATION)
        return bool(metres * change[:3].norm() < shift and change[3:].norm() < turn)

    def _other_way_round(self, expected: Sequence[Tensor], opinion: Opinion, doubt: str) -> Opinion:
        """Finds pose, depth and what moves where what seemed to move stands still, and the rest moves before it.

        Raises:
            Undecided: That is no better; the message is ``doubt``.
        """
        before = None if self._known.moving is None else self._known.moving.swapped()
        rival, moving = opinion.tracker.rival, None if opinion.moving is None else opinion.moving.swapped()
        if rival is not None and self._known.field is not None and opinion.field is not None:
            past, now = (self._known.view.dense, self._known.field), (self._view.dense, opinion.field)
            back = se3.inverse(rival.motion)
            moving = find_moving(self._camera, past, now, self._flow, back, before, suspected=True)
            expected = (rival.motion, *expected)
        if moving is None or moving.nearness < NEARER:
            raise Undecided(doubt)
        try:
            turned = self._fit(expected, moving, before, search=True)
        except NotTracked:
            raise Undecided(doubt) from None
        if self._behind(turned) or turned.moving is None or turned.moving.nearness < CLEARLY_NEARER:
            raise Undecided(doubt)
        return turned
