"""Worlds in which most or all of what is seen moves: the pose is right, or tracking is LOST and says why."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from flowodom.geometry import se3
from flowodom.odometry import Odometry, Status
from flowodom.worlds import Primitive, Sensor, Shape, hand_held, pinhole, room, sequence
from flowodom.worlds.motion import level_pose

CAMERA = pinhole(240, 180)
REASON = "all of it behind the rest, moves otherwise"
UNTOLD = "which is still, is not told"


def place(*along, yaw=0.0):
    """Poses at x, y, z (numbers or tensors of one shape), turned about z."""
    x, y, z, yaw = torch.broadcast_tensors(*(torch.as_tensor(a, dtype=torch.float64) for a in (*along, yaw)))
    zero = torch.zeros_like(x)
    return level_pose(torch.stack((x, y, z), -1), torch.stack((yaw, zero, zero), -1))


def gone(time, since, speed):
    """Metres travelled by what stands still until ``since`` and then speeds up at 1 m/s^2 to ``speed``."""
    lapse = (torch.as_tensor(time, dtype=torch.float64) - since).clamp_min(0)
    return torch.where(lapse < speed, 0.5 * lapse * lapse, 0.5 * speed * speed + speed * (lapse - speed))


def lift(opening):
    """A cabin of 2 m in a room; it stands for half a second and rises, and the camera with it.

    Args:
        opening: Half width and half height of a hole in the wall ahead, metres; None for none.
    """
    plain = room(5, movers=0, texels=128)
    looks = [p.materials[0] for p in plain.primitives]
    walls = [
        ((0.03, 1.0, 1.1), (-1.0, 0.0, 0.0)),
        ((1.0, 0.03, 1.1), (0.0, 1.0, 0.0)),
        ((1.0, 0.03, 1.1), (0.0, -1.0, 0.0)),
    ]
    walls += [((1.0, 1.0, 0.03), (0.0, 0.0, side)) for side in (1.1, -1.1)]
    if opening is None:
        walls.append(((0.03, 1.0, 1.1), (1.0, 0.0, 0.0)))
    else:
        w, h = opening
        walls += [((0.03, 0.5 * (1 - w), 1.1), (1.0, side * 0.5 * (1 + w), 0.0)) for side in (1, -1)]
        walls += [((0.03, w, 0.5 * (1.1 - h)), (1.0, 0.0, side * 0.5 * (1.1 + h))) for side in (1, -1)]
    boxes = [Primitive(Shape.BOX, half, place(*at), (looks[6 + k],), body=1) for k, (half, at) in enumerate(walls)]

    def cabin(time):
        return place(0.0, 0.0, 1.0 + gone(time, 0.5, 0.6))

    inside = hand_held(1, position=(-0.5, 0.0, 0.3), speed=0.1, turn=8.0)
    world = replace(plain, primitives=(*plain.primitives, *boxes), motions=(cabin,))
    return world, lambda time: cabin(time) @ inside(time)


def screen(motion):
    """A board that hides four fifths of a room and its motion, and a camera in a hand before it."""
    plain = room(5, movers=0, texels=256)
    board = Primitive(Shape.BOX, (0.05, 0.72, 0.55), se3.identity(), (plain.primitives[6].materials[0],), body=1)
    world = replace(plain, primitives=(*plain.primitives, board), motions=(motion,))
    return world, hand_held(3, position=(-0.2, 0.0, 1.35), speed=0.15, turn=6.0)


def run(world, path, frames):
    """Returns the estimates, and the errors of their places in the world and beside body 1, metres, NaN for no pose."""
    sensor = Sensor(image_noise=1.5, depth_noise=0.0015, depth_range=(0.2, 8.0))
    steps = list(sequence(world, path, CAMERA, frames=frames, sensor=sensor))
    odometry = Odometry()
    estimates = [odometry.step(step.frame) for step in steps]
    errors = []
    for body in (0, 1):
        true = [se3.inverse(step.rendering.bodies[body]) @ step.pose for step in steps]
        seen = [
            float((e.pose - se3.inverse(true[0]) @ t)[:3, 3].norm()) if e.pose is not None else np.nan
            for e, t in zip(estimates, true, strict=True)
        ]
        errors.append(np.array(seen))
    covered = np.mean([float((step.rendering.object_id > 0).double().mean()) for step in steps])
    return estimates, *errors, covered


def test_in_a_closed_lift_the_cabin_is_the_world():
    estimates, _, beside, covered = run(*lift(None), 30)
    assert covered == 1
    assert all(e.status is Status.TRACKING for e in estimates)
    assert beside.max() < 0.005


def test_through_a_small_opening_the_lift_is_seen_to_move_and_no_pose_is_believed():
    estimates, error, _, covered = run(*lift((0.25, 0.4)), 40)
    assert covered > 0.8
    assert np.nanmax(error) < 0.08
    assert all(e.status is Status.LOST and REASON in e.reason for e in estimates[30:])


def test_through_an_open_door_the_lift_moves_and_the_hall_stands_still():
    estimates, error, beside, _ = run(*lift((0.6, 1.05)), 42)
    assert all(e.status is Status.TRACKING for e in estimates[32:])
    assert error[32:].max() < 0.03
    assert beside[-1] > 0.2
    assert estimates[-1].moving.share > 0.25


def test_a_board_over_four_fifths_of_the_image_that_starts_to_move_is_no_world():
    estimates, error, beside, covered = run(*screen(lambda t: place(1.0, gone(t, 0.5, 0.5), 1.3)), 48)
    assert covered > 0.7
    assert np.nanmax(error) < 0.1
    assert estimates[-1].status is Status.TRACKING
    assert error[-1] < 0.1
    assert beside[-1] > 0.2
    lost = [e for e in estimates if e.status is Status.LOST]
    assert all(UNTOLD in e.reason for e in lost)


def test_a_board_that_moves_from_the_first_frame_on_is_no_world():
    def sway(time):
        time = torch.as_tensor(time, dtype=torch.float64)
        return place(1.05, 0.3 * torch.sin(2.2 * time + 0.3), 1.3)

    estimates, error, beside, _ = run(*screen(sway), 50)
    # Until enough of the room is seen the board is all there is; from then on the camera does not go along with it.
    assert estimates[-1].status is Status.TRACKING
    assert np.nanmax(error[40:]) - np.nanmin(error[40:]) < 0.02
    assert np.nanmax(beside[40:]) - np.nanmin(beside[40:]) > 0.1


@pytest.mark.parametrize(("seed", "movers", "coverage"), [(301, 4, None), (319, 4, None), (303, 1, 0.5), (325, 1, 0.5)])
def test_a_first_pair_is_no_compromise_between_the_world_and_a_near_mover(seed, movers, coverage):
    path = hand_held(seed)
    world = room(seed, movers=movers, coverage=coverage, path=path if coverage else None)
    estimates, error, _, covered = run(world, path, 2)
    assert covered > 0.2
    assert estimates[1].status is Status.TRACKING
    assert error[1] < 0.005


def test_when_all_depth_goes_for_good_poses_stay_right_or_are_not_told():
    path = hand_held(6, speed=0.3)
    steps = list(sequence(room(6, movers=0, texels=128), path, CAMERA, frames=36))
    odometry, off = Odometry(), []
    for k, step in enumerate(steps):
        blank = np.full_like(step.frame.depth, np.nan)
        estimate = odometry.step(step.frame if k < 8 else replace(step.frame, depth=blank))
        assert estimate.reason or estimate.status is Status.TRACKING
        if estimate.pose is not None:
            off.append(float((estimate.pose - se3.inverse(steps[0].pose) @ step.pose)[:3, 3].norm()))
    assert len(off) > 8
    assert max(off) < 0.03
