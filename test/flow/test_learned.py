"""Networks as flow methods: sizes, caching, starts, early ends, and devices that run out of memory."""

import logging

import pytest
import torch

from flowodom.errors import DeviceError, ShapeError
from flowodom.flow import DenseFlow
from flowodom.flow.correlation import AllPairs, OnDemand
from flowodom.flow.dis import DisFlow
from flowodom.flow.learned import RaftFlow, RefinedFlow
from flowodom.flow.raft import Raft
from flowodom.flow.refiner import Refiner

SIZES = [(136, 160), (61, 90), (16, 33)]


@pytest.fixture
def model():
    torch.manual_seed(3)
    return Raft(size="small")


def check(field, height, width):
    for flow in (field.rough, field.forward, field.backward):
        assert flow.shape == (height, width, 2)
        assert flow.dtype == torch.float32
        assert flow.isfinite().all()
    for variance in (field.forward_variance, field.backward_variance):
        assert variance.shape == (height, width)
        assert variance.dtype == torch.float32
        assert (variance > 0).all()


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("uncertain", [True, False])
def test_raft_takes_any_size(height, width, uncertain, picture):
    method = RaftFlow(Raft(size="small", uncertain=uncertain), updates=2, half=False)
    check(method(picture(height, width), picture(height, width, lambda p: p - 1)), height, width)


def test_backward_is_forward_of_the_images_exchanged(model, picture):
    first, second = picture(136, 144), picture(136, 144, lambda p: p - 2)
    method = RaftFlow(model, updates=3, half=False)
    there, back = method(first, second), method(second, first)
    torch.testing.assert_close(there.backward, back.forward, atol=1e-3, rtol=0)
    torch.testing.assert_close(there.backward_variance, back.forward_variance, atol=1e-3, rtol=1e-3)


def test_features_are_kept_for_the_next_frame_and_only_while_they_hold(model, picture):
    frames = [picture(128, 128, lambda p, k=k: p - k) for k in range(3)]
    method = RaftFlow(model, updates=2, half=False)
    seen = []
    encode = model.encode
    model.encode = lambda images: seen.append(1) or encode(images)
    method(frames[0], frames[1])
    kept = method(frames[1], frames[2])
    assert len(seen) == 3
    fresh = RaftFlow(model, updates=2, half=False)(frames[1], frames[2])
    torch.testing.assert_close(kept.forward, fresh.forward)
    frames[2] += 1
    seen.clear()
    method(frames[2], frames[0])
    assert len(seen) == 2


def test_it_ends_when_updates_have_become_small(model, picture):
    first, second = picture(128, 128), picture(128, 128, lambda p: p - 1)
    for tolerance, expected in ((1e9, 1), (0.0, 5), (1e-9, 5)):
        steps = []
        handle = model.update.register_forward_hook(lambda *_, steps=steps: steps.append(1))
        RaftFlow(model, updates=5, tolerance=tolerance)(first, second)
        handle.remove()
        assert len(steps) == expected


def test_the_start_is_taken_in_both_directions(picture):
    model = Raft(size="small", uncertain=False)
    torch.nn.init.zeros_(model.update.step[2].weight)
    torch.nn.init.zeros_(model.update.step[2].bias)
    first = picture(120, 140)
    guess = torch.tensor((3.0, -2.0)).expand(120, 140, 2).contiguous()
    field = RaftFlow(model, updates=2, half=False)(first, first, guess)
    torch.testing.assert_close(field.forward, guess, atol=1e-4, rtol=0)
    torch.testing.assert_close(field.backward, -guess, atol=1e-4, rtol=0)


class Short:
    """A network on a device that has memory for images of so many pixels, and for no volume of all pairs."""

    def __init__(self, model, pixels):
        self.pixels, self.used, self.states_of = pixels, [], model.states
        model.states, model.encode, self.encode_of = self.states, self.encode, model.encode

    def encode(self, images):
        if images.shape[-1] * images.shape[-2] > self.pixels:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return self.encode_of(images)

    def states(self, *features, correlate, **options):
        self.used.append(correlate)
        if correlate is AllPairs:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return self.states_of(*features, correlate=correlate, **options)


def test_out_of_memory_it_goes_on_with_less_and_says_so(model, picture, caplog):
    short = Short(model, 160 * 144)
    method = RaftFlow(model, updates=1, half=False)
    first, second = picture(272, 288), picture(272, 288, lambda p: p - 1)
    with caplog.at_level(logging.WARNING):
        check(method(first, second), 272, 288)
    assert [record.message.partition("going on ")[2] for record in caplog.records] == [
        "with correlation on demand, which is slower",
        "at 1/2 of the size",
    ]
    assert short.used == [OnDemand]
    caplog.clear()
    check(method(second, first), 272, 288)
    assert not caplog.records


def test_out_of_memory_at_the_least_size_is_an_error(model, picture):
    Short(model, 100)
    with pytest.raises(DeviceError, match=r"288x272.*flow.max_pixels"):
        RaftFlow(model, updates=1)(picture(272, 288), picture(272, 288))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_an_untrained_refiner_gives_what_dis_gives(height, width, picture):
    first, second = picture(height, width), picture(height, width, lambda p: p - 1)
    field, start = RefinedFlow(Refiner())(first, second), DisFlow()(first, second)
    field.begin()
    check(field, height, width)
    torch.testing.assert_close(field.forward, start.forward)
    torch.testing.assert_close(field.backward, start.backward)


def test_dis_starts_where_it_is_told_and_that_from_what_is_known(picture):
    first, second = picture(96, 128), picture(96, 128, lambda p: p - 20)
    there = torch.zeros(96, 128, 2)
    told = []

    def start(previous, current, initial=None):
        told.append(initial)
        nowhere = torch.zeros(96, 128)
        return DenseFlow(there + 20, there - 20, nowhere, nowhere)

    field = RefinedFlow(Refiner(), start=start)(first, second, there)
    assert told == [there]
    expected = DisFlow()(first, second, there + 20)
    torch.testing.assert_close(field.rough, expected.rough)
    torch.testing.assert_close(field.forward, expected.forward)


@pytest.mark.parametrize("method", [RaftFlow(Raft()), RefinedFlow(Refiner())], ids=["raft", "refined"])
@pytest.mark.parametrize(
    ("previous", "current", "message"),
    [
        (torch.zeros(40, 40), torch.zeros(40, 40), "uint8"),
        (torch.zeros(40, 40, dtype=torch.uint8), torch.zeros(40, 41, dtype=torch.uint8), r"\(40, 40\) and \(40, 41\)"),
        (torch.zeros(40, 40, 3, dtype=torch.uint8), torch.zeros(40, 40, 3, dtype=torch.uint8), "grey"),
        (torch.zeros(7, 40, dtype=torch.uint8), torch.zeros(7, 40, dtype=torch.uint8), "at least 16"),
    ],
)
def test_pictures_that_do_not_fit_are_named(method, previous, current, message):
    with pytest.raises(ShapeError, match=message):
        method(previous, current)
