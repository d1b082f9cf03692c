"""The closed-form fit of scene flow against motions known exactly."""

import pytest
import torch

from flowodom.errors import ShapeError
from flowodom.geometry import se3
from flowodom.registration.procrustes import procrustes
from flowodom.worlds import hand_held, pinhole, room


def cloud(*shape, seed=0):
    return torch.randn(*shape, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def motions(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return se3.exp(torch.randn(*shape, 6, generator=generator, dtype=torch.float64))


def test_recovers_a_motion_exactly():
    points, motion = cloud(50), motions()
    found = procrustes(points, se3.act(motion, points), torch.ones(50, dtype=torch.float64))
    torch.testing.assert_close(found, motion, atol=1e-12, rtol=0)


def test_three_points_are_enough():
    points, motion = cloud(3), motions()
    found = procrustes(points, se3.act(motion, points), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(found, motion, atol=1e-10, rtol=0)


def test_batches_are_fitted_one_by_one():
    points, motion = cloud(2, 5, 20), motions(2, 5)
    targets = se3.act(motion[:, :, None], points) + 0.01 * cloud(2, 5, 20, seed=3)
    weight = torch.rand(2, 5, 20, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found = procrustes(points, targets, weight)
    assert found.shape == (2, 5, 4, 4)
    torch.testing.assert_close(found[1, 2], procrustes(points[1, 2], targets[1, 2], weight[1, 2]))


def test_points_without_weight_do_not_count():
    points, motion = cloud(40), motions()
    targets = se3.act(motion, points)
    targets[::4] += 5
    weight = torch.ones(40, dtype=torch.float64)
    weight[::4] = 0
    torch.testing.assert_close(procrustes(points, targets, weight), motion, atol=1e-12, rtol=0)


def test_weight_counts_as_repetition():
    points, targets = cloud(6), cloud(6, seed=5)
    weight = torch.tensor([1, 2, 3, 1, 1, 2], dtype=torch.float64)
    repeated = torch.arange(6).repeat_interleave(weight.long())
    ones = torch.ones(len(repeated), dtype=torch.float64)
    torch.testing.assert_close(
        procrustes(points, targets, weight), procrustes(points[repeated], targets[repeated], ones)
    )


def test_a_mirrored_target_still_gives_a_rotation_and_the_best_one():
    points = cloud(30)
    targets = points * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    weight = torch.ones(30, dtype=torch.float64)
    found = procrustes(points, targets, weight)
    assert torch.linalg.det(found[:3, :3]) == pytest.approx(1)
    torch.testing.assert_close(found[:3, :3] @ found[:3, :3].T, torch.eye(3, dtype=torch.float64))

    def cost(motion):
        return (se3.act(motion, points) - targets).square().sum()

    nudges = se3.exp(0.01 * torch.cat((torch.eye(6), -torch.eye(6))).double())
    assert all(cost(found) <= cost(nudge @ found) for nudge in nudges)


def test_a_flat_cloud_is_no_reflection():
    points, motion = cloud(30), motions()
    points[:, 2] = 0
    found = procrustes(points, se3.act(motion, points), torch.ones(30, dtype=torch.float64))
    torch.testing.assert_close(found, motion, atol=1e-12, rtol=0)


def test_no_weight_at_all_moves_nothing_to_infinity():
    found = procrustes(cloud(5), cloud(5, seed=2), torch.zeros(5, dtype=torch.float64))
    assert found.isfinite().all()


def test_gradients_reach_points_targets_and_weights():
    points = cloud(2, 6).requires_grad_()
    targets = (se3.act(motions(2)[:, None], points.detach()) + 0.1 * cloud(2, 6, seed=3)).requires_grad_()
    weight = (0.5 + torch.rand(2, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(procrustes, (points, targets, weight))


def test_exact_scene_flow_of_a_room_gives_the_cameras_motion_exactly():
    world, path, camera = room(1, movers=0, texels=64), hand_held(1), pinhole(80, 60)
    before, after = (world.render(path(t), t, camera, colour=False) for t in (0.0, 1 / 30))
    truth = world.flow_between(before, after)
    points, flow = before.points.reshape(-1, 3), truth.scene_flow.reshape(-1, 3)
    found = procrustes(points, points + flow, torch.ones(len(points), dtype=torch.float64))
    torch.testing.assert_close(found, se3.inverse(after.pose) @ before.pose, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("points", "targets", "weight"),
    [((5, 3), (4, 3), (5,)), ((5, 2), (5, 2), (5,)), ((5, 3), (5, 3), (5, 1)), ((2, 5, 3), (2, 5, 3), (5,))],
)
def test_shapes_that_do_not_agree_are_named(points, targets, weight):
    with pytest.raises(ShapeError, match=r"procrustes needs points .* got"):
        procrustes(torch.zeros(points), torch.zeros(targets), torch.zeros(weight))


def test_fewer_than_three_points_are_refused():
    with pytest.raises(ShapeError, match="at least 3 points, got 2"):
        procrustes(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2))
