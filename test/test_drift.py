import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from flowodom.config import DriftConfig
from flowodom.drift import Drift
from flowodom.errors import TrajectoryError
from flowodom.geometry import se3
from flowodom.messages import MessageFactory

make = MessageFactory()
SECOND = 1_000_000_000
STEP = SECOND // 10


def pose(x: float, yaw: float = 0.0) -> torch.Tensor:
    xi = torch.tensor([0.0, 0.0, yaw], dtype=torch.float64)
    return se3.matrix(se3.so3_exp(xi), torch.tensor([x, 0.0, 0.0], dtype=torch.float64))


@pytest.fixture
def drift(tmp_path: Path) -> Drift:
    return Drift(DriftConfig(out=str(tmp_path / "drift")))


def run(drift: Drift, count: int = 31, *, scale: float = 1.1) -> None:
    """Feeds an estimate that is ``scale`` times too long, in a world turned against the truth's."""
    world = pose(5.0, yaw=1.0)
    for i in range(count):
        stamp = SECOND + i * STEP
        drift.add_truth(make.odometry(stamp, "world", "base_link", world @ pose(0.1 * i)))
        drift.add_estimate(make.odometry(stamp, "odom", "base_link", pose(0.1 * i * scale), np.eye(6) * 0.01))


def test_the_error_is_taken_from_the_first_common_pose_on(drift: Drift) -> None:
    run(drift)
    state = drift.tell()
    assert state is not None
    assert (state.stamp, state.frame) == (4 * SECOND, "odom")
    assert state.travelled == pytest.approx(3.0)
    assert state.position_error == pytest.approx(0.3)
    assert state.drift == pytest.approx(10.0)
    assert state.rotation_error == pytest.approx(0.0, abs=1e-9)
    np.testing.assert_allclose(state.true_path[-1][1][:3, 3], [3.0, 0, 0], atol=1e-9)


def test_nothing_new_is_nothing_to_tell(drift: Drift) -> None:
    assert drift.tell() is None
    run(drift)
    drift.tell()
    assert drift.tell() is None


def test_the_truth_is_interpolated_and_not_extrapolated(drift: Drift) -> None:
    for i in range(3):
        drift.add_truth(make.pose_stamped(SECOND + i * STEP, "world", pose(0.1 * i)))
    for stamp, x in ((SECOND + STEP // 2, 0.05), (SECOND + 3 * STEP // 2, 0.15), (SECOND + 30 * STEP, 9.0)):
        drift.add_estimate(make.odometry(stamp, "odom", "base_link", pose(x)))
    state = drift.tell()
    assert state is not None
    assert state.stamp == SECOND + 3 * STEP // 2
    assert state.position_error == pytest.approx(0.0, abs=1e-9)


def test_another_body_of_the_truth_is_moved_to_the_base_by_tf(drift: Drift) -> None:
    drift.add_transforms(make.tf_message([make.transform(0, "marker", "base_link", pose(1.0, yaw=0.5))]), static=True)
    for i in range(5):
        stamp = SECOND + i * STEP
        base = pose(0.1 * i, yaw=0.1 * i)
        drift.add_truth(make.transform(stamp, "world", "marker", base @ se3.inverse(pose(1.0, yaw=0.5))))
        drift.add_estimate(make.odometry(stamp, "odom", "base_link", base))
    state = drift.tell()
    assert state is not None
    assert state.position_error == pytest.approx(0.0, abs=1e-9)


def test_the_truth_can_come_from_tf(tmp_path: Path) -> None:
    drift = Drift(DriftConfig(out=str(tmp_path), truth_parent="world", truth_child="base_link"))
    for i in range(5):
        stamp = SECOND + i * STEP
        drift.add_transforms(make.tf_message([make.transform(stamp, "world", "base_link", pose(0.1 * i))]))
        drift.add_estimate(make.odometry(stamp, "odom", "base_link", pose(0.1 * i)))
    state = drift.tell()
    assert state is not None
    assert state.travelled == pytest.approx(0.4)


def test_lost_odometry_is_passed_over(drift: Drift) -> None:
    lost = make.odometry(SECOND, "odom", "base_link", np.eye(4))
    lost.pose.pose.orientation.w = 0.0
    drift.add_estimate(lost)
    drift.add_truth(make.odometry(SECOND, "world", "base_link", np.eye(4)))
    assert drift.tell() is None


def test_rows_and_results_are_written(drift: Drift, tmp_path: Path) -> None:
    run(drift)
    drift.tell()
    files = drift.write()
    assert [path.name for path in files] == ["drift.json", "report.html"]
    with (tmp_path / "drift" / "drift.csv").open() as table:
        (row,) = csv.DictReader(table)
    assert float(row["drift_percent"]) == pytest.approx(10.0)
    figures = json.loads(files[0].read_text())
    assert figures["scale"] == pytest.approx(1 / 1.1)


def test_without_truth_there_is_nothing_to_write(drift: Drift) -> None:
    drift.add_estimate(make.odometry(SECOND, "odom", "base_link", np.eye(4)))
    with pytest.raises(TrajectoryError, match="no truth came"):
        drift.write()
