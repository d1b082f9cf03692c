"""Plays a bag into the odometry node, with the drift node and RViz beside it, and ends when the bag does.

Topics and the base frame are found in the bag as ``flowodom replay`` finds them; arguments win.
"""

from pathlib import Path

from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
    Shutdown,
    TimerAction,
)
from launch.event_handlers import OnProcessExit
from launch.launch_description_entity import LaunchDescriptionEntity as Entity
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

from flowodom.bags import BagReader
from flowodom.config import SessionConfig
from flowodom.replay import adapt

HERE = Path(__file__).resolve().parent
TOPICS = ("image", "camera_info", "depth", "depth_info", "right", "right_info", "ground_truth")
ARGUMENTS = {
    "bag": ("", "the recording to play"),
    "rate": ("1.0", "multiple of the recorded speed"),
    "delay": ("5.0", "seconds for the nodes to come up before the bag is played"),
    **{name: ("", f"topic of the bag; 'none' for no {name}") for name in TOPICS},
    "base_frame": ("", "frame whose pose is given"),
    "config_file": ("", "parameter file, as config/odometry.yaml"),
    "device": ("", "auto, cpu, cuda, cuda:1 ..."),
    "camera_height": ("", "height of a single camera above the ground, metres"),
    "out": ("out/drift", "folder for drift.csv, drift.json and report.html"),
    "rviz": ("false", "whether to start RViz"),
}


def generate_launch_description() -> LaunchDescription:
    """Returns the arguments and what is started with them."""
    declared = [
        DeclareLaunchArgument(name, default_value=value, description=text) for name, (value, text) in ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start)])


def start(context: LaunchContext) -> list[Entity]:
    """Returns what is started with the arguments given."""
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    with BagReader(given["bag"]) as reader:
        chosen = reader.select({name: given[name] for name in TOPICS if given[name]})
        base = given["base_frame"] or adapt(reader, chosen, SessionConfig()).base_frame
    passed = {name: given[name] for name in ("config_file", "device", "camera_height", "rviz")}
    topics = {name: getattr(chosen, name) or "" for name in TOPICS[:-1]}
    topics["depth"] = topics["depth"] or "off"
    play = ExecuteProcess(
        cmd=["ros2", "bag", "play", given["bag"], "--clock", "--rate", given["rate"], "--disable-keyboard-controls"],
        output="screen",
    )
    actions: list[Entity] = [
        include("odometry", {**passed, **topics, "base_frame": base, "use_sim_time": "true"}),
        TimerAction(period=float(given["delay"]), actions=[play]),
        RegisterEventHandler(
            OnProcessExit(target_action=play, on_exit=[TimerAction(period=2.0, actions=[Shutdown(reason="bag ended")])])
        ),
    ]
    if chosen.ground_truth:
        truth = {"ground_truth": chosen.ground_truth, "out": given["out"], "use_sim_time": "true"}
        actions.insert(1, include("drift", truth))
    return actions


def include(name: str, arguments: dict[str, str]) -> IncludeLaunchDescription:
    """Returns the inclusion of a launch file beside this one."""
    source = PythonLaunchDescriptionSource(str(HERE / f"{name}.launch.py"))
    return IncludeLaunchDescription(source, launch_arguments=arguments.items())
