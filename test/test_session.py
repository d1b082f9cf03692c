import dataclasses
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PERIOD, START, plane_messages
from torch import Tensor

from flowodom.config import SessionConfig, override
from flowodom.depth import InverseDepth
from flowodom.errors import BagError, CalibrationError, ConfigError, FlowodomError, FrameError, MessageError
from flowodom.frame import Frame
from flowodom.frames import motion_of, stamp_of
from flowodom.geometry import PinholeCamera, se3
from flowodom.messages import MessageFactory
from flowodom.odometry import Estimate, Status
from flowodom.registration.innovations import Innovations
from flowodom.registration.readout import Readout
from flowodom.scene_flow import PropertySet
from flowodom.scene_flow.moving import Moving
from flowodom.scene_flow.surfaces import Surface
from flowodom.session import Session
from flowodom.unit import Scale

SECOND = 1_000_000_000
STEP = SECOND // 10
CAMERA = PinholeCamera(fx=40.0, fy=40.0, cx=15.5, cy=11.5, width=32, height=24)
make = MessageFactory()


def tangent(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


MOTION = se3.exp(tangent(0.01, 0.0, 0.1, 0.0, 0.02, 0.0))
EXTRINSIC = se3.matrix(
    torch.tensor([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]], dtype=torch.float64),
    torch.tensor([0.3, 0.0, 0.5], dtype=torch.float64),
)
COVARIANCE = torch.diag(tangent(1e-4, 2e-4, 3e-4, 4e-6, 5e-6, 6e-6))


class FakeOdometry:
    """Moves by MOTION with every frame; is lost where an image is all 255."""

    readout = Readout.begin(0.0, 0.025, 0.001)
    turn = None
    innovations = Innovations(4.0, 7)

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.guesses: list[Tensor | None] = []
        self.resets: list[Tensor | None] = []
        self.pose = se3.identity()
        self.previous: int | None = None
        self.segment = 0
        self.properties: PropertySet | None = None
        self.moving: Moving | None = None

    def reset(self, pose: Tensor | None = None) -> None:
        self.resets.append(pose)
        self.pose = self.pose if pose is None else pose
        self.previous = None
        self.segment += 1

    def step(self, frame: Frame, *, fields: bool = False, guess: Tensor | None = None) -> Estimate:
        self.frames.append(frame)
        self.guesses.append(guess)
        properties = self.properties
        lost = bool((frame.image == 255).all())
        first = self.previous is None
        if not first and not lost:
            self.pose = self.pose @ MOTION
        interval = 0.0 if self.previous is None else (frame.stamp - self.previous) * 1e-9
        self.previous = None if lost else frame.stamp
        if lost:
            self.segment += 1
        return Estimate(
            stamp=frame.stamp,
            status=Status.LOST if lost else Status.TRACKING,
            segment=self.segment,
            reason="the image is white" if lost else "",
            pose=None if lost else self.pose,
            covariance=None if lost else COVARIANCE,
            motion=None if first or lost else MOTION,
            motion_covariance=None if first or lost else COVARIANCE,
            interval=interval,
            keyframe=False,
            scale=Scale.SENSOR,
            matches=10,
            inliers=9,
            moving=None if first or lost else self.moving,
            lift=None if first or lost or properties is None else lambda _: properties,
        )


class Rig:
    """A session with a fake odometry, and short ways to feed it."""

    def __init__(self, values: dict[str, Any] | None = None, **arguments: Any) -> None:
        self.odometry = FakeOdometry()
        arguments.setdefault("inputs", ("image", "camera_info", "depth", "mask", "/tf", "/tf_static"))
        config = override(SessionConfig(), values or {})
        self.session = Session(config, odometry=self.odometry, **arguments)  # type: ignore[arg-type]
        self.out: list[tuple[str, Any]] = []

    def feed(self, topic: str, message: Any, now: int | None = None) -> list[tuple[str, Any]]:
        out = self.session.handle(topic, message, now)
        self.out += out
        return out

    def tf(self, parent: str = "base_link", child: str = "camera", motion: Tensor = EXTRINSIC) -> None:
        self.feed("/tf_static", make.tf_message([make.transform(0, parent, child, motion)]))

    def info(self, camera: PinholeCamera = CAMERA) -> list[tuple[str, Any]]:
        return self.feed("camera_info", make.camera_info(0, "camera", camera))

    def image(self, stamp: int, value: int = 100, camera: PinholeCamera = CAMERA) -> list[tuple[str, Any]]:
        pixels = np.full((camera.height, camera.width), value, dtype=np.uint8)
        return self.feed("image", make.image(stamp, "camera", pixels))

    def depth(self, stamp: int, value: float = 2.0, shape: tuple[int, int] = (24, 32)) -> list[tuple[str, Any]]:
        return self.feed("depth", make.image(stamp, "camera", np.full(shape, value, dtype=np.float32)))

    def topics(self) -> list[str]:
        return [topic for topic, _ in self.out]

    def odom(self) -> list[Any]:
        return [message for topic, message in self.out if topic == "odom"]

    def stamps(self) -> list[int]:
        return [frame.stamp for frame in self.odometry.frames]


@pytest.fixture
def rig() -> Rig:
    rig = Rig()
    rig.tf()
    rig.info()
    return rig


@pytest.fixture
def mono() -> Rig:
    rig = Rig(inputs=("image", "camera_info", "/tf", "/tf_static"))
    rig.tf()
    rig.info()
    return rig


def test_a_pair_becomes_a_frame_and_goes_out_as_odometry_and_transform(rig: Rig) -> None:
    assert rig.image(0) == []
    topics = [topic for topic, _ in rig.depth(0)]
    assert topics[:2] == ["odom", "/tf"]
    frame = rig.odometry.frames[0]
    assert frame.camera == CAMERA
    assert frame.depth is not None
    np.testing.assert_allclose(frame.depth[1:-1, 1:-1], 2.0)


def test_the_base_starts_at_the_origin_and_moves_by_the_conjugate_motion(rig: Rig) -> None:
    for i in range(3):
        rig.image(i * STEP)
        rig.depth(i * STEP)
    poses = [motion_of(message.pose.pose) for message in rig.odom()]
    step = EXTRINSIC @ MOTION @ se3.inverse(EXTRINSIC)
    for i, pose in enumerate(poses):
        torch.testing.assert_close(pose, torch.linalg.matrix_power(step, i))
    transform = next(message for topic, message in reversed(rig.out) if topic == "/tf").transforms[0]
    assert (transform.header.frame_id, transform.child_frame_id) == ("odom", "base_link")
    torch.testing.assert_close(motion_of(transform.transform), poses[-1])
    assert stamp_of(transform.header) == 2 * STEP


def test_a_base_that_has_a_parent_already_is_named(mono: Rig) -> None:
    mono.image(0)
    assert mono.session.status().level == 0
    mono.tf("base_footprint", "base_link")
    mono.image(STEP)
    status = mono.session.status()
    assert (status.level, "base_link is fixed to base_footprint on tf" in status.message) == (1, True)
    for mended in ({"publish_tf": False}, {"invert_tf": True}):
        mono.session.configure(override(SessionConfig(), mended))
        mono.image(mono.stamps()[-1] + STEP)
        assert mono.session.status().level == 0


def test_somebody_else_who_publishes_the_same_transform_is_noticed_and_own_ones_are_not(mono: Rig) -> None:
    mono.session.tick(SECOND)
    mono.image(0)
    own = next(message for topic, message in mono.out if topic == "/tf")
    mono.feed("/tf", own)
    assert status_at(mono, 2 * SECOND).level == 0
    mono.feed("/tf", make.tf_message([make.transform(STEP // 2, "/odom", "base_link", EXTRINSIC)]))
    mono.image(STEP)
    status = status_at(mono, 4 * SECOND)
    assert (status.level, "somebody else publishes" in status.message) == (1, True)
    mono.image(2 * STEP)
    assert "somebody else" not in status_at(mono, 10 * SECOND).message


def test_the_twist_is_that_of_the_base_in_its_own_frame(rig: Rig) -> None:
    for i in range(2):
        rig.image(i * STEP)
        rig.depth(i * STEP)
    twist = rig.odom()[1].twist.twist
    got = [twist.linear.x, twist.linear.y, twist.linear.z, twist.angular.x, twist.angular.y, twist.angular.z]
    expected = se3.log(EXTRINSIC @ MOTION @ se3.inverse(EXTRINSIC)) / 0.1
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-9)
    assert rig.odom()[1].child_frame_id == "base_link"


def test_covariances_are_those_of_the_base_found_by_sampling(rig: Rig) -> None:
    for i in range(8):
        rig.image(i * STEP)
        rig.depth(i * STEP)
    message = rig.odom()[-1]
    pose = motion_of(message.pose.pose)
    generator = torch.Generator().manual_seed(1)
    xi = torch.randn(40000, 6, dtype=torch.float64, generator=generator) @ torch.linalg.cholesky(COVARIANCE).T
    samples = pose @ EXTRINSIC @ se3.exp(xi) @ se3.inverse(EXTRINSIC)
    place = samples[:, :3, 3] - pose[:3, 3]
    turn = se3.so3_log(samples[:, :3, :3] @ pose[:3, :3].T)
    expected = torch.cov(torch.cat((place, turn), dim=-1).T).numpy()
    got = np.asarray(message.pose.covariance).reshape(6, 6)
    np.testing.assert_allclose(got, expected, atol=0.03 * np.abs(expected).max())
    np.testing.assert_allclose(np.sqrt(np.diag(got)), np.sqrt(np.diag(expected)), rtol=0.03)
    motions = EXTRINSIC @ MOTION @ se3.exp(xi) @ se3.inverse(EXTRINSIC)
    expected = torch.cov(se3.log(motions).T).numpy() / 0.1**2
    got = np.asarray(message.twist.covariance).reshape(6, 6)
    np.testing.assert_allclose(np.sqrt(np.diag(got)), np.sqrt(np.diag(expected)), rtol=0.03)


def test_without_any_depth_the_camera_goes_on_alone_after_saying_so(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for i in range(10):
            rig.image(i * STEP)
    assert rig.stamps() == [i * STEP for i in range(10)]
    assert caplog.text.count("going on with the camera alone") == 1
    rig.depth(10 * STEP)
    rig.image(10 * STEP)
    assert rig.odometry.frames[-1].depth is not None
    assert "depth" not in rig.session.status().message


def test_a_depth_source_that_must_be_a_sensor_never_falls_back() -> None:
    rig = Rig({"depth.source": "sensor"})
    rig.tf()
    rig.info()
    for i in range(10):
        rig.image(i * STEP)
    rig.session.flush()
    assert rig.stamps() == []
    assert isinstance(rig.session.failure(), MessageError)


def test_images_wait_for_a_calibration_that_comes_just_after_them() -> None:
    rig = Rig(inputs=("image", "camera_info"))
    rig.image(0)
    rig.info()
    assert rig.stamps() == [0]


def test_without_camera_info_the_failure_says_what_to_do() -> None:
    rig = Rig(inputs=("image", "camera_info"))
    for i in range(10):
        rig.image(i * STEP)
    rig.session.flush()
    assert rig.stamps() == []
    error = rig.session.failure()
    assert isinstance(error, CalibrationError)
    assert "camera_info" in str(error)
    assert rig.session.counts["uncalibrated"] == 10


def test_a_calibration_that_comes_late_is_missed_by_name_until_it_does() -> None:
    rig = Rig(inputs=("image", "camera_info"), resolve="/front/{}".format)
    rig.tf()
    for i in range(10):
        rig.image(i * STEP)
    assert "no usable message on /front/camera_info" in rig.session.status().message
    rig.info()
    rig.image(10 * STEP)
    assert rig.stamps()[-1] == 10 * STEP
    assert rig.session.status().level == 0


def test_without_images_the_failure_says_so() -> None:
    assert isinstance(Rig().session.failure(), BagError)


def test_an_empty_calibration_is_named(mono: Rig) -> None:
    message = make.camera_info(0, "camera", CAMERA)
    message.k = np.zeros(9)
    message.p = np.zeros(12)
    mono.feed("camera_info", message)
    assert "not calibrated" in mono.session.status().message


def test_a_change_of_size_goes_on_once_its_calibration_has_come(mono: Rig) -> None:
    big = PinholeCamera(fx=80.0, fy=80.0, cx=31.5, cy=23.5, width=64, height=48)
    mono.image(0)
    mono.image(STEP, camera=big)
    assert mono.stamps() == [0]
    mono.info(big)
    assert mono.stamps() == [0, STEP]
    assert mono.odometry.frames[1].camera == big


def test_a_calibration_that_changes_size_alone_is_named_until_it_fits_again(mono: Rig) -> None:
    mono.image(0)
    mono.info(CAMERA.scaled(2.0))
    for i in range(1, 10):
        mono.image(i * STEP)
    assert mono.stamps() == [0]
    assert "images of 32x24 came with a camera_info of 64x48" in mono.session.status().message
    mono.info()
    mono.image(10 * STEP)
    assert mono.stamps()[-1] == 10 * STEP
    assert mono.session.status().level == 0


def test_images_that_do_not_fit_their_calibration_are_skipped(mono: Rig) -> None:
    big = PinholeCamera(fx=80.0, fy=80.0, cx=31.5, cy=23.5, width=64, height=48)
    for i in range(10):
        mono.image(i * STEP, camera=big)
    assert mono.stamps() == []
    assert "64x48" in mono.session.status().message
    mono.image(10 * STEP)
    for i in range(11, 17):
        mono.image(i * STEP)
    assert mono.stamps()[0] == 10 * STEP


def test_unreadable_images_are_logged_once_and_counted(mono: Rig, caplog: pytest.LogCaptureFixture) -> None:
    bad = make.image(0, "camera", np.zeros((24, 32), dtype=np.uint8), encoding="mono8")
    bad.encoding = "infrared_of_tomorrow"
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            mono.feed("image", bad)
    assert mono.session.counts["unreadable"] == 3
    assert caplog.text.count("infrared_of_tomorrow") == 1
    assert isinstance(mono.session.failure(), MessageError)
    assert "infrared_of_tomorrow" in mono.session.status().message
    mono.image(STEP)
    assert mono.session.failure() is None
    assert mono.session.status().level == 0


@pytest.mark.parametrize("topic", ["image", "depth", "mask"])
def test_what_cannot_be_read_is_named_until_the_next_that_can(rig: Rig, topic: str) -> None:
    whole = make.image(0, "camera", np.ones((24, 32), dtype=np.float32 if topic == "depth" else np.uint8))
    cut = make.image(0, "camera", np.ones((24, 32), dtype=np.float32 if topic == "depth" else np.uint8))
    cut.data = cut.data[:100]
    rig.feed(topic, cut)
    assert rig.session.counts["unreadable"] == 1
    assert rig.session.status().level == 1
    rig.feed(topic, whole)
    assert rig.session.status().level == 0


def test_repeated_and_late_stamps_are_skipped(mono: Rig) -> None:
    mono.image(STEP)
    mono.image(STEP)
    mono.image(STEP - SECOND // 50)
    mono.image(2 * STEP)
    assert mono.stamps() == [STEP, 2 * STEP]
    assert mono.session.counts["repeated"] == 1
    assert mono.session.counts["out_of_order"] == 1


@pytest.mark.parametrize("depth_first", [False, True])
def test_a_clock_that_jumps_back_starts_a_segment_at_the_last_pose(rig: Rig, depth_first: bool) -> None:
    for _ in range(3):
        for i in range(5):
            for feed in (rig.depth, rig.image) if depth_first else (rig.image, rig.depth):
                feed(i * STEP)
    assert rig.stamps() == 3 * [i * STEP for i in range(5)]
    assert all(frame.depth is not None for frame in rig.odometry.frames)
    assert rig.session.counts["jumps"] == 2
    poses = [motion_of(message.pose.pose) for message in rig.odom()]
    torch.testing.assert_close(poses[5], poses[4])


def test_lost_means_silence_and_an_error_in_the_diagnostics(mono: Rig) -> None:
    mono.image(0)
    mono.out.clear()
    mono.image(STEP, value=255)
    assert mono.topics() == []
    status = mono.session.status()
    assert status.level == 2
    assert "LOST: the image is white" in status.message
    mono.image(2 * STEP)
    assert "odom" in mono.topics()


def test_lost_can_be_told_by_a_null_pose() -> None:
    rig = Rig({"publish_null_when_lost": True}, inputs=("image", "camera_info"))
    rig.tf()
    rig.info()
    rig.image(0, value=255)
    assert rig.topics() == ["odom"]
    pose = rig.odom()[0].pose
    assert pose.pose.orientation.w == 0.0
    assert pose.covariance[0] == 9999.0


def test_without_transforms_nothing_is_placed_and_the_failure_names_the_frames() -> None:
    rig = Rig(inputs=("image", "camera_info"))
    rig.info()
    rig.image(0)
    rig.image(STEP)
    assert rig.topics() == []
    assert rig.stamps() == [0, STEP]
    error = rig.session.failure()
    assert isinstance(error, FrameError)
    assert "base_link" in str(error)
    rig.tf()
    rig.image(2 * STEP)
    torch.testing.assert_close(motion_of(rig.odom()[0].pose.pose), se3.identity())
    assert rig.session.status().level == 0


def test_the_identity_is_taken_for_the_extrinsic_only_when_told_so() -> None:
    rig = Rig({"identity_extrinsic": True}, inputs=("image", "camera_info"))
    rig.info()
    rig.image(0)
    rig.image(STEP)
    torch.testing.assert_close(motion_of(rig.odom()[1].pose.pose), MOTION)


def test_extrinsic_and_initial_pose_can_be_given_as_text() -> None:
    values = {"extrinsic": "0.3 0 0.5 0.5 -0.5 0.5 -0.5", "initial_pose": "1 2 0 0 0 0.5"}
    rig = Rig(values, inputs=("image", "camera_info"))
    rig.info()
    rig.image(0)
    rig.image(STEP)
    start = se3.matrix(se3.so3_exp(tangent(0.0, 0.0, 0.5)), tangent(1.0, 2.0, 0.0))
    expected = start @ EXTRINSIC @ MOTION @ se3.inverse(EXTRINSIC)
    torch.testing.assert_close(motion_of(rig.odom()[1].pose.pose), expected)


def test_a_pose_in_another_frame_is_refused(mono: Rig) -> None:
    mono.image(0)
    pose = make.store.types["geometry_msgs/msg/PoseWithCovarianceStamped"](
        header=make.header(0, "map"),
        pose=make.store.types["geometry_msgs/msg/PoseWithCovariance"](
            pose=make.pose(np.eye(4)), covariance=np.zeros(36)
        ),
    )
    mono.feed("~/set_pose", pose)
    assert "must be given in odom" in mono.session.status().message
    pose.header.frame_id = "odom"
    mono.feed("~/set_pose", pose)
    assert mono.session.status().level == 0


def test_the_transform_can_be_inverted_or_left_out() -> None:
    rig = Rig({"invert_tf": True}, inputs=("image", "camera_info"))
    rig.tf()
    rig.info()
    rig.image(0)
    rig.image(STEP)
    transform = next(message for topic, message in reversed(rig.out) if topic == "/tf").transforms[0]
    assert (transform.header.frame_id, transform.child_frame_id) == ("base_link", "odom")
    torch.testing.assert_close(
        motion_of(transform.transform), se3.inverse(motion_of(rig.odom()[1].pose.pose)), atol=1e-9, rtol=0
    )
    rig.session.configure(dataclasses.replace(rig.session.config, publish_tf=False))
    rig.out.clear()
    rig.image(2 * STEP)
    assert "/tf" not in rig.topics()


def test_reset_and_set_pose_start_anew(mono: Rig) -> None:
    mono.image(0)
    mono.image(STEP)
    mono.feed("~/reset", make.store.types["std_msgs/msg/Empty"](structure_needs_at_least_one_member=0))
    mono.image(2 * STEP)
    torch.testing.assert_close(motion_of(mono.odom()[-1].pose.pose), se3.identity())
    goal = se3.exp(tangent(1.0, 2.0, 0.0, 0.0, 0.0, 0.5))
    mono.session.set_pose(goal)
    mono.image(3 * STEP)
    torch.testing.assert_close(motion_of(mono.odom()[-1].pose.pose), goal)


def test_after_a_reset_the_clock_may_have_gone_back(rig: Rig) -> None:
    for _ in range(2):
        for i in range(3):
            rig.image(i * STEP)
            rig.depth(i * STEP)
        rig.session.reset()
    assert rig.stamps() == 2 * [i * STEP for i in range(3)]
    torch.testing.assert_close(motion_of(rig.odom()[3].pose.pose), se3.identity())


def test_what_is_recognised_leads_back_to_where_it_was_seen_from(mono: Rig) -> None:
    for i, value in enumerate((100, 100, 255, 100)):
        mono.image(i * STEP, value=value)
    mono.odometry.segment, mono.odometry.pose = 0, se3.identity()
    mono.image(4 * STEP)
    _, moved, new, back = (motion_of(message.pose.pose) for message in mono.odom())
    torch.testing.assert_close(new, moved)
    torch.testing.assert_close(back, EXTRINSIC @ MOTION @ se3.inverse(EXTRINSIC))


def test_pause_ignores_images_and_resume_goes_on_at_the_last_pose(mono: Rig) -> None:
    mono.image(0)
    mono.image(STEP)
    mono.session.pause()
    mono.image(2 * STEP)
    assert mono.stamps() == [0, STEP]
    assert mono.session.status().message == "PAUSED"
    mono.session.resume()
    mono.image(3 * STEP)
    poses = [motion_of(message.pose.pose) for message in mono.odom()]
    torch.testing.assert_close(poses[-1], poses[-2])


@pytest.fixture
def wheeled() -> Rig:
    """A single camera with wheels beside it; ``drive`` tells where they are and feeds an image."""
    rig = Rig({"guess_frame": "wheel_odom"}, inputs=("image", "camera_info"))
    rig.tf()
    rig.info()
    return rig


def drive(rig: Rig, stamp: int, x: float, value: int = 100) -> None:
    motion = se3.exp(tangent(x, 0.0, 0.0, 0.0, 0.0, 0.0))
    rig.feed("/tf", make.tf_message([make.transform(stamp, "wheel_odom", "base_link", motion)]))
    rig.image(stamp, value=value)


def test_wheels_carry_the_pose_over_lost_tracking(wheeled: Rig) -> None:
    for i, (value, x) in enumerate(((100, 0.0), (100, 0.1), (255, 0.6), (100, 1.1))):
        drive(wheeled, i * STEP, x, value)
    before, after = (motion_of(message.pose.pose) for message in wheeled.odom()[-2:])
    torch.testing.assert_close(se3.inverse(before) @ after, se3.exp(tangent(1.0, 0.0, 0.0, 0.0, 0.0, 0.0)))


def test_wheels_tell_the_odometry_how_the_camera_has_moved_since_it_was_last_tracked(wheeled: Rig) -> None:
    for i, (value, x) in enumerate(((100, 0.0), (100, 0.1), (255, 0.6), (100, 1.1))):
        drive(wheeled, i * STEP, x, value)
    first, *guesses = wheeled.odometry.guesses
    assert first is None
    for guess, x in zip(guesses, (0.1, 0.5, 1.0), strict=True):
        # The base goes along its x, which is the camera's z.
        torch.testing.assert_close(guess, se3.exp(tangent(0.0, 0.0, x, 0.0, 0.0, 0.0)))


def test_wheels_that_stop_being_heard_are_named_and_nothing_is_guessed(wheeled: Rig) -> None:
    drive(wheeled, 0, 0.0)
    wheeled.image(SECOND)
    assert wheeled.odometry.guesses[-1] is None
    assert "wheel_odom" in wheeled.session.status().message
    drive(wheeled, SECOND + STEP, 0.1)
    drive(wheeled, SECOND + 2 * STEP, 0.2)
    assert wheeled.odometry.guesses[-1] is not None
    assert wheeled.session.status().level == 0


def test_a_clock_that_jumps_back_does_not_take_the_wheels_for_moved(wheeled: Rig) -> None:
    for i in range(3):
        drive(wheeled, i * STEP, 0.1 * i)
    drive(wheeled, 0, 0.0)
    assert wheeled.odometry.guesses[-1] is None
    before, after = (motion_of(message.pose.pose) for message in wheeled.odom()[-2:])
    torch.testing.assert_close(before, after)


def test_a_mask_is_passed_on_and_one_of_another_size_is_named(mono: Rig) -> None:
    mask = np.zeros((24, 32), dtype=np.uint8)
    mask[:10] = 255
    mono.feed("mask", make.image(0, "camera", mask))
    mono.image(0)
    ignore = mono.odometry.frames[0].ignore
    assert ignore is not None
    assert ignore[:9].all()
    assert not ignore[11:].any()
    mono.feed("mask", make.image(0, "camera", mask[:5]))
    mono.image(STEP)
    assert mono.odometry.frames[1].ignore is None
    assert "mask is 32x5" in mono.session.status().message


def test_depth_of_another_size_is_named_and_not_used(rig: Rig) -> None:
    rig.image(0)
    rig.depth(0, shape=(12, 16))
    rig.session.flush()  # the depth camera's own calibration might still come
    assert rig.odometry.frames[0].depth is None
    assert "depth is 16x12 but the image is 32x24" in rig.session.status().message
    rig.image(STEP)
    rig.depth(STEP)
    assert rig.session.status().level == 0


@pytest.mark.parametrize("nothing", [np.nan, np.inf, 0.0, -1.0])
def test_depth_without_a_single_distance_costs_no_pose_that_can_be_told_without(nothing: float) -> None:
    session = Session(override(SessionConfig(), {"base_frame": "camera_link"}))
    names = {
        "/camera/image_raw": "image",
        "/camera/camera_info": "camera_info",
        "/camera/depth_registered/image_raw": "depth",
        "/tf_static": "/tf_static",
    }
    out = []
    for topic, message, time in plane_messages(count=12):
        if topic in names:
            blank = topic == "/camera/depth_registered/image_raw" and START + 4 * PERIOD <= time < START + 8 * PERIOD
            if blank:
                message.data = np.full_like(message.data.view(np.float32), nothing).view(np.uint8)
            out += [item for item in session.handle(names[topic], message) if item[0] == "odom"]
    assert session.counts["frames"] == 12
    assert session.counts["failures"] == 0
    last = motion_of(out[-1][1].pose.pose)
    assert stamp_of(out[-1][1].header) == START + 11 * PERIOD
    torch.testing.assert_close(last[:3, 3], tangent(0.0, -0.11, 0.0), atol=0.005, rtol=0)


def test_depth_that_is_blank_from_the_start_is_waited_for() -> None:
    session = Session(override(SessionConfig(), {"base_frame": "camera_link"}))
    camera = PinholeCamera(fx=80.0, fy=80.0, cx=79.5, cy=59.5, width=160, height=120)
    blank = make.image(0, "camera_link", np.full((120, 160), np.nan, dtype=np.float32))
    session.handle("camera_info", make.camera_info(0, "camera_link", camera))
    session.handle("image", make.image(0, "camera_link", np.zeros((120, 160), dtype=np.uint8)))
    assert session.handle("depth", blank) == []
    assert "no valid depth" in session.status().message


def property_set() -> PropertySet:
    camera = CAMERA.scaled(0.5)
    depth = torch.full((12, 16), 2.0)
    points = camera.unproject(camera.pixels(), depth)
    points[0, 0] = torch.nan
    residual = torch.zeros(12, 16, 3)
    residual[4:8, 4:8, 0] = 0.1
    return PropertySet(
        camera=camera,
        points=points,
        scene_flow=torch.zeros(12, 16, 3),
        weight=torch.full((12, 16), 0.5),
        confidence=torch.full((12, 16), 1e4),
        flow=torch.zeros(12, 16, 2),
        residual=residual,
    )


def moving_set() -> Moving:
    camera = CAMERA.scaled(0.5)
    logit = np.full((12, 16), -5.0, dtype=np.float32)
    logit[4:8, 4:8] = 5.0
    blank = torch.full((12, 16), 0.5)
    depth = InverseDepth(camera, blank, 1e-6 * blank)
    rho, variance = depth.mean.numpy(), depth.variance.numpy()
    return Moving(camera, logit, logit, Surface(camera, rho, rho, variance, blank.byte(), depth))


def cloud_rows(message: Any) -> np.ndarray:
    return np.asarray(message.data).view(np.float32).reshape(message.width, -1)


def test_clouds_carry_places_colours_and_velocities() -> None:
    rig = Rig({"cloud.stride": 1}, inputs=("image", "camera_info"))
    rig.odometry.properties = property_set()
    rig.odometry.moving = moving_set()
    rig.tf()
    rig.info()
    rig.image(0)
    rig.image(STEP)
    clouds = {topic: message for topic, message in rig.out if "points" in topic}
    points, dynamic = clouds["points"], clouds["dynamic_points"]
    assert [field.name for field in points.fields] == [
        "x",
        "y",
        "z",
        "rgb",
        "vx",
        "vy",
        "vz",
        "moving_probability",
        "object_id",
        "weight",
        "confidence",
    ]
    assert points.header.frame_id == "camera"
    assert points.width == 12 * 16 - 1
    assert dynamic.width == 16
    rows = cloud_rows(dynamic)
    np.testing.assert_allclose(rows[:, 2], 2.0)
    np.testing.assert_allclose(rows[:, 4:7], [[1.0, 0.0, 0.0]] * 16, atol=0.01)
    assert (rows[:, 7] > 0.99).all()
    still = cloud_rows(points)[:, 7] < 0.5
    assert np.abs(cloud_rows(points)[still, 4:7]).max() < 0.01
    assert (rows[:, 3].view(np.uint32) == 0x646464).all()


def test_nothing_is_made_that_nobody_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(inputs=("image", "camera_info"), wanted=lambda topic: topic == "odom")
    monkeypatch.setattr("flowodom.session.make_cloud", lambda *_: pytest.fail("a cloud was made"))
    rig.odometry.properties = property_set()
    rig.tf()
    rig.info()
    for i in range(30):
        rig.image(i * STEP)
        rig.session.tick(i * STEP)
    assert set(rig.topics()) == {"odom"}


@pytest.mark.parametrize(("rate", "shown"), [(0.0, 9), (5.0, 5)], ids=["every frame", "every other frame"])
def test_dense_fields_are_shown_as_often_as_is_asked_for_and_movers_with_each_frame(rate: float, shown: int) -> None:
    rig = Rig({"cloud.rate": rate}, inputs=("image", "camera_info"))
    rig.odometry.properties = property_set()
    rig.tf()
    rig.info()
    for i in range(10):
        rig.image(i * STEP)
    counts = {name: rig.topics().count(name) for name in ("points", "dynamic_points", "flow", "weights", "moving_mask")}
    assert counts == {"points": shown, "dynamic_points": shown, "flow": shown, "weights": shown, "moving_mask": 10}


def test_a_forecast_is_made_while_somebody_subscribes() -> None:
    wanted = {"odom"}
    rig = Rig(inputs=("image", "camera_info"), wanted=wanted.__contains__)
    rig.tf()
    rig.info()
    for i in range(2):
        rig.image(i * STEP)
    assert "forecast" not in rig.topics()
    wanted.add("forecast")
    rig.image(2 * STEP)
    (forecast,) = (message for topic, message in rig.out if topic == "forecast")
    base = forecast.markers[0]
    assert (base.ns, base.header.frame_id, stamp_of(base.header)) == ("base", "odom", 2 * STEP)
    step = EXTRINSIC @ MOTION @ se3.inverse(EXTRINSIC)
    after_two_seconds = (torch.linalg.matrix_power(step, 22))[:3, 3]
    end = base.points[-1]
    torch.testing.assert_close(tangent(end.x, end.y, end.z), after_two_seconds, atol=0.01, rtol=0)
    wanted.remove("forecast")
    rig.out.clear()
    rig.image(3 * STEP)
    assert "forecast" not in rig.topics()


def test_the_map_is_saved_as_it_was_when_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("open3d", exc_type=(ImportError, OSError))
    values = {"map.voxel": 0.5, "map.file": str(tmp_path / "map.ply"), "cloud.stride": 1}
    rig = Rig(values, inputs=("image", "camera_info"))
    rig.odometry.properties = property_set()
    rig.tf()
    rig.info()
    rig.image(0)
    empty = rig.session.save_map()
    with pytest.raises(FlowodomError, match="the map is empty"):
        empty.result()
    for i in range(1, 6):
        rig.image(i * STEP)
    saved = rig.session.save_map()
    rig.image(6 * STEP)
    (file,) = saved.result()
    assert file == tmp_path / "map.ply"
    assert file.read_bytes().startswith(b"ply")


def test_without_a_map_there_is_none_to_save() -> None:
    with pytest.raises(ConfigError, match=r"set map\.voxel"):
        Rig().session.save_map()


def test_the_path_stays_bounded() -> None:
    rig = Rig({"path.length": 20, "path.rate": 10.0}, inputs=("image", "camera_info"))
    rig.tf()
    rig.info()
    for i in range(200):
        rig.image(i * STEP)
    paths = [message for topic, message in rig.out if topic == "path"]
    assert len(paths) <= 20
    assert max(len(path.poses) for path in paths) <= 20
    stamps = [stamp_of(pose.header) for pose in paths[-1].poses]
    assert stamps[0] == 0
    assert stamps[-1] >= 170 * STEP


def test_who_comes_late_gets_the_whole_path_though_no_more_images_come() -> None:
    wanted: set[str] = set()
    rig = Rig(inputs=("image", "camera_info"), wanted=wanted.__contains__)
    rig.tf()
    rig.info()
    for i in range(30):
        rig.image(i * STEP)
        rig.session.tick(SECOND + i * STEP)
    wanted.add("path")
    assert rig.session.tick(SECOND + 30 * STEP) == []
    ((topic, path),) = rig.session.tick(10 * SECOND)
    assert (topic, len(path.poses)) == ("path", 15)
    assert rig.session.tick(20 * SECOND) == []


def test_a_missing_topic_is_named_by_its_real_name_after_five_seconds() -> None:
    values = {"depth.source": "sensor"}
    rig = Rig(
        values, resolve={"image": "/front/image", "camera_info": "/front/camera_info", "depth": "/front/depth"}.get
    )
    assert "front" not in rig.session.tick(SECOND)[0][1].status[0].message
    message = rig.session.tick(7 * SECOND)[0][1].status[0].message
    assert "/front/image" in message
    assert "/front/depth" in message
    rig.info()
    assert "/front/camera_info" not in rig.session.tick(9 * SECOND)[0][1].status[0].message


def test_a_live_rig_is_a_stereo_pair_once_no_depth_has_come() -> None:
    rig = Rig(inputs=None)
    rig.tf()
    rig.info()
    rig.feed("right_info", make.camera_info(0, "camera", CAMERA, baseline=0.1))
    for i in range(8):
        rig.image(i * STEP)
        rig.feed("right", make.image(i * STEP, "camera", np.full((24, 32), 90, dtype=np.uint8)))
    rig.session.flush()
    assert rig.stamps() == [i * STEP for i in range(8)]
    assert all(f.other is not None and float(f.other.place[0]) == pytest.approx(0.1) for f in rig.odometry.frames)
    assert rig.session.status().message == "TRACKING"


def test_the_right_camera_is_found_by_tf_where_its_calibration_is_silent() -> None:
    rig = Rig(inputs=("image", "camera_info", "right", "right_info", "/tf", "/tf_static"))
    rig.tf()
    rig.tf("camera", "right", se3.exp(tangent(0.2, 0.0, 0.0, 0.0, 0.0, 0.0)))
    rig.info()
    rig.feed("right_info", make.camera_info(0, "right", CAMERA))
    rig.image(0)
    rig.feed("right", make.image(0, "right", np.full((24, 32), 90, dtype=np.uint8)))
    assert rig.odometry.frames[0].other is not None
    torch.testing.assert_close(rig.odometry.frames[0].other.place, tangent(0.2, 0.0, 0.0))
    assert len(rig.odom()) == 1


def test_a_paused_session_takes_no_right_images_either() -> None:
    rig = Rig(inputs=("image", "camera_info", "right", "right_info", "/tf", "/tf_static"))
    rig.tf()
    rig.info()
    rig.feed("right_info", make.camera_info(0, "camera", CAMERA, baseline=0.1))
    rig.session.pause()
    rig.feed("right", make.image(0, "camera", np.full((24, 32), 90, dtype=np.uint8)))
    rig.session.resume()
    rig.image(0)
    rig.session.flush()
    assert rig.odometry.frames[0].other is None


def test_nothing_is_missed_when_a_simulated_clock_begins() -> None:
    rig = Rig()
    rig.session.tick(0)
    assert rig.session.tick(1_700_000_000 * SECOND)[0][1].status[0].level == 0


def test_a_simulated_clock_that_does_not_come_is_named_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    monkeypatch.setattr("time.monotonic_ns", itertools.count(SECOND, SECOND // 2).__next__)
    out = [rig.session.tick(0) for _ in range(20)]
    assert sum(map(len, out)) == 10
    assert "/clock" not in out[0][0][1].status[0].message
    assert "nothing comes on /clock" in out[-2][0][1].status[0].message
    assert "/clock" not in rig.session.tick(1_700_000_000 * SECOND)[0][1].status[0].message


def status_at(rig: Rig, now: int) -> Any:
    return next(message for topic, message in rig.session.tick(now) if topic == "/diagnostics").status[0]


def test_a_camera_that_falls_silent_is_no_longer_said_to_be_tracked(mono: Rig) -> None:
    for i in range(60):
        mono.image(i * STEP)
        mono.session.tick(SECOND + i * STEP)
    assert mono.session.status().message == "TRACKING"
    status = status_at(mono, 20 * SECOND)
    assert status.level == 1
    assert status.message == "WAITING; no message on image for 13 s"
    assert not {"rate [Hz]", "latency [ms]"} & {value.key for value in status.values}
    mono.image(61 * STEP)
    assert status_at(mono, 21 * SECOND).message == "TRACKING"


def test_images_are_not_blamed_for_coming_late(mono: Rig) -> None:
    mono.session.tick(SECOND)
    assert "no message on image for 19 s" in status_at(mono, 20 * SECOND).message
    mono.feed("image", make.image(0, "camera", np.zeros((9, 9), dtype=np.uint8)), 20 * SECOND + 1)
    assert status_at(mono, 24 * SECOND).level == 0


def test_without_a_pose_not_all_is_well(mono: Rig) -> None:
    mono.image(0)
    estimate = mono.session._estimate
    assert estimate is not None
    blank = dataclasses.replace(estimate, status=Status.INITIALIZING, pose=None, reason="the image shows nothing")
    mono.odometry.step = lambda *_, **__: blank  # type: ignore[method-assign,assignment]
    mono.image(STEP)
    status = mono.session.status()
    assert (status.level, status.message) == (1, "INITIALIZING: the image shows nothing")


def test_a_paused_session_is_not_blamed_for_using_no_image(mono: Rig) -> None:
    mono.image(0)
    mono.session.tick(SECOND)
    mono.session.pause()
    for i in range(1, 10):
        mono.image(i * SECOND)
        status = status_at(mono, (i + 1) * SECOND)
    assert (status.level, status.message) == (0, "PAUSED")


def test_images_that_repeat_their_stamp_are_said_to_be_of_no_use(mono: Rig) -> None:
    for i in range(10):
        mono.image(0)
        status = status_at(mono, (i + 1) * SECOND)
    assert status.level == 1
    assert status.message.startswith("WAITING; no image on image could be used for 9 s: an image repeats the stamp")


def test_images_whose_depth_is_never_near_are_said_to_be_of_no_use(rig: Rig) -> None:
    for i in range(10):
        rig.image(i * SECOND)
        rig.depth(i * SECOND + SECOND // 10)
        status = status_at(rig, (i + 1) * SECOND)
    assert rig.stamps() == []
    assert status.level == 1
    assert "could be used for 9 s: no depth within 0.02 s" in status.message
    assert "raise sync.tolerance" in status.message


def test_the_rate_is_that_of_late(mono: Rig) -> None:
    for i in range(20):
        mono.image(i * STEP)
    for i in range(20):
        mono.image(60 * SECOND + i * STEP // 2)
    assert mono.session.status().values["rate [Hz]"] == f"{2 * SECOND / STEP:.1f}"


def test_diagnostics_tell_how_late_poses_are_once_the_clock_runs() -> None:
    times = iter((0, 0, STEP * 5, STEP * 7))
    rig = Rig(inputs=("image", "camera_info", "/tf", "/tf_static"), clock=times.__next__)
    rig.tf()
    rig.info()
    for i in range(2):
        rig.image(i * STEP)
    assert "delay [ms]" not in rig.session.status().values
    for i in range(2, 4):
        rig.image(i * STEP)
    assert rig.session.status().values["delay [ms]"] == "350.0"


def test_diagnostics_are_in_the_name_of_the_host() -> None:
    assert Session().status().name == "flowodom: odometry"
    assert Session(name="front/odometry").status().name == "front/odometry: odometry"


def test_depth_that_may_be_left_out_is_not_missed() -> None:
    rig = Rig(inputs=("depth",))
    rig.session.tick(SECOND)
    assert rig.session.tick(7 * SECOND)[0][1].status[0].level == 0


def test_diagnostics_name_the_device_and_the_flow_method_that_were_chosen() -> None:
    session = Session(SessionConfig(device="cpu"))
    values = session.status().values
    assert (values["device"], values["flow"]) == ("cpu", "dis")
    session.configure(dataclasses.replace(SessionConfig(device="cpu"), publish_tf=False))
    assert session.status().values["flow"] == "dis"


def test_diagnostics_say_what_images_have_told(mono: Rig) -> None:
    mono.image(0)
    values = mono.session.status().values
    assert values["shutter"] == "rolling, 25 ms"
    assert values["uncertainty"] == "deviations 2.0 times those of the fits, by 7 looks back"
    mono.odometry.innovations = Innovations()
    assert "uncertainty" not in mono.session.status().values


def test_diagnostics_come_once_a_second(mono: Rig) -> None:
    times: Iterator[int] = iter(range(SECOND, 6 * SECOND, STEP))
    count = sum(topic == "/diagnostics" for now in times for topic, _ in mono.session.tick(now))
    assert count == 5


def test_the_observer_sees_every_frame_and_where_it_places_the_base() -> None:
    seen: list[Any] = []
    rig = Rig(inputs=("image", "camera_info"), on_estimate=lambda *arguments: seen.append(arguments))
    rig.tf()
    rig.info()
    rig.image(0)
    rig.image(STEP, value=255)
    frame, estimate, placement = seen[0]
    assert (frame.stamp, estimate.stamp) == (0, 0)
    torch.testing.assert_close(placement.extrinsic, EXTRINSIC)
    adjoint = se3.adjoint(EXTRINSIC)
    torch.testing.assert_close(placement.covariance, adjoint @ COVARIANCE @ adjoint.T)
    assert seen[1][2] is None


def test_two_parents_that_contradict_are_named_and_silence_the_pose(mono: Rig) -> None:
    mono.image(0)
    mono.tf("base_link", "mast", se3.identity())
    mono.tf("mast", "camera", se3.identity())
    mono.out.clear()
    mono.image(STEP)
    assert mono.topics() == []
    assert "contradicts itself" in mono.session.status().message


def test_once_the_second_parent_is_silent_for_a_while_the_pose_is_back(mono: Rig) -> None:
    def mast(stamp: int, child: str, *parents: str) -> None:
        for parent in parents:
            mono.feed("/tf", make.tf_message([make.transform(stamp, parent, child, se3.identity())]))

    for i in range(3):
        mast(i * STEP, "mast", "base_link")
        mast(i * STEP, "camera", "mast")
        mono.image(i * STEP)
    assert mono.topics() == []
    assert "camera has the parents base_link and mast" in mono.session.status().message
    for i in range(3, 120):
        mast(i * STEP, "lidar", "base_link")
        mono.image(i * STEP)
    assert stamp_of(mono.odom()[-1].header) == 119 * STEP
    assert mono.session.status().level == 0


def test_an_unknown_input_is_an_error(mono: Rig) -> None:
    with pytest.raises(MessageError, match="no input is called 'imgae'"):
        mono.feed("imgae", None)
