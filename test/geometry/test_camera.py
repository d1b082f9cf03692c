"""The pinhole camera."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from flowodom.errors import CalibrationError
from flowodom.geometry import PinholeCamera

CAMERA = PinholeCamera(fx=310.0, fy=305.0, cx=161.3, cy=118.2, width=320, height=240)


def random_points(count=50):
    uniform = torch.rand(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return torch.stack((2 * uniform[:, 0] - 1, 1.5 * uniform[:, 1] - 0.7, 0.3 + 5 * uniform[:, 2]), dim=-1)


def test_the_optical_axis_meets_the_principal_point():
    pixel = CAMERA.project(torch.tensor((0.0, 0.0, 2.0)))
    torch.testing.assert_close(pixel, torch.tensor((161.3, 118.2)))


def test_x_is_right_and_y_is_down():
    u, v = CAMERA.project(torch.tensor((1.0, 0.5, 2.0))).tolist()
    assert u == pytest.approx(161.3 + 310 / 2)
    assert v == pytest.approx(118.2 + 305 / 4)


def test_the_matrix_projects():
    points = random_points()
    seen = points @ CAMERA.matrix.T
    torch.testing.assert_close(seen[:, :2] / seen[:, 2:], CAMERA.project(points))


def test_unproject_undoes_project():
    points = random_points()
    back = CAMERA.unproject(CAMERA.project(points), points[:, 2])
    torch.testing.assert_close(back, points, atol=1e-12, rtol=0)


def test_project_undoes_unproject():
    pixels = CAMERA.pixels(dtype=torch.float64)
    depth = 1 + torch.rand(240, 320, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(CAMERA.project(CAMERA.unproject(pixels, depth)), pixels, atol=1e-10, rtol=0)


def test_agrees_with_opencv():
    cv2 = pytest.importorskip("cv2")
    import numpy as np

    matrix = np.array([[CAMERA.fx, 0, CAMERA.cx], [0, CAMERA.fy, CAMERA.cy], [0, 0, 1]])
    points = random_points()
    expected, _ = cv2.projectPoints(points.numpy(), np.zeros(3), np.zeros(3), matrix, None)
    torch.testing.assert_close(CAMERA.project(points), torch.from_numpy(expected[:, 0]), atol=1e-9, rtol=0)


def test_pixels_are_columns_then_rows():
    pixels = CAMERA.pixels()
    assert pixels.shape == (240, 320, 2)
    assert pixels.dtype == torch.float32
    assert pixels[7, 11].tolist() == [11, 7]


def test_a_slice_picks_rows_and_columns():
    assert torch.equal(CAMERA.pixels(which=slice(1, None, 3)), CAMERA.pixels()[1::3, 1::3])


def test_rays_have_unit_depth():
    rays = CAMERA.rays(CAMERA.pixels(dtype=torch.float64))
    assert (rays[..., 2] == 1).all()
    torch.testing.assert_close(CAMERA.project(3.5 * rays), CAMERA.pixels(dtype=torch.float64))


def test_jacobian_is_the_derivative_of_project():
    points = random_points(6)
    numeric = torch.stack([torch.autograd.functional.jacobian(CAMERA.project, p) for p in points])
    torch.testing.assert_close(CAMERA.projection_jacobian(points), numeric, atol=1e-10, rtol=0)


def test_derivatives():
    points, pixels = random_points(6), CAMERA.project(random_points(6))
    depth = points[:, 2].clone()
    assert gradcheck(CAMERA.project, (points.requires_grad_(),))
    assert gradcheck(CAMERA.unproject, (pixels.requires_grad_(), depth.requires_grad_()))
    assert gradcheck(CAMERA.projection_jacobian, (points,))


def test_points_behind_the_camera_stay_finite_and_are_not_visible():
    points = torch.tensor([(0.1, 0.2, -1.0), (0.0, 0.0, 0.0), (0.0, 0.0, -1e-9)], requires_grad=True)
    pixels = CAMERA.project(points)
    pixels.sum().backward()
    assert pixels.isfinite().all()
    assert points.grad.isfinite().all()
    assert CAMERA.projection_jacobian(points).isfinite().all()
    assert not CAMERA.visible(points).any()


def test_contains_reaches_to_the_last_pixel_centre():
    pixels = torch.tensor([(0.0, 0.0), (319.0, 239.0), (319.1, 5.0), (5.0, 239.1), (-0.1, 5.0), (5.0, -0.1)])
    assert CAMERA.contains(pixels).tolist() == [True, True, False, False, False, False]
    assert CAMERA.contains(torch.tensor([(4.0, 4.0), (3.9, 4.0), (315.0, 235.0)]), border=4).tolist() == [
        True,
        False,
        True,
    ]


def test_nothing_unknown_is_contained():
    unknown = torch.full((3,), math.nan)
    assert not CAMERA.contains(unknown[:2])
    assert not CAMERA.visible(unknown)


def test_visible_is_in_front_and_in_the_image():
    inside, beside = (0.0, 0.0, 2.0), (5.0, 0.0, 2.0)
    behind = (0.0, 0.0, -2.0)
    assert CAMERA.visible(torch.tensor([inside, beside, behind])).tolist() == [True, False, False]
    assert not CAMERA.visible(torch.tensor(inside), min_depth=3.0)


@pytest.mark.parametrize("factor", [0.5, 0.25, 2.0])
def test_scaled_sees_the_same_rays(factor):
    scaled = CAMERA.scaled(factor)
    assert (scaled.width, scaled.height) == (320 * factor, 240 * factor)
    points = random_points()
    # The same place in the image: its distance from the image's corner, half a pixel before the first centre.
    torch.testing.assert_close((scaled.project(points) + 0.5) / factor, CAMERA.project(points) + 0.5)


def test_scaled_by_half_agrees_with_averaging_blocks():
    values = CAMERA.rays(CAMERA.pixels(dtype=torch.float64)).permute(2, 0, 1)
    blocks = torch.nn.functional.avg_pool2d(values, 2).permute(1, 2, 0)
    half = CAMERA.scaled(0.5)
    torch.testing.assert_close(half.rays(half.pixels(dtype=torch.float64)), blocks)


def test_focal_is_the_mean():
    assert CAMERA.focal == 307.5


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (0,)])
def test_leading_shapes(shape):
    points = torch.ones(*shape, 3)
    assert CAMERA.project(points).shape == (*shape, 2)
    assert CAMERA.projection_jacobian(points).shape == (*shape, 2, 3)
    assert CAMERA.unproject(points[..., :2], points[..., 0]).shape == (*shape, 3)
    assert CAMERA.visible(points).shape == shape


def test_dtype_is_kept():
    assert CAMERA.project(torch.ones(3)).dtype == torch.float32
    assert CAMERA.rays(torch.ones(2, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fx": 0.0}, "focal"),
        ({"fy": -5.0}, "focal"),
        ({"fx": math.nan}, "focal"),
        ({"fy": math.inf}, "focal"),
        ({"cx": math.nan}, "principal"),
        ({"width": 0}, "size"),
        ({"height": -1}, "size"),
    ],
)
def test_an_impossible_camera_is_refused(changed, message):
    values = {"fx": 300.0, "fy": 300.0, "cx": 160.0, "cy": 120.0, "width": 320, "height": 240}
    with pytest.raises(CalibrationError, match=message):
        PinholeCamera(**(values | changed))


def test_resized_sees_the_same_and_agrees_with_scaled():
    assert CAMERA.resized(CAMERA.width // 2, CAMERA.height // 2) == CAMERA.scaled(0.5)
    squeezed = CAMERA.resized(CAMERA.width, CAMERA.height // 2)
    points = torch.tensor([[0.1, -0.2, 2.0], [-0.4, 0.3, 1.5]], dtype=torch.float64)
    there, before = squeezed.project(points), CAMERA.project(points)
    torch.testing.assert_close(there[:, 0], before[:, 0])
    torch.testing.assert_close((there[:, 1] + 0.5) * 2, before[:, 1] + 0.5)
