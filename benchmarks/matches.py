"""Whether matches are as wrong as they are told to be, across edges and along them.

    python benchmarks/matches.py [--seeds N] [--frames N] [--out FILE]

Rendered worlds in which nothing moves, 640x480, exact poses and depth, by which the search for each point starts a
pixel off its true place and its patch is cut as it should be seen. Points are corners and, for this, edges as well.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from depth import SCENES, camera_in
from torch import Tensor

from flowodom.flow import points
from flowodom.geometry import se3
from flowodom.registration.planes import Patches
from flowodom.worlds import Sensor, Step, sequence
from flowodom.worlds.recording import scene

MEASURES = {
    "points": "how many points there are of this kind",
    "across px": "deviation of matches in the direction in which the patch has most contrast",
    "along px": "deviation at right angles to it",
    "across told": "what the former is over what it is told to be, as a multiple of that of all points together",
    "along told": "the same of the latter",
    "alike": "along px over what it would be told to be if all directions were alike, likewise",
}
"""What is printed, and what it is; deviations are medians over that of a normal deviate."""

KINDS = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0)
"""Where the least contrast of a patch, over its greatest, parts them: variance along over across, the other way up."""

APART, GUESS = 3, 1.0
"""Frames between those that are compared, and pixels by which the search starts off the true place."""

FLAT = 0.03
"""Most that depth may change around a point, as a share of it, for all of its patch to lie on one surface."""

NORMAL = 0.6745
"""Median of the absolute value of a normal deviate."""


def pairs(kind: str, motion: str, seed: int, frames: int) -> Iterator[tuple[Step, Step]]:
    """Yields frames of a still world, ``APART`` from each other."""
    world, path = scene(kind, motion, seed=seed, movers=0)
    steps = sequence(world, path, camera_in(kind, (640, 480)), frames=frames, sensor=Sensor(image_noise=1.5, seed=seed))
    yield from pairwise(step for number, step in enumerate(steps) if number % APART == 0)


def errors(one: Step, two: Step, random: torch.Generator) -> Tensor:
    """Returns contrast ratio, error and told deviation across, error and told deviation along: (N, 5)."""
    camera, motion = one.frame.camera, se3.inverse(two.pose) @ one.pose
    with mock.patch.object(points, "EDGE", 0.0):
        places = points.choose(one.frame.grey, 900)
    around = places.long()[:, None] + torch.tensor([(u, v) for u in range(-4, 6) for v in range(-4, 6)])
    column, row = around[..., 0].clamp(0, camera.width - 1), around[..., 1].clamp(0, camera.height - 1)
    depth = one.rendering.depth.double()[row, column]
    places = places[(depth.amax(1) - depth.amin(1)) < FLAT * depth.amin(1)]
    u, v = places.round().long().T
    rays, rho = camera.rays(places), 1 / one.rendering.depth.double()[v, u]
    patches = Patches.around(one.frame.grey, places, rays, rho, 1e-6 * rho**2)
    true, warps = patches.seen(camera, motion)
    guess = true + GUESS * torch.randn(true.shape, generator=random, dtype=torch.float64)
    seen, found = points.follow(one.frame.grey, two.frame.grey, places, guess, warps)
    variance, direction = torch.linalg.eigh((warps @ patches.noise @ warps.mT)[found])
    error = ((seen - true)[found][:, None] @ direction)[:, 0]
    told = variance.sqrt()
    return torch.stack((variance[:, 0] / variance[:, 1], error[:, 0], told[:, 0], error[:, 1], told[:, 1]), dim=1)


def spread(values: Tensor) -> float:
    """Returns the deviation of (N,) values, by their median."""
    return float(values.abs().median()) / NORMAL if len(values) else float("nan")


def summarise(found: Tensor) -> dict[str, dict[str, float]]:
    """Returns the figures of all points (N, 5) and, by kind, of some."""
    ratio, across, across_told, along, along_told = found.T
    unit = spread(torch.cat((across / across_told, along / along_told)))
    alike = spread(torch.cat((across, along)))
    kinds = {"all": ratio >= 0}
    kinds |= {f"{low:g} to {high:g}": (ratio >= low) & (ratio < high) for low, high in pairwise(KINDS)}
    return {
        name: {
            "points": int(own.sum()),
            "across px": spread(across[own]),
            "along px": spread(along[own]),
            "across told": spread((across / across_told)[own]) / unit,
            "along told": spread((along / along_told)[own]) / unit,
            "alike": spread(along[own]) / alike,
        }
        for name, own in kinds.items()
    }


def main() -> None:
    """Prints the table of all scenes together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=7500, help="seed of the first world")
    parser.add_argument("--frames", type=int, default=24, help="of each scene")
    parser.add_argument("--out", type=Path, help="JSON file of all figures")
    options = parser.parse_args()
    random = torch.Generator().manual_seed(0)
    found = torch.cat([
        errors(one, two, random)
        for seed in range(options.first, options.first + options.seeds)
        for kind, motion in SCENES
        for one, two in pairs(kind, motion, seed, options.frames)
    ])  # fmt: skip
    results = summarise(found)
    print(f"{'contrast along':16s}" + "".join(f"{name:>14s}" for name in MEASURES))
    for name, figures in results.items():
        print(f"{name:16s}" + "".join(f"{np.float64(figures[m]):14.3g}" for m in MEASURES))
    print("\n" + "\n".join(f"{name}: {meaning}" for name, meaning in MEASURES.items()))
    if options.out:
        options.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
