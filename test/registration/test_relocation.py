import math

import pytest
import torch

from flowodom.geometry import PinholeCamera, se3
from flowodom.registration.relocation import relocate

CAMERA = PinholeCamera(300.0, 300.0, 159.5, 119.5, 320, 240)
MOTION = se3.exp(torch.tensor([0.3, -0.1, 0.2, 0.1, -0.35, 0.2], dtype=torch.float64))


def matches(motion, *, wrong):
    """Returns pixels before and after, and inverse depths, a share ``wrong`` of the pixels after being anywhere."""
    generator = torch.Generator().manual_seed(1)
    before = torch.rand(300, 2, generator=generator, dtype=torch.float64) * torch.tensor([319.0, 239.0])
    rho = 0.2 + torch.rand(300, generator=generator, dtype=torch.float64)
    after = CAMERA.project(se3.act(motion, CAMERA.rays(before) / rho[:, None]))
    bad = torch.rand(300, generator=generator) < wrong
    after[bad] = torch.rand(int(bad.sum()), 2, generator=generator, dtype=torch.float64) * 240
    return before, after, rho


def test_the_motion_is_found_among_wrong_matches():
    before, after, rho = matches(MOTION, wrong=0.6)
    assert se3.log(relocate(CAMERA, before, after, rho) @ se3.inverse(MOTION)).norm() < 0.01


def test_without_depth_the_turn_is_found():
    turn = se3.matrix(MOTION[:3, :3], torch.zeros(3, dtype=torch.float64))
    before, after, rho = matches(turn, wrong=0.5)
    found = relocate(CAMERA, before, after, torch.full_like(rho, torch.nan))
    assert se3.log(found @ se3.inverse(turn)).norm() < math.radians(0.5)
    assert found[:3, 3].norm() == 0


@pytest.mark.parametrize("known", [True, False])
def test_chance_supports_nothing(known):
    before, after, rho = matches(MOTION, wrong=1.0)
    assert relocate(CAMERA, before, after, rho if known else torch.full_like(rho, torch.nan)) is None


def test_too_few_matches_tell_nothing():
    before, after, rho = (part[:10] for part in matches(MOTION, wrong=0.0))
    assert relocate(CAMERA, before, after, rho) is None
