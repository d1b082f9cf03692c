"""Maps of moving scenes: how many of their points lie on nothing that stands still.

    python benchmarks/mapping.py [--seeds N] [--first SEED] [--frames N] [--size 480x360] [--pictures FOLDER] [--out X]

Rooms of seeds that nothing was tuned on, with movers, seen by a hand-held depth camera with noise, are recorded and
replayed with `--map`, as a user would. Beside the map stands what a user without one has: the points of all clouds put
on top of each other by the poses of the same run, one point a voxel. A ghost is a point farther than ``GHOST`` from
every surface of the room that stands still, of which the exact geometry is known.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from flowodom.bags import BagReader
from flowodom.config import SessionConfig, override
from flowodom.frame import Frame
from flowodom.geometry import se3
from flowodom.odometry import Estimate
from flowodom.process import prepare
from flowodom.replay import replay
from flowodom.session import Placement
from flowodom.worlds import Rendering, Sensor, Step, World, hand_held, pinhole, room, sequence
from flowodom.worlds.recording import write_bag

Array = NDArray[np.float64]

GHOST = 0.1
"""Metres from all that stands still beyond which a point is a ghost: far more than noise and drift, less than any mover
is thick."""

VOXEL = 0.05
"""Metres."""

RANGE = 8.0
"""Metres up to which the depth camera measures."""

CEILING = 2.2
"""Metres of height above which nothing is drawn."""

SCENES: dict[str, tuple[int, float | None]] = {"still": (0, None), "2 movers": (2, None), "25 %": (1, 0.25)}
"""Movers, and the share of the image that the first covers (None: as it comes)."""

MEASURES = {
    "plain ghosts %": "share of the points of all clouds on top of each other that are ghosts",
    "map ghosts %": "share of the map's points that are",
    "plain points": "points of the former, one a voxel",
    "map points": "points of the map",
    "map off mm": "median distance of the map's points from the true surfaces",
    "seen %": "share of the true static voxels in view of three clouds or more in or beside which the map has a point",
}
"""What is printed, and what it is."""


def record(world: World, steps: Iterable[Step], folder: Path) -> tuple[Array, Array, list[Array]]:
    """Records a clip and replays it with a map.

    Args:
        world: The world.
        steps: The clip.
        folder: For the recording and its results.

    Returns:
        (N, 3) points of all clouds and (M, 3) points of the map, world; and the static points truly seen at each cloud.
    """
    import open3d

    truth: dict[int, Rendering] = {}

    def kept() -> Iterable[Step]:
        for step in steps:
            truth[step.frame.stamp] = replace(step.rendering, image=None, normal=None)
            yield step

    write_bag(folder / "clip.mcap", kept())
    poses: dict[int, torch.Tensor] = {}

    def observe(frame: Frame, estimate: Estimate, placement: Placement | None) -> None:
        if placement is not None:
            poses[frame.stamp] = placement.pose @ placement.extrinsic

    config = override(SessionConfig(), {"map.file": str(folder / "map.ply"), "map.voxel": VOXEL})
    replay(folder / "clip.mcap", folder, config, report=False, progress=False, observe=observe)
    first = min(poses)
    to_world = (truth[first].pose @ se3.inverse(poses[first])).numpy()
    clouds, seen = [], []
    with BagReader(folder / "odometry.mcap") as reader:
        for _, _, message in reader.messages(["/points"]):
            columns = np.frombuffer(message.data, dtype=np.float32).reshape(message.width, -1)[:, :3].astype(np.float64)
            stamp = message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec
            clouds.append(_moved(to_world @ poses[stamp].numpy(), columns))
            view = truth[stamp]
            still = view.points[(view.object_id == 0) & (view.depth < RANGE)]
            seen.append(se3.act(view.pose, still).numpy())
    points = np.asarray(open3d.io.read_point_cloud(folder / "map.ply").points)
    return np.concatenate(clouds), _moved(to_world, points), seen


def _moved(motion: Array, points: Array) -> Array:
    return points @ motion[:3, :3].T + motion[:3, 3]


def one_a_voxel(points: Array) -> Array:
    """Returns the mean of (N, 3) points in each voxel."""
    _, place, count = np.unique(np.floor(points / VOXEL).astype(int), axis=0, return_inverse=True, return_counts=True)
    sums = np.zeros((len(count), 3))
    np.add.at(sums, place.ravel(), points)
    return sums / count[:, None]


def distance(world: World, points: Array) -> Array:
    """Returns the (N,) distances of (N, 3) points from what stands still in a world."""
    return world.distance(torch.from_numpy(points)).numpy()


def seen_share(found: Array, seen: Sequence[Array]) -> float:
    """Returns the share of what was truly seen in three clouds or more that (N, 3) points cover."""
    code = np.array([1 << 40, 1 << 20, 1])
    cells = np.concatenate([np.unique((np.floor(s / VOXEL).astype(int) + 4096) @ code) for s in seen])
    wanted, count = np.unique(cells, return_counts=True)
    around = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3), -1).reshape(-1, 3)
    there = np.unique((np.floor(found / VOXEL).astype(int)[:, None] + around + 4096) @ code)
    return float(np.isin(wanted[count >= 3], there).mean())


def picture(world: World, clouds: Sequence[tuple[str, Array]], *, scale: int = 110) -> NDArray[np.uint8]:
    """Draws clouds side by side from above, x to the right, the ceiling cut off, ghosts red."""
    low, high = clouds[0][1].min(0)[:2] - 0.2, clouds[0][1].max(0)[:2] + 0.2
    width, height = (scale * (high - low)).astype(int)
    panels = []
    for name, points in clouds:
        ghost = distance(world, points) > GHOST
        panel = np.full((height + 40, width, 3), 255, dtype=np.uint8)
        shown = points[:, 2] < CEILING
        for ghosts in (False, True):
            chosen = points[shown & (ghost == ghosts)]
            chosen = chosen[np.argsort(chosen[:, 2])]
            shade = (215 - 150 * np.clip(chosen[:, 2] / CEILING, 0, 1)).astype(np.uint8)
            colours = np.tile([40, 40, 215], (len(chosen), 1)) if ghosts else np.repeat(shade[:, None], 3, 1)
            column = np.clip((scale * (chosen[:, 0] - low[0])).astype(int), 0, width - 3)
            row = np.clip((scale * (high[1] - chosen[:, 1])).astype(int), 0, height - 3)
            for k in range(9):
                panel[row + k // 3, column + k % 3] = colours
        text = f"{name}: {100 * ghost.mean():.1f} % ghosts"
        cv2.putText(panel, text, (12, height + 24), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (40, 40, 40), 1, cv2.LINE_AA)
        panels.append(panel)
    return np.concatenate(panels, axis=1)


def run(seed: int, scene: str, frames: int, size: tuple[int, int], pictures: Path | None) -> dict[str, float]:
    """Measures one clip; returns the ``MEASURES``."""
    movers, coverage = SCENES[scene]
    path = hand_held(seed, position=(-0.8, 0.0, 1.35), speed=0.3, turn=10.0)
    world = room(seed, movers=movers, coverage=coverage, path=path if coverage else None)
    sensor = Sensor(image_noise=1.5, depth_noise=0.0015, depth_range=(0.3, RANGE), seed=seed)
    steps = sequence(world, path, pinhole(*size), frames=frames, sensor=sensor)
    with tempfile.TemporaryDirectory() as folder:
        clouds, found, seen = record(world, steps, Path(folder))
    plain = one_a_voxel(clouds)
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        drawn = picture(world, (("all clouds", plain), ("map", found)))
        cv2.imwrite(str(pictures / f"{scene.replace(' ', '_')}-{seed}.png"), drawn)
    off = distance(world, found)
    return {
        "plain ghosts %": 100 * float((distance(world, plain) > GHOST).mean()),
        "map ghosts %": 100 * float((off > GHOST).mean()),
        "plain points": len(plain),
        "map points": len(found),
        "map off mm": 1e3 * float(np.median(off)),
        "seen %": 100 * seen_share(found, seen),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--first", type=int, default=301, help="first seed")
    parser.add_argument("--frames", type=int, default=150)
    parser.add_argument("--size", default="480x360")
    parser.add_argument("--scenes", default=",".join(SCENES))
    parser.add_argument("--pictures", type=Path, help="folder for pictures from above")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    prepare(options.threads)
    cv2.setNumThreads(options.threads)
    width, height = (int(n) for n in options.size.split("x"))
    results: dict[str, Any] = {}
    print(" " * 16 + "".join(f"{name:>16}" for name in MEASURES))
    for scene in options.scenes.split(","):
        clips = []
        for seed in range(options.first, options.first + options.seeds):
            clips.append(run(seed, scene, options.frames, (width, height), options.pictures))
            print(f"{scene:10} {seed:5}" + "".join(f"{clips[-1][name]:16.4g}" for name in MEASURES), flush=True)
        mean = {name: float(np.mean([clip[name] for clip in clips])) for name in MEASURES}
        print(f"{scene:11} mean" + "".join(f"{mean[name]:16.4g}" for name in MEASURES), flush=True)
        results[scene] = {"mean": mean, "clips": clips}
    if options.out:
        options.out.write_text(json.dumps({"definitions": MEASURES, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
