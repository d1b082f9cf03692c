"""The report: what a run did, collected frame by frame, and written at its end as one page that needs no network.

Collecting costs microseconds a frame: a few numbers are kept of each, and pictures of a handful, spread evenly over a
run whose length nobody knows beforehand. All drawing happens when the page is written.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from flowodom import drawing, page
from flowodom.errors import FlowodomError, TrajectoryError
from flowodom.evaluation import Evaluation, compare
from flowodom.frame import Frame
from flowodom.geometry import se3
from flowodom.odometry import Estimate, Status
from flowodom.scene_flow import PropertySet
from flowodom.scene_flow.forecast import Judgement, Way, judge
from flowodom.scene_flow.moving import Moving
from flowodom.scene_flow.objects import MovingObject
from flowodom.trajectory import TOLERANCE, Array, Trajectory

_LOG = logging.getLogger(__name__)

_PICTURE_WIDTH = 480
"""Pixels; wider images are shrunk to it in snapshots."""

_FIELD_WIDTH = 320
"""Samples; wider fields are thinned to it in snapshots."""

_METRIC = ("sensor", "stereo", "camera_height")
"""Kinds of ``Estimate.scale`` that are metres well enough to be held against a truth without being scaled to it."""


@dataclass(frozen=True)
class Row:
    """What is kept of each frame, as ``ReportBuilder.record`` takes it."""

    stamp: int
    status: str
    reason: str
    segment: int
    pose: Array | None
    covariance: Array | None
    keyframe: bool
    matches: int
    inliers: int
    scale: str
    scale_deviation: float | None
    timing: Mapping[str, float]


@dataclass(frozen=True)
class Snapshot:
    """What is drawn of one frame pair; fields lie on the previous image, as the property set does.

    Attributes:
        index: Number of the frame, from 0.
        grey: (H, W) uint8, the previous image.
        flow: (h, w, 2) pixels of the camera's image.
        depth: (h, w) metres.
        weight: (h, w) in [0, 1].
        residual: (h, w, 2) pixels: the part of the flow that is not the camera's motion.
        moving: (h, w) probability that a pixel moves on its own.
    """

    index: int
    grey: drawing.Image
    flow: drawing.Field
    depth: drawing.Field
    weight: drawing.Field
    residual: drawing.Field
    moving: drawing.Field


class ReportBuilder:
    """Collects a run frame by frame and writes its report.

    Args:
        snapshots: About how many frames are drawn in the report, at even distances over the run; 0 for none.
        optical: Whether poses are of a camera's optical frame (z forward, y down); otherwise of a robot's body (x
            forward, z up). The views from above and from the side go by it.
    """

    def __init__(self, *, snapshots: int = 8, optical: bool = True) -> None:
        self._wanted = snapshots
        self._optical = optical
        self._rows: list[Row] = []
        self._snapshots: list[Snapshot] = []
        self._stride = 1
        self._previous: Frame | None = None
        self._objects: dict[int, list[MovingObject]] = {}

    def __len__(self) -> int:
        """Returns how many frames were collected."""
        return len(self._rows)

    def add(
        self,
        frame: Frame,
        estimate: Estimate,
        timing: Mapping[str, float] | None = None,
        objects: Sequence[MovingObject] = (),
    ) -> None:
        """Collects one step of the odometry.

        Args:
            frame: The frame that went in. Its image is read, at the latest, at the next call.
            estimate: What came out.
            timing: Seconds of stages outside of the odometry (decoding, writing), beside ``estimate.timing``.
            objects: What moves on its own, as it is known at the frame.
        """
        for known in objects:
            if known.seen == estimate.stamp:
                self._objects.setdefault(known.id, []).append(
                    dataclasses.replace(known, mask=None, trail=known.trail[:0])
                )
        index = len(self._rows)
        self.record(
            estimate.stamp,
            None if estimate.pose is None else estimate.pose.numpy(),
            status=estimate.status.name,
            reason=estimate.reason,
            segment=estimate.segment,
            covariance=None if estimate.covariance is None else estimate.covariance.numpy(),
            keyframe=estimate.keyframe,
            matches=estimate.matches,
            inliers=estimate.inliers,
            scale=estimate.scale.value,
            scale_deviation=estimate.scale_deviation,
            timing={**estimate.timing, **(timing or {})},
        )
        # Properties are lifted when asked for, so only a frame that is to be drawn may ask.
        previous = self._previous
        drawn = self._wanted > 0 and (index + 1) % self._stride == 0
        if drawn and previous is not None and estimate.properties is not None:
            self._snapshots.append(_snapshot(index, previous, estimate.properties, estimate.moving))
            if len(self._snapshots) > 2 * self._wanted:
                self._stride *= 2
                self._snapshots = [shot for shot in self._snapshots if (shot.index + 1) % self._stride == 0]
        if estimate.status is not Status.LOST:  # The odometry goes on from the last frame before a loss.
            self._previous = frame

    def record(
        self,
        stamp: int,
        pose: Array | None,
        *,
        status: str = "TRACKING",
        reason: str = "",
        segment: int = 0,
        covariance: Array | None = None,
        keyframe: bool = False,
        matches: int = 0,
        inliers: int = 0,
        scale: str = "sensor",
        scale_deviation: float | None = None,
        timing: Mapping[str, float] | None = None,
    ) -> None:
        """Collects one frame of which no more than this is known (an odometry message, say).

        Args:
            stamp: Nanoseconds.
            pose: (4, 4) ``T_odom_body``, None when there is none.
            status: INITIALIZING, TRACKING or LOST.
            reason: Why it is not TRACKING.
            segment: Counts up with each new start.
            covariance: (6, 6) of ``(rho, phi)`` in ``T_true = pose @ exp(xi)``.
            keyframe: Whether it became a keyframe.
            matches: Points offered to the fit.
            inliers: Points that it kept.
            scale: As ``Estimate.scale``.
            scale_deviation: As ``Estimate.scale_deviation``.
            timing: Stage to seconds.
        """
        row = Row(
            stamp, status, reason, segment, pose, covariance, keyframe, matches, inliers, scale, scale_deviation,
            dict(timing or {}),
        )  # fmt: skip
        self._rows.append(row)

    @property
    def scale(self) -> str:
        """What the unit of length is for most of the poses, as ``record`` takes it."""
        counts = Counter(row.scale for row in self._rows if row.pose is not None)
        return counts.most_common(1)[0][0] if counts else "unknown"

    @property
    def metric(self) -> bool:
        """Whether lengths are metres."""
        return self.scale in _METRIC

    def trajectory(self) -> Trajectory:
        """Returns the poses collected so far; a stamp that does not come after all before it is left out."""
        rows: list[Row] = []
        for row in self._rows:
            if row.pose is not None and (not rows or row.stamp > rows[-1].stamp):
                rows.append(row)
        covariances = [row.covariance for row in rows if row.covariance is not None]
        segments = np.array([row.segment for row in rows], dtype=np.int64)
        return Trajectory(
            np.array([row.stamp for row in rows], dtype=np.int64),
            np.array([row.pose for row in rows], dtype=np.float64).reshape(-1, 4, 4),
            segments,
            np.array(covariances, dtype=np.float64) if rows and len(covariances) == len(rows) else None,
        )

    def forecasts(self) -> dict[str, Judgement]:
        """Returns how far forecasts with constant twist missed the poses that were estimated then.

        ``base`` is the body whose poses were collected, ``objects`` all that moved on its own, if any did.
        """
        path = self.trajectory()
        poses = torch.from_numpy(path.poses)
        twists = torch.full((len(poses), 6), torch.nan, dtype=torch.float64)
        lapse = torch.from_numpy(np.diff(path.stamps) * 1e-9)[:, None]
        twists[1:] = se3.log(se3.inverse(poses[:-1]) @ poses[1:]) / lapse
        if path.segments is not None:
            twists[1:][torch.from_numpy(path.segments[1:] != path.segments[:-1])] = torch.nan
        found = {"base": judge(Way(path.stamps, poses, twists, path.segments))}
        if self._objects:
            found["objects"] = judge(*map(_way, self._objects.values()))
        return found

    def drift(self, evaluation: Evaluation) -> dict[str, Any]:
        """Returns what drift.json holds: the figures of an evaluation, and the forecasts."""
        forecasts = {name: found.as_dict() for name, found in self.forecasts().items()}
        return {**evaluation.as_dict(), "forecast": {"definition": page.FORECAST, **forecasts}}

    def evaluate(self, truth: Trajectory, **options: Any) -> Evaluation:
        """Compares what was collected with the truth, see ``evaluation.compare``.

        The share of frames tracked is known here; where the scale is not metric, it is corrected first.

        Args:
            truth: The true poses of the same body.
            **options: ``tolerance``, and others of ``compare`` to be set otherwise.

        Raises:
            TrajectoryError: There is nothing to compare.
        """
        return compare(
            self.trajectory(), truth, **{"frames": len(self._rows), "correct_scale": not self.metric, **options}
        )

    def write(
        self,
        path: Path,
        *,
        title: str,
        truth: Trajectory | None = None,
        evaluation: Evaluation | None = None,
        configuration: Any = None,
        tolerance: float = TOLERANCE,
        learned: Mapping[str, str] | None = None,
    ) -> None:
        """Writes the report.

        Args:
            path: The HTML file.
            title: What was run, for the heading: the recording's name.
            truth: The true poses of the same body; None without any.
            evaluation: Its figures when they are there already; None computes them.
            configuration: The configuration used: a configuration dataclass or a mapping; None leaves it out.
            tolerance: See ``trajectory.associate``, seconds.
            learned: What images have told of the cameras, in words, by name; None leaves it out.

        Raises:
            FlowodomError: The file cannot be written.
        """
        run = page.Run(
            rows=self._rows,
            snapshots=self._chosen(),
            trajectory=self.trajectory(),
            scale=self.scale,
            scale_deviation=next((row.scale_deviation for row in self._rows[::-1] if row.scale == self.scale), None),
            metric=self.metric,
            optical=self._optical,
            forecasts=self.forecasts(),
            learned=learned or {},
        )
        if truth is not None:
            try:
                evaluation = evaluation or self.evaluate(truth, tolerance=tolerance)
                run = dataclasses.replace(
                    run, evaluation=evaluation, comparison=page.Comparison.of(run, truth, tolerance)
                )
            except TrajectoryError as error:
                _LOG.warning("the report has no errors in it: %s", error)
                run = dataclasses.replace(run, note=f"The truth could not be compared with the estimate: {error}.")
        text = page.render(run, title, configuration)
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            reason = error.strerror or str(error)
            raise FlowodomError(f"cannot write the report {path}: {reason}; is the disk full?") from error

    def _chosen(self) -> list[Snapshot]:
        return self._snapshots[:: max(1, round(len(self._snapshots) / self._wanted))]


def _way(seen: Sequence[MovingObject]) -> Way:
    """Returns where an object was, with the corners of its box as points."""
    first, last = seen[-1].box
    corners = torch.cartesian_prod(*torch.stack((first, last), dim=1))
    stamps = np.array([known.stamp for known in seen], dtype=np.int64)
    return Way(stamps, torch.stack([k.pose for k in seen]), torch.stack([k.twist for k in seen]), points=corners)


def _snapshot(index: int, previous: Frame, properties: PropertySet, moving: Moving | None) -> Snapshot:
    step = max(1, -(-properties.camera.width // _FIELD_WIDTH))

    def thin(field: torch.Tensor) -> drawing.Field:
        return np.array(field[::step, ::step].detach().cpu().numpy(), dtype=np.float32)

    grey = previous.grey
    ratio = np.float32(grey.shape[1] / properties.camera.width)
    width = min(_PICTURE_WIDTH, grey.shape[1])
    size = (width, max(1, round(grey.shape[0] * width / grey.shape[1])))
    grey = np.array(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    camera = properties.camera
    focal = np.array([camera.fx, camera.fy], dtype=np.float32)
    now = thin(properties.points) + thin(properties.scene_flow)
    still = now - thin(properties.residual)
    with np.errstate(divide="ignore", invalid="ignore"):
        residual = focal * (now[..., :2] / now[..., 2:] - still[..., :2] / still[..., 2:])
        residual[~((now[..., 2] > 0) & (still[..., 2] > 0))] = np.nan
    flow = properties.flow
    probability = torch.zeros_like(flow[..., 0])
    if moving is not None:
        probability = moving.at(camera, camera.pixels(device=flow.device) + flow)
    return Snapshot(
        index=index,
        grey=grey,
        flow=thin(properties.flow) * ratio,
        depth=thin(properties.points[..., 2]),
        weight=thin(properties.weight),
        residual=residual * ratio,
        moving=thin(probability),
    )
