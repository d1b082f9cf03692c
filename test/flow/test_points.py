"""Choosing and following points."""

import cv2
import numpy as np
import pytest
import torch

from flowodom.flow.points import amplify, choose, follow, gain, match_noise, thin


@pytest.fixture
def image(picture):
    return picture(120, 160).numpy()


def inner(pixels):
    """Returns whether all that a search window sees lies in both pictures."""
    return ((pixels > 17) & (pixels < torch.tensor((142, 102)))).all(-1)


def test_points_are_spread_over_the_image(image):
    points = choose(image, 120)
    assert 80 <= len(points) <= 200
    assert points.dtype == torch.float64
    quadrant = (points[:, 0] > 79.5).long() + 2 * (points[:, 1] > 59.5).long()
    assert torch.bincount(quadrant, minlength=4).min() > 0.15 * len(points)
    assert (points >= 0).all()
    assert (points < torch.tensor((160, 120))).all()


def test_of_a_crowd_the_first_in_each_cell_stays():
    pixels = torch.tensor([[5.0, 5.0], [6.0, 6.0], [35.0, 5.0], [5.0, 35.0], [4.0, 4.0], [34.0, 6.0]])
    assert thin(pixels, 12, (60, 80)).tolist() == [True, False, True, True, False, False]
    assert thin(pixels[:0], 12, (60, 80)).shape == (0,)


def test_what_was_chosen_is_hardly_thinned(image):
    points = choose(image, 120)
    assert thin(points, 120, image.shape).double().mean() > 0.7


def test_more_are_chosen_when_more_are_asked_for(image):
    assert len(choose(image, 300)) > 1.5 * len(choose(image, 100))


def test_nothing_is_chosen_where_there_is_nothing(image):
    assert len(choose(np.full((120, 160), 77, np.uint8), 100)) == 0
    half = image.copy()
    half[:, 80:] = 77
    assert choose(half, 100)[:, 0].max() < 90


def test_nothing_is_chosen_along_an_edge():
    edge = np.full((120, 160), 60, np.uint8)
    edge[:, 80:] = 200
    assert len(choose(edge, 100)) == 0


@pytest.mark.parametrize("noise", [3, 4])
def test_hardly_anything_is_chosen_along_an_edge_that_noise_has_made_uneven(noise):
    v, u = np.mgrid[:240, :320].astype(np.float32)
    away = np.cos(0.6) * (u - 160) + np.sin(0.6) * (v - 120)
    edge = 128 + 90 * np.tanh(away / 2) + np.random.default_rng(0).normal(0, noise, away.shape)
    points = choose(edge.clip(0, 255).round().astype(np.uint8), 600)
    on = np.abs(np.cos(0.6) * (points[:, 0] - 160) + np.sin(0.6) * (points[:, 1] - 120)) < 4
    assert on.sum() <= 3


def stripes(angle, contrast=60.0, across=0.1):
    """Returns stripes whose gradient points to an angle, with weaker ones across them."""
    v, u = np.mgrid[:120, :160].astype(np.float32)
    along, beside = np.cos(angle) * u + np.sin(angle) * v, np.cos(angle) * v - np.sin(angle) * u
    return 128 + contrast * (np.sin(0.5 * along) + across * np.sin(0.5 * beside))


@pytest.mark.parametrize("angle", [0.0, 0.4, 2.0])
def test_matches_are_unsure_along_an_edge(angle):
    points = torch.tensor([[60.0, 50.0], [90.0, 70.0]], dtype=torch.float64)
    noise = match_noise(stripes(angle).round().astype(np.uint8), points)
    variance, direction = torch.linalg.eigh(noise)
    assert variance[:, 0].numpy() == pytest.approx(1, rel=0.05)
    assert variance[:, 1].numpy() == pytest.approx(100, rel=0.4)
    assert (direction[:, :, 0] @ torch.tensor([np.cos(angle), np.sin(angle)], dtype=torch.float64)).abs().min() > 0.99


def test_matches_of_weak_contrast_are_unsure_whatever_the_direction():
    points = torch.tensor([[60.0, 50.0]], dtype=torch.float64)
    strong, weak = (match_noise(stripes(0.4, c, 1.0).round().astype(np.uint8), points) for c in (60.0, 3.0))
    assert (weak.diagonal(dim1=1, dim2=2) > 2 * strong.diagonal(dim1=1, dim2=2)).all()
    flat = match_noise(np.full((120, 160), 77, np.uint8), points)
    assert (torch.linalg.eigvalsh(flat) > 1e3).all()


def test_the_noise_of_matches_is_told_at_the_border_and_for_none(image):
    corners = torch.tensor([[0.0, 0.0], [159.0, 119.0]], dtype=torch.float64)
    assert match_noise(image, corners).isfinite().all()
    assert match_noise(image, corners[:0]).shape == (0, 2, 2)


def test_errors_of_matches_are_as_they_are_told_to_be():
    """Lucas-Kanade on noisy stripes that have not moved, against what is told of it."""
    random, points = np.random.default_rng(3), torch.from_numpy(np.mgrid[20:140:8, 20:100:8].reshape(2, -1).T).double()
    clean = stripes(0.4, across=0.3)
    one, two = ((clean + random.normal(0, 4, clean.shape)).clip(0, 255).round().astype(np.uint8) for _ in range(2))
    there, found = follow(one, two, points, points)
    error, noise = (there - points)[found], match_noise(one, points)[found]
    direction = torch.linalg.eigh(noise)[1]
    across, along = ((error[:, None] @ direction)[:, 0]).square().mean(0).sqrt()
    told = torch.linalg.eigvalsh(noise).mean(0).sqrt()
    assert float(found.double().mean()) > 0.9
    assert float(along / across) == pytest.approx(float(told[1] / told[0]), rel=0.3)


def test_cells_that_are_taken_get_no_new_point(image):
    points = choose(image, 120)
    assert len(choose(image, 120, taken=points)) == 0
    left = points[points[:, 0] < 70]
    fresh = choose(image, 120, taken=left)
    assert len(fresh)
    assert torch.cdist(fresh, left).min() > 0
    assert len(fresh) + len(left) == pytest.approx(len(points), abs=4)
    assert len(choose(image, 120, taken=points[:0])) == len(points)


def test_nothing_is_chosen_in_what_is_to_be_ignored(image):
    ignore = np.zeros((120, 160), bool)
    ignore[30:80, 50:120] = True
    points = choose(image, 200, ignore=ignore).round().long()
    assert not ignore[points[:, 1], points[:, 0]].any()
    assert len(choose(image, 200, ignore=~np.zeros((120, 160), bool))) == 0


def test_colours_of_odd_sizes_do_not_matter(picture):
    assert len(choose(picture(121, 163).numpy(), 100)) > 40


@pytest.mark.parametrize("step", [(0.0, 0.0), (0.4, -0.3), (3.3, 2.6)])
def test_points_are_followed_to_a_hundredth_of_a_pixel(translated, step):
    previous, current, _ = translated(*step)
    points = choose(previous.numpy(), 120)
    there, found = follow(previous.numpy(), current.numpy(), points, points + torch.tensor(step).round())
    error = (there - points - torch.tensor(step, dtype=torch.float64)).norm(dim=-1)
    assert found.double().mean() > 0.85
    error = error[found & inner(there)]
    assert error.median() < 0.02
    assert error.quantile(0.95) < 0.06


def test_a_guess_that_is_a_few_pixels_off_does_no_harm(translated):
    previous, current, _ = translated(5.0, -4.0)
    points = choose(previous.numpy(), 120)
    there, found = follow(previous.numpy(), current.numpy(), points, points + torch.tensor((7.0, -2.0)))
    assert found.double().mean() > 0.6
    error = (there - points - torch.tensor((5.0, -4.0)))[found & inner(there)].norm(dim=-1)
    assert error.quantile(0.9) < 0.1


def test_points_that_leave_the_image_are_not_found(translated):
    previous, current, _ = translated(20.0, 0.0)
    points = choose(previous.numpy(), 200)
    _, found = follow(previous.numpy(), current.numpy(), points, points + torch.tensor((20.0, 0.0)))
    gone = points[:, 0] + 20 > 159
    assert gone.any()
    assert not found[gone].any()


def test_points_are_not_found_in_another_picture(image, picture):
    points = choose(image, 150)
    other = picture(120, 160, lambda pixels: pixels.flip(-1) * 1.7 + 400).numpy()
    _, found = follow(image, other, points, points)
    # Small windows look alike by chance; the pose fit asks for more than a third that agree besides.
    assert found.double().mean() < 0.33


def test_noise_is_found_nowhere():
    random = np.random.default_rng(0)
    one, other = (random.normal(60, 12, (240, 320)).clip(0, 255).astype(np.uint8) for _ in range(2))
    pixels = choose(one, 900)
    assert len(pixels) > 500
    _, found = follow(one, other, pixels, pixels)
    assert found.double().mean() < 0.02


def test_no_points_are_followed_nowhere(image):
    none = torch.zeros(0, 2, dtype=torch.float64)
    there, found = follow(image, image, none, none)
    assert there.shape == (0, 2)
    assert found.shape == (0,)


@pytest.mark.parametrize("warp", [[[1.3, 0.0], [0.0, 1.3]], [[1.1, 0.15], [-0.05, 0.8]]])
def test_patches_are_sought_as_they_are_seen(picture, warp):
    warp, middle = torch.tensor(warp, dtype=torch.float64), torch.tensor((80.0, 60.0), dtype=torch.float64)
    back = torch.linalg.inv(warp)
    first = picture(120, 160).numpy()
    second = picture(120, 160, lambda pixels: (pixels.double() - middle) @ back.T + middle).numpy()
    points = choose(first, 120)
    true = (points - middle) @ warp.T + middle
    asked = inner(true) & inner(points)
    points, true = points[asked], true[asked]

    def missed(*warps):
        there, found = follow(first, second, points, true + 0.4, *warps)
        return found.double().mean(), (there - true)[found].norm(dim=-1).median()

    share, error = missed(warp.expand(len(points), 2, 2))
    unwarped_share, unwarped_error = missed()
    assert share > 0.85
    assert error < 0.04
    assert error < 0.3 * unwarped_error
    assert share >= unwarped_share


def test_points_are_followed_into_a_brighter_image(translated):
    previous, current, _ = translated(1.4, -0.7)
    points = choose(previous.numpy(), 120)
    there, found = follow(amplify(previous.numpy(), 0.7), current.numpy(), points, points + torch.tensor((1.0, -1.0)))
    error = (there - points - torch.tensor((1.4, -0.7), dtype=torch.float64)).norm(dim=-1)[found & inner(there)]
    assert found.double().mean() > 0.85
    assert error.median() < 0.03


def test_a_guess_that_is_farther_off_needs_the_pyramid(translated):
    previous, current, _ = translated(12.0, 9.0)
    points = choose(previous.numpy(), 120)
    _, near = follow(previous.numpy(), current.numpy(), points, points)
    there, found = follow(previous.numpy(), current.numpy(), points, points, levels=2)
    error = (there - points - torch.tensor((12.0, 9.0)))[found & inner(there)].norm(dim=-1)
    assert near.double().mean() < 0.2
    assert error.median() < 0.05
    assert len(error) > 0.3 * len(points)


def test_the_change_of_exposure_is_told():
    image = np.random.default_rng(5).integers(30, 150, (15, 20)).astype(np.uint8)
    image = cv2.resize(image, (320, 240), interpolation=cv2.INTER_CUBIC)
    brighter = cv2.convertScaleAbs(np.roll(image, 3, axis=1), alpha=1.3)
    assert gain(image, brighter) == pytest.approx(1.3, rel=0.01)


def test_noise_and_motion_are_no_change_of_exposure():
    generator = np.random.default_rng(6)
    image = cv2.resize(
        generator.integers(30, 200, (15, 20)).astype(np.uint8), (320, 240), interpolation=cv2.INTER_CUBIC
    )
    noise = generator.normal(0, 3, image.shape)
    same = np.clip(np.roll(image, 5, axis=1) + noise, 0, 255).astype(np.uint8)
    assert gain(image, same) == 1.0


@pytest.mark.parametrize("level", [0, 255])
def test_black_and_white_tell_no_exposure(level):
    image = np.full((48, 64), level, dtype=np.uint8)
    assert gain(image, np.full((48, 64), 100, dtype=np.uint8)) == 1.0
