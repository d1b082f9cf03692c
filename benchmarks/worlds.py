"""How fast procedural worlds and training pairs render, and how well pictures agree with their exact flow.

    python benchmarks/worlds.py [--threads N] [--frames N] [--worlds room,street] [--sizes 320x240,640x480]
                                [--batch N] [--device cpu] [--out worlds.json]

Pictures are judged by OpenCV's DIS (medium) between frames a thirtieth of a second apart, on pixels that stay in view:
where rendering aliases, DIS's error grows.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch

from flowodom.geometry import PinholeCamera
from flowodom.worlds import Motion, World, pinhole
from flowodom.worlds.pairs import TrainingPairs
from flowodom.worlds.photometric import photometric
from flowodom.worlds.recording import MOTIONS, WORLDS, scene

T = TypeVar("T")

COLUMNS = {
    "colour_hz": "frames/s, colour + depth + normals + object ids (median frame)",
    "geometry_hz": "frames/s, depth + object ids alone",
    "flow_hz": "pairs/s, forward and backward flow with occlusion, on top of rendering",
    "colour_cpu_ms": "processor time of a colour frame, ms",
    "epe_median_px": "median end-point error of DIS against the exact flow",
    "epe_mean_px": "mean of the same",
    "photometric": "median grey-level difference after warping by the exact flow",
    "hidden": "share of pixels that leave the view or are occluded",
}


def synchronise(world: World) -> None:
    """Waits for the device."""
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)


def timed(world: World, action: Callable[..., T], *arguments: Any, **options: Any) -> tuple[T, float, float]:
    """Returns the action's result, seconds, and processor seconds."""
    synchronise(world)
    wall, cpu = time.perf_counter(), time.process_time()
    result = action(*arguments, **options)
    synchronise(world)
    return result, time.perf_counter() - wall, time.process_time() - cpu


def measure(world: World, path: Motion, camera: PinholeCamera, frames: int) -> dict[str, float]:
    """Renders ``frames`` pairs spread over ten seconds and measures them."""
    finder = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    seconds: dict[str, list[float]] = {"colour": [], "geometry": [], "flow": [], "cpu": []}
    errors, differences, hidden = [], [], []
    world.render(path(0.0), 0.0, camera)
    for start in np.linspace(0, 10, frames).tolist():
        moment = start + 1 / 30
        _, geometry, _ = timed(world, world.render, path(start), start, camera, colour=False)
        before, wall, cpu = timed(world, world.render, path(start), start, camera)
        after, wall_after, cpu_after = timed(world, world.render, path(moment), moment, camera)
        truth, flow, _ = timed(world, world.flow_between, before, after)
        seconds["geometry"].append(geometry)
        seconds["colour"] += [wall, wall_after]
        seconds["cpu"] += [cpu, cpu_after]
        seconds["flow"].append(flow)
        seen = ~truth.forward_hidden.cpu().numpy()
        exact = truth.forward.cpu().numpy()
        images = [view.image.cpu().numpy() for view in (before, after) if view.image is not None]
        grey = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images]
        found = finder.calc(grey[0], grey[1], np.zeros_like(exact, dtype=np.float32))
        errors.append(np.linalg.norm(found - exact, axis=-1)[seen])
        at = (camera.pixels().numpy() + exact).astype(np.float32)
        warped = cv2.remap(grey[1].astype(np.float32), at[..., 0], at[..., 1], cv2.INTER_CUBIC)
        differences.append(np.abs(warped - grey[0])[seen])
        hidden.append(1 - seen.mean())
    epe = np.concatenate(errors)
    return {
        "colour_hz": float(1 / np.median(seconds["colour"])),
        "geometry_hz": float(1 / np.median(seconds["geometry"])),
        "flow_hz": float(1 / np.median(seconds["flow"])),
        "colour_cpu_ms": float(1e3 * np.median(seconds["cpu"])),
        "epe_median_px": float(np.median(epe)),
        "epe_mean_px": float(epe.mean()),
        "photometric": float(np.median(np.concatenate(differences))),
        "hidden": float(np.mean(hidden)),
    }


def measure_pairs(size: tuple[int, int], batch: int, device: str, batches: int) -> dict[str, float]:
    """Makes batches of training pairs and returns pairs a second, clean and as a camera would take them."""
    pairs = TrainingPairs(1, size, batch, device)
    photometric(pairs[0], 0)

    def rate(make: Callable[[int], object]) -> float:
        if pairs.device.type == "cuda":
            torch.cuda.synchronize(pairs.device)
        start = time.perf_counter()
        for k in range(1, 1 + batches):
            make(k)
        if pairs.device.type == "cuda":
            torch.cuda.synchronize(pairs.device)
        return batch * batches / (time.perf_counter() - start)

    return {"clean_hz": rate(lambda k: pairs[k]), "photometric_hz": rate(lambda k: photometric(pairs[k], k))}


def main() -> None:
    """Measures, prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=0, help="processor threads; torch's own choice for 0")
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--worlds", default=",".join(WORLDS))
    parser.add_argument("--sizes", default="320x240,640x480")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=8, help="training pairs in a batch")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
        cv2.setNumThreads(options.threads)
    print(f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads")
    results = {}
    print(f"{'':32s}" + "".join(f"{name:>16s}" for name in COLUMNS))
    for name in options.worlds.split(","):
        for motion in [m for m in MOTIONS if name == "room" or m in ("straight", "hand_held")]:
            world, path = scene(name, motion, seed=options.seed, movers=1, device=options.device)
            for size in options.sizes.split(",") if motion == "hand_held" else options.sizes.split(",")[:1]:
                width, height = (int(n) for n in size.split("x"))
                row = measure(world, path, pinhole(width, height), options.frames)
                key = f"{name} {motion} {size}"
                results[key] = row
                print(f"{key:32s}" + "".join(f"{row[c]:16.3f}" for c in COLUMNS), flush=True)
    for column, meaning in COLUMNS.items():
        print(f"  {column}: {meaning}")
    for size in options.sizes.split(","):
        width, height = (int(n) for n in size.split("x"))
        row = measure_pairs((width, height), options.batch, options.device, max(1, options.frames // 4))
        results[f"pairs {size}"] = row
        text = f"{row['clean_hz']:.1f} clean, {row['photometric_hz']:.1f} with a camera's faults"
        print(f"{'training pairs ' + size:32s} pairs/s, batches of {options.batch}: {text}", flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"definitions": COLUMNS, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
