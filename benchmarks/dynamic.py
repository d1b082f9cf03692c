"""What moves on its own: masks, objects and drift on worlds whose truth is exact, and a real recording with a mover.

    python benchmarks/dynamic.py worlds [--seeds N] [--frames N] [--size 480x360] [--threads N] [--out worlds.json]
    python benchmarks/dynamic.py recording BAG [--frames N] [--coverage 0,0.3,0.5] [--peers lk_pnp,dis_pnp]
                                 [--pictures FOLDER] [--out recording.json]
    python benchmarks/dynamic.py cost [--first SEED] [--scene "4 movers"] [--frames N] [--rounds N] [--out cost.json]

Worlds: rooms of seeds that nothing was tuned on, with 0, 1, 2 and 4 movers and with one that covers 25 and 50 percent
of the image; the same camera path once without movers. Recording: a strongly textured plane is rendered in front of a
real one, in colour and depth, with its exact mask, so that it covers a given share of the image on average. Cost: a
world with movers and the same path without, frame by frame side by side.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from flowodom.config import OdometryConfig
from flowodom.flow.points import PATCH
from flowodom.frame import Frame
from flowodom.geometry import PinholeCamera, se3
from flowodom.odometry import Estimate, Odometry
from flowodom.process import prepare
from flowodom.scene_flow.forecast import HORIZONS, Way, judge
from flowodom.scene_flow.object_tracker import COASTING, ObjectTracker
from flowodom.scene_flow.objects import MovingObject
from flowodom.worlds import Sensor, Step, hand_held, pinhole, room, sequence

sys.path.insert(0, str(Path(__file__).parent))
from peers import Array, Method, Shot, evaluate_poses, methods, shots

MEASURES = {
    "coverage %": "share of the image that movers cover",
    "iou": "median over frames of intersection over union of the mask with that of what moves (over 1 % of the image)",
    "false %": "share of all pixels taken for moving that belong to the static world",
    "missed %": "share of all pixels that move and are not found",
    "speed err %": "median error of the velocity of an object's middle over its true speed, for speeds above 0.1 m/s",
    "switches": "times a body changes its number, for 100 frames",
    "in sight": "of these, those of bodies that were seen within the last second",
    "ate mm": "root mean square distance of positions after the best rigid alignment",
    "bound mm": "the same for an odometry that is told the movers' true pixels and uses no point near them",
    "drift %": "distance between the last estimated and true position, over the length of the path",
    "tracked %": "share of the frames with a pose",
    "ms": "mean time of a frame, objects too",
    "moving ms": "of these, decomposition",
    "objects ms": "of these, objects",
}
"""What is printed, and what it is."""

STILL = 0.02
"""Metres that a body must have moved within ``MEMORY`` frames to count as moving."""

MEMORY = 15


@dataclass
class Score:
    """Collects what one clip tells."""

    coverage: list[float] = field(default_factory=list)
    ious: list[float] = field(default_factory=list)
    false: list[float] = field(default_factory=list)
    missed: list[float] = field(default_factory=list)
    speed: list[float] = field(default_factory=list)
    switches: int = 0
    in_sight: int = 0
    owners: dict[int, int] = field(default_factory=dict)
    met: dict[int, int] = field(default_factory=dict)
    estimates: list[Estimate] = field(default_factory=list)
    truth: list[Array] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    object_seconds: list[float] = field(default_factory=list)

    def mask(self, found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> None:
        """Takes in the masks of one frame."""
        self.coverage.append(float(truth.mean()))
        self.false.append(float((found & ~truth).mean()))
        self.missed.append(float((truth & ~found).mean()))
        if truth.mean() > 0.01:
            self.ious.append(float((found & truth).sum() / (found | truth).sum()))

    def objects(
        self,
        objects: Sequence[MovingObject],
        ids: NDArray[Any],
        motions: dict[int, Array],
        start: Array,
        interval: float,
    ) -> None:
        """Compares objects with the bodies that they lie on.

        Args:
            objects: Objects, in the odometry's frame.
            ids: (H, W) true body of every pixel.
            motions: Each body's (4, 4) motion in the world since the frame before.
            start: (4, 4) ``T_world_odom``.
            interval: Seconds since then.
        """
        met: set[int] = set()
        seen = [(known, known.mask) for known in objects if known.mask is not None]
        for known, mask in sorted(seen, key=lambda pair: -int(pair[1].sum())):
            body = int(np.bincount(cv2.resize(ids, mask.shape[::-1], interpolation=cv2.INTER_NEAREST)[mask]).argmax())
            if body == 0 or body in met:
                continue
            met.add(body)
            if self.owners.get(body, known.id) != known.id:
                self.switches += 1
                self.in_sight += (len(self.truth) - self.met[body]) * interval <= COASTING
            self.owners[body], self.met[body] = known.id, len(self.truth)
            middle = start @ np.append(known.centre.numpy(), 1)
            true = (middle - np.linalg.inv(motions[body]) @ middle)[:3] / interval
            speed = float(np.linalg.norm(true))
            if speed > 0.1:
                found = start[:3, :3] @ known.velocity.numpy()
                self.speed.append(float(np.linalg.norm(found - true)) / speed)

    def figures(self) -> dict[str, float]:
        """Returns the ``MEASURES``."""
        result = dict.fromkeys(MEASURES, math.nan)
        frames = max(len(self.coverage), 1)
        result["coverage %"] = 100 * _mean(self.coverage)
        result["iou"] = float(np.median(self.ious)) if self.ious else math.nan
        result["false %"], result["missed %"] = 100 * _mean(self.false), 100 * _mean(self.missed)
        result["speed err %"] = 100 * float(np.median(self.speed)) if self.speed else math.nan
        result["switches"] = 100 * self.switches / frames if self.owners else math.nan
        result["in sight"] = 100 * self.in_sight / frames if self.owners else math.nan
        stamps = [e.stamp for e in self.estimates]
        poses = [None if e.pose is None else e.pose.numpy() for e in self.estimates]
        result |= accuracy(stamps, poses, np.stack(self.truth), [e.segment for e in self.estimates])
        if len(self.seconds) > 2:
            result["ms"] = 1e3 * _mean(self.seconds[2:])
            result["moving ms"] = 1e3 * _mean([e.timing.get("moving", 0.0) for e in self.estimates[2:]])
            result["objects ms"] = 1e3 * _mean(self.object_seconds[2:])
        return result

    def forecast(self) -> dict[str, float]:
        """Returns the median miss of the camera's forecast, metres, for each horizon."""
        kept = [e for e in self.estimates if e.pose is not None]
        twists = [
            se3.log(e.motion) / e.interval if e.motion is not None else torch.full((6,), torch.nan, dtype=torch.float64)
            for e in kept
        ]
        stamps = np.array([e.stamp for e in kept], dtype=np.int64)
        segments = np.array([e.segment for e in kept], dtype=np.int64)
        poses = torch.stack([e.pose for e in kept if e.pose is not None])
        found = judge(Way(stamps, poses, torch.stack(twists), segments))
        return {f"{s:g} s": float(miss) for s, miss in zip(HORIZONS, found.translation, strict=True)}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def accuracy(
    stamps: Sequence[int], poses: Sequence[Array | None], truth: Array, segments: Sequence[int] | None = None
) -> dict[str, float]:
    """Returns how far poses are off, by the names of ``MEASURES``."""
    found = evaluate_poses(stamps, poses, truth, segments=segments)
    known = [k for k, pose in enumerate(poses) if pose is not None]
    drift = math.nan
    if known:
        first, last = known[0], known[-1]
        way = np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1).sum()
        a = np.linalg.inv(np.asarray(poses[first])) @ np.asarray(poses[last])
        b = np.linalg.inv(truth[first]) @ truth[last]
        drift = 100 * float(np.linalg.norm(a[:3, 3] - b[:3, 3]) / way)
    return {
        "ate mm": 1e3 * found["ate_se3_rmse"],
        "drift %": drift,
        "tracked %": 100 * len(known) / len(poses),
    }


def follow(score: Score, odometry: Odometry, tracker: ObjectTracker, frame: Frame, truth: Array) -> Estimate:
    """Gives one frame to odometry and tracker, and keeps what comes."""
    begin = time.perf_counter()
    estimate = odometry.step(frame)
    stepped = time.perf_counter()
    if estimate.pose is not None and estimate.motion is not None:
        tracker.update(estimate.moving, estimate.pose, estimate.motion, estimate.stamp, estimate.interval, frame.image)
    done = time.perf_counter()
    score.seconds.append(done - begin)
    score.object_seconds.append(done - stepped)
    score.estimates.append(estimate)
    score.truth.append(truth)
    return estimate


# --------------------------------------------------------------------------------------------------------------------
# Worlds
# --------------------------------------------------------------------------------------------------------------------

SCENES: dict[str, tuple[int, float | None]] = {
    "still": (0, None),
    "1 mover": (1, None),
    "2 movers": (2, None),
    "4 movers": (4, None),
    "25 %": (1, 0.25),
    "50 %": (1, 0.5),
    "25 % and 3": (4, 0.25),
}
"""Movers, and the share of the image that the first covers (None: as it comes)."""


def clip(seed: int, scene: str, frames: int, camera: PinholeCamera) -> Iterator[Step]:
    """Yields the frames of one clip, with their truth."""
    movers, coverage = SCENES[scene]
    path = hand_held(seed)
    world = room(seed, movers=movers, coverage=coverage, path=path if coverage else None)
    sensor = Sensor(image_noise=1.5, depth_noise=0.0015, depth_range=(0.3, 8.0), seed=seed)
    return sequence(world, path, camera, frames=frames, sensor=sensor)


def run_world(
    seed: int, scene: str, frames: int, camera: PinholeCamera, peers: Sequence[str]
) -> tuple[dict[str, float], dict[str, dict[str, float]], dict[str, float]]:
    """Runs one clip; returns its figures, those of peers, and the forecast's misses."""
    score, odometry, tracker = Score(), Odometry(), ObjectTracker()
    makers = methods(OdometryConfig(), depth=True)
    runs = {name: makers[name]() for name in peers}
    poses: dict[str, list[Array | None]] = {name: [] for name in peers}
    told, bound = Odometry(), list[Array | None]()
    bodies: list[Array] = []
    for step in clip(seed, scene, frames, camera):
        estimate = follow(score, odometry, tracker, step.frame, step.pose.numpy())
        shot = Shot(step.frame, step.frame.grey, step.pose.numpy())
        for name, run in runs.items():
            poses[name].append(run(shot))
        bodies.append(step.rendering.bodies.numpy())
        ids = step.rendering.object_id.numpy().astype(np.uint8)
        near = cv2.dilate((ids > 0).astype(np.uint8), np.ones(2 * [PATCH[0] + 2], dtype=np.uint8)) > 0
        pose = told.step(replace(step.frame, ignore=near)).pose
        bound.append(None if pose is None else pose.numpy())
        if len(bodies) < 2:
            continue
        back = bodies[max(0, len(bodies) - 1 - MEMORY)]
        moved = [k for k in range(1, len(back)) if np.linalg.norm(bodies[-1][k, :3, 3] - back[k, :3, 3]) > STILL]
        found = np.zeros(ids.shape, dtype=np.bool_) if estimate.moving is None else estimate.moving.mask(ids.shape)
        score.mask(found, np.isin(ids, moved))
        if estimate.interval > 0:
            motions = {k: bodies[-1][k] @ np.linalg.inv(bodies[-2][k]) for k in range(1, len(back))}
            score.objects(tracker.objects, ids, motions, score.truth[0], estimate.interval)
    stamps = [e.stamp for e in score.estimates]
    others = {name: accuracy(stamps, values, np.stack(score.truth)) for name, values in poses.items()}
    figures = score.figures()
    figures["bound mm"] = accuracy(stamps, bound, np.stack(score.truth))["ate mm"]
    return figures, others, score.forecast()


def worlds(options: argparse.Namespace) -> dict[str, Any]:
    """Measures on worlds; returns and prints all figures."""
    width, height = (int(n) for n in options.size.split("x"))
    camera = pinhole(width, height)
    peers = [p for p in options.peers.split(",") if p]
    results: dict[str, Any] = {}
    print(f"{options.frames} frames {options.size}, seeds {options.first} to {options.first + options.seeds - 1}\n")
    print(" " * 14 + "".join(f"{name:>12}" for name in MEASURES) + "".join(f"{p + ' ate':>14}" for p in peers))
    for scene in options.scenes.split(","):
        clips = [
            run_world(seed, scene, options.frames, camera, peers)
            for seed in range(options.first, options.first + options.seeds)
        ]
        row = {name: float(np.nanmedian([c[0][name] for c in clips])) for name in MEASURES}
        others = {p: {k: float(np.nanmedian([c[1][p][k] for c in clips])) for k in clips[0][1][p]} for p in peers}
        misses = {k: float(np.nanmedian([c[2][k] for c in clips])) for k in clips[0][2]}
        results[scene] = {"ours": row, **others, "forecast m": misses, "clips": [c[0] for c in clips]}
        print(
            f"{scene:14}" + "".join(f"{row[name]:12.3g}" for name in MEASURES)
            + "".join(f"{others[p]['ate mm']:14.3g}" for p in peers), flush=True,
        )  # fmt: skip
    for scene, result in results.items():
        print(
            f"forecast of the camera, {scene}: " + ", ".join(f"{k}: {v:.3f} m" for k, v in result["forecast m"].items())
        )
    return results


# --------------------------------------------------------------------------------------------------------------------
# What movers cost
# --------------------------------------------------------------------------------------------------------------------


def cost(options: argparse.Namespace) -> dict[str, Any]:
    """Measures the processor time of the odometry's thread with movers and without; returns and prints all figures.

    Each frame counts with the least of several rounds, in which the clips go side by side: what else the processor is
    busy with can only add to it.
    """
    camera = pinhole(*(int(n) for n in options.size.split("x")))
    still, moving = (
        [step.frame for step in clip(options.first, scene, options.frames, camera)]
        for scene in ("still", options.scene)
    )
    seconds = np.full((options.frames, 3), np.inf)
    for _ in range(options.rounds):
        one, other, tracker = Odometry(), Odometry(), ObjectTracker()
        for n, (frame, crowded) in enumerate(zip(still, moving, strict=True)):
            begin = time.thread_time()
            one.step(frame)
            alone = time.thread_time()
            estimate = other.step(crowded)
            stepped = time.thread_time()
            if estimate.pose is not None and estimate.motion is not None:
                interval = estimate.interval
                tracker.update(estimate.moving, estimate.pose, estimate.motion, estimate.stamp, interval, crowded.image)
                _ = tracker.objects
            done = time.thread_time()
            seconds[n] = np.minimum(seconds[n], (alone - begin, stepped - alone, done - stepped))
    # The first frames start everything up.
    alone, stepped, objects = 1e3 * seconds[2:].mean(0)
    result = {
        "still ms": alone,
        "movers ms": stepped,
        "objects ms": objects,
        "movers %": 100 * (stepped / alone - 1),
        "movers and objects %": 100 * ((stepped + objects) / alone - 1),
    }
    print(", ".join(f"{name} {value:.1f}" for name, value in result.items()))
    return result


# --------------------------------------------------------------------------------------------------------------------
# A recording with a rendered plane in front
# --------------------------------------------------------------------------------------------------------------------

PLANE_DISTANCE = 0.95
"""Metres from the camera to the plane's middle, on average."""

PLANE_NOISE = 0.0015
"""Standard deviation of the plane's inverse depth, 1/m, as the depth camera's own."""

TEXELS = 1024


def texture(seed: int = 3) -> NDArray[np.uint8]:
    """Returns a (TEXELS, TEXELS, 3) picture with strong detail at every scale."""
    rng = np.random.default_rng(seed)
    image = np.zeros((TEXELS, TEXELS, 3), dtype=np.float32)
    for cells, strength in ((8, 60), (32, 80), (128, 80), (256, 50)):
        noise = rng.uniform(-strength, strength, (cells, cells, 3)).astype(np.float32)
        image += cv2.resize(noise, (TEXELS, TEXELS), interpolation=cv2.INTER_CUBIC)
    return np.clip(128 + image, 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Plane:
    """A rectangle that goes to and fro beside the optical axis, turning a little.

    Attributes:
        half: Half its width and height, metres.
        middle: Of its way, metres to the right of the axis.
        sweep: Half the length of its way, metres.
    """

    half: tuple[float, float]
    middle: float
    sweep: float

    def pose(self, seconds: float) -> Array:
        """Returns the (4, 4) ``T_camera_plane``."""
        turn = 2 * math.pi * seconds
        result = np.eye(4)
        angles = (0.08 * math.sin(turn / 2.9), 0.25 * math.sin(turn / 3.7), 0.1 * math.sin(turn / 3.3))
        result[:3, :3] = cv2.Rodrigues(np.array(angles))[0]
        result[:3, 3] = (
            self.middle + self.sweep * math.cos(turn / 3.1 + 0.7),
            0.05 * math.sin(turn / 2.3),
            PLANE_DISTANCE + 0.08 * math.sin(turn / 4.1),
        )
        return result

    def depth(self, camera: PinholeCamera, seconds: float) -> tuple[Array, Array]:
        """Returns (H, W) depth on it, NaN beside it, and (H, W, 2) places on it, metres."""
        pose = self.pose(seconds)
        rays = camera.rays(camera.pixels(dtype=torch.float64)).numpy()
        distance = (pose[:3, 2] @ pose[:3, 3]) / (rays @ pose[:3, 2])
        places = (rays * distance[..., None] - pose[:3, 3]) @ pose[:3, :2]
        on = (distance > 0) & (np.abs(places) < self.half).all(-1)
        return np.where(on, distance, np.nan), places


def covering(share: float, camera: PinholeCamera, seconds: float) -> Plane:
    """Returns a plane that covers ``share`` of the image on average over so many seconds, never nearly all of it."""
    small = camera.scaled(0.125)
    low, high = 0.05, 1.0
    for _ in range(12):
        width = 0.5 * (low + high)
        plane = Plane((width, 0.42), 0.31, 0.33)
        seen = [np.isfinite(plane.depth(small, t)[0]).mean() for t in np.arange(0, seconds, 0.1)]
        low, high = (width, high) if np.mean(seen) < share else (low, width)
    return plane


def composite(frames: Iterable[Shot], share: float) -> Iterator[tuple[Shot, NDArray[np.bool_]]]:
    """Yields shots with the plane in front of them, hidden by what is nearer, and its mask; as they are for share 0."""
    picture, rng = texture(), np.random.default_rng(0)
    plane, start = None, 0
    for shot in frames:
        camera = shot.frame.camera
        if share <= 0:
            yield shot, np.zeros(shot.grey.shape, dtype=np.bool_)
            continue
        if plane is None:
            plane, start = covering(share, camera, 8.0), shot.stamp
        depth, places = plane.depth(camera, (shot.stamp - start) * 1e-9)
        assert shot.depth is not None
        with np.errstate(invalid="ignore"):
            mask = np.isfinite(depth) & ~(shot.depth < depth)
        texels = ((places + 0.8) * (TEXELS / 1.6)).astype(np.float32)
        colours = cv2.remap(picture, texels[..., 0], texels[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        image = shot.frame.image if shot.frame.image.ndim == 3 else np.repeat(shot.frame.image[..., None], 3, -1)
        image = np.where(mask[..., None], colours, image).astype(np.uint8)
        noisy = 1 / (1 / depth + rng.normal(0, PLANE_NOISE, depth.shape))
        frame = replace(shot.frame, image=image, depth=np.where(mask, noisy, shot.depth).astype(np.float32))
        yield Shot(frame, frame.grey, shot.truth), mask


def run_recording(
    bag: Path, share: float, frames: int | None, peers: dict[str, Callable[[], Method]], pictures: Path | None
) -> dict[str, Any]:
    """Runs ours and peers on one recording with the plane in front."""
    score, odometry, tracker = Score(), Odometry(), ObjectTracker()
    runs = {name: make() for name, make in peers.items()}
    poses: dict[str, list[Array | None]] = {name: [] for name in peers}
    for n, (shot, mask) in enumerate(composite(shots(bag, frames), share)):
        estimate = follow(score, odometry, tracker, shot.frame, shot.truth)
        for name, run in runs.items():
            poses[name].append(run(shot))
        found = np.zeros_like(mask) if estimate.moving is None else estimate.moving.mask(mask.shape)
        if n > 0:
            score.mask(found, mask)
        if pictures is not None and n % 20 == 5:
            pictures.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(pictures / f"{share:.2f}-{n:04d}.png"), compared(shot.frame.image, found, mask)[..., ::-1])
    stamps = [e.stamp for e in score.estimates]
    truth = np.stack(score.truth)
    reasons = sorted({e.reason for e in score.estimates if e.reason})
    ours = score.figures() | {"largest %": 100 * max(score.coverage), "reasons": reasons}
    others = {name: accuracy(stamps, values, truth) for name, values in poses.items()}
    return {"ours": ours, **others, "forecast m": score.forecast()}


def compared(image: Array, found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> Array:
    """Returns the image with what was found right in green, wrongly in red, and what was missed in blue."""
    shown = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=-1)
    tint = np.zeros_like(shown)
    tint[found & truth], tint[found & ~truth], tint[truth & ~found] = (0, 255, 0), (255, 0, 0), (0, 0, 255)
    return np.where((found | truth)[..., None], shown // 2 + tint // 2, shown)


def recording(options: argparse.Namespace) -> dict[str, Any]:
    """Measures on a recording; returns and prints all figures."""
    makers = methods(OdometryConfig(), depth=True)
    peers = {name: makers[name] for name in options.peers.split(",") if name}
    results = {}
    for share in (float(s) for s in options.coverage.split(",")):
        result = run_recording(options.bag, share, options.frames, peers, options.pictures)
        results[f"{share:g}"] = result
        ours = result["ours"]
        print(
            f"{share:4.0%}: covered {ours['coverage %']:.1f} % (at most {ours['largest %']:.0f} %), "
            f"iou {ours['iou']:.3f}, "
            f"false {ours['false %']:.2f} %, missed {ours['missed %']:.2f} %, tracked {ours['tracked %']:.1f} %, "
            f"{ours['ms']:.1f} ms (moving {ours['moving ms']:.1f}, objects {ours['objects ms']:.1f})\n"
            "      ATE mm: " + ", ".join(f"{name} {result[name]['ate mm']:.1f}" for name in ("ours", *peers))
            + "".join(f"\n      {reason}" for reason in ours["reasons"]), flush=True,
        )  # fmt: skip
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    first = kinds.add_parser("worlds")
    first.add_argument("--seeds", type=int, default=4)
    first.add_argument("--first", type=int, default=101, help="first seed")
    first.add_argument("--size", default="480x360")
    first.add_argument("--scenes", default=",".join(SCENES))
    first.set_defaults(run=worlds)
    second = kinds.add_parser("recording")
    second.add_argument("bag", type=Path)
    second.add_argument("--coverage", default="0,0.3,0.5")
    second.add_argument("--pictures", type=Path, help="folder for pictures of the masks")
    second.set_defaults(run=recording)
    third = kinds.add_parser("cost")
    third.add_argument("--first", type=int, default=401, help="seed")
    third.add_argument("--size", default="480x360")
    third.add_argument("--scene", default="4 movers", choices=SCENES)
    third.add_argument("--rounds", type=int, default=3)
    third.set_defaults(run=cost)
    for each in (first, second):
        each.add_argument("--peers", default="lk_pnp")
    for each in (first, second, third):
        each.add_argument("--frames", type=int)
        each.add_argument("--threads", type=int, default=1)
        each.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, processors[-options.threads :])
    prepare(options.threads)
    cv2.setNumThreads(options.threads)
    if options.kind != "recording" and options.frames is None:
        options.frames = 90
    results = options.run(options)
    if options.out:
        options.out.write_text(json.dumps({"definitions": MEASURES, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
