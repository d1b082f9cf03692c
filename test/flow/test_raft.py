"""RAFT against a second implementation of what was published, and its own parts against their definitions."""

from itertools import islice

import pytest
import torch
from torch.nn import functional

from flowodom.flow.checkpoint import from_published
from flowodom.flow.correlation import AllPairs, OnDemand
from flowodom.flow.raft import Raft, convex_upsample

from . import published_raft as published


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(2, 3, 20, 22, generator=generator) * 2 - 1
    fine = functional.interpolate(coarse, size=(136, 152), mode="bicubic").clamp(-1, 1)
    return fine[..., 4:132, 4:148], fine[..., 6:134, 1:145]


@pytest.mark.parametrize("size", ["small", "large"])
def test_published_weights_give_published_flow_in_both_layouts(size, images):
    authors, torchvision = published.random_weights(size)
    expected = published.flow(authors, *images, size=size, updates=4)
    assert expected.abs().mean() > 0.5
    for layout in (authors, torchvision):
        model = Raft(size=size, uncertain=False).eval()
        model.load_state_dict(from_published(layout))
        with torch.no_grad():
            found = model(*images, updates=4)[-1].flow
        assert (found - expected).abs().max() < 1e-3


def test_correlation_on_demand_is_that_of_all_pairs():
    generator = torch.Generator().manual_seed(2)
    first, second = torch.randn(2, 2, 16, 17, 23, generator=generator)
    places = torch.randn(2, 2, 17, 23, generator=generator) * 20 + 8
    places[0, 0, 0, :4] = torch.tensor((torch.inf, -torch.inf, torch.nan, 1e9))
    every, some = (kind(first, second, 4, 3)(places) for kind in (AllPairs, OnDemand))
    assert every.shape == (2, 4 * 49, 17, 23)
    torch.testing.assert_close(every, some)
    assert every[0, :, 0, 0].abs().max() == 0


def test_correlation_at_a_place_is_the_product_of_the_features_there():
    first, second = torch.randn(2, 1, 8, 16, 16, generator=torch.Generator().manual_seed(3))
    places = torch.full((1, 2, 16, 16), 5.0)
    places[:, 1] = 9.0
    found = AllPairs(first, second, 1, 2)(places)[0].view(5, 5, 16, 16)
    expected = (first[0] * second[0, :, 9 - 1, 5 + 2, None, None]).sum(0) / 8**0.5
    torch.testing.assert_close(found[4, 1], expected)


def test_starting_where_it_ended_goes_on_from_there(images):
    torch.manual_seed(0)
    model = Raft(size="small").eval()
    with torch.no_grad():
        first, second = (model.encode(image) for image in images)
        two = list(islice(model.states(first, second), 2))
        again = next(model.states(first, second, initial=two[0].flow))
    assert (again.flow - again.step - two[0].flow).abs().max() < 1e-5


def test_every_weight_learns(images):
    model = Raft(size="large")
    predictions = model(*images, updates=2)
    assert len(predictions) == 2
    loss = sum(p.flow.abs().mean() + p.mixture.square().mean() for p in predictions)
    loss.backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    # A bias before an instance norm cancels.
    assert not [name for name in without if not (name.startswith("features.") and name.endswith("bias"))]


def test_convex_upsampling_stays_within_its_neighbours():
    field = torch.rand(1, 2, 5, 6) + 1
    mask = torch.randn(1, 9 * 16, 5, 6)
    fine = convex_upsample(field, mask, 4)
    assert fine.shape == (1, 2, 20, 24)
    inner = functional.max_pool2d(field, 3, 1)
    assert (fine[..., 4:-4, 4:-4] <= functional.interpolate(inner, scale_factor=4) + 1e-5).all()
    choice = torch.full((1, 9, 16, 5, 6), -50.0)
    choice[:, 5, 3] = 50  # the right neighbour, for the fine pixel in row 0, column 3
    picked = convex_upsample(field, choice.flatten(1, 2), 4)
    torch.testing.assert_close(picked[..., 0::4, 3::4][..., :-1], field[..., 1:])
