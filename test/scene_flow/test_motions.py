"""Rigid motions of moving pixels, in exact views of a world whose bodies' motions are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from flowodom.depth import InverseDepth
from flowodom.flow import DenseFlow
from flowodom.flow.consistency import FLOW_NOISE
from flowodom.geometry import se3
from flowodom.scene_flow.decompose import decompose
from flowodom.scene_flow.motions import SAMPLES, MovingPixels, Samples, even, fit_motions, propose
from flowodom.scene_flow.surfaces import Surface, cell_of
from flowodom.worlds import pinhole, room, straight

CAMERA = pinhole(240, 180)
CELL = cell_of(CAMERA)


@pytest.fixture(scope="module")
def scene():
    """What moves in a view of a room with two movers, its pixels, their true bodies and the bodies' true motions."""
    path = straight(position=(-0.8, 0.0, 1.2), speed=0.3)
    world = room(7, movers=2, texels=256)
    before, now = (world.render(path(t), t, CAMERA) for t in (0.2, 0.2 + 1 / 30))
    truth = world.flow_between(before, now)
    variance = torch.full(truth.forward.shape[:2], FLOW_NOISE**2)
    flow = DenseFlow(truth.forward.nan_to_num().float(), truth.backward.nan_to_num().float(), variance, variance)
    views = [Surface.of(CAMERA, *look(view), CELL) for view in (before, now)]
    ids = now.object_id[CELL // 2 :: CELL, CELL // 2 :: CELL]
    belief = np.where(ids > 0, np.float32(5), np.float32(-5))
    moving = replace(decompose(*views, flow, truth.motions[0]), logit=belief, doubt=belief)
    pixels = MovingPixels.of(moving)
    bodies = ids.numpy().take(pixels.index)
    motions = [
        se3.inverse(before.pose) @ before.bodies[k] @ se3.inverse(now.bodies[k]) @ now.pose
        for k in range(len(now.bodies))
    ]
    return moving, pixels, bodies, torch.stack(motions).numpy()


def look(view):
    rho = (1 / view.depth).float()
    return view.image.float().mean(-1).to(torch.uint8), InverseDepth(CAMERA, rho, torch.full(rho.shape, 1e-6))


def group(pixels, bodies, k):
    return np.flatnonzero((bodies == k) & pixels.inner)


def miss(motion, true, points):
    """Median distance, metres, between where two motions take points."""
    return np.median(np.linalg.norm(se3.act(motion, points) - se3.act(true, points), axis=-1))


def test_a_bodys_own_motion_explains_its_pixels_and_no_others(scene):
    _, pixels, bodies, motions = scene
    squared = pixels.squared(motions)
    assert squared.shape == (len(motions), len(pixels))
    for k, other in ((1, 2), (2, 1)):
        own = group(pixels, bodies, k)
        assert len(own) > 100
        assert np.median(squared[k, own]) < 1
        assert np.median(squared[other, own]) > 9 * np.median(squared[k, own])


def test_images_of_pixels_lie_where_the_pixels_do(scene):
    moving, pixels, bodies, _ = scene
    assert (pixels.image(np.ones(len(pixels), dtype=np.bool_)) == (moving.doubt > 0)).all()
    first = pixels.flags(group(pixels, bodies, 1)[:1])
    (near,) = pixels.around(first[None], 3)
    (row,), (column,) = np.nonzero(pixels.image(first))
    rows, columns = np.nonzero(pixels.image(near))
    assert near[first].all()
    assert np.abs(rows - row).max() <= 3
    assert np.abs(columns - column).max() <= 3


def test_several_motions_are_refined_at_once(scene):
    moving, pixels, bodies, motions = scene
    groups = [group(pixels, bodies, k) for k in (1, 2)]
    samples = Samples.of(pixels, groups, moving)
    push = np.array([0.006, -0.004, 0.005, 0.002, -0.003, 0.002])
    starts = se3.exp(np.stack((push, -push))) @ motions[1:3]
    loose = np.stack(2 * [np.eye(6)]) * 1e2
    found, covariance = fit_motions(moving.camera, samples, starts, loose)
    for k, own in enumerate(groups):
        points = pixels.points(even([own])[0])
        assert miss(starts[k], motions[k + 1], points) > 0.004
        assert miss(found[k], motions[k + 1], points) < 0.0008
    assert np.linalg.eigvalsh(covariance).min() > 0
    # What is known beforehand beyond doubt stays.
    held, _ = fit_motions(moving.camera, samples, starts, loose * 1e12)
    np.testing.assert_allclose(held, starts, rtol=0, atol=1e-6)


def test_a_motion_is_found_without_a_guess_even_where_a_third_moves_otherwise(scene):
    moving, pixels, bodies, motions = scene
    larger, smaller = sorted((1, 2), key=lambda k: -len(group(pixels, bodies, k)))
    own = group(pixels, bodies, larger)[:400]
    mixed = np.concatenate((own, group(pixels, bodies, smaller)[: len(own) // 2]))
    samples = Samples.of(pixels, [mixed], moving)
    found = propose(moving.camera, samples, motions[0], np.random.default_rng(0))
    points = pixels.points(even([own])[0])
    assert miss(found, motions[larger], points) < 0.25 * miss(motions[0], motions[larger], points)


def test_points_of_small_groups_are_taken_more_than_once_and_weigh_less(scene):
    moving, pixels, bodies, _ = scene
    own = group(pixels, bodies, 1)
    samples = Samples.of(pixels, [own, own[:20]], moving)
    assert samples.place.shape == (2, 4, SAMPLES)
    assert len(set(samples.place[1, 0])) == len(set(pixels.ray[0, own[:20]]))
    np.testing.assert_allclose(samples.weight[:, 0] * SAMPLES, [SAMPLES, 20])
