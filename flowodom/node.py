"""The ROS 2 nodes: odometry as a lifecycle node, and the drift node that holds it against the truth.

Messages pass as raw CDR bytes both ways and are read by the same code as everywhere else, so rclpy's slow conversion
to Python objects is never paid. This is the only module that imports ``rclpy``.
"""

# mypy: disallow-subclassing-any=False

from __future__ import annotations

import importlib
import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from flowodom.config import DriftConfig, Parameter, SessionConfig, override, parameters
from flowodom.drift import Drift
from flowodom.endpoints import Endpoint, Quality, input_quality, likely_type, mismatch, output_quality
from flowodom.errors import ConfigError, FlowodomError
from flowodom.frames import Euler
from flowodom.host import Host
from flowodom.messages import Converter, DiagnosticStatus, MessageFactory, deserialize, typestore
from flowodom.process import prepare
from flowodom.selection import POSE_TYPES
from flowodom.session import INPUTS, OUTPUTS, Port, Session

try:
    import rclpy
    import rclpy.parameter
    import rclpy.task
    from rcl_interfaces.msg import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
        FloatingPointRange,
        IntegerRange,
        ParameterDescriptor,
        SetParametersResult,
    )
    from rclpy.callback_groups import ReentrantCallbackGroup
    from rclpy.exceptions import ParameterException
    from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
    from rclpy.node import Node
    from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
    from rclpy.qos_overriding_options import QoSOverridingOptions
    from std_srvs.srv import Trigger  # type: ignore[import-not-found,import-untyped,unused-ignore]
except ImportError as _error:
    raise FlowodomError(
        f"ROS 2 for Python is missing ({_error}): source a ROS 2 installation, or run 'flowodom dds', which needs none"
    ) from _error

_log = logging.getLogger("flowodom.node")  # also where this is __main__

_LOOK = 0.5
_HUGE = 1e300
_SERVICES = ("~/reset", "~/pause", "~/resume")


class OdometryNode(LifecycleNode):
    """Odometry on the ROS 2 graph.

    Configuring makes the odometry and its publishers, activating subscribes and works, deactivating stops the work.
    With the parameter ``autostart`` both happen by themselves.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__("flowodom", **options)
        _forward_logs(self)
        _declare(self, SessionConfig())
        self._host: Host | None = None
        self._session: Session | None = None
        self._outputs: dict[str, Any] = {}
        self._inputs: dict[tuple[str, str], Any] = {}
        self._timer: Any = None
        self._store = typestore(_distribution())
        self.add_on_set_parameters_callback(self._on_parameters)
        handlers: dict[str, Callable[[Session], Any]] = {
            "~/reset": Session.reset,
            "~/pause": Session.pause,
            "~/resume": Session.resume,
            "~/save_map": Session.save_map,
        }
        group = ReentrantCallbackGroup()  # all else goes on while a service waits for its answer
        for name, action in handlers.items():
            self.create_service(Trigger, name, partial(self._serve, action), callback_group=group)

    def start(self) -> None:
        """Configures and activates itself, unless the parameter ``autostart`` leaves that to others.

        Raises:
            ConfigError: It cannot, and no one could help it: what it starts with is read-only.
        """
        if not self.get_parameter("autostart").value:
            return
        for transit in (self.trigger_configure, self.trigger_activate):
            if transit() != TransitionCallbackReturn.SUCCESS:
                raise ConfigError("the node could not start by itself: mend what is said above")

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Makes the odometry and its publishers."""
        try:
            config = _config_of(self, SessionConfig())
            prepare(config.threads)
            self._session = Session(
                config,
                store=self._store,
                wanted=self._wanted,
                resolve=self.resolve_topic_name,
                name=_full_name(self),
                clock=self._now,
                convert=_cv_bridge(),
                euler=_tf_transformations(),
            )
            self._session.warm_up()
            self._session.report("parameters", _unknown_parameters(self))
        except FlowodomError as error:
            self.get_logger().error(str(error))
            return TransitionCallbackReturn.FAILURE
        for port in OUTPUTS:
            kind, qos = _message_class(port.types[0]), _profile(output_quality(port))
            overriding = QoSOverridingOptions.with_default_policies()
            self._outputs[port.name] = self.create_publisher(kind, port.name, qos, qos_overriding_options=overriding)
        return TransitionCallbackReturn.SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begins to work."""
        assert self._session is not None
        self._host = Host(self._session, self._publish, read=self._read, now=self._now)
        for port in INPUTS:
            if port.name not in _SERVICES:
                self._subscribe(port, likely_type(port, self.resolve_topic_name(port.name)))
        self._look()
        self._timer = self.create_timer(_LOOK, self._look, clock=rclpy.clock.Clock())
        self._host.start()
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stops working; what was estimated so far is kept."""
        self._stop()
        if self._session is not None:
            self._session.restart()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Forgets everything."""
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Ends."""
        self._stop()
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Goes back to the start after something went wrong."""
        self._stop()
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def destroy_node(self) -> None:
        """Stops the work before the node goes."""
        self._stop()
        super().destroy_node()

    def _stop(self) -> None:
        if self._timer is not None:
            self.destroy_timer(self._timer)
            self._timer = None
        for subscription in self._inputs.values():
            self.destroy_subscription(subscription)
        self._inputs.clear()
        if self._host is not None:
            self._host.stop()
            self._host = None

    def _release(self) -> None:
        for publisher in self._outputs.values():
            self.destroy_publisher(publisher)
        self._outputs.clear()
        self._session = None

    def _look(self) -> None:
        """Subscribes to the types of image that are published by now, and notes what cannot be heard."""
        assert self._host is not None
        for port in INPUTS:
            if port.name in _SERVICES:
                continue
            offered = [
                Endpoint(self.resolve_topic_name(port.name), info.topic_type, _quality(info.qos_profile))
                for info in self.get_publishers_info_by_topic(self.resolve_topic_name(port.name))
            ]
            for endpoint in offered:
                if endpoint.msgtype in port.types:
                    self._subscribe(port, endpoint.msgtype)
            asked = next(one.qos_profile for (name, _), one in self._inputs.items() if name == port.name)
            problem = mismatch(port, offered, _quality(asked))
            self._host.do(partial(Session.report, key=f"offer {port.name}", error=problem))

    def _subscribe(self, port: Port, msgtype: str) -> None:
        if (port.name, msgtype) in self._inputs:
            return
        assert self._host is not None
        assert self._session is not None
        host = self._host

        def receive(data: bytes) -> None:
            host.receive(port.name, (msgtype, data))

        self._inputs[port.name, msgtype] = self.create_subscription(
            _message_class(msgtype),
            port.name,
            receive,
            _profile(input_quality(port, self._session.config)),
            raw=True,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )

    def _read(self, item: tuple[str, bytes]) -> Any:
        msgtype, data = item
        return deserialize(data, msgtype, self._store)

    def _publish(self, name: str, message: Any) -> None:
        with self._until_shutdown():
            self._outputs[name].publish(bytes(self._store.serialize_cdr(message, message.__msgtype__)))

    def _wanted(self, name: str) -> bool:
        with self._until_shutdown():
            return name in self._outputs and self._outputs[name].get_subscription_count() > 0
        return False

    @contextmanager
    def _until_shutdown(self) -> Iterator[None]:
        """Passes over what fails because ROS has been shut down, which a signal does while the session still works."""
        try:
            yield
        except Exception:
            if self.context.ok():
                raise

    def _now(self) -> int:
        return int(self.get_clock().now().nanoseconds)

    async def _serve(self, action: Callable[[Session], Any], request: Any, response: Any) -> Any:
        """Answers when it has been done, with what came of it."""
        try:
            if self._host is None:
                raise FlowodomError("the node is not active")
            answer: Any = self._host.do(action)
            while isinstance(answer, Future):
                answer = await self._outcome(answer)
        except Exception as error:
            response.success, response.message = False, str(error)
        else:
            response.success, response.message = True, ", ".join(map(str, answer or ()))
        return response

    def _outcome(self, work: Future[Any]) -> Any:
        """Returns what a callback can await until work on another thread is done."""
        outcome, executor = rclpy.task.Future(), self.executor

        def settle(work: Future[Any]) -> None:
            if (error := work.exception()) is not None:
                outcome.set_exception(error)
            else:
                outcome.set_result(work.result())
            executor.wake()

        work.add_done_callback(settle)
        return outcome

    def _on_parameters(self, changes: list[rclpy.parameter.Parameter]) -> SetParametersResult:
        known = {p.name for p in parameters(SessionConfig())} - {"use_sim_time"}
        values = {change.name: change.value for change in changes if change.name in known}
        try:
            config = override(_config_of(self, SessionConfig()), values)
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        if values and self._host is not None:
            self._host.do(partial(Session.configure, config=config))
        elif values and self._session is not None:  # inactive: what is set now holds from its activation on
            self._session.configure(config)
        return SetParametersResult(successful=True)


class DriftNode(Node):
    """Holds odometry against the truth while both run."""

    def __init__(self, **options: Any) -> None:
        super().__init__("flowodom_drift", **options)
        _forward_logs(self)
        _declare(self, DriftConfig())
        self._config = _config_of(self, DriftConfig())
        self._store = typestore(_distribution())
        self._make = MessageFactory(self._store)
        self._drift = Drift(self._config)
        self._truth_types: set[str] = set()
        latched, usual = Quality(latched=True, depth=1), Quality()
        self._outputs = {
            name: self.create_publisher(_message_class(msgtype), name, _profile(quality))
            for name, msgtype, quality in (
                ("~/position_error", "std_msgs/msg/Float64", usual),
                ("~/rotation_error", "std_msgs/msg/Float64", usual),
                ("~/estimated_path", "nav_msgs/msg/Path", latched),
                ("~/true_path", "nav_msgs/msg/Path", latched),
                ("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray", usual),
            )
        }
        self._listen("odom", "nav_msgs/msg/Odometry", self._drift.add_estimate, Quality(depth=100))
        self._listen("/tf", "tf2_msgs/msg/TFMessage", self._drift.add_transforms, Quality(depth=100))
        self._listen(
            "/tf_static",
            "tf2_msgs/msg/TFMessage",
            partial(self._drift.add_transforms, static=True),
            Quality(latched=True, depth=100),
        )
        self._listen_to_truth(POSE_TYPES[0])
        self.create_timer(_LOOK, self._look, clock=rclpy.clock.Clock())
        self.create_timer(1.0, self._tell, clock=rclpy.clock.Clock())

    def destroy_node(self) -> None:
        """Writes drift.json and the report before the node goes."""
        try:
            for path in self._drift.write():
                _log.info("wrote %s", path)
        except FlowodomError as error:
            _log.warning("no drift was written: %s", error)
        super().destroy_node()

    def _listen(self, name: str, msgtype: str, take: Callable[[Any], None], quality: Quality) -> None:
        def receive(data: bytes) -> None:
            try:
                take(deserialize(data, msgtype, self._store))
            except FlowodomError as error:
                self.get_logger().warning(str(error), throttle_duration_sec=5.0)

        self.create_subscription(_message_class(msgtype), name, receive, _profile(quality), raw=True)

    def _look(self) -> None:
        topic = self.resolve_topic_name("ground_truth")
        for info in self.get_publishers_info_by_topic(topic):
            self._listen_to_truth(info.topic_type)

    def _listen_to_truth(self, msgtype: str) -> None:
        if msgtype in POSE_TYPES and msgtype not in self._truth_types:
            self._truth_types.add(msgtype)
            self._listen("ground_truth", msgtype, self._drift.add_truth, Quality(reliable=False, depth=100))

    def _tell(self) -> None:
        state = self._drift.tell()
        if state is None:
            return
        double = self._store.types["std_msgs/msg/Float64"]
        self._send("~/position_error", double(data=state.position_error))
        self._send("~/rotation_error", double(data=math.degrees(state.rotation_error)))
        for name, path in (("~/estimated_path", state.estimated_path), ("~/true_path", state.true_path)):
            poses = [self._make.pose_stamped(stamp, state.frame, np.asarray(pose)) for stamp, pose in path]
            self._send(name, self._make.path(state.stamp, state.frame, poses))
        status = DiagnosticStatus(f"{_full_name(self)}: drift", 0, state.summary(), state.values())
        self._send("/diagnostics", self._make.diagnostics(state.stamp, [status]))

    def _send(self, name: str, message: Any) -> None:
        self._outputs[name].publish(bytes(self._make.serialize(message)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the odometry node until it is shut down; returns the exit code."""
    return _run(OdometryNode, arguments, begin=OdometryNode.start)


def drift_main(arguments: Sequence[str] | None = None) -> int:
    """Runs the drift node until it is shut down; returns the exit code."""
    return _run(DriftNode, arguments)


def _run(
    make: Callable[[], Any], arguments: Sequence[str] | None, *, begin: Callable[[Any], None] = lambda _: None
) -> int:
    """Runs a node to its end; a parameter that it cannot start with ends it with a line in the log, not with a trace.

    Once it ends, interrupts are passed over: launch may send one beside that of the terminal, and what tidies up (a
    drift report takes seconds) is not to be torn.
    """
    rclpy.init(args=arguments)
    node = None
    try:
        node = make()
        begin(node)
        rclpy.spin(node)
    except KeyboardInterrupt:
        pass
    except Exception as error:
        if rclpy.ok():  # else a signal has shut ROS down, and whatever failed did so for that
            if not isinstance(error, (ParameterException, FlowodomError)):
                raise
            _log.error("%s", error)
            return 1
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    return 0


class _RosHandler(logging.Handler):
    """Hands log records of this package to a node's logger."""

    def __init__(self, logger: Any) -> None:
        super().__init__()
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if not rclpy.ok():  # after Ctrl-C there is no one left to publish logs to
            print(f"[{record.levelname}] {text}", file=sys.stderr)
        elif record.levelno >= logging.ERROR:
            self._logger.error(text)
        elif record.levelno >= logging.WARNING:
            self._logger.warning(text)
        else:
            self._logger.info(text)


def _forward_logs(node: Any) -> None:
    package = logging.getLogger("flowodom")
    for handler in [h for h in package.handlers if isinstance(h, _RosHandler)]:
        package.removeHandler(handler)
    package.addHandler(_RosHandler(node.get_logger()))
    package.setLevel(logging.INFO)


def _declare(node: Any, config: Any) -> None:
    """Declares every parameter of a configuration with its description, range and whether it is read-only."""
    for p in parameters(config):
        if not node.has_parameter(p.name):
            node.declare_parameter(p.name, p.value, _descriptor(p))


def _unknown_parameters(node: Any) -> ConfigError | None:
    """Returns what was given to a node that it does not know, which rclpy passes over in silence."""
    given: Sequence[str] = list(getattr(node, "_parameter_overrides", ()))
    unknown = [name for name in given if not node.has_parameter(name) and not name.startswith("qos_overrides.")]
    if not unknown:
        return None
    return ConfigError(f"unknown parameter {', '.join(unknown)}: not used; config/odometry.yaml lists those there are")


def _descriptor(p: Parameter) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(
        name=p.name,
        description=f"{p.description} [{p.unit}]" if p.unit else p.description,
        read_only=not p.live,
        additional_constraints=f"one of {', '.join(p.choices)}" if p.choices else "",
    )
    if p.low is None and p.high is None:
        return descriptor
    if p.kind is int:
        low = -(2**63) if p.low is None else int(p.low)
        high = 2**63 - 1 if p.high is None else int(p.high)
        descriptor.integer_range = [IntegerRange(from_value=low, to_value=high, step=0)]
    else:
        low_float = -_HUGE if p.low is None else float(p.low)
        high_float = _HUGE if p.high is None else float(p.high)
        descriptor.floating_point_range = [FloatingPointRange(from_value=low_float, to_value=high_float, step=0.0)]
    return descriptor


def _full_name(node: Any) -> str:
    """Returns a node's name with its namespace, as diagnostics name it: several nodes may run side by side."""
    return str(node.get_fully_qualified_name()).strip("/")


def _config_of(node: Any, config: Any) -> Any:
    return override(config, {p.name: node.get_parameter(p.name).value for p in parameters(config)})


def _distribution() -> str:
    """Returns the distribution whose message types are spoken here."""
    name = os.environ.get("ROS_DISTRO", "jazzy")
    try:
        typestore(name)
    except ConfigError:
        _log.warning("the message types of %s are not known; those of jazzy are used", name)
        return "jazzy"
    return name


def _message_class(msgtype: str) -> Any:
    package, _, name = msgtype.split("/")
    return getattr(importlib.import_module(f"{package}.msg"), name)


def _profile(quality: Quality) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=quality.depth,
        reliability=ReliabilityPolicy.RELIABLE if quality.reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if quality.latched else DurabilityPolicy.VOLATILE,
    )


def _quality(profile: QoSProfile) -> Quality:
    return Quality(
        reliable=profile.reliability == ReliabilityPolicy.RELIABLE,
        latched=profile.durability == DurabilityPolicy.TRANSIENT_LOCAL,
        depth=max(1, profile.depth),
    )


def _cv_bridge() -> Converter | None:
    """Returns cv_bridge's converter where it works, None (the built-in one) with a logged line where it does not."""
    try:
        from cv_bridge import CvBridge

        convert: Converter = CvBridge().imgmsg_to_cv2
        image = MessageFactory().image(0, "", np.full((2, 2, 3), 7, dtype=np.uint8), "bgr8")
        if np.asarray(convert(image, "rgb8")).shape != (2, 2, 3):
            raise RuntimeError("it gives images of the wrong shape")
    except Exception as error:  # built against another NumPy, it may fail in any way
        _log.info("cv_bridge cannot be used (%s): the built-in decoder takes over", error)
        return None
    return convert


def _tf_transformations() -> Euler | None:
    """Returns tf_transformations' conversion where it is installed, None (the built-in one) where it is not."""
    try:
        from tf_transformations import quaternion_from_euler
    except Exception as error:
        _log.info("tf_transformations cannot be used (%s): the built-in formula takes over", error)
        return None
    convert: Euler = quaternion_from_euler
    return convert


__all__ = ["DriftNode", "OdometryNode", "drift_main", "main"]

if __name__ == "__main__":  # where the package is not installed: python -m flowodom.node odometry|drift
    sys.exit({"odometry": main, "drift": drift_main}[sys.argv[1]](sys.argv))
