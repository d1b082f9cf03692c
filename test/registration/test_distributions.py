"""A cloud fitted to one that is known."""

import pytest
import torch

from flowodom.geometry import se3
from flowodom.registration.distributions import LEAST_POINTS, Distributions, align

WIDE = torch.eye(6, dtype=torch.float64) * 0.05**2


def surface(count, seed, axes=3):
    """Points on so many sides of a cube of 0.5 m, 2 mm of noise."""
    generator = torch.Generator().manual_seed(seed)
    points = 0.5 * torch.rand(count, 3, generator=generator, dtype=torch.float64)
    index = torch.arange(count)
    points[index, index % axes] = 0.0
    return points + 0.002 * torch.randn(count, 3, generator=generator, dtype=torch.float64)


def moved():
    return se3.exp(torch.tensor([0.02, -0.015, 0.01, 0.04, -0.03, 0.05], dtype=torch.float64))


def test_a_moved_cloud_is_brought_back():
    cloud = Distributions.of(surface(6000, 0), 0.1)
    found = align(se3.act(se3.inverse(moved()), surface(500, 1)), cloud, se3.identity(), WIDE, 0.005)
    error = se3.log(se3.inverse(found.motion) @ moved())
    assert error[:3].norm() < 0.005
    assert error[3:].norm() < 0.01
    assert found.agreement > 0.9


def test_along_a_plane_the_prior_decides():
    cloud = Distributions.of(surface(6000, 0, axes=1), 0.1)
    points = surface(500, 1, axes=1)
    points = points[(points[:, 1:] > 0.1).all(1) & (points[:, 1:] < 0.4).all(1)]
    shifted = points + torch.tensor([0.02, 0.015, 0.0], dtype=torch.float64)
    found = align(shifted, cloud, se3.identity(), WIDE, 0.005)
    assert found.motion[0, 3] == pytest.approx(-0.02, abs=0.002)
    assert found.motion[1:3, 3].abs().max() < 0.012


def test_another_shape_does_not_agree():
    cloud = Distributions.of(surface(6000, 0), 0.1)
    ball = torch.randn(500, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ball = 0.25 + 0.24 * ball / ball.norm(dim=1, keepdim=True)
    assert align(ball, cloud, se3.identity(), WIDE, 0.005).agreement < 0.6


def test_nothing_known_leaves_what_was_expected():
    few = Distributions.of(surface(LEAST_POINTS - 1, 0), 0.1)
    found = align(surface(50, 1), few, moved(), WIDE, 0.005)
    assert found.agreement == 0
    torch.testing.assert_close(found.motion, moved())
