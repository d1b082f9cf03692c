"""Following the camera: points against the newest keyframe, a robust fit, and the keyframe window behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowodom.config import RegistrationConfig
from flowodom.depth import InverseDepth
from flowodom.flow import FlowField
from flowodom.flow.features import match
from flowodom.flow.points import choose, thin
from flowodom.geometry import se3
from flowodom.local_map import Keyframe, LocalMap
from flowodom.recall import Correction, Look, correction, is_worth_a_look, look_back, unit_change
from flowodom.registration.covariance import compose, fit_covariance, miscalibrated, since, stretched
from flowodom.registration.first_baseline import START_SHARE, OutOfSight, Parallax, first_baseline
from flowodom.registration.innovations import Innovations
from flowodom.registration.motion_fit import LEAST_INLIERS, MotionFit, Rival
from flowodom.registration.planes import Patches
from flowodom.registration.readout import Exposure, Readout
from flowodom.registration.refine import Fit, Matches, is_known, score
from flowodom.registration.relocation import relocate
from flowodom.registration.shear import Shear, rows, sheared
from flowodom.registration.turn import Turn
from flowodom.registration.window import KeyframeWindow
from flowodom.scene_flow.moving import Carried, Moving
from flowodom.threads import one_thread
from flowodom.view import View, read

LEAST_INLIER_SHARE = 0.35
"""Share of the matches that must agree with a pose for it to be believed."""

LEAST_SEEN_SHARE = 0.1
"""Share of the points looked for that must agree with a pose for it to be believed: where the camera sees something
else, some are found by chance."""

FEW = 0.7
"""Share of the matches that agree with a fit, below which one from the expected motion is tried as well, ..."""

CHEAPER = 0.7
"""... and share of the former's cost, below which that is taken."""

KEYFRAME_FLOW = 0.04
"""Median displacement since the keyframe, as a share of the image's width, that asks for a new one."""

IDLE = 2.0
"""By how much a camera whose depth is not measured waits longer where that is rotation, which tells none."""

KEYFRAME_SHARE = 0.45
"""Share of the keyframe's points still followed, below which a new one is due."""

SPARSEST = 0.5
"""Least share of the image over which all points are spread, where the rest holds none: on less they would crowd."""

PROVEN = 0.25
"""Share of the points that must have stood still from one keyframe to another for the others to depend on them."""

LOOKS = 2
"""Most remembered keyframes at which a new one looks back, until one tells something."""

RECOGNISED = 3
"""Most remembered keyframes with which a view is compared where the camera is lost."""


@dataclass(frozen=True)
class Track:
    """Where the camera is, as far as one frame tells.

    Attributes:
        pose: (4, 4) float64 ``T_odom_camera``.
        motion: (4, 4) float64 ``T_previous_camera``.
        motion_covariance: (6, 6) of its right perturbation.
        keyframe: Whether the frame should become a keyframe.
        sought: Points that the frame should show.
        matches: Those that were followed into it.
        inliers: Those that agree with the pose.
    """

    pose: Tensor
    motion: Tensor
    motion_covariance: Tensor
    keyframe: bool
    sought: int
    matches: int
    inliers: int


class _Key(NamedTuple):
    """A keyframe of the window, as its image is needed: grey (H, W), exposure, and covariance (6, 6) of its pose."""

    grey: NDArray[np.uint8]
    exposure: Exposure
    covariance: Tensor


class _Fitted(NamedTuple):
    """A fit, the (4, 4) motion that it started from, and the shear that was expected there."""

    fit: Fit
    start: Tensor
    shear: Shear


class Recalled(NamedTuple):
    """Points known from before: where a view shows them, (N, 2) pixels, their inverse depths (N,), its variance."""

    places: Tensor
    rho: Tensor
    variance: Tensor

    @classmethod
    def none(cls) -> Recalled:
        """Returns no points."""
        blank = torch.zeros(0, dtype=torch.float64)
        return cls(blank.reshape(0, 2), blank, blank)

    @classmethod
    def of(cls, matches: Matches, motion: Tensor) -> Recalled:
        """Returns what a camera moved by ``T_current_reference`` (4, 4) sees of matches."""
        rho = matches.rho_after(motion)
        return cls(matches.pixels, rho, matches.rho_variance * (rho / matches.rho) ** 2)


class NotTracked(Exception):
    """The frame does not tell where the camera is; the message says why. Never leaves the odometry."""


class Tracker:
    """Follows one camera from its first keyframe on.

    Args:
        config: Registration parameters.
        view: The first view, which becomes the first keyframe.
        metric: Whether depth is measured.
        pose: (4, 4) float64 ``T_odom_camera`` of the first view.
        covariance: (6, 6) of its right perturbation.
        slip: (3,) see ``Keyframe``; None for none.
        known: Keyframes that are remembered from before; None for none.
        readout: What is known of the camera's time of readout from before; None for nothing.
        turn: What is known of that of the stereo pair which measures depth; None where none does.
        innovations: What is known of how far covariances can be believed.
        recalled: What the view shows of points known from before, by which a single camera need not start; None for
            nothing.
    """

    def __init__(
        self,
        config: RegistrationConfig,
        view: View,
        *,
        metric: bool,
        pose: Tensor,
        covariance: Tensor,
        slip: Tensor | None = None,
        known: LocalMap | None = None,
        readout: Readout | None = None,
        turn: Turn | None = None,
        innovations: Innovations | None = None,
        recalled: Recalled | None = None,
    ) -> None:
        self._config = config
        self._camera = view.camera
        self._metric = metric
        self._window = self._new_window()
        self._fitter = MotionFit(self._camera, max_iterations=config.max_iterations, metric=metric)
        self._pose = pose
        self._covariance = covariance
        self._relative_covariance = torch.zeros(6, 6, dtype=torch.float64)
        self._untold = torch.zeros(6, 6, dtype=torch.float64)
        self._by_readout = self._key_by_readout = torch.zeros(6, dtype=torch.float64)
        self._started = metric or recalled is not None
        told = Readout.begin(view.stamp, config.readout, config.readout_deviation)
        self._readout = told if readout is None else readout.anew(view.stamp)
        self._turn = turn
        self._innovations = innovations or Innovations()
        self._slip = torch.zeros(3, dtype=torch.float64) if slip is None else slip
        self.unit_deviation = 0.0
        """Relative deviation of lengths: that of a stereo pair, by how sure its turn is, or what the unit is told to
        have; zero where lengths are measured outright, and where there is nothing to compare them with."""
        self._keys: list[_Key] = []
        self._measured = False
        self._map = LocalMap(self._camera, pose.clone()) if known is None else known
        self._places = torch.zeros(0, 2, dtype=torch.float64)
        self._patches: Patches
        self._forget_last()
        self._rival: Rival | None = None
        self.add_keyframe(view, view.depth, recalled=recalled)

    def _forget_last(self) -> None:
        """Forgets what the last frame saw: where (N, 2), at which inverse depth (N,), and which of it (N,)."""
        self._seen, self._rho = torch.zeros(0, 2, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
        self._found = torch.zeros(0, dtype=torch.bool)
        self._noise = torch.zeros(0, 2, 2, dtype=torch.float64)

    def _new_window(self) -> KeyframeWindow:
        return KeyframeWindow(
            self._camera,
            size=self._config.window,
            metric=self._metric,
        )

    @property
    def pose(self) -> Tensor:
        """(4, 4) ``T_odom_camera`` of the last frame that was tracked."""
        return self._pose

    @property
    def covariance(self) -> Tensor:
        """(6, 6) covariance of ``pose``; what is not known of unit and calibration is a part of it."""
        return self.passed_on + self._untold

    @property
    def passed_on(self) -> Tensor:
        """(6, 6) what of ``covariance`` another segment begins with, which claims no motion in between.

        How far a single camera may have gone that has not started, of which its images tell nothing, is no part of it.
        """
        seen = stretched(self._covariance, self._pose, self._slip_at(self._pose))
        began = se3.inverse(self._map.origin) @ self._pose
        bent = self._readout.doubt * self._by_readout
        return miscalibrated(seen, began, self._config.calibration_deviation) + torch.outer(bent, bent)

    @property
    def started(self) -> bool:
        """Whether translation is observed: at once with depth, after enough parallax with a single camera."""
        return self._started

    @property
    def local_map(self) -> LocalMap:
        """The keyframes that lie behind."""
        return self._map

    @property
    def readout(self) -> Readout:
        """What is known of the camera's shutter."""
        return self._readout

    @property
    def turn(self) -> Turn | None:
        """What is known of that of the stereo pair which measures depth; None where none does."""
        return self._turn

    @property
    def innovations(self) -> Innovations:
        """What is known of how far covariances can be believed."""
        return self._innovations

    @property
    def rival(self) -> Rival | None:
        """Another motion that explains points of the last fit, all of them behind what agrees with its pose."""
        return self._rival

    @property
    def typical_rho(self) -> float | None:
        """Median inverse depth of what is well known; None where nothing is."""
        return self._window.typical_rho if self._window.scaled else None

    def points(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns what the newest keyframe sees: rays (M, 3) with z = 1, inverse depths (M,), their variances (M,)."""
        return self._window.points()

    def been(self) -> Tensor:
        """Returns the (K, 4, 4) poses of the window's older keyframes, as the newest one sees them."""
        poses = torch.stack(self._window.poses)
        return (se3.inverse(poses[-1]) @ poses)[:-1]

    def rescale(self, factor: float, *, from_start: bool = False) -> None:
        """Multiplies all lengths by ``factor`` from here on.

        Args:
            factor: The factor.
            from_start: Whether it holds from the oldest keyframe on, because no pose since was told to anybody;
                otherwise the last pose stays where it is.
        """
        poses = self._window.poses
        offset = se3.inverse(poses[-1]) @ self._pose
        offset[:3, 3] *= factor
        first, last = poses[0][:3, 3].clone(), self._pose[:3, 3].clone()
        self._window.rescale(factor)
        self._map.rescale(factor)
        self._patches = self._patches.rescaled(factor)
        self._rescale_bends(factor)
        shift = first - poses[0][:3, 3] if from_start else last - (poses[-1] @ offset)[:3, 3]
        for pose in poses:
            pose[:3, 3] += shift
        self._pose = poses[-1] @ offset

    def track(
        self,
        view: View,
        flow: FlowField,
        expected: Sequence[Tensor],
        moving: Moving | Carried | None = None,
        *,
        rival: float,
    ) -> Track:
        """Finds the pose of a view.

        Args:
            view: The current view.
            flow: Dense flow from the last tracked view to it.
            expected: Guesses of (4, 4) float64 ``T_previous_camera``, of which the one that flow agrees with most is
                taken for a start.
            moving: What moves on its own in this view, and has no say; None for nothing.
            rival: Share of the points from which on another motion is a rival.

        Raises:
            NotTracked: The view does not tell where the camera is.
            Parallax: A single camera is between standing still and a baseline that can be triangulated.
        """
        stamp, started = view.stamp, self._started
        carried = self._carried(view, flow)
        start = self._expect(carried, expected)
        seen, found, _ = sight = view.find(self._patches, start, carried.pixels, moving)
        looked_for = view.matched(carried, sight, self._config.pixel_noise)
        matches = looked_for.subset(found)
        if len(matches) < LEAST_INLIERS:
            raise NotTracked(f"only {len(matches)} points could be followed, {LEAST_INLIERS} are needed")
        try:
            if started:
                fit, before = self._fit(matches, start, stamp, self._trusted(seen, found)), self._pose
            else:
                fit, before = self._begun(matches, found)
        except Parallax:
            if float(found.double().mean()) < START_SHARE:
                raise OutOfSight("the first view went out of sight before the baseline was long enough") from None
            self._places = torch.where(found[:, None], seen, torch.nan)
            raise
        inlier = fit.agreeing
        inliers, sure = int(inlier.sum()), int((inlier & matches.known).sum())
        if inliers < LEAST_INLIERS or inliers < LEAST_INLIER_SHARE * len(matches):
            raise NotTracked(f"only {inliers} of {len(matches)} points agree on one motion")
        if inliers < LEAST_SEEN_SHARE * (sought := int(seen[:, 0].isfinite().sum())):
            raise NotTracked(f"only {inliers} of {sought} points that should be seen are where one motion has them")
        if started and sure < LEAST_INLIERS and fit.motion[:3, 3].any():
            raise NotTracked(f"only {sure} of {inliers} points have a known depth: how far the camera went is not told")
        found[found.clone()] = inlier
        self._rival = self._fitter.rival(matches, fit, rival)
        if self._rival is not None:
            self._rival = self._rival._replace(motion=self._at_rest @ se3.inverse(self._rival.motion))

        pose = self._window.poses[-1] @ se3.inverse(fit.motion)
        relative = self._innovations.factor * fit_covariance(fit)
        motion = se3.inverse(before) @ pose
        known = self._readout
        self._readout = known.learn(se3.inverse(motion), stamp, fit) if started else known.anew(stamp)
        motion_covariance = compose(self._relative_covariance, motion, relative)
        down = float((rows(self._camera, seen) - rows(self._camera, self._window.places))[found].mean())
        self._by_readout = se3.adjoint(fit.motion) @ self._key_by_readout + self._readout.bent(down)
        # A camera that is held in its place until it starts has not left it by as much as the first baseline, the unit.
        self._untold = torch.zeros_like(relative)
        if not self._started:
            self._untold[:3, :3] = relative[:3, :3]
        covariance = compose(self._keys[-1].covariance, se3.inverse(fit.motion), relative - self._untold)
        self._places = torch.where(found[:, None], seen, torch.nan)
        self._seen, self._found, self._noise = seen, found, looked_for.pixel_covariance
        self._rho = torch.full_like(seen[:, 0], torch.nan)
        self._rho[found] = matches.subset(inlier).rho_after(fit.motion)
        self._relative_covariance = relative
        self._pose, self._covariance = pose, covariance
        measured = self._metric and bool(matches.seen_variance.isfinite().any())
        keyframe = self._wants_keyframe(seen, found, fit.motion, measured=measured)
        motion_covariance = stretched(motion_covariance, motion, self.unit_deviation * motion[:3, 3])
        motion_covariance = miscalibrated(motion_covariance, motion, self._config.calibration_deviation)
        return Track(pose, motion, motion_covariance, keyframe, sought, len(matches), inliers)

    @one_thread()
    def add_keyframe(
        self,
        view: View,
        depth: InverseDepth | None,
        moving: Moving | None = None,
        *,
        recalled: Recalled | None = None,
    ) -> float:
        """Makes the view that was tracked last a keyframe, and refines the window; ``pose`` changes a little.

        A single camera that has not left its place needs only the newest: older ones tell no depth. Where an older one
        than the window's saw the same, the pose is held against it.

        Args:
            view: That view.
            depth: Its field, from which new points start.
            moving: What moves on its own in it, where none start; None for nothing.
            recalled: What it shows of points known from before, beside those that it was tracked by; None for nothing.

        Returns:
            By how much all lengths were multiplied, because a single camera's unit had changed.
        """
        self._free_anew()
        if self._window.full:
            self._remember_oldest()
            # What leaves the window is not corrected any more when the unit becomes better known.
            self._slip = self._slip_at(self._window.poses[1])
        if not self._started:
            self._window, self._keys = self._new_window(), []
            self._forget_last()
        observed, seen = self._found.clone(), self._seen
        unfit = view.unfit(moving)
        # What holds no points leaves all of them to the rest.
        count = self._config.points if unfit is None else round(self._config.points / max(1 - unfit.mean(), SPARSEST))
        # Points of many keyframes crowd together where the camera looks back; the oldest know their place best.
        observed[observed.clone()] = thin(seen[observed], count, view.grey.shape)
        rho, variance = view.measured(seen, closely=True)
        begun = Recalled.none() if recalled is None else recalled
        fresh = choose(view.grey, count, taken=torch.cat((seen[observed], begun.places)), ignore=unfit)
        new = Recalled(fresh, *read(depth, self._camera, fresh, closely=True))
        fresh, fresh_rho, fresh_variance = (torch.cat(parts) for parts in zip(begun, new, strict=True))
        straight, farther = self._unsheared(seen, self._rho)
        fresh_straight, fresh_farther = self._unsheared(fresh, fresh_rho)
        self._window.add(
            self._pose, observed, straight, self._noise, seen, rho / farther, variance,
            fresh_straight, fresh, fresh_rho / fresh_farther, fresh_variance,
        )  # fmt: skip
        if self._started:
            iterations = self._config.window_iterations
            self._turn = self._window.optimise(max_iterations=iterations, turn=self._turn)
        self._pose = self._window.poses[-1]
        factor = self._recall(view, moving) if self._started and len(self._keys) else 1.0
        self._readout = self._readout.keyframe()
        self._measured = bool(view.measured(self._window.places)[1].isfinite().any())
        self._keys.append(_Key(view.grey, self._readout.key, self._covariance))
        self._key_by_readout = self._by_readout
        self._relative_covariance = torch.zeros_like(self._covariance)
        self._places = self._window.places
        rays, rho, variance = self._window.points()
        if self._turn is not None:
            self.unit_deviation = self._turn.unit_deviation(rho)
        self._patches = Patches.around(view.grey, self._places, rays, rho, variance)
        return factor

    def _free_anew(self) -> None:
        """Frees what keyframes see from their shear by what is known today of the shutter and of their motion."""
        if not self._keys:
            return
        self._keys[-1] = self._keys[-1]._replace(exposure=self._readout.key)
        self._readout = self._readout.freed_anew()
        for k, key in enumerate(self._keys):
            exposure = self._readout.freed(key.exposure)
            if exposure is not key.exposure:
                self._window.unshear(k, exposure.shear - key.exposure.shear)
                self._keys[k] = key._replace(exposure=exposure)

    def _rescale_bends(self, factor: float) -> None:
        self._readout = self._readout.rescaled(factor)
        self._by_readout = se3.rescaled(self._by_readout, factor)
        self._key_by_readout = se3.rescaled(self._key_by_readout, factor)
        self._keys = [key._replace(exposure=key.exposure.rescaled(factor)) for key in self._keys]

    def _remember_oldest(self) -> None:
        """Keeps the oldest keyframe, which is about to leave the window."""
        key = self._keys.pop(0)
        rays, rho, variance = self._window.oldest()
        places, _ = sheared(self._camera, self._camera.project(rays), rho, key.exposure.shear)
        pose = self._window.poses[0]
        self._map.add(Keyframe(key.grey, pose, key.covariance, self._slip, places, rays, rho, variance))

    def remember_newest(self) -> None:
        """Keeps the newest keyframe, to which a camera that is lost may come back."""
        key, places = self._keys[-1], self._window.places
        rays, rho, variance = self._window.points()
        sure = is_known(rho, variance)
        known = (part[sure] for part in (places, rays, rho, variance))
        pose = self._window.poses[-1]
        self._map.add(Keyframe(key.grey, pose, key.covariance, self._slip_at(pose), *known))

    def _recall(self, view: View, moving: Moving | None) -> float:
        """Holds the newest keyframe against an old one that saw the same; returns by how much lengths changed."""
        for keyframe in self._map.seen_from(self._pose)[:LOOKS]:
            lost = since(self._covariance, self._pose, keyframe.covariance, keyframe.pose)
            if not is_worth_a_look(lost, self._relative_covariance):
                return 1.0
            look = self._look_back(keyframe, view, se3.inverse(self._pose) @ keyframe.pose, moving)
            if look is None:
                # A blurred view may show too little of it; that does not tell against the keyframe.
                continue
            corrected = correction(self._camera, self._pose, lost, look)
            if corrected is not None:
                self._innovations = self._innovations.learn(corrected.missed)
                return self._correct(look, corrected)
            self._map.forget(keyframe)
        return 1.0

    def _correct(self, look: Look, corrected: Correction) -> float:
        """Moves the window as a look back has it; returns by how much lengths changed."""
        self._window.move(self._pose @ se3.exp(corrected.step))
        self._pose = self._window.poses[-1]
        way = se3.inverse(look.keyframe.pose) @ self._pose
        self._covariance = compose(look.keyframe.covariance, way, corrected.left)
        factor = 1.0 if self._metric else unit_change(self._camera, look, *self._window.points())
        self._window.rescale(factor)
        self._rescale_bends(factor)
        return factor

    def recognise(self, view: View, known: LocalMap) -> Tracker | None:
        """Returns a tracker that goes on from a view of a place that is known; None where it is not recognised.

        Depth that is measured begins the tracker's first keyframe anew; a single camera goes on by the points that it
        knows again, and in their unit.
        """
        if self._metric and view.depth is None:
            return None
        for keyframe in known.alike(view.grey, RECOGNISED):
            pixels, there = match(keyframe.grey, view.grey)
            motion = relocate(self._camera, pixels, there, keyframe.rho_near(pixels))
            look = None if motion is None else self._look_back(keyframe, view, motion)
            if look is not None and look.recognised:
                motion = se3.inverse(look.fit.motion)
                return Tracker(
                    self._config,
                    view,
                    metric=self._metric,
                    pose=keyframe.pose @ motion,
                    covariance=compose(keyframe.covariance, motion, look.covariance),
                    slip=keyframe.slip,
                    known=known,
                    readout=self._readout,
                    turn=self._turn,
                    innovations=self._innovations,
                    recalled=None if self._metric else Recalled.of(look.matches, look.fit.motion),
                )
        return None

    def _look_back(self, keyframe: Keyframe, view: View, motion: Tensor, moving: Moving | None = None) -> Look | None:
        """Returns what the view tells of its place beside a keyframe, ``T_view_keyframe`` (4, 4) being about known."""
        return look_back(
            self._fitter,
            keyframe,
            view,
            motion,
            shear=self._readout.last.shear,
            pixel_noise=self._config.pixel_noise,
            doubt=self._innovations.factor,
            moving=moving,
        )

    def share_on(self, moving: Moving) -> float:
        """Returns the share of the points of the last fit that lie on what moves on its own."""
        return float(moving.doubted(self._camera, self._seen[self._found]).numpy().mean())

    def _slip_at(self, pose: Tensor) -> Tensor:
        """Returns by how far a place (4, 4) in the window is off because the unit is; see ``Keyframe``."""
        return self._slip + self.unit_deviation * (pose - self._window.poses[0])[:3, 3]

    @property
    def _at_rest(self) -> Tensor:
        """(4, 4) ``T_previous_keyframe``: where the keyframe is if the camera has not moved since the last view."""
        return se3.inverse(self._pose) @ self._window.poses[-1]

    def _carried(self, view: View, flow: FlowField) -> Matches:
        """Returns where dense flow takes the keyframe's points, NaN for those that the last view had lost."""
        there = view.carried(self._places, flow)
        return self._window.matches(there, self._config.pixel_noise, rows(self._camera, there))

    def _expect(self, carried: Matches, expected: Sequence[Tensor]) -> Tensor:
        """Returns ``T_current_keyframe`` by that of several expected motions with which flow agrees most."""
        motions = torch.stack([se3.inverse(self._pose @ motion) @ self._window.poses[-1] for motion in expected])
        if len(motions) == 1:
            return motions[0]
        return self._fitter.best(carried.subset(carried.row.isfinite()), motions)

    def _unsheared(self, pixels: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
        """Returns where pixels (M, 2) of the last frame, at inverse depths (M,), lie without shear; see ``sheared``."""
        rho = torch.where(rho.isnan(), self._window.typical_rho, rho)
        return sheared(self._camera, pixels, rho, -self._readout.last.shear)

    def _trusted(self, seen: Tensor, found: Tensor) -> Tensor:
        """Returns which of the points that were found stand still beyond doubt, (M,) bool: all, or those proven.

        Just after a keyframe what moves slowly has hardly moved, and new points on it would draw the pose along. Where
        those that stood still from one keyframe to another suffice, others have a say only as far as they agree.

        Args:
            seen: (N, 2) where points are seen.
            found: (N,) bool, which were found there; M of them.
        """
        proven = self._window.proven[found]
        begun = self._moved(self._window.places, seen, found) < KEYFRAME_FLOW
        return proven if begun and float(proven.double().mean()) > PROVEN else torch.ones_like(proven)

    def _fit(self, matches: Matches, expected: Tensor, stamp: float, trusted: Tensor) -> Fit:
        """Fits the motion from the newest keyframe; holds the camera in its place where translation earns nothing."""
        guesses = (expected, self._at_rest)
        before = se3.inverse(self._window.poses[-1]) @ self._pose

        def fitted(start: Tensor) -> _Fitted:
            shear = self._readout.expect(start, before, self._relative_covariance, stamp)
            return _Fitted(self._fitter.refine(matches, start, shear, trusted), start, shear)

        found = fitted(self._fitter.propose(matches.subset(trusted), guesses))
        if float(found.fit.agreeing.double().mean()) < FEW and not torch.equal(found.start, expected):
            # What noisy points propose can explain more than what is expected, yet lead to what explains far less.
            other = fitted(expected)
            cost = score(self._camera, matches, torch.stack((found.fit.motion, other.fit.motion)))
            found = other if cost[1] < CHEAPER * cost[0] else found
        fit, start, shear = found
        if not fit.agreeing.any():
            return fit
        fit = self._fitter.lenient(matches, fit, start, shear, trusted)
        if self._metric and not len(self._seen):
            fit = self._fitter.unmixed(matches, fit, guesses, shear, biased=self._turn is not None)
        return self._fitter.held(matches, fit, trusted)

    def _begun(self, matches: Matches, found: Tensor) -> tuple[Fit, Tensor]:
        """Fits a single camera that has not moved from its first keyframe's place yet, or starts it when it has.

        Args:
            matches: What is found of the keyframe's points.
            found: (M,) bool, which of them that is.

        Returns:
            The fit, and the (4, 4) pose of the view before: only once a camera has started, it is told how far on its
            way that already was.

        Raises:
            Parallax: It has moved, but not far enough, or it is not told from where.
        """
        rotation, most = self._at_rest[:3, :3], self._config.max_iterations
        fit, placed = first_baseline(self._camera, matches, rotation, max_iterations=most)
        if placed is None:
            return fit, self._pose
        places = self._places[found]
        last = replace(placed, pixels=places, row=rows(self._camera, places))
        last = last.subset(fit.agreeing & last.row.isfinite())
        if len(last) < LEAST_INLIERS:
            raise Parallax("too few points were seen in the view before; waiting for another one")
        self._started = True
        way = self._fitter.refine(last, self._fitter.propose(last, (self._at_rest, fit.motion))).motion
        return fit, self._window.poses[-1] @ se3.inverse(way)

    def _wants_keyframe(self, seen: Tensor, found: Tensor, motion: Tensor, *, measured: bool) -> bool:
        # Depth that comes seldom must not pass by the window.
        due = float(found.double().mean()) < KEYFRAME_SHARE or (measured and not self._measured)
        if due or not self._started or not self._window.scaled:
            return due or self._started
        moved = self._moved(self._window.places, seen, found)
        if measured or moved <= KEYFRAME_FLOW:
            return moved > KEYFRAME_FLOW
        turned = self._camera.project(self._patches.rays @ motion[:3, :3].T)
        return moved > IDLE * KEYFRAME_FLOW or self._moved(turned, seen, found) > KEYFRAME_FLOW

    def _moved(self, places: Tensor, seen: Tensor, found: Tensor) -> float:
        """Returns by how much points are seen (N, 2) beside places, the median, as a share of the image's width."""
        return float((seen - places)[found].norm(dim=-1).median()) / self._camera.width
