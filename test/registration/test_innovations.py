"""Covariances are believed as far as looks back allow: widened where those miss by more, never narrowed."""

import math
from dataclasses import replace

import numpy as np
import pytest

from flowodom.odometry import Odometry, Status
from flowodom.registration.innovations import EXPECTED, WILD, Innovations
from flowodom.worlds import Sensor, hand_held, pinhole, room, sequence


@pytest.mark.parametrize("factor", [1.0, 4.0, 25.0])
def test_covariances_that_are_too_narrow_are_widened_by_as_much(factor):
    random, known = np.random.default_rng(0), Innovations()
    for squared in factor * random.chisquare(6, 200):
        known = known.learn(squared / known.factor)
    assert known.factor == pytest.approx(factor, rel=0.3)
    assert known.count == 200
    assert f"{known.factor**0.5:.1f} times" in known.verdict


def test_covariances_that_are_wide_enough_are_left_alone():
    known = Innovations()
    for _ in range(50):
        known = known.learn(0.5)
    assert known.factor == 1.0


def test_one_wild_look_changes_little():
    assert Innovations().learn(1e9).factor == pytest.approx((EXPECTED + WILD) / (EXPECTED + 1))


@pytest.fixture(scope="module")
def pendulum():
    """A hand that turns to and fro before a room, 75 frames."""
    hand = hand_held(2, turn=60.0)
    path = lambda t: hand(1.0 + 0.3 * math.sin(2 * math.pi * t / 1.5))  # noqa: E731
    sensor = Sensor(image_noise=1.5)
    return list(sequence(room(2, movers=0, texels=64), path, pinhole(240, 180), frames=75, sensor=sensor))


@pytest.mark.parametrize("lag", [0, 1])
def test_a_fault_that_no_single_fit_shows_widens_the_covariance(pendulum, lag):
    """Depth that lags behind its image by a frame is wrong on the way back just the other way round."""
    odometry = Odometry()
    for k, step in enumerate(pendulum):
        estimate = odometry.step(replace(step.frame, depth=pendulum[max(k - lag, 0)].frame.depth))
        assert estimate.status is Status.TRACKING
    assert odometry.innovations.count
    assert odometry.innovations.factor < 1.2 if lag == 0 else odometry.innovations.factor > 4.0
