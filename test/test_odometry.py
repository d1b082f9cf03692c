"""The odometry on short procedural clips, whose truth is exact."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from flowodom.config import OdometryConfig, override
from flowodom.depth import InverseDepth
from flowodom.depth.fusion import FusedDepth
from flowodom.frame import Frame
from flowodom.geometry import se3
from flowodom.odometry import Odometry, Status, resolve_device
from flowodom.registration.ground import ground_height
from flowodom.registration.motion_fit import MotionFit
from flowodom.tracking import Tracker
from flowodom.unit import Scale
from flowodom.worlds import Sensor, hand_held, pinhole, room, rotation, sequence, straight, street

QVGA = pinhole()
SMALL = pinhole(160, 120)
RATE = 15.0
HEIGHT = 1.65


@dataclass(frozen=True)
class Clip:
    """Frames and their true poses ``T_world_camera`` (N, 4, 4)."""

    frames: list[Frame]
    poses: Tensor


def clip(world, path, camera, frames, *, rate=RATE, depth=True, seed=0, readout=0.0):
    sensor = Sensor(image_noise=1.5, depth=depth, seed=seed, readout=readout)
    steps = list(sequence(world, path, camera, frames=frames, rate=rate, sensor=sensor))
    return Clip([s.frame for s in steps], torch.stack([s.pose for s in steps]))


@dataclass(frozen=True)
class Run:
    """What the odometry made of a clip.

    Attributes:
        estimates: One a frame.
        truth: (N, 4, 4) true poses seen from the first camera.
    """

    estimates: list
    truth: Tensor

    @property
    def poses(self):
        return torch.stack([e.pose for e in self.estimates])

    @property
    def errors(self):
        """(N, 6) right perturbations from the estimated to the true poses."""
        return se3.log(se3.inverse(self.poses) @ self.truth)

    @property
    def drift(self):
        """Distance between the last positions, over the length of the path."""
        steps = (self.truth[1:, :3, 3] - self.truth[:-1, :3, 3]).norm(dim=-1)
        return float((self.poses - self.truth)[-1, :3, 3].norm() / steps.sum())

    def steps(self):
        """Returns estimated and true motions from frame to frame, (N - 1, 4, 4) each."""
        found, true = self.poses, self.truth
        return se3.inverse(found[:-1]) @ found[1:], se3.inverse(true[:-1]) @ true[1:]


def follow(frames, config=None):
    odometry = Odometry(config)
    return [odometry.step(frame) for frame in frames]


def run(clip, config=None):
    return Run(follow(clip.frames, config), se3.inverse(clip.poses[0]) @ clip.poses)


def blind(clip):
    """Returns a clip as a single camera sees it."""
    return Clip([replace(f, depth=None) for f in clip.frames], clip.poses)


@pytest.fixture(scope="module")
def calm():
    """Three clips of a camera in a hand in a room where nothing moves."""
    return [run(clip(room(s, movers=0), hand_held(s), QVGA, 28, seed=s)) for s in (1, 2, 3)]


@pytest.fixture(scope="module")
def turning():
    return clip(room(2, movers=0), rotation(2), QVGA, 35, rate=30.0)


@pytest.fixture(scope="module")
def short():
    """A small clip for what need not be accurate."""
    return clip(room(4, movers=0, texels=256), hand_held(4), SMALL, 24, rate=30.0)


@pytest.fixture(scope="module")
def lane():
    path = straight(position=(0.0, 0.0, HEIGHT), speed=8.0)
    return clip(street(2, texels=256), path, pinhole(480, 180, field_of_view=80.0), 30, rate=10.0, depth=False)


def wheeled(clip, wheels):
    """Follows a clip with what wheels say of each motion since the last tracked frame, ``wheels`` of the true one."""
    odometry, estimates, last = Odometry(), [], None
    for frame, pose in zip(clip.frames, clip.poses, strict=True):
        guess = None if last is None else wheels(se3.inverse(last) @ pose)
        estimates.append(odometry.step(frame, guess=guess))
        last = pose if estimates[-1].status is Status.TRACKING else last
    return Run(estimates, se3.inverse(clip.poses[0]) @ clip.poses)


@pytest.fixture(scope="module")
def leaping():
    """At two frames a second the camera turns by up to 20 degrees from one to the next."""
    return clip(room(2, movers=0), hand_held(2), QVGA, 10, rate=2.0)


def skewed(motion):
    return motion @ se3.exp(torch.tensor([0.5, -0.4, 0.3, 0.2, -0.3, 0.25], dtype=torch.float64))


def test_a_camera_that_changes_its_exposure_keeps_its_way(short):
    gains = 1 + 0.3 * np.sin(0.7 * np.arange(len(short.frames)))
    exposed = [
        replace(f, image=np.clip(f.image * gain, 0, 255).astype(np.uint8))
        for f, gain in zip(short.frames, gains, strict=True)
    ]
    steady, changing = run(short), run(Clip(exposed, short.poses))
    assert (changing.poses[:, :3, 3] - steady.poses[:, :3, 3]).norm(dim=-1).max() < 0.004


@pytest.fixture
def featureless(monkeypatch):
    """Features tell nothing: a scene of blurred or repeated things."""
    none = torch.zeros(0, 2, dtype=torch.float64)
    for where in ("odometry", "tracking"):
        monkeypatch.setattr(f"flowodom.{where}.match", lambda *images: (none, none))


def test_features_find_what_flow_loses(leaping):
    found = run(leaping)
    assert all(e.status is Status.TRACKING for e in found.estimates)
    assert found.errors[:, :3].norm(dim=-1).max() < 0.01


def test_frames_that_are_missing_cost_nothing(turning):
    # Up to a fifth of a second: the camera turns by 6 degrees meanwhile.
    kept = [n for n in range(len(turning.frames)) if n % 9 < 4]
    gaps = run(Clip([turning.frames[n] for n in kept], turning.poses[kept]))
    assert all(e.status is Status.TRACKING for e in gaps.estimates)
    assert gaps.errors[:, 3:].norm(dim=-1).max() < math.radians(0.2)


@pytest.mark.usefixtures("featureless")
def test_a_right_guess_finds_what_flow_alone_loses(leaping):
    alone, helped = follow(leaping.frames), wheeled(leaping, lambda motion: motion)
    assert sum(e.status is Status.LOST for e in alone) >= 3
    assert all(e.status is Status.TRACKING for e in helped.estimates)
    assert helped.errors[:, :3].norm(dim=-1).max() < 0.015


@pytest.mark.usefixtures("featureless")
def test_a_wrong_guess_finds_nothing_that_flow_alone_loses(leaping):
    alone, misled = follow(leaping.frames), wheeled(leaping, skewed).estimates
    lost = [[e.status is Status.LOST for e in estimates] for estimates in (alone, misled)]
    assert sum(lost[1]) >= sum(lost[0])


@pytest.mark.parametrize("wheels", [lambda motion: motion, skewed], ids=["right", "wrong"])
def test_where_flow_suffices_a_guess_does_not_change_the_pose(short, wheels):
    alone, guessed = run(short), wheeled(short, wheels)
    assert (guessed.poses[:, :3, 3] - alone.poses[:, :3, 3]).norm(dim=-1).max() < 0.005
    assert guessed.drift < alone.drift + 0.003


def test_of_a_guess_in_metres_only_the_turn_counts_where_the_unit_is_none(lane):
    alone, guessed = run(lane), wheeled(lane, skewed)
    assert [e.status for e in guessed.estimates] == [e.status for e in alone.estimates]


def test_drift_is_under_half_a_percent_of_the_path(calm):
    assert sum(r.drift for r in calm) / len(calm) < 0.005


def test_covariance_holds_the_true_error_and_is_not_far_too_wide(calm):
    errors = torch.cat([r.errors[1:] for r in calm]).abs()
    sigma = torch.stack([e.covariance.diagonal().sqrt() for r in calm for e in r.estimates[1:]])
    assert (errors <= 3 * sigma).all(-1).double().mean() >= 0.95
    # For a Gaussian the median of error over sigma is 0.674.
    assert (errors / sigma).median() > 0.674 / 5


def test_covariance_of_the_motion_holds_its_error(calm):
    errors, sigma = [], []
    for r in calm:
        found, true = r.steps()
        errors.append(se3.log(se3.inverse(found) @ true).abs())
        sigma += [e.motion_covariance.diagonal().sqrt() for e in r.estimates[1:]]
    assert (torch.cat(errors) <= 3 * torch.stack(sigma)).all(-1).double().mean() >= 0.95


def test_a_wild_proposal_does_not_lead_away_from_what_is_expected(short, monkeypatch):
    def aside(self, matches, expected):
        return se3.exp(torch.tensor((1.0, 0.0, -3.0, 0.0, 0.3, 0.3), dtype=torch.float64)) @ expected[0]

    usual = follow(short.frames)
    monkeypatch.setattr(MotionFit, "propose", aside)
    estimates = follow(short.frames)
    assert all(e.status is Status.TRACKING for e in estimates)
    assert se3.log(se3.inverse(estimates[-1].pose) @ usual[-1].pose).norm() < 5e-3


def test_motion_joins_one_pose_to_the_next(calm):
    for before, after in zip(calm[0].estimates[:-1], calm[0].estimates[1:], strict=True):
        # The window moves keyframes a little after their pose was given out.
        torch.testing.assert_close(before.pose @ after.motion, after.pose, atol=5e-3, rtol=0)
        assert after.interval == pytest.approx(1 / RATE, abs=1e-6)


def test_every_frame_with_depth_is_tracked_in_metres(calm):
    for r in calm:
        assert all(e.status is Status.TRACKING and e.scale is Scale.SENSOR and e.reason == "" for e in r.estimates)
        assert {e.segment for e in r.estimates} == {0}
        assert r.estimates[0].keyframe
        torch.testing.assert_close(r.estimates[0].pose, se3.identity())
        assert r.estimates[0].motion is None
        assert r.estimates[0].properties is None
        assert all(0 < e.inliers <= e.matches for e in r.estimates[1:])


def test_covariances_are_symmetric_positive_and_grow(calm):
    for e in calm[0].estimates[1:]:
        for covariance in (e.covariance, e.motion_covariance):
            torch.testing.assert_close(covariance, covariance.T)
            assert torch.linalg.eigvalsh(covariance).min() > 0
    traces = [float(e.covariance[:3, :3].trace()) for e in calm[0].estimates]
    assert traces[-1] > traces[5] > traces[0]


def test_properties_are_lifted_when_asked_for(calm):
    last = calm[0].estimates[-1]
    found = last.properties
    assert found is last.properties
    assert found.weight.shape == (found.camera.height, found.camera.width)
    known = found.weight > 0
    assert known.double().mean() > 0.5
    # Nothing moves in this room.
    assert found.residual[known].norm(dim=-1).median() < 0.01
    assert found.weight[known].median() > 0.7


def test_small_work_keeps_to_one_thread_and_leaves_the_process_its_own(short, monkeypatch):
    before, inside = torch.get_num_threads(), []
    track, read = Tracker.track, InverseDepth.at
    monkeypatch.setattr(Tracker, "track", lambda *a, **k: (inside.append(torch.get_num_threads()), track(*a, **k))[1])
    monkeypatch.setattr(InverseDepth, "at", lambda *a: (inside.append(torch.get_num_threads()), read(*a))[1])
    torch.set_num_threads(2)
    try:
        odometry = Odometry()
        for frame in short.frames[:3]:
            estimate = odometry.step(frame)
        assert estimate.properties is not None
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert len(inside) > 4
    assert set(inside) == {1}


def test_a_mover_over_a_quarter_of_the_image_changes_little(calm):
    drifts = []
    for s in (1, 2, 3):
        path = hand_held(s)
        drifts.append(run(clip(room(s, coverage=0.25, path=path), path, QVGA, 28, seed=s)).drift)
    # Not less than what drift may be is asked for where there is next to none.
    assert sum(drifts) < 1.5 * max(sum(r.drift for r in calm), 3 * 0.002)


def test_a_first_pair_is_not_a_compromise_with_a_slow_mover():
    path = hand_held(1)
    pair = run(clip(room(1, coverage=0.25, path=path), path, QVGA, 2, rate=30.0, seed=1))
    assert pair.errors[1, :3].norm() < 5e-3


def test_pure_rotation_is_tracked_without_inventing_translation(turning):
    r = run(turning)
    found, true = r.steps()
    assert se3.log(se3.inverse(found) @ true)[:, 3:].norm(dim=-1).rad2deg().max() < 0.05
    assert found[:, :3, 3].norm(dim=-1).max() < 1e-3


@pytest.mark.parametrize("every", [2, 4])
def test_depth_that_is_known_at_some_pixels_only_serves_as_well(short, every):
    def sampled(depth):
        few = np.full_like(depth, np.nan)
        few[::every, ::every] = depth[::every, ::every]
        return few

    few = run(Clip([replace(f, depth=sampled(f.depth)) for f in short.frames], short.poses))
    assert all(e.status is Status.TRACKING for e in few.estimates)
    assert few.drift < 2 * run(short).drift + 0.002


def test_a_single_camera_tracks_pure_rotation_too(turning):
    r = run(blind(turning))
    assert all(e.status is Status.TRACKING for e in r.estimates)
    found, true = r.steps()
    assert se3.log(se3.inverse(found) @ true)[:, 3:].norm(dim=-1).rad2deg().max() < 0.05
    assert found[:, :3, 3].abs().max() == 0
    assert {e.scale for e in r.estimates} == {Scale.UNKNOWN}


def test_what_is_not_told_of_a_single_cameras_way_ends_with_its_start(turning):
    hand, turns = hand_held(7, velocity=(0.4, 0.3, 0.0)), 0.6

    def path(time):
        turn = torch.tensor((0.0, 0.8 * max(turns - time, 0.0), 0.0), dtype=torch.float64)
        return hand(max(time - turns, 0.0)) @ se3.matrix(se3.so3_exp(turn), torch.zeros(3, dtype=torch.float64))

    moving = clip(room(7, movers=0), path, QVGA, 50, rate=30.0, depth=False)
    estimates = follow(moving.frames)
    unsure = [float(e.covariance[:3, :3].trace()) for e in estimates if e.pose is not None]
    assert max(unsure) > 1e6
    assert estimates[-1].scale is Scale.FIRST_BASELINE
    assert unsure[-1] < 1.0

    odometry = Odometry()
    for frame in blind(turning).frames[:6]:
        held = odometry.step(frame)
    odometry.reset()
    after = odometry.step(blind(turning).frames[6])
    assert float(held.covariance[:3, :3].trace()) > 1e6
    assert float(after.covariance[:3, :3].trace()) < 1e-6


def test_a_single_camera_starts_with_its_first_baseline_as_the_unit(lane):
    estimates = follow(lane.frames[:16])
    waiting = [e for e in estimates if e.status is Status.INITIALIZING]
    assert all(e.pose is None and e.reason for e in waiting)
    assert estimates[-1].status is Status.TRACKING
    assert estimates[-1].scale is Scale.FIRST_BASELINE
    first = next(k for k, e in enumerate(estimates) if e.scale is Scale.FIRST_BASELINE)
    assert float(estimates[first].pose[:3, 3].norm()) == pytest.approx(1, rel=0.02)
    truth = se3.inverse(lane.poses[0]) @ lane.poses
    unit = float(truth[first, :3, 3].norm())
    assert float(estimates[-1].pose[:3, 3].norm()) == pytest.approx(float(truth[15, :3, 3].norm()) / unit, rel=0.05)


def test_a_single_camera_in_the_hand_starts_soon_and_keeps_its_shape():
    scene = blind(clip(room(1, movers=0), hand_held(1), QVGA, 36, seed=1))
    estimates = follow(scene.frames)
    first = next(k for k, e in enumerate(estimates) if e.scale is Scale.FIRST_BASELINE)
    assert first < 20
    since = estimates[first:]
    assert all(e.status is Status.TRACKING for e in since)
    found = torch.stack([e.pose for e in since])
    found = se3.inverse(found[0]) @ found
    true = se3.inverse(scene.poses[first]) @ scene.poses[first:]
    places, targets = found[:, :3, 3], true[:, :3, 3]
    unit = float((places * targets).sum() / places.square().sum())
    length = float((targets[1:] - targets[:-1]).norm(dim=-1).sum())
    assert (unit * places - targets).norm(dim=-1).max() < 0.03 * length
    assert se3.so3_log(found[:, :3, :3].mT @ true[:, :3, :3]).norm(dim=-1).max() < math.radians(0.5)


def test_a_single_camera_that_starts_knows_how_far_it_has_moved_since_it_last_waited():
    scene = blind(clip(room(2, movers=0), hand_held(2), QVGA, 40, rate=30.0, seed=2))
    estimates = follow(scene.frames)
    first = next(k for k, e in enumerate(estimates) if e.scale is Scale.FIRST_BASELINE)
    assert estimates[first - 1].status is Status.INITIALIZING
    began = estimates[first]
    unit = float((se3.inverse(scene.poses[0]) @ scene.poses[first])[:3, 3].norm())
    step = se3.inverse(scene.poses[first - 1]) @ scene.poses[first]
    assert began.interval == pytest.approx(1 / 30, rel=0.01)
    assert (unit * began.motion - step)[:3, 3].norm() < 0.2 * step[:3, 3].norm()
    assert se3.so3_log(began.motion[:3, :3].mT @ step[:3, :3]).norm() < math.radians(0.2)


def test_a_single_camera_does_not_start_from_a_view_that_showed_nothing():
    scene = blind(clip(room(2, movers=0), hand_held(2), QVGA, 40, rate=30.0, seed=2))
    first = next(k for k, e in enumerate(follow(scene.frames)) if e.scale is Scale.FIRST_BASELINE)
    odometry = Odometry()
    for frame in scene.frames[:first]:
        odometry.step(frame)
    odometry._tracker._places.fill_(torch.nan)
    after = [odometry.step(frame) for frame in scene.frames[first:]]
    assert after[0].status is Status.INITIALIZING
    assert after[0].reason
    assert after[0].pose is None


def test_camera_height_makes_a_single_camera_metric(lane):
    estimates = follow(lane.frames, OdometryConfig(camera_height=HEIGHT))
    metric = [k for k, e in enumerate(estimates) if e.scale is Scale.CAMERA_HEIGHT and e.pose is not None]
    assert metric[0] < 10
    assert metric[-1] == len(estimates) - 1
    first, last = metric[len(metric) // 3], metric[-1]
    found = (estimates[last].pose[:3, 3] - estimates[first].pose[:3, 3]).norm()
    true = (lane.poses[last][:3, 3] - lane.poses[first][:3, 3]).norm()
    assert float(found) == pytest.approx(float(true), rel=0.05)


def test_a_metre_that_is_told_by_the_cameras_height_is_as_unsure_in_the_covariance(lane):
    estimates = follow(lane.frames, OdometryConfig(camera_height=HEIGHT))
    last = estimates[-1]
    way = last.pose[:3, :3].T @ last.pose[:3, 3]
    along = way / way.norm()
    deviation = float((along @ last.covariance[:3, :3] @ along).sqrt())
    assert last.scale_deviation > 1e-3
    assert deviation > 0.8 * last.scale_deviation * float(way.norm())
    # Across the way the unit says nothing.
    across = torch.linalg.cross(along, torch.tensor((0.0, 1.0, 0.0), dtype=torch.float64))
    assert float((across @ last.covariance[:3, :3] @ across).sqrt()) < 0.5 * deviation


@pytest.mark.parametrize("seconds", [0.5, 5.0])
def test_after_a_loss_the_metre_is_as_unsure_in_the_covariance_as_before(lane, seconds):
    count, last = round(10 * seconds), lane.frames[-1].stamp
    dark = np.zeros_like(lane.frames[-1].image)
    night = [replace(lane.frames[-1], image=dark, stamp=last + (k + 1) * 100_000_000) for k in range(count)]
    back = [replace(f, stamp=night[-1].stamp + (k + 1) * 100_000_000) for k, f in enumerate(lane.frames[-3:])]
    estimates = follow([*lane.frames, *night, *back], OdometryConfig(camera_height=HEIGHT))
    assert all(e.pose is None for e in estimates[-3 - count : -3])
    for e in estimates[-3:]:
        assert e.status is Status.TRACKING
        assert e.segment == 0
        way = e.pose[:3, :3].T @ e.pose[:3, 3]
        assert float((way @ e.covariance[:3, :3] @ way).sqrt()) > 0.8 * e.scale_deviation * float(way.square().sum())


def test_a_height_that_is_another_planes_hardly_changes_the_unit(lane, monkeypatch):
    true = follow(lane.frames, OdometryConfig(camera_height=HEIGHT))
    heights = []

    def seen_wrong(*args):
        found = ground_height(*args)
        heights.append(found)
        # From the fifth on, two look at a kerb.
        return (2 * found[0], found[1]) if found is not None and len(heights) in (5, 6) else found

    monkeypatch.setattr("flowodom.unit.ground_height", seen_wrong)
    told = follow(lane.frames, OdometryConfig(camera_height=HEIGHT))
    assert len([height for height in heights if height is not None]) > 6
    lengths = [float((e[-1].pose[:3, 3] - e[len(e) // 3].pose[:3, 3]).norm()) for e in (true, told)]
    assert lengths[1] == pytest.approx(lengths[0], rel=0.03)


class Knowing:
    """Stands in for a trained field: the exact depth of every frame, in metres, an eighth too far."""

    def __init__(self, clip, scale_deviation=0.1):
        self.scale_deviation = scale_deviation
        self.depth = {frame.stamp: frame.depth for frame in clip.frames}

    def observe(self, frame):
        rho = torch.from_numpy(1 / self.depth[frame.stamp]) / 1.125
        return InverseDepth(frame.camera, rho, (0.1 * rho) ** 2)


def test_a_field_makes_a_single_camera_metric_and_says_how_well(short, monkeypatch):
    monkeypatch.setattr("flowodom.odometry.choose_depth", lambda *_, **__: FusedDepth(Knowing(short)))
    estimates = follow(blind(short).frames)
    last = estimates[-1]
    assert last.scale is Scale.LEARNED
    assert 0.1 < last.scale_deviation < 0.2
    # It holds from the very first step on.
    assert all(e.scale in (Scale.LEARNED, Scale.UNKNOWN) for e in estimates)
    true = (short.poses[-1][:3, 3] - short.poses[0][:3, 3]).norm()
    assert float(last.pose[:3, 3].norm()) == pytest.approx(1.125 * float(true), rel=0.08)


def test_a_field_that_does_not_know_metres_gives_none(short, monkeypatch):
    monkeypatch.setattr("flowodom.odometry.choose_depth", lambda *_, **__: FusedDepth(Knowing(short, 0.8)))
    last = follow(blind(short).frames)[-1]
    assert last.scale is Scale.FIRST_BASELINE
    assert last.scale_deviation is None


def black(frame):
    return replace(frame, image=np.zeros_like(frame.image), depth=np.full_like(frame.depth, np.nan))


def test_a_short_blackout_is_lost_and_found_again_without_a_pose_between(short):
    frames = [*short.frames[:6], *(black(f) for f in short.frames[6:9]), *short.frames[9:14]]
    estimates = follow(frames)
    for e in estimates[6:9]:
        assert e.status is Status.LOST
        assert e.reason
        assert e.pose is e.covariance is e.motion is e.properties is None
    assert estimates[-1].status is Status.TRACKING
    assert estimates[-1].segment == 0
    truth = se3.inverse(short.poses[0]) @ short.poses[13]
    assert se3.log(se3.inverse(estimates[-1].pose) @ truth)[:3].norm() < 0.02


@pytest.mark.usefixtures("featureless")
def test_a_long_blackout_starts_a_new_segment_at_the_last_trusted_pose(short):
    later = [replace(f, stamp=f.stamp + 1_500_000_000) for f in short.frames[12:]]
    dark = [replace(black(short.frames[6]), stamp=short.frames[6].stamp + k * 250_000_000) for k in range(6)]
    estimates = follow([*short.frames[:6], *dark, *later])
    assert all(e.pose is None for e in estimates[6:12])
    after = [e for e in estimates[12:] if e.pose is not None]
    assert len(after) >= len(later) - 2
    assert {e.segment for e in after} == {1}
    torch.testing.assert_close(after[0].pose, estimates[5].pose, atol=2e-3, rtol=0)
    # Nobody has seen where it went in the dark: as far as it would have at the speed with which it went in.
    gone = (later[0].stamp - short.frames[5].stamp) / (short.frames[5].stamp - short.frames[4].stamp)
    way, turn = (part.norm() * gone for part in se3.log(estimates[5].motion).reshape(2, 3))
    grown = (after[0].covariance - estimates[5].covariance).diagonal().clamp_min(0).sqrt()
    torch.testing.assert_close(grown[:3], way.expand(3), rtol=0.3, atol=0)
    torch.testing.assert_close(grown[3:], turn.expand(3), rtol=0.3, atol=0)
    # What is published as twist is as sure as ever.
    assert after[-1].motion_covariance.trace() < 1e-4


@pytest.mark.usefixtures("featureless")
@pytest.mark.parametrize(("shift", "inliers", "believed"), [(0.3, 40, False), (0.3, 60, True), (0.003, 40, True)])
@pytest.mark.parametrize("name", ["short", "lane"], ids=["depth", "one camera"])
def test_a_leap_is_believed_only_if_most_points_agree_on_it(request, monkeypatch, name, shift, inliers, believed):
    frames, track = request.getfixturevalue(name).frames[:14], Tracker.track

    def leaping(self, view, *args, **known):
        told = track(self, view, *args, **known)
        if view.frame is not frames[12]:
            return told
        usual = 1 / self.typical_rho
        aside = se3.matrix(torch.eye(3, dtype=torch.float64), torch.tensor((shift * usual, 0, 0), dtype=torch.float64))
        return replace(told, motion=told.motion @ aside, inliers=inliers, matches=100, sought=100)

    monkeypatch.setattr(Tracker, "track", leaping)
    estimates = follow(frames)
    assert estimates[11].status is estimates[13].status is Status.TRACKING
    assert (estimates[12].pose is not None) == believed
    assert ("leaps" in estimates[12].reason) != believed


def test_a_cut_to_elsewhere_is_never_believed(short):
    elsewhere = clip(room(9, movers=0, texels=256), hand_held(9), SMALL, 12, rate=10.0)
    start = short.frames[7].stamp
    cut = [replace(f, stamp=start + 33_333_333 + k * 100_000_000) for k, f in enumerate(elsewhere.frames)]
    estimates = follow([*short.frames[:8], *cut])
    assert estimates[8].status is Status.LOST
    believed = [e for e in estimates[8:] if e.pose is not None]
    assert all(e.segment == 1 for e in believed)
    assert estimates[-1].status is not Status.LOST
    for e in estimates[8:]:
        assert (e.pose is None) == (e.status is not Status.TRACKING)


def test_a_cut_costs_a_camera_that_sees_seldom_one_image(short):
    elsewhere = clip(room(9, movers=0, texels=256), hand_held(9), SMALL, 4, rate=30.0)
    start = short.frames[7].stamp
    cut = [replace(f, stamp=start + (k + 1) * 700_000_000) for k, f in enumerate(elsewhere.frames)]
    estimates = follow([*short.frames[:8], *cut])
    assert [e.status for e in estimates[7:]] == [Status.TRACKING, Status.LOST, *[Status.TRACKING] * 3]
    assert [e.segment for e in estimates[9:]] == [1, 1, 1]
    assert all(e.motion is not None for e in estimates[9:])


def test_constant_images_are_never_tracked(short):
    dull = [replace(f, image=np.full_like(f.image, 120)) for f in short.frames[:4]]
    for frames in (dull, [replace(f, depth=None) for f in dull]):
        estimates = follow(frames)
        assert all(e.pose is None and e.reason for e in estimates[1:])


def test_another_size_starts_a_new_segment_where_the_last_one_ended(short):
    other = clip(room(4, movers=0, texels=256), hand_held(4), pinhole(200, 150), 3, rate=30.0)
    moved = [replace(f, stamp=f.stamp + 1_000_000_000) for f in other.frames]
    estimates = follow([*short.frames[:4], *moved])
    assert [e.segment for e in estimates] == [0] * 4 + [1] * 3
    assert all(e.status is Status.TRACKING for e in estimates)
    torch.testing.assert_close(estimates[4].pose, estimates[3].pose, atol=2e-3, rtol=0)
    assert estimates[4].motion is None


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_without_valid_depth_in_the_first_frame_it_waits(short, value):
    frames = [replace(f, depth=np.full_like(f.depth, value)) for f in short.frames[:2]] + short.frames[2:6]
    estimates = follow(frames)
    for e in estimates[:2]:
        assert e.status is Status.INITIALIZING
        assert "depth" in e.reason
        assert e.pose is None
    assert all(e.status is Status.TRACKING for e in estimates[2:])


def test_frames_that_lack_depth_for_a_while_are_tracked_all_the_same(short):
    frames = [f if k % 3 == 0 else replace(f, depth=np.full_like(f.depth, np.nan)) for k, f in enumerate(short.frames)]
    r = Run(follow(frames), se3.inverse(short.poses[0]) @ short.poses)
    assert all(e.status is Status.TRACKING for e in r.estimates)
    assert r.errors[-1, :3].norm() < 0.02


@pytest.mark.parametrize("without", [None, np.nan], ids=["none", "invalid"])
def test_depth_that_comes_seldom_is_what_keyframes_are_made_of(short, without):
    def bare(frame):
        return replace(frame, depth=None if without is None else np.full_like(frame.depth, without))

    frames = [f if k in (0, 13) else bare(f) for k, f in enumerate(short.frames)]
    estimates = follow(frames)
    assert all(e.status is Status.TRACKING for e in estimates)
    assert estimates[13].keyframe
    truth = se3.inverse(short.poses[0]) @ short.poses[-1]
    assert se3.log(se3.inverse(estimates[-1].pose) @ truth)[:3].norm() < 0.02


@pytest.fixture(scope="module")
def pair():
    """What a stereo pair in a hand sees of a room."""
    sensor = Sensor(image_noise=1.5, depth=False, baseline=0.08, seed=8)
    steps = list(sequence(room(8, movers=0), hand_held(8), QVGA, frames=16, rate=RATE, sensor=sensor))
    return Clip([s.frame for s in steps], torch.stack([s.pose for s in steps]))


def test_a_stereo_pair_is_tracked_in_metres_from_the_first_frame_on(pair):
    r = Run(follow(pair.frames), se3.inverse(pair.poses[0]) @ pair.poses)
    assert all(e.status is Status.TRACKING and e.scale is Scale.STEREO for e in r.estimates)
    travelled = (pair.poses[1:, :3, 3] - pair.poses[:-1, :3, 3]).norm(dim=-1).sum()
    assert travelled > 0.3
    assert r.errors[-1, :3].norm() < 0.01 * travelled
    scale = (r.poses[:, :3, 3] * r.truth[:, :3, 3]).sum() / r.truth[:, :3, 3].square().sum()
    assert abs(scale - 1) < 0.01
    sigma = torch.stack([e.covariance.diagonal().sqrt() for e in r.estimates[1:]])
    assert (r.errors[1:].abs() <= 3 * sigma).all(-1).double().mean() > 0.8


def test_a_second_eye_that_opens_late_begins_a_segment_in_metres(pair):
    frames = [replace(f, other=None) if k < 2 else f for k, f in enumerate(pair.frames)]
    estimates = follow(frames)
    assert [e.segment for e in estimates] == [0] * 2 + [1] * (len(frames) - 2)
    assert all(e.status is Status.TRACKING and e.scale is Scale.STEREO for e in estimates[2:])


def test_a_second_eye_that_is_shut_for_a_while_costs_no_scale(pair):
    frames = [f if k % 3 == 0 else replace(f, other=None) for k, f in enumerate(pair.frames)]
    r = Run(follow(frames), se3.inverse(pair.poses[0]) @ pair.poses)
    assert all(e.scale is Scale.STEREO and e.segment == 0 for e in r.estimates)
    assert r.errors[-1, :3].norm() < 0.02


def test_a_second_eye_that_sees_nothing_alike_is_waited_for(pair):
    blank = [replace(f, other=replace(f.other, image=np.full_like(f.other.image, 90))) for f in pair.frames[:2]]
    estimates = follow([*blank, *pair.frames[2:5]])
    assert all(e.pose is None and "do not match" in e.reason for e in estimates[:2])
    assert all(e.scale is Scale.STEREO for e in estimates[2:])


def test_what_is_to_be_ignored_does_not_matter(short):
    ignore = np.zeros((120, 160), bool)
    ignore[70:, 40:120] = True
    garbage = np.random.default_rng(0)
    frames = []
    for f in short.frames[:8]:
        image = f.image.copy()
        image[ignore] = garbage.integers(0, 255, (int(ignore.sum()), 3))
        frames.append(replace(f, image=image, ignore=ignore))
    r = Run(follow(frames), se3.inverse(short.poses[0]) @ short.poses[:8])
    assert all(e.status is Status.TRACKING for e in r.estimates)
    assert r.errors[-1, :3].norm() < 0.01


@pytest.mark.usefixtures("featureless")
def test_reset_starts_anew_at_the_pose_that_is_given(short):
    odometry = Odometry()
    for frame in short.frames[:4]:
        last = odometry.step(frame)
    odometry.reset()
    after = odometry.step(short.frames[4])
    assert after.segment == 1
    torch.testing.assert_close(after.pose, last.pose, atol=2e-3, rtol=0)
    home = se3.exp(torch.tensor([1.0, 2, 3, 0.1, 0.2, 0.3], dtype=torch.float64))
    odometry.reset(home)
    after = odometry.step(short.frames[5])
    assert after.segment == 2
    torch.testing.assert_close(after.pose, home)
    assert (after.covariance == 0).all()


def test_the_same_frames_give_the_same_poses(short):
    one, two = follow(short.frames[:8]), follow(short.frames[:8])
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a.pose, b.pose, rtol=0, atol=0)


def test_depth_is_left_unused_where_the_filter_is_asked_for(short):
    estimates = follow(short.frames[:3], override(OdometryConfig(), {"depth.source": "filter"}))
    assert all(e.scale is not Scale.SENSOR for e in estimates)


def test_devices_are_found_by_name():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda")


@pytest.mark.parametrize(("seconds", "verdict"), [(0.0, "global"), (0.025, "rolling, 2")])
def test_whether_a_shutter_rolls_is_found_and_stays_known(seconds, verdict):
    scene = clip(room(2, movers=0), hand_held(2, tremor=3.0), SMALL, 24, rate=30.0, readout=seconds)
    odometry = Odometry()
    estimates = [odometry.step(frame) for frame in scene.frames]
    assert all(e.status is Status.TRACKING for e in estimates)
    errors = [
        se3.log(se3.inverse(e.pose) @ se3.inverse(scene.poses[0]) @ true)
        for e, true in zip(estimates, scene.poses, strict=True)
    ]
    # Also while it is not known yet: covariances own up to what a shutter may do.
    deviations = [e.covariance.diagonal().sqrt() for e in estimates[1:]]
    within = [bool((error.abs() < 3 * off).all()) for error, off in zip(errors[1:], deviations, strict=True)]
    assert sum(within) > 0.8 * len(within)
    error = errors[-1]
    assert float(error[:3].norm()) < 0.006
    assert float(error[3:].norm()) < math.radians(0.15)
    assert odometry.readout.verdict.startswith(verdict)
    for pose in (None, se3.identity()):
        odometry.reset(pose)
        odometry.step(replace(scene.frames[0], stamp=scene.frames[-1].stamp + 1))
        assert odometry.readout.verdict.startswith(verdict)
    wider = replace(scene.frames[0].camera, fx=0.9 * SMALL.fx, fy=0.9 * SMALL.fy)
    odometry.step(replace(scene.frames[0], stamp=scene.frames[-1].stamp + 2, camera=wider))
    assert odometry.readout.verdict == "not told"
