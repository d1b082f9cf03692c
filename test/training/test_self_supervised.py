"""Learning from video: the fit of the motion, and what each loss says of worlds that are known."""

import dataclasses
import math

import pytest
import torch

from flowodom.depth.field import FieldConfig, FieldNetwork, normalised, places, project, rays
from flowodom.geometry import se3
from flowodom.registration.procrustes import procrustes
from flowodom.training.self_supervised import WEIGHTS, VideoPairs, fit_motion, losses, photometric_error, total
from flowodom.worlds import pinhole

CONFIG = FieldConfig(channels=(8, 16), hidden=8, octaves=2, cells=64, near=0.5, far=20.0)
CAMERA = pinhole(48, 40)
ALL = torch.ones(2, 40, dtype=torch.float64)
SIDEWAYS = torch.tensor([0.5, -0.3, 0.0, 0.0, 0.0, 0.0])


class Wall(FieldNetwork):
    """A field that sees a wall that faces it, in the colours of the image."""

    def __init__(self, depth):
        super().__init__(CONFIG)
        self.wall = math.log(depth)

    def density(self, features, log_depth):
        thickness = 1e4 * (log_depth > self.wall).to(features)
        return thickness.expand(*features.shape[:2], -1)

    def decode(self, features, log_depth):
        thickness = self.density(features, log_depth)
        return thickness, torch.zeros(*thickness.shape, 3).to(features)


def wall_pair(depth, xi=SIDEWAYS):
    """A camera that slides along a wall; its colours are smooth."""
    intrinsics = normalised(CAMERA)
    at = places(40, 48, torch.zeros(()))
    motion = se3.exp(xi)

    def seen_from(motion):
        points = se3.act(motion, depth * rays(at, intrinsics))
        return project(points / points[..., 2:], intrinsics) - at

    def picture(at):
        return torch.stack((at[..., 0], at[..., 1], (at[..., 0] * at[..., 1]).abs().sqrt()))

    back = seen_from(se3.inverse(motion))
    images = torch.stack((picture(at), picture(at + back)))
    unit = torch.tensor([-math.log(depth)])
    return VideoPairs(
        images[None],
        torch.stack((seen_from(motion), back))[None],
        torch.full((1, 2, 40, 48), 1e-3),
        intrinsics,
        unit,
        torch.tensor([[0, 1]]),
    )


@pytest.fixture
def scene_flow():
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(2, 40, 3, generator=generator, dtype=torch.float64) * torch.tensor([4.0, 3.0, 4.0])
    points = points - torch.tensor([2.0, 1.5, -1.0], dtype=torch.float64)
    motion = se3.exp(0.1 * torch.randn(2, 6, generator=generator, dtype=torch.float64))
    return points, se3.act(motion[:, None], points), motion


def test_exact_scene_flow_gives_the_exact_motion(scene_flow):
    points, targets, motion = scene_flow
    found, still = fit_motion(points, targets, targets[..., :2] / targets[..., 2:], ALL, 1e-3 * ALL)
    assert still.min() > 0.99
    torch.testing.assert_close(found, motion, atol=1e-8, rtol=0)


def test_what_moves_loses_its_voice_and_depth_noise_makes_no_motion(scene_flow):
    points, targets, motion = scene_flow
    generator = torch.Generator().manual_seed(2)
    seen = targets[..., :2] / targets[..., 2:]
    seen[:, :8] += 0.2
    noisy = targets * (1 + 0.2 * torch.randn(2, 40, 1, generator=generator, dtype=torch.float64))
    found, still = fit_motion(points, noisy, seen, ALL, 1e-3 * ALL)
    assert still[:, :8].max() < 0.1 * still[:, 8:].mean()
    error = se3.log(se3.inverse(motion) @ found).norm(dim=-1)
    closed = se3.log(se3.inverse(motion) @ procrustes(points, noisy, ALL)).norm(dim=-1)
    assert (error < 0.05 * closed).all()


def test_a_mover_that_fills_a_third_of_a_narrow_view_does_not_draw_the_motion():
    generator = torch.Generator().manual_seed(4)
    across = torch.tensor([0.8, 0.6])
    place = (torch.rand(4, 300, 2, generator=generator) - 0.5) * across
    ray = torch.cat((place, torch.ones(4, 300, 1)), -1).double()
    mover = (place[..., 0] > -0.1) & (place[..., 0] < 0.17)
    depth = torch.where(mover, 1.3, 2.5 + torch.rand(4, 300, generator=generator)).double()
    motion = se3.exp(0.02 * torch.randn(4, 6, generator=generator, dtype=torch.float64))
    own = se3.exp(0.03 * torch.randn(4, 6, generator=generator, dtype=torch.float64))
    points = depth[..., None] * ray
    targets = se3.act(motion[:, None], torch.where(mover[..., None], se3.act(own[:, None], points), points))
    seen = targets[..., :2] / targets[..., 2:]
    wrong = points * torch.exp(0.2 * torch.randn(4, 300, 1, generator=generator)).double()
    seen = seen + 2e-4 * torch.randn(4, 300, 2, generator=generator)
    found, still = fit_motion(wrong, targets, seen, torch.ones(4, 300).double(), torch.full((4, 300), 3e-4).double())
    error = se3.inverse(motion) @ found
    assert (se3.so3_log(error[:, :3, :3]).norm(dim=-1) < 0.1 * se3.so3_log(motion[:, :3, :3]).norm(dim=-1)).all()
    assert still[mover].mean() < 0.1 * still[~mover].mean()


def test_wrong_depths_neither_turn_nor_shorten_the_motion(scene_flow):
    points, targets, motion = scene_flow
    generator = torch.Generator().manual_seed(2)
    wrong = points * (1 + 0.2 * torch.randn(2, 40, 1, generator=generator, dtype=torch.float64))
    found, _ = fit_motion(wrong, targets, targets[..., :2] / targets[..., 2:], ALL, 1e-3 * ALL)
    error = se3.inverse(motion) @ found
    closed = se3.inverse(motion) @ procrustes(wrong, targets, ALL)
    turn, closed_turn = (se3.so3_log(off[:, :3, :3]).norm(dim=-1) for off in (error, closed))
    assert (turn < 0.1 * closed_turn).all()
    assert (found[:, :3, 3].norm(dim=-1) / motion[:, :3, 3].norm(dim=-1) - 1).abs().max() < 0.1


def test_derivatives_go_through_the_fit_to_points_and_weights(scene_flow):
    points, targets, _ = scene_flow
    generator = torch.Generator().manual_seed(3)
    # The robust voices are held fixed, so they must not matter: scene flow without outliers, and all alike.
    noise = 1e-7 * torch.randn(1, 12, 2, generator=generator, dtype=torch.float64)
    seen = (targets[..., :2] / targets[..., 2:])[:1, :12] + noise
    weight = 0.5 + torch.rand(1, 12, generator=generator, dtype=torch.float64)
    inputs = [v.clone().requires_grad_() for v in (points[:1, :12], targets[:1, :12], weight)]

    def fit(points, targets, weight):
        return se3.log(fit_motion(points, targets, seen, weight, 1e-2 * ALL[:1, :12])[0])

    assert torch.autograd.gradcheck(fit, inputs, atol=1e-4, rtol=1e-2)


def test_a_field_that_is_right_has_nothing_to_learn():
    pairs = wall_pair(4.0)
    right = losses(Wall(4.0), pairs, generator=torch.Generator().manual_seed(0))
    assert set(right) == set(WEIGHTS)
    assert right["colour"] < 0.01
    assert right["context"] < 0.001
    assert right["flow"] < 0.4
    assert right["cycle"] < 0.01
    assert right["static"] < 0.05
    assert right["unit"] < 0.002
    assert total(right).isfinite()


def test_the_unit_is_held():
    pairs = wall_pair(4.0)
    same, other = (losses(Wall(d), pairs, generator=torch.Generator().manual_seed(0)) for d in (4.0, 8.0))
    # A wall twice as far and a motion twice as long look the same.
    assert other["colour"] < 0.01
    assert other["flow"] < 0.4
    assert float(other["unit"]) == pytest.approx(math.log(2) ** 2, rel=0.1)
    assert same["unit"] < 0.01 * other["unit"]


def test_a_mirrored_world_is_as_right():
    pairs = wall_pair(4.0)
    plain, mirrored = (
        losses(Wall(4.0), p, generator=torch.Generator().manual_seed(0)) for p in (pairs, pairs.mirrored())
    )
    assert mirrored["colour"] < 0.01
    assert mirrored["flow"] == pytest.approx(float(plain["flow"]), rel=0.3)
    again = pairs.mirrored().mirrored()
    torch.testing.assert_close(again.flow, pairs.flow)
    torch.testing.assert_close(again.intrinsics, pairs.intrinsics)


def test_what_the_flow_does_not_know_is_not_learned_from():
    pairs = wall_pair(4.0)
    broken = pairs.flow.clone()
    broken[:, :, :, :32] += 0.2 * torch.rand(1, 2, 40, 32, 2, generator=torch.Generator().manual_seed(1))
    deviation = pairs.deviation.clone()
    deviation[:, :, :, :32] = 1.0
    wrong = dataclasses.replace(pairs, flow=broken)
    warned = dataclasses.replace(wrong, deviation=deviation)
    unaware, aware = (losses(Wall(4.0), p, generator=torch.Generator().manual_seed(0)) for p in (wrong, warned))
    assert aware["flow"] < 0.2 * unaware["flow"]


def test_the_error_on_held_out_pairs_is_the_same_each_time():
    torch.manual_seed(0)
    network = FieldNetwork(CONFIG)
    pairs = wall_pair(4.0)
    first = photometric_error(network, pairs)
    assert photometric_error(network, pairs) == first
    assert photometric_error(Wall(4.0), pairs) < 0.1 * first
    assert network.training
