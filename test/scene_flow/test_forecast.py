"""Forecasts of motions that are known."""

import numpy as np
import pytest
import torch

from flowodom.geometry import se3
from flowodom.scene_flow.forecast import HORIZONS, Way, forecast, judge, move

TWIST = torch.tensor([0.5, 0.1, 0.0, 0.0, 0.2, 0.4], dtype=torch.float64)


def along(twist, seconds):
    return se3.exp(torch.as_tensor(seconds, dtype=torch.float64)[:, None] * twist)


def test_a_constant_twist_is_foreseen_exactly():
    start = se3.exp(torch.tensor([1.0, 2, 3, 0.3, 0.2, 0.1], dtype=torch.float64))
    found = forecast(start, TWIST)
    assert found.seconds == HORIZONS
    torch.testing.assert_close(found.poses, start @ along(TWIST, HORIZONS))


def test_what_is_far_ahead_is_less_sure():
    spread = torch.diag(torch.full((6,), 0.01, dtype=torch.float64))
    found = forecast(se3.identity(), TWIST, spread, (0.5, 1.0, 2.0))
    traces = found.covariances.diagonal(dim1=-2, dim2=-1).sum(-1)
    assert traces[0] < traces[1] < traces[2]
    assert traces[1] > 6 * 0.01


def test_points_go_on_with_their_velocity():
    points = torch.tensor([[0.0, 0, 1], [1, 1, 1]])
    velocity = torch.tensor([[1.0, 0, 0], [0, 0, 0]])
    torch.testing.assert_close(move(points, velocity, 0.5), torch.tensor([[0.5, 0, 1], [1, 1, 1]]))


def test_forecasts_are_judged_by_what_came():
    stamps = np.arange(91, dtype=np.int64) * 33_333_333
    poses = along(TWIST, stamps * 1e-9)
    good = judge(Way(stamps, poses, TWIST.expand(91, 6)))
    assert (good.translation < 1e-6).all()
    assert (good.rotation < 1e-4).all()
    assert (good.count > 25).all()
    still = judge(Way(stamps, poses, torch.zeros(91, 6, dtype=torch.float64)))
    assert still.translation[3] == pytest.approx(float(along(TWIST, [1.0])[0, :3, 3].norm()), rel=0.03)
    assert (np.diff(still.translation) > 0).all()
    np.testing.assert_allclose(still.translation, good.resting)
    assert np.isnan(good.points).all()


def test_several_bodies_and_their_points_are_judged_together():
    stamps = np.arange(61, dtype=np.int64) * 33_333_333
    straight = torch.tensor([0.5, 0, 0, 0, 0, 0], dtype=torch.float64)
    turning = torch.tensor([0, 0, 0, 0, 0, 1.0], dtype=torch.float64)
    corners = torch.cartesian_prod(*torch.tensor([[-0.2, 0.2]] * 3, dtype=torch.float64))
    ways = [
        Way(stamps, along(twist, stamps * 1e-9), twist.expand(61, 6), points=corners) for twist in (straight, turning)
    ]
    alone, other, both = judge(ways[0]), judge(ways[1]), judge(*ways)
    assert both.count.tolist() == (alone.count + other.count).tolist()
    assert (both.translation < 1e-6).all()
    assert (alone.points < 1e-6).all()
    # A point 0.28 m from the axis that goes straight on leaves its circle.
    expected = 0.2 * 2**0.5 * np.hypot(1 - np.cos(0.5), 0.5 - np.sin(0.5))
    assert other.points[2] == pytest.approx(expected, rel=0.05)
    assert both.as_dict()["seconds"] == list(HORIZONS)


def test_nothing_to_judge_gives_no_figures():
    found = judge()
    assert found.count.tolist() == [0] * len(HORIZONS)
    assert found.as_dict()["translation"] == [None] * len(HORIZONS)


def test_nothing_is_judged_across_segments_or_without_a_twist():
    stamps = np.arange(40, dtype=np.int64) * 100_000_000
    poses = along(TWIST, stamps * 1e-9)
    runs = np.repeat([0, 1], 20)
    twists = TWIST.repeat(40, 1)
    twists[:5] = torch.nan
    found = judge(Way(stamps, poses, twists, runs), seconds=(1.0, 2.5))
    assert found.count.tolist() == [5 + 10, 0]
    assert np.isnan(found.translation[1])
