"""A camera's pose from known points, against poses known exactly."""

import torch

from flowodom.geometry import se3
from flowodom.registration.resection import resection

POSE = se3.exp(torch.tensor([0.4, -0.1, 0.3, 0.1, -0.15, 0.05], dtype=torch.float64))


def test_exact_points_give_the_pose(camera, scatter):
    points = scatter(60)
    found = resection(camera, points, camera.project(se3.act(POSE, points)))
    torch.testing.assert_close(found, POSE, atol=1e-5, rtol=0)
    assert found.dtype == torch.float64


def test_outliers_do_not_bend_it(camera, scatter):
    points = scatter(120)
    pixels = camera.project(se3.act(POSE, points))
    generator = torch.Generator().manual_seed(2)
    pixels += 0.2 * torch.randn(pixels.shape, generator=generator, dtype=torch.float64)
    pixels[:50] += 10 + 50 * torch.rand(50, 2, generator=generator, dtype=torch.float64)
    error = se3.log(resection(camera, points, pixels) @ se3.inverse(POSE))
    assert error[:3].norm() < 0.02
    assert error[3:].norm() < 0.005


def test_too_few_points_give_none(camera, scatter):
    points = scatter(5)
    assert resection(camera, points, camera.project(points)) is None


def test_points_that_support_no_pose_give_none(camera, scatter):
    generator = torch.Generator().manual_seed(3)
    pixels = 230 * torch.rand(40, 2, generator=generator, dtype=torch.float64)
    assert resection(camera, scatter(40), pixels) is None
