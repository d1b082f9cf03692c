import dataclasses
import json
import logging
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowodom import cli
from flowodom import replay as module
from flowodom.bags import BagReader, BagWriter
from flowodom.config import SessionConfig, override
from flowodom.errors import BagError, CalibrationError, FlowodomError
from flowodom.frames import FrameTree, motion_of
from flowodom.geometry import se3
from flowodom.messages import MessageFactory, stamp
from flowodom.odometry import Odometry
from flowodom.replay import replay
from flowodom.trajectory import read_tum
from flowodom.worlds import Sensor, hand_held, pinhole, room, sequence
from flowodom.worlds.recording import write_bag

MakeBag = Callable[..., Path]


def run(bag: Path, out: Path, **options: Any) -> module.Result:
    return replay(bag, out, **{"report": False, "progress": False, **options})


def test_a_bag_gives_odometry_transforms_clouds_trajectory_and_drift(make_bag: MakeBag, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(make_bag(count=8), out)
    assert (result.frames, result.published, result.dropped, result.interrupted) == (8, 8, 0, False)
    assert [path.name for path in result.files] == ["odometry.mcap", "trajectory.tum", "drift.json"]
    with BagReader(out / "odometry.mcap") as reader:
        counts = {topic.name: topic.count for topic in reader.topics.values()}
        odom = [message for _, _, message in reader.messages(["/odom"])]
    assert counts["/odom"] == counts["/tf"] == counts["/ground_truth/odom"] == 8
    assert counts["/tf_static"] == 2
    assert {"/path", "/points", "/dynamic_points", "/diagnostics"} <= set(counts)
    assert (odom[0].header.frame_id, odom[0].child_frame_id) == ("odom", "camera_link")
    # The camera slides 1 cm to its right with every frame, which is -y of its link.
    last = motion_of(odom[-1].pose.pose)
    torch.testing.assert_close(last[:3, 3], torch.tensor([0.0, -0.07, 0.0], dtype=torch.float64), atol=4e-3, rtol=0)
    trajectory = read_tum(out / "trajectory.tum")
    assert len(trajectory) == 8
    assert (trajectory.frame, trajectory.body) == ("odom", "camera_link")
    np.testing.assert_allclose(trajectory.poses[-1], last.numpy(), atol=1e-6)
    assert result.evaluation is not None
    drift = json.loads((out / "drift.json").read_text())
    assert drift["tracked"] == 100
    assert drift["ate_se3_rmse"] == result.evaluation.ate_se3_rmse < 4e-3


def test_truth_and_odometry_share_one_tree_of_frames(make_bag: MakeBag, tmp_path: Path) -> None:
    run(make_bag(count=4), tmp_path / "out")
    tree = FrameTree()
    with BagReader(tmp_path / "out" / "odometry.mcap") as reader:
        for _, _, message in reader.messages(["/tf_static"]):
            tree.insert_message(message, static=True)
        odom = [message for _, _, message in reader.messages(["/odom"])]
        truth = [message for _, _, message in reader.messages(["/ground_truth/odom"])]
    world_from_odom = tree.lookup("world", "odom", 0)
    seen = world_from_odom @ motion_of(odom[0].pose.pose)
    torch.testing.assert_close(seen, motion_of(truth[0].pose.pose), atol=1e-9, rtol=0)


def test_two_runs_give_the_same_bytes(make_bag: MakeBag, tmp_path: Path) -> None:
    bag = make_bag(count=5)
    for name in ("one", "two"):
        run(bag, tmp_path / name)
    assert (tmp_path / "one" / "trajectory.tum").read_bytes() == (tmp_path / "two" / "trajectory.tum").read_bytes()


def test_results_of_an_earlier_run_are_replaced(make_bag: MakeBag, tmp_path: Path) -> None:
    bag = make_bag(count=4)
    for _ in range(2):
        run(bag, tmp_path / "out")
    assert len(read_tum(tmp_path / "out" / "trajectory.tum")) == 4


def test_start_and_duration_choose_a_part(make_bag: MakeBag, tmp_path: Path) -> None:
    result = run(make_bag(count=10), tmp_path / "out", start=0.09, duration=0.15)
    assert result.frames == 5


def test_clouds_can_be_left_out(make_bag: MakeBag, tmp_path: Path) -> None:
    run(make_bag(count=4), tmp_path / "out", points=False)
    with BagReader(tmp_path / "out" / "odometry.mcap") as reader:
        assert not {"/points", "/dynamic_points"} & set(reader.topics)


def test_the_base_is_the_one_configured_where_transforms_connect_it(make_bag: MakeBag, tmp_path: Path) -> None:
    config = override(SessionConfig(), {"base_frame": "camera_optical_frame"})
    run(make_bag(count=3), tmp_path / "out", config=config)
    assert read_tum(tmp_path / "out" / "trajectory.tum").body == "camera_optical_frame"


def test_without_truth_the_base_is_what_the_camera_is_fixed_to(make_bag: MakeBag, tmp_path: Path) -> None:
    bag = make_bag(count=3, edit=lambda topic, *rest: None if topic == "/ground_truth/odom" else (topic, *rest))
    run(bag, tmp_path / "out")
    assert read_tum(tmp_path / "out" / "trajectory.tum").body == "camera_link"


def test_without_transforms_the_camera_is_its_own_base(
    make_bag: MakeBag, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bag = make_bag(count=3, edit=lambda topic, *rest: None if topic == "/tf_static" else (topic, *rest))
    with caplog.at_level(logging.WARNING):
        run(bag, tmp_path / "out")
    assert read_tum(tmp_path / "out" / "trajectory.tum").body == "camera_optical_frame"
    assert caplog.text.count("is the base instead") == 1


def test_a_report_is_written(make_bag: MakeBag, tmp_path: Path) -> None:
    result = run(make_bag(count=4), tmp_path / "out", report=True)
    assert result.files[-1].name == "report.html"
    assert "<html" in result.files[-1].read_text()[:500]
    assert "report.html" in result.summary()


def test_a_paced_replay_keeps_to_the_recorded_time_and_loses_nothing_when_there_is_time(
    make_bag: MakeBag, tmp_path: Path
) -> None:
    result = run(make_bag(count=6), tmp_path / "out", rate=0.1)
    assert result.frames == 6
    assert result.seconds > 5 * 0.0333 / 0.1 * 0.9


def test_a_paced_replay_drops_frames_rather_than_falling_behind(
    make_bag: MakeBag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = threading.Event()
    process = module.Session._process

    def slow(self: module.Session, *arguments: Any) -> Any:
        busy.wait(0.2)
        return process(self, *arguments)

    monkeypatch.setattr(module.Session, "_process", slow)
    config = override(SessionConfig(), {"sync.backlog": 2})
    result = run(make_bag(count=30), tmp_path / "out", config=config, rate=10.0)
    assert result.dropped > 0
    assert 0 < result.frames <= 30 - result.dropped


def test_an_interrupt_leaves_whole_files_of_what_was_done(
    make_bag: MakeBag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    # A shell that runs the tests in the background has them ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    process = module.Session._process

    def interrupted(self: module.Session, *arguments: Any) -> Any:
        if self.counts["frames"] == 4:
            signal.raise_signal(signal.SIGINT)
        return process(self, *arguments)

    monkeypatch.setattr(module.Session, "_process", interrupted)
    result = run(make_bag(count=10), tmp_path / "out", report=True)
    assert result.interrupted
    assert 4 <= result.frames < 10
    assert {path.name for path in result.files} == {"odometry.mcap", "trajectory.tum", "drift.json", "report.html"}
    with BagReader(tmp_path / "out" / "odometry.mcap") as reader:
        assert reader.topics["/odom"].count >= 4
    assert "stopped before the end" in result.summary()


def test_a_fault_leaves_whole_files_and_figures_of_what_was_done(
    make_bag: MakeBag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    step, bag = Odometry.step, make_bag(count=10)

    def faulty(self: Odometry, frame: Any, **options: Any) -> Any:
        if frame.stamp >= fails:
            raise ZeroDivisionError("a bug")
        return step(self, frame, **options)

    monkeypatch.setattr(Odometry, "step", faulty)
    with BagReader(bag) as reader:
        image = next(name for name, topic in reader.topics.items() if name.endswith("image_raw"))
        stamps = sorted(stamp(message) for _, _, message in reader.messages([image]))
    fails = stamps[6]
    assert cli.main(["replay", str(bag), "--out", str(tmp_path / "out")]) == 3
    assert "ZeroDivisionError: a bug" in caplog.text
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "odometry.mcap", "trajectory.tum", "drift.json", "report.html",
    }  # fmt: skip
    assert json.loads((tmp_path / "out" / "drift.json").read_text())["poses"] == 6
    with BagReader(tmp_path / "out" / "odometry.mcap") as reader:
        assert reader.topics["/odom"].count == 6
    fails = 0
    with pytest.raises(ZeroDivisionError):
        run(bag, tmp_path / "nothing")


def without(*names: str) -> Callable[..., Any]:
    return lambda topic, *rest: None if topic in names else (topic, *rest)


def changed(name: str, **fields: Any) -> Callable[..., Any]:
    def edit(topic: str, message: Any, time: int) -> Any:
        return (topic, dataclasses.replace(message, **fields) if topic == name else message, time)

    return edit


def test_no_camera_info_says_what_to_do(make_bag: MakeBag, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="camera_info"):
        run(make_bag(count=4, edit=without("/camera/camera_info")), tmp_path / "out")
    with BagReader(tmp_path / "out" / "odometry.mcap") as reader:
        assert reader.topics["/ground_truth/odom"].count == 4


def test_an_unknown_encoding_is_named(make_bag: MakeBag, tmp_path: Path) -> None:
    with pytest.raises(FlowodomError, match="hologram"):
        run(make_bag(count=4, edit=changed("/camera/image_raw", encoding="hologram")), tmp_path / "out")


def test_no_images_is_an_error_that_lists_the_topics(make_bag: MakeBag, tmp_path: Path) -> None:
    bag = make_bag(count=2, depth=False, edit=without("/camera/image_raw"))
    with pytest.raises(BagError, match="/camera/camera_info"):
        run(bag, tmp_path / "out")


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_depth_without_any_valid_pixel_gives_no_pose_but_no_crash(
    make_bag: MakeBag, tmp_path: Path, value: float
) -> None:
    def edit(topic: str, message: Any, time: int) -> Any:
        if "depth" in topic:
            message = MessageFactory().image(time, "camera_optical_frame", np.full((120, 160), value, dtype=np.float32))
        return topic, message, time

    result = run(make_bag(count=4, edit=edit), tmp_path / "out")
    assert result.frames == 4
    assert result.evaluation is None or result.evaluation.poses <= 4


def test_constant_images_give_no_pose(make_bag: MakeBag, tmp_path: Path) -> None:
    grey = np.full((120, 160, 3), 127, dtype=np.uint8)

    def edit(topic: str, message: Any, time: int) -> Any:
        if topic == "/camera/image_raw":
            message = MessageFactory().image(time, "camera_optical_frame", grey)
        return topic, message, time

    result = run(make_bag(count=4, edit=edit), tmp_path / "out")
    assert result.frames == 4
    assert result.published == 0
    assert not [line for line in (tmp_path / "out" / "trajectory.tum").read_text().splitlines() if line[0] != "#"]


def test_depth_that_never_comes_is_replaced_by_the_filter(make_bag: MakeBag, tmp_path: Path) -> None:
    result = run(make_bag(count=6), tmp_path / "out", topics={"depth": "none"})
    assert result.frames == 6


def test_a_folder_that_cannot_be_made_is_named(make_bag: MakeBag, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BagError, match="cannot make the folder"):
        run(make_bag(count=2), tmp_path / "file" / "out")


def test_something_that_is_no_bag_is_named(tmp_path: Path) -> None:
    with pytest.raises(BagError, match="directory but no recording"):
        run(tmp_path, tmp_path / "out")


def test_a_bag_without_messages_is_named(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "empty"):
        pass
    with pytest.raises(BagError, match="no messages"):
        run(tmp_path / "empty", tmp_path / "out")


def test_a_real_recording_is_tracked_throughout(recordings: Path, tmp_path: Path) -> None:
    result = run(recordings / "desk_rgbd_10", tmp_path / "out")
    assert result.evaluation is not None
    assert result.evaluation.tracked == 100
    assert result.evaluation.ate_se3_rmse is not None
    assert result.evaluation.ate_se3_rmse < 0.01


def test_a_map_that_cannot_be_written_costs_nothing_else(
    make_bag: MakeBag, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = override(SessionConfig(), {"map.file": str(tmp_path / "map.ply"), "map.voxel": 0.05})
    result = run(make_bag(count=2), tmp_path / "out", config=config)
    assert result.published == 2
    assert [path.name for path in result.files][:2] == ["odometry.mcap", "trajectory.tum"]
    assert not (tmp_path / "map.ply").exists()
    # Two frames make no map, and where open3d cannot be imported nothing can be written either.
    assert "the map is empty" in caplog.text or "open3d" in caplog.text


def test_the_map_of_a_room_with_movers_has_few_ghosts_and_each_mover_has_its_own_cloud(tmp_path: Path) -> None:
    open3d = pytest.importorskip("open3d", exc_type=(ImportError, OSError))
    path = hand_held(301, position=(-0.8, 0.0, 1.35), speed=0.3, turn=10.0)
    world = room(301, movers=2, texels=128)
    sensor = Sensor(image_noise=1.5, depth_noise=0.0015, depth_range=(0.3, 8.0), seed=301)
    steps = list(sequence(world, path, pinhole(240, 180), frames=60, sensor=sensor))
    write_bag(tmp_path / "room.mcap", steps)
    placed: list[tuple[int, torch.Tensor]] = []

    def observe(frame: Any, estimate: Any, placement: Any) -> None:
        placed.append((frame.stamp, placement.pose @ placement.extrinsic))

    config = override(SessionConfig(), {"map.file": str(tmp_path / "room.ply"), "map.voxel": 0.05})
    result = run(tmp_path / "room.mcap", tmp_path / "out", config=config, observe=observe)
    assert steps[0].frame.stamp == placed[0][0]
    to_world = steps[0].pose @ se3.inverse(placed[0][1])

    def ghosts(points: np.ndarray) -> float:
        """Share of the points that are farther than 10 cm from all that stands still."""
        return float((world.distance(se3.act(to_world, torch.from_numpy(points))) > 0.1).double().mean())

    plain = np.concatenate(
        [
            se3.act(pose, step.rendering.points.view(-1, 3)[::16]).numpy()
            for step, (_, pose) in list(zip(steps, placed, strict=True))[::3]
        ]
    )
    assert ghosts(plain) > 0.05
    assert ghosts(np.asarray(open3d.io.read_point_cloud(str(tmp_path / "room.ply")).points)) < 0.02
    names = [file.name for file in result.files]
    assert "room.ply" in names
    assert any(re.fullmatch(r"room\.object_\d+\.ply", name) for name in names)
    assert all(file.exists() for file in result.files)
