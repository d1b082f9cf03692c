"""Whether a shutter rolls, from points whose image was exposed row by row."""

import math
from dataclasses import replace

import pytest
import torch

from flowodom.geometry import se3
from flowodom.registration.readout import DEVIATION, Readout
from flowodom.registration.refine import GLOBAL_SHUTTER, Shutter, refine

GAP = 1 / 30


def pose(time, *, swaying=True):
    """Returns ``T_camera_world`` of a hand that sways, or of a camera that turns steadily."""
    slow = torch.tensor([0.2, 0.1, 0.05, 0.12, 0.25, 0.08], dtype=torch.float64)
    phase = torch.arange(6, dtype=torch.float64)
    return se3.exp(slow * torch.sin(4 * time + phase)) if swaying else se3.exp(0.3 * time * slow)


def seen(camera, points, time, seconds, **how):
    """Returns where (N, 3) points are seen, (N, 2), by a camera that is read out in ``seconds``."""
    pixels = camera.project(se3.act(pose(time, **how), points))
    for _ in range(5):
        moments = time + seconds * rows(camera, pixels)
        moved = torch.stack([pose(float(t), **how) for t in moments])
        pixels = camera.project((moved[:, :3, :3] @ points[..., None])[..., 0] + moved[:, :3, 3])
    return pixels


def rows(camera, pixels):
    return pixels[:, 1] / (camera.height - 1) - 0.5


def learn(camera, scatter, observe, seconds, *, shutter, frames=40, **how):
    """Returns what is known of the shutter after a second and a third, every eighth image a keyframe."""
    points = scatter(150)
    readout, key = Readout.begin(0.0), pose(0.0, **how)
    before = key
    for k in range(1, frames):
        time = k * GAP
        pixels = seen(camera, points, time, seconds, **how)
        exact = observe(se3.act(key, points), se3.identity(), seen=False)
        noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
        matches = replace(exact, pixels=pixels + 0.1 * noise, row=rows(camera, pixels))
        fit = refine(camera, matches, before @ se3.inverse(key), max_iterations=10, shutter=shutter)
        now = fit.motion @ key
        readout = readout.learn(now @ se3.inverse(before), time, fit)
        before = now
        if k % 8 == 0:
            # The keyframe's points are where they are, freed from its shear without an error.
            key = pose(time, **how)
            readout = readout.keyframe()
    return readout


ROLLING_SHUTTER = Shutter(torch.zeros(3, dtype=torch.float64), math.radians(0.5))


@pytest.mark.parametrize("shutter", [ROLLING_SHUTTER, GLOBAL_SHUTTER])
def test_a_global_shutter_is_found_to_be_one(camera, scatter, observe, shutter):
    readout = learn(camera, scatter, observe, 0.0, shutter=shutter)
    assert readout.short
    assert abs(readout.seconds) < 0.002
    assert readout.verdict == "global"


@pytest.mark.parametrize("seconds", [0.025, -0.015])
def test_the_time_of_readout_of_a_rolling_one_is_found(camera, scatter, observe, seconds):
    readout = learn(camera, scatter, observe, seconds, shutter=ROLLING_SHUTTER)
    assert readout.seconds == pytest.approx(seconds, abs=0.2 * abs(seconds))
    assert readout.deviation < 0.003
    assert not readout.short
    assert readout.verdict == f"rolling, {1e3 * readout.seconds:.0f} ms"


def test_what_a_shutter_is_stays_known_at_a_new_start(camera, scatter, observe):
    readout = learn(camera, scatter, observe, 0.025, shutter=ROLLING_SHUTTER)
    anew = Readout.begin(7.0, readout)
    assert (anew.seconds, anew.deviation) == (readout.seconds, readout.deviation)
    assert anew.last.rate is None
    assert anew.told is None


def test_a_camera_that_turns_steadily_does_not_tell(camera, scatter, observe):
    readout = learn(camera, scatter, observe, 0.025, shutter=ROLLING_SHUTTER, swaying=False)
    assert readout.deviation == DEVIATION
    assert not readout.short
    assert readout.verdict == "not told"


def test_long_gaps_do_not_tell(camera, scatter, observe, monkeypatch):
    monkeypatch.setattr("flowodom.registration.readout.LONGEST", GAP)
    assert learn(camera, scatter, observe, 0.025, shutter=ROLLING_SHUTTER).deviation == DEVIATION


def test_what_cannot_be_worked_out_is_not_learned(camera, scatter, observe):
    readout = learn(camera, scatter, observe, 0.025, shutter=ROLLING_SHUTTER)
    fit = refine(camera, observe(scatter(50), se3.identity()), se3.identity(), max_iterations=1)
    broken, time = replace(fit, hessian=torch.full((9, 9), torch.nan, dtype=torch.float64)), readout.stamp
    for k in (1, 2, 3):
        readout = readout.learn(se3.exp(torch.full((6,), 0.01 * k, dtype=torch.float64)), time + k * GAP, broken)
    assert math.isfinite(readout.seconds)
    assert readout.verdict.startswith("rolling")
