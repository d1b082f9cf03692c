"""Scene flow lifted from exact flow and depth of a world with a moving object."""

import pytest
import torch

from flowodom.depth import InverseDepth
from flowodom.flow import DenseFlow
from flowodom.flow.consistency import FLOW_NOISE
from flowodom.geometry import PinholeCamera
from flowodom.scene_flow import lift
from flowodom.worlds import hand_held, pinhole, room

CAMERA = pinhole(160, 120)


@pytest.fixture(scope="module")
def scene():
    """Two exact views of a room in which something moves close by, and the exact motion between them."""
    path = hand_held(2)
    world = room(2, coverage=0.25, path=path, texels=64)
    before, after = (world.render(path(t), t, CAMERA, colour=False) for t in (0.5, 0.6))
    return before, after, world.flow_between(before, after)


def inverse(depth, deviation=0.001):
    return InverseDepth(CAMERA, (1 / depth).float(), torch.full(depth.shape, deviation**2))


def exact(truth):
    variance = torch.full(truth.forward.shape[:2], FLOW_NOISE**2)
    return DenseFlow(truth.forward.float(), truth.backward.float(), variance, variance)


@pytest.fixture(scope="module")
def lifted(scene):
    before, after, truth = scene
    return lift(CAMERA, exact(truth), inverse(before.depth), inverse(after.depth), truth.motions[0])


def seen(lifted, truth):
    """Pixels that are seen in both views, with a depth that could be read."""
    return ~truth.forward_hidden & lifted.residual.isfinite().all(-1)


def test_points_and_scene_flow_are_those_of_the_world(scene, lifted):
    before, _, truth = scene
    known = seen(lifted, truth)
    assert known.double().mean() > 0.6
    assert lifted.points.dtype == lifted.scene_flow.dtype == torch.float32
    torch.testing.assert_close(lifted.points[known].double(), before.points[known], atol=1e-4, rtol=1e-5)
    error = (lifted.scene_flow - truth.scene_flow)[known].norm(dim=-1)
    # Between pixels of a curved or tilted surface the inverse depth is interpolated.
    assert error.quantile(0.9) < 2e-3
    assert lifted.camera == CAMERA
    torch.testing.assert_close(lifted.flow, truth.forward.float(), equal_nan=True)


def test_what_stands_still_has_no_residual_and_full_weight(scene, lifted):
    before, _, truth = scene
    static = seen(lifted, truth) & (before.object_id == 0)
    assert lifted.residual[static].norm(dim=-1).quantile(0.9) < 2e-3
    assert lifted.weight[static].quantile(0.1) > 0.9


def test_what_moves_has_its_own_motion_as_residual_and_little_weight(scene, lifted):
    before, _, truth = scene
    moving = seen(lifted, truth) & (before.object_id == 1)
    assert moving.double().mean() > 0.05
    points = before.points[moving]
    ego = points @ truth.motions[0][:3, :3].T + truth.motions[0][:3, 3]
    own = points + truth.scene_flow[moving] - ego
    assert own.norm(dim=-1).median() > 0.02
    error = (lifted.residual[moving] - own).norm(dim=-1)
    assert error.quantile(0.9) < 2e-3
    assert lifted.weight[moving].median() < 0.05


def test_residual_is_what_the_cameras_motion_leaves(scene, lifted):
    _, _, truth = scene
    known = seen(lifted, truth)
    motion = truth.motions[0].float()
    ego = lifted.points @ motion[:3, :3].T + motion[:3, 3] - lifted.points
    torch.testing.assert_close(lifted.residual[known], (lifted.scene_flow - ego)[known], atol=1e-5, rtol=1e-4)


def test_weights_are_shares_and_confidence_falls_with_depth(scene, lifted):
    before, _, truth = scene
    assert ((lifted.weight >= 0) & (lifted.weight <= 1)).all()
    assert lifted.confidence.isfinite().all()
    known = seen(lifted, truth)
    near = known & (before.depth < before.depth[known].quantile(0.2))
    far = known & (before.depth > before.depth[known].quantile(0.8))
    assert lifted.confidence[near].median() > 3 * lifted.confidence[far].median()


def test_what_left_the_image_or_has_no_depth_has_no_weight(scene):
    before, after, truth = scene
    depth = before.depth.clone()
    depth[40:60, 60:90] = torch.nan
    rho = inverse(depth)
    rho = InverseDepth(CAMERA, rho.mean, torch.where(rho.mean.isfinite(), rho.variance, torch.inf))
    found = lift(CAMERA, exact(truth), rho, inverse(after.depth), truth.motions[0])
    hole = (slice(42, 58), slice(62, 88))
    assert found.points[hole].isnan().all()
    assert found.residual[hole].isnan().all()
    assert (found.weight[hole] == 0).all()
    assert (found.confidence[hole] == 0).all()
    assert found.weight.isfinite().all()
    outside = ~CAMERA.contains(CAMERA.pixels(dtype=torch.float64) + truth.forward)
    assert outside.any()
    assert (found.weight[outside] == 0).all()
    assert (found.confidence[outside] == 0).all()


def test_without_any_depth_all_is_unknown_and_nothing_breaks(scene):
    _, _, truth = scene
    unknown = InverseDepth.unknown(CAMERA)
    found = lift(CAMERA, exact(truth), unknown, unknown, truth.motions[0])
    assert found.points.isnan().all()
    assert (found.weight == 0).all()
    assert (found.confidence == 0).all()


def test_depth_may_come_at_another_resolution(scene, lifted):
    before, after, truth = scene
    half = CAMERA.scaled(0.5)

    def shrink(depth):
        rho = (1 / depth).reshape(60, 2, 80, 2).mean((1, 3)).float()
        return InverseDepth(half, rho, torch.full(rho.shape, 1e-6))

    found = lift(CAMERA, exact(truth), shrink(before.depth), shrink(after.depth), truth.motions[0])
    static = seen(found, truth) & seen(lifted, truth) & (before.object_id == 0)
    assert static.double().mean() > 0.3
    assert (found.points - lifted.points)[static].norm(dim=-1).median() < 2e-3


def test_a_stride_gives_every_so_manieth_pixel_on_its_own_grid(scene):
    before, after, truth = scene
    arguments = CAMERA, exact(truth), inverse(before.depth), inverse(after.depth), truth.motions[0]
    full, thin = lift(*arguments), lift(*arguments, stride=3)
    same = {"rtol": 0, "atol": 1e-6, "equal_nan": True}
    assert thin.points.shape[:2] == (thin.camera.height, thin.camera.width)
    torch.testing.assert_close(thin.points, full.points[1::3, 1::3], **same)
    torch.testing.assert_close(thin.residual, full.residual[1::3, 1::3], **same)
    torch.testing.assert_close(thin.weight, full.weight[1::3, 1::3], **same)
    # The coarser camera sees the same points on its own pixels, and the flow is measured in those.
    known = thin.points.isfinite().all(-1)
    pixels = thin.camera.pixels()
    torch.testing.assert_close(thin.camera.project(thin.points)[known], pixels[known], rtol=0, atol=1e-3)
    now = thin.points + thin.scene_flow
    known &= now.isfinite().all(-1)
    torch.testing.assert_close(thin.camera.project(now)[known], (pixels + thin.flow)[known], rtol=0, atol=1e-3)


def test_flow_that_slips_over_an_edge_keeps_to_its_own_surface():
    camera = PinholeCamera(100.0, 100.0, 19.5, 14.5, 40, 30)

    def box_before_a_wall(first):
        rho = torch.full((30, 40), 1 / 3)
        rho[8:22, first : first + 14] = 1.0
        return InverseDepth(camera, rho, torch.full(rho.shape, 1e-6))

    zero, variance = torch.zeros(30, 40, 2), torch.full((30, 40), 1e-4)
    still = DenseFlow(zero, zero, variance, variance)
    # The box has gone two pixels to the right, which the flow has missed.
    found = lift(camera, still, box_before_a_wall(12), box_before_a_wall(14), torch.eye(4, dtype=torch.float64))
    slipped = found.residual[10:20, 12]
    assert slipped.norm(dim=-1).max() < 0.05
    assert found.confidence[10:20, 12].max() < 1e-2 * found.confidence[15, 19]
    # Away from edges a change of depth is believed.
    nearer = box_before_a_wall(12)
    nearer = InverseDepth(camera, nearer.mean * 1.1, nearer.variance)
    found = lift(camera, still, box_before_a_wall(12), nearer, torch.eye(4, dtype=torch.float64))
    assert found.residual[15, 19, 2] == pytest.approx(1 / 1.1 - 1, abs=1e-3)
