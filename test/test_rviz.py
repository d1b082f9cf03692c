"""The RViz file shows what the nodes publish; RViz itself is not needed to know that."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from flowodom.session import INPUTS, OUTPUTS

ROOT = Path(__file__).parents[1]
TYPES = {
    "rviz_default_plugins/Image": "sensor_msgs/msg/Image",
    "rviz_default_plugins/MarkerArray": "visualization_msgs/msg/MarkerArray",
    "rviz_default_plugins/Odometry": "nav_msgs/msg/Odometry",
    "rviz_default_plugins/Path": "nav_msgs/msg/Path",
    "rviz_default_plugins/PointCloud2": "sensor_msgs/msg/PointCloud2",
}
"""What each display of RViz subscribes to."""

DRIFT = {"/flowodom_drift/true_path"}


VIEW = ROOT / "config" / "flowodom.rviz"
DISPLAYS: list[dict[str, Any]] = [
    display
    for display in yaml.safe_load(VIEW.read_text(encoding="utf-8"))["Visualization Manager"]["Displays"]
    if "Topic" in display
]


@pytest.mark.parametrize("display", DISPLAYS, ids=lambda display: display["Name"])
def test_every_display_shows_a_topic_of_its_type_as_it_is_offered(display: dict[str, Any]) -> None:
    name = display["Topic"]["Value"]
    if name in DRIFT:
        assert name.removeprefix("/flowodom_drift") in (ROOT / "flowodom" / "node.py").read_text(encoding="utf-8")
        return
    (port,) = (port for port in (*INPUTS, *OUTPUTS) if f"/{port.name}" == name)
    assert port.types[0] == TYPES[display["Class"]]
    if port in OUTPUTS:
        assert (display["Topic"].get("Durability Policy") == "Transient Local") == port.latched
        assert display["Topic"]["Reliability Policy"] == "Best Effort" or port.reliable
    else:
        assert display["Topic"]["Reliability Policy"] == "Best Effort"


@pytest.mark.parametrize("display", DISPLAYS, ids=lambda display: display["Name"])
def test_clouds_are_coloured_by_a_field_that_they_have(display: dict[str, Any]) -> None:
    (row,) = re.findall(r"PointCloud2: ([\w ]+),", (ROOT / "docs" / "ros2.md").read_text(encoding="utf-8"))
    assert display.get("Channel Name", "x") in row.split()
    assert ("Channel Name" in display) == (display.get("Color Transformer") == "Intensity")


def test_the_view_is_of_the_default_frames() -> None:
    text = VIEW.read_text(encoding="utf-8")
    assert re.search(r"Fixed Frame: odom\n", text)
    assert re.search(r"Target Frame: base_link\n", text)


@pytest.fixture
def launch() -> Any:
    pytest.importorskip("launch_ros", reason="ROS 2 is not sourced, so its launch files cannot be read")
    spec = importlib.util.spec_from_file_location("odometry_launch", ROOT / "launch" / "odometry.launch.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_where_rviz_is_missing_nothing_is_left_running(launch: Any) -> None:
    context = importlib.import_module("launch").LaunchContext()
    context.launch_configurations.update({name: value for name, (value, _) in launch.ARGUMENTS.items()})
    assert len(launch.start(context)) == 1
    context.launch_configurations["rviz"] = "true"
    rviz, _ = launch.start(context)  # in this order: launch fails at RViz before it starts the odometry
    assert rviz.node_package == "rviz2"


def test_it_is_launched_on_the_topics_of_the_node_beside_it(launch: Any) -> None:
    plain = dict(launch.shown_as(VIEW, {"image": "/camera/image", "namespace": "", "name": "flowodom"}))
    assert plain.pop("/image") == "/camera/image"
    assert all(shown == name for shown, name in plain.items())
    assert set(plain) >= {"/odom", "/points", "/flowodom/set_pose"}
    spaced = dict(launch.shown_as(VIEW, {"image": "", "namespace": "front", "name": "vo"}))
    assert spaced["/odom"] == "/front/odom"
    assert spaced["/image"] == "/front/image"
    assert spaced["/flowodom/set_pose"] == "/front/vo/set_pose"
