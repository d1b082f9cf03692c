import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowodom.bags import BagWriter
from flowodom.errors import BagError, TrajectoryError
from flowodom.geometry import se3
from flowodom.messages import MessageFactory
from flowodom.trajectory import (
    Trajectory,
    associate,
    read,
    read_bag,
    read_kitti,
    read_pair,
    read_tum,
    write_kitti,
    write_tum,
)

START = 1_700_000_000_123_456_789
PERIOD = 33_333_333
MOUNT = se3.exp(torch.tensor([0.1, -0.2, 0.3, 0.4, 0.1, -1.2], dtype=torch.float64)).numpy()


def walk(count: int = 40, *, period: int = PERIOD, seed: int = 7, **names: Any) -> Trajectory:
    """A smooth path in all six degrees of freedom."""
    rng = np.random.default_rng(seed)
    time = np.arange(count) * period * 1e-9
    rates = rng.uniform(0.3, 1.5, 6)
    xi = np.sin(time[:, None] * rates + rng.uniform(0, 6, 6)) * np.array([2, 2, 0.5, 0.4, 0.4, 1.5])
    stamps = START + np.arange(count, dtype=np.int64) * period
    return Trajectory(stamps, se3.exp(torch.from_numpy(xi)).numpy(), **names)


def assert_same(one: Trajectory, other: Trajectory, *, atol: float = 1e-8) -> None:
    np.testing.assert_array_equal(one.stamps, other.stamps)
    np.testing.assert_allclose(one.poses, other.poses, atol=atol)


class TestTrajectory:
    def test_lengths_and_times(self) -> None:
        poses = np.tile(np.eye(4), (3, 1, 1))
        poses[:, 0, 3] = [0, 3, 3]
        poses[:, 1, 3] = [0, 4, 5]
        trajectory = Trajectory(np.array([10, 20, 40], dtype=np.int64) * 10**8, poses)
        np.testing.assert_allclose(trajectory.distances, [0, 5, 6])
        np.testing.assert_allclose(trajectory.seconds, [0, 1, 3])
        assert len(trajectory.select(slice(0, 0)).distances) == 0

    def test_refuses_nan(self) -> None:
        good = walk(5)
        poses = good.poses.copy()
        poses[3, 0, 3] = np.nan
        with pytest.raises(TrajectoryError, match="pose 3 of 5 holds NaN"):
            Trajectory(good.stamps, poses)

    def test_refuses_stamps_that_repeat(self) -> None:
        good = walk(5)
        stamps = good.stamps.copy()
        stamps[4] = stamps[3]
        with pytest.raises(TrajectoryError, match=r"pose 4 at 1700000000\.223456788 s does not come after pose 3"):
            Trajectory(stamps, good.poses)

    def test_refuses_wrong_shapes(self) -> None:
        good = walk(5)
        with pytest.raises(TrajectoryError, match=r"poses of a trajectory of 5 stamps must be \(5, 4, 4\)"):
            Trajectory(good.stamps, good.poses[:4])
        with pytest.raises(TrajectoryError, match="int64"):
            Trajectory(good.stamps.astype(np.float64), good.poses)  # type: ignore[arg-type]

    def test_splits_by_segment(self) -> None:
        trajectory = walk(6, segments=np.array([0, 0, 1, 1, 1, 4]))
        assert [len(part) for part in trajectory.split()] == [2, 3, 1]
        assert len(walk(6).split()) == 1

    def test_in_body_moves_poses_and_covariances(self) -> None:
        rng = np.random.default_rng(3)
        half = rng.normal(size=(6, 6))
        covariance = half @ half.T * 1e-6
        one = walk(4, covariances=np.tile(covariance, (4, 1, 1)))
        other = one.in_body(MOUNT, "camera")
        np.testing.assert_allclose(other.poses, one.poses @ MOUNT)
        assert other.body == "camera"
        # A perturbation of the body, seen from the other frame: first order is exact in the limit.
        xi = torch.from_numpy(rng.multivariate_normal(np.zeros(6), covariance, 20000))
        moved = torch.from_numpy(np.linalg.inv(MOUNT)) @ se3.exp(xi) @ torch.from_numpy(MOUNT)
        sampled = np.cov(se3.log(moved).numpy().T)
        assert other.covariances is not None
        np.testing.assert_allclose(other.covariances[0], sampled, atol=0.05 * np.abs(sampled).max())


class TestInterpolation:
    def test_constant_velocity_is_exact(self) -> None:
        twist = torch.tensor([1.0, 0.2, -0.3, 0.5, -0.8, 0.4], dtype=torch.float64)
        stamps = START + np.array([0, 100, 250, 700], dtype=np.int64) * 10**6
        poses = se3.exp(torch.from_numpy((stamps - START) * 1e-9)[:, None] * twist).numpy()
        asked = START + np.array([0, 37, 100, 101, 600, 700], dtype=np.int64) * 10**6
        expected = se3.exp(torch.from_numpy((asked - START) * 1e-9)[:, None] * twist).numpy()
        np.testing.assert_allclose(Trajectory(stamps, poses).at(asked), expected, atol=1e-12)

    def test_rotation_agrees_with_slerp(self) -> None:
        spatial = pytest.importorskip("scipy.spatial.transform")
        trajectory = walk(10)
        asked = np.sort(np.random.default_rng(1).integers(trajectory.stamps[0], trajectory.stamps[-1], 50))
        rotations = spatial.Rotation.from_matrix(trajectory.rotations)
        expected = spatial.Slerp(trajectory.seconds, rotations)((asked - trajectory.stamps[0]) * 1e-9).as_matrix()
        np.testing.assert_allclose(trajectory.at(asked)[:, :3, :3], expected, atol=1e-9)

    def test_never_extrapolates(self) -> None:
        trajectory = walk(4)
        with pytest.raises(TrajectoryError, match="outside"):
            trajectory.at(trajectory.stamps + 1)


class TestAssociate:
    def test_same_stamps_are_taken_as_they_are(self) -> None:
        estimate, truth = walk(seed=1), walk(seed=2)
        matched, true = associate(estimate, truth)
        assert_same(matched, estimate, atol=0)
        assert_same(true, truth, atol=0)

    def test_truth_of_another_rate_is_interpolated(self) -> None:
        dense = walk(400, period=1_000_000)
        truth = dense.select(slice(None, None, 20))
        estimate = dense.select(slice(7, None, 9))
        matched, true = associate(estimate, truth)
        assert len(matched) == sum(estimate.stamps <= truth.stamps[-1])
        np.testing.assert_allclose(true.positions, matched.positions, atol=2e-4)  # the nearest pose would be 2e-2 off

    def test_leaves_out_what_the_truth_does_not_cover(self) -> None:
        estimate = walk(30)
        keep = np.ones(30, dtype=bool)
        keep[[0, 1, *range(10, 20), 29]] = False
        matched, true = associate(estimate, estimate.select(keep), tolerance=0.04)
        # Within a gap only poses within 40 ms of its ends; nothing before the first and after the last.
        np.testing.assert_array_equal((matched.stamps - START) // PERIOD, [*range(2, 11), *range(19, 29)])
        assert_same(matched.select(slice(0, 8)), true.select(slice(0, 8)))

    def test_keeps_segments_of_the_estimate(self) -> None:
        estimate = walk(6, segments=np.array([0, 0, 1, 1, 2, 2]))
        matched, _ = associate(estimate, walk(5))
        assert matched.segments is not None
        np.testing.assert_array_equal(matched.segments, [0, 0, 1, 1, 2])

    def test_says_what_to_do_when_nothing_matches(self) -> None:
        estimate = walk(5)
        late = Trajectory(estimate.stamps + 10**12, estimate.poses)
        with pytest.raises(TrajectoryError, match="do both use the same clock"):
            associate(estimate, late)
        with pytest.raises(TrajectoryError, match="the true trajectory has no poses"):
            associate(estimate, estimate.select(slice(0, 0)))


class TestTum:
    def test_round_trip(self, tmp_path: Path) -> None:
        trajectory = walk(9, segments=np.array([0, 0, 0, 2, 2, 2, 3, 3, 3]), frame="odom", body="base_link")
        write_tum(tmp_path / "t.tum", trajectory)
        back = read_tum(tmp_path / "t.tum")
        assert_same(back, trajectory)
        assert (back.frame, back.body) == ("odom", "base_link")
        assert back.segments is not None
        np.testing.assert_array_equal(back.segments, [0, 0, 0, 2, 2, 2, 3, 3, 3])

    def test_evo_reads_what_we_write(self, tmp_path: Path) -> None:
        files = pytest.importorskip("evo.tools.file_interface")
        trajectory = walk(9, segments=np.array([0] * 5 + [1] * 4), frame="odom")
        write_tum(tmp_path / "t.tum", trajectory)
        other = files.read_tum_trajectory_file(tmp_path / "t.tum")
        np.testing.assert_allclose(np.array(other.poses_se3), trajectory.poses, atol=1e-8)
        np.testing.assert_allclose(other.timestamps, trajectory.stamps * 1e-9, atol=1e-6)

    def test_we_read_what_evo_writes(self, tmp_path: Path) -> None:
        files = pytest.importorskip("evo.tools.file_interface")
        trajectories = pytest.importorskip("evo.core.trajectory")
        trajectory = walk(9)
        other = trajectories.PoseTrajectory3D(poses_se3=list(trajectory.poses), timestamps=trajectory.stamps * 1e-9)
        files.write_tum_trajectory_file(tmp_path / "t.tum", other)
        back = read(tmp_path / "t.tum")
        np.testing.assert_allclose(back.poses, trajectory.poses, atol=1e-8)
        np.testing.assert_allclose(back.stamps, trajectory.stamps, atol=500)  # evo's stamps are floats

    def test_stamps_are_exact(self, tmp_path: Path) -> None:
        path = tmp_path / "t.tum"
        path.write_text("1700000000.123456789 0 0 0 0 0 0 1\n1.700000001e9\t0 0 0 0 0 0 -1\n")
        np.testing.assert_array_equal(read_tum(path).stamps, [1_700_000_000_123_456_789, 1_700_000_001_000_000_000])

    @pytest.mark.parametrize(
        ("line", "complaint"),
        [
            ("2 0 0 0 0 0 1", "line 4: a TUM line has 8 numbers .* got 7"),
            ("2 0 0 zero 0 0 0 1", "line 4: expected a number, got 'zero'"),
            ("2 0 0 nan 0 0 0 1", "line 4: expected a finite number, got 'nan'"),
            ("x 0 0 0 0 0 0 1", "line 4: expected a stamp in seconds, got 'x'"),
            ("inf 0 0 0 0 0 0 1", "line 4: expected a stamp in seconds, got 'inf'"),
            ("2 0 0 0 0 0 0 0", "line 4: the quaternion .* must have length 1, got 0"),
            ("1 0 0 0 0 0 0 1", r"line 4: the stamp 1\.000000000 s does not come after 1\.500000000 s of line 3"),
            ("# segment: two", "line 4: the number of a segment"),
        ],
    )
    def test_names_the_bad_line(self, tmp_path: Path, line: str, complaint: str) -> None:
        path = tmp_path / "bad.tum"
        path.write_text(f"# a comment\n\n1.5 0 0 0 0 0 0 1\n{line}\n")
        with pytest.raises(TrajectoryError, match=complaint):
            read_tum(path)

    @pytest.mark.parametrize("content", [b"", b"# only a comment\n\n", b"\xff\xfe\x00binary"])
    def test_no_trajectory_at_all(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "bad.tum"
        path.write_bytes(content)
        with pytest.raises(TrajectoryError, match=r"holds no poses|cannot read"):
            read(path)

    def test_missing_file_and_folder(self, tmp_path: Path) -> None:
        with pytest.raises(TrajectoryError, match="cannot read"):
            read(tmp_path / "none.tum")
        with pytest.raises(TrajectoryError, match="cannot write"):
            write_tum(tmp_path / "none" / "t.tum", walk(2))


class TestKitti:
    def test_round_trip_with_times(self, tmp_path: Path) -> None:
        trajectory = walk(9)
        write_kitti(tmp_path / "06.txt", trajectory)
        (tmp_path / "times.txt").write_text("".join(f"{(s - START) * 1e-9:.9e}\n" for s in trajectory.stamps))
        back = read(tmp_path / "06.txt", times=tmp_path / "times.txt")
        np.testing.assert_allclose(back.poses, trajectory.poses, atol=1e-8)
        np.testing.assert_allclose(back.stamps, trajectory.stamps - START, atol=1)

    def test_without_times_the_line_tells(self, tmp_path: Path) -> None:
        write_kitti(tmp_path / "06.txt", walk(3))
        np.testing.assert_array_equal(read(tmp_path / "06.txt").stamps, [0, 10**8, 2 * 10**8])

    def test_evo_reads_what_we_write(self, tmp_path: Path) -> None:
        files = pytest.importorskip("evo.tools.file_interface")
        trajectory = walk(9)
        write_kitti(tmp_path / "06.txt", trajectory)
        other = files.read_kitti_poses_file(tmp_path / "06.txt")
        np.testing.assert_allclose(np.array(other.poses_se3), trajectory.poses, atol=1e-8)

    def test_rounded_rotations_become_rotations(self, tmp_path: Path) -> None:
        trajectory = walk(5)
        rows = trajectory.poses[:, :3].reshape(-1, 12)
        (tmp_path / "06.txt").write_text("".join(" ".join(f"{v:.4f}" for v in row) + "\n" for row in rows))
        back = read_kitti(tmp_path / "06.txt")
        identity = np.swapaxes(back.rotations, 1, 2) @ back.rotations
        np.testing.assert_allclose(identity, np.tile(np.eye(3), (5, 1, 1)), atol=1e-12)
        np.testing.assert_allclose(back.poses, trajectory.poses, atol=2e-4)

    @pytest.mark.parametrize(
        ("row", "complaint"),
        [
            ("1 0 0 0 0 1 0 0 0 0 1", "line 2: a KITTI line has 12 numbers .* got 11"),
            ("1 0 0 0 0 1 0 0 0 0 -1 0", "line 2: the left 3x3 block must be a rotation"),
            ("2 0 0 0 0 2 0 0 0 0 2 0", "line 2: the left 3x3 block must be a rotation"),
        ],
    )
    def test_names_the_bad_line(self, tmp_path: Path, row: str, complaint: str) -> None:
        path = tmp_path / "06.txt"
        path.write_text(f"1 0 0 0 0 1 0 0 0 0 1 0\n{row}\n")
        with pytest.raises(TrajectoryError, match=complaint):
            read_kitti(path)

    @pytest.mark.parametrize(
        ("times", "complaint"),
        [
            ("0\n0.1\n", "2 stamps for the 3 poses"),
            ("0\n0.1\n0.1\n", "line 3: the stamp"),
            ("0 1\n0.1 2\n0.2 3\n", "line 1: a line of a times file has one number"),
        ],
    )
    def test_bad_times(self, tmp_path: Path, times: str, complaint: str) -> None:
        write_kitti(tmp_path / "06.txt", walk(3))
        (tmp_path / "times.txt").write_text(times)
        with pytest.raises(TrajectoryError, match=complaint):
            read_kitti(tmp_path / "06.txt", tmp_path / "times.txt")


def test_neither_kind(tmp_path: Path) -> None:
    path = tmp_path / "poses.csv"
    path.write_text("1,2,3,4,5,6,7,8\n")
    with pytest.raises(TrajectoryError, match="neither a bag nor a trajectory: its first line has 1 fields"):
        read(path)
    path.write_text("1 0 0 0 0 0 0 1\n")
    with pytest.raises(TrajectoryError, match="has no topic /odom"):
        read(path, "/odom")


Write = Callable[..., Path]


@pytest.fixture
def write_bag(tmp_path: Path) -> Write:
    """Writes (topic, message) pairs at the stamps of a walk."""

    def write(*pairs: tuple[str, Any], name: str = "bag") -> Path:
        with BagWriter(tmp_path / name) as writer:
            for i, (topic, message) in enumerate(pairs):
                writer.write(topic, message, START + i)
        return tmp_path / name

    return write


class TestBag:
    TRUTH = walk(8, frame="world", body="camera_link")

    def odometry(self, topic: str = "/ground_truth/odom", body: str = "camera_link") -> list[tuple[str, Any]]:
        make = MessageFactory()
        return [
            (topic, make.odometry(int(s), "world", body, p))
            for s, p in zip(self.TRUTH.stamps, self.TRUTH.poses, strict=True)
        ]

    def test_odometry(self, write_bag: Write) -> None:
        back = read_bag(write_bag(*self.odometry()))
        assert_same(back, self.TRUTH, atol=1e-12)
        assert (back.frame, back.body) == ("world", "camera_link")

    def test_poses_and_transforms(self, write_bag: Write, factory: MessageFactory) -> None:
        types = factory.store.types
        for kind in ("PoseStamped", "PoseWithCovarianceStamped", "TransformStamped"):
            messages = []
            for stamp, pose in zip(self.TRUTH.stamps, self.TRUTH.poses, strict=True):
                if kind == "TransformStamped":
                    message = factory.transform(int(stamp), "world", "camera_link", pose)
                elif kind == "PoseStamped":
                    message = factory.pose_stamped(int(stamp), "world", pose)
                else:
                    held = types["geometry_msgs/msg/PoseWithCovariance"](factory.pose(pose), np.zeros(36))
                    message = types[f"geometry_msgs/msg/{kind}"](factory.header(int(stamp), "world"), held)
                messages.append(("/mocap", message))
            back = read_bag(write_bag(*messages, name=kind))
            assert_same(back, self.TRUTH, atol=1e-12)
            assert back.body == ("camera_link" if kind == "TransformStamped" else "")

    def test_path_takes_the_last(self, write_bag: Write, factory: MessageFactory) -> None:
        poses = [
            factory.pose_stamped(int(s), "world", p) for s, p in zip(self.TRUTH.stamps, self.TRUTH.poses, strict=True)
        ]
        bag = write_bag(*(("/path", factory.path(START, "world", poses[: i + 1])) for i in range(len(poses))))
        assert_same(read_bag(bag), self.TRUTH, atol=1e-12)

    def test_pair_of_frames(self, write_bag: Write, factory: MessageFactory) -> None:
        messages: list[tuple[str, Any]] = [
            ("/tf_static", factory.tf_message([factory.transform(0, "camera_link", "optical", MOUNT)]))
        ]
        for stamp, pose in zip(self.TRUTH.stamps, self.TRUTH.poses, strict=True):
            other = factory.transform(int(stamp) + 5, "camera_link", "arm", np.eye(4))
            messages.append(
                ("/tf", factory.tf_message([factory.transform(int(stamp), "world", "camera_link", pose), other]))
            )
        bag = write_bag(*messages)
        back = read_bag(bag, "/tf:world:optical")
        assert_same(back, self.TRUTH.in_body(MOUNT))
        assert (back.frame, back.body) == ("world", "optical")
        with pytest.raises(TrajectoryError, match="where nothing is in world: no transforms connect them"):
            read_bag(bag, "/tf:world:nothing")
        with pytest.raises(TrajectoryError, match="do not move against each other"):
            read_bag(bag, "/tf:camera_link:optical")
        with pytest.raises(TrajectoryError, match="spelled /tf:PARENT:CHILD"):
            read_bag(bag, "/tf:world")

    def test_another_body(self, write_bag: Write, factory: MessageFactory, caplog: pytest.LogCaptureFixture) -> None:
        static = ("/tf_static", factory.tf_message([factory.transform(0, "camera_link", "optical", MOUNT)]))
        bag = write_bag(static, *self.odometry())
        assert_same(read_bag(bag, body="optical"), self.TRUTH.in_body(MOUNT))
        assert not caplog.records
        assert_same(read_bag(bag, body="wheel"), self.TRUTH)
        assert "mounted apart" in caplog.text

    def test_leaves_out_what_cannot_be_used(
        self, write_bag: Write, factory: MessageFactory, caplog: pytest.LogCaptureFixture
    ) -> None:
        messages = self.odometry()
        messages[2][1].pose.pose.position.x = float("nan")
        messages.insert(5, messages[4])  # the same stamp again
        messages.append(messages[0])  # time jumps back
        with caplog.at_level(logging.WARNING):
            back = read_bag(write_bag(*messages))
        assert_same(back, self.TRUTH.select(np.array([0, 1, 3, 4, 5, 6, 7])))
        assert "3 poses" in caplog.text

    def test_no_stamps(self, write_bag: Write, caplog: pytest.LogCaptureFixture) -> None:
        messages = self.odometry()
        for _, message in messages:
            message.header.stamp.sec = message.header.stamp.nanosec = 0
        back = read_bag(write_bag(*messages))
        np.testing.assert_array_equal(back.stamps, START + np.arange(8))
        assert "no stamp" in caplog.text

    def test_which_topic(self, write_bag: Write, factory: MessageFactory) -> None:
        both = write_bag(*self.odometry("/odom", "base"), *self.odometry(), name="both")
        assert read_bag(both).body == "base"
        assert read_bag(both, "ground_truth/odom").body == "camera_link"
        estimate, truth = read_pair(both, both)
        assert (estimate.body, truth.body) == ("base", "camera_link")
        unclear = write_bag(*self.odometry("/a"), *self.odometry("/b"), name="unclear")
        with pytest.raises(TrajectoryError, match=r"several topics with poses, name one:\n  /a"):
            read_bag(unclear)
        with pytest.raises(TrajectoryError, match="no poses on /c"):
            read_bag(unclear, "/c")
        none = write_bag(("/tf", factory.tf_message([factory.transform(1, "a", "b", np.eye(4))])), name="none")
        with pytest.raises(TrajectoryError, match="no topic with poses"):
            read(none)

    def test_pair_of_file_and_bag_is_brought_to_one_body(
        self, tmp_path: Path, write_bag: Write, factory: MessageFactory
    ) -> None:
        static = ("/tf_static", factory.tf_message([factory.transform(0, "camera_link", "optical", MOUNT)]))
        bag = write_bag(static, *self.odometry())
        write_tum(tmp_path / "t.tum", walk(8, frame="odom", body="optical"))
        _, truth = read_pair(tmp_path / "t.tum", bag)
        assert_same(truth, self.TRUTH.in_body(MOUNT))
        assert truth.body == "optical"

    def test_no_recording(self, tmp_path: Path) -> None:
        with pytest.raises(BagError):
            read(tmp_path)

    def test_real_recording(self, recordings: Path) -> None:
        truth = read_bag(recordings / "street_mono")
        assert len(truth) == 51
        assert truth.body == "camera_link"
        assert 55 < truth.distances[-1] < 65
