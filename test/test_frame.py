import numpy as np
import pytest

from flowodom.errors import ShapeError
from flowodom.frame import Frame
from flowodom.geometry import PinholeCamera

CAMERA = PinholeCamera(20.0, 20.0, 7.5, 5.5, 16, 12)


def grey(*shape):
    return np.zeros(shape or (12, 16), np.uint8)


def test_a_grey_image_is_its_own_luminance():
    image = grey()
    assert Frame(5, image, CAMERA).grey is image


def test_colours_become_luminance_as_rgb():
    image = grey(12, 16, 3)
    image[..., 0] = 200
    red = Frame(0, image, CAMERA).grey
    assert red.shape == (12, 16)
    assert red.dtype == np.uint8
    assert (red == round(0.299 * 200)).all()


def test_depth_and_mask_are_kept():
    depth, ignore = np.ones((12, 16), np.float32), np.zeros((12, 16), bool)
    frame = Frame(0, grey(), CAMERA, depth, ignore)
    assert frame.depth is depth
    assert frame.ignore is ignore
    coarse = np.ones((6, 8), np.float32)
    assert Frame(0, grey(), CAMERA, coarse).depth is coarse


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((12, 16), np.float32), r"image must be uint8 .* got float32 \(12, 16\)"),
        (np.zeros((16, 12), np.uint8), r"\(12, 16\) or \(12, 16, 3\) .* got uint8 \(16, 12\)"),
        (np.zeros((12, 16, 4), np.uint8), r"got uint8 \(12, 16, 4\)"),
    ],
)
def test_images_that_do_not_fit_are_named(image, message):
    with pytest.raises(ShapeError, match=message):
        Frame(0, image, CAMERA)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"depth": np.ones((12, 16))}, "depth must be float32 .* got float64"),
        ({"depth": np.ones((16, 12), np.float32)}, r"depth must be .* got float32 \(16, 12\)"),
        ({"depth": np.ones((24, 32), np.float32)}, r"depth must be .* got float32 \(24, 32\)"),
        ({"ignore": np.ones((12, 16), np.uint8)}, "ignore must be bool .* got uint8"),
        ({"ignore": np.ones((3, 3), bool)}, r"ignore must be bool .* got bool \(3, 3\)"),
    ],
)
def test_depth_and_masks_that_do_not_fit_are_named(extra, message):
    with pytest.raises(ShapeError, match=message):
        Frame(0, grey(), CAMERA, **extra)
