"""How a stereo pair is turned beside its calibration: what follows from it, and what its images tell of it."""

import dataclasses

import pytest
import torch

from flowodom.config import DepthConfig, OdometryConfig, override
from flowodom.depth.stereo import StereoDepth
from flowodom.flow.points import choose
from flowodom.frame import OtherEye
from flowodom.geometry import se3
from flowodom.odometry import Odometry, Status
from flowodom.registration.turn import Turn
from flowodom.registration.window import KeyframeWindow
from flowodom.worlds import Sensor, pinhole, sequence, straight, street

CAMERA = pinhole(320, 240, field_of_view=80.0)
BASELINE = 0.5
TURN = (0.004, -0.003, 0.002)
"""Pitch, yaw and roll of the rig that is rendered, radians."""


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def eye(motion):
    return OtherEye(torch.zeros(240, 320, dtype=torch.uint8).numpy(), CAMERA, motion)


PARALLEL = eye(se3.exp(vector(-BASELINE, 0, 0, 0, 0, 0)))
TURNED = eye(se3.exp(vector(-BASELINE, 0.03, 0.02, 0.02, -0.03, 0.04)))


def known(of, *angles):
    return dataclasses.replace(Turn.begin(of, 0.01), angles=vector(*angles))


def frames(count, turn=TURN):
    """Returns frames of a drive, of a rig that stands otherwise than its calibration says, and true poses."""
    sensor = Sensor(image_noise=1.0, depth=False, baseline=BASELINE, turn=turn, seed=3)
    path = straight(position=(0.0, 0.0, 1.65), speed=6.0)
    steps = sequence(street(3, movers=0), path, CAMERA, frames=count, rate=10.0, sensor=sensor)
    return [(step.frame, step.pose) for step in steps]


@pytest.fixture(scope="module")
def drive():
    return frames(14)


@pytest.mark.parametrize("of", [PARALLEL, TURNED], ids=["parallel", "turned"])
def test_a_turned_camera_stays_in_its_place(of):
    turned = known(of, 0.01, 0.02, -0.03).applied(of)
    assert torch.allclose(turned.place, of.place)
    angle = se3.log(turned.motion @ se3.inverse(of.motion))[3:].norm()
    assert float(angle) == pytest.approx(vector(0.01, 0.02, -0.03).norm().item(), rel=1e-6)


@pytest.mark.parametrize("of", [PARALLEL, TURNED], ids=["parallel", "turned"])
def test_yaw_makes_things_nearer_by_as_much_as_their_disparity_changes(of):
    yaw = 1e-5
    rays = CAMERA.rays(vector((20, 30), (300, 200), (160, 120)))
    far = 1e-4
    seen = known(of, 0, yaw, 0).applied(of)
    pixels = CAMERA.project((rays + far * -seen.place) @ seen.motion[:3, :3].T)
    # What the turned camera sees, taken for what the calibrated one would.
    a, b = CAMERA.epipolar_rows(rays @ of.motion[:3, :3].T, of.motion[:3, 3], pixels)
    measured = -(a * b).sum(-1) / (b * b).sum(-1)
    expected = far + yaw * Turn.begin(of, 0.01).nearer_by_yaw(rays)
    assert torch.allclose(measured, expected, rtol=0.02)


def test_rows_tell_pitch_and_roll_of_one_frame(drive):
    frame, _ = drive[0]
    turn = Turn.begin(frame.other, 0.01)
    source = StereoDepth(DepthConfig())
    for _ in range(2):
        field = source.observe(dataclasses.replace(frame, other=turn.applied(frame.other)))
        turn = turn.levelled(*field.tilt())
    pitch, yaw, roll = turn.angles.tolist()
    assert pitch == pytest.approx(TURN[0], abs=2e-4)
    assert roll == pytest.approx(TURN[2], abs=4e-4)
    assert yaw == 0


def test_rows_of_a_frame_that_shows_nothing_tell_nothing(drive):
    frame, _ = drive[0]
    field = StereoDepth(DepthConfig()).observe(frame)
    blank = dataclasses.replace(frame, image=frame.image * 0, other=frame.other)
    assert dataclasses.replace(field, frame=blank).tilt() == (0.0, 0.0)


def test_single_points_of_a_levelled_pair_are_found_again(drive):
    frame, _ = drive[0]
    found = {}
    for name, turn in {"as calibrated": Turn.begin(frame.other, 0.01), "as it is": known(frame.other, *TURN)}.items():
        field = StereoDepth(DepthConfig(disparity=0.15)).observe(
            dataclasses.replace(frame, other=turn.applied(frame.other))
        )
        _, variance = field.of_points(CAMERA, choose(frame.grey, 300))
        found[name] = int((variance < (0.5 / CAMERA.fx / BASELINE) ** 2).sum())
    assert found["as it is"] > 1.3 * found["as calibrated"]


def exact_window(yaw):
    """Returns a window of a walk through a cloud, whose depths are measured by a pair that yaws."""
    turn = Turn.begin(PARALLEL, 0.02)
    window = KeyframeWindow(CAMERA, size=5, metric=True)
    generator = torch.Generator().manual_seed(5)
    cloud = CAMERA.unproject(
        torch.rand(200, 2, generator=generator, dtype=torch.float64) * vector(180, 120) + vector(70, 60),
        4 + 26 * torch.rand(200, generator=generator, dtype=torch.float64),
    )
    none, every = torch.zeros(0, 2, dtype=torch.float64), torch.ones(len(cloud), dtype=torch.bool)
    for k in range(4):
        pose = se3.exp(vector(0.1 * k, 0.02 * k, 0.4 * k, 0, 0.01 * k, 0))
        seen = se3.act(se3.inverse(pose), cloud)
        pixels = CAMERA.project(seen)
        rho = 1 / seen[:, 2] + yaw * turn.nearer_by_yaw(CAMERA.rays(pixels))
        measured, nothing = (pixels, rho, torch.full_like(rho, 1e-6)), (none, none[:, 0], none[:, 0])
        fresh, again = (measured, nothing) if k == 0 else (nothing, measured)
        window.add(
            window.poses[-1] if k else pose,
            observed=every if k else every[:0],
            pixels=again[0],
            noise=0.15**2 * torch.eye(2, dtype=torch.float64).expand(len(again[0]), 2, 2),
            places=again[0],
            seen_rho=again[1],
            seen_variance=again[2],
            fresh=fresh[0],
            fresh_places=fresh[0],
            fresh_rho=fresh[1],
            fresh_variance=fresh[2],
        )
    return window, turn


def test_the_window_tells_yaw_by_how_points_move():
    window, turn = exact_window(0.005)
    learned = window.optimise(max_iterations=30, turn=turn)
    assert learned.angles.tolist() == pytest.approx([0, 0.005, 0], abs=1e-5)
    assert 0 < learned.yaw_variance < 1e-2 * turn.yaw_variance
    assert float(window.poses[-1][:3, 3].norm()) == pytest.approx(vector(0.3, 0.06, 1.2).norm().item(), rel=2e-3)
    # What it holds was measured by what is known now.
    again = window.optimise(max_iterations=30, turn=learned)
    assert again.angles.tolist() == pytest.approx(learned.angles.tolist(), abs=1e-5)


def test_a_window_whose_depths_no_pair_measures_leaves_it_alone():
    window, _ = exact_window(0.0)
    assert window.optimise(max_iterations=5) is None


def test_a_camera_that_stands_still_tells_nothing_of_yaw():
    turn = Turn.begin(PARALLEL, 0.002)
    window = KeyframeWindow(CAMERA, size=5, metric=True)
    assert window.optimise(max_iterations=5, turn=turn) is turn


def test_lengths_are_as_unsure_as_yaw():
    turn = Turn.begin(PARALLEL, 0.002)
    # One radian is 1 / baseline of inverse depth: 0.002 rad are 4 % of 0.1 1/m.
    assert turn.unit_deviation(vector(0.05, 0.1, 0.9)) == pytest.approx(0.04, rel=1e-3)


def test_what_is_known_is_said_in_words():
    turn = known(PARALLEL, 0.001, -0.002, 0.0).learn(0.0, 1e-10)
    assert turn.verdict == "yaw -0.115 ± 0.002, pitch 0.057, roll 0.000 deg"


def test_a_drive_of_a_turned_pair_is_as_long_as_it_is(drive):
    told, true = {}, [pose for _, pose in drive]
    for deviation in (0.0, 0.002):
        odometry = Odometry(override(OdometryConfig(), {"depth.turn_deviation": str(deviation)}))
        last = [odometry.step(frame) for frame, _ in drive][-1]
        assert last.status is Status.TRACKING
        told[deviation] = float(last.pose[:3, 3].norm())
        if deviation:
            assert odometry.turn.angles.tolist() == pytest.approx(TURN, abs=4e-4)
            assert last.scale_deviation < 0.01
            odometry.reset()
            odometry.step(drive[-1][0])
            assert odometry.turn.angles.tolist() == pytest.approx(TURN, abs=6e-4)
        else:
            assert odometry.turn is None
    way = float((true[-1][:3, 3] - true[0][:3, 3]).norm())
    assert told[0.002] == pytest.approx(way, rel=0.01)
    assert abs(told[0.0] - way) > 0.02 * way


def test_a_rig_that_is_mounted_anew_begins_a_new_segment(drive):
    odometry = Odometry()
    for frame, _ in drive[:3]:
        before = odometry.step(frame)
    moved = se3.exp(vector(0, 0, 0, 0, 0.01, 0)) @ drive[3][0].other.motion
    frame = dataclasses.replace(drive[3][0], other=dataclasses.replace(drive[3][0].other, motion=moved))
    after = odometry.step(frame)
    assert (before.segment, after.segment) == (0, 1)
    assert torch.equal(odometry.turn.eye.motion, moved)
