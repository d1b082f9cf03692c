"""The camera's height above a plane that is known exactly."""

import math

import pytest
import torch

from flowodom.geometry import se3
from flowodom.registration.ground import ground_height
from flowodom.worlds import pinhole

CAMERA = pinhole(160, 80, field_of_view=80.0)
HEIGHT = 1.65


def ground(height=HEIGHT, pitch=0.0, roll=0.0, relative=0.0, seed=0, horizon=0.02):
    """Inverse depth of a plane below a camera pitched down and rolled by degrees; unknown above the horizon."""
    down = se3.so3_exp(torch.tensor([math.radians(pitch), 0.0, math.radians(roll)], dtype=torch.float64))[:, 1]
    rho = CAMERA.rays(CAMERA.pixels(dtype=torch.float64)) @ down / height
    noise = torch.randn(rho.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    known = rho > horizon
    rho = rho * (1 + relative * noise)
    variance = (max(relative, 0.01) * rho) ** 2
    return rho, variance, known


def field(rho, variance, known):
    """Rays, inverse depths and variances of the pixels at which something is known."""
    return CAMERA.rays(CAMERA.pixels(dtype=torch.float64))[known], rho[known], variance[known]


@pytest.mark.parametrize(("pitch", "roll"), [(0, 0), (8, 0), (-6, 3), (12, -8)])
def test_height_of_an_exact_plane(pitch, roll):
    height, relative = ground_height(*field(*ground(pitch=pitch, roll=roll)))
    assert height == pytest.approx(HEIGHT, rel=1e-3)
    assert 0 < relative < 0.05


@pytest.mark.parametrize("seed", range(3))
def test_noise_and_things_that_stand_on_the_ground(seed):
    rho, variance, known = ground(pitch=5, roll=2, relative=0.05, seed=seed)
    rho[30:, :40] = 0.35  # a wall on the left, and a car ahead
    rho[40:65, 70:95] = 0.2
    variance = (0.05 * rho) ** 2
    # Where the wall meets the ground it cannot be told from it: that pulls the plane by a few percent.
    assert ground_height(*field(rho, variance, known))[0] == pytest.approx(HEIGHT, rel=0.05)
    plain = ground(pitch=5, roll=2, relative=0.05, seed=seed)
    height, relative = ground_height(*field(*plain))
    assert abs(height / HEIGHT - 1) < 3 * relative


def test_the_unit_of_length_is_the_fields_own():
    rho, variance, known = ground(height=7.0)
    assert ground_height(*field(rho, variance, known))[0] == pytest.approx(7.0, rel=1e-3)


def test_a_wall_is_no_ground():
    rho = torch.full((80, 160), 0.5, dtype=torch.float64)
    assert ground_height(*field(rho, (0.02 * rho) ** 2, rho > 0)) is None


def test_nothing_known_is_no_ground():
    rho, variance, known = ground()
    assert ground_height(*field(rho, variance, torch.zeros_like(known))) is None
    known[:, 10:] = False
    known[:78] = False
    assert ground_height(*field(rho, variance, known)) is None


def test_clutter_without_a_plane_is_no_ground():
    generator = torch.Generator().manual_seed(4)
    rho = 0.05 + torch.rand(80, 160, generator=generator, dtype=torch.float64)
    assert ground_height(*field(rho, (0.02 * rho) ** 2, rho > 0)) is None
