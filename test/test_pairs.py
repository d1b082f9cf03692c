import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional

from flowodom.errors import ConfigError
from flowodom.worlds import layouts
from flowodom.worlds.bundles import Grid
from flowodom.worlds.layouts import KINDS
from flowodom.worlds.pairs import PairBatch, TrainingPairs
from flowodom.worlds.photometric import blur, jpeg, photometric

SIZE = (100, 76)


@pytest.fixture(scope="module")
def batch():
    return TrainingPairs(3, SIZE, 8)[0]


def grid(batch):
    height, width = batch.depth0.shape[1:]
    v, u = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    return torch.stack((u, v))


def look_up(values, place):
    """Bilinear values (B, C, h, w) at (B, 2, H, W) pixels."""
    height, width = values.shape[-2:]
    scaled = place.movedim(1, -1) * torch.tensor([2 / (width - 1), 2 / (height - 1)]) - 1
    return functional.grid_sample(values, scaled, align_corners=True)


def test_fields_have_their_shapes_and_types(batch):
    width, height = SIZE
    objects = 1 + layouts.MOVERS
    expected = {
        "image": ((3, height, width), torch.uint8),
        "flow": ((2, height, width), torch.float32),
        "hidden": ((height, width), torch.bool),
        "depth": ((height, width), torch.float32),
        "normal": ((3, height, width), torch.float32),
        "motion": ((4, 4), torch.float32),
        "object_id": ((height, width), torch.int64),
        "object_motion": ((objects, 4, 4), torch.float32),
        "intrinsics": ((4,), torch.float32),
    }
    for field in dataclasses.fields(PairBatch):
        value = getattr(batch, field.name)
        shape, dtype = expected[field.name.rstrip("01").removesuffix("_forward").removesuffix("_backward")]
        assert value.shape == (8, *shape), field.name
        assert value.dtype == dtype, field.name
        assert torch.isfinite(value.double()).all(), field.name
    assert batch.depth0.min() > 0
    assert 0 <= batch.object_id0.min() <= batch.object_id0.max() < objects
    torch.testing.assert_close(batch.normal0.norm(dim=1), torch.ones_like(batch.depth0), atol=1e-4, rtol=0)


def test_flow_is_reprojected_depth_of_each_object(batch):
    focal, centre = batch.intrinsics[:, :2, None, None], batch.intrinsics[:, 2:, None, None]
    place = grid(batch)
    rays = torch.cat(((place - centre) / focal, torch.ones(8, 1, *batch.depth0.shape[1:])), 1)
    points = (rays * batch.depth0[:, None]).double()
    motion = batch.object_motion.double()[torch.arange(8)[:, None, None], batch.object_id0]
    moved = torch.einsum("bhwij,bjhw->bihw", motion[..., :3, :3], points) + motion[..., :3, 3].movedim(-1, 1)
    flow = focal * moved[:, :2] / moved[:, 2:] + centre - place
    ahead = moved[:, 2] > 0.01
    assert (flow - batch.flow_forward).norm(dim=1)[ahead].max() < 0.02
    torch.testing.assert_close(batch.motion, batch.object_motion[:, 0])


def test_flow_there_and_back_meets_where_nothing_hides(batch):
    back = look_up(batch.flow_backward, grid(batch) + batch.flow_forward)
    gap = (batch.flow_forward + back).norm(dim=1)[~batch.hidden_forward]
    assert gap.median() < 0.01
    # What is left lies along edges, where neighbouring pixels belong to different things.
    assert (gap > 1).float().mean() < 0.03


def test_what_is_seen_twice_has_the_depth_that_motion_gives_it(batch):
    focal, centre = batch.intrinsics[:, :2, None, None], batch.intrinsics[:, 2:, None, None]
    rays = torch.cat(((grid(batch) - centre) / focal, torch.ones(8, 1, *batch.depth0.shape[1:])), 1)
    motion = batch.object_motion[torch.arange(8)[:, None, None], batch.object_id0]
    expected = torch.einsum("bhwj,bjhw->bhw", motion[..., 2, :3], rays * batch.depth0[:, None]) + motion[..., 2, 3]
    seen = 1 / look_up(1 / batch.depth1[:, None], grid(batch) + batch.flow_forward)[:, 0]
    error = (seen / expected - 1).abs()[~batch.hidden_forward]
    assert error.median() < 1e-3
    assert (error > 0.05).float().mean() < 0.03


def test_something_moves_and_something_hides(batch):
    shares = (batch.object_id0 > 0).float().mean((1, 2))
    assert (shares > 0).any()
    assert 0.01 < batch.hidden_forward.float().mean() < 0.6
    apart = (batch.object_motion[:, 1:] - batch.motion[:, None]).abs().amax((1, 2, 3))
    assert (apart > 1e-3).any()


def test_pictures_agree_with_flow(batch):
    still = look_up(batch.image1.float(), grid(batch) + batch.flow_forward)
    error = (still - batch.image0).abs().mean(1)[~batch.hidden_forward]
    plain = (batch.image1.float() - batch.image0).abs().mean(1)[~batch.hidden_forward]
    assert error.median() < 6
    assert error.mean() < 0.5 * plain.mean()


def test_a_batch_depends_on_seed_and_number_alone(batch):
    again = TrainingPairs(3, SIZE, 8)
    again[1]
    for field in dataclasses.fields(PairBatch):
        assert torch.equal(getattr(again[0], field.name), getattr(batch, field.name)), field.name
    assert not torch.equal(TrainingPairs(4, SIZE, 8)[0].image0, batch.image0)
    assert torch.equal(next(iter(again)).image0, batch.image0)


@pytest.mark.parametrize("rows", [1, 5])
def test_any_number_of_pairs(rows):
    assert TrainingPairs(3, (32, 24), rows)[2].image0.shape == (rows, 3, 24, 32)


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="16 or more"):
        TrainingPairs(1, (8, 8))
    with pytest.raises(ConfigError, match="batch"):
        TrainingPairs(1, (32, 32), 0)


def test_grid_cuts_and_lays_out():
    cut = Grid(37, 21)
    picture = torch.rand(2, 3, 21, 37)
    assert torch.equal(cut.picture(cut.tiles(picture)), picture)
    pixels = cut.picture(cut.pixels(torch.device("cpu")).movedim(0, 1))
    assert torch.equal(pixels[0, 0, 3], torch.arange(37.0))


def test_scenes_of_every_kind_differ():
    generator = np.random.default_rng(0)
    for kind in KINDS:
        layout = kind(generator, 3)
        assert layout.half.shape == (3, len(layouts.SHAPES), 3)
        assert (layout.half > 0).all()
        assert not np.allclose(layout.half[0], layout.half[1])


def test_photometric_changes_pictures_alone(batch):
    shown = photometric(batch, 5)
    assert shown.image0.dtype == torch.uint8
    assert not torch.equal(shown.image0, batch.image0)
    assert shown.flow_forward is batch.flow_forward
    assert torch.equal(photometric(batch, 5).image1, shown.image1)
    assert not torch.equal(photometric(batch, 6).image1, shown.image1)


def test_blur_keeps_what_stands_still_and_smears_what_moves():
    image = torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(blur(image, torch.zeros(1, 2, 20, 30)), image, atol=1e-5, rtol=0)
    streak = torch.zeros(1, 2, 20, 30)
    streak[:, 0] = 4
    smeared = blur(image, streak)
    assert smeared.diff(dim=3).abs().mean() < 0.5 * image.diff(dim=3).abs().mean()
    assert smeared.diff(dim=2).abs().mean() > 0.3 * image.diff(dim=2).abs().mean()


def test_jpeg_loses_more_at_lower_quality():
    generator = torch.Generator().manual_seed(0)
    image = 255 * functional.interpolate(torch.rand(1, 3, 9, 11, generator=generator), (37, 45), mode="bilinear")
    errors = [
        (jpeg(image, torch.full((1, 1, 1, 1, 1, 1), quality)) - image).abs().mean().item()
        for quality in (100.0, 80.0, 30.0)
    ]
    assert errors[0] < 0.5 < errors[1] < errors[2] < 15
