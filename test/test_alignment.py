import numpy as np
import pytest
import torch

from flowodom.alignment import DepthAlignment
from flowodom.errors import ShapeError
from flowodom.geometry import PinholeCamera, se3
from flowodom.worlds import hand_held, pinhole, room

BESIDE = se3.exp(torch.tensor((0.05, -0.01, 0.005, 0.01, -0.02, 0.015), dtype=torch.float64))
"""``T_image_depth`` of a depth camera five centimetres beside the camera and turned by a degree and a half."""


def plane(camera: PinholeCamera, depth: float) -> np.ndarray:
    return np.full((camera.height, camera.width), depth, dtype=np.float32)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (pinhole(320, 240), pinhole(320, 240)),
        (pinhole(160, 120, field_of_view=75.0), pinhole(320, 180, field_of_view=65.0)),
        (pinhole(320, 240, field_of_view=50.0), pinhole(160, 120, field_of_view=70.0)),
    ],
    ids=["alike", "coarser", "finer"],
)
def test_depth_of_a_room_is_moved_to_where_the_other_camera_sees_it(
    source: PinholeCamera, target: PinholeCamera
) -> None:
    world, pose = room(3, movers=0), hand_held(3)(0.0)
    taken = world.render(pose @ BESIDE, 0.0, source, colour=False).depth.float().numpy()
    alignment = DepthAlignment(source, target, BESIDE)
    moved = alignment(taken)
    exact = world.render(pose, 0.0, alignment.camera, colour=False).depth.numpy()
    known = np.isfinite(moved)
    covered = known[10:-10, 10:-10].mean()
    assert covered > (0.95 if target.width / target.fx < source.width / source.fx else 0.4)
    relative = np.abs(moved[known] / exact[known] - 1)
    assert np.median(relative) < 4e-3
    assert np.mean(relative > 0.03) < 0.02
    assert alignment.camera.fx <= 1.01 * source.fx


def test_a_camera_in_the_same_place_sees_the_same() -> None:
    camera = pinhole(64, 48)
    depth = np.random.default_rng(0).uniform(1, 4, (48, 64)).astype(np.float32)
    depth[10:20, 10:20] = np.nan
    depth[0, 0] = 0.0
    moved = DepthAlignment(camera, camera, se3.identity())(depth)
    np.testing.assert_allclose(moved[depth > 0], depth[depth > 0], rtol=1e-5)
    assert np.isnan(moved[12:18, 12:18]).all()
    assert np.isnan(moved[0, 0])


def test_what_is_near_hides_what_is_far() -> None:
    camera = PinholeCamera(fx=50.0, fy=50.0, cx=31.5, cy=23.5, width=64, height=48)
    depth = plane(camera, 4.0)
    depth[20:30, 20:30] = 1.0
    aside = se3.matrix(torch.eye(3, dtype=torch.float64), torch.tensor((0.2, 0.0, 0.0), dtype=torch.float64))
    moved = DepthAlignment(camera, camera, aside)(depth)
    np.testing.assert_allclose(moved[20:30, 30:40], 1.0)  # ten pixels to the right of where it was
    np.testing.assert_allclose(moved[20:30, 42:60], 4.0)
    assert np.isnan(moved[22:28, 24:29]).all()  # what it hid before, nobody has seen


def test_single_gaps_in_a_surface_are_closed_and_edges_are_not() -> None:
    camera = pinhole(64, 48)
    depth = plane(camera, 2.0)
    depth[24, 10] = np.nan
    depth[:, 32:] = 4.0
    depth[24, 31] = np.nan
    moved = DepthAlignment(camera, camera, se3.identity())(depth)
    assert moved[24, 10] == pytest.approx(2.0)
    assert np.isnan(moved[24, 31])


def test_what_lies_behind_the_other_camera_is_not_seen() -> None:
    camera = pinhole(64, 48)
    forward = se3.matrix(torch.eye(3, dtype=torch.float64), torch.tensor((0.0, 0.0, -3.0), dtype=torch.float64))
    assert np.isnan(DepthAlignment(camera, camera, forward)(plane(camera, 2.0))).all()


def test_an_image_of_another_size_is_refused() -> None:
    alignment = DepthAlignment(pinhole(64, 48), pinhole(64, 48), se3.identity())
    with pytest.raises(ShapeError, match=r"\(48, 64\).*\(24, 32\)"):
        alignment(np.ones((24, 32), dtype=np.float32))
