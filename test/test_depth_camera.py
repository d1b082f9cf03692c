"""A depth camera of its own beside the camera, slower and coarser, from its messages to metric poses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flowodom.bags import BagWriter
from flowodom.config import SessionConfig
from flowodom.geometry import se3
from flowodom.info import describe
from flowodom.messages import MessageFactory
from flowodom.replay import Result, replay
from flowodom.unit import Scale
from flowodom.worlds import Sensor, hand_held, pinhole, room

CAMERA = pinhole(320, 240)
DEPTH_CAMERA = pinhole(200, 160, field_of_view=72.0)
CAMERA_FROM_DEPTH = se3.exp(torch.tensor((0.06, -0.01, 0.005, 0.02, -0.03, 0.015), dtype=torch.float64))
FRAMES, RATE, EVERY = 20, 20, 4


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of a room: 20 images a second, 5 depth images a second."""
    path, world, motion = tmp_path_factory.mktemp("depth_camera") / "bag", room(7, movers=0), hand_held(7)
    sensor = Sensor(image_noise=1.5, depth=False, seed=7)
    with BagWriter(path) as out:
        make = MessageFactory(out.store)
        mounted = make.transform(0, "camera", "depth_camera", CAMERA_FROM_DEPTH)
        for k in range(FRAMES):
            stamp, time = 1_000_000_000 * (RATE + k) // RATE, k / RATE
            pose = motion(time)
            if k == 0:
                out.write("/tf_static", make.tf_message([mounted]), stamp)
            out.write("/rgb/camera_info", make.camera_info(stamp, "camera", CAMERA), stamp)
            image = sensor.frame(world.render(pose, time, CAMERA), stamp).image
            out.write("/rgb/image_raw", make.image(stamp, "camera", image), stamp)
            if k % EVERY == 0:
                depth = world.render(pose @ CAMERA_FROM_DEPTH, time, DEPTH_CAMERA, colour=False).depth.float().numpy()
                out.write("/depth/camera_info", make.camera_info(stamp, "depth_camera", DEPTH_CAMERA), stamp)
                out.write("/depth/image_raw", make.image(stamp, "depth_camera", depth), stamp)
            out.write("/truth", make.odometry(stamp, "world", "camera", pose), stamp)
    return path


def run(bag: Path, out: Path, **topics: str) -> tuple[Result, set[Scale]]:
    scales: set[Scale] = set()

    def note(_frame: object, estimate: object, _placement: object) -> None:
        scales.add(estimate.scale)  # type: ignore[attr-defined]

    config = SessionConfig()
    result = replay(bag, out, config, topics=topics, report=False, points=False, progress=False, observe=note)
    return result, scales


def test_every_image_gets_a_metric_pose_though_depth_is_slower_and_seen_from_elsewhere(
    bag: Path, tmp_path: Path
) -> None:
    result, scales = run(bag, tmp_path / "out")
    assert (result.frames, result.published) == (FRAMES, FRAMES)
    assert scales == {Scale.SENSOR}
    assert result.evaluation is not None
    assert result.evaluation.segment_count == 1
    assert result.evaluation.scale == pytest.approx(1.0, abs=0.02)
    assert result.evaluation.ate_se3_rmse < 0.004 * result.evaluation.path_length


def test_info_says_where_the_depth_camera_is(bag: Path) -> None:
    text = describe(bag)
    assert "/depth/camera_info" in text
    assert "200x160, seen from 61." in text


def test_info_warns_of_depth_whose_place_is_unknown(bag: Path) -> None:
    text = describe(bag, {"depth_info": "none"})
    assert "no CameraInfo of the depth camera" in text
