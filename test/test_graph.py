import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("cyclonedds", reason="Cyclone DDS for Python is not installed (pip install cyclonedds)")

from flowodom import cli, graph
from flowodom.bags import BagReader
from flowodom.config import SessionConfig, override
from flowodom.dds import Participant
from flowodom.endpoints import Quality
from flowodom.errors import ConfigError
from flowodom.frames import motion_of, stamp_of
from flowodom.messages import MessageFactory
from flowodom.names import Names
from flowodom.replay import replay

MakeBag = Callable[..., Path]
make = MessageFactory()
_domains = itertools.count(os.getpid() % 40)
REMAPPINGS = (
    "image:=/camera/image_raw",
    "camera_info:=/camera/camera_info",
    "depth:=/camera/depth_registered/image_raw",
)
LOSSLESS = {"base_frame": "camera_link", "qos.reliable": True, "qos.depth": 100, "sync.backlog": 1000}


@pytest.fixture
def domain() -> int:
    return 50 + next(_domains) % 40


@pytest.fixture
def join(domain: int) -> Iterator[Callable[..., Participant]]:
    with contextlib.ExitStack() as stack:
        yield lambda name, *remappings: stack.enter_context(
            Participant(Names(name, remappings=remappings), domain=domain, loopback=True)
        )


@contextlib.contextmanager
def running(participant: Participant, **values: Any) -> Iterator[None]:
    """Runs the odometry on a thread."""
    stop = threading.Event()
    odometry = graph.Odometry(participant, override(SessionConfig(), {**LOSSLESS, **values}))
    thread = threading.Thread(target=odometry.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def until(condition: Callable[[], object], seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


class Listener:
    """Keeps what comes on some topics."""

    def __init__(self, participant: Participant, **topics: str) -> None:
        self.heard: dict[str, list[Any]] = {name: [] for name in topics}
        for name, msgtype in topics.items():
            topic = f"/{name}"
            participant.subscribe(topic, msgtype, self._hear(participant, name, msgtype), Quality(depth=1000))

    def _hear(self, participant: Participant, name: str, msgtype: str) -> Callable[[bytes], None]:
        return lambda data: self.heard[name].append(participant.deserialize(data, msgtype))

    def __getattr__(self, name: str) -> list[Any]:
        return self.heard[name]


def listener(participant: Participant) -> Listener:
    return Listener(participant, odom="nav_msgs/msg/Odometry", diagnostics="diagnostic_msgs/msg/DiagnosticArray")


def poses(messages: list[Any]) -> dict[int, np.ndarray]:
    return {stamp_of(message.header): motion_of(message.pose.pose).numpy() for message in messages}


def recorded(path: Path, topic: str = "/odom") -> list[Any]:
    with BagReader(path) as reader:
        return [message for _, _, message in reader.messages([topic])]


def test_processes_on_the_wire_give_what_replay_gives(make_bag: MakeBag, tmp_path: Path, domain: int) -> None:
    bag = make_bag(count=12)
    replay(bag, tmp_path / "replayed", report=False, progress=False)
    flags = ["--ros-domain-id", str(domain), "--loopback"]
    processes: list[subprocess.Popen[str]] = []

    def start(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "flowodom.cli", "dds", *words, *flags]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        return processes[-1]

    def finish(process: subprocess.Popen[str]) -> str:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
        return output

    try:
        parameters = itertools.chain(*(("-p", f"{name}:={str(value).lower()}") for name, value in LOSSLESS.items()))
        recorder = start("record", "--out", str(tmp_path / "live"), "/odom", "/tf", "/points")
        odometry = start(*parameters, *itertools.chain(*(("-r", rule) for rule in REMAPPINGS)))
        with Participant(Names("watch"), domain=domain, loopback=True) as watch:
            wanted = {"/odom", "/tf", "/points", "/camera/camera_info"}
            assert until(lambda: wanted <= {endpoint.topic for endpoint in watch.subscriptions()})
            with Participant(Names("player"), domain=domain, loopback=True) as player:
                assert graph.play(player, bag, rate=0.5, wait=60) > 36
                time.sleep(0.2)
        finish(odometry)
        assert "recorded" in finish(recorder)
    finally:
        for process in processes:
            process.kill()
    expected = poses(recorded(tmp_path / "replayed" / "odometry.mcap"))
    got = poses(recorded(tmp_path / "live"))
    assert list(got) == list(expected)
    for stamp, pose in expected.items():
        np.testing.assert_allclose(got[stamp], pose, atol=1e-6)
    assert len(recorded(tmp_path / "live", "/tf")) == 12
    assert recorded(tmp_path / "live", "/points")


def test_a_player_that_is_killed_and_comes_again_costs_a_segment_only(
    make_bag: MakeBag, domain: int, join: Callable[..., Participant]
) -> None:
    heard = listener(join("listener"))
    bag = make_bag(count=20)
    with running(join("flowodom", *REMAPPINGS)):
        command = [sys.executable, "-m", "flowodom.cli", "dds", "play", str(bag), "--wait", "60", "--rate", "0.2"]
        player = subprocess.Popen([*command, "--ros-domain-id", str(domain), "--loopback"])
        try:
            assert until(lambda: len(heard.odom) >= 6)
        finally:
            player.kill()
            player.wait()
        count = len(heard.odom)
        assert graph.play(join("player"), bag, wait=60)
        assert until(lambda: len(heard.odom) >= count + 20)
    stamps = [stamp_of(message.header) for message in heard.odom]
    again = stamps.index(stamps[0], 1)
    before, after = (motion_of(heard.odom[i].pose.pose) for i in (again - 1, again))
    torch.testing.assert_close(before, after)


def test_a_second_loop_goes_on_at_the_last_pose(make_bag: MakeBag, join: Callable[..., Participant]) -> None:
    heard, stop = listener(join("listener")), threading.Event()
    with running(join("flowodom", *REMAPPINGS)):
        player = threading.Thread(
            target=graph.play, args=(join("player"), make_bag(count=6)), kwargs={"loop": True, "wait": 60, "stop": stop}
        )
        player.start()
        assert until(lambda: len(heard.odom) >= 12)
        stop.set()
        player.join()
    stamps = [stamp_of(message.header) for message in heard.odom]
    assert stamps[:6] == stamps[6:12]
    torch.testing.assert_close(motion_of(heard.odom[5].pose.pose), motion_of(heard.odom[6].pose.pose))


def test_a_late_joiner_finds_the_extrinsic_and_gets_odometry(
    make_bag: MakeBag, join: Callable[..., Participant]
) -> None:
    stop = threading.Event()
    kwargs = {"loop": True, "stop": stop}
    player = threading.Thread(target=graph.play, args=(join("player"), make_bag(count=6)), kwargs=kwargs)
    player.start()
    time.sleep(0.3)
    heard = listener(join("listener"))
    with running(join("flowodom", *REMAPPINGS)):
        assert until(lambda: len(heard.odom) >= 3)
        stop.set()
        player.join()


def test_a_foreign_type_is_named_in_the_diagnostics_until_it_goes(join: Callable[..., Participant]) -> None:
    heard = listener(join("listener"))
    stranger = join("stranger")
    stranger.publisher("/camera/image_raw", "std_msgs/msg/String")

    def said(text: str) -> bool:
        return bool(heard.diagnostics) and text in heard.diagnostics[-1].status[0].message

    with running(join("flowodom", *REMAPPINGS)):
        assert until(lambda: said("carries std_msgs/msg/String"))
        stranger._writers.clear()
        assert until(lambda: not said("carries std_msgs/msg/String"))


def test_an_offer_that_does_not_meet_what_was_asked_for_is_named(join: Callable[..., Participant]) -> None:
    heard = listener(join("listener"))
    join("camera").publisher("/camera/camera_info", "sensor_msgs/msg/CameraInfo", Quality(reliable=False))
    with running(join("flowodom", *REMAPPINGS)):
        assert until(lambda: heard.diagnostics and "offered best effort" in heard.diagnostics[-1].status[0].message)


def test_reset_pause_and_resume_come_as_topics(make_bag: MakeBag, join: Callable[..., Participant]) -> None:
    heard, remote = listener(join("listener")), join("remote")
    empty = make.store.types["std_msgs/msg/Empty"](structure_needs_at_least_one_member=0)
    publishers = {
        name: remote.publisher(f"/flowodom/{name}", "std_msgs/msg/Empty") for name in ("reset", "pause", "resume")
    }
    bag = make_bag(count=6)
    with running(join("flowodom", *REMAPPINGS)):
        assert until(lambda: all(publisher.subscribers for publisher in publishers.values()))
        player = join("player")
        graph.play(player, bag, wait=60)
        assert until(lambda: len(heard.odom) == 6)
        publishers["pause"].publish(empty)
        assert until(lambda: "PAUSED" in heard.diagnostics[-1].status[0].message)
        publishers["resume"].publish(empty)
        publishers["reset"].publish(empty)
        assert until(lambda: "PAUSED" not in heard.diagnostics[-1].status[0].message)
        graph.play(join("again"), bag, wait=60)
        assert until(lambda: len(heard.odom) == 12)
    torch.testing.assert_close(motion_of(heard.odom[6].pose.pose), torch.eye(4, dtype=torch.float64))


def test_sim_time_comes_from_the_clock(make_bag: MakeBag, join: Callable[..., Participant]) -> None:
    heard = listener(join("listener"))
    with running(join("flowodom", *REMAPPINGS), use_sim_time=True):
        graph.play(join("player"), make_bag(count=6), wait=60, clock=True)
        assert until(lambda: heard.diagnostics and stamp_of(heard.diagnostics[-1].header) > 10**18)
    assert stamp_of(heard.diagnostics[-1].header) < 1_700_000_001_000_000_000


def test_the_player_refuses_topics_that_the_bag_does_not_have(
    make_bag: MakeBag, join: Callable[..., Participant]
) -> None:
    with pytest.raises(ConfigError, match="/camera/camera_info"):
        graph.play(join("player"), make_bag(count=2), topics=["/nothing"])


def test_echo_shows_messages_as_ros_does(join: Callable[..., Participant]) -> None:
    shown: list[str] = []
    publisher = join("sender").publisher("/cloud", "sensor_msgs/msg/PointCloud2", Quality(latched=True))
    publisher.publish(make.point_cloud(3_000_000_007, "camera", {"x": np.zeros(50, dtype=np.float32)}))
    assert graph.echo(join("listener"), "cloud", count=1, show=shown.append) == 1
    assert "header:\n  stamp:\n    sec: 3\n    nanosec: 7\n  frame_id: 'camera'" in shown[0]
    assert "fields:\n- name: 'x'\n  offset: 0" in shown[0]
    assert "data: <200 uint8>" in shown[0]
    assert shown[0].endswith("---")


def test_everything_is_recorded_when_no_topic_is_named(tmp_path: Path, join: Callable[..., Participant]) -> None:
    sender, stop = join("sender"), threading.Event()
    for name in ("a", "b"):
        string = make.store.types["std_msgs/msg/String"](data=name)
        sender.publisher(f"/{name}", "std_msgs/msg/String", Quality(latched=True)).publish(string)
    recorder = join("recorder")
    thread = threading.Thread(target=graph.record, args=(recorder, tmp_path / "bag"), kwargs={"stop": stop})
    thread.start()
    assert until(lambda: len(sender.subscriptions()) == 2)
    time.sleep(0.3)
    stop.set()
    thread.join()
    assert [message.data for message in recorded(tmp_path / "bag", "/a")] == ["a"]
    assert [message.data for message in recorded(tmp_path / "bag", "/b")] == ["b"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--distro", "nowhere"], "unknown ROS 2 distribution 'nowhere'"),
        (["-r", "image"], "from:=to"),
        (["-p", "no.such:=1"], "unknown parameter 'no.such'"),
        (["--ros-domain-id", "233"], "0 to 232"),
        (["play", "nowhere"], "there is no recording nowhere"),
        (["record", "--out", "/dev/null/x"], "cannot write"),
    ],
)
def test_errors_of_the_command_line_are_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROS_DOMAIN_ID", "49")
    before = signal.getsignal(signal.SIGINT)
    assert cli.main(["dds", "--loopback", *words]) == 2
    assert message in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


def test_flags_of_the_graph_may_stand_before_and_after_the_tool() -> None:
    for words in (["--distro", "humble", "play", "bag"], ["play", "--distro", "humble", "bag"]):
        options = cli._parser().parse_args(["dds", *words])
        assert (options.distro, options.loopback, options.node) == ("humble", False, "flowodom_play")
