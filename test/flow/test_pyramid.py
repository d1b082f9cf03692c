"""The parts that the torch flow methods share."""

import pytest
import torch

from flowodom.flow import pyramid


@pytest.fixture
def image():
    return 255 * torch.rand(1, 1, 40, 50, generator=torch.Generator().manual_seed(0))


def test_blur_keeps_a_constant_up_to_the_border():
    field = torch.full((2, 3, 20, 30), 7.0)
    torch.testing.assert_close(pyramid.blur(field, 2.5), field)


def test_blur_has_the_width_it_is_given():
    point = torch.zeros(1, 1, 41, 41)
    point[..., 20, 20] = 1
    spread = pyramid.blur(point, 2.0)[0, 0]
    place = torch.arange(41.0) - 20
    assert spread.sum() == pytest.approx(1)
    assert (spread.sum(0) * place**2).sum().sqrt() == pytest.approx(2.0, rel=0.05)
    torch.testing.assert_close(spread, spread.T)


def test_gradient_of_a_ramp_is_its_slope():
    v, u = torch.meshgrid(torch.arange(12.0), torch.arange(15.0), indexing="ij")
    along_u, along_v = pyramid.gradient((3 * u - 2 * v)[None, None])
    torch.testing.assert_close(along_u[..., 1:-1, 1:-1], torch.full((1, 1, 10, 13), 3.0))
    torch.testing.assert_close(along_v[..., 1:-1, 1:-1], torch.full((1, 1, 10, 13), -2.0))


@pytest.mark.parametrize("size", [(40, 50), (41, 51)])
def test_halving_keeps_places(size):
    v, u = torch.meshgrid(torch.arange(size[0] + 0.0), torch.arange(size[1] + 0.0), indexing="ij")
    half = pyramid.halve(torch.stack((u, v))[None])
    height, width = (size[0] + 1) // 2, (size[1] + 1) // 2
    assert half.shape == (1, 2, height, width)
    there = torch.arange(width)[3:-3] + 0.5
    torch.testing.assert_close(half[0, 0, 5, 3:-3], there * size[1] / width - 0.5)


def test_resized_flow_is_in_pixels_of_its_size():
    flow = torch.tensor((2.0, -3.0)).view(1, 2, 1, 1).expand(1, 2, 10, 15)
    larger = pyramid.resize(flow, (20, 45))
    torch.testing.assert_close(larger, torch.tensor((6.0, -6.0)).view(1, 2, 1, 1).expand(1, 2, 20, 45))


def test_warp_by_whole_pixels_is_a_shift(image):
    flow = torch.tensor((3.0, -2.0)).view(1, 2, 1, 1).expand(1, 2, 40, 50)
    values, inside = pyramid.warp(image, flow)
    torch.testing.assert_close(values[..., 2:, :-3], image[..., :-2, 3:], atol=1e-2, rtol=0)
    assert inside[..., 2:, :-3].all()
    assert not inside[..., :2, :].any()
    assert not inside[..., -3:].any()


def test_residual_is_zero_outside(image):
    flow = torch.full((1, 2, 40, 50), 100.0)
    difference, inside = pyramid.residual(image, image, flow)
    assert not inside.any()
    assert (difference == 0).all()


def test_noise_variance_is_that_of_least_squares():
    """Against flows measured over many draws of the noise, all with the same sharp window."""
    generator = torch.Generator().manual_seed(2)
    clean = pyramid.blur(600 * torch.randn(1, 1, 60, 60, generator=generator), 1.5) + 128
    gu, gv = pyramid.gradient(clean)
    sigma, support = 5.0, 3.0
    matrix = pyramid.blur(torch.cat((gu * gu, gu * gv, gv * gv), dim=1), support)
    a, b, c = matrix.unbind(1)
    flows = []
    for _ in range(60):
        noise = sigma * torch.randn(clean.shape, generator=generator)
        p, q = pyramid.blur(torch.cat((gu * noise, gv * noise), dim=1), support).unbind(1)
        flows.append(torch.stack((c * p - b * q, a * q - b * p)) / (a * c - b * b))
    measured = torch.stack(flows).var(0).mean(0)[0, 15:-15, 15:-15].mean()
    noisy = clean + sigma * torch.randn(clean.shape, generator=generator)
    told = pyramid.noise_variance(clean, noisy, torch.zeros(1, 2, 60, 60), support)[0, 15:-15, 15:-15].mean()
    floor = pyramid.BLUNDER**2
    assert 0.6 < (told - floor) / measured < 1.6
