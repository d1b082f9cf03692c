"""The time of readout, and what follows from it of a shear, from points whose image was exposed row by row."""

import math
from dataclasses import replace

import pytest
import torch

from flowodom.geometry import se3
from flowodom.registration.readout import Exposure, Readout
from flowodom.registration.refine import refine
from flowodom.registration.shear import rows

GAP = 1 / 30

DEVIATION = 0.02


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


def rate(time, **how):
    """Returns the twist per second (6,) of that camera."""
    return se3.log(pose(time + 1e-4, **how) @ se3.inverse(pose(time - 1e-4, **how))) / 2e-4


def learn(camera, scatter, observe, seconds, *, told=(0.0, DEVIATION), frames=40, **how):
    """Returns what is known after a second and a third, every eighth image a keyframe, and the misses of each fit.

    A keyframe's points are where they are, freed from its shear without an error.
    """
    points = scatter(150)
    key, before = pose(0.0, **how), pose(0.0, **how)
    first = Exposure(seconds * rate(0.0, **how))
    readout, misses = replace(Readout.begin(0.0, *told), key=first, last=first), []
    still = torch.zeros(6, 6, dtype=torch.float64)
    for k in range(1, frames):
        time = k * GAP
        pixels = seen(camera, points, time, seconds, **how)
        exact = observe(se3.act(key, points), se3.identity(), seen=False)
        noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
        matches = replace(exact, pixels=pixels + 0.1 * noise, row=rows(camera, pixels))
        start = before @ se3.inverse(key)
        expected = readout.expect(start, key @ se3.inverse(before), still, time)
        fit = refine(camera, matches, start, max_iterations=10, shear=expected)
        misses.append(fit.shear - seconds * rate(time, **how))
        now = fit.motion @ key
        readout = readout.learn(now @ se3.inverse(before), time, fit)
        before = now
        if k % 8 == 0:
            key = pose(time, **how)
            freed = replace(readout.last, shear=seconds * rate(time, **how))
            readout = replace(readout, last=freed).keyframe()
    return readout, torch.stack(misses)


def test_a_global_shutter_is_found_to_be_one(camera, scatter, observe):
    readout, _ = learn(camera, scatter, observe, 0.0)
    assert abs(readout.seconds) < 0.001
    assert readout.deviation < 0.001
    assert readout.verdict == "global"


@pytest.mark.parametrize("seconds", [0.025, -0.015])
def test_the_time_of_readout_of_a_rolling_one_is_found(camera, scatter, observe, seconds):
    readout, _ = learn(camera, scatter, observe, seconds)
    assert readout.seconds == pytest.approx(seconds, abs=0.002)
    assert readout.deviation < 0.002
    assert readout.verdict == f"rolling, {1e3 * readout.seconds:.0f} ms"


def test_a_shear_follows_from_the_time_of_readout(camera, scatter, observe):
    _, misses = learn(camera, scatter, observe, 0.025, told=(0.025, 0.0), frames=16)
    _, none = learn(camera, scatter, observe, 0.025, told=(0.0, 0.0), frames=16)
    assert float(misses.norm(dim=1).median()) < 0.15 * float(none.norm(dim=1).median())


def test_what_is_said_for_certain_is_not_learned(camera, scatter, observe):
    readout, _ = learn(camera, scatter, observe, 0.025, told=(0.01, 0.0), frames=12)
    assert (readout.seconds, readout.deviation) == (0.01, 0.0)


def test_what_a_shutter_is_stays_known_at_a_new_start(camera, scatter, observe):
    readout, _ = learn(camera, scatter, observe, 0.025)
    anew = readout.anew(7.0)
    assert anew.seconds == readout.seconds
    assert anew.deviation == pytest.approx(readout.deviation)
    assert anew.last.rate is None
    assert anew.told is None


def test_a_camera_that_turns_steadily_does_not_tell(camera, scatter, observe):
    readout, _ = learn(camera, scatter, observe, 0.025, swaying=False)
    assert readout.deviation == DEVIATION
    assert readout.verdict == "not told"


def test_long_gaps_do_not_tell(camera, scatter, observe, monkeypatch):
    monkeypatch.setattr("flowodom.registration.readout.LONGEST", GAP)
    assert learn(camera, scatter, observe, 0.025)[0].deviation == DEVIATION


def test_an_image_is_read_out_before_the_next(camera, scatter, observe):
    readout, _ = learn(camera, scatter, observe, 0.02 + GAP)
    assert 0 < readout.seconds <= GAP + 1e-9


def test_what_cannot_be_worked_out_is_not_learned(camera, scatter, observe):
    readout, _ = learn(camera, scatter, observe, 0.025)
    fit = refine(camera, observe(scatter(50), se3.identity()), se3.identity(), max_iterations=1)
    broken, time = replace(fit, hessian=torch.full((12, 12), torch.nan, dtype=torch.float64)), readout.stamp
    for k in (1, 2, 3):
        readout = readout.learn(se3.exp(torch.full((6,), 0.01 * k, dtype=torch.float64)), time + k * GAP, broken)
    assert math.isfinite(readout.seconds)
    assert readout.verdict.startswith("rolling")


def test_a_last_image_is_freed_along_with_the_keyframe_it_is_measured_from(camera, scatter, observe):
    readout, _ = learn(camera, scatter, observe, 0.025, frames=38)
    wrong = replace(readout.key, shear=torch.zeros(6, dtype=torch.float64))
    shifted = replace(readout, key=wrong, last=replace(readout.last, shear=readout.last.shear - readout.key.shear))
    again = shifted.freed_anew()
    torch.testing.assert_close(again.key.shear, readout.seconds * readout.key.rate)
    torch.testing.assert_close(again.last.shear - again.key.shear, readout.last.shear - readout.key.shear)
    unsure = replace(shifted, variance=DEVIATION**2).freed_anew()
    assert unsure.key.shear is wrong.shear


def test_lengths_of_a_new_unit_are_those_of_the_old_one_multiplied(camera, scatter, observe):
    readout, _ = learn(camera, scatter, observe, 0.025, frames=12)
    twice, both = readout.rescaled(2.0), torch.tensor([2.0, 2, 2, 1, 1, 1], dtype=torch.float64)
    torch.testing.assert_close(twice.key.shear, both * readout.key.shear)
    torch.testing.assert_close(twice.last.rate, both * readout.last.rate)
    torch.testing.assert_close(twice.rate, both * readout.rate)
    assert twice.seconds == readout.seconds


def test_a_keyframe_that_is_not_freed_bends_motions_by_its_shear_until_the_time_is_known():
    rate = torch.tensor([0.1, 0.0, 0.2, 0.0, 0.3, 0.0], dtype=torch.float64)
    known = replace(Readout.begin(0.0, 0.0, 0.02), rate=rate)
    torch.testing.assert_close(known.bent(0.2), 0.2 * rate)
    assert known.doubt == pytest.approx(0.02)
    # It is known by now, but keyframes were taken for those of a global shutter.
    learned = replace(known, seconds=0.025, variance=0.001**2)
    assert learned.doubt == pytest.approx(0.025, abs=1e-4)
    freed = learned.freed_anew()
    assert freed.doubt == pytest.approx(0.001)
    assert not freed.bent(0.2).any()
