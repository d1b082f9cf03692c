"""Launches the odometry and drift nodes for real and tests them from outside; run by test_node.py, or launch_test.

Not collected by pytest itself, so that it needs no plugin and holds under every pytest.
"""

# ruff: noqa: E402

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock, patch

import launch_testing
import launch_testing.actions
import launch_testing.asserts
import numpy as np
import rclpy
from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.msg import ParameterType
from rcl_interfaces.srv import DescribeParameters, GetParameters, SetParameters
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_srvs.srv import Trigger

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "test"))

from conftest import plane_messages

from flowodom.bags import BagReader, BagWriter
from flowodom.config import SessionConfig, override
from flowodom.frames import motion_of, parse_pose, stamp_of
from flowodom.messages import MessageFactory, decode_image, deserialize
from flowodom.node import OdometryNode, _cv_bridge, _message_class, _tf_transformations
from flowodom.replay import replay

COUNT = 12
FOLDER = Path(tempfile.mkdtemp(prefix="flowodom-node-"))
MAP = {"map.voxel": 0.2, "map.file": str(FOLDER / "map.ply")}
PARAMETERS = f"""
/**:
  ros__parameters:
    qos: {{reliable: true, depth: 100}}
    sync: {{backlog: 1000}}
    map: {{voxel: {MAP["map.voxel"]}, file: {MAP["map.file"]}}}
    no_such_thing: 1
"""
TOPICS = {
    "image": "/camera/image_raw",
    "camera_info": "/camera/camera_info",
    "depth": "/camera/depth_registered/image_raw",
}


def generate_test_description() -> LaunchDescription:
    (FOLDER / "parameters.yaml").write_text(PARAMETERS)
    odometry = {**TOPICS, "base_frame": "camera_link", "config_file": str(FOLDER / "parameters.yaml")}
    drift = {"ground_truth": "/ground_truth/odom", "out": str(FOLDER / "drift")}
    return LaunchDescription(
        [include("odometry", odometry), include("drift", drift), launch_testing.actions.ReadyToTest()]
    )


def include(name: str, arguments: dict[str, str]) -> IncludeLaunchDescription:
    source = PythonLaunchDescriptionSource(str(ROOT / "launch" / f"{name}.launch.py"))
    return IncludeLaunchDescription(source, launch_arguments=arguments.items())


class TestNodes(unittest.TestCase):
    """In order of their names: they share the running nodes."""

    @classmethod
    def setUpClass(cls) -> None:
        rclpy.init()
        cls.node = rclpy.create_node("tester")
        cls.heard: list[Any] = []
        cls.node.create_subscription(
            _message_class("nav_msgs/msg/Odometry"),
            "/odom",
            lambda data: cls.heard.append(deserialize(data, "nav_msgs/msg/Odometry")),
            QoSProfile(depth=1000),
            raw=True,
        )
        cls.publishers: dict[str, Any] = {}

    @classmethod
    def tearDownClass(cls) -> None:
        cls.node.destroy_node()
        rclpy.shutdown()

    def until(self, condition: Callable[[], object], seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            rclpy.spin_once(self.node, timeout_sec=0.05)

    def call(self, kind: Any, name: str, **fields: Any) -> Any:
        client = self.node.create_client(kind, name)
        self.until(client.service_is_ready)
        future = client.call_async(kind.Request(**fields))
        self.until(future.done)
        self.node.destroy_client(client)
        return future.result()

    def state(self) -> int:
        return int(self.call(GetState, "/flowodom/get_state").current_state.id)

    def change(self, transition: int) -> bool:
        return bool(self.call(ChangeState, "/flowodom/change_state", transition=Transition(id=transition)).success)

    def play(self) -> None:
        """Publishes the recording and waits for the odometry of every frame."""
        make = MessageFactory()
        for topic, message, _ in plane_messages(count=COUNT):
            if topic not in self.publishers:
                latched = topic == "/tf_static"
                durability = DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE
                kind, qos = _message_class(message.__msgtype__), QoSProfile(depth=100, durability=durability)
                self.publishers[topic] = self.node.create_publisher(kind, topic, qos)
        for topic in (*TOPICS.values(), "/ground_truth/odom"):
            self.until(lambda topic=topic: self.publishers[topic].get_subscription_count() > 0)
        self.until(lambda: self.node.count_subscribers("/odom") == 2)
        self.heard.clear()
        for topic, message, _ in plane_messages(count=COUNT):
            self.publishers[topic].publish(bytes(make.serialize(message)))
        self.until(lambda: len(self.heard) == COUNT)

    def test_1_it_configures_and_activates_itself(self) -> None:
        self.until(lambda: self.state() == State.PRIMARY_STATE_ACTIVE)

    def test_2_its_poses_are_those_of_a_replay(self) -> None:
        with BagWriter(FOLDER / "bag") as writer:
            for item in plane_messages(count=COUNT):
                writer.write(*item)
        config = override(SessionConfig(), MAP)
        replay(FOLDER / "bag", FOLDER / "replayed", config, report=False, points=False, progress=False)
        with BagReader(FOLDER / "replayed" / "odometry.mcap") as reader:
            expected = [message for _, _, message in reader.messages(["/odom"])]
        self.play()
        assert [stamp_of(m.header) for m in self.heard] == [stamp_of(m.header) for m in expected]
        for got, wanted in zip(self.heard, expected, strict=True):
            np.testing.assert_allclose(motion_of(got.pose.pose), motion_of(wanted.pose.pose), atol=1e-6)
            assert (got.header.frame_id, got.child_frame_id) == ("odom", "camera_link")

    def test_3_a_second_play_goes_on_at_the_last_pose_and_a_reset_at_the_origin(self) -> None:
        last = motion_of(self.heard[-1].pose.pose)
        self.play()
        np.testing.assert_allclose(motion_of(self.heard[0].pose.pose), last, atol=1e-9)
        assert self.call(Trigger, "/flowodom/reset").success
        self.play()
        np.testing.assert_allclose(motion_of(self.heard[0].pose.pose), np.eye(4), atol=1e-9)

    def test_4_parameters_are_described_and_the_live_ones_can_be_set(self) -> None:
        names = ["cloud.stride", "registration.points", "base_frame"]
        described = self.call(DescribeParameters, "/flowodom/describe_parameters", names=names).descriptors
        assert all(descriptor.description for descriptor in described)
        assert [descriptor.read_only for descriptor in described] == [False, True, True]
        assert described[0].integer_range[0].to_value == 16
        values = self.call(GetParameters, "/flowodom/get_parameters", names=["qos.reliable", "base_frame"]).values
        assert values[0].type == ParameterType.PARAMETER_BOOL
        assert values[0].bool_value
        assert values[1].string_value == "camera_link"

        def set_parameter(name: str, value: Any) -> bool:
            change = Parameter(name, value=value).to_parameter_msg()
            answer = self.call(SetParameters, "/flowodom/set_parameters", parameters=[change])
            return bool(answer.results[0].successful)

        assert set_parameter("cloud.stride", 4)
        assert not set_parameter("cloud.stride", 99)
        assert not set_parameter("registration.points", 300)
        assert not set_parameter("no.such.parameter", 1)

    def test_5_the_lifecycle_goes_down_and_up_again(self) -> None:
        assert self.change(Transition.TRANSITION_DEACTIVATE)
        refused = self.call(Trigger, "/flowodom/reset")
        assert (refused.success, refused.message) == (False, "the node is not active")
        assert self.change(Transition.TRANSITION_CLEANUP)
        assert self.state() == State.PRIMARY_STATE_UNCONFIGURED
        assert self.change(Transition.TRANSITION_CONFIGURE)
        assert self.change(Transition.TRANSITION_ACTIVATE)
        self.play()
        np.testing.assert_allclose(motion_of(self.heard[0].pose.pose), np.eye(4), atol=1e-9)

    def test_6_pause_and_resume(self) -> None:
        assert self.call(Trigger, "/flowodom/pause").success
        assert self.call(Trigger, "/flowodom/resume").success
        self.play()

    def test_7_a_map_is_there_when_its_service_answers(self) -> None:
        path = Path(MAP["map.file"])
        answer = self.call(Trigger, "/flowodom/save_map")
        if not answer.success and "open3d" in answer.message:
            self.skipTest(answer.message)
        assert (answer.success, answer.message) == (True, str(path))
        assert path.read_bytes().startswith(b"ply")

    def test_8_a_map_that_cannot_be_written_is_answered_with_the_reason(self) -> None:
        assert self.change(Transition.TRANSITION_DEACTIVATE)
        assert self.change(Transition.TRANSITION_CLEANUP)
        assert self.change(Transition.TRANSITION_CONFIGURE)
        assert self.change(Transition.TRANSITION_ACTIVATE)
        answer = self.call(Trigger, "/flowodom/save_map")
        assert not answer.success
        assert "map is empty" in answer.message or "open3d" in answer.message

    def test_9_what_still_works_when_ros_is_shut_down_does_so_in_silence(self) -> None:
        context = rclpy.Context()
        rclpy.init(context=context)
        node = OdometryNode(context=context, namespace="elsewhere")
        assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        assert not node._wanted("odom")
        odometry = MessageFactory().odometry(0, "odom", "base_link", np.eye(4))
        node._publish("odom", odometry)
        rclpy.shutdown(context=context)
        assert not node._wanted("odom")
        node._publish("odom", odometry)
        node.destroy_node()

    def test_a_parameter_that_is_set_while_it_is_inactive_holds_from_its_activation_on(self) -> None:
        context = rclpy.Context()
        rclpy.init(context=context)
        node = OdometryNode(context=context, namespace="elsewhere")
        assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        assert node.set_parameters([Parameter("publish_tf", value=False)])[0].successful
        assert node._session is not None
        assert not node._session.config.publish_tf
        node.destroy_node()
        rclpy.shutdown(context=context)


class TestProcess(unittest.TestCase):
    """How the process of a node ends."""

    def begin(self, *arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "flowodom.node", "odometry", "--ros-args", "-r", "__ns:=/apart", *arguments]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)

    def test_it_ends_well_when_interrupted_twice(self) -> None:
        process = self.begin()
        assert process.stdout is not None
        for line in process.stdout:
            if "tf_transformations" in line or "cv_bridge" in line:
                break
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.05)
        rest, _ = process.communicate(timeout=60)
        assert (process.returncode, "Traceback" in rest) == (0, False), rest

    def test_a_parameter_that_it_cannot_start_with_ends_it_with_one_line(self) -> None:
        for parameter, reason in (
            ("camera_height:=2", "expecting type 'DOUBLE'"),
            ("flow.method:=magic", "flow.method must be one of"),
        ):
            printed, _ = (process := self.begin("-p", parameter)).communicate(timeout=60)
            assert (process.returncode, "Traceback" in printed) == (1, False), printed
            assert reason in printed


class TestHelpers(unittest.TestCase):
    """Libraries of ROS that may be missing, or built against another NumPy."""

    def test_a_broken_or_missing_cv_bridge_is_told_in_one_line_and_done_without(self) -> None:
        broken, odd = ModuleType("cv_bridge"), ModuleType("cv_bridge")
        broken.CvBridge = Mock(side_effect=AttributeError("_ARRAY_API not found"))  # type: ignore[attr-defined]
        odd.CvBridge = Mock()  # type: ignore[attr-defined]
        odd.CvBridge.return_value.imgmsg_to_cv2.return_value = np.zeros((2, 2))  # type: ignore[attr-defined]
        for module in (broken, odd, None):
            with patch.dict(sys.modules, {"cv_bridge": module}), self.assertLogs("flowodom.node") as logs:
                assert _cv_bridge() is None
            assert len(logs.records) == 1
            assert "the built-in decoder takes over" in logs.output[0]

    def test_a_cv_bridge_that_works_decodes_as_the_built_in_decoder_does(self) -> None:
        convert = _cv_bridge()
        if convert is None:
            self.skipTest("cv_bridge is not installed")
        pixels = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
        for encoding in ("rgb8", "bgr8", "yuv422", "bayer_rggb8", "mono8"):
            raw = {"yuv422": pixels[..., :2], "bayer_rggb8": pixels[..., 0], "mono8": pixels[..., 0]}
            message = MessageFactory().image(0, "camera", raw.get(encoding, pixels).copy(), encoding)
            np.testing.assert_allclose(decode_image(message, convert=convert), decode_image(message), atol=1)

    def test_angles_become_the_same_pose_with_and_without_tf_transformations(self) -> None:
        convert = _tf_transformations()
        if convert is None:
            self.skipTest("tf_transformations is not installed")
        text = "1 2 3 0.1 -0.2 0.3"
        with_it, without = parse_pose("extrinsic", text, convert), parse_pose("extrinsic", text)
        assert with_it is not None
        assert without is not None
        np.testing.assert_allclose(with_it, without, atol=1e-12)


@launch_testing.post_shutdown_test()
class TestAfterwards(unittest.TestCase):
    def test_processes_end_well(self, proc_info: Any) -> None:
        launch_testing.asserts.assertExitCodes(proc_info)

    def test_nothing_was_thrown(self, proc_output: Any) -> None:
        printed = "".join(entry.text.decode() for entry in proc_output)
        assert "Traceback" not in printed

    def test_an_unknown_parameter_is_named(self, proc_output: Any) -> None:
        printed = "".join(entry.text.decode() for entry in proc_output)
        assert "unknown parameter no_such_thing" in printed

    def test_the_drift_was_written(self) -> None:
        figures = json.loads((FOLDER / "drift" / "drift.json").read_text())
        assert figures["poses"] >= COUNT
        assert (FOLDER / "drift" / "drift.csv").exists()
