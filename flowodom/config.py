"""Every parameter of flowodom, once: name, default, unit, range, and whether it may change while running.

ROS parameters, command-line ``--set`` flags and ``config/odometry.yaml`` are all made from these dataclasses.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from flowodom.errors import ConfigError


def parameter(
    default: Any,
    description: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    live: bool = False,
) -> Any:
    """Returns a dataclass field that carries its own documentation.

    Args:
        default: The default; its type is the parameter's type (bool, int, float or str).
        description: One sentence for the user.
        unit: Physical unit, empty for none.
        low: Least value allowed.
        high: Greatest value allowed.
        choices: The only strings allowed; empty for any.
        live: Whether the parameter may change while running.
    """
    extra = {"description": description, "unit": unit, "low": low, "high": high, "choices": choices, "live": live}
    return field(default=default, metadata=extra)


@dataclass(frozen=True)
class FlowConfig:
    """Optical flow."""

    method: str = parameter(
        "auto",
        "Optical flow method; auto is the best that comes with weights on a GPU, and DIS on a processor.",
        choices=("auto", "dis", "lucas_kanade", "horn_schunck", "raft", "refined", "raft_refined"),
    )
    weights: str = parameter("", "File of weights of RAFT, of the refiner for refined; empty: those of flowodom.")
    updates: int = parameter(8, "Most updates of raft: more are slower and find larger motion.", low=1, high=64)
    max_pixels: int = parameter(
        120_000, "Most pixels of the dense fields; larger images are shrunk for them.", unit="px", low=1000
    )


@dataclass(frozen=True)
class DepthConfig:
    """Depth sources."""

    source: str = parameter(
        "auto",
        "Where depth comes from; auto combines what there is: sensor, single-image field, filter.",
        choices=("auto", "sensor", "filter"),
    )
    field: str = parameter(
        "",
        "Single-image field for auto: a safetensors file, or transformers:NAME for a metric depth network of that "
        "package; it also fills the holes of a depth camera. Empty: the shipped one, for single cameras.",
    )
    minimum: float = parameter(0.1, "Depths below it are invalid.", unit="m", low=0.0)
    maximum: float = parameter(60.0, "Depths above it are invalid.", unit="m", low=0.0)
    noise: float = parameter(
        0.0015,
        "Standard deviation of a depth camera's inverse depth (0.0015 suits structured light and active stereo).",
        unit="1/m",
        low=0.0,
        high=1.0,
    )
    disparity: float = parameter(
        0.15,
        "Standard deviation of the disparity of a point that both cameras of a stereo pair see.",
        unit="px",
        low=0.01,
        high=5.0,
    )
    turn_deviation: float = parameter(
        0.002,
        "Standard deviation of the angle by which the cameras of a stereo pair are turned together or apart beside "
        "what their calibration says: it is learned from the images. 0: they stand just as it says.",
        unit="rad",
        low=0.0,
        high=0.1,
    )


@dataclass(frozen=True)
class RegistrationConfig:
    """The pose fit and the keyframe window."""

    points: int = parameter(900, "Points tracked per frame, spread over the image.", low=50, high=10000)
    max_iterations: int = parameter(8, "Most iterations of the robust refinement.", low=1, high=100)
    pixel_noise: float = parameter(
        0.12, "Standard deviation of a tracked point's place across an edge.", unit="px", low=0.01, high=5.0
    )
    calibration_deviation: float = parameter(
        0.0007,
        "Standard deviation of what calibrations are off by, as a share of turns and distances: how unsure poses are "
        "beside the noise of the images. 0: the camera is just as it was calibrated; 0.003 suits makers' calibrations.",
        low=0.0,
        high=0.1,
    )
    readout: float = parameter(
        0.0,
        "Time from the exposure of an image's first row to that of its last, as far as it is known: 0 for a global "
        "shutter, negative where the last is exposed first.",
        unit="s",
        low=-0.1,
        high=0.1,
    )
    readout_deviation: float = parameter(
        0.02,
        "Standard deviation of that time: it is learned from the images. 0: it is just that.",
        unit="s",
        low=0.0,
        high=0.1,
    )
    window: int = parameter(7, "Keyframes refined together.", low=2, high=30)
    window_iterations: int = parameter(6, "Most iterations of the window's refinement.", low=1, high=100)


@dataclass(frozen=True)
class OdometryConfig:
    """Odometry proper."""

    flow: FlowConfig = field(default_factory=FlowConfig)
    depth: DepthConfig = field(default_factory=DepthConfig)
    registration: RegistrationConfig = field(default_factory=RegistrationConfig)
    camera_height: float = parameter(
        0.0, "Height of a single camera above flat ground; makes its scale metric. 0: unknown.", unit="m", low=0.0
    )
    device: str = parameter("auto", "Torch device: auto, cpu, cuda, cuda:1 ...")


@dataclass(frozen=True)
class SyncConfig:
    """Which messages belong together."""

    tolerance: float = parameter(
        0.02, "Most difference between the stamps of an image and its depth.", unit="s", low=0.0, high=1.0
    )
    wait: float = parameter(
        0.5,
        "Longest time, by the stamps, that an image waits for its depth before it goes on without.",
        unit="s",
        low=0.0,
        high=10.0,
    )
    backlog: int = parameter(
        3,
        "Most images that a live host lets wait; when there are more, all but the newest are dropped.",
        low=1,
        high=1000,
    )


@dataclass(frozen=True)
class QosConfig:
    """Quality of service of the images that come in."""

    reliable: bool = parameter(
        False, "Whether to ask for images that got lost to be sent again; their publisher must offer that."
    )
    depth: int = parameter(5, "Most images kept by the middleware until they are taken.", low=1, high=1000)


@dataclass(frozen=True)
class CloudConfig:
    """The point clouds."""

    stride: int = parameter(
        3, "Every how manieth row and column of the dense fields becomes a point.", low=1, high=16, live=True
    )
    rate: float = parameter(
        10.0,
        "Most clouds, and pictures of flow and weights, per second, by the stamps; 0 for one with every frame.",
        unit="Hz",
        low=0.0,
        live=True,
    )
    probability: float = parameter(
        0.5, "Probability of moving on its own above which a point is dynamic.", low=0.0, high=1.0, live=True
    )
    voxel: float = parameter(
        0.0, "Edge of the cubes of which each keeps one point; 0 keeps all.", unit="m", low=0.0, live=True
    )
    range: float = parameter(0.0, "Points farther away are left out; 0 keeps all.", unit="m", low=0.0, live=True)


@dataclass(frozen=True)
class MapConfig:
    """The map of the static world."""

    voxel: float = parameter(0.0, "Size of its voxels; 0 for no map.", unit="m", low=0.0)
    file: str = parameter("map.ply", "Where save_map writes it, as PLY, and objects beside it.")


@dataclass(frozen=True)
class PathConfig:
    """The path travelled."""

    rate: float = parameter(5.0, "Most poses per second added to the path.", unit="Hz", low=0.1, live=True)
    length: int = parameter(
        2000, "Most poses in the path; beyond it every second one is dropped.", low=2, high=100000, live=True
    )


@dataclass(frozen=True)
class SessionConfig(OdometryConfig):
    """Everything that a host of the odometry is configured by."""

    odom_frame: str = parameter("odom", "Frame in which the pose is given; starts where the base is at first.")
    base_frame: str = parameter("base_link", "Frame whose pose is published.")
    camera_frame: str = parameter("", "Optical frame of the camera; empty: as the image's header says.")
    guess_frame: str = parameter(
        "",
        "Odometry frame of another source on tf (wheels), which each frame's fit may start from and which carries the "
        "pose over lost tracking; empty: none.",
    )
    identity_extrinsic: bool = parameter(
        False, "Whether to take the camera's optical frame for the base where tf does not connect the two."
    )
    extrinsic: str = parameter(
        "",
        "Pose of the camera in base_frame, in place of tf: 'x y z roll pitch yaw' (m, rad) or 'x y z qx qy qz qw'.",
    )
    initial_pose: str = parameter(
        "", "Pose of base_frame in odom_frame at the start, written likewise; empty: identity."
    )
    rectified: bool = parameter(
        False, "Whether images come rectified (image_rect): then only P of the camera_info is used, no distortion."
    )
    publish_tf: bool = parameter(True, "Whether to publish odom_frame -> base_frame on tf.", live=True)
    invert_tf: bool = parameter(False, "Whether to publish base_frame -> odom_frame on tf instead.", live=True)
    publish_null_when_lost: bool = parameter(
        False, "Whether to publish an all-zero pose with covariance 9999 while lost, instead of nothing.", live=True
    )
    threads: int = parameter(
        1,
        "CPU threads of torch for networks and training; all else is work of microseconds and keeps to one.",
        low=1,
        high=256,
    )
    use_sim_time: bool = parameter(False, "Whether the time is that of the topic /clock.")
    autostart: bool = parameter(True, "Whether the ROS node configures and activates itself.")
    sync: SyncConfig = field(default_factory=SyncConfig)
    qos: QosConfig = field(default_factory=QosConfig)
    cloud: CloudConfig = field(default_factory=CloudConfig)
    map: MapConfig = field(default_factory=MapConfig)
    path: PathConfig = field(default_factory=PathConfig)


@dataclass(frozen=True)
class DriftConfig:
    """The drift node."""

    out: str = parameter("out/drift", "Folder of drift.csv, drift.json and report.html.")
    tolerance: float = parameter(
        0.1, "Most time between an estimated pose and the nearest true one.", unit="s", low=0.0, high=10.0
    )
    truth_parent: str = parameter("", "World frame of the truth on tf; empty: the truth is the topic ground_truth.")
    truth_child: str = parameter("", "Body frame of the truth on tf.")


def parse(kind: type, name: str, value: Any) -> Any:
    """Returns ``value`` (possibly a string from a command line) as ``kind``; ConfigError where it is not one."""
    if kind is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
    elif kind is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, str):
            try:
                return int(value)
            except ValueError:
                pass
    elif kind is float:
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            try:
                return float(value)
            except ValueError:
                pass
    elif kind is str and isinstance(value, str):
        return value
    raise ConfigError(f"parameter {name} must be {kind.__name__}, got {value!r}")


@dataclass(frozen=True)
class Parameter:
    """One leaf of a configuration.

    Attributes:
        name: Dotted name, as ROS spells it: ``registration.points``.
        kind: bool, int, float or str.
        value: Its present value.
        description: One sentence for the user.
        unit: Physical unit, empty for none.
        low: Least value allowed, None for any.
        high: Greatest value allowed, None for any.
        choices: The only strings allowed, empty for any.
        live: Whether it may change while running.
    """

    name: str
    kind: type
    value: Any
    description: str
    unit: str
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    live: bool

    def check(self, value: Any) -> Any:
        """Returns ``value`` as this parameter's type.

        Raises:
            ConfigError: It is of another type, not finite, out of range or not among the choices.
        """
        result = parse(self.kind, self.name, value)
        if isinstance(result, float) and not math.isfinite(result):
            raise ConfigError(f"parameter {self.name} must be a finite number, got {result}")
        if self.low is not None and not result >= self.low:
            raise ConfigError(f"parameter {self.name} must be at least {self.low}, got {result}")
        if self.high is not None and not result <= self.high:
            raise ConfigError(f"parameter {self.name} must be at most {self.high}, got {result}")
        if self.choices and result not in self.choices:
            raise ConfigError(f"parameter {self.name} must be one of {', '.join(self.choices)}, got {result!r}")
        return result


Config = typing.TypeVar("Config")


def parameters(config: Any, prefix: str = "") -> Iterator[Parameter]:
    """Yields every leaf of a configuration dataclass, depth first, in order of declaration."""
    kinds = typing.get_type_hints(type(config))
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            yield from parameters(value, f"{prefix}{entry.name}.")
        else:
            yield Parameter(name=prefix + entry.name, kind=kinds[entry.name], value=value, **entry.metadata)


def override(config: Config, values: Mapping[str, Any]) -> Config:
    """Returns a copy of ``config`` with parameters replaced.

    Args:
        config: A configuration dataclass.
        values: Dotted names to values; strings are converted to the parameter's type.

    Raises:
        ConfigError: A name is unknown or a value does not fit.
    """
    known = {p.name: p for p in parameters(config)}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"unknown parameter {name!r}; there are: {', '.join(sorted(known))}")
        config = _replace(config, name.split("."), known[name].check(value))
    return config


def _replace(config: Any, path: list[str], value: Any) -> Any:
    head, *rest = path
    return dataclasses.replace(config, **{head: _replace(getattr(config, head), rest, value) if rest else value})


def load(path: Path, config: Config) -> Config:
    """Returns ``config`` with the values of a YAML file in it.

    The file is a ROS 2 parameter file (``/**: ros__parameters: ...``, any node name) or its bare inner mapping.

    Raises:
        ConfigError: The file cannot be read, is not a mapping, or names an unknown parameter.
    """
    try:
        tree = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read parameters from {path}: {error}") from error
    if tree is None:
        return config
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping of parameters, got {type(tree).__name__}")
    inner = [v["ros__parameters"] for v in tree.values() if isinstance(v, dict) and "ros__parameters" in v]
    flat: dict[str, Any] = {}
    for mapping in inner or [tree]:
        if not isinstance(mapping, (dict, type(None))):
            raise ConfigError(f"ros__parameters in {path} must be a mapping, got {type(mapping).__name__}")
        _flatten(mapping or {}, "", flat)
    return override(config, flat)


def _flatten(tree: Mapping[str, Any], prefix: str, out: dict[str, Any]) -> None:
    for key, value in tree.items():
        if isinstance(value, dict):
            _flatten(value, f"{prefix}{key}.", out)
        else:
            out[f"{prefix}{key}"] = value


def to_yaml(config: Any) -> str:
    """Returns a ROS 2 parameter file with every parameter of ``config``, its description, unit and range."""
    lines = ["/**:", "  ros__parameters:"]
    group: list[str] = []
    for p in parameters(config):
        *path, leaf = p.name.split(".")
        for depth, name in enumerate(path):
            if group[: depth + 1] != path[: depth + 1]:
                lines.append("  " * (depth + 2) + f"{name}:")
        group = path
        indent = "  " * (len(path) + 2)
        bounds = [f"one of {', '.join(p.choices)}"] if p.choices else []
        bounds += [f"at least {p.low:g}"] if p.low is not None else []
        bounds += [f"at most {p.high:g}"] if p.high is not None else []
        notes = [f"[{p.unit}]"] if p.unit else []
        notes += [f"({'; '.join(bounds)})"] if bounds else []
        notes += ["(may change while running)"] if p.live else []
        lines.append(" ".join([f"{indent}# {p.description}", *notes]))
        lines.append(f"{indent}{leaf}: {yaml.safe_dump(p.value, width=float('inf')).splitlines()[0]}")
    return "\n".join(lines) + "\n"
