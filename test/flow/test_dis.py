"""DIS flow, its shapes and its honesty, against motions known exactly."""

import pytest
import torch

from flowodom.config import FlowConfig
from flowodom.errors import ShapeError
from flowodom.flow.consistency import FLOW_NOISE
from flowodom.flow.dis import DisFlow
from flowodom.flow.methods import make_flow
from flowodom.worlds import hand_held, pinhole, room

INNER = (slice(14, -14), slice(14, -14))
"""Away from the border, where parts of a picture leave it."""


@pytest.fixture(scope="module")
def method():
    return DisFlow()


@pytest.mark.parametrize(("u", "v"), [(0.4, -0.3), (-3.4, 2.7), (11.0, -7.0)])
def test_finds_translations_both_ways(method, translated, u, v):
    previous, current, true = translated(u, v)
    field = method(previous, current)
    assert (field.forward - true)[INNER].norm(dim=-1).mean() < 0.08
    assert (field.backward + true)[INNER].norm(dim=-1).mean() < 0.08
    assert field.forward.shape == field.backward.shape == (120, 160, 2)
    assert field.forward_variance.shape == field.backward_variance.shape == (120, 160)
    assert field.forward.dtype == field.forward_variance.dtype == torch.float32


def test_finds_rotations(method, rotated):
    previous, current, true = rotated(4.0)
    assert (method(previous, current).forward - true)[INNER].norm(dim=-1).mean() < 0.15


def test_a_guess_is_taken(translated):
    previous, current, true = translated(30.0, -16.0)
    guessed = DisFlow()(previous, current, true.clone())
    inner = (slice(40, -40), slice(40, -40))
    assert (guessed.forward - true)[inner].norm(dim=-1).mean() < 0.15
    assert (guessed.backward + true)[inner].norm(dim=-1).mean() < 0.15


def test_what_is_found_from_a_guess_is_the_same_each_time_and_leaves_the_guess_alone(method, translated):
    previous, current, true = translated(11.0, -7.0)
    guess = true + 2.0
    fields = [method(previous, current, guess) for _ in range(4)]
    rough = [field.rough.clone() for field in fields]
    for field, before in zip(fields, rough, strict=True):
        assert torch.equal(field.forward, fields[0].forward)
        assert torch.equal(field.backward, fields[0].backward)
        assert torch.equal(field.rough, before)
    assert torch.equal(guess, true + 2.0)


def test_a_guess_is_forgotten_by_the_next_search(translated):
    previous, current, true = translated(11.0, -7.0)
    used = DisFlow()
    _ = used(previous, current, true - 40.0).forward
    assert torch.equal(used(previous, current).forward, DisFlow()(previous, current).forward)


def test_constant_pictures_have_no_flow(method):
    blank = torch.full((64, 80), 90, dtype=torch.uint8)
    field = method(blank, blank.clone())
    assert field.forward.abs().max() < 1e-3
    assert field.forward_variance.isfinite().all()


def test_variance_is_never_below_the_noise_and_tells_what_is_hidden():
    path, camera = hand_held(4), pinhole(160, 120)
    world = room(4, movers=2, texels=256)
    before, after = (world.render(path(t), t, camera) for t in (0.0, 0.2))
    truth = world.flow_between(before, after)
    grey = [torch.from_numpy(r.image.float().mean(-1).numpy()).round().to(torch.uint8) for r in (before, after)]
    field = DisFlow()(*grey)
    assert field.forward_variance.min() >= FLOW_NOISE**2
    hidden = truth.forward_hidden
    assert hidden.sum() > 100
    wrong = (field.forward - truth.forward).norm(dim=-1) > 1.5
    assert field.forward_variance[wrong].median() > 4 * field.forward_variance[~wrong & ~hidden].median()


@pytest.mark.parametrize(
    ("previous", "current", "message"),
    [
        (torch.zeros(40, 40), torch.zeros(40, 40), "uint8"),
        (torch.zeros(40, 40, dtype=torch.uint8), torch.zeros(40, 41, dtype=torch.uint8), r"\(40, 40\) and \(40, 41\)"),
        (torch.zeros(40, 40, 3, dtype=torch.uint8), torch.zeros(40, 40, 3, dtype=torch.uint8), "grey"),
        (torch.zeros(15, 40, dtype=torch.uint8), torch.zeros(15, 40, dtype=torch.uint8), "at least 16"),
    ],
)
def test_pictures_that_do_not_fit_are_named(method, previous, current, message):
    with pytest.raises(ShapeError, match=message):
        method(previous, current)


def test_it_is_the_default_method(translated):
    previous, current, true = translated(2.0, 1.0)
    assert (make_flow(FlowConfig())(previous, current).forward - true)[INNER].norm(dim=-1).mean() < 0.08
