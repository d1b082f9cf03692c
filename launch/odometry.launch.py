"""Starts the odometry node, and RViz with it where asked for.

Arguments win over the parameter file; what is left empty is left to the file, or to the defaults.
"""

import re
import sys
from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_prefix, get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

ARGUMENTS = {
    "namespace": ("", "namespace of the node; several cameras run side by side in several namespaces"),
    "name": ("flowodom", "name of the node"),
    "image": ("", "image topic, raw or compressed"),
    "camera_info": ("", "camera_info topic"),
    "depth": ("", "depth topic; 'off' for a single camera or a stereo pair"),
    "depth_info": ("", "camera_info topic of the depth camera, where depth is not registered to the image"),
    "right": ("", "image topic of the right camera of a stereo pair"),
    "right_info": ("", "camera_info topic of the right camera"),
    "mask": ("", "topic of masks: pixels of 255 are ignored"),
    "odom_frame": ("", "frame in which the pose is given"),
    "base_frame": ("", "frame whose pose is given"),
    "camera_height": ("", "height of a single camera above the ground, metres; makes it metric"),
    "device": ("", "auto, cpu, cuda, cuda:1 ..."),
    "config_file": ("", "parameter file, as config/odometry.yaml"),
    "use_sim_time": ("", "whether the time is that of /clock"),
    "autostart": ("", "whether the node configures and activates itself"),
    "rviz": ("false", "whether to start RViz"),
}
TOPICS = ("image", "camera_info", "depth", "depth_info", "right", "right_info", "mask")
PARAMETERS = ("odom_frame", "base_frame", "camera_height", "device", "use_sim_time", "autostart")


def generate_launch_description() -> LaunchDescription:
    """Returns the arguments and what is started with them."""
    declared = [
        DeclareLaunchArgument(name, default_value=value, description=text) for name, (value, text) in ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])


def start(context: LaunchContext) -> list[Node]:
    """Returns what is started with the arguments given."""
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    parameters: list[object] = [given["config_file"]] if given["config_file"] else []
    values = {name: convert(name, given[name]) for name in PARAMETERS if given[name]}
    if given["depth"] == "off":
        if not given["right"]:
            values["depth.source"] = "filter"
        given["depth"] = ""
    odometry = Node(
        **executable("odometry_node", "odometry"),
        name=given["name"],
        namespace=given["namespace"],
        parameters=[*parameters, values],
        remappings=[(topic, given[topic]) for topic in TOPICS if given[topic]],
        output="screen",
    )
    if given["rviz"] != "true":
        return [odometry]
    view = share() / "config" / "flowodom.rviz"
    rviz = Node(
        package="rviz2",
        executable="rviz2",
        arguments=["-d", str(view)],
        parameters=[{"use_sim_time": values.get("use_sim_time", False)}],
        remappings=shown_as(view, given),
    )
    return [rviz, odometry]  # where RViz is not installed launch fails, and would leave behind what runs already


def convert(name: str, text: str) -> object:
    """Returns an argument's text as its parameter's type."""
    if name in ("use_sim_time", "autostart"):
        return text.lower() in ("true", "1")
    return float(text) if name == "camera_height" else text


def shown_as(view: Path, given: dict[str, str]) -> list[tuple[str, str]]:
    """Returns what each topic of an RViz file, which is that of a node without namespace, is called here."""
    topics = {topic: topic for topic in re.findall(r"Value: /(\S+)", view.read_text())}
    topics["image"] = given["image"] or "image"
    topics["flowodom/set_pose"] = f"{given['name']}/set_pose"
    root = "/" + given["namespace"].strip("/") + "/" if given["namespace"].strip("/") else "/"
    return [(f"/{shown}", name if name.startswith("/") else root + name) for shown, name in topics.items()]


def executable(name: str, module_argument: str) -> dict[str, object]:
    """Returns how to run a node: from the installed package, or from here where it is not installed."""
    try:
        get_package_prefix("flowodom")
    except PackageNotFoundError:
        return {"executable": sys.executable, "arguments": ["-m", "flowodom.node", module_argument]}
    return {"package": "flowodom", "executable": name}


def share() -> Path:
    """Returns where the package's files are, installed or not."""
    try:
        return Path(get_package_share_directory("flowodom"))
    except PackageNotFoundError:
        return Path(__file__).resolve().parents[1]
