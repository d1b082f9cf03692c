"""What moves on its own, found in exact and in noisy views of worlds whose movers are known."""

import itertools
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from flowodom.depth import InverseDepth
from flowodom.flow import DenseFlow
from flowodom.flow.consistency import FLOW_NOISE
from flowodom.flow.points import PATCH
from flowodom.geometry import se3
from flowodom.odometry import Odometry, Status
from flowodom.scene_flow.decompose import decompose, find_moving, glance
from flowodom.scene_flow.moving import Moving
from flowodom.scene_flow.surfaces import Surface, cell_of, coarse_camera
from flowodom.worlds import Sensor, hand_held, pinhole, room, sequence

CAMERA = pinhole(160, 120)


def inverse(depth, deviation=0.0015):
    return InverseDepth(CAMERA, (1 / depth).float(), torch.full(depth.shape, deviation**2))


@pytest.fixture(scope="module")
def views():
    """Five exact views of a room with something moving close by: (dense view, object ids, flow from the one before)."""
    path = hand_held(2)
    world = room(2, coverage=0.25, path=path, texels=128)
    found, before = [], None
    for k in range(5):
        seen = world.render(path(0.3 + k / 30), 0.3 + k / 30, CAMERA)
        grey = seen.image.float().mean(-1).to(torch.uint8)
        truth = None if before is None else world.flow_between(before, seen)
        found.append(((grey, inverse(seen.depth)), seen.object_id, truth))
        before = seen
    return found


def exact(truth):
    variance = torch.full(truth.forward.shape[:2], FLOW_NOISE**2)
    return DenseFlow(truth.forward.nan_to_num().float(), truth.backward.nan_to_num().float(), variance, variance)


def iou(mask, truth):
    mask, truth = np.asarray(mask), np.asarray(truth)
    return (mask & truth).sum() / (mask | truth).sum()


def chain(views):
    moving = None
    for (past, _, _), (now, _, truth) in itertools.pairwise(views):
        moving = find_moving(CAMERA, past, now, exact(truth), truth.motions[0], moving)
    return moving


def test_the_mover_is_found_and_nothing_else(views):
    moving = chain(views)
    truth = views[-1][1].numpy() > 0
    assert 0.05 < truth.mean() < 0.6
    assert iou(moving.mask(truth.shape), truth) > 0.9
    assert (moving.mask(truth.shape) & ~truth).mean() < 0.02
    assert moving.share == pytest.approx(truth.mean(), abs=0.03)
    assert ((moving.probability >= 0) & (moving.probability <= 1)).all()


def test_nothing_moves_where_the_world_stands_still(views):
    path = hand_held(2)
    world = room(2, movers=0, texels=128)
    a, b = (world.render(path(t), t, CAMERA) for t in (0.3, 0.34))
    truth = world.flow_between(a, b)
    past, now = ((v.image.float().mean(-1).to(torch.uint8), inverse(v.depth)) for v in (a, b))
    assert find_moving(CAMERA, past, now, exact(truth), truth.motions[0], None) is None
    closer = decompose(
        *(Surface.of(CAMERA, *view, cell_of(CAMERA)) for view in (past, now)), exact(truth), truth.motions[0], None
    )
    assert (closer.logit > 0).mean() < 0.002


def test_a_first_glance_tells_whether_anything_moves(views):
    (past, _, _), (now, _, truth) = views[0], views[1]
    coarse = [Surface.of(CAMERA, *view, 8) for view in (past, now)]
    assert glance(coarse[0], coarse[1], exact(truth), truth.motions[0])


def test_what_is_uncovered_does_not_move(views):
    moving = chain(views)
    _, ids, truth = views[-1]
    uncovered = (truth.backward_hidden & (ids == 0)).numpy()
    assert uncovered.sum() > 50
    assert moving.mask(uncovered.shape)[uncovered].mean() < 0.25


def test_unknown_depth_is_not_moving(views):
    (past, _, _), ((grey, depth), ids, truth) = views[0], views[1]
    nothing = InverseDepth.unknown(CAMERA)
    assert find_moving(CAMERA, (past[0], nothing), (grey, nothing), exact(truth), truth.motions[0], None) is None
    hole = depth.mean.clone()
    hole[ids > 0] = torch.nan
    holed = InverseDepth(CAMERA, hole, torch.where(hole.isnan(), torch.inf, depth.variance))
    found = decompose(
        Surface.of(CAMERA, *past, cell_of(CAMERA)),
        Surface.of(CAMERA, grey, holed, cell_of(CAMERA)),
        exact(truth),
        truth.motions[0],
    )
    assert found.share < 0.03


def test_belief_travels_with_the_flow_and_fades(views):
    moving = chain(views)
    (grey, depth), ids, _ = views[-1]
    still = torch.zeros(120, 160, 2)
    shift = torch.zeros(120, 160, 2)
    shift[..., 0] = -8.0
    variance = torch.full((120, 160), FLOW_NOISE**2)
    carried = moving.carried(DenseFlow(-shift, shift, variance, variance))
    truth = ids.numpy() > 0
    around = cv2.dilate(truth.astype(np.uint8), np.ones(PATCH, dtype=np.uint8)) > 0
    assert iou(carried.doubted(CAMERA, CAMERA.pixels())[:, 8:], around[:, :-8]) > 0.85
    # The camera and everything else stop: soon nothing moves, but what did so is still doubted.
    frozen = DenseFlow(still, still, variance, variance)
    for _ in range(12):
        moving = find_moving(CAMERA, (grey, depth), (grey, depth), frozen, se3.identity(), moving)
    assert (moving.logit > 0).mean() < 0.01
    assert iou(moving.mask(truth.shape, doubted=True), truth) > 0.8
    for _ in range(60):
        moving = find_moving(CAMERA, (grey, depth), (grey, depth), frozen, se3.identity(), moving)
    assert moving is None


def test_patches_that_straddle_an_outline_are_doubted(views):
    moving = chain(views)
    variance, still = torch.full((120, 160), FLOW_NOISE**2), torch.zeros(120, 160, 2)
    patches = moving.carried(DenseFlow(still, still, variance, variance)).doubted(CAMERA, CAMERA.pixels()).numpy()
    wider = cv2.dilate(moving.doubted(CAMERA, CAMERA.pixels()).numpy().astype(np.uint8), np.ones(PATCH, np.uint8)) > 0
    assert not (wider & ~patches).any()
    assert iou(patches, wider) > 0.9


def test_what_comes_into_sight_beside_what_is_doubted_is_not(views):
    """A camera turns away from what moved at the border of its image a moment ago."""
    (grey, depth), _, _ = views[-1]
    flat = InverseDepth(CAMERA, torch.full_like(depth.mean, 0.5), depth.variance)
    surface = Surface.of(CAMERA, grey, flat, cell_of(CAMERA))
    logit = np.full(surface.rho.shape, -5.0, dtype=np.float32)
    doubt = logit.copy()
    doubt[:, -4:] = 5.0
    before = Moving(surface.camera, logit, doubt, surface)
    turn = se3.exp(torch.tensor([0, 0, 0, 0, -8.0 / CAMERA.fx, 0], dtype=torch.float64))
    shift = torch.zeros(120, 160, 2)
    shift[..., 0] = -8.0
    variance = torch.full((120, 160), FLOW_NOISE**2)
    flow, shifted = DenseFlow(shift, -shift, variance, variance), torch.roll(grey, -8, 1)
    found = find_moving(CAMERA, (grey, flat), (shifted, flat), flow, turn, before)
    assert found is not None
    there = np.flatnonzero((found.doubt > 0).any(0))
    cells = 8 // cell_of(CAMERA)
    assert (there.min(), there.max()) == (logit.shape[1] - 4 - cells, logit.shape[1] - 1 - cells)


def test_the_coarse_camera_sees_the_same(views):
    coarse = coarse_camera(CAMERA, 3)
    assert (coarse.width, coarse.height) == (53, 40)
    middle = coarse.rays(torch.tensor([10.0, 7.0]))
    torch.testing.assert_close(middle, CAMERA.rays(torch.tensor([31.0, 22.0])))


@pytest.fixture(scope="module")
def half():
    """A clip in which about half of the image is a mover that comes in from the side."""
    path = hand_held(3)
    camera = pinhole(240, 180)
    world = room(3, coverage=0.5, path=path, texels=256)
    sensor = Sensor(image_noise=1.5, depth_noise=0.0015)
    return list(sequence(world, path, camera, frames=24, sensor=sensor))


def test_a_mover_over_half_of_the_image_does_not_drag_the_pose(half):
    assert np.mean([float((s.rendering.object_id > 0).double().mean()) for s in half]) > 0.3
    odometry = Odometry()
    estimates = [odometry.step(s.frame) for s in half]
    start = se3.inverse(half[0].pose)
    errors = [
        float((e.pose - start @ s.pose)[:3, 3].norm())
        for e, s in zip(estimates, half, strict=True)
        if e.pose is not None
    ]
    assert len(errors) >= 20
    assert max(errors) < 0.02
    ious = [
        iou(e.moving.mask((180, 240)), s.rendering.object_id.numpy() > 0)
        for e, s in zip(estimates, half, strict=True)
        if e.moving is not None
    ]
    assert np.median(ious) > 0.85


def test_a_sudden_change_of_half_of_the_image_is_lost_rather_than_believed(half):
    odometry = Odometry()
    first, second = half[0].frame, half[6].frame
    image, depth = second.image.copy(), second.depth.copy()
    # What stands still is put somewhere else in one half, so that neither half is the larger.
    image[:, 120:], depth[:, 120:] = np.roll(first.image, 6, axis=1)[:, 120:], first.depth[:, 120:]
    image[:, :120], depth[:, :120] = np.roll(first.image, -6, axis=1)[:, :120], first.depth[:, :120]
    odometry.step(first)
    estimate = odometry.step(replace(second, image=image, depth=depth))
    assert estimate.status is Status.LOST
    assert estimate.reason


def test_what_is_farther_than_the_rest_is_seen_to_be_the_wrong_way_round(views):
    moving = chain(views)
    assert moving.nearness > 0.3
    assert moving.swapped().nearness < -0.3
    assert iou(moving.swapped().mask((120, 160)), views[-1][1].numpy() == 0) > 0.9


def test_a_clip_that_begins_with_half_of_the_image_moving_is_tracked_by_the_other_half(half):
    odometry = Odometry()
    estimates = [odometry.step(s.frame) for s in half[12:18]]
    truth = se3.inverse(half[12].pose) @ half[17].pose
    assert estimates[-1].status is Status.TRACKING
    assert (estimates[-1].pose - truth)[:3, 3].norm() < 0.02


def test_what_stops_is_remembered_in_every_frame(half):
    odometry = Odometry()
    for step in half[:16]:
        odometry.step(step.frame)
    last = half[15].frame
    for k in range(1, 16):
        estimate = odometry.step(replace(last, stamp=last.stamp + k * 33_333_333))
        assert estimate.moving is not None
    truth = half[15].rendering.object_id.numpy() > 0
    assert estimate.moving.share < 0.05
    assert iou(estimate.moving.mask(truth.shape, doubted=True), truth) > 0.8
