"""Starts the drift node, which holds an odometry against the truth while both run."""

import sys

from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

ARGUMENTS = {
    "namespace": ("", "namespace of the node"),
    "odom": ("odom", "odometry to judge"),
    "ground_truth": ("ground_truth", "true poses: Odometry, PoseStamped or TransformStamped"),
    "truth_parent": ("", "world frame of the truth on tf, in place of the topic"),
    "truth_child": ("", "body frame of the truth on tf"),
    "out": ("out/drift", "folder for drift.csv, drift.json and report.html"),
    "use_sim_time": ("false", "whether the time is that of /clock"),
}


def generate_launch_description() -> LaunchDescription:
    """Returns the arguments and what is started with them."""
    declared = [
        DeclareLaunchArgument(name, default_value=value, description=text) for name, (value, text) in ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])


def start(context: LaunchContext) -> list[Node]:
    """Returns what is started with the arguments given."""
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    parameters = {name: given[name] for name in ("truth_parent", "truth_child", "out")}
    return [
        Node(
            **executable(),
            name="flowodom_drift",
            namespace=given["namespace"],
            parameters=[parameters, {"use_sim_time": given["use_sim_time"] == "true"}],
            remappings=[(topic, given[topic]) for topic in ("odom", "ground_truth") if given[topic] != topic],
            output="screen",
            sigterm_timeout="60",  # seconds to write the report in, once it is told to end
            sigkill_timeout="60",
        )
    ]


def executable() -> dict[str, object]:
    """Returns how to run the node: from the installed package, or from here where it is not installed."""
    try:
        get_package_prefix("flowodom")
    except PackageNotFoundError:
        return {"executable": sys.executable, "arguments": ["-m", "flowodom.node", "drift"]}
    return {"package": "flowodom", "executable": "drift_node"}
