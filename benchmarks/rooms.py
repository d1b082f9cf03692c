"""Measures the odometry on procedural worlds, whose truth is exact: drift, rotation, movers, covariance, scale.

python benchmarks/rooms.py [--seeds N] [--frames N] [--size 320x240] [--noise 1.5] [--threads N]
                           [--scenes "hand-held;mover"] [--out rooms.json]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from flowodom.calibration import Calibration
from flowodom.config import OdometryConfig
from flowodom.geometry import PinholeCamera, se3
from flowodom.messages import MessageFactory
from flowodom.odometry import Estimate, Odometry
from flowodom.worlds import Sensor, Step, hand_held, pinhole, room, rotation, sequence, straight, street

CAMERA_HEIGHT = 1.65
"""Of the camera on the street, metres."""

HAND, CAR = 0.06, 0.54
"""Metres between the cameras of stereo pairs, in a hand and on a car."""

TURN = (0.001, 0.0015, -0.001)
"""Pitch, yaw and roll of a stereo pair beside its calibration, radians: about what recordings of cars have."""

READOUT = 0.025
"""Seconds from the first to the last row of a rolling shutter."""

COVERAGE = 0.25
"""Share of the image that the mover covers."""

MEASURES = {
    "tracked %": "share of the frames with a pose",
    "drift %": "distance between the last estimated and the last true position, over the length of the true path",
    "ate mm": "root mean square distance of estimated and true positions, both seen from the first camera",
    "deg/frame": "greatest error of the rotation from one frame to the next",
    "mm/frame": "greatest error of the translation from one frame to the next (one camera that only turns: in its own "
    "unit; hand-held: scaled to the truth)",
    "end deg": "rotation between the last estimated and the last true pose",
    "in 3 sigma %": "share of the frames in which each of the six parts of the pose's error is within 3 sigma",
    "width": "median over frames and parts of sigma over the error, times 0.674: 1 is right, above 1 is cautious",
    "scale %": "by how much estimated lengths are too large, where they are in metres",
    "readout ms": "time from first to last row as it was found in the end",
    "ms": "mean time of a frame by the clock",
}
"""What is printed, and what it is. Not a number where it has no meaning."""

Clip = Callable[[int, int, PinholeCamera, Sensor], Iterable[Step]]
"""Makes the steps of a scene from seed, number of frames, camera and sensor."""


def _hand_held(seed: int, frames: int, camera: PinholeCamera, sensor: Sensor) -> Iterator[Step]:
    return sequence(room(seed, movers=0), hand_held(seed), camera, frames=frames, sensor=sensor)


def _mover(seed: int, frames: int, camera: PinholeCamera, sensor: Sensor) -> Iterator[Step]:
    path = hand_held(seed)
    return sequence(room(seed, coverage=COVERAGE, path=path), path, camera, frames=frames, sensor=sensor)


def _rotation(seed: int, frames: int, camera: PinholeCamera, sensor: Sensor) -> Iterator[Step]:
    return sequence(room(seed, movers=0), rotation(seed), camera, frames=frames, sensor=sensor)


def _street(seed: int, frames: int, camera: PinholeCamera, sensor: Sensor) -> Iterator[Step]:
    wide = pinhole(3 * camera.width, camera.height + camera.height // 2, field_of_view=80.0)
    path = straight(position=(0.0, 0.0, CAMERA_HEIGHT), speed=8.0)
    return sequence(street(seed), path, wide, frames=frames // 2, rate=10.0, sensor=sensor)


def _exposure(seed: int, frames: int, camera: PinholeCamera, sensor: Sensor) -> Iterator[Step]:
    """A camera in a hand whose gain swings by 30 % and jumps by 15 %."""
    for k, step in enumerate(_hand_held(seed, frames, camera, sensor)):
        gain = 1 + 0.3 * np.sin(0.15 * k) + (0.15 if k // 40 % 2 else 0.0)
        image = np.clip(step.frame.image * gain, 0, 255).astype(np.uint8)
        yield replace(step, frame=replace(step.frame, image=image))


def _rolling(seed: int, frames: int, camera: PinholeCamera, sensor: Sensor) -> Iterator[Step]:
    """A camera in a hand whose rows are exposed one after another."""
    return _hand_held(seed, frames, camera, replace(sensor, readout=READOUT))


def _autofocus(seed: int, frames: int, camera: PinholeCamera, sensor: Sensor) -> Iterator[Step]:
    """A camera in a hand whose focal length swings by 3 %, as its CameraInfos say."""
    make = MessageFactory()
    for k, step in enumerate(_hand_held(seed, frames, camera, sensor)):
        frame, stretch = step.frame, 1 + 0.03 * np.sin(0.15 * k)
        focused = replace(camera, fx=stretch * camera.fx, fy=stretch * camera.fy)
        calibration = Calibration.from_info(make.camera_info(frame.stamp, "camera", focused), like=camera)
        zoom = cv2.getRotationMatrix2D((camera.cx, camera.cy), 0.0, stretch)
        size, edge = (camera.width, camera.height), cv2.BORDER_REPLICATE
        image = np.asarray(cv2.warpAffine(frame.image, zoom, size, borderMode=edge), dtype=np.uint8)
        depth = frame.depth
        if depth is not None:
            depth = np.asarray(cv2.warpAffine(depth, zoom, size, flags=cv2.INTER_NEAREST, borderMode=edge), np.float32)
            depth = calibration.rectify_depth(depth)
        seen = replace(frame, image=calibration.rectify(image), depth=depth, ignore=calibration.invalid)
        yield replace(step, frame=seen)


def _gaps(seed: int, frames: int, camera: PinholeCamera, sensor: Sensor) -> Iterator[Step]:
    """A quick hand, of whose frames a third are dropped at random."""
    path = hand_held(seed, speed=0.9, turn=75.0, tremor=2.5)
    generator = np.random.default_rng(seed)
    for k, step in enumerate(sequence(room(seed, movers=0), path, camera, frames=frames, sensor=sensor)):
        if k < 3 or generator.random() > 0.35:
            yield step


@dataclass(frozen=True)
class Scene:
    """What is rendered, and what the odometry is told of it.

    Attributes:
        clip: Makes its steps.
        depth: Whether the odometry is given the exact depth.
        baseline: Metres between the cameras of a stereo pair in its place; 0 for none.
        turn: How the pair is turned beside its calibration: pitch, yaw and roll, radians.
        camera_height: Metres, 0 where it is not told.
        still: Whether the camera only turns.
    """

    clip: Clip
    depth: bool = True
    baseline: float = 0.0
    turn: tuple[float, float, float] = (0.0, 0.0, 0.0)
    camera_height: float = 0.0
    still: bool = False

    @property
    def measured(self) -> bool:
        """Whether depths are measured."""
        return self.depth or self.baseline > 0


SCENES = {
    "hand-held": Scene(_hand_held),
    "mover": Scene(_mover),
    "rotation": Scene(_rotation, still=True),
    "rotation, one camera": Scene(_rotation, depth=False, still=True),
    "hand-held, one camera": Scene(_hand_held, depth=False),
    "rolling shutter": Scene(_rolling),
    "rolling shutter, one camera": Scene(_rolling, depth=False),
    "exposure": Scene(_exposure),
    "exposure, one camera": Scene(_exposure, depth=False),
    "autofocus": Scene(_autofocus),
    "autofocus, one camera": Scene(_autofocus, depth=False),
    "gaps": Scene(_gaps),
    "gaps, one camera": Scene(_gaps, depth=False),
    "hand-held, stereo": Scene(_hand_held, depth=False, baseline=HAND),
    "mover, stereo": Scene(_mover, depth=False, baseline=HAND),
    "hand-held, stereo, turned": Scene(_hand_held, depth=False, baseline=HAND, turn=TURN),
    "street": Scene(_street),
    "street, stereo": Scene(_street, depth=False, baseline=CAR),
    "street, stereo, turned": Scene(_street, depth=False, baseline=CAR, turn=TURN),
    "street, one camera": Scene(_street, depth=False, camera_height=CAMERA_HEIGHT),
}


def measure(scene: Scene, truth: Tensor, estimates: Sequence[Estimate], seconds: float) -> dict[str, float]:
    """Returns the figures of one clip.

    Args:
        scene: What it is.
        truth: (N, 4, 4) true poses ``T_world_camera``.
        estimates: Of the N frames.
        seconds: Time that they took.
    """
    figures = dict.fromkeys(MEASURES, float("nan"))
    figures["ms"] = 1e3 * seconds / len(estimates)
    tracked = [k for k, e in enumerate(estimates) if e.pose is not None]
    figures["tracked %"] = 100 * len(tracked) / len(estimates)
    if not scene.measured and not scene.still:
        # A single camera's unit of length changes once or twice at the start.
        tracked = [k for k in tracked if estimates[k].scale is estimates[-1].scale]
    if len(tracked) < 3:
        return figures
    found = torch.stack([pose for k in tracked if (pose := estimates[k].pose) is not None])
    true, found = se3.inverse(truth[tracked[0]]) @ truth[tracked], se3.inverse(found[0]) @ found
    positions = found[:, :3, 3]
    if not scene.still:
        scale = float((positions * true[:, :3, 3]).sum() / true[:, :3, 3].square().sum())
        if scene.measured or scene.camera_height:
            figures["scale %"] = 100 * (scale - 1)
        else:
            positions /= scale
    steps_true, steps_found = se3.inverse(true[:-1]) @ true[1:], se3.inverse(found[:-1]) @ found[1:]
    wrong = se3.log(se3.inverse(steps_found) @ steps_true)
    figures["deg/frame"] = float(wrong[:, 3:].norm(dim=-1).rad2deg().max())
    figures["mm/frame"] = 1e3 * float((steps_found - steps_true)[:, :3, 3].norm(dim=-1).max())
    figures["end deg"] = float(se3.log(se3.inverse(found[-1]) @ true[-1])[3:].norm().rad2deg())
    miss = (found - true)[:, :3, 3].norm(dim=-1)
    figures["ate mm"] = 1e3 * float(miss.square().mean().sqrt())
    if not scene.still:
        figures["drift %"] = 100 * float(miss[-1] / steps_true[:, :3, 3].norm(dim=-1).sum())
    if scene.measured:
        sigma = torch.stack([e.covariance.diagonal().sqrt() for e in estimates if e.covariance is not None])[1:]
        error = se3.log(se3.inverse(found) @ true)[1:].abs()
        figures["in 3 sigma %"] = 100 * float((error <= 3 * sigma).all(-1).double().mean())
        figures["width"] = 0.674 * float((sigma / error.clamp_min(1e-12)).median())
    return figures


def run(scene: Scene, steps: Iterable[Step]) -> dict[str, float]:
    """Runs the odometry on a clip and returns its figures."""
    odometry = Odometry(OdometryConfig(camera_height=scene.camera_height))
    truth, estimates, seconds = [], [], 0.0
    for step in steps:
        start = time.perf_counter()
        estimates.append(odometry.step(step.frame))
        seconds += time.perf_counter() - start
        truth.append(step.pose)
    figures = measure(scene, torch.stack(truth), estimates, seconds)
    if odometry.readout is not None:
        figures["readout ms"] = 1e3 * odometry.readout.seconds
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="worlds of each scene")
    parser.add_argument("--frames", type=int, default=90, help="frames of each clip; half of them on the street")
    parser.add_argument("--size", default="320x240", help="image size")
    parser.add_argument("--noise", type=float, default=1.5, help="standard deviation of image noise, grey levels")
    parser.add_argument("--threads", type=int, default=1, help="processors to run on; 0 for all")
    parser.add_argument("--scenes", default="", help="names separated by semicolons; all when left out")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    processors = sorted(os.sched_getaffinity(0))
    threads = options.threads or len(processors)
    os.sched_setaffinity(0, processors[-threads:])
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    camera = pinhole(*(int(n) for n in options.size.split("x")))
    wanted = options.scenes.split(";") if options.scenes else list(SCENES)
    if unknown := set(wanted) - set(SCENES):
        parser.error(f"there is no scene {', '.join(sorted(unknown))}; there are: {'; '.join(SCENES)}")

    print(f"{options.size}, {options.frames} frames, noise {options.noise:g}, {threads} thread(s)\n")
    print(f"{'':24}{'seed':>6}" + "".join(f"{m:>13}" for m in MEASURES))
    found: dict[str, list[dict[str, float]]] = {}
    for name in wanted:
        scene = SCENES[name]
        for seed in range(1, options.seeds + 1):
            sensor = Sensor(
                image_noise=options.noise, depth=scene.depth, baseline=scene.baseline, turn=scene.turn, seed=seed
            )
            figures = run(scene, scene.clip(seed, options.frames, camera, sensor))
            found.setdefault(name, []).append(figures)
            _print_row(name, str(seed), figures)
        medians = {m: float(np.median([f[m] for f in found[name]])) for m in MEASURES}
        _print_row(name, "median", medians)
    if "hand-held" in found and "mover" in found:
        drift = {name: np.mean([f["drift %"] for f in found[name]]) for name in ("hand-held", "mover")}
        print(f"\nmean drift with the mover over mean drift without: {drift['mover'] / drift['hand-held']:.2f}")
    print("\n" + "\n".join(f"{m}: {definition}" for m, definition in MEASURES.items()))
    if options.out:
        settings = {"size": options.size, "frames": options.frames, "noise": options.noise, "threads": threads}
        options.out.write_text(json.dumps(settings | {"figures": found, "definitions": MEASURES}, indent=2) + "\n")


def _print_row(name: str, seed: str, figures: dict[str, float]) -> None:
    print(f"{name:24}{seed:>6}" + "".join(f"{figures[m]:>13.3g}" for m in MEASURES), flush=True)


if __name__ == "__main__":
    main()
