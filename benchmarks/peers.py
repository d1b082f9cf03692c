"""Runs flowodom and its peers, interleaved in one process on the same frames of one bag, and compares them.

    python benchmarks/peers.py BAG [--frames N] [--every K] [--back] [--rounds N] [--threads N] [--mono]
                                   [--methods ours,lk_pnp] [--set registration.window=9] [--out peers.json]

Peers with depth: OpenCV pyramidal Lucas-Kanade + depth + PnP-RANSAC; OpenCV DIS + depth + PnP-RANSAC; Open3D RGB-D
odometry with the hybrid term, the older implementation and the newer (tensor) one. With a rectified stereo pair: the
first two, with the depth of OpenCV's semiglobal matching. Peers with a single camera: OpenCV Lucas-Kanade or DIS +
five-point, the length of every step taken from the truth. All go from frame to frame, each set up as one who knows it
well would do it. Noise shortens what goes from frame to frame, and less so over longer steps: where a peer's figures
change with ``--every``, they tell of that noise rather than of the recording.

Truths of recordings have errors of their own, and a wrong calibration makes all methods wrong alike. With ``--back``
the frames are played forth and then back to the first one, where the camera must end up: that needs no truth.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from flowodom.bags import BagReader
from flowodom.calibration import Calibration, between
from flowodom.config import OdometryConfig, override
from flowodom.errors import BagError, FrameError
from flowodom.evaluation import compare
from flowodom.frame import Frame, OtherEye
from flowodom.frames import FrameTree, motion_of
from flowodom.messages import decode_depth, decode_image, stamp
from flowodom.odometry import Odometry
from flowodom.process import prepare
from flowodom.selection import Selection, is_rectified
from flowodom.trajectory import Trajectory
from flowodom.unit import Scale

Array = NDArray[Any]

# --------------------------------------------------------------------------------------------------------------------
# What is measured
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measure:
    """One column: its heading, the factor from SI, and what it is."""

    heading: str
    factor: float
    definition: str
    with_depth: bool = True
    """Whether it makes sense with a depth camera."""
    single: bool = True
    """Whether it makes sense with a single camera of unknown scale."""


MEASURES = {
    "ate_se3_rmse": Measure("ATE SE3 mm", 1e3, "RMSE of positions after the best rigid alignment", single=False),
    "ate_sim3_rmse": Measure("ATE Sim3 mm", 1e3, "RMSE of positions after the best similarity alignment"),
    "scale": Measure("scale", 1, "factor that the similarity alignment applies to the estimate; 1 is right"),
    "rpe_frame_translation_median": Measure(
        "mm/frame", 1e3, "median translation error of the motion from frame to frame", single=False
    ),
    "rpe_frame_rotation_median": Measure(
        "deg/frame", 1, "median rotation error (angle) of the motion from frame to frame"
    ),
    "direction_frame_median": Measure(
        "dir deg/frame", 1, "median angle between the true and estimated translation from frame to frame"
    ),
    "rpe_second_translation_median": Measure(
        "mm/s", 1e3, "median translation error of the motion over one second", single=False
    ),
    "rpe_second_rotation_median": Measure("deg/s", 1, "median rotation error of the motion over one second"),
    "rpe_second_rotation_rmse": Measure("deg/s rmse", 1, "RMSE of the rotation error of the motion over one second"),
    "end_rotation": Measure("end deg", 1, "angle between estimated and true rotation from the first frame to the last"),
    "return_translation": Measure(
        "back mm", 1e3, "distance between the first pose and the last, both of the first frame (--back)", single=False
    ),
    "return_rotation": Measure(
        "back deg", 1, "angle between the first pose and the last, both of the first frame (--back)"
    ),
    "tracked": Measure("tracked %", 1, "share of the frames that got a pose"),
    "ms": Measure("ms/frame", 1, "mean time a frame by the clock, best round"),
    "cpu_ms": Measure("cpu ms", 1, "mean processor time a frame, all threads together, best round"),
}
"""What is printed, by the name it has in the JSON file and (most of them) in ``flowodom.evaluation``."""


def evaluate_poses(
    stamps: Sequence[int],
    poses: Sequence[Array | None],
    truth: Array,
    *,
    segments: Sequence[int] | None = None,
    correct_scale: bool = False,
) -> dict[str, float]:
    """Compares estimated poses with true ones.

    Args:
        stamps: Nanoseconds, one a frame.
        poses: (4, 4) ``T_odom_camera`` (optical frame) of each frame, None where there is none.
        truth: (N, 4, 4) true ``T_world_camera`` (optical frame) of each frame, NaN where unknown.
        segments: Number of the tracker's run that each frame belongs to; one run where None.
        correct_scale: Whether relative translations are taken after the estimate was scaled to the truth.

    Returns:
        The ``MEASURES`` of accuracy by name, SI units and degrees; NaN where the frames do not suffice.
    """
    has = np.array([p is not None for p in poses])
    known = np.isfinite(truth).all(axis=(1, 2))
    result = dict.fromkeys(MEASURES, float("nan"))
    if (has & known).sum() < 2:
        return result
    times = np.array(stamps, dtype=np.int64)
    estimate = Trajectory(
        times[has],
        np.stack([np.asarray(p, dtype=np.float64) for p in poses if p is not None]),
        None if segments is None else np.array(segments, dtype=np.int64)[has],
    )
    evaluation = compare(
        estimate, Trajectory(times[known], truth[known]), frames=len(poses), correct_scale=correct_scale, tolerance=1e-3
    )
    for name in MEASURES:
        value = getattr(evaluation, name, None)
        result[name] = float("nan") if value is None else float(value)
    both = np.flatnonzero(has & known)
    first = both[:-1][np.diff(both) == 1]
    angles = []
    for i in first:
        before, after = poses[i], poses[i + 1]
        assert before is not None
        assert after is not None
        a = (np.linalg.inv(before) @ after)[:3, 3]
        b = (np.linalg.inv(truth[i]) @ truth[i + 1])[:3, 3]
        angles.append(np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b)), a @ b)))
    result["direction_frame_median"] = float(np.median(angles)) if angles else float("nan")
    return result


# --------------------------------------------------------------------------------------------------------------------
# What goes in
# --------------------------------------------------------------------------------------------------------------------

PAIRING = 20_000_000
"""Most nanoseconds between a picture and the depth image that goes with it."""

UNKNOWN = np.full((4, 4), np.nan)


@dataclass(frozen=True)
class Shot:
    """One decoded frame, with its (4, 4) ``T_world_camera`` (optical frame) of NaN where the truth is not known."""

    frame: Frame
    grey: Array
    truth: Array

    @property
    def stamp(self) -> int:
        """Nanoseconds."""
        return self.frame.stamp

    @property
    def depth(self) -> Array | None:
        """(H, W) float32 metres, NaN where unknown; None with a single camera."""
        return self.frame.depth

    @property
    def intrinsics(self) -> Array:
        """The (3, 3) camera matrix."""
        c = self.frame.camera
        return np.array([[c.fx, 0, c.cx], [0, c.fy, c.cy], [0, 0, 1.0]])


def shots(bag: Path, frames: int | None = None, *, mono: bool = False) -> Iterator[Shot]:
    """Yields the frames of a bag: decoded, rectified, paired with depth and truth by header stamp.

    Args:
        bag: The recording.
        frames: How many at most.
        mono: Leaves depth out, and the right image of a stereo pair, which is used where its CameraInfo has a baseline.

    Raises:
        BagError: The bag has no image or no calibration.
    """
    with BagReader(bag) as reader:
        chosen = reader.select({"depth": "none", "right": "none"} if mono else None)
        if chosen.camera_info is None:
            raise BagError(f"{bag} has no CameraInfo for {chosen.image}")
        truth = _read_truth(reader, chosen.ground_truth, chosen.image)
        depths = {}
        if chosen.depth:
            depths = {stamp(m): decode_depth(m) for m in _some(reader, chosen.depth, frames)}
        _, _, info = next(reader.messages([chosen.camera_info]))
        calibration = Calibration.from_info(info, rectified=chosen.rectified)
        eyes = _right_eyes(reader, chosen, info, frames)
        depth_stamps = np.array(sorted(depths), dtype=np.int64)
        for message in _some(reader, chosen.image, frames):
            at = stamp(message)
            depth = None
            if chosen.depth:
                nearest = int(depth_stamps[np.abs(depth_stamps - at).argmin()])
                if abs(nearest - at) > PAIRING:
                    continue
                depth = calibration.rectify_depth(depths[nearest])
            frame = Frame(at, calibration.rectify(decode_image(message)), calibration.camera, depth, other=eyes.get(at))
            yield Shot(frame, frame.grey, truth(at))


def _right_eyes(reader: BagReader, chosen: Selection, info: Any, frames: int | None) -> dict[int, OtherEye]:
    """Returns what the right camera of a rectified stereo pair saw, by stamp; nothing where no baseline is known."""
    if chosen.right is None or chosen.right_info is None:
        return {}
    _, _, right_info = next(reader.messages([chosen.right_info]))
    motion = between(info, right_info, rectified=chosen.rectified)
    if motion is None:
        return {}
    calibration = Calibration.from_info(right_info, rectified=is_rectified(chosen.right))
    return {
        stamp(m): OtherEye(calibration.rectify(decode_image(m)), calibration.camera, motion)
        for m in _some(reader, chosen.right, frames)
    }


def there_and_back(forth: Iterable[Shot]) -> Iterator[Shot]:
    """Yields shots, and then all but the last once more from back to front, time going on."""
    kept = []
    for shot in forth:
        kept.append(shot)
        yield shot
    for shot in kept[-2::-1]:
        yield replace(shot, frame=replace(shot.frame, stamp=2 * kept[-1].stamp - shot.stamp))


def _some(reader: BagReader, topic: str, frames: int | None) -> Iterator[Any]:
    for n, (_, _, message) in enumerate(reader.messages([topic])):
        if n == frames:
            return
        yield message


def _read_truth(reader: BagReader, topic: str | None, image: str) -> Callable[[int], Array]:
    """Returns a function from stamp to true pose of the camera's optical frame."""
    if topic is None:
        return lambda at: UNKNOWN
    _, _, picture = next(reader.messages([image]))
    tree = FrameTree()
    for _, _, message in reader.messages(["/tf_static"]):
        tree.insert_message(message, static=True)
    stamps, poses = [], []
    for _, _, m in reader.messages([topic]):
        inner = getattr(m, "pose", getattr(m, "transform", None))
        inner = getattr(inner, "pose", inner)
        stamps.append(stamp(m))
        poses.append(np.asarray(motion_of(inner)))
    body = getattr(m, "child_frame_id", "") or picture.header.frame_id
    try:
        extrinsic = np.asarray(tree.lookup(body, picture.header.frame_id, stamps[0]))
    except FrameError as error:
        logging.warning("taking the truth for that of the optical frame: %s", error)
        extrinsic = np.eye(4)
    order = np.argsort(stamps)
    trajectory = Trajectory(np.array(stamps, dtype=np.int64)[order], np.stack(poses)[order] @ extrinsic)

    def at(when: int) -> Array:
        near = np.abs(trajectory.stamps - when).min() <= 5 * PAIRING
        inside = trajectory.stamps[0] <= when <= trajectory.stamps[-1]
        return trajectory.at(np.array([when], dtype=np.int64))[0] if near and inside else UNKNOWN

    return at


# --------------------------------------------------------------------------------------------------------------------
# Who runs
# --------------------------------------------------------------------------------------------------------------------


class Method(Protocol):
    """Anything that turns frames into poses."""

    def __call__(self, shot: Shot) -> Array | None:
        """Returns the (4, 4) ``T_odom_camera`` of this frame, None where it has none."""
        ...


class Ours:
    """flowodom's odometry.

    Args:
        config: Its parameters.
        dense: Whether the dense scene flow is lifted for every frame too, which no peer gives.
    """

    def __init__(self, config: OdometryConfig, *, dense: bool) -> None:
        self._odometry = Odometry(config)
        self._dense = dense
        self.scale = Scale.UNKNOWN
        self.segments: list[int] = []
        self.stages: dict[str, float] = {}

    def __call__(self, shot: Shot) -> Array | None:
        """Returns the pose of the frame."""
        estimate = self._odometry.step(shot.frame)
        if self._dense and estimate.properties is not None:
            float(estimate.properties.weight.sum())
        self.scale = estimate.scale
        self.segments.append(estimate.segment)
        for stage, seconds in estimate.timing.items():
            self.stages[stage] = self.stages.get(stage, 0.0) + seconds
        return None if estimate.pose is None else estimate.pose.numpy()


Matcher = Callable[[Array, Array], tuple[Array, Array]]
"""(previous, current) grey -> (N, 2) pixels in each, checked forward and backward."""

ROUND_TRIP = 1.0
"""Pixels by which a match may miss its start when followed back."""


def lucas_kanade(previous: Array, current: Array) -> tuple[Array, Array]:
    """Shi-Tomasi corners followed by OpenCV's pyramidal Lucas-Kanade."""
    points = cv2.goodFeaturesToTrack(previous, 1500, 0.01, 8)
    if points is None:
        return np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32)
    track: Any = cv2.calcOpticalFlowPyrLK  # OpenCV's annotations do not allow for the None that its manual does
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 0.01)
    forward, ok, _ = track(previous, current, points, None, None, None, (21, 21), 3, stop)
    back, ok_back, _ = track(current, previous, forward, None, None, None, (21, 21), 3, stop)
    miss = np.linalg.norm(back - points, axis=-1).ravel()
    keep = (ok.ravel() == 1) & (ok_back.ravel() == 1) & (miss < ROUND_TRIP)
    return points.reshape(-1, 2)[keep], forward.reshape(-1, 2)[keep]


class Dis:
    """OpenCV DIS (medium preset) both ways, at the points with texture of an 8-pixel grid."""

    def __init__(self) -> None:
        self._flow: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def __call__(self, previous: Array, current: Array) -> tuple[Array, Array]:
        """Returns the checked grid points in both images."""
        forward = self._flow.calc(previous, current, None)
        backward = self._flow.calc(current, previous, None)
        height, width = previous.shape
        v, u = (grid.ravel() for grid in np.mgrid[8 : height - 8 : 8, 8 : width - 8 : 8])
        start = np.stack([u, v], -1).astype(np.float32)
        end = start + forward[v, u]
        back = cv2.remap(backward, end[:, None, 0], end[:, None, 1], cv2.INTER_LINEAR)[:, 0]
        inside = (end > 0).all(1) & (end < (width - 1, height - 1)).all(1)
        texture = cv2.cornerMinEigenVal(previous, 7)[v, u]
        keep = inside & (np.linalg.norm(end + back - start, axis=1) < 0.5 * ROUND_TRIP) & (texture > 1e-4)
        return start[keep], end[keep]


class Chain:
    """Poses from motions between frames; a step that fails repeats the one before it and has no pose.

    Args:
        motion: Gives ``T_previous_current`` of two shots, None where it fails.
    """

    def __init__(self, motion: Callable[[Shot, Shot], Array | None]) -> None:
        self._motion = motion
        self._pose, self._last = np.eye(4), np.eye(4)
        self._previous: Shot | None = None

    def __call__(self, shot: Shot) -> Array | None:
        """Returns the chained pose."""
        previous, self._previous = self._previous, shot
        if previous is None:
            return self._pose
        motion = self._motion(previous, shot)
        self._last = self._last if motion is None else motion
        self._pose = self._pose @ self._last
        return None if motion is None else self._pose


BASELINES = 60.0
"""Baselines of a stereo pair up to which its depth is used."""


def semiglobal(shot: Shot) -> tuple[Array, float]:
    """Returns depth (H, W), metres, of a rectified pair by OpenCV's semiglobal matching, NaN unknown, and its reach."""
    assert shot.frame.other is not None
    baseline = float(shot.frame.other.place[0])
    matcher = cv2.StereoSGBM.create(
        minDisparity=0,
        numDisparities=128,
        blockSize=5,
        P1=8 * 25,
        P2=32 * 25,
        disp12MaxDiff=1,
        uniquenessRatio=10,
        speckleWindowSize=100,
        speckleRange=2,
        mode=cv2.StereoSGBM_MODE_SGBM_3WAY,
    )
    disparity = np.asarray(matcher.compute(shot.grey, shot.frame.other.grey), dtype=np.float32) / 16
    depth = np.where(disparity > 0, shot.frame.camera.fx * baseline / np.maximum(disparity, 1e-3), np.nan)
    return depth.astype(np.float32), BASELINES * baseline


def pnp(matcher: Matcher, tolerance: float) -> Callable[[Shot, Shot], Array | None]:
    """Depth of the previous frame at the matches, PnP with RANSAC, then Levenberg-Marquardt on the inliers.

    Args:
        matcher: Finds the matches.
        tolerance: Pixels within which a match is an inlier.
    """

    def motion(previous: Shot, shot: Shot) -> Array | None:
        depth, reach = (previous.depth, 10.0) if previous.depth is not None else semiglobal(previous)
        start, end = matcher(previous.grey, shot.grey)
        u, v = np.round(start).astype(int).T
        z = depth[v, u]
        keep = np.isfinite(z) & (z > 0.1) & (z < reach)
        start, end, z = start[keep], end[keep].astype(np.float64), z[keep]
        if len(z) < 8:
            return None
        k = previous.intrinsics
        points = np.stack([(start[:, 0] - k[0, 2]) * z / k[0, 0], (start[:, 1] - k[1, 2]) * z / k[1, 1], z], -1)
        points = points.astype(np.float64)
        ok, r, t, inliers = cv2.solvePnPRansac(
            points, end, k, None, iterationsCount=200, reprojectionError=tolerance, confidence=0.999
        )
        if not ok or inliers is None or len(inliers) < 8:
            return None
        chosen = inliers.ravel()
        r, t = cv2.solvePnPRefineLM(points[chosen], end[chosen], k, None, r, t)
        return _inverse(cv2.Rodrigues(r)[0], t.ravel())

    return motion


def five_point(matcher: Matcher) -> Callable[[Shot, Shot], Array | None]:
    """Essential matrix with RANSAC; the length of the step is the true one, 1 where there is no truth."""

    def motion(previous: Shot, shot: Shot) -> Array | None:
        start, end = matcher(previous.grey, shot.grey)
        if len(start) < 8:
            return None
        k = previous.intrinsics
        essential, mask = cv2.findEssentialMat(start, end, k, cv2.RANSAC, 0.999, 0.5)
        if essential is None or essential.shape != (3, 3):
            return None
        # The default of 50 baselines refuses nearly every point of a camera that moves slowly.
        count, r, t, _, _ = cv2.recoverPose(essential, start, end, k, distanceThresh=1000.0, mask=mask)
        if count < 8:
            return None
        length = np.linalg.norm((np.linalg.inv(previous.truth) @ shot.truth)[:3, 3])
        return _inverse(r, t.ravel() * (length if np.isfinite(length) else 1.0))

    return motion


def _inverse(rotation: Array, translation: Array) -> Array:
    """Returns the (4, 4) inverse of the motion with this rotation and translation."""
    motion = np.eye(4)
    motion[:3, :3], motion[:3, 3] = rotation.T, -rotation.T @ translation
    return motion


class Open3D:
    """Open3D RGB-D odometry, hybrid term of colour and depth (Park et al. 2017), three levels of 20, 10, 5 iterations.

    Args:
        tensor: Whether to use the newer implementation (``open3d.t``) instead of the older one.
    """

    REACH = 6.0
    """Metres; depth beyond it is left out."""

    def __init__(self, *, tensor: bool) -> None:
        import open3d

        open3d.utility.set_verbosity_level(open3d.utility.VerbosityLevel.Error)
        self._o3d: Any = open3d
        self._image, self._align = (self._image_t, self._align_t) if tensor else (self._image_o, self._align_o)
        self._previous: tuple[Shot, Any] | None = None

    def __call__(self, previous: Shot, shot: Shot) -> Array | None:
        """Returns the motion ``T_previous_current``."""
        source = self._image(shot)
        ready = self._previous is not None and self._previous[0] is previous
        target = self._previous[1] if ready and self._previous else self._image(previous)
        self._previous = shot, source
        return self._align(source, target, shot)

    def _image_o(self, shot: Shot) -> Any:
        assert shot.depth is not None
        return self._o3d.geometry.RGBDImage.create_from_color_and_depth(
            self._o3d.geometry.Image(_colour(shot)),
            self._o3d.geometry.Image(np.nan_to_num(shot.depth)),
            depth_scale=1.0,
            depth_trunc=self.REACH,
            convert_rgb_to_intensity=True,
        )

    def _align_o(self, source: Any, target: Any, shot: Shot) -> Array | None:
        odometry = self._o3d.pipelines.odometry
        height, width = shot.grey.shape
        k = shot.intrinsics
        camera = self._o3d.camera.PinholeCameraIntrinsic(width, height, k[0, 0], k[1, 1], k[0, 2], k[1, 2])
        option = odometry.OdometryOption(
            iteration_number_per_pyramid_level=self._o3d.utility.IntVector([20, 10, 5]),
            depth_diff_max=0.03,
            depth_min=0.1,
            depth_max=self.REACH,
        )
        term = odometry.RGBDOdometryJacobianFromHybridTerm()
        ok, motion, _ = odometry.compute_rgbd_odometry(source, target, camera, np.eye(4), term, option)
        return np.asarray(motion) if ok else None

    def _image_t(self, shot: Shot) -> Any:
        assert shot.depth is not None
        image = self._o3d.t.geometry.Image
        return self._o3d.t.geometry.RGBDImage(image(_colour(shot)), image(np.nan_to_num(shot.depth)))

    def _align_t(self, source: Any, target: Any, shot: Shot) -> Array | None:
        odometry, tensor = self._o3d.t.pipelines.odometry, self._o3d.core.Tensor
        result = odometry.rgbd_odometry_multi_scale(
            source,
            target,
            tensor(shot.intrinsics),
            tensor(np.eye(4)),
            1.0,
            self.REACH,
            [odometry.OdometryConvergenceCriteria(n) for n in (20, 10, 5)],
            odometry.Method.Hybrid,
            odometry.OdometryLossParams(0.07),
        )
        motion = np.asarray(result.transformation.cpu().numpy())
        return motion if result.fitness > 0.1 and np.isfinite(motion).all() else None


def _colour(shot: Shot) -> Array:
    image = shot.frame.image
    return np.ascontiguousarray(image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2))


@cache
def _open3d() -> dict[str, Callable[[], Method]]:
    """Returns how to make Open3D's methods, by name; none, and says so, where it lacks a library of the system."""
    try:
        importlib.import_module("open3d")
    except (ImportError, OSError) as error:
        logging.warning("without Open3D, which cannot be imported: %s", error)
        return {}
    return {
        "open3d": lambda: Chain(Open3D(tensor=False)),
        "open3d_tensor": lambda: Chain(Open3D(tensor=True)),
    }


def methods(config: OdometryConfig, *, depth: bool, pair: bool = False) -> dict[str, Callable[[], Method]]:
    """Returns how to make each method that runs on frames with or without depth, or on a stereo pair's, by name."""
    ours: dict[str, Callable[[], Method]] = {
        "ours": lambda: Ours(config, dense=False),
        "ours_dense": lambda: Ours(config, dense=True),
    }
    with_pnp: dict[str, Callable[[], Method]] = {
        "lk_pnp": lambda: Chain(pnp(lucas_kanade, 1.0)),
        "dis_pnp": lambda: Chain(pnp(Dis(), 1.5)),
    }
    if pair:
        return ours | with_pnp
    if depth:
        return ours | with_pnp | _open3d()
    return ours | {
        "lk_five_point": lambda: Chain(five_point(lucas_kanade)),
        "dis_five_point": lambda: Chain(five_point(Dis())),
    }


# --------------------------------------------------------------------------------------------------------------------
# The comparison
# --------------------------------------------------------------------------------------------------------------------


WARM_UP = 2
"""Frames at the start that do not count for the time: the first has no pair, the second loads what is loaded late."""


@dataclass
class Run:
    """What one method did in one round."""

    method: Method
    poses: list[Array | None] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def step(self, shot: Shot) -> None:
        """Gives the method one more frame."""
        start, used = time.perf_counter(), time.process_time()
        pose = self.method(shot)
        self.seconds.append(time.perf_counter() - start)
        self.processor.append(time.process_time() - used)
        self.poses.append(None if pose is None else np.array(pose))


def run_round(frames: Iterable[Shot], makers: dict[str, Callable[[], Method]]) -> tuple[dict[str, Run], Array, Array]:
    """Gives every frame to every method, each time another one first; returns the runs, stamps and truth."""
    runs = {name: Run(make()) for name, make in makers.items()}
    names = list(runs)
    stamps, truth = [], []
    for n, shot in enumerate(frames):
        for i in range(len(names)):
            runs[names[(n + i) % len(names)]].step(shot)
        stamps.append(shot.stamp)
        truth.append(shot.truth)
    return runs, np.array(stamps, dtype=np.int64), np.array(truth)


def _size(motion: Array) -> tuple[float, float]:
    """Returns the length and the angle, degrees, of a (4, 4) motion."""
    turn = np.linalg.norm(cv2.Rodrigues(np.ascontiguousarray(motion[:3, :3]))[0])
    return float(np.linalg.norm(motion[:3, 3])), float(np.degrees(turn))


def measure(run: Run, stamps: Array, truth: Array, *, back: bool = False) -> dict[str, float]:
    """Returns the ``MEASURES`` of one run; ``back`` says that it ended with the frame with which it began."""
    ours = run.method if isinstance(run.method, Ours) else None
    result = evaluate_poses(
        stamps.tolist(),
        run.poses,
        truth,
        segments=ours.segments if ours else None,
        correct_scale=ours is not None and ours.scale in (Scale.UNKNOWN, Scale.FIRST_BASELINE),
    )
    first, last = run.poses[0], run.poses[-1]
    if back and first is not None and last is not None:
        result |= zip(("return_translation", "return_rotation"), _size(np.linalg.inv(first) @ last), strict=True)
    result["tracked"] = 100 * sum(p is not None for p in run.poses) / len(run.poses)
    result["ms"] = 1e3 * float(np.mean(run.seconds[WARM_UP:]))
    result["cpu_ms"] = 1e3 * float(np.mean(run.processor[WARM_UP:]))
    return result


def table(figures: dict[str, dict[str, float]], names: Sequence[str]) -> str:
    """Returns the figures as text, one method a line."""
    widths = {n: max(9, len(MEASURES[n].heading)) for n in names}
    lines = [" " * 15 + "".join(f"  {MEASURES[n].heading:>{widths[n]}}" for n in names)]
    for method, values in figures.items():
        lines.append(f"{method:15}" + "".join(f"  {values[n] * MEASURES[n].factor:>{widths[n]}.4g}" for n in names))
    return "\n".join(lines)


def ratios(figures: dict[str, dict[str, float]], names: Sequence[str]) -> str:
    """Returns ours over each peer as text, one peer a line; below 1 ours is better."""
    widths = {n: max(9, len(MEASURES[n].heading)) for n in names}
    ours = figures["ours"]
    lines = []
    for peer, values in figures.items():
        if not peer.startswith("ours"):
            cells = (f"{ours[n] / values[n]:.2f}" if values[n] else "-" for n in names)
            lines.append(
                f"ours/{peer[:9]:10}" + "".join(f"  {c:>{widths[n]}}" for n, c in zip(names, cells, strict=True))
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the comparison that the command line asks for."""
    parser = argparse.ArgumentParser(description="Compares flowodom with its peers on one bag.")
    parser.add_argument("bag", type=Path)
    parser.add_argument("--frames", type=int, help="use the first N frames only")
    parser.add_argument("--every", type=int, default=1, metavar="K", help="use every K-th frame only")
    parser.add_argument("--back", action="store_true", help="play the frames forth and back: where must it end up?")
    parser.add_argument("--rounds", type=int, default=1, help="repetitions; times are of the best one")
    parser.add_argument("--threads", type=int, default=1, help="processors to run on; 0 for all")
    parser.add_argument("--methods", default="", help="names separated by commas; all when left out")
    parser.add_argument("--mono", action="store_true", help="leave depth and right images out: single-camera methods")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of ours")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    processors = sorted(os.sched_getaffinity(0))
    threads = options.threads or len(processors)
    os.sched_setaffinity(0, processors[-threads:])
    os.environ["OMP_NUM_THREADS"] = str(threads)  # Open3D reads it when it is imported
    cv2.setNumThreads(threads)
    prepare(1)  # as the commands of flowodom do: for tensors as small as these, threads cost more than they bring

    config = override(OdometryConfig(), dict(item.split("=", 1) for item in options.set))
    first = next(shots(options.bag, 1, mono=options.mono))
    makers = methods(config, depth=first.depth is not None, pair=first.frame.other is not None)
    wanted = options.methods.split(",") if options.methods else list(makers)
    if unknown := set(wanted) - set(makers):
        parser.error(f"there is no method {', '.join(sorted(unknown))} here; there are: {', '.join(makers)}")
    makers = {name: makers[name] for name in wanted}

    figures: dict[str, dict[str, float]] = {}
    stages: dict[str, dict[str, float]] = {}
    for _ in range(options.rounds):
        frames = islice(shots(options.bag, options.frames, mono=options.mono), 0, None, options.every)
        runs, stamps, truth = run_round(there_and_back(frames) if options.back else frames, makers)
        for name, run in runs.items():
            found = measure(run, stamps, truth, back=options.back)
            best = figures.setdefault(name, found)
            best["ms"], best["cpu_ms"] = min(best["ms"], found["ms"]), min(best["cpu_ms"], found["cpu_ms"])
            if isinstance(run.method, Ours):
                stages[name] = {stage: 1e3 * s / len(stamps) for stage, s in run.method.stages.items()}

    kind = "single" if first.depth is None and first.frame.other is None else "with_depth"
    names = [n for n, m in MEASURES.items() if getattr(m, kind) and (options.back or not n.startswith("return"))]
    print(
        f"{options.bag.name}: {len(stamps)} frames {first.grey.shape[1]}x{first.grey.shape[0]}, {threads} thread(s)\n"
    )
    print(table(figures, names))
    if "ours" in figures:
        print("\n" + ratios(figures, names))
    for name, spent in stages.items():
        print(f"\n{name}, ms a frame: " + ", ".join(f"{stage} {ms:.1f}" for stage, ms in spent.items()))
    print("\n" + "\n".join(f"{MEASURES[n].heading}: {MEASURES[n].definition}" for n in names))
    if options.out:
        report = {
            "bag": options.bag.name,
            "frames": len(stamps),
            "threads": threads,
            "figures": figures,
            "stages_ms": stages,
            "definitions": {n: m.definition for n, m in MEASURES.items()},
        }
        options.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
