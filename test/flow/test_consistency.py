"""Round trips of flow, and sampling, against what they are by definition."""

import pytest
import torch

from flowodom.flow.consistency import FLOW_NOISE, consistency_variance, round_trip, sample, shrink


def ramp(height=5, width=7):
    v, u = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    return torch.stack((u, v, 2 * u - v + 3), dim=-1)


def test_sampling_between_pixels_is_linear():
    pixels = torch.tensor([[0.0, 0.0], [6.0, 4.0], [2.5, 1.25], [5.9, 0.1]])
    expected = torch.cat((pixels, 2 * pixels[:, :1] - pixels[:, 1:] + 3), dim=-1)
    torch.testing.assert_close(sample(ramp(), pixels), expected)


def test_sampling_outside_takes_the_border():
    found = sample(ramp(), torch.tensor([[-3.0, 2.0], [9.0, 9.0]]))
    torch.testing.assert_close(found[:, :2], torch.tensor([[0.0, 2.0], [6.0, 4.0]]))


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (0,), (2, 0)])
def test_sampling_keeps_the_shape_of_the_pixels(shape):
    assert sample(ramp(), torch.ones(*shape, 2)).shape == (*shape, 3)


def test_sampling_a_single_pixel():
    torch.testing.assert_close(sample(torch.full((1, 1, 2), 4.0), torch.zeros(3, 2)), torch.full((3, 2), 4.0))


def test_sampling_takes_pixels_of_double_precision():
    assert sample(ramp(), torch.zeros(2, 2, dtype=torch.float64)).dtype == torch.float32


@pytest.mark.parametrize("shape", [(12, 16), (12, 16, 2)])
def test_shrinking_takes_means_with_components_first(shape):
    field = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    means = shrink(field, 6, 8)
    assert means.shape == (*shape[2:], 6, 8)
    torch.testing.assert_close(means[..., 2, 3], field[4:6, 6:8].mean((0, 1)))
    # What other devices do gives the same shape.
    assert shrink(field.to("meta"), 6, 8).shape == means.shape


def test_opposite_flows_meet():
    forward = torch.tensor((2.0, -1.0)).expand(20, 30, 2)
    torch.testing.assert_close(round_trip(forward, -forward), torch.zeros(20, 30))
    torch.testing.assert_close(consistency_variance(forward, -forward), torch.full((20, 30), FLOW_NOISE**2))


def test_a_round_trip_misses_by_the_sum_of_what_both_got_wrong():
    forward = torch.tensor((2.0, -1.0)).expand(20, 30, 2)
    backward = torch.tensor((-2.0, 1.0 + 0.8)).expand(20, 30, 2)
    torch.testing.assert_close(round_trip(forward, backward), torch.full((20, 30), 0.8**2))
    expected = FLOW_NOISE**2 + 0.5 * 0.8**2
    torch.testing.assert_close(consistency_variance(forward, backward), torch.full((20, 30), expected))


def test_the_way_back_is_read_where_the_way_there_ends():
    forward = torch.zeros(8, 8, 2)
    forward[..., 0] = 3
    backward = torch.zeros(8, 8, 2)
    backward[:, 5, 0] = -3
    miss = round_trip(forward, backward)
    assert miss[4, 2] == 0
    assert miss[4, 3] == 9


def test_variance_foretells_the_error_of_noisy_flows():
    generator = torch.Generator().manual_seed(0)
    true = torch.tensor((3.0, 1.0)).expand(100, 100, 2)
    noise = 0.5 * torch.randn(2, 100, 100, 2, generator=generator)
    variance = consistency_variance(true + noise[0], -true + noise[1])
    # Sampling between pixels averages the noise of the way back a little.
    assert 0.6 * 0.25 < float(variance.mean() - FLOW_NOISE**2) / 2 < 1.2 * 0.25 * 2


def test_round_trips_on_the_processor_are_those_of_other_devices():
    generator = torch.Generator().manual_seed(0)
    v, u = torch.meshgrid(torch.arange(24.0), torch.arange(32.0), indexing="ij")
    forward = torch.stack((2 + 0.03 * u, 0.02 * v - 1), dim=-1)
    backward = 0.1 * torch.rand(24, 32, 2, generator=generator) - forward
    for stride in (1, 3):
        found = round_trip(forward, backward, stride=stride)
        expected = round_trip(forward.clone().requires_grad_(), backward, stride=stride).detach()
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
