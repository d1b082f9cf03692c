"""The 4D clouds of moving objects, on a world whose box is exact and seen turning."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flowodom import object_maps
from flowodom.clouds import make_cloud
from flowodom.config import CloudConfig
from flowodom.geometry import se3
from flowodom.object_maps import ObjectMap, ObjectMaps
from flowodom.odometry import Odometry
from flowodom.scene_flow.object_tracker import ObjectTracker
from flowodom.scene_flow.objects import MovingObject
from flowodom.trajectory import read_tum
from flowodom.worlds import Primitive, Sensor, Shape, hand_held, pinhole, room, sequence
from flowodom.worlds.motion import level_pose

VOXEL = 0.025
HALF = (0.22, 0.3, 0.25)


def turning(time):
    """A box that goes to and fro 1.7 m ahead while it turns by 60 degrees a second."""
    time = torch.as_tensor(time, dtype=torch.float64)
    zero = torch.zeros_like(time)
    place = torch.stack((zero + 0.9, 0.35 * torch.sin(2 * time), zero + 1.2), dim=-1)
    return level_pose(place, torch.stack((1.05 * time, zero, zero), dim=-1))


@pytest.fixture(scope="module")
def clip():
    """Every third of 70 frames: ((points, colours), numbers, objects, pose, true ``T_body_camera``); and the world."""
    plain = room(5, movers=0, texels=128)
    box = Primitive(Shape.BOX, HALF, se3.identity(), (plain.primitives[-1].materials[0],), body=1)
    world = replace(plain, primitives=(*plain.primitives, box), motions=(turning,))
    path = hand_held(5, position=(-0.8, 0.0, 1.3), speed=0.2, turn=5.0)
    sensor = Sensor(image_noise=1.5, depth_noise=0.003, depth_range=(0.3, 8.0))
    odometry, tracker, seen = Odometry(), ObjectTracker(), []
    for k, step in enumerate(sequence(world, path, pinhole(240, 180), frames=70, sensor=sensor)):
        estimate = odometry.step(step.frame)
        if estimate.motion is None:
            continue
        tracker.update(estimate.moving, estimate.pose, estimate.motion, estimate.stamp, estimate.interval)
        if k % 3:
            continue
        cloud = make_cloud(
            step.frame, estimate.properties, estimate.interval, CloudConfig(), estimate.moving, tracker.objects,
            estimate.pose,
        )  # fmt: skip
        points = np.column_stack([cloud.fields[axis] for axis in "xyz"]).astype(np.float64)
        numbers = np.where(cloud.moving, cloud.fields["object_id"], 0)
        true = se3.inverse(step.rendering.bodies[1]) @ step.pose
        seen.append(((points, cloud.fields["rgb"]), numbers, tracker.objects, estimate.pose, true))
    return seen, world


@pytest.fixture(scope="module")
def fused(clip):
    maps = ObjectMaps(VOXEL)
    for (points, colours), numbers, objects, pose, _ in clip[0]:
        maps.add(points, colours, numbers, objects, pose)
    return maps


def covered(points):
    """Returns the share of the sides of the box, 3 cm squares, that have a point within 3 cm."""
    steps = [np.arange(-h + 0.015, h, 0.03) for h in HALF]
    squares = []
    for axis in (0, 1):
        for side in (-1, 1):
            grids = [*steps]
            grids[axis] = np.array([side * HALF[axis]])
            squares.append(np.stack(np.meshgrid(*grids, indexing="ij"), -1).reshape(-1, 3))
    distance = torch.cdist(torch.from_numpy(np.concatenate(squares)), points).amin(1)
    return float((distance < 0.03).double().mean())


def only(maps):
    """The one object that was seen well."""
    (number,) = [number for number, known in maps.maps.items() if len(known.cloud()[0]) > 100]
    return number, maps.maps[number]


def test_the_fused_cloud_is_nearer_to_the_surface_and_covers_more_of_it_than_any_frame(clip, fused):
    seen, world = clip
    number, known = only(fused)
    frames = [se3.act(true, torch.from_numpy(cloud[0][ids == number])) for cloud, ids, _, _, true in seen]
    frames = [points for points in frames if len(points)]
    # Where the fused cloud's frame lies in the box is taken from the middle of the clip.
    way = known.trajectory("odom", "object")
    k = len(way) // 2
    pose, true = next((p, t) for _, _, objects, p, t in seen if objects and objects[0].stamp == way.stamps[k])
    points = se3.act(true @ se3.inverse(pose) @ torch.from_numpy(way.poses[k]), torch.from_numpy(known.cloud()[0]))
    assert world.distance(points, 1).mean() < world.distance(torch.cat(frames), 1).mean()
    assert covered(points) > max(map(covered, frames)) + 0.15


def test_the_frame_of_a_fused_cloud_stays_with_its_body(clip, fused):
    seen, _ = clip
    _, known = only(fused)
    way = known.trajectory("odom", "object")
    ends = [(p, t) for _, _, objects, p, t in seen if objects and objects[0].stamp in (way.stamps[0], way.stamps[-1])]
    poses = [torch.from_numpy(pose) for pose in (way.poses[0], way.poses[-1])]
    first, last = (t @ se3.inverse(p) @ pose for (p, t), pose in zip(ends, poses, strict=True))
    moved = se3.log(se3.inverse(first) @ last)
    # In between the box has turned by 100 degrees and gone to and fro.
    assert moved[:3].norm() < 0.03
    assert moved[3:].norm().rad2deg() < 3


COUNT = 2400
GREY = np.full((COUNT, 3), 90, dtype=np.uint8)
AHEAD = np.array([0.0, 0.0, 2.0])
ON = np.ones(COUNT, dtype=bool)


def crate(seed):
    """Points on three sides of a cube, 2 m ahead of the camera, 3 mm of noise."""
    generator = np.random.default_rng(seed)
    points = generator.uniform(-0.2, 0.2, (COUNT, 3))
    points[np.arange(COUNT), np.arange(COUNT) % 3] = -0.2
    return points + AHEAD + generator.normal(0, 0.003, (COUNT, 3))


def standing(stamp, shift=0.0, number=1):
    """A tracked object whose frame is 2 m ahead of the camera, and a little aside of where it should be."""
    pose = se3.identity()
    pose[:3, 3] = torch.tensor([shift, 0.0, 2.0])
    doubt = torch.eye(6, dtype=torch.float64) * 1e-6 * stamp
    zero, box = torch.zeros(6, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)
    return MovingObject(
        number, pose, doubt, zero, doubt, box, 5, True, stamp, stamp, pose[None, :3, 3],
        torch.ones(4, 4, dtype=torch.bool),
    )  # fmt: skip


def test_what_does_not_repeat_is_dropped():
    known, generator = ObjectMap(VOXEL), np.random.default_rng(0)
    for k in range(12):
        points = crate(k)
        # Each time a tenth of them are somewhere else.
        points[::10] = generator.uniform(-0.4, 0.4, (COUNT // 10, 3)) + AHEAD
        known.add(points, GREY, ON, standing(k), se3.identity())
    found = known.cloud()[0]
    distance = np.sort(np.abs(found + 0.2), axis=1)[:, 0]
    assert len(found) > 200
    assert (distance < 0.02).mean() > 0.97


def test_a_tracked_pose_that_drifts_is_mended():
    known = ObjectMap(VOXEL)
    for k in range(20):
        known.add(crate(k), GREY, ON, standing(k, 0.005 * k), se3.identity())
    way = known.trajectory("odom", "object_1")
    assert np.abs(way.positions - AHEAD).max() < 0.01
    assert np.abs(np.sort(np.abs(known.cloud()[0] + 0.2), axis=1)[:, 0]).mean() < 0.006


def test_clouds_that_do_not_fit_are_left_out_until_they_are_the_more():
    known = ObjectMap(VOXEL)
    for k in range(6):
        known.add(crate(k), GREY, ON, standing(k), se3.identity())
    before = len(known)
    ball = np.random.default_rng(1).normal(size=(COUNT, 3))
    ball = AHEAD + 0.25 * ball / np.linalg.norm(ball, axis=1, keepdims=True)
    for k in range(6, 12):
        known.add(ball, GREY, ON, standing(k), se3.identity())
        assert len(known) == before
    for k in range(12, 20):
        known.add(ball, GREY, ON, standing(k), se3.identity())
    assert np.abs(np.linalg.norm(known.cloud()[0], axis=1) - 0.25).max() < 0.03


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(object_maps, "MOST_OBJECTS", 3)
    monkeypatch.setattr(object_maps, "MOST_POSES", 8)
    monkeypatch.setattr(object_maps, "MOST_VOXELS", 100)
    maps = ObjectMaps(VOXEL)
    for k in range(20):
        number = 1 + k // 4
        maps.add(crate(k), GREY, np.full(COUNT, number, dtype=np.int32), [standing(k, number=number)], se3.identity())
    assert len(maps.maps) == 3
    for k in range(20, 40):
        maps.add(crate(k), GREY, np.full(COUNT, 5, dtype=np.int32), [standing(k, number=5)], se3.identity())
    assert len(maps.maps[5]) <= 100
    assert len(maps.maps[5].trajectory("odom", "object_5")) <= 8


def test_objects_are_written_beside_the_map(tmp_path: Path):
    open3d = pytest.importorskip("open3d", exc_type=(ImportError, OSError))
    maps = ObjectMaps(VOXEL)
    for k in range(8):
        maps.add(crate(k), GREY, np.full(COUNT, 7, dtype=np.int32), [standing(k, number=7)], se3.identity())
    for name in ("room.object_3.ply", "room.object_3.tum", "other.object_3.ply", "room.object_x.ply"):
        (tmp_path / name).touch()
    files = object_maps.write(tmp_path / "room.ply", maps.clouds("odom"), VOXEL)
    assert [path.name for path in files] == ["room.object_7.ply", "room.object_7.tum"]
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["other.object_3.ply", "room.object_7.ply", "room.object_7.tum", "room.object_x.ply"]
    assert len(open3d.io.read_point_cloud(str(files[0])).points) > 100
    way = read_tum(files[1])
    assert (way.frame, way.body, len(way)) == ("odom", "object_7", 8)
