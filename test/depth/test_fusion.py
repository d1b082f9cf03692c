"""Field, filter and depth camera together, on a plane whose flow is exact."""

import dataclasses

import numpy as np
import pytest
import torch

from flowodom.config import DepthConfig
from flowodom.depth import InverseDepth
from flowodom.depth.fusion import FusedDepth, _in_front, _product
from flowodom.depth.sensor import SensorDepth
from flowodom.flow import DenseFlow
from flowodom.flow.consistency import FLOW_NOISE
from flowodom.frame import Frame
from flowodom.geometry import se3

from .test_filter import CAMERA, CERTAIN, MIDDLES, PLANE, pair, run

GRID = CAMERA.scaled(0.5)
UNIT = 0.4
"""Metres in the unit of the odometry: the field says metres, the filter such units."""


class Guess:
    """A field that knows the plane, in metres, but for an error of each pixel that it admits."""

    scale_deviation = 0.15

    def __init__(self, deviation=0.1, claimed=None):
        self.deviation, self.claimed = deviation, claimed or deviation

    def observe(self, frame):
        rho = PLANE.rho(frame.stamp, CAMERA.pixels(dtype=torch.float64)).float()[::2, ::2] / UNIT
        error = torch.randn(rho.shape, generator=torch.Generator().manual_seed(frame.stamp))
        return InverseDepth(GRID, rho * (1 + self.deviation * error), (self.claimed * rho) ** 2)


def frame(k):
    return Frame(k, np.zeros((36, 48), np.uint8), CAMERA)


def fuse(source, count):
    """Returns the complete fields of frames 1, 2, ..."""
    known, fields = None, []
    for k in range(1, count + 1):
        known = source.fuse(None, known, pair(k, PLANE.field(k, FLOW_NOISE)))
        fields.append(source.complete(known, frame(k)))
    return fields


def errors(field, k):
    return ((field.mean / PLANE.rho(k, MIDDLES)).float() - 1).abs()


def points(k, deviation=0.05):
    """What the odometry knows of some points of frame ``k``, in its own unit."""
    pixels = torch.rand(200, 2, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
    pixels = pixels * torch.tensor([47.0, 35.0], dtype=torch.float64)
    rho = PLANE.rho(k, pixels)
    return CAMERA.rays(pixels), rho, (deviation * rho) ** 2


def test_the_ratio_of_the_units_is_found():
    source = FusedDepth(Guess())
    fuse(source, 8)
    assert float(source._log_ratio.exp()) == pytest.approx(UNIT, rel=0.05)
    metres, deviation = FusedDepth(Guess()).metres(frame(8), *points(8))
    assert metres == pytest.approx(UNIT, rel=0.05)
    assert 0.15 < deviation < 0.2


def test_points_that_are_not_known_tell_no_metres():
    assert FusedDepth(Guess()).metres(frame(1), *points(1, deviation=0.5)) is None


def test_it_is_surer_than_the_filter_and_knows_more():
    source = FusedDepth(Guess())
    alone, fused = run(8, FLOW_NOISE), fuse(source, 8)
    # But for pixels in which the two contradict each other.
    assert (fused[-1].variance <= alone[-1].variance).float().mean() > 0.95
    for k, (a, f) in enumerate(zip(alone, fused, strict=True), start=1):
        known = a.mean.isfinite()
        assert f.mean.isfinite().sum() > known.sum()
        assert errors(f, k)[f.mean.isfinite()].median() < 0.1
        assert errors(f, k)[known].mean() < 0.9 * errors(a, k)[known].mean()


def test_the_filter_never_learns_of_the_field():
    known = None
    source = FusedDepth(Guess(0.01))
    for k, alone in enumerate(run(6, FLOW_NOISE), start=1):
        known = source.fuse(None, known, pair(k, PLANE.field(k, FLOW_NOISE)))
        source.complete(known, frame(k))
        torch.testing.assert_close(known.mean, alone.mean, equal_nan=True)


def test_a_field_that_claims_too_much_is_trusted_less():
    honest, boastful = FusedDepth(Guess(0.3)), FusedDepth(Guess(0.3, claimed=0.05))
    seen = [fuse(source, 8)[-1] for source in (honest, boastful)]
    filled = run(8, FLOW_NOISE)[-1].mean.isnan()
    deviation = [(s.variance.sqrt() / s.mean)[filled & s.mean.isfinite()].median() for s in seen]
    assert deviation[1] > 0.5 * deviation[0]


def test_what_the_filter_does_not_tell_yet_counts():
    source = FusedDepth(Guess(0.1))
    known = source.fuse(None, None, pair(1, PLANE.field(1, FLOW_NOISE)))
    field = source.complete(known, frame(1))
    rest = known.mean.isnan() & known.whole.mean.isfinite()
    assert rest.any()
    nothing = dataclasses.replace(known, whole=InverseDepth(known.camera, known.mean, known.variance))
    without = FusedDepth(Guess(0.1)).complete(nothing, frame(1))
    assert (field.variance / without.variance)[rest].median() < 1


def test_nothing_is_behind_the_camera():
    mean, variance = torch.tensor((1.0, 0.0, -0.2)), torch.full((3,), 0.01)
    found, spread = _in_front(mean, variance)
    draws = mean.double() + 0.1 * torch.randn(1_000_000, 3, generator=torch.Generator().manual_seed(1)).double()
    for k in range(3):
        kept = draws[:, k][draws[:, k] > 0]
        assert float(found[k]) == pytest.approx(float(kept.mean()), rel=0.01)
        assert float(spread[k]) == pytest.approx(float(kept.var()), rel=0.02)


def test_what_contradicts_each_other_is_less_sure():
    means, variance = torch.tensor((1.0, 1.1, 3.0, torch.nan)), torch.tensor((0.01, 0.01, 0.01, torch.inf))
    mean, found = _product(means, variance, torch.ones(4), torch.full((4,), 0.01))
    torch.testing.assert_close(mean, torch.tensor((1.0, 1.05, 2.0, 1.0)))
    torch.testing.assert_close(found, torch.tensor((0.005, 0.005, 0.005 * 4 / 0.02, 0.01)))


def test_lengths_of_the_odometry_may_change():
    same, other = FusedDepth(Guess()), FusedDepth(Guess())
    fuse(same, 4)
    fuse(other, 4)
    other.rescale(2.5)
    torch.testing.assert_close(other._log_ratio.exp() * 2.5, same._log_ratio.exp())


def test_the_ratio_follows_a_field_whose_metre_changes():
    class Changing(Guess):
        def observe(self, frame):
            field = super().observe(frame)
            grown = 1.02**frame.stamp
            return dataclasses.replace(field, mean=field.mean * grown, variance=field.variance * grown**2)

    source = FusedDepth(Changing())
    fuse(source, 12)
    assert float(source._log_ratio.exp()) == pytest.approx(UNIT / 1.02**12, rel=0.1)
    assert UNIT / 1.02**12 < 0.8 * UNIT


def test_pixels_of_the_field_alone_are_no_surer_than_the_ratio():
    source = FusedDepth(Guess(0.01))
    known = source.fuse(None, None, pair(1, PLANE.field(1, FLOW_NOISE)))
    half = known.mean.shape[1] // 2
    mean, variance = known.mean.clone(), known.variance.clone()
    mean[:, :half], variance[:, :half] = torch.nan, torch.inf
    field = source.complete(dataclasses.replace(known, mean=mean, variance=variance), frame(1))
    deviation = (field.variance.sqrt() / field.mean)[:, : half - 2]
    assert float(deviation.min()) > 0.99 * float(source._variance.sqrt()) > 0.05


def test_without_motion_the_unit_stays_unknown():
    zero, variance = torch.zeros(36, 48, 2), torch.full((36, 48), FLOW_NOISE**2)
    still = pair(1, DenseFlow(zero, zero, variance, variance), motion=se3.identity(), covariance=1e-8 * CERTAIN)
    source = FusedDepth(Guess())
    field = source.complete(source.fuse(None, None, still), frame(1))
    assert field.mean.isnan().all()


def test_a_depth_camera_overrules_where_it_is_valid():
    source = FusedDepth(Guess(), SensorDepth(DepthConfig()))
    assert source.metric
    depth = (1 / PLANE.rho(1)).float().numpy()
    depth[:, :20] = np.nan
    seen = Frame(1, np.zeros((36, 48), np.uint8), CAMERA, depth)
    observed = source.observe(seen)
    known = source.fuse(observed, None, pair(1))
    torch.testing.assert_close(known.mean[:, 20:], observed.mean[:, 20:])
    field = source.complete(known, seen)
    torch.testing.assert_close(field.mean[:, 20:], observed.mean[:, 20:], rtol=0.01, atol=0)
    assert field.mean.isfinite().all()
    assert float(source._log_ratio.exp()) == pytest.approx(UNIT, rel=0.05)


def test_a_single_camera_is_not_told_depth_before_its_motion_is_known():
    source = FusedDepth(Guess())
    assert not source.metric
    assert source.observe(Frame(0, np.zeros((36, 48), np.uint8), CAMERA)) is None


def test_a_frame_tells_the_ratio_of_the_units_once():
    source = FusedDepth(Guess())
    known, now = source.fuse(None, None, pair(1)), frame(1)
    completed, variance = source.complete(known, now), source._variance
    assert source.complete(known, now) is completed
    assert source._variance is variance
