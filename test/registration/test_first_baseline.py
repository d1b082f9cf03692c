"""The start of a single camera against motions known exactly."""

from dataclasses import replace

import pytest
import torch

from flowodom.geometry import se3
from flowodom.registration.covariance import fit_covariance
from flowodom.registration.first_baseline import Parallax, first_baseline

TURN = se3.exp(torch.tensor([0.0, 0.0, 0.0, 0.02, 0.05, -0.03], dtype=torch.float64))
FLOOR = (0.1, 0.2, 1.0)
"""Normal of a plane that is hardly tilted."""


def began(camera, matches):
    return first_baseline(camera, matches, torch.eye(3, dtype=torch.float64), max_iterations=30)


def test_a_camera_that_only_turns_stays_in_its_place(camera, scatter, observe):
    fit, placed = began(camera, observe(scatter(300), TURN, seed=1, seen=False, known=False))
    assert placed is None
    assert fit.motion[:3, 3].norm() == 0
    assert se3.log(fit.motion @ se3.inverse(TURN)).norm() < 1e-3


def test_little_parallax_is_waited_for(camera, scatter, observe):
    motion = se3.exp(torch.tensor([0.04, 0.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)) @ TURN
    with pytest.raises(Parallax, match="waiting for a longer baseline"):
        began(camera, observe(scatter(300), motion, seed=1, seen=False, known=False))


@pytest.mark.parametrize("way", [(0.4, 0.0, 0.0), (0.1, 0.1, 0.6)], ids=["sideways", "forward"])
def test_a_long_baseline_becomes_the_unit_of_length(camera, scatter, observe, way):
    motion = se3.exp(torch.tensor([*way, 0.0, 0.0, 0.0], dtype=torch.float64)) @ TURN
    points = scatter(300)
    fit, placed = began(camera, observe(points, motion, seed=1, pixel=0.2, seen=False, known=False))
    assert placed is not None
    told = placed.rho_variance.sqrt() < 0.05 * placed.rho
    assert told.double().mean() > 0.5
    assert (placed.rho * points[:, 2] / motion[:3, 3].norm())[told].numpy() == pytest.approx(1, abs=0.2)
    assert float(fit.motion[:3, 3].norm()) == pytest.approx(1)
    assert fit.motion[:3, 3] @ motion[:3, 3] / motion[:3, 3].norm() > 0.999
    assert se3.so3_log(fit.motion[:3, :3] @ motion[:3, :3].T).norm() < 5e-3


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("way", [(0.6, 0.0, 0.0), (0.5, 0.0, 0.15)], ids=["along", "almost along"])
def test_along_a_plane_a_start_is_no_matter_of_luck(camera, plane, observe, way, seed):
    motion = se3.exp(torch.tensor([*way, 0.0, 0.0, 0.0], dtype=torch.float64)) @ TURN
    fit, placed = began(camera, observe(plane(FLOOR, seed=1), motion, seed=seed, pixel=0.15, seen=False, known=False))
    assert placed is not None
    assert fit.motion[:3, 3] @ motion[:3, 3] / motion[:3, 3].norm() > 0.999


@pytest.mark.parametrize("way", [(0.4, 0.0, 0.4), (0.3, 0.2, -0.4)], ids=["away", "nearer"])
def test_towards_a_plane_two_motions_explain_it_and_neither_starts(camera, plane, observe, way):
    motion = se3.exp(torch.tensor([*way, 0.0, 0.0, 0.0], dtype=torch.float64)) @ TURN
    for seed in range(5):
        with pytest.raises(Parallax, match="two motions"):
            began(camera, observe(plane(FLOOR, seed=1), motion, seed=seed, pixel=0.15, seen=False, known=False))


def test_a_scene_of_which_half_moves_otherwise_does_not_start_it(camera, scatter, observe):
    motion = se3.exp(torch.tensor([0.4, 0.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)) @ TURN
    matches = observe(scatter(300), motion, seen=False, known=False)
    matches.pixels[::2] += 20 * torch.randn(150, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with pytest.raises(Parallax):
        began(camera, matches)


@pytest.mark.parametrize("share", [0.2, 0.4])
def test_traffic_does_not_start_it_otherwise_than_straight_ahead(camera, observe, share):
    """Half of the world is so far that noise has it behind the camera; vehicles to both sides go nearly as fast."""
    ahead = se3.exp(torch.tensor([0, 0, -1.0, 0, 0, 0], dtype=torch.float64))
    for seed in range(4):
        u, v, w = torch.rand(3, 500, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        vehicle = torch.zeros(500, dtype=torch.bool)
        vehicle[(u - 0.5).abs().argsort(descending=True)[: int(share * 500)]] = True
        depth = torch.where(vehicle, 6.0, torch.where(w < 0.5, 4 + 40 * w, 200 + 2000 * w))
        points = camera.unproject(torch.stack((320 * u, 240 * v), dim=-1), depth)
        outwards = torch.stack((0.3 * (u - 0.5).sign(), 0 * u, torch.full_like(u, -0.2)), dim=-1)
        there = torch.where(vehicle[:, None], points + outwards, se3.act(ahead, points))
        matches = observe(points, ahead, seed=seed, pixel=0.1, seen=False, known=False)
        off = camera.project(there) - camera.project(se3.act(ahead, points))
        fit, placed = began(camera, replace(matches, pixels=matches.pixels + off))
        assert placed is not None
        assert float(fit.motion[2, 3]) == pytest.approx(-1, abs=1e-3)
        assert se3.so3_log(fit.motion[:3, :3]).norm() < 2e-3


def test_errors_as_large_as_a_sixth_of_the_parallax_do_not_start_it(camera, scatter, observe):
    motion = se3.exp(torch.tensor([0.12, 0.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)) @ TURN
    sharp, blurred = (
        observe(scatter(300), motion, seed=1, pixel=pixel, seen=False, known=False) for pixel in (0.1, 1.5)
    )
    assert began(camera, sharp)[1]
    with pytest.raises(Parallax):
        began(camera, blurred)


def test_a_rotation_is_no_surer_than_a_small_way_beside_it_allows(camera, observe):
    u, v = torch.rand(2, 300, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wall = camera.unproject(torch.stack((320 * u, 240 * v), dim=-1), torch.full_like(u, 3.0))
    motion = se3.exp(torch.tensor([0.03, 0.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)) @ TURN
    fit, placed = began(camera, observe(wall, motion, seed=2, pixel=0.1, seen=False, known=False))
    assert placed is None
    error = se3.log(fit.motion @ se3.inverse(TURN))[3:]
    deviation = fit_covariance(fit)[3:, 3:].diagonal().sqrt()
    assert error.norm() > 5e-3
    assert (error.abs() < 3 * deviation).all()


def test_a_rotation_is_told_by_points_on_a_line_as_well(camera, observe):
    u = torch.linspace(20, 300, 40, dtype=torch.float64)
    line = camera.unproject(torch.stack((u, torch.full_like(u, 119.5)), dim=-1), torch.full_like(u, 2.0))
    fit, placed = began(camera, observe(line, TURN, seed=3, pixel=0.1, seen=False, known=False))
    assert placed is None
    assert fit_covariance(fit).isfinite().all()
