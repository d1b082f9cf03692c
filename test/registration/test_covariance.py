"""How covariances travel, against many random draws."""

from dataclasses import replace

import pytest
import torch

from flowodom.geometry import se3
from flowodom.registration.covariance import UNOBSERVED, along_parent, compose, fit_covariance, miscalibrated
from flowodom.registration.refine import refine


def spd(seed, size):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    return size**2 * (root @ root.T / 6 + 0.2 * torch.eye(6, dtype=torch.float64))


def draws(covariance, count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 6, generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(covariance).T


@pytest.fixture(scope="module")
def fit(camera, scatter, observe):
    return refine(camera, observe(scatter(50), se3.identity()), se3.identity(), max_iterations=1)


def test_a_calibration_that_may_be_off_makes_way_and_turn_as_unsure_whichever_way_they_led():
    motion = se3.exp(torch.tensor([3.0, 0.0, 4.0, 0.0, 0.2, 0.0], dtype=torch.float64))
    known = spd(3, 1e-3)
    added = miscalibrated(known, motion, 0.01) - known
    way, turn = float(motion[:3, 3].norm()), 0.2
    expected = torch.tensor(3 * [way] + 3 * [turn], dtype=torch.float64)
    torch.testing.assert_close(added, torch.diag((0.01 * expected) ** 2))


def test_nothing_of_a_calibration_that_may_be_off_is_left_where_the_camera_came_back():
    known = spd(4, 1e-3)
    torch.testing.assert_close(miscalibrated(known, se3.identity(), 0.1), known)


def test_compose_agrees_with_random_draws():
    first, second = se3.exp(torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    a, b = spd(1, 0.01), spd(2, 0.015)
    count = 40_000
    drawn = first @ se3.exp(draws(a, count, 3)) @ second @ se3.exp(draws(b, count, 4))
    error = se3.log(se3.inverse(first @ second) @ drawn)
    sampled = error.T @ error / count
    stated = compose(a, second, b)
    scale = stated.diagonal().sqrt()
    torch.testing.assert_close(sampled / scale / scale[:, None], stated / scale / scale[:, None], atol=0.03, rtol=0)


def test_a_pose_known_exactly_adds_nothing_and_neither_does_rest():
    motion = se3.exp(torch.tensor([0.3, 0.1, -0.2, 0.1, 0.4, -0.3], dtype=torch.float64))
    zero, some = torch.zeros(6, 6, dtype=torch.float64), spd(5, 0.1)
    torch.testing.assert_close(compose(zero, motion, some), some)
    torch.testing.assert_close(compose(some, se3.identity(), zero), some)


def test_composing_is_associative():
    motions = se3.exp(torch.randn(2, 6, generator=torch.Generator().manual_seed(7), dtype=torch.float64))
    a, b, c = (spd(seed, 0.1) for seed in (8, 9, 10))
    one_by_one = compose(compose(a, motions[0], b), motions[1], c)
    torch.testing.assert_close(one_by_one, compose(a, motions[0] @ motions[1], compose(b, motions[1], c)))


def test_covariance_is_the_inverse_information_times_its_inflation(fit):
    information = torch.linalg.inv(spd(11, 0.01))
    covariance = fit_covariance(replace(fit, information=information, inflation=2.0))
    torch.testing.assert_close(covariance, 2 * torch.linalg.inv(information))


def test_what_is_not_observed_has_a_huge_variance_and_only_that(fit):
    information = torch.diag(torch.tensor([0.0, 0.0, 0.0, 1e6, 1e6, 1e6], dtype=torch.float64))
    covariance = fit_covariance(replace(fit, information=information, inflation=1.0))
    assert covariance.isfinite().all()
    torch.testing.assert_close(covariance.diagonal()[:3], torch.full((3,), UNOBSERVED, dtype=torch.float64))
    assert covariance.diagonal()[3:].max() == pytest.approx(1e-6)


def test_along_the_parents_axes_a_turned_body_keeps_what_it_is_sure_of():
    turned = se3.exp(torch.tensor([1.0, 2.0, 3.0, 0.0, 0.0, torch.pi / 2], dtype=torch.float64))
    own = torch.diag(torch.tensor([1.0, 4.0, 9.0, 0.1, 0.2, 0.3], dtype=torch.float64))
    expected = torch.diag(torch.tensor([4.0, 1.0, 9.0, 0.2, 0.1, 0.3], dtype=torch.float64))
    torch.testing.assert_close(along_parent(own, turned), expected)
