"""The command line: ``flowodom replay | track | info | evaluate | doctor | render | study | train | adapt | dds``.

Each subcommand imports what it needs when it runs, so that ``flowodom --help`` is there at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flowodom import __version__
from flowodom.config import SessionConfig, load, override
from flowodom.errors import ConfigError, FlowodomError

if TYPE_CHECKING:
    from flowodom.dds import Participant

TOPIC_ROLES = {
    "image": "camera image",
    "camera_info": "calibration of the camera",
    "depth": "depth; 'none' for a single camera",
    "depth_info": "calibration of the depth camera, where depth is not registered to the image",
    "right": "image of the right camera of a stereo pair; 'none' for one camera",
    "right_info": "calibration of the right camera",
    "ground_truth": "true poses to compare with; 'none' for no comparison",
}

_MAP_VOXEL = 0.05
"""Size of the voxels of a map that is asked for without a size, metres."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Words after the program's name; those of the process when None.

    Returns:
        The exit status: 0 done, 1 ``doctor`` found something to mend, 2 an error that was explained, 3 a fault in the
        program that ended a replay early, 130 interrupted.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO if options.verbose else logging.WARNING,
        format="%(levelname)s: %(message)s",
        stream=sys.stderr,
    )
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except FlowodomError as error:
        print(f"flowodom: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("flowodom: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0


def make_config(options: argparse.Namespace) -> SessionConfig:
    """Returns the parameters that ``--config``, ``--set`` and the flags of their own make, the later over the earlier.

    Raises:
        ConfigError: A file cannot be read, a name is unknown or a value does not fit.
    """
    config = SessionConfig()
    if options.config is not None:
        config = load(options.config, config)
    values: dict[str, object] = {}
    for assignment in options.set:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set takes name=value, got {assignment!r}")
        values[name.removesuffix(":")] = value
    if options.device is not None:
        values["device"] = options.device
    if options.camera_height is not None:
        values["camera_height"] = options.camera_height
    return override(config, values)


def topic_overrides(options: argparse.Namespace) -> dict[str, str | None]:
    """Returns the topics named on the command line, by role."""
    named = {role: getattr(options, role) for role in TOPIC_ROLES}
    return {role: topic for role, topic in named.items() if topic is not None}


def _replay(options: argparse.Namespace) -> int:
    from tqdm.contrib.logging import logging_redirect_tqdm

    from flowodom.process import prepare
    from flowodom.replay import replay

    config = make_config(options)
    if options.map is not None:
        config = override(config, {"map.file": str(options.map), "map.voxel": config.map.voxel or _MAP_VOXEL})
    prepare(config.threads)
    with logging_redirect_tqdm():
        result = replay(
            options.bag,
            options.out or Path("out") / options.bag.resolve().stem,
            config,
            topics=topic_overrides(options),
            start=options.start,
            duration=options.duration,
            rate=options.rate,
            report=options.report,
            points=options.points,
            progress=options.progress and sys.stderr.isatty(),
        )
    print(result.summary())
    if result.failure is not None:
        return 3
    return 130 if result.interrupted else 0


def _track(options: argparse.Namespace) -> int:
    from flowodom.process import prepare
    from flowodom.track import track

    config = make_config(options)
    prepare(config.threads)
    out = options.out or Path("out") / options.bag.resolve().stem
    print(f"wrote {track(options.bag, out, options.points, config, topics=topic_overrides(options))}")
    return 0


def _info(options: argparse.Namespace) -> int:
    from flowodom import info

    print(info.describe(options.bag, topic_overrides(options)))
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from flowodom.evaluation import evaluate

    result = evaluate(
        options.estimate,
        options.truth,
        est_topic=options.estimate_topic,
        truth_topic=options.truth_topic,
        times=options.times,
        tolerance=options.tolerance,
        correct_scale=options.correct_scale,
    )
    print(result.table())
    if options.json is not None:
        try:
            options.json.write_text(json.dumps(result.as_dict(), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise FlowodomError(f"cannot write {options.json}: {error.strerror or error}") from error
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from flowodom import doctor

    checks = doctor.checks()
    for check in checks:
        print(check)
    return 0 if all(check.ok for check in checks) else 1


def _render(options: argparse.Namespace) -> int:
    from flowodom.worlds.recording import render_bag

    count = render_bag(
        options.bag,
        seed=options.seed,
        world=options.world,
        motion=options.motion,
        movers=options.movers,
        frames=options.frames,
        rate=options.rate,
        size=options.size,
        field_of_view=options.field_of_view,
        depth=options.depth,
        baseline=options.stereo,
        compressed=options.compressed,
        noise=options.noise,
        overwrite=options.overwrite,
        progress=sys.stderr.isatty(),
    )
    print(f"wrote {count} frames to {options.bag}")
    return 0


def _train(options: argparse.Namespace) -> int:
    from flowodom.odometry import resolve_device
    from flowodom.process import prepare
    from flowodom.training.field import train_field
    from flowodom.training.flow import FlowPlan, train_flow
    from flowodom.training.supervised import Plan

    prepare(options.threads)
    said = {name: getattr(options, name) for name in ("steps", "batch", "rate", "minutes", "seed", "size", "pairs")}
    train: Callable[..., bool]
    if options.model == "field":
        train = partial(train_field, options.out, Plan(**said))
    else:
        plan = FlowPlan(**said, crop=options.crop, updates=options.updates)
        train = partial(train_flow, options.out, plan, model=options.model)
    device, progress = resolve_device(options.device), sys.stderr.isatty()
    done = train(device=device, start=options.start, resume=options.resume, progress=progress)
    state = "finished" if done else "stopped, --resume goes on"
    print(f"{state}: {options.out / options.model}.safetensors; figures on unseen worlds in {options.out / 'log.csv'}")
    return 0


def _adapt(options: argparse.Namespace) -> int:
    from flowodom.depth.field import FieldNetwork, load_field
    from flowodom.depth.sources import field_file
    from flowodom.odometry import resolve_device
    from flowodom.process import prepare
    from flowodom.training.adapt import adapt

    config = make_config(options)
    prepare(config.threads)
    start = field_file(config.depth)
    result = adapt(
        options.bags,
        options.out,
        FieldNetwork() if start is None else load_field(start),
        steps=options.steps,
        device=resolve_device(config.device),
        topics=topic_overrides(options),
        frames=options.frames,
        resume=options.resume,
        progress=sys.stderr.isatty(),
    )
    print(result.summary())
    return 0


def _study(options: argparse.Namespace) -> int:
    from flowodom import ghosting

    outcomes = ghosting.study(seeds=options.seeds, frames=options.frames, progress=sys.stderr.isatty())
    print(ghosting.table(outcomes))
    for path in ghosting.write(outcomes, options.out):
        print(f"wrote {path}")
    return 0


def _dds(options: argparse.Namespace) -> int:
    from flowodom.dds import Participant
    from flowodom.names import Names

    tool: Callable[[argparse.Namespace, Participant, threading.Event], None] = options.tool
    names = Names(options.node, remappings=options.remap)
    with (
        _stopped_by_signals() as stop,
        Participant(
            names, domain=options.ros_domain_id, distribution=options.distro, loopback=options.loopback
        ) as participant,
    ):
        tool(options, participant, stop)
    return 0


def _dds_odometry(options: argparse.Namespace, participant: Participant, stop: threading.Event) -> None:
    from flowodom.graph import Odometry
    from flowodom.process import prepare

    config = make_config(options)
    prepare(config.threads)
    Odometry(participant, config).run(stop)


def _dds_play(options: argparse.Namespace, participant: Participant, stop: threading.Event) -> None:
    from flowodom.graph import play

    count = play(
        participant,
        options.bag,
        rate=options.rate,
        loop=options.loop,
        clock=options.clock,
        start=options.start,
        duration=options.duration,
        topics=options.topics,
        wait=options.wait,
        stop=stop,
    )
    print(f"played {count} messages")


def _dds_record(options: argparse.Namespace, participant: Participant, stop: threading.Event) -> None:
    from flowodom.graph import record

    count = record(participant, options.out, topics=options.topics or None, stop=stop, overwrite=options.overwrite)
    print(f"recorded {count} messages in {options.out}")


def _dds_echo(options: argparse.Namespace, participant: Participant, stop: threading.Event) -> None:
    from flowodom.graph import echo

    echo(participant, options.topic, count=options.count, stop=stop)


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """Gives an event that Ctrl-C and a request to end set, in place of what they would do."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flowodom", description="Visual odometry from dense optical flow: camera messages in, odometry out."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-v", "--verbose", action="store_true", help="say more on the way")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, parents=[common], help=text, description=f"{text[0].upper()}{text[1:]}.")
        added.set_defaults(run=run)
        return added

    replay = command("replay", _replay, "run the odometry on a bag and write odometry, clouds, trajectory and a report")
    replay.add_argument("bag", type=Path, help="rosbag2 folder, .mcap, .db3 or ROS 1 .bag")
    replay.add_argument("--out", type=Path, help="folder for the results (default: out/NAME-OF-THE-BAG)")
    add_config_arguments(replay)
    _add_topic_arguments(replay)
    replay.add_argument("--start", type=float, default=0.0, metavar="S", help="seconds to skip at the start")
    replay.add_argument("--duration", type=float, metavar="S", help="seconds to replay (default: all)")
    replay.add_argument(
        "--rate",
        type=_positive,
        help="keep to this multiple of the recorded speed and drop frames when behind (default: every frame)",
    )
    replay.add_argument(
        "--map",
        type=Path,
        metavar="PLY",
        help="write a map of the static world (map.voxel, or 0.05 m), and moving objects beside it",
    )
    replay.add_argument("--no-report", dest="report", action="store_false", help="do not write report.html")
    replay.add_argument("--no-points", dest="points", action="store_false", help="do not write point clouds")
    replay.add_argument("--no-progress", dest="progress", action="store_false", help="do not draw a progress bar")

    track = command("track", _track, "follow pixels of a bag's first frame in 3D, into tracks.csv")
    track.add_argument("bag", type=Path, help="rosbag2 folder, .mcap, .db3 or ROS 1 .bag")
    track.add_argument("--points", type=_pixel, nargs="+", required=True, metavar="U,V", help="pixels to follow")
    track.add_argument("--out", type=Path, help="folder for the results (default: out/NAME-OF-THE-BAG)")
    add_config_arguments(track)
    _add_topic_arguments(track)

    info = command("info", _info, "show what is in a bag and what replay would use of it")
    info.add_argument("bag", type=Path, help="rosbag2 folder, .mcap, .db3 or ROS 1 .bag")
    _add_topic_arguments(info)

    evaluate = command("evaluate", _evaluate, "compare an estimated trajectory with the truth")
    evaluate.add_argument("estimate", type=Path, help="TUM file, KITTI file or bag")
    evaluate.add_argument("truth", type=Path, help="TUM file, KITTI file or bag")
    evaluate.add_argument("--estimate-topic", metavar="TOPIC", help="topic of the estimate when it is a bag")
    evaluate.add_argument("--truth-topic", metavar="TOPIC", help="topic of the truth when it is a bag")
    evaluate.add_argument("--times", type=Path, help="stamps of KITTI files, one a line")
    evaluate.add_argument(
        "--tolerance",
        type=_positive,
        default=0.05,
        metavar="S",
        help="most seconds to the nearest true pose (%(default)s)",
    )
    evaluate.add_argument(
        "--correct-scale", action="store_true", help="scale each segment to the truth before relative errors and drift"
    )
    evaluate.add_argument("--json", type=Path, help="also write the figures to this file")

    command("doctor", _doctor, "check this machine: every line is ok or says how to mend it")

    render = command("render", _render, "render a procedural world into a bag with exact truth")
    render.add_argument("bag", type=Path, help="where to; a path that ends in .mcap becomes one file")
    render.add_argument("--seed", type=int, default=1, help="the same seed gives the same bag (%(default)s)")
    render.add_argument("--world", default="room", help="room or street (%(default)s)")
    render.add_argument("--motion", default="hand_held", help="hand_held, wheeled, rotation or straight (%(default)s)")
    render.add_argument("--movers", type=int, default=1, help="objects that move on their own (%(default)s)")
    render.add_argument("--frames", type=int, default=240, help="number of images (%(default)s)")
    render.add_argument("--rate", type=_positive, default=30.0, help="images a second (%(default)s)")
    render.add_argument("--size", type=_size, default=(320, 240), metavar="WxH", help="size of the images (320x240)")
    render.add_argument(
        "--field-of-view", type=_positive, metavar="DEG", help="across the width (default: room 62.7, street 80)"
    )
    render.add_argument(
        "--noise", type=float, default=1.5, help="deviation of the image noise, grey levels (%(default)s)"
    )
    render.add_argument("--no-depth", dest="depth", action="store_false", help="a single camera without depth")
    render.add_argument(
        "--stereo",
        type=_positive,
        default=0.0,
        metavar="M",
        help="a stereo pair in the place of a depth camera, this many metres apart",
    )
    render.add_argument("--compressed", action="store_true", help="JPEG images instead of raw ones")
    render.add_argument("--overwrite", action="store_true", help="replace a recording that is there")

    study = command("study", _study, "measure on rendered clips what the product claims")
    study.add_argument("what", choices=["ghosting"], help="ghosting: what scene flow takes out of a cloud's blur")
    study.add_argument("--out", type=Path, default=Path("out/ghosting"), help="folder for table and plot (%(default)s)")
    study.add_argument("--frames", type=int, default=61, help="frames of a clip, at 30 a second (%(default)s)")
    study.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="a clip each (1 2 3)")

    train = commands.add_parser("train", help="train a learned model on rendered worlds")
    models = train.add_subparsers(title="models", required=True, metavar="MODEL")
    flow = models.add_parser("flow", parents=[common], help="a network that finds optical flow")
    flow.add_argument("--model", default="raft_small", help="raft_small, raft_large or refiner (%(default)s)")
    flow.add_argument("--crop", type=_size, metavar="WxH", help="learn from parts of this size only (default: all)")
    flow.add_argument("--updates", type=int, default=8, help="of RAFT's flow while it learns (%(default)s)")
    _add_training(flow, batch=16, rate=4e-4, size=(320, 240))
    field = models.add_parser("field", parents=[common], help="the single-image depth field")
    field.set_defaults(model="field")
    _add_training(field, batch=8, rate=2e-3, size=(160, 120))

    adapt = command("adapt", _adapt, "teach the single-image field on recordings, without poses or depth")
    adapt.add_argument("bags", type=Path, nargs="+", metavar="BAG", help="rosbag2 folder, .mcap, .db3 or ROS 1 .bag")
    adapt.add_argument("--out", type=Path, required=True, help="folder for weights, log, pictures and checkpoints")
    adapt.add_argument("--steps", type=int, default=180, help="steps of learning (%(default)s)")
    adapt.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the folder")
    adapt.add_argument("--frames", type=int, help="most images to take of each recording (default: all)")
    add_config_arguments(adapt)
    _add_topic_arguments(adapt)
    _add_dds(command("dds", _dds, "join a ROS 2 graph without ROS: run the odometry, or play, record or show topics"))
    return parser


def _add_training(model: argparse.ArgumentParser, *, batch: int, rate: float, size: tuple[int, int]) -> None:
    """Adds what the training of every model is told; the values are those of one where nothing is said."""
    model.set_defaults(run=_train)
    model.add_argument("--out", type=Path, required=True, help="folder for weights, log, pictures and checkpoints")
    model.add_argument("--start", type=Path, metavar="WEIGHTS", help="weights to begin with (default: random ones)")
    model.add_argument("--steps", type=int, default=20_000, help="steps of the whole training (%(default)s)")
    model.add_argument("--batch", type=int, default=batch, help="pairs a step, all processes together (%(default)s)")
    model.add_argument("--rate", type=_positive, default=rate, help="greatest learning rate (%(default)s)")
    shape = "{}x{}".format(*size)
    model.add_argument("--size", type=_size, default=size, metavar="WxH", help=f"of what is learned from ({shape})")
    model.add_argument(
        "--pairs",
        type=int,
        default=0,
        help="pairs to render once and keep; 0 renders all along, on a GPU (%(default)s)",
    )
    model.add_argument("--minutes", type=float, default=0.0, help="stop after so long, to be resumed; 0 for never")
    model.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the folder")
    model.add_argument("--seed", type=int, default=1, help="the same seed gives the same weights (%(default)s)")
    model.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (%(default)s)")
    model.add_argument("--threads", type=int, default=1, help="CPU threads of torch (%(default)s)")


def _add_dds(dds: argparse.ArgumentParser) -> None:
    _add_graph_arguments(dds, {"ros_domain_id": None, "distro": "jazzy", "loopback": False, "remap": []})
    add_config_arguments(dds)
    dds.add_argument(
        "-p", dest="set", action="append", metavar="NAME:=VALUE", help="one parameter, as ros2 run takes it"
    )
    dds.add_argument("--params-file", dest="config", type=Path, metavar="YAML", help="parameter file, same as --config")
    dds.set_defaults(tool=_dds_odometry, node="flowodom")
    tools = dds.add_subparsers(title="tools", metavar="TOOL", help="the odometry runs when none is named")

    def tool(name: str, run: Callable[..., None], text: str) -> argparse.ArgumentParser:
        added = tools.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        _add_graph_arguments(added, {})
        added.set_defaults(tool=run, node=f"flowodom_{name}")
        return added

    play = tool("play", _dds_play, "play a bag onto the graph at its own pace")
    play.add_argument("bag", type=Path, help="rosbag2 folder, .mcap, .db3 or ROS 1 .bag")
    play.add_argument("--rate", type=_positive, default=1.0, help="multiple of the recorded speed (%(default)s)")
    play.add_argument("--loop", action="store_true", help="begin again at the end")
    play.add_argument("--clock", action="store_true", help="publish the recorded time on /clock")
    play.add_argument("--start", type=float, default=0.0, metavar="S", help="seconds to skip at the start")
    play.add_argument("--duration", type=float, metavar="S", help="seconds to play (default: all)")
    play.add_argument("--topics", nargs="+", metavar="TOPIC", help="topics to play (default: all)")
    play.add_argument(
        "--wait", type=float, default=0.0, metavar="S", help="most seconds to wait for subscribers before beginning"
    )

    record = tool("record", _dds_record, "record topics into a bag until stopped")
    record.add_argument("topics", nargs="*", metavar="TOPIC", help="topics to record (default: all)")
    record.add_argument("--out", type=Path, required=True, help="where to; a path that ends in .mcap becomes one file")
    record.add_argument("--overwrite", action="store_true", help="replace a recording that is there")

    echo = tool("echo", _dds_echo, "show the messages of a topic")
    echo.add_argument("topic", metavar="TOPIC")
    echo.add_argument("--count", type=int, help="how many messages (default: until stopped)")


def _add_graph_arguments(parser: argparse.ArgumentParser, defaults: dict[str, object]) -> None:
    """Adds what every participant needs; without defaults, so that the flags may stand before and after the tool."""
    group = parser.add_argument_group("graph")
    missing = argparse.SUPPRESS

    def default(name: str) -> object:
        return defaults.get(name, missing)

    group.add_argument(
        "--ros-domain-id", type=int, default=default("ros_domain_id"), help="default: ROS_DOMAIN_ID, else 0"
    )
    group.add_argument(
        "--distro",
        default=default("distro"),
        help="ROS 2 distribution of the others: humble, jazzy, kilted ... (jazzy)",
    )
    group.add_argument("--loopback", action="store_true", default=default("loopback"), help="keep to this machine")
    group.add_argument(
        "-r",
        dest="remap",
        action="append",
        default=default("remap"),
        metavar="FROM:=TO",
        help="rename a topic or the node",
    )


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that ``make_config`` reads."""
    group = parser.add_argument_group("parameters")
    group.add_argument("--config", type=Path, metavar="YAML", help="parameter file, as config/odometry.yaml")
    group.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="one parameter; may be given many times"
    )
    group.add_argument("--device", help="auto, cpu, cuda, cuda:1 ...")
    group.add_argument(
        "--camera-height",
        type=_positive,
        metavar="M",
        help="height of a single camera above the ground; makes it metric",
    )


def _add_topic_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("topics", "found by type and name where not given")
    for role, text in TOPIC_ROLES.items():
        group.add_argument(f"--{role.replace('_', '-')}", metavar="TOPIC", help=text)


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be greater than 0, got {text}")
    return value


def _pixel(text: str) -> tuple[float, float]:
    u, comma, v = text.partition(",")
    try:
        return float(u), float(v) if comma else float("nan")
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be U,V, got {text}") from None


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.partition("x")
    if not cross or not width.isdigit() or not height.isdigit():
        raise argparse.ArgumentTypeError(f"must be WIDTHxHEIGHT, got {text}")
    return int(width), int(height)


if __name__ == "__main__":
    sys.exit(main())
