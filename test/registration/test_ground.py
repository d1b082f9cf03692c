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


NOWHERE = torch.zeros(0, 3, dtype=torch.float64)


def field(rho, variance, known, been=NOWHERE):
    """Rays, inverse depths and variances of the pixels at which something is known, and where the camera was."""
    return CAMERA.rays(CAMERA.pixels(dtype=torch.float64))[known], rho[known], variance[known], been


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


@pytest.mark.parametrize("pitch", [0, 5])
def test_the_way_of_the_camera_keeps_the_plane_level(pitch):
    rho, variance, known = ground(pitch=pitch, relative=0.02)
    # As many points as a keyframe has, of which those ahead lie on a verge that rises.
    known &= torch.rand(rho.shape, generator=torch.Generator().manual_seed(1)) < 0.05
    rho = torch.where(rho < 0.15, 0.15 + 0.5 * (rho - 0.15), rho)
    forward = torch.tensor([0.0, -math.sin(math.radians(pitch)), math.cos(math.radians(pitch))], dtype=torch.float64)
    been = -forward * torch.tensor([[1.0], [3.0], [6.0]], dtype=torch.float64)
    height, _ = ground_height(*field(rho, variance, known, been))
    plain, _ = ground_height(*field(rho, variance, known))
    assert height == pytest.approx(HEIGHT, rel=0.05)
    assert abs(plain - HEIGHT) > 2 * abs(height - HEIGHT)


def test_a_camera_that_stood_still_tells_as_much_as_one_that_has_been_nowhere():
    rho, variance, known = ground(relative=0.02)
    still = torch.zeros(4, 3, dtype=torch.float64)
    assert ground_height(*field(rho, variance, known, still)) == ground_height(*field(rho, variance, known))


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
