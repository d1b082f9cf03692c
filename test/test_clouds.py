"""Clouds made of fields that are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from flowodom.clouds import make_cloud
from flowodom.config import CloudConfig
from flowodom.depth import InverseDepth
from flowodom.frame import Frame
from flowodom.geometry import PinholeCamera, se3
from flowodom.scene_flow import PropertySet
from flowodom.scene_flow.moving import Moving
from flowodom.scene_flow.objects import MovingObject
from flowodom.scene_flow.surfaces import Surface

CAMERA = PinholeCamera(fx=40.0, fy=40.0, cx=15.5, cy=11.5, width=32, height=24)
FRAME = Frame(0, np.full((24, 32), 100, dtype=np.uint8), CAMERA)
INTERVAL = 0.1
BLOCK = (slice(8, 16), slice(8, 16))


@pytest.fixture
def properties():
    points = CAMERA.unproject(CAMERA.pixels(), torch.full((24, 32), 2.0))
    points[0, 0] = torch.nan
    residual = torch.full((24, 32, 3), 0.01)
    return PropertySet(
        camera=CAMERA,
        points=points,
        scene_flow=torch.zeros(24, 32, 3),
        weight=torch.full((24, 32), 0.5),
        confidence=torch.full((24, 32), 1e4),
        flow=torch.zeros(24, 32, 2),
        residual=residual,
    )


@pytest.fixture
def moving():
    logit = np.full((24, 32), -5.0, dtype=np.float32)
    logit[BLOCK] = 5.0
    blank = torch.full((24, 32), 0.5)
    depth = InverseDepth(CAMERA, blank, 1e-6 * blank)
    rho, variance = depth.mean.numpy(), depth.variance.numpy()
    return Moving(CAMERA, logit, logit, Surface(CAMERA, rho, rho, variance, blank.byte(), depth))


@pytest.fixture
def thing(moving):
    """An object two metres ahead that turns about the axis that it is seen along."""
    pose = se3.identity()
    pose[2, 3] = 2.0
    six = torch.eye(6, dtype=torch.float64)
    box = torch.tensor([[-0.2, -0.2, -0.1], [0.2, 0.2, 0.1]], dtype=torch.float64)
    twist = torch.tensor([0.3, 0, 0, 0, 0, 0.5], dtype=torch.float64)
    return MovingObject(7, pose, 0.01 * six, twist, 0.01 * six, box, 5, True, 0, 0, box.mean(0)[None], moving.logit > 0)


def test_what_stands_still_has_no_velocity_and_its_weight(properties):
    cloud = make_cloud(FRAME, properties, INTERVAL, CloudConfig())
    assert len(cloud.moving) == 24 * 32 - 1
    assert not cloud.moving.any()
    assert (cloud.fields["vx"] == 0).all()
    assert (cloud.fields["weight"] == 0.5).all()
    assert (cloud.fields["object_id"] == 0).all()


def test_what_moves_has_the_velocity_that_the_camera_leaves(properties, moving):
    cloud = make_cloud(FRAME, properties, INTERVAL, CloudConfig(), moving)
    assert cloud.moving.sum() == 64
    np.testing.assert_allclose(cloud.fields["vy"][cloud.moving], 0.1, rtol=0.01)
    assert np.abs(cloud.fields["vy"][~cloud.moving]).max() < 0.001
    assert cloud.fields["weight"][cloud.moving].max() < 0.01
    dynamic = cloud.select(cloud.moving)
    assert all(len(values) == 64 for values in dynamic.fields.values())


def test_points_of_an_object_move_as_it_does(properties, moving, thing):
    cloud = make_cloud(FRAME, properties, INTERVAL, CloudConfig(), moving, [thing], se3.identity())
    assert set(cloud.fields["object_id"][cloud.moving]) == {7}
    x, y = cloud.fields["x"][cloud.moving], cloud.fields["y"][cloud.moving]
    np.testing.assert_allclose(cloud.fields["vx"][cloud.moving], 0.3 - 0.5 * y, atol=0.01)
    np.testing.assert_allclose(cloud.fields["vy"][cloud.moving], 0.5 * x, atol=0.01)
    hidden = make_cloud(FRAME, properties, INTERVAL, CloudConfig(), moving, [replace(thing, mask=None)], se3.identity())
    assert (hidden.fields["object_id"] == 0).all()


def test_voxels_keep_one_point_each(properties):
    cloud = make_cloud(FRAME, properties, INTERVAL, CloudConfig(voxel=0.25))
    cells = np.floor(np.stack([cloud.fields[a] for a in "xyz"], 1) / 0.25)
    assert len(np.unique(cells, axis=0)) == len(cells)
    every = make_cloud(FRAME, properties, INTERVAL, CloudConfig())
    assert len(cells) == len(np.unique(np.floor(np.stack([every.fields[a] for a in "xyz"], 1) / 0.25), axis=0))


def test_what_is_out_of_range_is_left_out(properties):
    cloud = make_cloud(FRAME, properties, INTERVAL, CloudConfig(range=2.05))
    distance = np.linalg.norm(np.stack([cloud.fields[a] for a in "xyz"]), axis=0)
    assert 0 < len(distance) < 24 * 32 - 1
    assert distance.max() <= 2.05
    assert len(make_cloud(FRAME, properties, INTERVAL, CloudConfig(range=0.5, voxel=0.1)).moving) == 0
