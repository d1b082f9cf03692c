"""Compares dense optical flow methods on procedural worlds, whose flow is known exactly.

python benchmarks/flow.py [--frames N] [--size 320x240] [--threads N] [--device cpu] [--noise 1.5]
                          [--methods dis,lucas_kanade] [--out flow.json]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from flowodom.flow.dis import DisFlow
from flowodom.flow.horn_schunck import HornSchunckFlow
from flowodom.flow.lucas_kanade import LucasKanadeFlow
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


Method = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""(previous, current) -> forward flow and its variance, None where the method gives none. Works in both directions."""


def farneback(previous: Tensor, current: Tensor) -> tuple[Tensor, None]:
    """OpenCV's Farneback flow, both ways as the others do."""
    track: Any = cv2.calcOpticalFlowFarneback
    images = previous.cpu().numpy(), current.cpu().numpy()
    forward, _ = (track(*two, None, 0.5, 5, 15, 5, 5, 1.1, 0) for two in (images, images[::-1]))
    return torch.from_numpy(forward), None


def methods() -> dict[str, Method]:
    """Returns what is compared, by name."""

    def of(method: DisFlow | LucasKanadeFlow | HornSchunckFlow) -> Method:
        def run(previous: Tensor, current: Tensor) -> tuple[Tensor, Tensor | None]:
            field = method(previous, current)
            return field.forward.cpu(), field.forward_variance.cpu()

        return run

    return {
        "dis": of(DisFlow()),
        "lucas_kanade": of(LucasKanadeFlow()),
        "horn_schunck": of(HornSchunckFlow()),
        "farneback": farneback,
    }


def measure(pair: Pair, flow: Tensor, variance: Tensor | None) -> dict[str, float]:
    """Returns the ``MEASURES`` of one flow, but for its time."""
    known = pair.flow.isfinite().all(-1)
    error = (flow - pair.flow).norm(dim=-1)
    seen, hidden = known & ~pair.hidden, known & pair.hidden
    off = error[seen]
    result = {
        "mean": float(off.mean()),
        "median": float(off.median()),
        "over 1 px %": 100 * float((off > 1).float().mean()),
        "hidden mean": float(error[hidden].mean()) if hidden.any() else float("nan"),
        "in 3 sigma %": float("nan"),
        "whitened": float("nan"),
    }
    if variance is not None:
        squared = off**2 / variance[seen]
        result["in 3 sigma %"] = 100 * float((squared < 11.83).float().mean())  # two degrees of freedom
        result["whitened"] = float(squared.median()) / 1.386
    return result


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
    options = parser.parse_args(arguments)
    processors = sorted(os.sched_getaffinity(0))
    threads = options.threads or len(processors)
    os.sched_setaffinity(0, processors[-threads:])
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    width, height = (int(n) for n in options.size.split("x"))
    known = methods()
    wanted = options.methods.split(",") if options.methods else list(known)
    if unknown := set(wanted) - set(known):
        parser.error(f"there is no method {', '.join(sorted(unknown))}; there are: {', '.join(known)}")

    found: dict[str, dict[str, list[dict[str, float]]]] = {name: {} for name in wanted}
    warm = False
    for pair in pairs(options.frames, width, height, options.noise):
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

    print(f"{width}x{height}, noise {options.noise:g}, {threads} thread(s), {options.device}\n")
    summary = {name: {s: mean(f) for s, f in by_scene.items()} for name, by_scene in found.items()}
    for name, by_scene in found.items():
        summary[name]["all"] = mean([figure for figures in by_scene.values() for figure in figures])
    print(f"{'':17}{'':14}" + "".join(f"  {m:>12}" for m in MEASURES))
    for group in (*SCENES, "all"):
        for name in wanted:
            cells = "".join(f"  {summary[name][group][m]:>12.3g}" for m in MEASURES)
            print(f"{group:17}{name:14}{cells}")
    print("\n" + "\n".join(f"{m}: {definition}" for m, definition in MEASURES.items()))
    if options.out:
        settings = {"size": [width, height], "noise": options.noise, "threads": threads, "device": options.device}
        options.out.write_text(json.dumps(settings | {"figures": summary, "definitions": MEASURES}, indent=2) + "\n")


if __name__ == "__main__":
    main()
