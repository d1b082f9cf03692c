"""Volume rendering against closed forms, and its derivatives against finite differences."""

import math

import pytest
import torch

from flowodom.depth.rendering import composite, log_depths, moments
from flowodom.errors import ShapeError


@pytest.fixture
def thickness():
    generator = torch.Generator().manual_seed(3)
    return torch.rand(4, 9, generator=generator, dtype=torch.float64)


def test_weights_are_a_probability(thickness):
    weights = composite(3 * thickness)
    assert weights.shape == (4, 10)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(4, dtype=torch.float64))


def test_weights_follow_the_law_of_absorption(thickness):
    weights = composite(thickness)
    passed = torch.ones(4, dtype=torch.float64)
    for k in range(9):
        opacity = 1 - torch.exp(-thickness[:, k])
        torch.testing.assert_close(weights[:, k], passed * opacity)
        passed = passed * (1 - opacity)
    torch.testing.assert_close(weights[:, 9], passed)


def test_an_opaque_cell_hides_all_behind_it():
    weights = composite(torch.tensor([0.0, 0.0, 1e3, 5.0, 1e3]))
    torch.testing.assert_close(weights, torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 0.0]))


def test_an_empty_ray_ends_at_the_background():
    mean, variance = moments(composite(torch.zeros(6)), torch.arange(7.0))
    assert mean == 6
    assert variance == 0


def test_moments_of_a_ray_that_ends_in_two_places():
    # Half of the light from inverse depth 1, half from 0.2.
    weights = composite(torch.tensor([math.log(2.0), 0.0, 1e3]))
    mean, variance = moments(weights, torch.tensor([1.0, 0.5, 0.2, 0.0]))
    torch.testing.assert_close(mean, torch.tensor(0.6))
    torch.testing.assert_close(variance, torch.tensor(0.16))


def test_the_variance_of_a_sure_ray_does_not_cancel():
    weights = composite(torch.tensor([[0.0, 1e3, 0.0]]))
    _, variance = moments(weights, torch.tensor([1000.3, 1000.2, 1000.1, 1000.0]))
    assert variance.item() == 0


def test_samples_are_even_in_log_depth_within_their_cells():
    middle = log_depths(0.5, 32.0, 6)
    torch.testing.assert_close(middle.diff(), torch.full((5,), math.log(2.0)))
    assert middle[0].exp() == pytest.approx(0.5 * math.sqrt(2.0))
    jittered = log_depths(0.5, 32.0, 6, offset=torch.rand(10, 6, generator=torch.Generator().manual_seed(0)))
    assert jittered.shape == (10, 6)
    assert ((jittered - middle).abs() <= 0.5 * math.log(2.0) + 1e-6).all()


def test_derivatives_of_depth_and_its_variance_are_exact(thickness):
    values = log_depths(0.3, 40.0, 10).double().neg().exp().requires_grad_()

    def depth(tau, rho):
        return moments(composite(tau), rho)

    assert torch.autograd.gradcheck(depth, (thickness.requires_grad_(), values))


def test_as_many_values_as_weights(thickness):
    with pytest.raises(ShapeError, match="10 weights, got 9"):
        moments(composite(thickness), torch.ones(9, dtype=torch.float64))
