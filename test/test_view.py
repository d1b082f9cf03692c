"""A frame as it is looked at: points found in it, and what may not be looked for."""

import cv2
import numpy as np
import pytest
import torch

from flowodom.depth import InverseDepth
from flowodom.flow import DenseFlow
from flowodom.frame import Frame
from flowodom.geometry import se3
from flowodom.registration.planes import Patches
from flowodom.view import View, read
from flowodom.worlds import pinhole

CAMERA = pinhole(320, 240)
TURN = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.02, 0.0], dtype=torch.float64)


def picture(seed=0):
    noise = np.random.default_rng(seed).integers(0, 255, (CAMERA.height, CAMERA.width)).astype(np.float32)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def view(grey, *, ignore=None, dense=(60, 80), depth=None):
    small = torch.from_numpy(cv2.resize(grey, dense[::-1], interpolation=cv2.INTER_AREA))
    return View(Frame(1, grey, CAMERA, ignore=ignore), grey, small, depth)


@pytest.fixture
def patches():
    """What a keyframe shows around 48 points of a wall at 2 m."""
    places = torch.stack(torch.meshgrid(torch.arange(40.0, 300, 32), torch.arange(40.0, 220, 32), indexing="xy"), -1)
    places = places.reshape(-1, 2).double()
    rays = CAMERA.rays(places)
    rho = torch.full_like(rays[:, 0], 0.5)
    return Patches.around(picture(), places, rays, rho, 0.01 * rho)


def nowhere(patches):
    return torch.full_like(patches.places, torch.nan)


def turned(grey):
    """The picture as a camera that has turned by ``TURN`` sees it."""
    rotation = se3.exp(TURN)[:3, :3].numpy()
    matrix = CAMERA.matrix.numpy()
    return cv2.warpPerspective(grey, matrix @ rotation @ np.linalg.inv(matrix), grey.shape[::-1])


def test_points_are_found_where_they_went(patches):
    seen, found, _ = view(turned(patches.grey)).find(patches, se3.identity(), nowhere(patches), levels=2)
    there = CAMERA.project(patches.rays @ se3.exp(TURN)[:3, :3].T)
    assert float(found.double().mean()) > 0.9
    assert float((seen - there)[found].norm(dim=-1).median()) < 0.1


def test_nothing_is_found_under_a_mask(patches):
    ignore = np.zeros(patches.grey.shape, dtype=np.bool_)
    ignore[:, :160] = True
    _, found, _ = view(patches.grey, ignore=ignore).find(patches, se3.identity(), nowhere(patches))
    left = patches.places[:, 0] < 159
    assert not found[left].any()
    assert float(found[~left].double().mean()) > 0.9


def test_nothing_is_looked_for_outside_the_image(patches):
    aside = se3.exp(torch.tensor([0, 0, 0, 0, 3.0, 0], dtype=torch.float64))
    seen, found, _ = view(patches.grey).find(patches, aside, nowhere(patches))
    assert not found.any()
    assert seen.isnan().all()


def test_dense_flow_carries_points_in_pixels_of_the_full_image():
    there, ones = torch.tensor((1.0, -2.0)).expand(60, 80, 2), torch.ones(60, 80)
    flow = DenseFlow(there, -there, ones, ones)
    places = torch.tensor([[100.0, 100.0], [torch.nan, torch.nan]], dtype=torch.float64)
    there = view(picture()).carried(places, flow)
    torch.testing.assert_close(there[0], torch.tensor([104.0, 92.0], dtype=torch.float64))
    assert there[1].isnan().all()


def test_what_is_masked_may_not_be_chosen_and_without_a_mask_all_may():
    ignore = np.zeros((CAMERA.height, CAMERA.width), dtype=np.bool_)
    ignore[3, 4] = True
    assert view(picture()).unfit(None) is None
    np.testing.assert_array_equal(view(picture(), ignore=ignore).unfit(None), ignore)


def test_depth_is_unknown_without_a_field():
    rho, variance = read(None, CAMERA, torch.zeros(3, 2, dtype=torch.float64))
    assert rho.isnan().all()
    assert variance.isinf().all()


def test_depth_is_read_from_the_view():
    small = CAMERA.resized(80, 60)
    depth = InverseDepth(small, torch.full((60, 80), 0.5), torch.full((60, 80), 1e-4))
    rho, variance = view(picture(), depth=depth).measured(torch.tensor([[100.0, 100.0]], dtype=torch.float64))
    assert float(rho) == pytest.approx(0.5)
    assert float(variance) > 0
