"""Robust refinement against points whose motion is known exactly."""

import math
from dataclasses import replace

import pytest
import torch

from flowodom.geometry import se3
from flowodom.registration.covariance import fit_covariance
from flowodom.registration.procrustes import procrustes
from flowodom.registration.refine import is_known, refine, residuals, score
from flowodom.worlds import hand_held, pinhole, room

MOTION = se3.exp(torch.tensor([0.05, -0.02, 0.04, 0.01, 0.03, -0.02], dtype=torch.float64))
NEAR = se3.exp(torch.tensor([0.02, -0.01, 0.01, 0.01, -0.01, 0.01], dtype=torch.float64)) @ MOTION


def miss(found, true=MOTION):
    """Returns the (6,) left perturbation from the true to the found motion."""
    return se3.log(found @ se3.inverse(true))


@pytest.mark.parametrize("seen", [True, False])
def test_exact_matches_give_the_motion_exactly(camera, scatter, observe, seen):
    fit = refine(camera, observe(scatter(300), MOTION, seen=seen), NEAR, max_iterations=30)
    assert miss(fit.motion).abs().max() < 1e-9
    assert fit.weight.min() > 0.999


def test_points_that_live_on_another_cameras_rays_are_fitted_as_well(camera, scatter, observe):
    points, host = scatter(300), se3.exp(torch.tensor([0.3, 0.1, -0.2, 0.02, -0.1, 0.05], dtype=torch.float64))
    # Points of a host camera, known in the reference through T_reference_host.
    matches = observe(se3.act(host, points), MOTION)
    rho = 1 / points[:, 2]
    matches = replace(
        matches,
        direction=(host[:3, :3] @ (points * rho[:, None])[..., None])[..., 0],
        offset=host[:3, 3].expand(len(rho), 3),
        rho=rho,
    )
    fit = refine(camera, matches, NEAR, max_iterations=30)
    assert miss(fit.motion).abs().max() < 1e-9


def test_exact_flow_and_depth_of_a_room_give_the_motion_exactly(observe):
    world, path, camera = room(2, movers=0, texels=64), hand_held(2), pinhole(160, 120)
    before, after = (world.render(path(t), t, camera, colour=False) for t in (1.0, 1.0 + 1 / 30))
    truth = world.flow_between(before, after)
    visible = ~truth.forward_hidden
    points = before.points[visible][::7]
    now = (before.points + truth.scene_flow)[visible][::7]
    matches = replace(
        observe(points, se3.identity()),
        pixels=(camera.pixels(dtype=torch.float64) + truth.forward)[visible][::7],
        seen_rho=1 / now[:, 2],
    )
    fit = refine(camera, matches, se3.identity(), max_iterations=30)
    assert miss(fit.motion, se3.inverse(after.pose) @ before.pose).abs().max() < 1e-6


def test_noise_is_described_by_the_covariance(camera, scatter, observe):
    squared, factors = [], []
    for seed in range(60):
        fit = refine(camera, observe(scatter(250, seed), MOTION, seed=seed), MOTION, max_iterations=20)
        covariance, error = fit_covariance(fit), miss(fit.motion)
        squared.append(float(error @ torch.linalg.solve(covariance, error)))
        factors.append(fit.noise_factor)
    # A mean of 60 chi-square values of six degrees of freedom has a deviation of 0.45; the kernel costs a little, and
    # what is expected of neighbours makes the covariance wider than here, where each match has an error of its own.
    assert 3.0 < sum(squared) / 60 < 7.0
    assert max(squared) < 30
    assert 0.8 < sum(factors) / 60 < 1.2


def test_errors_that_neighbours_share_widen_the_covariance_as_they_ought_to(camera, scatter, observe):
    squared, alone = [], []
    for seed in range(60):
        matches = observe(scatter(400, seed), MOTION, seed=seed, seen=False)
        alone.append(refine(camera, matches, MOTION, max_iterations=20).inflation)
        # Parts of 40 by 40 pixels, each with an error of its own, as large as the noise of every match.
        part = (matches.pixels / 40).long().clamp(0, 9)
        shared = torch.randn(10, 10, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        off = matches.pixel_covariance[:, 0, :1].sqrt() * shared[tuple(part.T)]
        fit = refine(camera, replace(matches, pixels=matches.pixels + off), MOTION, max_iterations=20)
        error = miss(fit.motion)
        squared.append(float(error @ torch.linalg.solve(fit_covariance(fit), error)))
        assert fit.inflation > 2.5 * alone[-1]
    assert 0.9 < sum(alone) / 60 < 1.5
    assert 4.0 < sum(squared) / 60 < 9.0


def test_underestimated_noise_shows_in_the_noise_factor(camera, scatter, observe):
    matches = observe(scatter(400), MOTION, seed=3, pixel=0.6, rho=0.004)
    honest = refine(camera, matches, MOTION, max_iterations=20)
    bold = replace(
        matches,
        pixel_covariance=matches.pixel_covariance / 4,
        rho_variance=matches.rho_variance / 4,
        seen_variance=matches.seen_variance / 4,
    )
    boasting = refine(camera, bold, MOTION, max_iterations=20)
    assert boasting.noise_factor == pytest.approx(4 * honest.noise_factor, rel=0.15)
    torch.testing.assert_close(fit_covariance(boasting), fit_covariance(honest), rtol=0.3, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_forty_percent_outliers_change_little(camera, scatter, observe, seed):
    matches = observe(scatter(400, seed), MOTION, seed=seed)
    generator = torch.Generator().manual_seed(100 + seed)
    wild = torch.rand(400, generator=generator) < 0.4
    pixels = matches.pixels.clone()
    pixels[wild] += 4 + 40 * torch.rand(int(wild.sum()), 2, generator=generator, dtype=torch.float64)
    fit = refine(camera, replace(matches, pixels=pixels), NEAR, max_iterations=20)
    clean = refine(camera, matches.subset(~wild), MOTION, max_iterations=20)
    error = miss(fit.motion, clean.motion)
    assert error[:3].norm() < 2e-3
    assert error[3:].norm() < 1e-3
    assert fit.weight[wild].median() < 0.05
    assert fit.weight[~wild].median() > 0.5


def test_a_third_that_moves_by_little_draws_nothing_along_where_the_rest_is_trusted(camera, scatter, observe):
    matches = observe(scatter(300), MOTION, seed=1)
    slow = torch.arange(300) % 3 == 0
    noise = matches.pixel_covariance[:, 0, :1].sqrt()
    shifted = replace(matches, pixels=matches.pixels + torch.where(slow[:, None], 4 * noise, 0))
    free = refine(camera, shifted, MOTION, max_iterations=20)
    fit = refine(camera, shifted, MOTION, max_iterations=20, trusted=~slow)
    alone = refine(camera, matches.subset(~slow), MOTION, max_iterations=20)
    assert (fit.weight[slow] == 0).double().mean() > 0.7
    assert miss(fit.motion, alone.motion).norm() < 0.5 * miss(free.motion, alone.motion).norm()
    # Where they stand still they are heard as well as the others.
    heard = refine(camera, matches, MOTION, max_iterations=20, trusted=~slow)
    every = refine(camera, matches, MOTION, max_iterations=20)
    assert (heard.weight[slow] > 0).double().mean() > 0.95
    assert miss(heard.motion, every.motion).norm() < 0.5 * miss(alone.motion, every.motion).norm()


def test_what_a_fit_to_one_side_misses_at_the_other_is_heard(camera, scatter, observe):
    matches = observe(scatter(400), MOTION, seed=3)
    u = matches.pixels[:, 0]
    strip, far = u < 40, u > 200
    among = matches.subset(strip | far)
    trusted = strip[strip | far]
    fit = refine(camera, among, MOTION, max_iterations=20, trusted=trusted)
    alone = refine(camera, matches.subset(strip), MOTION, max_iterations=20)
    every = refine(camera, among, MOTION, max_iterations=20)
    assert (fit.weight[~trusted] > 0).double().mean() > 0.97
    assert miss(fit.motion, every.motion).norm() < 0.2 * miss(alone.motion, every.motion).norm()
    # What moves there by far more than that fit is unsure of is not.
    moved = replace(among, pixels=among.pixels + torch.where(trusted[:, None], 0.0, 25.0))
    assert (refine(camera, moved, MOTION, max_iterations=20, trusted=trusted).weight[~trusted] == 0).all()


def edges(camera, scatter, observe, count=300):
    """Returns matches on edges that run every which way, along which they err by 30 times as much as across."""
    matches = observe(scatter(count), MOTION, rho=0.001, seed=4)
    generator = torch.Generator().manual_seed(5)
    angle = torch.pi * torch.rand(count, generator=generator, dtype=torch.float64)
    along = torch.stack((angle.cos(), angle.sin()), dim=-1)
    err = 3.0 * torch.randn(count, 1, generator=generator, dtype=torch.float64)
    covariance = matches.pixel_covariance + 9.0 * along[:, :, None] * along[:, None]
    return replace(matches, pixels=matches.pixels + err * along), covariance


def test_points_on_edges_tell_what_is_across_them(camera, scatter, observe):
    matches, covariance = edges(camera, scatter, observe)
    told = refine(camera, replace(matches, pixel_covariance=covariance), MOTION, max_iterations=20)
    alike = refine(camera, matches, MOTION, max_iterations=20)
    errors = [se3.log(fit.motion @ se3.inverse(MOTION)).norm() for fit in (told, alike)]
    assert errors[0] < 0.15 * errors[1]
    assert told.noise_factor == pytest.approx(1, abs=0.3)


def test_points_of_unknown_depth_still_tell_the_rotation(camera, scatter, observe):
    turn = se3.exp(torch.tensor([0, 0, 0, 0.02, -0.03, 0.01], dtype=torch.float64))
    matches = observe(scatter(300), turn, seed=1, known=False, seen=False)
    fit = refine(camera, matches, se3.identity(), max_iterations=20, rotation_only=True)
    assert miss(fit.motion, turn)[3:].norm() < math.radians(0.02)
    # A few points of known depth add the translation.
    mixed = observe(scatter(300), MOTION, seed=2)
    variance = mixed.rho_variance.clone()
    variance[20:] = 10.0**2
    rho = mixed.rho.clone()
    rho[20:] = 0.3
    mixed = replace(mixed, rho=rho, rho_variance=variance, seen_variance=torch.full_like(rho, torch.inf))
    few = refine(camera, mixed.subset(torch.arange(20)), MOTION, max_iterations=30)
    all_ = refine(camera, mixed, MOTION, max_iterations=30)
    assert fit_covariance(all_)[3:, 3:].trace() < 0.5 * fit_covariance(few)[3:, 3:].trace()
    assert miss(all_.motion)[3:].norm() < 2e-3


def test_rotation_only_leaves_the_camera_where_it_is(camera, scatter, observe):
    place = torch.tensor([0.1, -0.2, 0.05], dtype=torch.float64)
    rotation = se3.so3_exp(torch.tensor([0.03, 0.01, -0.02], dtype=torch.float64))
    true = se3.matrix(rotation, -rotation @ place)
    start = se3.matrix(torch.eye(3, dtype=torch.float64), -place)
    fit = refine(camera, observe(scatter(200), true), start, max_iterations=30, rotation_only=True)
    torch.testing.assert_close(se3.inverse(fit.motion)[:3, 3], place, atol=1e-12, rtol=0)
    assert miss(fit.motion, true).abs().max() < 1e-8
    assert (fit.information[:3] == 0).all()


def test_residuals_vanish_at_the_truth_and_score_prefers_it(camera, scatter, observe):
    matches = observe(scatter(50), MOTION)
    error, squared = residuals(camera, matches, MOTION)
    assert error.shape == (3, 50)
    assert error.abs().max() < 1e-9
    assert squared.shape == (50,)
    assert squared.max() < 1e-9
    error, squared = residuals(camera, matches, torch.stack((NEAR, MOTION)))
    assert error.shape == (2, 3, 50)
    assert (squared[0] > squared[1]).all()
    costs = score(camera, matches, torch.stack((se3.identity(), NEAR, MOTION)))
    assert costs.shape == (3,)
    assert costs.argmin() == 2


def test_a_start_that_has_all_behind_the_camera_ends_there(camera, scatter, observe):
    behind = se3.exp(torch.tensor([0.0, 0.0, -20.0, 0.0, 0.0, 0.0], dtype=torch.float64))
    fit = refine(camera, observe(scatter(300), MOTION), behind, max_iterations=20)
    assert not fit.weight.any()
    assert not fit.agreeing.any()
    assert fit.information.isfinite().all()


def test_depth_noise_cannot_invent_translation(camera, scatter, observe):
    """Rotation alone with depth that is far worse than the pixels: a metric fit would drift by centimetres."""
    turn = se3.exp(torch.tensor([0, 0, 0, 0.01, 0.02, -0.01], dtype=torch.float64))
    points = scatter(400)
    matches = observe(points, turn, seed=5, pixel=0.1, rho=0.02)
    refined = refine(camera, matches, se3.identity(), max_iterations=20)
    targets = camera.unproject(matches.pixels, 1 / matches.seen_rho)
    metric = procrustes(matches.direction / matches.rho[:, None], targets, torch.ones(400, dtype=torch.float64))
    assert miss(refined.motion, turn)[:3].norm() < 0.3 * miss(metric, turn)[:3].norm()


def test_a_point_that_the_camera_has_passed_spoils_no_covariance(camera, scatter, observe):
    motion = se3.exp(torch.tensor([0.05, 0.0, -0.6, 0.0, 0.0, 0.0], dtype=torch.float64))
    sound = observe(scatter(300), motion, seed=1, pixel=0.1, seen=False)
    passed = replace(sound, rho=sound.rho.clone(), rho_variance=sound.rho_variance.clone())
    passed.rho[:5], passed.rho_variance[:5] = 1 / 0.55, 900.0
    apart, mixed = (
        fit_covariance(refine(camera, m, motion, max_iterations=20)) for m in (sound.subset(slice(5, None)), passed)
    )
    torch.testing.assert_close(mixed, apart, rtol=0.05, atol=1e-9)


def test_an_inverse_depth_below_zero_is_not_known_however_sure_it_seems():
    rho = torch.tensor([0.5, 0.5, -0.5, -1e7], dtype=torch.float64)
    assert is_known(rho, torch.tensor([1e-4, 0.1, 1e-4, 1e-4], dtype=torch.float64)).tolist() == [
        True,
        False,
        False,
        False,
    ]


def test_matches_are_picked_by_mask_and_index(scatter, observe):
    matches = observe(scatter(10), MOTION)
    assert len(matches) == 10
    assert len(matches.subset(matches.rho > matches.rho.median())) == 5
    torch.testing.assert_close(matches.subset(torch.tensor([3, 1])).pixels, matches.pixels[[3, 1]])


def test_the_same_matches_give_the_same_fit_wherever_memory_lies(camera, scatter, observe):
    motion = se3.exp(torch.tensor([0.1, 0.0, 0.05, 0.0, 0.02, 0.0], dtype=torch.float64))
    matches = observe(scatter(200), motion, seed=1)
    fits, elsewhere = set(), []
    for k in range(150):
        elsewhere.append(torch.zeros(37 * k % 1000, dtype=torch.float64))
        moved = matches.subset(torch.arange(len(matches)))
        fit = refine(camera, moved, se3.identity(), max_iterations=2)
        fits.add((fit.inflation, *fit.motion.flatten().tolist(), *fit.information.flatten().tolist()))
    assert len(fits) == 1
