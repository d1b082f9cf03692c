"""Odometry against the truth while both run: the errors as they grow, and the whole evaluation at the end."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowodom.config import DriftConfig
from flowodom.errors import FlowodomError, FrameError, TrajectoryError
from flowodom.frames import FrameTree, clean, motion_of, stamp_of
from flowodom.geometry import se3
from flowodom.report import ReportBuilder
from flowodom.trajectory import Trajectory

_TRUTH = ("true world", "true body")
_PATH = 2000
"""Most poses of a path that is shown; beyond it every second one is dropped."""
_COLUMNS = ("time_s", "travelled_m", "position_error_m", "rotation_error_deg", "drift_percent")


@dataclass(frozen=True)
class DriftState:
    """How far the odometry has drifted, the first common pose being taken for true.

    Attributes:
        stamp: Time of the pose compared, nanoseconds.
        frame: Frame of the odometry, in which both paths are given.
        travelled: Length of the true path, metres.
        position_error: Distance to the true position, metres.
        rotation_error: Angle to the true rotation, radians.
        estimated_path: Stamps and (4, 4) poses of the base in ``frame``.
        true_path: Likewise, the first pose laid upon the estimate's.
    """

    stamp: int
    frame: str
    travelled: float
    position_error: float
    rotation_error: float
    estimated_path: tuple[tuple[int, Tensor], ...]
    true_path: tuple[tuple[int, Tensor], ...]

    @property
    def drift(self) -> float:
        """Position error by distance travelled, per cent; zero before anything has moved."""
        return 100 * self.position_error / self.travelled if self.travelled > 0 else 0.0

    def summary(self) -> str:
        """Returns one line for people."""
        return f"{self.position_error:.3f} m after {self.travelled:.2f} m ({self.drift:.2f} %)"

    def values(self) -> Mapping[str, object]:
        """Returns the figures by name, as diagnostics show them."""
        return {
            "travelled [m]": f"{self.travelled:.3f}",
            "position error [m]": f"{self.position_error:.4f}",
            "rotation error [deg]": f"{math.degrees(self.rotation_error):.3f}",
            "drift [%]": f"{self.drift:.3f}",
        }


class Drift:
    """Collects an estimate and the truth, in whatever order they come.

    Args:
        config: Parameters.
    """

    def __init__(self, config: DriftConfig) -> None:
        self._config = config
        self._tree = FrameTree(tolerance=config.tolerance)
        self._truth = FrameTree(duration=1e9, tolerance=config.tolerance)
        self._true_stamps: list[int] = []
        self._true_body = clean(config.truth_child)
        self._estimate: list[tuple[int, Tensor, np.ndarray]] = []
        self._frame, self._body = "odom", ""
        self._told = 0
        self._start: tuple[Tensor, Tensor] | None = None
        self._last: Tensor | None = None
        self._travelled = 0.0
        self._paths: tuple[list[tuple[int, Tensor]], list[tuple[int, Tensor]]] = ([], [])
        self._rows: Any = None

    def add_estimate(self, message: Any) -> None:
        """Takes in a nav_msgs/Odometry; an all-zero quaternion (lost) is passed over."""
        turn = message.pose.pose.orientation
        stamp = stamp_of(message.header)
        if not any((turn.x, turn.y, turn.z, turn.w)) or (self._estimate and stamp <= self._estimate[-1][0]):
            return
        self._frame, self._body = message.header.frame_id, clean(message.child_frame_id)
        pose = motion_of(message.pose.pose)
        # The message's covariance is along the axes of odom; the evaluation's is the body's own.
        turn_back = torch.kron(torch.eye(2, dtype=torch.float64), pose[:3, :3].T.contiguous())
        covariance = torch.tensor(np.asarray(message.pose.covariance).reshape(6, 6))
        self._estimate.append((stamp, pose, (turn_back @ covariance @ turn_back.T).numpy()))

    def add_truth(self, message: Any) -> None:
        """Takes in a true pose: Odometry, PoseStamped, PoseWithCovarianceStamped or TransformStamped."""
        pose = getattr(message, "transform", None) or getattr(message.pose, "pose", message.pose)
        self._true_body = clean(getattr(message, "child_frame_id", ""))
        self._add_truth(stamp_of(message.header), motion_of(pose))

    def add_transforms(self, message: Any, *, static: bool = False) -> None:
        """Takes in a tf2_msgs/TFMessage, from which the truth comes where the parameters say so.

        Raises:
            FrameError: A transform cannot be used.
        """
        self._tree.insert_message(message, static=static)
        parent, child = clean(self._config.truth_parent), clean(self._config.truth_child)
        if static or not parent or not child:
            return
        for transform in message.transforms:
            if clean(transform.child_frame_id) == child:
                stamp = stamp_of(transform.header)
                self._add_truth(stamp, self._tree.lookup(parent, child, stamp))

    def tell(self) -> DriftState | None:
        """Returns how things stand with what came since this was last asked, None without anything new to compare.

        Also adds a row to drift.csv.

        Raises:
            FlowodomError: The file cannot be written.
        """
        newest: tuple[int, Tensor, Tensor] | None = None
        while self._told < len(self._estimate) and self._true_stamps:
            stamp, estimated, _ = self._estimate[self._told]
            if stamp > self._true_stamps[-1]:
                break
            self._told += 1
            true = self._true_pose(stamp)
            if true is None:
                continue
            if self._start is None:
                self._start = (estimated, true)
            if self._last is not None:
                self._travelled += float((true[:3, 3] - self._last[:3, 3]).norm())
            self._last = true
            newest = (stamp, estimated, true)
        if newest is None or self._start is None:
            return None
        stamp, estimated, true = newest
        laid = self._start[0] @ se3.inverse(self._start[1]) @ true
        error = se3.inverse(estimated) @ laid
        for path, pose in zip(self._paths, (estimated, laid), strict=True):
            path.append((stamp, pose))
            if len(path) > _PATH:
                del path[1::2]
        position, rotation = float(error[:3, 3].norm()), float(se3.so3_log(error[:3, :3]).norm())
        state = DriftState(
            stamp, self._frame, self._travelled, position, rotation, tuple(self._paths[0]), tuple(self._paths[1])
        )
        self._add_row(state)
        return state

    def write(self) -> list[Path]:
        """Writes drift.json and report.html of all that came; returns the files.

        Raises:
            FlowodomError: There is nothing to compare, or a file cannot be written.
        """
        truth = self._true_trajectory()
        builder = ReportBuilder(optical=False)
        for stamp, pose, covariance in self._estimate:
            builder.record(stamp, pose.numpy(), covariance=covariance if covariance.any() else None)
        evaluation = builder.evaluate(truth, tolerance=self._config.tolerance)
        files = [self._folder() / "drift.json", self._folder() / "report.html"]
        try:
            files[0].write_text(json.dumps(builder.drift(evaluation), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise FlowodomError(f"cannot write {files[0]}: {error.strerror or error}; is the disk full?") from error
        builder.write(files[1], title="drift", truth=truth, evaluation=evaluation, configuration=self._config)
        if self._rows is not None:
            self._rows.close()
            self._rows = None
        return files

    def _add_truth(self, stamp: int, pose: Tensor) -> None:
        if not self._true_stamps or stamp > self._true_stamps[-1]:
            self._true_stamps.append(stamp)
            self._truth.insert(*_TRUTH, stamp, pose)

    def _true_pose(self, stamp: int) -> Tensor | None:
        """Returns the true pose of the estimate's body, None where none is near."""
        try:
            return self._truth.lookup(*_TRUTH, stamp) @ self._offset()
        except FrameError:
            return None

    def _offset(self) -> Tensor:
        """Returns where the estimate's body is in the true one; the same where tf does not connect them."""
        if not self._true_body or not self._tree.connected(self._true_body, self._body):
            return se3.identity()
        return self._tree.lookup(self._true_body, self._body, self._true_stamps[-1])

    def _true_trajectory(self) -> Trajectory:
        if not self._estimate or not self._true_stamps:
            missing = "estimate" if not self._estimate else "truth"
            raise TrajectoryError(f"no {missing} came, so there is nothing to compare")
        offset = self._offset()
        poses = [(self._truth.lookup(*_TRUTH, stamp) @ offset).numpy() for stamp in self._true_stamps]
        return Trajectory(np.array(self._true_stamps, dtype=np.int64), np.array(poses), body=self._body)

    def _folder(self) -> Path:
        folder = Path(self._config.out)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FlowodomError(f"cannot make the folder {folder}: {error.strerror or error}") from error
        return folder

    def _add_row(self, state: DriftState) -> None:
        try:
            if self._rows is None:
                self._rows = (self._folder() / "drift.csv").open("w", newline="", encoding="utf-8")
                csv.writer(self._rows).writerow(_COLUMNS)
            figures = (state.travelled, state.position_error, math.degrees(state.rotation_error), state.drift)
            csv.writer(self._rows).writerow([f"{state.stamp * 1e-9:.3f}", *(f"{figure:.6f}" for figure in figures)])
            self._rows.flush()
        except OSError as error:
            raise FlowodomError(f"cannot write drift.csv: {error.strerror or error}; is the disk full?") from error
