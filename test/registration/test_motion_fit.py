"""From matches to the motion of a camera whose way is known exactly."""

from dataclasses import replace

import pytest
import torch

from flowodom.geometry import se3
from flowodom.registration.motion_fit import MotionFit
from flowodom.registration.refine import Matches, refine
from flowodom.registration.shear import NO_SHEAR

FAR = se3.exp(torch.tensor([0.4, -0.2, 0.3, 0.05, 0.3, -0.1], dtype=torch.float64))
NEAR = se3.exp(torch.tensor([0.05, -0.02, 0.04, 0.01, 0.03, -0.02], dtype=torch.float64))
TURN = se3.exp(torch.tensor([0.0, 0.0, 0.0, 0.01, 0.03, -0.02], dtype=torch.float64))


@pytest.fixture
def fitter(camera):
    return MotionFit(camera, max_iterations=12, metric=True)


def joined(*parts):
    """Returns matches of several bodies as those of one image."""
    return Matches(*(torch.cat([getattr(part, name) for part in parts]) for name in Matches.__dataclass_fields__))


def miss(found, true):
    return float(se3.log(found @ se3.inverse(true)).norm())


@pytest.mark.parametrize("seen", [True, False], ids=["scene flow", "pixels"])
def test_a_motion_that_nobody_expected_is_proposed(fitter, scatter, observe, seen):
    matches = observe(scatter(300), FAR, seed=1, seen=seen)
    assert miss(fitter.propose(matches, (se3.identity(), NEAR)), FAR) < 0.05


def test_of_several_motions_the_right_one_is_taken(fitter, scatter, observe):
    matches = observe(scatter(300), NEAR, seed=1, seen=False)
    assert miss(fitter.best(matches, torch.stack((FAR, TURN, NEAR, se3.identity()))), NEAR) < 1e-9


def test_translation_that_noise_alone_asks_for_is_not_invented(fitter, scatter, observe):
    matches = observe(scatter(300), TURN, seed=2)
    everything = torch.ones(300, dtype=torch.bool)
    fit = fitter.refine(matches, TURN)
    assert fit.motion[:3, 3].norm() > 0
    held = fitter.held(matches, fit, everything)
    assert held.motion[:3, 3].norm() == 0
    assert miss(held.motion, TURN) < 1e-3


def test_translation_that_is_seen_is_kept(fitter, scatter, observe):
    matches = observe(scatter(300), NEAR, seed=2)
    fit = fitter.refine(matches, NEAR)
    assert fitter.held(matches, fit, torch.ones(300, dtype=torch.bool)) is fit


def test_translation_that_only_what_is_near_shows_is_kept_in_blurred_images(fitter, scatter, observe):
    way = se3.exp(torch.tensor([0.012, 0.0, 0.004, 0.01, 0.03, -0.02], dtype=torch.float64))
    points = scatter(600)
    far, near = points[points[:, 2] > 3][:160], points[points[:, 2] < 2][:20]
    near = near / near[:, 2:] * 0.7
    matches = joined(*(observe(part, way, seed=k, pixel=0.75, seen=False) for k, part in enumerate((far, near))))
    # Such images scatter far more than any figure of their noise states.
    matches = replace(matches, pixel_covariance=matches.pixel_covariance / 25)
    fit = fitter.refine(matches, way)
    assert float(fit.agreeing[160:].double().mean()) > 0.9
    assert fitter.held(matches, fit, torch.ones(180, dtype=torch.bool)) is fit


def test_the_world_behind_a_large_mover_is_its_rival(fitter, scatter, observe):
    points = scatter(400)
    near, far = points[points[:, 2] < 2.0], points[points[:, 2] > 2.0][:80]
    mover, world = observe(near, FAR, seed=3), observe(far, NEAR, seed=4)
    matches = joined(mover, world)
    rival = fitter.rival(matches, fitter.refine(matches, FAR), share=0.08)
    assert rival is not None
    assert miss(rival.motion, NEAR) < 0.01
    assert rival.share == pytest.approx(len(far) / len(matches), abs=0.02)


def test_a_mover_before_the_world_is_no_rival_of_it(fitter, scatter, observe):
    points = scatter(400)
    near, far = points[points[:, 2] < 2.0][:60], points[points[:, 2] > 2.0]
    matches = joined(observe(near, FAR, seed=3), observe(far, NEAR, seed=4))
    assert fitter.rival(matches, fitter.refine(matches, NEAR), share=0.08) is None


def test_a_first_pair_is_freed_from_a_near_mover(camera, fitter, scatter, observe):
    points = scatter(400)
    near, far = points[points[:, 2] < 2.2], points[points[:, 2] > 2.2]
    half, way = (se3.exp(torch.tensor([x, 0.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)) for x in (0.03, 0.06))
    matches = joined(observe(near, way @ NEAR, seed=3), observe(far, NEAR, seed=4))
    compromise = refine(camera, matches, half @ NEAR, max_iterations=0)
    freed = fitter.unmixed(matches, compromise, (se3.identity(), half @ NEAR), NO_SHEAR)
    assert miss(freed.motion, NEAR) < 0.003


def test_a_first_pair_is_not_left_to_far_points_whose_depth_is_biased(fitter, scatter, observe):
    points = scatter(600)
    points[:200] *= 12
    exact = observe(points, NEAR, seed=3, pixel=0.1)
    # As a stereo pair has it that is turned beside its calibration: beyond its baseline all seems as far.
    matches = replace(exact, rho=(exact.rho - 0.03).clamp_min(1e-3), seen_rho=(exact.seen_rho - 0.03).clamp_min(1e-3))
    fit = fitter.refine(matches, NEAR)
    assert float(fit.agreeing.double().mean()) > 0.7
    assert fitter.unmixed(matches, fit, (se3.identity(), NEAR), NO_SHEAR, biased=True) is fit


def test_a_first_pair_of_a_still_world_is_left_as_it_is(fitter, scatter, observe):
    matches = observe(scatter(400), NEAR, seed=3)
    fit = fitter.refine(matches, NEAR)
    assert fitter.unmixed(matches, fit, (se3.identity(), NEAR), NO_SHEAR) is fit


@pytest.fixture
def layers(camera, scatter, observe):
    """Returns matches of a far and of a near layer, what is near being off by a share of how far it has gone."""

    def make(off, motion=NEAR):
        points = scatter(600)
        far, near = points[points[:, 2] > 3][:140], points[points[:, 2] < 2][:60]
        near = observe(near / near[:, 2:] * 0.7, motion, seed=6, pixel=0.3, seen=False)
        aside = (near.pixels - camera.project(near.direction)).flip(-1) * torch.tensor((-1.0, 1.0))
        near.pixels[:] += off * aside * torch.linspace(-1, 1, 60)[:, None]
        return joined(observe(far, NEAR, seed=5, pixel=0.3, seen=False), near)

    return make


def test_what_is_near_is_heard_where_a_lens_is_not_as_it_is_taken_to_be(fitter, layers):
    matches, everything = layers(0.06), torch.ones(200, dtype=torch.bool)
    strict = fitter.refine(matches, NEAR)
    fit = fitter.lenient(matches, strict, NEAR, NO_SHEAR, everything)
    assert float((strict.weight[140:] > 0.25).double().mean()) < 0.6
    assert float((fit.weight[140:] > 0.25).double().mean()) > 0.8
    assert float((fit.weight[:140] > 0.25).double().mean()) > 0.9


def test_what_agrees_or_moves_on_its_own_changes_nothing(fitter, layers):
    aside = se3.exp(torch.tensor([0.05, 0.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64))
    for matches in (layers(0.0), layers(0.0, aside @ NEAR)):
        fit = fitter.refine(matches, NEAR)
        assert fitter.lenient(matches, fit, NEAR, NO_SHEAR, torch.ones(200, dtype=torch.bool)) is fit
