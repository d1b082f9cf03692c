"""Images whose rows are exposed one after another."""

import pytest
import torch

from flowodom.geometry import se3
from flowodom.registration.refine import Matches, refine
from flowodom.registration.shear import NO_SHEAR, Shear, rows, sheared

SHEAR = torch.tensor([0.02, -0.01, 0.03, 0.01, -0.02, 0.015], dtype=torch.float64)


def test_rows_count_from_the_first_to_the_last(camera):
    pixels = torch.tensor([[0.0, 0.0], [5.0, camera.height - 1]], dtype=torch.float64)
    assert rows(camera, pixels).tolist() == [-0.5, 0.5]


def test_a_row_shows_what_a_displaced_camera_sees(camera, scatter):
    points = scatter(50)
    pixels, rho = camera.project(points), 1 / points[:, 2]
    there, farther = sheared(camera, pixels, rho, SHEAR)
    for k in range(50):
        displaced = se3.act(se3.exp(rows(camera, pixels)[k] * SHEAR), points[k])
        # To first order in the shear.
        assert float((there[k] - camera.project(displaced)).norm()) < 0.05
        assert float(farther[k] / rho[k]) == pytest.approx(float(displaced[2]), rel=1e-3)


def test_a_negative_shear_frees_an_image(camera, scatter):
    points = scatter(50)
    pixels = camera.project(points)
    there, farther = sheared(camera, pixels, 1 / points[:, 2], SHEAR)
    back, nearer = sheared(camera, there, 1 / points[:, 2] / farther, -SHEAR)
    assert float((there - pixels).norm(dim=1).median()) > 1.0
    assert float((back - pixels).norm(dim=1).max()) < 0.1
    torch.testing.assert_close(nearer * farther, torch.ones_like(farther), rtol=0, atol=2e-3)


def test_what_the_camera_would_move_past_stays_before_it(camera):
    pixels, near = torch.tensor([[160.0, 0.0]], dtype=torch.float64), torch.tensor([1e4], dtype=torch.float64)
    there, farther = sheared(camera, pixels, near, torch.tensor([0, 0, 1.0, 0, 0, 0], dtype=torch.float64))
    assert 0 < float(farther) < 0.01
    assert there.isfinite().all()


def test_far_points_are_sheared_by_turning_alone(camera, scatter):
    pixels, far = camera.project(scatter(20)), torch.zeros(20, dtype=torch.float64)
    moved, _ = sheared(camera, pixels, far, torch.tensor([1.0, 2, 3, 0, 0, 0], dtype=torch.float64))
    torch.testing.assert_close(moved, pixels)


def test_a_shear_that_goes_with_the_motion_is_fitted_with_it(camera, scatter, observe):
    """The gain ties the shear to a motion that is not known yet; both come out, from a start that has neither."""
    points, motion = scatter(200), se3.exp(torch.tensor([0.03, 0.02, -0.02, 0.02, -0.03, 0.01], dtype=torch.float64))
    shear = 0.75 * se3.log(motion)
    exact = observe(points, motion, seen=False)
    pixels, _ = sheared(camera, exact.pixels, 1 / se3.act(motion, points)[:, 2], shear)
    # A row is that in which a point is seen, by a hair another than where it would lie.
    for _ in range(3):
        place = se3.act(motion, points)
        moved = torch.linalg.cross(shear[3:].expand_as(place), place) + shear[:3]
        pixels = camera.project(place + rows(camera, pixels)[:, None] * moved)
    matches = Matches(**{**vars(exact), "pixels": pixels, "row": rows(camera, pixels)})
    tied = Shear(NO_SHEAR.constant, 0.75, se3.identity(), 1e8 * torch.eye(6, dtype=torch.float64))
    fit = refine(camera, matches, se3.identity(), max_iterations=20, shear=tied)
    torch.testing.assert_close(fit.motion, motion, rtol=0, atol=5e-5)
    torch.testing.assert_close(fit.shear, shear, rtol=0, atol=5e-5)
    ignored = refine(camera, matches, se3.identity(), max_iterations=20)
    assert float(se3.log(se3.inverse(ignored.motion) @ motion).norm()) > 1e-3
    assert not ignored.shear.any()
