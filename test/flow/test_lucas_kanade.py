"""Lucas-Kanade against motions known exactly."""

import pytest
import torch

from flowodom.errors import ShapeError
from flowodom.flow.lucas_kanade import LucasKanadeFlow

INNER = (slice(12, -12), slice(12, -12))
"""Away from the border, where parts of a picture leave it."""


def miss(found, true):
    """Returns the (H', W') end-point error away from the border."""
    return (found - true)[INNER].norm(dim=-1)


@pytest.mark.parametrize(("u", "v"), [(0.3, -0.2), (1.0, 0.5), (-3.4, 2.7), (9.0, -6.0)])
def test_finds_translations(translated, u, v):
    previous, current, true = translated(u, v)
    field = LucasKanadeFlow()(previous, current)
    assert miss(field.forward, true).mean() < 0.04
    assert miss(field.backward, -true).mean() < 0.04


@pytest.mark.parametrize("degrees", [-1.0, 4.0])
def test_finds_rotations(rotated, degrees):
    previous, current, true = rotated(degrees)
    assert miss(LucasKanadeFlow()(previous, current).forward, true).mean() < 0.12


def test_equal_pictures_have_exactly_no_flow(picture):
    image = picture(60, 80)
    field = LucasKanadeFlow()(image, image.clone())
    assert (field.forward == 0).all()
    assert (field.backward == 0).all()


def test_blank_pictures_have_no_flow_and_a_great_variance():
    blank = torch.full((48, 64), 100, dtype=torch.uint8)
    field = LucasKanadeFlow()(blank, blank)
    assert (field.forward == 0).all()
    assert field.forward_variance.isfinite().all()
    assert field.forward_variance.min() > 1


def test_forward_and_backward_agree(rotated):
    previous, current, _ = rotated(2.0)
    method = LucasKanadeFlow()
    there, back = method(previous, current), method(current, previous)
    torch.testing.assert_close(there.backward, back.forward, atol=1e-4, rtol=0)
    torch.testing.assert_close(there.backward_variance, back.forward_variance, atol=1e-4, rtol=1e-3)
    assert miss(there.forward, -there.backward).mean() < 0.15


def test_variance_is_greater_without_texture(translated):
    previous, current, _ = translated(0.6, 0.4)
    previous[:, 80:], current[:, 80:] = 128, 128
    variance = LucasKanadeFlow()(previous, current).forward_variance
    assert variance[20:-20, 110:140].min() > 10 * variance[20:-20, 20:60].max()


def test_variance_is_greater_with_noise(translated):
    previous, current, _ = translated(0.6, 0.4)
    noise = 15 * torch.randn(current.shape, generator=torch.Generator().manual_seed(0))
    noisy = (current + noise).clamp(0, 255).to(torch.uint8)
    method = LucasKanadeFlow()
    clean_variance = method(previous, current).forward_variance[INNER].median()
    assert method(previous, noisy).forward_variance[INNER].median() > 1.5 * clean_variance


def test_variance_covers_the_error(rotated):
    previous, current, true = rotated(3.0)
    generator = torch.Generator().manual_seed(1)
    noisy = [
        (i + 3 * torch.randn(i.shape, generator=generator)).clamp(0, 255).to(torch.uint8) for i in (previous, current)
    ]
    field = LucasKanadeFlow()(*noisy)
    whitened = miss(field.forward, true) ** 2 / (2 * field.forward_variance[INNER])
    assert (whitened < 9).float().mean() > 0.97
    assert whitened.median() > 0.02


def test_a_guess_reaches_what_the_pyramid_does_not(translated):
    previous, current, true = translated(14.0, -11.0)
    method = LucasKanadeFlow(levels=1)
    assert miss(method(previous, current).forward, true).median() > 3
    guess = true + torch.tensor((0.8, -0.6))
    assert miss(method(previous, current, guess).forward, true).median() < 0.1


def test_a_guess_that_is_right_stays_right(translated):
    previous, current, true = translated(5.0, 3.0)
    assert miss(LucasKanadeFlow()(previous, current, true.contiguous()).forward, true).mean() < 0.04


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 90), (61, 33)])
def test_any_size_from_the_least_one_up(picture, height, width):
    first, second = picture(height, width), picture(height, width, lambda pixels: pixels - 0.5)
    field = LucasKanadeFlow()(first, second)
    for flow in (field.forward, field.backward):
        assert flow.shape == (height, width, 2)
        assert flow.dtype == torch.float32
        assert flow.isfinite().all()
    for variance in (field.forward_variance, field.backward_variance):
        assert variance.shape == (height, width)
        assert variance.dtype == torch.float32
        assert (variance > 0).all()


@pytest.mark.parametrize(
    ("previous", "current", "initial", "message"),
    [
        (torch.zeros(40, 50, dtype=torch.uint8), torch.zeros(40, 60, dtype=torch.uint8), None, "one size"),
        (torch.zeros(40, 50), torch.zeros(40, 50), None, "uint8"),
        (torch.zeros(3, 40, 50, dtype=torch.uint8), torch.zeros(3, 40, 50, dtype=torch.uint8), None, "grey"),
        (torch.zeros(15, 50, dtype=torch.uint8), torch.zeros(15, 50, dtype=torch.uint8), None, "at least 16"),
        (
            torch.zeros(40, 50, dtype=torch.uint8),
            torch.zeros(40, 50, dtype=torch.uint8),
            torch.zeros(2, 40, 50),
            "guess",
        ),
    ],
)
def test_unfit_input_is_refused(previous, current, initial, message):
    with pytest.raises(ShapeError, match=message):
        LucasKanadeFlow()(previous, current, initial)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_makes_no_difference(rotated):
    previous, current, _ = rotated(2.0)
    here, there = LucasKanadeFlow()(previous, current), LucasKanadeFlow()(previous.cuda(), current.cuda())
    assert there.forward.is_cuda
    assert (here.forward - there.forward.cpu()).abs().max() < 0.01
