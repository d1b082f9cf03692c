"""Planes through points, and patches on them as they are seen after a motion."""

import numpy as np
import pytest
import torch

from flowodom.geometry import PinholeCamera, se3
from flowodom.registration.planes import Patches, local_planes

CAMERA = PinholeCamera(500.0, 510.0, 319.5, 239.5, 640, 480)
GROUND = torch.tensor((0.02, 0.6, 0.15), dtype=torch.float64)
"""n in ``n . ray = rho``."""
MOTION = se3.exp(torch.tensor((0.1, 0.03, -0.4, 0.02, 0.05, -0.03), dtype=torch.float64))


def rays(count=600, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(count, 2, generator=generator, dtype=torch.float64) * torch.tensor((639.0, 300.0))
    return CAMERA.rays(pixels + torch.tensor((0.0, 170.0)))


def noise(count, deviation, seed=1):
    return deviation * torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def patches(ray, planes):
    noise = torch.eye(2).expand(len(ray), 2, 2)
    return Patches(np.zeros((480, 640), dtype=np.uint8), CAMERA.project(ray), ray, planes, noise)


def test_a_plane_is_found_from_its_points():
    ray = rays()
    rho = ray @ GROUND
    planes = local_planes(ray, rho * (1 + noise(len(ray), 0.0005)), (0.0005 * rho) ** 2)
    torch.testing.assert_close((planes * ray).sum(-1), rho, rtol=0.01, atol=0)
    error = (planes - GROUND).norm(dim=1) / GROUND.norm()
    assert error.median() < 0.15


def test_what_lies_behind_an_edge_has_no_say():
    ray = rays()
    near = ray[:, 0] > 0
    rho = torch.where(near, 1.0, 0.25).double()
    planes = local_planes(ray, rho, (0.005 * rho) ** 2)
    slope = planes[:, :2].norm(dim=1) / rho
    assert slope.quantile(0.95) < 0.1


@pytest.mark.parametrize("variance", [torch.inf, 1e4])
def test_of_unknown_depth_planes_face_the_camera(variance):
    ray = rays()
    planes = local_planes(ray, torch.ones_like(ray[:, 0]), torch.full_like(ray[:, 0], variance))
    torch.testing.assert_close(planes, torch.tensor((0.0, 0.0, 1.0)).expand(len(ray), 3).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_few_points_tell_no_slant(count):
    ray = rays(count)
    planes = local_planes(ray, torch.ones_like(ray[:, 0]), torch.full_like(ray[:, 0], 1e-4))
    assert planes[:, :2].abs().sum() == 0
    assert (planes[:, 2] == 1).all()


def test_warps_are_the_derivative_of_where_the_plane_is_seen():
    ray = rays(50)
    middle, warps = patches(ray, GROUND.expand(50, 3)).seen(CAMERA, MOTION)

    def project(pixels):
        there = CAMERA.rays(pixels)
        return CAMERA.project(there @ MOTION[:3, :3].T + (there @ GROUND)[:, None] * MOTION[:3, 3])

    pixels, step = CAMERA.project(ray), 0.01
    torch.testing.assert_close(middle, project(pixels))
    for k, shift in enumerate(step * torch.eye(2, dtype=torch.float64)):
        change = (project(pixels + shift) - project(pixels - shift)) / (2 * step)
        torch.testing.assert_close(warps[..., k], change, rtol=1e-4, atol=1e-5)


def test_planes_follow_the_unit_of_length():
    ray = rays(20)
    first, stretched = patches(ray, GROUND.expand(20, 3)), MOTION.clone()
    stretched[:3, 3] *= 2.5
    for one, other in zip(first.seen(CAMERA, MOTION), first.rescaled(2.5).seen(CAMERA, stretched), strict=True):
        torch.testing.assert_close(one, other)


def test_a_patch_that_is_seen_from_its_edge_is_only_shifted():
    ray = CAMERA.rays(torch.tensor([[320.0, 240.0]], dtype=torch.float64))
    behind = se3.matrix(torch.eye(3, dtype=torch.float64), torch.tensor((0.0, 0.0, -1.01), dtype=torch.float64))
    facing = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    _, warps = patches(ray, facing).seen(CAMERA, behind)
    torch.testing.assert_close(warps[0], torch.eye(2, dtype=torch.float64))
