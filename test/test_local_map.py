"""Keyframes that lie behind: which are kept, which are seen again, and what they are worth to the odometry."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from flowodom.geometry import se3
from flowodom.local_map import CAPACITY, LEAST_POINTS, Keyframe, LocalMap
from flowodom.odometry import Odometry, Status
from flowodom.registration.covariance import compose, since
from flowodom.unit import Scale
from flowodom.worlds import Sensor, hand_held, pinhole, room, sequence

CAMERA = pinhole(320, 240)
SIGMA = torch.eye(6, dtype=torch.float64) * 1e-6


def keyframe(shift=(0.0, 0.0, 0.0), turn=(0.0, 0.0, 0.0), *, seed=0, points=200):
    """A keyframe of a wall 2 m away from the origin, with an image of its own."""
    random = np.random.default_rng(seed)
    pixels = torch.from_numpy(random.uniform((5, 5), (CAMERA.width - 6, CAMERA.height - 6), (points, 2)))
    pose = se3.exp(torch.tensor((*shift, *turn), dtype=torch.float64))
    rho = torch.full((points,), 0.5, dtype=torch.float64)
    grey = np.kron(random.integers(0, 255, (12, 16)), np.ones((20, 20))).astype(np.uint8)
    still = torch.zeros(3, dtype=torch.float64)
    return Keyframe(grey, pose, SIGMA, still, pixels, CAMERA.rays(pixels), rho, 1e-4 * rho)


def pose(*xi):
    return se3.exp(torch.tensor(xi, dtype=torch.float64))


def test_the_oldest_keyframe_that_saw_the_same_is_found():
    known = LocalMap(CAMERA, se3.identity())
    first, second, aside = keyframe(), keyframe((0.6, 0, 0), seed=1), keyframe(turn=(0, 1.5, 0), seed=2)
    for each in (first, second, aside):
        known.add(each)
    assert len(known) == 3
    assert known.seen_from(pose(0.1, 0, 0, 0, 0.05, 0))[0] is first
    assert known.seen_from(pose(0.55, 0, 0, 0, 0, 0))[0] is second
    assert known.seen_from(pose(0.1, 0, 0, 0, 1.45, 0))[0] is aside


@pytest.mark.parametrize(
    "xi", [(0, 0, 0, 0, 0.7, 0), (0.5, 0, 0, 0, 0, 0), (0, 0, 0.8, 0, 0, 0), (0, 0, 0, 0, 3.1, 0)], ids=str
)
def test_where_a_camera_sees_something_else_or_otherwise_no_keyframe_is_found(xi):
    known = LocalMap(CAMERA, se3.identity())
    known.add(keyframe())
    assert known.seen_from(pose(*xi)) == []


def test_an_empty_map_knows_nothing():
    known = LocalMap(CAMERA, se3.identity())
    assert known.seen_from(pose(0, 0, 0, 0, 0, 0)) == []
    assert known.alike(keyframe().grey, 3) == []


def test_what_tells_nothing_new_is_not_kept():
    known = LocalMap(CAMERA, se3.identity())
    known.add(keyframe())
    known.add(keyframe((0.02, 0, 0), seed=1))
    known.add(keyframe((2.0, 0, 0), seed=2, points=LEAST_POINTS - 1))
    assert len(known) == 1


def test_where_there_is_no_room_the_oldest_is_forgotten():
    large = CAMERA.resized(2560, 1920)
    room_for = int(CAPACITY / (large.width * large.height))
    known, keyframes = LocalMap(large, se3.identity()), [keyframe((0.8 * k, 0, 0), seed=k) for k in range(room_for + 1)]
    for each in keyframes:
        known.add(replace(each, places=8 * each.places))
    assert len(known) == room_for
    assert known.seen_from(keyframes[0].pose) == []
    assert known.seen_from(keyframes[1].pose) != []


def test_what_is_forgotten_is_not_found():
    known = LocalMap(CAMERA, se3.identity())
    first, second = keyframe(), keyframe((0.6, 0, 0), seed=1)
    known.add(first)
    known.add(second)
    known.forget(first)
    assert known.seen_from(first.pose) == []
    assert known.seen_from(second.pose)[0] is second


def test_in_another_unit_keyframes_stand_where_they_stood_and_know_other_lengths():
    known = LocalMap(CAMERA, se3.identity())
    known.add(keyframe())
    known.rescale(4.0)
    (found,) = known.alike(keyframe().grey, 1)
    torch.testing.assert_close(found.rho, torch.full_like(found.rho, 0.125))
    torch.testing.assert_close(found.variance, 1e-4 * keyframe().rho / 16)
    torch.testing.assert_close(found.pose, keyframe().pose)
    # What lies 8 units away is hardly moved by a step that was too long before.
    assert known.seen_from(pose(0.5, 0, 0, 0, 0, 0))[0] is found


def test_images_that_look_alike_come_first():
    known, keyframes = LocalMap(CAMERA, se3.identity()), [keyframe(turn=(0, 0.8 * k, 0), seed=k) for k in range(4)]
    for each in keyframes:
        known.add(each)
    darker = (0.5 * keyframes[2].grey + 20).astype(np.uint8)
    found = known.alike(np.roll(darker, 3, axis=1), 2)
    assert len(found) == 2
    assert found[0] is keyframes[2]


def test_inverse_depth_is_that_of_the_nearest_point():
    seen = keyframe(points=80)
    seen = replace(seen, rho=torch.arange(80, dtype=torch.float64))
    torch.testing.assert_close(seen.rho_near(seen.places[[7, 3]] + 0.1), torch.tensor([7.0, 3.0], dtype=torch.float64))
    assert seen.rho_near(torch.zeros(0, 2, dtype=torch.float64)).shape == (0,)


def test_what_was_lost_since_is_what_the_motion_has_added():
    random = torch.Generator().manual_seed(0)
    added = torch.randn(6, 6, generator=random, dtype=torch.float64)
    added = added @ added.T
    past, motion = pose(1, 2, 3, 0.3, 0.2, 0.1), pose(0.5, 0, 0.2, 0, 0.4, 0)
    now = compose(3 * SIGMA, motion, added)
    torch.testing.assert_close(since(now, past @ motion, 3 * SIGMA, past), added)


def test_nothing_was_lost_where_the_present_is_known_better():
    lost = since(
        SIGMA, pose(0, 0, 0, 0, 0, 0), torch.diag(torch.tensor([4, 1, 0.25, 1, 1, 1.0])) * SIGMA, pose(*[0] * 6)
    )
    torch.testing.assert_close(lost, torch.diag(torch.tensor([0, 0, 0.75, 0, 0, 0])) * SIGMA)


@pytest.fixture(scope="module")
def way():
    """A camera in a hand that goes along a room, seen by a depth camera: frames and poses (N, 4, 4)."""
    steps = list(
        sequence(room(5, movers=0), hand_held(5), CAMERA, frames=36, rate=10.0, sensor=Sensor(image_noise=1.5, seed=5))
    )
    return [s.frame for s in steps], torch.stack([s.pose for s in steps])


def laps(way, count):
    """The way, there and back again ``count`` times."""
    frames, poses = way
    order = [*range(len(frames)), *range(len(frames) - 2, 0, -1)] * count
    again = [replace(frames[k], stamp=n * 100_000_000) for n, k in enumerate([*order, 0])]
    return again, poses[[*order, 0]]


def follow(frames):
    odometry = Odometry()
    return [odometry.step(frame) for frame in frames]


def missed(estimate, truth):
    return se3.log(se3.inverse(estimate.pose) @ truth)


def test_drift_does_not_grow_where_the_same_is_seen_again(way, monkeypatch):
    frames, poses = laps(way, 2)
    found = follow(frames)
    assert all(e.status is Status.TRACKING for e in found)
    monkeypatch.setattr(LocalMap, "seen_from", lambda *_: [])
    alone = follow(frames)
    truth = se3.inverse(poses[0]) @ poses[-1]
    assert missed(found[-1], truth)[:3].norm() < 0.5 * missed(alone[-1], truth)[:3].norm()
    assert found[-1].covariance[:3, :3].trace() < 0.25 * alone[-1].covariance[:3, :3].trace()
    for each, truth in zip(found, se3.inverse(poses[0]) @ poses, strict=True):
        deviation = each.covariance.diagonal().sqrt()
        assert (missed(each, truth).abs() <= 3 * deviation + 1e-9).all()


def blurred(frame):
    return replace(frame, image=cv2.GaussianBlur(frame.image, (0, 0), 2.5))


def test_blurred_views_do_not_cost_what_is_remembered(way, monkeypatch):
    frames, poses = laps(way, 2)
    forth = len(way[0])
    # All of the first way back is blurred, and so are its keyframes; the second lap is sharp again.
    seen = [blurred(f) if forth <= n < len(frames) // 2 else f for n, f in enumerate(frames)]
    found = follow(seen)
    monkeypatch.setattr(LocalMap, "seen_from", lambda *_: [])
    alone = follow(seen)
    assert missed(found[-1], se3.inverse(poses[0]) @ poses[-1])[:3].norm() < 0.002
    assert found[-1].covariance[:3, :3].trace() < 0.25 * alone[-1].covariance[:3, :3].trace()


def test_no_pose_jumps_where_the_same_is_seen_again(way):
    frames, poses = laps(way, 2)
    found = follow(frames)
    motion = se3.inverse(torch.stack([e.pose for e in found[:-1]])) @ torch.stack([e.pose for e in found[1:]])
    truth = se3.inverse(poses[:-1]) @ poses[1:]
    jump = se3.log(se3.inverse(motion) @ truth)
    assert jump[:, :3].norm(dim=-1).max() < 0.008
    assert jump[:, 3:].norm(dim=-1).max() < 0.005


def test_the_unit_of_a_single_camera_stays_where_the_same_is_seen_again(way):
    frames, poses = laps(way, 3)
    found = follow([replace(f, depth=None) for f in frames])
    lap = (len(frames) - 1) // 3
    assert unit(found[-lap:], poses[-lap:]) == pytest.approx(unit(found[-3 * lap : -2 * lap], poses[:lap]), rel=0.03)


def unit(found, poses):
    """Lengths as estimated, over true ones, of the frames that were tracked."""
    paired = [(e.pose[:3, 3], p[:3, 3]) for e, p in zip(found, poses, strict=True) if e.pose is not None]
    ours, true = (torch.stack(side) for side in zip(*paired, strict=True))
    return float((ours - ours.mean(0)).norm() / (true - true.mean(0)).norm())


def dark(frame, stamp):
    depth = None if frame.depth is None else np.full_like(frame.depth, np.nan)
    return replace(frame, stamp=stamp, image=np.zeros_like(frame.image), depth=depth)


@pytest.mark.parametrize("seconds", [0.5, 5.0])
def test_after_darkness_a_place_that_was_seen_is_recognised(way, seconds):
    frames, poses = way
    count = round(10 * seconds)
    night = [dark(frames[0], frames[20].stamp + (k + 1) * 100_000_000) for k in range(count)]
    back = [replace(f, stamp=night[-1].stamp + (k + 1) * 100_000_000) for k, f in enumerate(frames[4:8])]
    found = follow([*frames[:21], *night, *back])
    assert all(e.pose is None for e in found[21 : 21 + count])
    for e, truth in zip(found[-4:], se3.inverse(poses[0]) @ poses[4:8], strict=True):
        assert e.status is Status.TRACKING
        assert e.segment == 0
        assert missed(e, truth)[:3].norm() < 0.01
        assert missed(e, truth)[3:].norm() < 0.005


@pytest.mark.parametrize("seconds", [0.5, 5.0])
def test_a_single_camera_that_recognises_a_place_goes_on_there_in_its_unit(way, seconds):
    frames, poses = way
    frames = [replace(frame, depth=None) for frame in frames]
    count = round(10 * seconds)
    night = [dark(frames[0], frames[20].stamp + (k + 1) * 100_000_000) for k in range(count)]
    order = [*range(14, 24)]
    back = [replace(frames[n], stamp=night[-1].stamp + (k + 1) * 100_000_000) for k, n in enumerate(order)]
    found = follow([*frames[:21], *night, *back])
    assert all(e.pose is None for e in found[21 : 21 + count])
    before, after = found[10:21], found[-len(order) :]
    scale = unit(before, poses[10:21])
    assert unit(after, poses[order]) == pytest.approx(scale, rel=0.03)
    home = se3.inverse(poses[14])
    for e, truth in zip(after, home @ poses[order], strict=True):
        assert e.status is Status.TRACKING
        assert e.segment == 0
        truth[:3, 3] *= scale
        since_then = se3.log(se3.inverse(se3.inverse(before[4].pose) @ e.pose) @ truth)
        assert since_then[:3].norm() < 0.01 * scale
        assert since_then[3:].norm() < 0.005


def test_where_a_single_camera_starts_anew_things_are_about_as_far_as_before(way, monkeypatch):
    monkeypatch.setattr(LocalMap, "alike", lambda *_: [])
    frames, poses = way
    frames = [replace(frame, depth=None) for frame in frames]
    night = [dark(frames[0], frames[17].stamp + (k + 1) * 100_000_000) for k in range(15)]
    later = [replace(f, stamp=night[-1].stamp + (k + 1) * 100_000_000) for k, f in enumerate(frames[17:])]
    found = follow([*frames[:18], *night, *later])
    pairs = zip(found[-len(later) :], poses[17:], strict=True)
    after = [(e, pose) for e, pose in pairs if e.scale is not Scale.UNKNOWN]
    assert {e.segment for e, _ in after} == {1}
    assert unit(*zip(*after, strict=True)) == pytest.approx(unit(found[10:18], poses[10:18]), rel=0.5)


@pytest.mark.parametrize("depth", [True, False], ids=["depth", "one camera"])
def test_the_noise_of_a_covered_lens_is_never_taken_for_a_view(way, depth):
    frames = [f if depth else replace(f, depth=None) for f in way[0]]
    random = np.random.default_rng(0)
    shape = frames[0].image.shape
    noise = [random.normal(20, 10, shape).clip(0, 255).astype(np.uint8) for _ in range(9)]
    covered = [replace(f, image=each) for f, each in zip(frames[20:29], noise, strict=True)]
    assert all(e.status is Status.LOST for e in follow([*frames[:20], *covered])[20:])


def test_how_far_a_single_camera_went_is_not_invented(way, monkeypatch):
    frames = [replace(f, depth=None) for f in way[0]]
    odometry = Odometry()
    for frame in frames[:16]:
        odometry.step(frame)
    monkeypatch.setattr(LocalMap, "alike", lambda *_: [])
    monkeypatch.setattr("flowodom.registration.refine.KNOWN", 0.0)
    estimate = odometry.step(frames[16])
    assert estimate.pose is None
    assert "only 0 of" in estimate.reason


def test_an_image_that_shows_nothing_is_no_place_to_start_from(way):
    frames, _ = way
    odometry = Odometry()
    first = odometry.step(replace(frames[0], image=np.zeros_like(frames[0].image)))
    assert first.status is Status.INITIALIZING
    assert first.pose is None
    assert "only 0 points" in first.reason
    assert odometry.step(frames[1]).status is Status.TRACKING


def test_after_a_pause_a_place_that_was_seen_is_recognised(way):
    frames, poses = way
    odometry = Odometry()
    for frame in frames[:21]:
        odometry.step(frame)
    odometry.reset()
    again = odometry.step(replace(frames[4], stamp=frames[20].stamp + 5_000_000_000))
    assert again.segment == 0
    assert missed(again, se3.inverse(poses[0]) @ poses[4]).norm() < 0.01


def test_nothing_that_was_seen_before_a_reset_is_recognised(way):
    frames, _ = way
    odometry = Odometry()
    for frame in frames[:21]:
        odometry.step(frame)
    home = pose(1, 2, 3, 0.1, 0.2, 0.3)
    odometry.reset(home)
    again = odometry.step(replace(frames[4], stamp=frames[20].stamp + 100_000_000))
    torch.testing.assert_close(again.pose, home)
