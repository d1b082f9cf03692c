"""Samples by number: rendered pairs are true and always the same, and what is kept is made once and mended."""

import pytest
import torch
from torch.nn import functional

from flowodom.depth.field import places, project, rays, sample
from flowodom.errors import ConfigError
from flowodom.geometry import se3
from flowodom.training.field import Views
from flowodom.training.flow import FlowBatch
from flowodom.training.samples import BLOCK, Stored, rendered, sources, together
from flowodom.training.supervised import Plan

CPU = torch.device("cpu")
SIZE = (64, 48)


def numbered(numbers):
    """Samples that show their number."""
    image = torch.arange(SIZE[0]).expand(1, SIZE[1], -1)
    images = torch.stack([image + number for number in numbers]).to(torch.uint8)
    flow = torch.tensor((1.5, -2.0)).view(2, 1, 1).expand(len(numbers), 2, *images.shape[-2:])
    return FlowBatch(images, images.clone(), flow, torch.zeros(len(numbers), *images.shape[-2:], dtype=torch.bool))


def number(batch):
    return int(batch.previous.min())


def test_the_same_numbers_give_the_same_samples():
    first, again, other = (rendered(FlowBatch.of, seed=s, size=SIZE, device=CPU) for s in (1, 1, 2))
    pairs = first(range(4, 6))
    assert len(pairs) == 2
    assert pairs.previous.shape == (2, 1, 48, 64)
    assert pairs.previous.dtype == torch.uint8
    assert pairs.flow.shape == (2, 2, 48, 64)
    assert torch.equal(again(range(4, 6)).current, pairs.current)
    assert not torch.equal(again(range(6, 8)).current, pairs.current)
    assert not torch.equal(other(range(4, 6)).current, pairs.current)


def test_the_second_view_shows_what_depth_and_motion_of_the_first_say():
    plain = rendered(Views.of, seed=3, size=(80, 60), device=CPU)(range(4))
    for views in (plain, plain.mirrored()):
        at = places(60, 80, views.rho).expand(4, -1, -1, -1)
        points = rays(at, views.intrinsics[:, None, None]) / views.rho[..., None].clamp_min(1e-4)
        moved = se3.act(se3.inverse(views.motion)[:, None, None], points)
        there = project(moved / moved[..., 2:], views.intrinsics[:, None, None]).flatten(1, 2)
        inside = ((there > 0.02) & (there < 0.98)).all(-1)
        assert inside.float().mean() > 0.5
        grey = views.images.float().mean(2, keepdim=True)
        seen, shown = sample(grey[:, 1], there)[..., 0], grey[:, 0].flatten(1)
        for k in range(4):
            both = torch.stack((seen[k], shown[k]))[:, inside[k]]
            assert torch.corrcoef(both)[0, 1] > 0.8


def test_mirrored_flow_fits_mirrored_images():
    pairs = rendered(FlowBatch.of, seed=1, size=SIZE, device=CPU)(range(4))
    for batch in (pairs, pairs.mirrored()):
        grid = 2 * places(48, 64, batch.flow) - 1 + 2 * batch.flow.movedim(1, -1) / torch.tensor(SIZE)
        there = functional.grid_sample(batch.current.float(), grid, align_corners=False)[:, 0]
        seen = ~batch.hidden
        assert torch.corrcoef(torch.stack((there[seen], batch.previous[:, 0].float()[seen])))[0, 1] > 0.9
    again = pairs.mirrored().mirrored()
    assert torch.equal(again.flow, pairs.flow)
    assert torch.equal(again.previous, pairs.previous)


def test_the_part_that_is_cut_out_keeps_its_flow_and_hides_what_leaves_it():
    pairs = rendered(FlowBatch.of, seed=1, size=SIZE, device=CPU)(range(4))
    part = pairs.cropped(16, 8, (32, 24))
    assert torch.equal(part.previous, pairs.previous[..., 8:32, 16:48])
    assert torch.equal(part.current, pairs.current[..., 8:32, 16:48])
    assert torch.equal(part.flow, pairs.flow[..., 8:32, 16:48])
    grid = 2 * places(24, 32, part.flow) - 1 + 2 * part.flow.movedim(1, -1) / torch.tensor((32, 24))
    inside = (grid.abs() <= 1).all(-1)
    seen = ~pairs.hidden[:, 8:32, 16:48]
    assert not (~part.hidden & ~(seen & inside)).any()
    well_inside = ((grid * torch.tensor((32, 24))).abs() < torch.tensor((30, 22))).all(-1)
    assert torch.equal(~part.hidden & well_inside, seen & well_inside)
    assert (part.hidden & seen).any()


def test_what_is_kept_is_made_once_comes_in_random_order_and_is_mended(tmp_path):
    made = []

    def source(numbers):
        made.append(list(numbers))
        return numbered(numbers)

    stored = Stored(FlowBatch, source, tmp_path, count=10)
    stored.fill()
    assert made == [list(range(8)), list(range(8, 16))]
    order = [number(stored([n])) for n in range(20)]
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10] != order[10:]
    assert len(made) == 2
    (tmp_path / "000003.safetensors").write_bytes(b"broken")
    assert [number(stored([n])) for n in range(10)] == order[:10]
    assert made[2:] == [list(range(BLOCK))]


def test_half_of_what_is_kept_comes_mirrored(tmp_path):
    stored = Stored(FlowBatch, numbered, tmp_path, count=8)
    across = stored(range(40)).flow[:, 0, 0, 0]
    assert set(across.tolist()) == {-1.5, 1.5}
    assert 10 < int((across > 0).sum()) < 30
    assert torch.equal(stored(range(40)).flow[:, 0, 0, 0], across)


def test_what_is_kept_is_as_exact_as_it_must_be(tmp_path):
    source = rendered(Views.of, seed=1, size=SIZE, device=CPU)
    stored = Stored(Views, source, tmp_path, count=8)
    kept = together([stored([n]) for n in range(8)])
    made = source(range(8))
    order = [int((made.intrinsics[:, 0] == fx).nonzero()[0]) for fx in kept.intrinsics[:, 0]]
    made = together([made[k : k + 1] for k in order])
    flipped = kept.motion[:, 0, 3] != made.motion[:, 0, 3]
    made = together([(part.mirrored() if flip else part) for part, flip in zip(parts(made), flipped, strict=True)])
    assert torch.equal(kept.motion, made.motion)
    assert torch.equal(kept.images, made.images)
    torch.testing.assert_close(kept.rho, made.rho, rtol=1e-3, atol=1e-6)


def parts(samples):
    return [samples[k : k + 1] for k in range(len(samples))]


def test_what_is_judged_by_is_never_learned_from(tmp_path):
    learned, unseen = sources(FlowBatch, FlowBatch.of, tmp_path, Plan(size=SIZE), CPU)
    assert not (tmp_path / "pairs").exists()
    assert not torch.equal(learned([0]).previous, unseen([0]).previous)
    stored, _ = sources(FlowBatch, FlowBatch.of, tmp_path, Plan(size=SIZE, pairs=8), CPU)
    assert len(list((tmp_path / "pairs").iterdir())) == 8
    assert len(stored(range(3))) == 3


def test_nothing_cannot_be_kept(tmp_path):
    with pytest.raises(ConfigError, match="at least one"):
        Stored(FlowBatch, numbered, tmp_path, count=0)
