import numpy as np
import pytest
import torch

from flowodom import mapping
from flowodom.errors import FlowodomError
from flowodom.geometry import se3
from flowodom.mapping import RigidMap
from flowodom.worlds import hand_held, pinhole, room, sequence

WALL = np.column_stack(
    (*[a.ravel() for a in np.meshgrid(np.linspace(-1, 1, 60), np.linspace(-1, 1, 60))], np.full(3600, 3.0))
)
GREY = np.full((3600, 3), 90, dtype=np.uint8)
STILL = np.zeros(3600, dtype=bool)


def test_clouds_of_one_wall_fuse_to_one_wall():
    generator = np.random.default_rng(0)
    static = RigidMap(0.05)
    for k in range(16):
        pose = np.eye(4)
        pose[0, 3] = 0.01 * k
        noisy = WALL - pose[:3, 3] + generator.normal(0, 0.004, WALL.shape)
        static.add(noisy, GREY, STILL, pose)
    points, colours = static.cloud()
    assert len(points) < 2 * 43 * 43
    assert np.abs(points[:, 2] - 3).max() < 0.03
    assert (colours == 90).all()


def test_what_moves_is_left_out():
    static = RigidMap(0.05)
    moving = WALL[:, 0] > 0
    for _ in range(8):
        static.add(WALL, GREY, moving, np.eye(4))
    assert static.cloud()[0][:, 0].max() < 0.05


def test_what_has_left_is_seen_through():
    static = RigidMap(0.05)
    near = WALL * 0.5
    for _ in range(8):
        static.add(near, GREY, STILL, np.eye(4))
    assert len(static.cloud()[0]) > 100
    for _ in range(16):
        static.add(WALL, GREY, STILL, np.eye(4))
    assert static.cloud()[0][:, 2].min() > 2.9


def test_memory_is_bounded():
    static = RigidMap(0.02, most=1000)
    for k in range(64):
        shift = np.eye(4)
        shift[1, 3] = 2 * k
        static.add(WALL, GREY, STILL, shift)
        assert len(static) <= 1000


def test_map_is_written_as_ply(tmp_path):
    open3d = pytest.importorskip("open3d", exc_type=(ImportError, OSError))
    alone = np.array([[9.0, 9.0, 9.0]])
    path = mapping.write(tmp_path / "map.ply", np.vstack((WALL, alone)), np.vstack((GREY, GREY[:1])), 0.05)
    assert path == (tmp_path / "map.ply").resolve()
    read = open3d.io.read_point_cloud(str(path))
    np.testing.assert_allclose(np.asarray(read.points), WALL)
    np.testing.assert_allclose(255 * np.asarray(read.colors), 90)
    with pytest.raises(FlowodomError, match="empty"):
        mapping.write(tmp_path / "map.ply", WALL[:0], GREY[:0], 0.05)
    with pytest.raises(FlowodomError, match=r"too far apart for voxels of 0\.001 m"):
        mapping.write(tmp_path / "map.ply", WALL, GREY, 0.001)
    with pytest.raises(FlowodomError, match=r"\.ply"):
        mapping.write(tmp_path / "map.txt", WALL, GREY, 0.05)
    with pytest.raises(FlowodomError, match="does its folder exist"):
        mapping.write(tmp_path / "none" / "map.ply", WALL, GREY, 0.05)


def test_a_room_with_movers_leaves_no_ghosts():
    """Of the movers' pixels a third are not marked as moving: what those leave is seen through."""
    generator = torch.Generator().manual_seed(0)
    path = hand_held(2, position=(-1.0, 0.0, 1.35), speed=0.3, turn=6.0)
    steps = sequence(room(2, movers=2, texels=16), path, pinhole(64, 48, field_of_view=75.0), frames=64, rate=10.0)
    static, still, every = RigidMap(0.05), [], []
    for step in steps:
        view = step.rendering
        points = view.points.reshape(-1, 3)
        colours = step.frame.image.reshape(-1, 3)
        world = se3.act(view.pose, points)
        mover = view.object_id.flatten() > 0
        marked = mover & (torch.rand(len(mover), generator=generator) > 0.33)
        static.add(points.numpy(), colours, marked.numpy(), view.pose.numpy())
        still.append(world[~mover])
        every.append(world)

    def ghosts(cloud):
        """Share of a cloud that lies on no static surface, by voxels and their neighbours."""
        offsets = torch.cartesian_prod(*[torch.tensor([-1, 0, 1])] * 3)
        code = torch.tensor([1 << 40, 1 << 20, 1])
        solid = ((torch.cat(still) / 0.05).floor().long()[:, None] + offsets + 4096) @ code
        return 1 - torch.isin(((cloud / 0.05).floor().long() + 4096) @ code, solid.unique()).float().mean().item()

    assert ghosts(torch.cat(every)) > 0.02
    assert ghosts(torch.from_numpy(static.cloud()[0])) < 0.02
