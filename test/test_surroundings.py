"""Objects, pictures and forecasts as messages."""

import numpy as np
import pytest
import torch

from flowodom.depth import InverseDepth
from flowodom.flow import DenseFlow
from flowodom.flow.consistency import FLOW_NOISE
from flowodom.frame import Frame
from flowodom.geometry import se3
from flowodom.messages import MessageFactory, typestore
from flowodom.scene_flow import PropertySet
from flowodom.scene_flow.decompose import find_moving
from flowodom.scene_flow.forecast import HORIZONS
from flowodom.surroundings import OF_OBJECTS, Surroundings, colour
from flowodom.worlds import pinhole, room, straight

CAMERA = pinhole(240, 180)
RATE = 30


@pytest.fixture(scope="module")
def clip():
    """(frame, what moves, pose, motion) of each frame of a room with two movers, by exact flow."""
    path = straight(position=(-0.8, 0.0, 1.2), speed=0.3)
    world = room(7, movers=2, texels=64)
    steps, past, moving = [], None, None
    for k in range(6):
        now = world.render(path(k / RATE), k / RATE, CAMERA)
        grey = now.image.float().mean(-1).to(torch.uint8)
        rho = (1 / now.depth).float()
        look = (grey, InverseDepth(CAMERA, rho, torch.full(rho.shape, 1e-6)))
        motion = se3.identity()
        if past is not None:
            truth = world.flow_between(past[0], now)
            variance = torch.full(rho.shape, FLOW_NOISE**2)
            flow = DenseFlow(
                truth.forward.nan_to_num().float(), truth.backward.nan_to_num().float(), variance, variance
            )
            moving = find_moving(CAMERA, past[1], look, flow, truth.motions[0], moving)
            motion = se3.inverse(truth.motions[0])
        steps.append((Frame(round(k / RATE * 1e9), grey.numpy(), CAMERA), moving, now.pose, motion))
        past = (now, look)
    return steps


def follow(clip, wanted=lambda _: True, store=None):
    around = Surroundings(MessageFactory(store), wanted)
    for frame, moving, pose, motion in clip[1:]:
        around.follow(frame, moving, pose, motion, 1 / RATE)
    return around


@pytest.mark.parametrize("distribution", ["foxy", "humble", "jazzy"])
def test_objects_go_out_as_markers(clip, distribution):
    around = follow(clip, store=typestore(distribution))
    (topic, message), *_ = around.publish_objects(clip[-1][0].stamp, "odom")
    assert topic == "objects"
    assert len(around.objects) >= 1
    assert len(message.markers) == 4 * len(around.objects)
    make = MessageFactory(typestore(distribution))
    back = make.deserialize(bytes(make.serialize(message)), "visualization_msgs/msg/MarkerArray")
    assert [m.ns for m in back.markers[:4]] == ["box", "velocity", "number", "trail"]
    arrow = back.markers[1]
    way = np.array([[p.x, p.y, p.z] for p in arrow.points])
    known = around.objects[0]
    np.testing.assert_allclose(way[1] - way[0], known.velocity.numpy())
    assert arrow.header.frame_id == "odom"
    assert f"{known.id}:" in back.markers[2].text
    assert 0 < arrow.lifetime.nanosec + arrow.lifetime.sec * 1e9 < 2e9


def test_every_object_has_an_odometry_of_its_own(clip):
    around = follow(clip, wanted=lambda topic: topic == "object_odometry")
    out = around.publish_objects(clip[-1][0].stamp, "odom")
    assert [topic for topic, _ in out] == ["object_odometry"] * len(around.objects)
    message, known = out[0][1], around.objects[0]
    assert message.child_frame_id == f"object_{known.id}"
    twist = message.twist.twist
    np.testing.assert_allclose([twist.linear.x, twist.linear.y, twist.linear.z], known.twist[:3].numpy())
    assert np.asarray(message.pose.covariance).reshape(6, 6).trace() > 0


def test_forecasts_show_the_way_of_base_and_objects(clip):
    around = follow(clip)
    twist = torch.tensor([0.3, 0, 0, 0, 0, 0], dtype=torch.float64)
    ((topic, message),) = around.publish_forecast(0, "odom", se3.identity(), twist, None)
    assert topic == "forecast"
    assert len(message.markers) == 1 + len(around.objects)
    assert len(message.markers[0].points) == 1 + len(HORIZONS)
    assert message.markers[0].points[-1].x == pytest.approx(0.3 * HORIZONS[-1])


def test_pictures_show_mask_and_flow(clip):
    frame, moving, _, _ = clip[-1]
    around = follow(clip)
    out = dict(around.publish_pictures(frame, "camera", moving, None))
    assert list(out) == ["moving_mask"]
    assert out["moving_mask"].encoding == "mono8"
    mask = np.asarray(out["moving_mask"].data).reshape(180, 240)
    assert set(np.unique(mask)) == {0, 255}
    assert (mask > 0).mean() == pytest.approx(moving.mask((180, 240)).mean())
    still = dict(around.publish_pictures(frame, "camera", None, None))
    assert not np.asarray(still["moving_mask"].data).any()


def test_flow_and_weights_are_drawn_on_the_image(clip):
    frame, moving, _, _ = clip[-1]
    grid = CAMERA.thinned(2)
    flow = torch.zeros(90, 120, 2)
    flow[:, 60:] = 8.0
    weight = torch.ones(90, 120)
    weight[:, 60:] = 0.0
    blank = torch.zeros(90, 120, 3)
    fields = PropertySet(grid, blank, blank, weight, torch.ones(90, 120), flow, blank)
    out = dict(follow(clip).publish_pictures(frame, "camera", moving, lambda stride: fields))
    assert list(out) == ["moving_mask", "flow", "weights"]
    pictures = {name: np.asarray(out[name].data).reshape(180, 240, 3) for name in ("flow", "weights")}
    tinted = {name: np.ptp(picture.astype(int), axis=-1).mean(0) for name, picture in pictures.items()}
    assert tinted["flow"][:110].max() < tinted["flow"][130:].min()
    assert tinted["weights"][:110].min() > tinted["weights"][130:].max()


def test_objects_are_followed_only_for_those_who_listen(clip):
    assert follow(clip, wanted=lambda topic: topic not in OF_OBJECTS).objects == []


def test_reset_forgets(clip):
    around = follow(clip)
    around.reset()
    assert around.objects == []


def test_neighbouring_numbers_have_unlike_colours():
    colours = np.array([colour(k)[:3] for k in range(1, 8)])
    assert ((colours >= 0) & (colours <= 1)).all()
    assert np.linalg.norm(np.diff(colours, axis=0), axis=1).min() > 0.3
