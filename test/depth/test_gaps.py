"""Closing the gaps between samples of depth."""

import pytest
import torch

from flowodom.depth.gaps import closed


def slope(height=60, width=80):
    """Returns the inverse depth of a slanted plane, 0.5 per metre in the middle."""
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return 0.5 + 0.001 * (u - width / 2) - 0.0005 * (v - height / 2)


def thinned(rho, every=None, seed=None):
    """Returns a field that is known at every so manieth row and column, or at three fifths of its pixels."""
    known = torch.zeros_like(rho, dtype=torch.bool)
    if every:
        known[::every, ::every] = True
    else:
        known = torch.rand(rho.shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    return torch.where(known, rho, torch.nan), torch.where(known, 1e-6, torch.inf)


@pytest.mark.parametrize("every", [2, 3, 5, 10])
def test_a_grid_of_samples_is_interpolated(every):
    true = slope(61, 81)
    mean, variance = closed(*thinned(true, every))
    inside = (slice(every, -every), slice(every, -every))
    assert mean[inside].isfinite().all()
    assert ((mean - true).abs() < 3 * variance.sqrt())[inside].all()
    assert (mean / true - 1)[inside].abs().max() < 0.01
    assert variance[inside].max() < 0.01**2


def test_what_was_measured_stays_as_it_is():
    mean, variance = thinned(slope(), seed=1)
    filled, unsure = closed(mean, variance)
    known = mean.isfinite()
    torch.testing.assert_close(filled[known], mean[known], rtol=0, atol=0)
    torch.testing.assert_close(unsure[known], variance[known], rtol=0, atol=0)
    assert filled.isfinite().double().mean() > 0.99
    assert (filled.isfinite() == unsure.isfinite()).all()


def test_a_hole_stays_where_the_rest_has_gaps():
    mean, variance = thinned(slope(), 2)
    mean[15:45, 20:60], variance[15:45, 20:60] = torch.nan, torch.inf
    filled, _ = closed(mean, variance)
    assert filled[17:43, 22:58].isnan().all()
    assert filled[2:13, 2:-2].isfinite().all()


def test_no_gap_is_closed_where_depth_jumps():
    true = slope()
    true[:, 40:] = 2 * true[:, 40:]
    filled, _ = closed(*thinned(true, 3))
    known = filled.isfinite()
    assert ((filled / true - 1).abs() < 0.02)[known].all()
    assert known[3:-3, 3:34].all()
    assert known[3:-3, 46:-3].all()


def test_a_field_without_gaps_is_left_alone():
    mean = slope()
    mean[10:30, 20:50] = torch.nan
    variance = torch.where(mean.isfinite(), 1e-6, torch.inf)
    filled, unsure = closed(mean, variance)
    assert filled is mean
    assert unsure is variance


def test_nothing_comes_of_nothing_and_little_of_little():
    blank = torch.full((20, 30), torch.nan), torch.full((20, 30), torch.inf)
    assert closed(*blank)[0].isnan().all()
    blank[0][4, 5], blank[1][4, 5] = 0.5, 1e-6
    filled, unsure = closed(*blank)
    assert filled[4, 5] == 0.5
    assert (filled.isfinite() == unsure.isfinite()).all()
    tiny = torch.tensor([[0.5, torch.nan], [torch.nan, 0.5]])
    assert closed(tiny, torch.full((2, 2), 1e-6))[0].isfinite().sum() >= 2
