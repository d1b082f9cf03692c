"""What a look back at a remembered keyframe does to a pose."""

from types import SimpleNamespace

import pytest
import torch

from flowodom.geometry import se3
from flowodom.recall import CORRECTION, Look, correction, is_worth_a_look, unit_change
from flowodom.registration.covariance import fit_covariance
from flowodom.registration.refine import Matches, refine
from flowodom.worlds import pinhole

CAMERA = pinhole(320, 240)
MOTION = se3.exp(torch.tensor([0.05, -0.02, 0.04, 0.01, 0.03, -0.02], dtype=torch.float64))


@pytest.fixture
def look():
    """A look from a camera at ``MOTION`` at a keyframe in the origin, 300 points 1.5 to 6 m away."""
    u, v, w = torch.rand(3, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rays = CAMERA.rays(torch.stack((10 + 300 * u, 10 + 220 * v), dim=-1))
    rho, ones = 1 / 6 + w * 0.5, torch.ones(300, dtype=torch.float64)
    moved = se3.act(MOTION, rays / rho[:, None])
    matches = Matches(
        direction=rays,
        offset=torch.zeros_like(rays),
        rho=rho,
        rho_variance=1e-6 * ones,
        pixels=CAMERA.project(moved),
        pixel_covariance=0.09 * torch.eye(2, dtype=torch.float64).expand(300, 2, 2),
        seen_rho=1 / moved[:, 2],
        seen_variance=1e-6 * ones,
        row=0 * ones,
    )
    keyframe = SimpleNamespace(pose=se3.identity(), rho=rho)
    fit = refine(CAMERA, matches, MOTION, max_iterations=10)
    return Look(keyframe, fit, matches, fit_covariance(fit))


def displaced(*xi):
    return se3.inverse(MOTION) @ se3.exp(torch.tensor(xi, dtype=torch.float64))


def test_a_pose_that_has_lost_much_goes_where_the_look_has_it(look):
    lost = 1e-4 * torch.eye(6, dtype=torch.float64)
    found = correction(CAMERA, displaced(0.0005, 0, 0, 0, 0, 0), lost, look)
    assert found.step[0] == pytest.approx(-0.0005, rel=0.05)
    assert float(found.left.diagonal().max()) < 1e-5


def test_no_correction_moves_what_is_seen_by_more_than_it_may(look):
    lost = 1e-2 * torch.eye(6, dtype=torch.float64)
    found = correction(CAMERA, displaced(0.1, 0, 0, 0, 0.02, 0), lost, look)
    shift = CAMERA.focal * float(found.step[:3].norm() * look.matches.rho.median() + found.step[3:].norm())
    assert shift == pytest.approx(CORRECTION * CAMERA.width, rel=0.05)
    # What was not corrected is still unknown.
    assert float(found.left.trace()) > 1e-2


def test_a_look_that_contradicts_the_pose_is_not_believed(look):
    assert correction(CAMERA, displaced(0.5, 0, 0, 0, 0, 0), 1e-6 * torch.eye(6, dtype=torch.float64), look) is None


def test_a_look_is_worth_it_where_much_was_lost_in_any_direction():
    one = torch.eye(6, dtype=torch.float64)
    assert not is_worth_a_look(10 * one, one)
    assert is_worth_a_look(torch.diag(torch.tensor((0, 0, 20.0, 0, 0, 0), dtype=torch.float64)), one)


@pytest.mark.parametrize("grown", [1.0, 1.1])
def test_by_how_much_a_unit_has_grown_is_told_by_points_seen_again(look, grown):
    rays = CAMERA.rays(look.matches.pixels)
    rho = look.matches.rho_after(look.fit.motion) * grown
    assert unit_change(CAMERA, look, rays, rho, 1e-6 * rho) == pytest.approx(grown, rel=1e-3)


def test_a_unit_is_kept_where_hardly_anything_is_seen_again(look):
    rays, rho = CAMERA.rays(look.matches.pixels[:20]), look.matches.rho[:20]
    assert unit_change(CAMERA, look, rays, rho, 1e-6 * rho) == 1.0


@pytest.mark.parametrize(("agreeing", "recognised"), [(300, True), (100, True), (80, False), (40, False)])
def test_a_place_is_recognised_by_many_points_and_a_good_share_of_them(look, agreeing, recognised):
    assert look._replace(matches=look.matches.subset(torch.arange(agreeing))).recognised is recognised


def test_forty_points_recognise_no_place_even_where_they_are_all_there_are(look):
    few = look.matches.subset(torch.arange(40))
    assert not Look(SimpleNamespace(pose=se3.identity(), rho=few.rho), look.fit, few, look.covariance).recognised
