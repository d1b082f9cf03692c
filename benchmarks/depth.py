"""How well the sources of depth know it: the single-image field, the recursive filter, and both together.

    python benchmarks/depth.py [--field FILE] [--bags BAG ...] [--seeds N] [--frames N] [--size 320x240] [--out FILE]

On worlds that no training has seen the truth is exact; on recordings it is their depth camera. The sources are given
images and the camera's motion, never depth; the motion comes from the odometry with depth, so that the sources alone
are compared. Every field is scaled to the truth by the median before it is compared, but for the scale error itself.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from peers import shots

from flowodom import weights
from flowodom.config import OdometryConfig
from flowodom.depth import FramePair, InverseDepth
from flowodom.depth.field import FieldDepth, FieldNetwork, load_field
from flowodom.depth.filter import TAIL, TAIL_SQUARE, FilterDepth
from flowodom.depth.fusion import FusedDepth
from flowodom.flow.dis import DisFlow
from flowodom.frame import Frame
from flowodom.geometry import PinholeCamera, se3
from flowodom.odometry import Odometry
from flowodom.worlds import Sensor, pinhole, sequence
from flowodom.worlds.recording import scene

MEASURES = {
    "known %": "share of the pixels of which the source knows depth",
    "abs-rel": "mean of |depth - truth| / truth, after scaling by the median, on the pixels that it knows",
    "delta-1 %": "share of those pixels whose depth is within a factor of 1.25 of the truth",
    "abs-rel filter": "the same as abs-rel, on the pixels that the filter knows",
    "delta-1 filter %": "the same as delta-1, on the pixels that the filter knows",
    "scale %": "by how much the source's depths are too large, median",
    "ms": "time of a frame",
    "ln claimed": "mean logarithm of the filter's squared errors over what it claims; 0 is right, above is too sure",
}
"""What is printed, and what it is."""

SETTLED = 6
"""Frames before the first that is compared."""

RANGE = (0.3, 60.0)
"""Depths of the truth that are compared, metres."""

SCENES = (("room", "hand_held"), ("room", "wheeled"), ("street", "straight"), ("street", "hand_held"))
UNSEEN = 7000
"""Seed of the first world; training begins far above."""


def camera_in(world: str, size: tuple[int, int]) -> PinholeCamera:
    """Returns the camera that looks at a world."""
    return pinhole(*size, field_of_view=62.7 if world == "room" else 80.0)


def world_frames(world: str, motion: str, seed: int, size: tuple[int, int], frames: int) -> Iterator[Frame]:
    """Yields frames of an unseen world, with its exact depth."""
    place, path = scene(world, motion, seed=UNSEEN + seed, movers=1)
    for step in sequence(place, path, camera_in(world, size), frames=frames, sensor=Sensor(image_noise=1.5, seed=seed)):
        yield step.frame


def compare(frames: Iterable[Frame], network: FieldNetwork | None, every: int) -> dict[str, dict[str, float]]:
    """Runs all sources on the frames and returns the measures of each."""
    odometry, flow = Odometry(OdometryConfig()), DisFlow()
    sources: dict[str, Any] = {"filter": FilterDepth()}
    if network is not None:
        sources |= {"field": FieldDepth(network), "fusion": FusedDepth(FieldDepth(network))}
    known: dict[str, InverseDepth | None] = dict.fromkeys(sources)
    rows: dict[str, list[list[float]]] = {name: [] for name in sources}
    previous: tuple[Frame, Tensor] | None = None
    for number, frame in enumerate(frames):
        estimate = odometry.step(frame)
        camera, dense = shrink(frame)
        if previous is not None and estimate.motion is not None and estimate.motion_covariance is not None:
            alone = replace(frame, depth=None)
            found = flow(previous[1], dense)
            motion = se3.inverse(estimate.motion)
            pair = FramePair(alone, found, camera, motion, estimate.motion_covariance)
            fields, seconds = {}, {}
            for name, source in sources.items():
                start = time.perf_counter()
                fused = known[name] = source.fuse(source.observe(alone), known[name], pair)
                fields[name] = source.complete(fused, alone)
                seconds[name] = time.perf_counter() - start
            if number >= SETTLED and number % every == 0 and frame.depth is not None:
                truth = on_grid(frame, camera)
                read = {name: at(field, camera) for name, field in fields.items()}
                filtered = read["filter"].isfinite()
                for name, depth in read.items():
                    rows[name].append([*judge(depth, truth), *judge(depth, truth, filtered)[1:3], *scale(depth, truth)])
                    rows[name][-1].append(1e3 * seconds[name])
                    rows[name][-1].append(trust(fields[name], frame) if name == "filter" else np.nan)
        previous = frame, dense
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # what only the filter tells is NaN for the others
        means = {name: np.nanmean(part, axis=0).tolist() for name, part in rows.items()}
    return {name: dict(zip(MEASURES, values, strict=True)) for name, values in means.items()}


def shrink(frame: Frame, pixels: int = 120_000) -> tuple[PinholeCamera, Tensor]:
    """Returns the camera of the dense grid and the grey image on it."""
    grey = frame.grey
    factor = min(1.0, (pixels / grey.size) ** 0.5)
    camera = frame.camera.scaled(factor)
    small = grey if factor == 1 else cv2.resize(grey, (camera.width, camera.height), interpolation=cv2.INTER_AREA)
    return camera, torch.from_numpy(np.asarray(small, dtype=np.uint8))


def on_grid(frame: Frame, camera: PinholeCamera) -> Tensor:
    """Returns the (H, W) true depth on the dense grid, NaN where it is unknown or out of range."""
    assert frame.depth is not None
    size = (camera.width, camera.height)
    depth = torch.from_numpy(np.asarray(cv2.resize(frame.depth, size, interpolation=cv2.INTER_NEAREST)))
    return torch.where((depth > RANGE[0]) & (depth < RANGE[1]), depth, torch.nan)


def at(field: InverseDepth, camera: PinholeCamera) -> Tensor:
    """Returns the (H, W) depth of a field on the dense grid, NaN where it is unknown."""
    rho = field.on(camera).mean
    return torch.where(rho > 0, 1 / rho, torch.nan)


def judge(depth: Tensor, truth: Tensor, where: Tensor | None = None) -> tuple[float, float, float]:
    """Returns the share of pixels known, abs-rel and delta-1, the latter two after scaling by the median."""
    there = truth.isfinite() if where is None else truth.isfinite() & where
    both = there & depth.isfinite()
    if not both.any():
        return 0.0, float("nan"), float("nan")
    ratio = depth[both] / truth[both]
    ratio = ratio / ratio.median()
    within = torch.maximum(ratio, 1 / ratio) < 1.25
    return 100 * float(both.sum() / there.sum()), float((ratio - 1).abs().mean()), 100 * float(within.float().mean())


def scale(depth: Tensor, truth: Tensor) -> list[float]:
    """Returns by how many percent depths are too large."""
    both = truth.isfinite() & depth.isfinite()
    return [100 * (float((depth[both] / truth[both]).median()) - 1) if both.any() else float("nan")]


def trust(field: InverseDepth, frame: Frame) -> float:
    """Returns the logarithm of squared errors of a field over its variance, at their tail, which is heavy."""
    truth = 1 / on_grid(frame, field.camera)
    known = truth.isfinite() & field.mean.isfinite() & (field.mean > 0)
    if not known.any():
        return float("nan")
    rho, variance, truth = field.mean[known], field.variance[known], truth[known]
    unit = (truth / rho).median()
    excess = ((unit * rho - truth).square() / (unit**2 * variance)).quantile(TAIL) / TAIL_SQUARE
    return float(excess.log())


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--field", type=Path, default=weights.shipped("field"), help="weights (default: shipped)")
    parser.add_argument("--bags", type=Path, nargs="*", default=[], help="recordings with a depth camera")
    parser.add_argument("--seeds", type=int, default=3, help="worlds of each kind (%(default)s)")
    parser.add_argument("--frames", type=int, default=60, help="frames of each (%(default)s)")
    parser.add_argument("--every", type=int, default=3, help="compare every n-th frame (%(default)s)")
    parser.add_argument("--size", default="320x240")
    parser.add_argument("--out", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    width, height = (int(n) for n in options.size.split("x"))
    network = None if options.field is None else load_field(options.field)
    results = {}
    print(f"{'':36s}" + "".join(f"{name:>18s}" for name in MEASURES))
    for world, motion in SCENES if options.seeds else ():
        parts = [
            compare(world_frames(world, motion, seed, (width, height), options.frames), network, options.every)
            for seed in range(options.seeds)
        ]
        mean = {
            source: {m: float(np.mean([part[source][m] for part in parts])) for m in MEASURES} for source in parts[0]
        }
        results[f"{world} {motion}"] = mean
        show(f"{world} {motion}", mean)
    for bag in options.bags:
        frames = itertools.islice((shot.frame for shot in shots(bag)), options.frames)
        results[bag.name] = compare(frames, network, options.every)
        show(bag.name, results[bag.name])
    for name, meaning in MEASURES.items():
        print(f"  {name}: {meaning}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"definitions": MEASURES, "results": results}, indent=2) + "\n")


def show(name: str, sources: dict[str, dict[str, float]]) -> None:
    """Prints one scene's rows."""
    for source, row in sources.items():
        print(f"{name + ', ' + source:36s}" + "".join(f"{row[m]:18.3f}" for m in MEASURES), flush=True)


if __name__ == "__main__":
    main()
