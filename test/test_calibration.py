from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
import torch
from conftest import texture

from flowodom.calibration import Calibration, between
from flowodom.errors import CalibrationError
from flowodom.geometry import PinholeCamera, se3

CAMERA = PinholeCamera(fx=210.0, fy=205.0, cx=158.3, cy=121.7, width=320, height=240)
K = np.array([[210.0, 0, 158.3], [0, 205.0, 121.7], [0, 0, 1]])

LENSES = {
    "plumb_bob": [-0.28, 0.07, 1e-3, -5e-4, 0.01],
    "rational_polynomial": [0.5, 0.1, 1e-3, -5e-4, 0.02, 0.9, 0.3, 0.05],
    "equidistant": [-0.02, 0.01, -0.005, 0.001],
}


def info_of(factory, model="plumb_bob", distortion=(0.0,) * 5, **changes):
    info = factory.camera_info(0, "camera", CAMERA, distortion=distortion, model=model)
    return dataclasses.replace(info, **changes)


def region(factory, x, y, width, height):
    return factory._new(
        "sensor_msgs/msg/RegionOfInterest", x_offset=x, y_offset=y, height=height, width=width, do_rectify=False
    )


def undistort_points(model, pixels):
    d = np.array(LENSES[model])
    points = pixels.reshape(-1, 1, 2).astype(np.float64)
    if model == "equidistant":
        return cv2.fisheye.undistortPoints(points, K, d, P=K).reshape(-1, 2)
    return cv2.undistortPoints(points, K, d, P=K).reshape(-1, 2)


def blobs(pixels):
    """Returns an image with a soft white dot at each pixel."""
    v, u = np.mgrid[:240, :320]
    image = np.zeros((240, 320))
    for x, y in pixels:
        image += 255 * np.exp(-((u - x) ** 2 + (v - y) ** 2) / (2 * 1.3**2))
    return image.clip(0, 255).astype(np.uint8)


def centre(image, near):
    x, y = np.round(near).astype(int)
    patch = image[y - 6 : y + 7, x - 6 : x + 7].astype(float)
    v, u = np.mgrid[-6:7, -6:7]
    return np.array([x + (patch * u).sum() / patch.sum(), y + (patch * v).sum() / patch.sum()])


@pytest.mark.parametrize("model", LENSES)
def test_points_land_where_opencv_undistorts_them(factory, model):
    seen = np.array([[60.0, 50.0], [160.0, 118.0], [260.0, 60.0], [70.0, 190.0], [250.0, 185.0]])
    calibration = Calibration.from_info(info_of(factory, model, LENSES[model]))
    assert calibration.camera == CAMERA
    rectified = calibration.rectify(blobs(seen))
    for expected in undistort_points(model, seen):
        np.testing.assert_allclose(centre(rectified, expected), expected, atol=0.15)


@pytest.mark.parametrize("model", LENSES)
def test_depth_is_moved_like_the_image_but_not_mixed(factory, model):
    calibration = Calibration.from_info(info_of(factory, model, LENSES[model]))
    depth = np.where(np.arange(320)[None] < 200, 1.0, 3.0).astype(np.float32).repeat(240, axis=0).reshape(240, 320)
    rectified = calibration.rectify_depth(depth)
    assert rectified.dtype == np.float32
    values = rectified[np.isfinite(rectified)]
    assert set(np.unique(values)) == {1.0, 3.0}
    image = calibration.rectify((depth * 50).astype(np.uint8))
    clear = np.isfinite(rectified) & ((image == 50) | (image == 150))
    np.testing.assert_array_equal(image[clear], (rectified[clear] * 50).astype(np.uint8))
    assert clear.mean() > 0.7
    if calibration.invalid is not None:
        assert np.isnan(rectified[calibration.invalid]).all()
        assert not image[calibration.invalid].any()


@pytest.mark.parametrize("distortion", [(), (0.0,) * 4, (0.0,) * 5, (0.0,) * 8])
@pytest.mark.parametrize("model", ["plumb_bob", "", "whatever"])
def test_no_distortion_passes_images_untouched(factory, distortion, model):
    calibration = Calibration.from_info(info_of(factory, model, distortion))
    image, depth = texture(240, 320), np.ones((240, 320), np.float32)
    assert not calibration.distorted
    assert calibration.invalid is None
    assert calibration.rectify(image) is image
    assert calibration.rectify_depth(depth) is depth


@pytest.mark.parametrize("model", LENSES)
def test_region_of_interest_is_a_window_on_the_whole(factory, model):
    whole = Calibration.from_info(info_of(factory, model, LENSES[model]))
    part = Calibration.from_info(info_of(factory, model, LENSES[model], roi=region(factory, 40, 30, 200, 150)))
    assert (part.camera.width, part.camera.height) == (200, 150)
    assert (part.camera.cx, part.camera.cy) == pytest.approx((CAMERA.cx - 40, CAMERA.cy - 30))
    image = cv2.GaussianBlur(texture(240, 320), (0, 0), 2)
    cut = part.rectify(np.ascontiguousarray(image[30:180, 40:240]))
    window = whole.rectify(image)[30:180, 40:240]
    both = ~(part.invalid if part.invalid is not None else np.zeros(cut.shape[:2], bool))
    if whole.invalid is not None:
        both &= ~whole.invalid[30:180, 40:240]
    edge = cv2.erode(both.astype(np.uint8), np.ones((5, 5))).astype(bool)
    assert edge.mean() > 0.4
    assert np.abs(cut[edge].astype(int) - window[edge]).max() <= 4


@pytest.mark.parametrize("model", LENSES)
def test_binning_is_the_whole_made_smaller(factory, model):
    whole = Calibration.from_info(info_of(factory, model, LENSES[model]))
    small = Calibration.from_info(info_of(factory, model, LENSES[model], binning_x=2, binning_y=2))
    scaled = CAMERA.scaled(0.5)
    assert dataclasses.astuple(small.camera) == pytest.approx(dataclasses.astuple(scaled))
    image = cv2.GaussianBlur(texture(240, 320), (0, 0), 4)
    binned = small.rectify(cv2.resize(image, (160, 120), interpolation=cv2.INTER_AREA))
    expected = cv2.resize(whole.rectify(image), (160, 120), interpolation=cv2.INTER_AREA)
    inner = (slice(25, -25), slice(25, -25))
    assert np.abs(binned[inner].astype(int) - expected[inner]).max() <= 6


def test_region_and_uneven_binning_together(factory):
    info = info_of(factory, binning_x=2, binning_y=3, roi=region(factory, 20, 30, 240, 180))
    camera = Calibration.from_info(info).camera
    assert (camera.width, camera.height) == (120, 60)
    assert (camera.fx, camera.fy) == pytest.approx((105, 205 / 3))
    assert camera.cx == pytest.approx((158.3 - 20 + 0.5) / 2 - 0.5)
    assert camera.cy == pytest.approx((121.7 - 30 + 0.5) / 3 - 0.5)


def test_rectified_images_take_p_and_are_left_alone(factory):
    info = info_of(factory, distortion=LENSES["plumb_bob"])
    info.p[:] = [180, 0, 150, -20, 0, 181, 119, 0, 0, 0, 1, 0]
    calibration = Calibration.from_info(info, rectified=True)
    camera = calibration.camera
    assert not calibration.distorted
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (180, 181, 150, 119)


def test_p_stands_in_for_a_missing_k(factory):
    info = info_of(factory, k=np.zeros(9))
    assert Calibration.from_info(info).camera.fx == 210


def test_uncalibrated_camera(factory):
    with pytest.raises(CalibrationError, match=r"'camera' is not calibrated.*0\.0"):
        Calibration.from_info(info_of(factory, k=np.zeros(9), p=np.zeros(12)))
    with pytest.raises(CalibrationError, match="not calibrated"):
        Calibration.from_info(info_of(factory, k=np.full(9, np.nan), p=np.full(12, np.nan)))


def test_unknown_models_and_wrong_lengths(factory):
    with pytest.raises(CalibrationError, match=r"'scaramuzza'.*plumb_bob, rational_polynomial or equidistant"):
        Calibration.from_info(info_of(factory, "scaramuzza", [0.1] * 5))
    with pytest.raises(CalibrationError, match="4 coefficients"):
        Calibration.from_info(info_of(factory, "equidistant", [0.1] * 5))
    with pytest.raises(CalibrationError, match="coefficients"):
        Calibration.from_info(info_of(factory, "plumb_bob", [0.1] * 3))
    with pytest.raises(CalibrationError, match="finite"):
        Calibration.from_info(info_of(factory, "plumb_bob", [0.1, np.nan, 0, 0]))


def test_impossible_sizes(factory):
    for changes in ({"width": 0}, {"width": 2**31, "height": 2**31}, {"binning_x": 4000}):
        with pytest.raises(CalibrationError, match="impossible size"):
            Calibration.from_info(info_of(factory, **changes))


@pytest.mark.parametrize("distortion", [(0.0,) * 5, LENSES["plumb_bob"]])
def test_images_of_another_size_are_refused(factory, distortion):
    calibration = Calibration.from_info(info_of(factory, distortion=distortion))
    with pytest.raises(CalibrationError, match=r"160x120.*320x240"):
        calibration.rectify(np.zeros((120, 160), np.uint8))
    with pytest.raises(CalibrationError, match=r"160x120.*320x240"):
        calibration.rectify_depth(np.zeros((120, 160), np.float32))


def test_a_polynomial_that_folds_back_is_cut_where_it_turns(factory):
    # r (1 - 0.6 r^2) turns at r = 0.745: beyond, pixels of the inside would show up a second time.
    calibration = Calibration.from_info(info_of(factory, distortion=[-0.6, 0.0, 0.0, 0.0]))
    u, v = np.meshgrid((np.arange(320) - CAMERA.cx) / CAMERA.fx, (np.arange(240) - CAMERA.cy) / CAMERA.fy)
    assert calibration.invalid is not None
    assert calibration.invalid[np.hypot(u, v) > 0.75].all()
    assert not calibration.invalid[np.hypot(u, v) < 0.74].any()


def test_real_calibrations(recordings):
    from flowodom.bags import BagReader

    sizes = {"kitchen_rgbd": (640, 480), "street_mono": (1226, 370), "desk_rgbd_10": (640, 480)}
    for name, size in sizes.items():
        with BagReader(recordings / name) as bag:
            chosen = bag.select()
            message = next(m for _, _, m in bag.messages([chosen.camera_info]))
        camera = Calibration.from_info(message).camera
        assert (camera.width, camera.height) == size


def projection(x=0.0, y=0.0):
    """Returns P of a camera whose rig has its origin (x, y) metres beside it."""
    return np.array([200.0, 0, 150, 200 * x, 0, 190, 120, 190 * y, 0, 0, 1, 0])


def test_rectified_eyes_are_as_far_apart_as_p_says(factory):
    left, right = info_of(factory, p=projection()), info_of(factory, p=projection(x=-0.12))
    expected = torch.eye(4, dtype=torch.float64)
    expected[0, 3] = -0.12
    torch.testing.assert_close(between(left, right), expected)
    torch.testing.assert_close(between(right, left), se3.inverse(expected))


def test_the_origin_of_the_rig_may_be_neither_eye(factory):
    left, right = info_of(factory, p=projection(x=0.06)), info_of(factory, p=projection(x=-0.47))
    torch.testing.assert_close(between(left, right)[:3, 3], torch.tensor([-0.53, 0, 0], dtype=torch.float64))
    above = info_of(factory, p=projection(x=0.06, y=-0.2))
    torch.testing.assert_close(between(left, above)[:3, 3], torch.tensor([0, -0.2, 0], dtype=torch.float64))


def test_raw_eyes_stand_as_opencv_was_told_when_it_rectified_them(factory):
    turn = cv2.Rodrigues(np.array([0.02, -0.03, 0.01]))[0]
    shift = np.array([-0.11, 0.002, 0.004])
    lens = np.array(LENSES["plumb_bob"])
    found = cv2.stereoRectify(K, lens, K, lens, (320, 240), turn, shift[:, None])
    eyes = ({"r": found[i].reshape(-1), "p": found[i + 2].reshape(-1)} for i in (0, 1))
    left, right = (info_of(factory, "plumb_bob", lens, **eye) for eye in eyes)
    motion = between(left, right).numpy()
    np.testing.assert_allclose(motion[:3, :3], turn, atol=1e-9)
    np.testing.assert_allclose(motion[:3, 3], shift, atol=1e-9)
    parallel = between(left, right, rectified=True).numpy()
    np.testing.assert_allclose(parallel[:3, :3], np.eye(3), atol=1e-12)
    np.testing.assert_allclose(parallel[:3, 3], [-np.linalg.norm(shift), 0, 0], atol=1e-9)


@pytest.mark.parametrize("p", [projection(), np.zeros(12), projection(x=np.nan)])
def test_where_p_has_no_baseline_nothing_is_said(factory, p):
    assert between(info_of(factory, p=projection()), info_of(factory, p=p)) is None


def test_a_driver_that_leaves_r_at_zero_means_no_turn(factory):
    right = info_of(factory, p=projection(x=-0.1), r=np.zeros(9))
    motion = between(info_of(factory, p=projection()), right)
    torch.testing.assert_close(motion[:3, :3], torch.eye(3, dtype=torch.float64))


def refocused(factory, stretch, shift=0.0, distortion=(0.0,) * 5):
    focused = dataclasses.replace(CAMERA, fx=stretch * CAMERA.fx, fy=stretch * CAMERA.fy, cx=CAMERA.cx + shift)
    return factory.camera_info(0, "camera", focused, distortion=distortion), focused


@pytest.mark.parametrize("distortion", [(0.0,) * 5, tuple(LENSES["plumb_bob"])])
def test_images_of_a_lens_that_is_focused_otherwise_become_those_of_the_camera_asked_for(factory, distortion):
    info, focused = refocused(factory, 1.05, 4.0, distortion)
    points = torch.tensor([[-0.4, -0.3, 1.0], [0.0, 0.0, 1.0], [0.4, -0.25, 1.0], [0.3, 0.25, 1.0]])
    k = focused.matrix.numpy()
    seen, _ = cv2.projectPoints(points.numpy().astype(np.float64), np.zeros(3), np.zeros(3), k, np.array(distortion))
    calibration = Calibration.from_info(info, like=CAMERA)
    assert calibration.camera is CAMERA
    rectified = calibration.rectify(blobs(seen[:, 0]))
    for expected in CAMERA.project(points).numpy():
        np.testing.assert_allclose(centre(rectified, expected), expected, atol=0.1)


def test_what_a_stretched_lens_does_not_see_is_invalid(factory):
    calibration = Calibration.from_info(refocused(factory, 1.05)[0], like=CAMERA)
    assert calibration.invalid is not None
    assert calibration.invalid[:4].all()
    assert not calibration.invalid[20:-20, 20:-20].any()


@pytest.mark.parametrize(("stretch", "shift"), [(1.2, 0.0), (0.8, 0.0), (1.0, 40.0)])
def test_a_lens_that_is_too_different_is_another_camera(factory, stretch, shift):
    info, focused = refocused(factory, stretch, shift)
    calibration = Calibration.from_info(info, like=CAMERA)
    assert calibration.camera == focused
    assert not calibration.distorted
