"""Depth from two cameras, on rendered rooms whose depth is exact."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch

from flowodom.config import DepthConfig
from flowodom.depth import FramePair, InverseDepth
from flowodom.depth.stereo import ROUGH, SHARPEST, StereoDepth
from flowodom.errors import CalibrationError, ShapeError
from flowodom.flow import DenseFlow
from flowodom.flow.points import choose
from flowodom.frame import Frame, OtherEye
from flowodom.geometry import PinholeCamera, se3
from flowodom.worlds import Sensor, hand_held, pinhole, room

CAMERA = pinhole(320, 240)
BASELINE = 0.08


def tangent(*values):
    return torch.tensor(values, dtype=torch.float64)


RIGHT = se3.exp(tangent(BASELINE, 0, 0, 0, 0, 0))
"""``T_camera_other`` of a pair whose images need not be rectified."""

RIGS = {
    "parallel": (RIGHT, CAMERA),
    "turned": (se3.matrix(se3.so3_exp(tangent(0.03, -0.05, 0.04)), tangent(BASELINE, 0.004, -0.006)), CAMERA),
    "swapped": (se3.exp(tangent(-BASELINE, 0, 0, 0, 0, 0)), CAMERA),
    "above": (se3.exp(tangent(0, -BASELINE, 0, 0, 0, 0)), CAMERA),
    "smaller and wider": (RIGHT, PinholeCamera(170.0, 175.0, 121.0, 92.0, 240, 180)),
}


@pytest.fixture(scope="module")
def seen():
    """Returns what a rig sees: a function of where the other eye is, and its camera, that gives frame and depth."""
    world, pose = room(4, movers=0), hand_held(4)(0.4)
    sensor = Sensor(image_noise=1.5, depth=False, seed=4)
    first = world.render(pose, 0.4, CAMERA)

    def look(rig):
        place, camera = RIGS[rig]
        return sensor.frame(first, 1, world.render(pose @ place, 0.4, camera)), first.depth

    return look


def errors(field, depth, camera=CAMERA):
    """Returns errors of inverse depth in deviations, of all that is known and does not lie on an edge."""
    true = (1 / depth).float()[None, None]
    size = (field.camera.height, field.camera.width)
    true = torch.nn.functional.interpolate(true, size, mode="bilinear", align_corners=False)[0, 0]
    high, low = (torch.nn.functional.max_pool2d(s * true[None], 5, 1, 2)[0] for s in (1, -1))
    smooth = (high + low) < 0.02 * true
    known = field.variance.isfinite() & smooth
    return ((field.mean - true) / field.variance.sqrt())[known], float(known.sum() / smooth.sum())


@pytest.mark.parametrize("rig", RIGS)
def test_depth_is_that_of_the_first_camera_wherever_the_other_one_is(seen, rig):
    frame, depth = seen(rig)
    field = StereoDepth(DepthConfig()).observe(frame)
    error, share = errors(field, depth)
    assert share > 0.85
    assert error.abs().median() < 1
    assert abs(error.median()) < 0.2
    assert (error.abs() > 3).float().mean() < 0.05


@pytest.mark.parametrize("rig", RIGS)
def test_single_points_are_sharper_than_the_field(seen, rig):
    frame, depth = seen(rig)
    pixels = choose(frame.grey, 300)
    field = StereoDepth(DepthConfig(disparity=0.15)).observe(frame)
    u, v = (pixels[:, i].numpy().astype(np.float32)[None] for i in (0, 1))
    true = torch.from_numpy(cv2.remap((1 / depth).float().numpy(), u, v, cv2.INTER_LINEAR)[0]).double()
    rho, variance = field.of_points(CAMERA, pixels)
    rough, rough_variance = field.at(CAMERA, pixels)
    sharp = variance < 0.8 * rough_variance
    assert sharp.double().mean() > 0.7
    assert (rho - true)[sharp].abs().median() < 0.8 * (rough - true)[sharp].abs().median()
    error = ((rho - true).abs() / variance.sqrt())[sharp]
    assert error.median() < 1
    assert (error > 3).double().mean() < 0.08


def test_the_field_is_not_drawn_to_whole_pixels(seen):
    frame, depth = seen("parallel")
    field = StereoDepth(DepthConfig()).observe(frame)
    error, _ = errors(field, depth)
    pixel = field.camera.fx * BASELINE
    assert (error * field.variance.sqrt().nanmedian() * pixel).abs().median() < 0.06


def test_an_other_camera_that_exposes_otherwise_changes_little(seen):
    frame, depth = seen("turned")
    darker = (0.8 * frame.other.image).astype(np.uint8)
    frame = dataclasses.replace(frame, other=dataclasses.replace(frame.other, image=darker))
    field = StereoDepth(DepthConfig()).observe(frame)
    assert errors(field, depth)[0].abs().median() < 0.5
    pixels = choose(frame.grey, 300)
    u, v = (pixels[:, i].numpy().astype(np.float32)[None] for i in (0, 1))
    true = torch.from_numpy(cv2.remap((1 / depth).float().numpy(), u, v, cv2.INTER_LINEAR)[0]).double()
    rho, variance = field.of_points(CAMERA, pixels)
    error = ((rho - true).abs() / variance.sqrt())[variance.isfinite()]
    assert error.median() < 0.5


def test_deviations_are_those_of_disparity(seen):
    frame, _ = seen("parallel")
    field = StereoDepth(DepthConfig()).observe(frame)
    pixel = CAMERA.width / field.camera.width / (CAMERA.focal * BASELINE)
    known = field.variance.isfinite()
    deviation = field.variance[known].sqrt() / pixel
    assert float(deviation.min()) >= 0.99 * SHARPEST
    assert float(deviation.max()) <= 1.01 * (ROUGH**2 + SHARPEST**2) ** 0.5
    assert (field.mean[known] > 0).all()
    _, variance = field.of_points(CAMERA, choose(frame.grey, 300))
    assert float(variance.min()) ** 0.5 == pytest.approx(0.15 / (CAMERA.focal * BASELINE), rel=1e-3)


def test_without_the_other_image_or_anything_to_match_nothing_is_told(seen):
    frame, _ = seen("parallel")
    source = StereoDepth(DepthConfig())
    assert source.observe(dataclasses.replace(frame, other=None)) is None
    blank = np.full((240, 320), 90, np.uint8)
    noise = np.random.default_rng(1).integers(0, 255, (240, 320), dtype=np.uint8)
    for image in (blank, noise, np.ascontiguousarray(frame.other.image[::-1])):
        assert source.observe(dataclasses.replace(frame, other=dataclasses.replace(frame.other, image=image))) is None
    assert source.observe(Frame(0, blank, CAMERA, other=dataclasses.replace(frame.other, image=blank))) is None


def test_a_rig_that_changes_is_followed(seen):
    source = StereoDepth(DepthConfig())
    for rig in ("parallel", "swapped", "parallel"):
        frame, depth = seen(rig)
        assert errors(source.observe(frame), depth)[0].abs().median() < 1


def test_what_is_too_far_to_be_told_is_kept_for_the_pose_and_left_out_of_the_picture(seen):
    frame, _ = seen("parallel")
    source = StereoDepth(DepthConfig(maximum=3.0))
    field = source.observe(frame)
    shown = source.complete(field, frame)
    far = field.mean < 1 / 3
    assert field.mean[far].isfinite().all()
    assert 0.05 < far.float().mean() < 0.95
    assert shown.mean[far].isnan().all()
    assert shown.mean[field.mean > 1 / 3].isfinite().all()


def test_no_past_is_needed_but_where_there_is_no_pair(seen):
    frame, _ = seen("parallel")
    source = StereoDepth(DepthConfig())
    assert source.metric
    field = source.observe(frame)
    still = torch.zeros(240, 320, 2)
    flow = DenseFlow(still, still, torch.ones(240, 320), torch.ones(240, 320))
    pair = FramePair(frame, flow, CAMERA, se3.identity(), torch.eye(6, dtype=torch.float64))
    assert source.fuse(field, InverseDepth.unknown(CAMERA), pair) is field
    carried = source.fuse(None, field, pair)
    known = carried.mean.isfinite()
    assert known.float().mean() > 0.3
    rho, variance = field.at(carried.camera, carried.camera.pixels())
    torch.testing.assert_close(carried.mean[known], rho[known])
    assert (carried.variance > variance)[known].all()


@pytest.mark.parametrize(
    ("place", "turn"),
    [((0, 0, 0), (0, 0, 0)), ((0, 0, 0.2), (0, 0, 0)), ((0.1, 0, 0), (0, 1.2, 0)), ((0.1, 0, 0), (0, 3, 0))],
)
def test_cameras_that_cannot_see_the_same_are_refused(place, turn):
    motion = se3.inverse(se3.matrix(se3.so3_exp(tangent(*turn)), tangent(*place)))
    with pytest.raises(CalibrationError, match=r"same place|look the same way"):
        OtherEye(np.zeros((240, 320), np.uint8), CAMERA, motion)


def test_the_other_image_has_its_cameras_size():
    with pytest.raises(ShapeError, match=r"\(240, 320\)"):
        OtherEye(np.zeros((120, 160), np.uint8), CAMERA, se3.inverse(RIGHT))
