"""Compares dense optical flow methods on procedural worlds, whose flow is known exactly, and on recordings.

python benchmarks/flow.py [BAG ...] [--frames N] [--size 320x240] [--threads N] [--device cpu] [--noise 1.5]
                          [--methods dis,lucas_kanade] [--weights raft=FILE] [--note] [--out flow.json]

Bags of a depth camera with true poses take the place of the worlds. Their truth is the flow that the measured depth and
the true motion induce, at the size that the odometry works at; it is as good as those, and has errors of its own. What
moves by itself, and what a nearer thing hides, is left out.

With --note every network's share of DIS's mean error on the worlds is written into its file of weights: of those that
come with flowodom, flow.method=auto takes by it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from peers import shots
from torch import Tensor

from flowodom import weights
from flowodom.config import FlowConfig
from flowodom.flow.methods import METHODS, NETWORKS, SHARE, make_flow
from flowodom.worlds import Sensor, pinhole, sequence
from flowodom.worlds.recording import scene

SCENES = {
    "hand-held 30 Hz": ("room", "hand_held", 30.0, 1),
    "hand-held 10 Hz": ("room", "hand_held", 10.0, 2),
    "robot 15 Hz": ("room", "wheeled", 15.0, 3),
    "turning 15 Hz": ("room", "rotation", 15.0, 4),
    "street 10 Hz": ("street", "straight", 10.0, 5),
    "walk 15 Hz": ("street", "hand_held", 15.0, 6),
}
"""What is rendered: the world, the camera's motion, frames a second, and the seed of both. Two things move in each."""

MEASURES = {
    "mean": "mean distance, pixels, between found and true flow of the points seen in both images",
    "median": "median of the same",
    "rigid": "mean of the same for recordings, less what an error of the true motion and a rolling shutter explain",
    "floor": "mean of what these explain: what an exact flow would seem to be off by",
    "over 1 px %": "share of these points whose flow is off by more than a pixel",
    "hidden mean": "mean distance, pixels, for the points that the other image does not show",
    "in 3 sigma %": "share of these points whose error is within 3 sigma of the variance given with the flow",
    "whitened": "median squared error over the variance given, over its expectation: 1 is right, below 1 is cautious",
    "ms": "mean time of one pair by the clock, both directions",
}
"""What is printed, and what it is."""


@dataclass(frozen=True)
class Pair:
    """Two images, and the (H, W, 2) flow from the first to the second with the (H, W) places hidden in the second."""

    scene: str
    previous: Tensor
    current: Tensor
    flow: Tensor
    hidden: Tensor
    motions: Tensor | None = None
    """(H, W, 2, 9): how flow changes with the camera's motion and with its turning from first to last row."""


def pairs(frames: int, width: int, height: int, noise: float) -> Iterator[Pair]:
    """Yields ``frames - 1`` image pairs of each scene; ``noise`` in grey levels."""
    for name, (kind, motion, rate, seed) in SCENES.items():
        world, path = scene(kind, motion, seed=seed, movers=2)
        sensor = Sensor(image_noise=noise, depth=False, seed=seed)
        previous = None
        for step in sequence(world, path, pinhole(width, height), frames=frames, rate=rate, sensor=sensor, flow=True):
            grey = torch.from_numpy(step.frame.grey)
            if previous is not None and step.flow is not None:
                yield Pair(name, previous, grey, step.flow.forward.float(), step.flow.forward_hidden)
            previous = grey


GAP = 2
"""Frames between the two of a pair from a recording."""

DEPTH_STEP = 0.03
"""Relative difference of depth beyond which a point of a recording is hidden, or has moved by itself."""


def recorded_pairs(bag: Path, frames: int) -> Iterator[Pair]:
    """Yields ``frames - 1`` pairs spread over a recording with depth and true poses."""
    every = list(shots(bag))
    most = FlowConfig().max_pixels
    starts = np.unique(np.linspace(0, len(every) - 1 - GAP, max(1, frames - 1)).astype(int))
    for first, second in ((every[k], every[k + GAP]) for k in starts):
        camera = first.frame.camera
        scale = min(1.0, (most / (camera.width * camera.height)) ** 0.5)
        size = (round(camera.width * scale), round(camera.height * scale))
        before, after = (
            torch.from_numpy(cv2.resize(shot.grey, size, interpolation=cv2.INTER_AREA)) for shot in (first, second)
        )
        column = (torch.arange(size[0], dtype=torch.float64) + 0.5) / scale - 0.5
        row = (torch.arange(size[1], dtype=torch.float64) + 0.5) / scale - 0.5
        pixels = torch.stack(torch.meshgrid(column, row, indexing="xy"), dim=-1)
        depth = _nearest(first.depth, pixels)
        motion = torch.from_numpy(np.linalg.inv(second.truth) @ first.truth)
        points = camera.unproject(pixels, depth) @ motion[:3, :3].T + motion[:3, 3]
        landing = camera.project(points)
        seen = _nearest(second.depth, landing)
        wrong = ~((seen - points[..., 2]).abs() < DEPTH_STEP * points[..., 2])
        smooth = _smooth(first.depth, pixels)
        flow = ((landing - pixels) * scale).float()
        yield Pair(bag.stem, before, after, flow, wrong | ~smooth, _motions(points, camera.focal * scale))


def _motions(points: Tensor, focal: float) -> Tensor:
    """Returns (H, W, 2, 9) derivatives of where (H, W, 3) points are seen, by translation, rotation and shear."""
    x, y, z = points.unbind(-1)
    zero = torch.zeros_like(z)
    projection = focal * torch.stack((1 / z, zero, -x / z**2, zero, 1 / z, -y / z**2), dim=-1)
    turn = torch.stack((zero, z, -y, -z, zero, x, y, -x, zero), dim=-1)
    projection, turn = projection.view(*z.shape, 2, 3), turn.view(*z.shape, 3, 3)
    rotation = projection @ turn
    row = torch.linspace(-0.5, 0.5, len(z), dtype=z.dtype)[:, None, None, None]
    return torch.cat((projection, rotation, row * rotation), dim=-1)


def _without_motion(difference: Tensor, motions: Tensor) -> Tensor:
    """Returns (N, 2) differences of flow less what an error of the true motion, with (N, 2, 9) motions, explains."""
    left, weight = difference.double(), torch.ones(len(difference), dtype=torch.float64)
    for _ in range(10):
        a = motions * weight[:, None, None]
        solution = torch.linalg.lstsq(a.flatten(0, 1), (difference.double() * weight[:, None]).flatten()[:, None])
        left = difference - (motions @ solution.solution)[..., 0]
        weight = 1 / (1 + (left.norm(dim=-1) / 0.5) ** 2).sqrt()
    return left


def _nearest(depth: Any, pixels: Tensor) -> Tensor:
    """Returns the depth at the nearest pixel, NaN outside of the image."""
    height, width = depth.shape
    column, row = pixels.nan_to_num(-1e3).round().long().unbind(-1)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    found = torch.from_numpy(depth).double()[row.clamp(0, height - 1), column.clamp(0, width - 1)]
    return torch.where(inside, found, torch.nan)


def _smooth(depth: Any, pixels: Tensor) -> Tensor:
    """Returns where depth has no edge within a few pixels: registration is least exact there."""
    filled = np.nan_to_num(depth, nan=0.0)
    kernel = np.ones((9, 9), np.uint8)
    step = cv2.dilate(filled, kernel) - cv2.erode(filled, kernel)
    return _nearest(step, pixels) < DEPTH_STEP * _nearest(filled, pixels)


Method = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""(previous, current) -> forward flow and its variance, None where the method gives none. Works in both directions."""


def farneback(previous: Tensor, current: Tensor) -> tuple[Tensor, None]:
    """OpenCV's Farneback flow, both ways as the others do."""
    track: Any = cv2.calcOpticalFlowFarneback
    images = previous.cpu().numpy(), current.cpu().numpy()
    forward, _ = (track(*two, None, 0.5, 5, 15, 5, 5, 1.1, 0) for two in (images, images[::-1]))
    return torch.from_numpy(forward), None


def methods(files: dict[str, str]) -> dict[str, Method]:
    """Returns what is compared, by name; ``files`` of weights by method, beside those that ship."""

    def of(name: str) -> Method:
        method = make_flow(FlowConfig(method=name, weights=files.get(name, "")))

        def run(previous: Tensor, current: Tensor) -> tuple[Tensor, Tensor | None]:
            field = method(previous, current)
            return field.forward.cpu(), field.forward_variance.cpu()

        return run

    there = [name for name in METHODS if name in files or all(weights.shipped(file) for file in NETWORKS.get(name, ()))]
    return {name: of(name) for name in there} | {"farneback": farneback}


def measure(pair: Pair, flow: Tensor, variance: Tensor | None) -> dict[str, float]:
    """Returns the ``MEASURES`` of one flow, but for its time."""
    known = pair.flow.isfinite().all(-1)
    error = (flow - pair.flow).norm(dim=-1)
    seen, hidden = known & ~pair.hidden, known & pair.hidden
    off = error[seen]
    result = {
        "mean": float(off.mean()),
        "median": float(off.median()),
        "rigid": float("nan"),
        "floor": float("nan"),
        "over 1 px %": 100 * float((off > 1).float().mean()),
        "hidden mean": float(error[hidden].mean()) if hidden.any() else float("nan"),
        "in 3 sigma %": float("nan"),
        "whitened": float("nan"),
    }
    if pair.motions is not None:
        difference = (flow - pair.flow)[seen]
        left = _without_motion(difference, pair.motions[seen])
        result["rigid"] = float(left.norm(dim=-1).mean())
        result["floor"] = float((difference - left).norm(dim=-1).mean())
    if variance is not None:
        squared = off**2 / variance[seen]
        result["in 3 sigma %"] = 100 * float((squared < 11.83).float().mean())  # two degrees of freedom
        result["whitened"] = float(squared.median()) / 1.386
    return result


def note(shares: dict[str, float], files: dict[str, str]) -> None:
    """Writes networks' shares of DIS's error into their files; ``files`` by method, beside those that ship."""
    for method, names in NETWORKS.items():
        path = Path(files[method]) if method in files else weights.shipped(names[0])
        if path is not None and path.suffix == ".safetensors" and method in shares:
            tensors, words = weights.read(path)
            word, share = SHARE.format(method), f"{shares[method]:.3f}"
            weights.write(path, tensors, words | {word: share})
            print(f"{path}: {word} {share}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the comparison that the command line asks for."""
    parser = argparse.ArgumentParser(description="Compares dense optical flow methods on exact flow.")
    parser.add_argument("--frames", type=int, default=5, help="frames of each scene")
    parser.add_argument("--size", default="320x240", help="width x height of the images")
    parser.add_argument("--noise", type=float, default=1.5, help="standard deviation of image noise, grey levels")
    parser.add_argument("--threads", type=int, default=1, help="processors to run on; 0 for all")
    parser.add_argument("--device", default="cpu", help="torch device")
    parser.add_argument("--methods", default="", help="names separated by commas; all when left out")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("bags", type=Path, nargs="*", metavar="BAG", help="recordings, in place of the worlds")
    parser.add_argument(
        "--weights", action="append", default=[], metavar="METHOD=FILE", help="weights of a method, as flow.weights"
    )
    parser.add_argument("--note", action="store_true", help="write shares of DIS's error into the files of weights")
    options = parser.parse_args(arguments)
    processors = sorted(os.sched_getaffinity(0))
    threads = options.threads or len(processors)
    os.sched_setaffinity(0, processors[-threads:])
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    width, height = (int(n) for n in options.size.split("x"))
    files = dict(item.split("=", 1) for item in options.weights)
    known = methods(files)
    wanted = options.methods.split(",") if options.methods else list(known)
    if unknown := set(wanted) - set(known):
        parser.error(f"there is no method {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
    if options.note and (options.bags or "dis" not in wanted):
        parser.error("--note goes with worlds, not bags, and with dis among the methods")

    found: dict[str, dict[str, list[dict[str, float]]]] = {name: {} for name in wanted}
    warm = False
    source = (
        chain.from_iterable(recorded_pairs(bag, options.frames) for bag in options.bags)
        if options.bags
        else pairs(options.frames, width, height, options.noise)
    )
    for pair in source:
        previous, current = pair.previous.to(options.device), pair.current.to(options.device)
        for name in wanted:
            if not warm:
                known[name](previous, current)
            start = time.perf_counter()
            flow, variance = known[name](previous, current)
            seconds = time.perf_counter() - start
            figures = measure(pair, flow, variance) | {"ms": 1e3 * seconds}
            found[name].setdefault(pair.scene, []).append(figures)
        warm = True

    def mean(figures: list[dict[str, float]]) -> dict[str, float]:
        return {m: float(np.nanmean([f[m] for f in figures] or [np.nan])) for m in MEASURES}

    if options.bags:
        print(f"{options.threads} thread(s), {options.device}\n")
    else:
        print(f"{width}x{height}, noise {options.noise:g}, {threads} thread(s), {options.device}\n")
    summary = {name: {s: mean(f) for s, f in by_scene.items()} for name, by_scene in found.items()}
    for name, by_scene in found.items():
        summary[name]["all"] = mean([figure for figures in by_scene.values() for figure in figures])
    print(f"{'':17}{'':14}" + "".join(f"  {m:>12}" for m in MEASURES))
    for group in (*found[wanted[0]], "all"):
        for name in wanted:
            cells = "".join(f"  {summary[name][group][m]:>12.3g}" for m in MEASURES)
            print(f"{group:17}{name:14}{cells}")
    print("\n" + "\n".join(f"{m}: {definition}" for m, definition in MEASURES.items()))
    if options.note:
        means = {name: summary[name]["all"]["mean"] for name in wanted}
        note({name: mean / means["dis"] for name, mean in means.items()}, files)
    if options.out:
        settings = {"size": [width, height], "noise": options.noise, "threads": threads, "device": options.device}
        options.out.write_text(json.dumps(settings | {"figures": summary, "definitions": MEASURES}, indent=2) + "\n")


if __name__ == "__main__":
    main()
