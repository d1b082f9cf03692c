"""Reading inverse depth between pixels, across edges and between resolutions."""

import pytest
import torch

from flowodom.depth import InverseDepth
from flowodom.worlds import pinhole

CAMERA = pinhole(32, 24)


def plane(camera, slope=(0.1, 0.05), level=0.5):
    rays = camera.rays(camera.pixels(dtype=torch.float64))
    return level + slope[0] * rays[..., 0] + slope[1] * rays[..., 1]


def field(mean, camera=CAMERA, deviation=0.001):
    known = mean.isfinite()
    return InverseDepth(camera, mean.float(), torch.where(known, deviation**2, torch.inf).float())


def test_between_pixels_of_a_plane_it_is_exact():
    pixels = torch.tensor([[3.25, 4.5], [30.9, 22.9], [0.0, 0.0], [31.0, 23.0]], dtype=torch.float64)
    mean, variance = field(plane(CAMERA)).at(CAMERA, pixels)
    rays = CAMERA.rays(pixels)
    torch.testing.assert_close(mean, 0.5 + 0.1 * rays[:, 0] + 0.05 * rays[:, 1], atol=1e-6, rtol=0)
    torch.testing.assert_close(variance, torch.full((4,), 1e-6, dtype=torch.float64), atol=1e-9, rtol=0)
    assert mean.dtype == torch.float64


def test_at_a_pixel_it_is_that_pixels_value():
    pixels = CAMERA.pixels()
    mean, _ = field(plane(CAMERA)).at(CAMERA, pixels)
    torch.testing.assert_close(mean, plane(CAMERA).float())


def test_the_two_sides_of_an_edge_are_never_mixed():
    step = torch.full((24, 32), 0.5)
    step[:, 16:] = 0.25
    u = torch.linspace(14, 17, 301)
    mean, variance = field(step).at(CAMERA, torch.stack((u, torch.full_like(u, 10.3)), dim=-1))
    known = mean.isfinite()
    assert ((mean[known] - 0.5).abs().minimum((mean[known] - 0.25).abs()) < 1e-6).all()
    assert not known[(u > 15.01) & (u < 15.99)].any()
    assert known[(u < 14.99) | (u > 16.01)].all()
    assert (variance.isfinite() == known).all()


def test_next_to_the_unknown_nothing_is_known():
    mean = plane(CAMERA)
    mean[10, 10] = torch.nan
    read, variance = field(mean).at(CAMERA, torch.tensor([[9.5, 10.0], [10.4, 10.4], [8.5, 10.0], [12.0, 10.0]]))
    assert read.isnan().tolist() == [True, True, False, False]
    assert variance.isinf().tolist() == [True, True, False, False]


def test_outside_and_unknown_pixels_are_unknown():
    pixels = torch.tensor([[-1.0, 5.0], [5.0, -1.0], [32.0, 5.0], [5.0, 24.0], [torch.nan, 5.0], [1e9, 5.0]])
    mean, variance = field(plane(CAMERA)).at(CAMERA, pixels)
    assert mean.isnan().all()
    assert variance.isinf().all()


@pytest.mark.parametrize("factor", [2, 4])
def test_resolutions_agree(factor):
    fine = CAMERA.scaled(factor)
    pixels = torch.tensor([[7.5, 7.5], [20.25, 3.75], [11.0, 19.0]], dtype=torch.float64)
    finer = (pixels + 0.5) * factor - 0.5
    coarse = field(plane(CAMERA)).at(fine, finer)
    exact = field(plane(fine), fine).at(CAMERA, pixels)
    torch.testing.assert_close(coarse[0], exact[0], atol=1e-5, rtol=0)
    rays = CAMERA.rays(pixels)
    torch.testing.assert_close(coarse[0], 0.5 + 0.1 * rays[:, 0] + 0.05 * rays[:, 1], atol=1e-5, rtol=0)


def test_on_another_grid_it_is_the_same_surface():
    coarse = CAMERA.resized(16, 12)
    seen = field(plane(coarse), coarse).on(CAMERA)
    assert seen.camera == CAMERA
    assert seen.mean.isfinite().all()
    inner = slice(1, -1)  # half a coarse pixel of the border is beyond the middle of the last one
    torch.testing.assert_close(seen.mean[inner, inner], plane(CAMERA).float()[inner, inner], atol=1e-6, rtol=0)
    assert seen.on(CAMERA) is seen


def test_nothing_is_known_of_an_unknown_field():
    unknown = InverseDepth.unknown(CAMERA)
    assert unknown.mean.shape == (24, 32)
    mean, variance = unknown.at(CAMERA, CAMERA.pixels())
    assert mean.isnan().all()
    assert variance.isinf().all()


def test_no_pixels_give_no_values():
    mean, variance = field(plane(CAMERA)).at(CAMERA, torch.zeros(0, 2))
    assert mean.shape == variance.shape == (0,)


def test_differentiated_pixels_read_what_others_do():
    mean = plane(CAMERA)
    mean[4:7, 5:9], mean[:, 20:] = torch.nan, 1.0
    pixels = 36 * torch.rand(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 2
    pixels[3, 0] = torch.nan
    for found, expected in zip(
        field(mean).at(CAMERA, pixels.clone().requires_grad_()), field(mean).at(CAMERA, pixels), strict=True
    ):
        torch.testing.assert_close(found.detach(), expected, equal_nan=True)
        assert 50 < int(expected.isfinite().sum()) < 150
