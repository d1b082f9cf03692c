"""Depth as a depth camera measures it."""

import numpy as np
import torch

from flowodom.config import DepthConfig
from flowodom.depth import FramePair, InverseDepth
from flowodom.depth.sensor import SensorDepth
from flowodom.flow import DenseFlow
from flowodom.frame import Frame
from flowodom.geometry import se3
from flowodom.worlds import pinhole

CAMERA = pinhole(16, 12)


def frame(depth):
    return Frame(0, np.zeros((12, 16), np.uint8), CAMERA, depth)


def flat(value):
    return np.full((12, 16), value, np.float32)


def test_depth_becomes_inverse_depth_with_constant_noise():
    depth = flat(2.0)
    depth[3, 4] = 5.0
    seen = SensorDepth(DepthConfig(noise=0.002)).observe(frame(depth))
    assert seen.mean[3, 4] == np.float32(0.2)
    assert seen.mean[0, 0] == 0.5
    torch.testing.assert_close(seen.variance, torch.full((12, 16), 4e-6))
    assert seen.mean.dtype == seen.variance.dtype == torch.float32
    assert seen.camera == CAMERA


def test_depth_out_of_range_or_not_a_number_is_unknown():
    depth = flat(1.0)
    depth[0, :6] = (np.nan, 0.0, -1.0, 0.29, 4.1, np.inf)
    depth[1, :2] = (0.3, 4.0)
    seen = SensorDepth(DepthConfig(minimum=0.3, maximum=4.0)).observe(frame(depth))
    assert seen.mean[0, :6].isnan().all()
    assert seen.variance[0, :6].isinf().all()
    # The limits themselves are valid, as far as single precision can tell.
    assert seen.mean[1, 1].isfinite()
    assert int(seen.mean.isfinite().sum()) in (12 * 16 - 6, 12 * 16 - 7)


def test_a_frame_without_valid_depth_tells_nothing():
    source = SensorDepth(DepthConfig())
    for depth in (flat(np.nan), flat(0.0), flat(1e6), None):
        assert source.observe(frame(depth)) is None


def test_no_past_is_needed_but_where_nothing_was_measured():
    source = SensorDepth(DepthConfig())
    assert source.metric
    still = torch.zeros(12, 16, 2)
    flow = DenseFlow(still, still, torch.ones(12, 16), torch.ones(12, 16))
    now = frame(flat(2.0))
    pair = FramePair(now, flow, CAMERA, se3.identity(), torch.eye(6, dtype=torch.float64))
    seen = source.observe(now)
    assert source.fuse(seen, InverseDepth.unknown(CAMERA), pair) is seen
    carried = source.fuse(None, seen, pair)
    rho, variance = seen.at(carried.camera, carried.camera.pixels())
    torch.testing.assert_close(carried.mean, rho)
    assert (carried.variance > variance).all()


def test_a_coarser_field_is_on_its_own_grid():
    coarse = Frame(0, np.zeros((12, 16), np.uint8), CAMERA, np.ones((6, 8), np.float32))
    seen = SensorDepth(DepthConfig()).observe(coarse)
    assert seen.camera == CAMERA.resized(8, 6)
    assert (seen.mean == 1).all()
