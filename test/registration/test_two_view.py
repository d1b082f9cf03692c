"""The start of a single camera against motions known exactly."""

import math

import pytest
import torch

from flowodom.geometry import se3
from flowodom.registration.two_view import planar_views, two_view

MOTION = se3.exp(torch.tensor([0.3, -0.1, 0.2, 0.02, 0.05, -0.03], dtype=torch.float64))


def angle(a, b):
    return math.degrees(float(torch.acos((a @ b / a.norm() / b.norm()).clamp(-1, 1))))


def views(camera, points, motion, noise=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a, b = camera.project(points), camera.project(se3.act(motion, points))
    return a, b + noise * torch.randn(b.shape, generator=generator, dtype=torch.float64)


def test_exact_views_give_rotation_and_direction(camera, scatter):
    found = two_view(camera, *views(camera, scatter(200), MOTION))
    assert se3.so3_log(found[:3, :3] @ MOTION[:3, :3].T).norm() < 1e-4
    assert angle(found[:3, 3], MOTION[:3, 3]) < 0.02
    assert found[:3, 3].norm() == pytest.approx(1)


def test_outliers_and_noise_are_borne(camera, scatter):
    a, b = views(camera, scatter(300), MOTION, noise=0.2)
    b[::4] = b[::4].flip(0)
    found = two_view(camera, a, b)
    assert math.degrees(se3.so3_log(found[:3, :3] @ MOTION[:3, :3].T).norm()) < 0.3
    assert angle(found[:3, 3], MOTION[:3, 3]) < 3


def test_the_same_views_give_the_same_answer(camera, scatter):
    a, b = views(camera, scatter(200), MOTION, noise=0.5)
    torch.testing.assert_close(two_view(camera, a, b), two_view(camera, a, b), rtol=0, atol=0)


def test_views_without_agreement_give_none(camera):
    generator = torch.Generator().manual_seed(1)
    a, b = 200 * torch.rand(2, 150, 2, generator=generator, dtype=torch.float64)
    assert two_view(camera, a, b) is None


def test_too_few_points_give_none(camera, scatter):
    assert two_view(camera, *views(camera, scatter(19), MOTION)) is None


@pytest.mark.parametrize("seed", range(6))
def test_with_little_parallax_a_slow_mover_does_not_sway_exact_matches(camera, seed):
    motion = se3.exp(torch.tensor([0.05, 0.0, 0.02, 0.004, 0.006, -0.003], dtype=torch.float64))
    u, v, away = torch.rand(3, 300, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    points = camera.unproject(torch.stack((320 * u, 240 * v), dim=-1), 3 + 2 * away)
    a, b = views(camera, points, motion, noise=0.03, seed=seed)
    b[:75] += torch.tensor([0.6, 0.8])
    found = two_view(camera, a, b)
    assert angle(found[:3, 3], motion[:3, 3]) < 5


def test_a_plane_seen_twice_leaves_two_motions_open_the_true_one_among_them(camera, plane):
    found = planar_views(camera, *views(camera, plane((0.1, 0.2, 1.0)), MOTION))
    assert len(found) == 2
    off = sorted(angle(motion[:3, 3], MOTION[:3, 3]) for motion in found)
    assert off[0] < 0.01 < 10 < off[1]
    assert min(se3.so3_log(motion[:3, :3] @ MOTION[:3, :3].T).norm() for motion in found) < 1e-4
    assert all(float(motion[:3, 3].norm()) == pytest.approx(1) for motion in found)


def test_along_a_plane_the_motion_that_has_half_of_it_behind_the_camera_is_left_out(camera, plane):
    along = se3.exp(torch.tensor([0.3, 0.0, 0.0, 0.02, 0.05, -0.03], dtype=torch.float64))
    (found,) = planar_views(camera, *views(camera, plane((0.0, 0.0, 1.0)), along, noise=0.1))
    assert angle(found[:3, 3], along[:3, 3]) < 1


def test_no_motion_of_a_plane_is_found_in_few_points_or_none(camera, plane):
    a, b = views(camera, plane((0.0, 0.0, 1.0)), MOTION)
    assert planar_views(camera, a[:19], b[:19]) == []
    assert planar_views(camera, a, torch.full_like(b, 100.0)) == []
