"""Pairs of views: what is said of them holds between them."""

import torch
from torch.nn import functional

from flowodom.geometry import PinholeCamera, se3
from flowodom.training.views import ViewPairs, render_pairs


def test_the_second_view_shows_what_depth_and_motion_say():
    pairs = render_pairs(3, 3, width=80, height=60)
    assert pairs.images.shape == (3, 2, 3, 60, 80)
    for k in range(3):
        camera = PinholeCamera(*pairs.intrinsics[k].tolist(), 80, 60)
        points = camera.unproject(camera.pixels(), 1 / pairs.rho[k, 0].float().clamp_min(1e-4))
        moved = se3.act(pairs.motion[k], points)
        at = camera.project(moved)
        grid = (2 * (at + 0.5) / torch.tensor([80.0, 60.0]) - 1)[None]
        rho = functional.grid_sample(pairs.rho[k, 1][None, None].float(), grid, align_corners=False)[0, 0]
        inside = camera.contains(at, border=1) & (moved[..., 2] > 0)
        assert inside.float().mean() > 0.2
        assert ((rho * moved[..., 2] - 1).abs()[inside] < 0.05).float().mean() > 0.8


def test_the_same_seed_gives_the_same_views():
    first, second, other = render_pairs(7, 2), render_pairs(7, 2), render_pairs(8, 2)
    assert torch.equal(first.images, second.images)
    assert not torch.equal(first.images, other.images)
    both = ViewPairs.concatenate([first, other])
    assert len(both) == 4
    assert torch.equal(both[2:].motion, other.motion)
