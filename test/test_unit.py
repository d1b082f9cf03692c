"""What a unit of length is, and how a camera's height above ground brings it to metres."""

import math

import pytest
import torch

from flowodom.depth.filter import FilterDepth
from flowodom.geometry import se3
from flowodom.unit import Scale, Unit
from flowodom.worlds import pinhole

CAMERA = pinhole(160, 80, field_of_view=80.0)


def ground(height):
    """What is known of a plane that far below a level camera: rays, inverse depths, variances."""
    rays = CAMERA.rays(CAMERA.pixels(dtype=torch.float64)).reshape(-1, 3)
    rho = rays[:, 1] / height
    seen = rho > 0.02
    return rays[seen], rho[seen], (0.01 * rho[seen]) ** 2


def been(turn=0.0, step=1.0):
    """Two places a level camera has come by, the last ``step`` behind it and ``turn`` radians aside."""
    motions = [(0.0, 0.0, -2 * step, 0.0, 0.0, 0.0), (0.0, 0.0, -step, 0.0, turn, 0.0)]
    return se3.exp(torch.tensor(motions, dtype=torch.float64))


class Seen:
    """What a level camera sees of ground, and where it was."""

    def __init__(self, points, poses=None):
        self.points, self.been = lambda: points, lambda: been() if poses is None else poses


def test_what_is_a_metre_and_what_is_none():
    assert [scale for scale in Scale if Unit(scale).metric] == [
        Scale.LEARNED, Scale.CAMERA_HEIGHT, Scale.SENSOR, Scale.STEREO,
    ]  # fmt: skip
    assert Unit(Scale.FIRST_BASELINE, 0.01).deviation is None
    assert Unit(Scale.STEREO, 0.01).deviation == pytest.approx(0.1)


def test_the_first_height_is_taken_as_it_is():
    unit, factor = Unit(Scale.FIRST_BASELINE).by_height(1.65, Seen(ground(0.5)))
    assert unit.scale is Scale.CAMERA_HEIGHT
    assert factor == pytest.approx(1.65 / 0.5, rel=1e-3)
    assert 0 < unit.deviation < 0.05


def test_without_a_height_or_ground_nothing_is_told():
    assert Unit().by_height(0.0, Seen(ground(0.5))) is None
    rays, rho, variance = ground(0.5)
    assert Unit().by_height(1.65, Seen((rays[:3], rho[:3], variance[:3]))) is None


def test_heights_that_differ_are_averaged_the_more_the_better_the_unit_is_known():
    factors = [Unit(Scale.CAMERA_HEIGHT, v).by_height(1.65, Seen(ground(1.6)))[1] for v in (1e-6, 1e-4, 1e-2)]
    wanted = 1.65 / 1.6
    assert 1 < factors[0] < factors[1] < factors[2] < wanted * 1.001


def test_a_height_far_off_counts_for_little():
    sure = Unit(Scale.CAMERA_HEIGHT, 1e-4)
    (_, near), (_, far) = (sure.by_height(1.65, Seen(ground(h))) for h in (1.6, 0.8))
    share = [math.log(found) / math.log(1.65 / h) for found, h in ((near, 1.6), (far, 0.8))]
    assert share[1] < 0.2 * share[0]


def test_where_the_camera_has_turned_the_unit_may_have_changed_more():
    sure = Unit(Scale.CAMERA_HEIGHT, 1e-4)
    straight, turned = (sure.by_height(1.65, Seen(ground(1.6), been(turn))) for turn in (0.0, 0.3))
    assert turned[1] > straight[1]
    assert turned[0].variance > straight[0].variance


def test_a_source_of_depth_without_a_field_tells_no_metres():
    depth = FilterDepth()
    assert Unit(Scale.FIRST_BASELINE).by_field(depth, None, Seen(ground(0.5))) is None
