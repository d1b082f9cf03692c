"""Points for the pose fit: chosen over the whole image, followed by dense flow, polished by Lucas-Kanade.

Dense flow finds where a point went, however far; a Lucas-Kanade step against the keyframe's own pixels then makes the
match as sharp as the full-size image allows, and free of the drift that chaining flow would add.

Source: Shi and Tomasi, "Good Features to Track" (CVPR 1994); Bouguet, "Pyramidal Implementation of the Lucas Kanade
Feature Tracker" (2000), through OpenCV.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PATCH = (11, 11)
"""Lucas-Kanade window, pixels."""

ROUND_TRIP = 0.7
"""Most pixels by which a point followed there and back may miss its start."""

DARK_CORNER = 4e-5
"""Least smaller eigenvalue of the structure tensor, grey levels squared on a scale of one, for a point to be chosen."""

CELL = 16
"""Side, pixels, of the cells whose brightness tells the exposure."""

DARK, SATURATED = 8, 240
"""Grey levels between which brightness follows exposure."""

SURE = 3.0
"""Deviations by which an exposure must have changed to be brought into line."""

_STOP = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 0.005)


def choose(
    grey: NDArray[np.uint8], count: int, *, taken: Tensor | None = None, ignore: NDArray[np.bool_] | None = None
) -> Tensor:
    """Chooses corners, at most one in each cell of a grid of about ``count`` cells.

    Args:
        grey: (H, W) uint8 image to choose in.
        count: Cells over the whole image.
        taken: (N, 2) pixels; cells that hold one of them get no new point.
        ignore: (H, W) bool, True where nothing may be chosen.

    Returns:
        (M, 2) float64 pixels (u, v), strongest corner first.
    """
    height, width = grey.shape
    side = _half_cell((height, width), count)
    half = cv2.resize(grey, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    strength = cv2.cornerMinEigenVal(half, 5, ksize=3)
    border = max(4, PATCH[0] // 4)
    strength[:border], strength[-border:], strength[:, :border], strength[:, -border:] = 0, 0, 0, 0
    if ignore is not None:
        strength[cv2.resize(ignore.astype(np.uint8), strength.shape[::-1], interpolation=cv2.INTER_AREA) > 0] = 0
    rows, columns = strength.shape[0] // side, strength.shape[1] // side
    tiles = torch.from_numpy(strength[: rows * side, : columns * side].copy())
    tiles = tiles.reshape(rows, side, columns, side).permute(0, 2, 1, 3).reshape(rows * columns, side * side)
    best, place = tiles.max(dim=-1)
    free = best > DARK_CORNER
    if taken is not None and len(taken):
        column = (taken[:, 0] / (2 * side)).long().clamp(0, columns - 1)
        row = (taken[:, 1] / (2 * side)).long().clamp(0, rows - 1)
        free[(row * columns + column).cpu()] = False
    index = free.nonzero()[:, 0]
    index = index[best[index].argsort(descending=True, stable=True)]
    v = (index // columns) * side + place[index] // side
    u = (index % columns) * side + place[index] % side
    return torch.stack((u, v), dim=-1).to(torch.float64) * 2 + 0.5


def thin(pixels: Tensor, count: int, size: tuple[int, ...]) -> Tensor:
    """Returns a bool (N,): the first point in each cell of a grid of about ``count`` cells.

    Args:
        pixels: (N, 2) pixels, best first.
        count: Cells over the whole image.
        size: Height and width of the image.
    """
    cell = 2 * _half_cell(size, count)
    column, row = (pixels / cell).long().clamp_min(0).unbind(-1)
    index = row * (size[1] // cell + 1) + column
    order = torch.arange(len(pixels))
    first = torch.full((int(index.max()) + 1 if len(index) else 0,), len(pixels))
    first.scatter_reduce_(0, index, order, "amin")
    return first[index] == order


def _half_cell(size: tuple[int, ...], count: int) -> int:
    """Returns half the side, pixels, of the cells of a grid of about ``count`` over (height, width)."""
    return max(2, round((size[0] * size[1] / count) ** 0.5) // 2)


def turn(grey: NDArray[np.uint8], homography: Tensor) -> NDArray[np.uint8]:
    """Returns an image as a camera turned about its centre would have seen it.

    Lucas-Kanade shifts a window and does nothing else to it: where the camera has turned, the window is turned and
    stretched as well, and the match is biased. Undoing the rotation first removes that bias.

    Args:
        grey: (H, W) uint8 image.
        homography: (3, 3) float64, from its pixels to those of the turned camera, ``K R K^-1``.
    """
    height, width = grey.shape
    return np.asarray(
        cv2.warpPerspective(
            grey, homography.numpy(), (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
        ),
        dtype=np.uint8,
    )


def expose(source: NDArray[np.uint8], target: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns an image as it would be at the exposure of another one of nearly the same view.

    Cameras change their exposure as they look about, and Lucas-Kanade takes a change of brightness for motion.

    Args:
        source: (H, W) uint8 image.
        target: (H, W) uint8 image.
    """
    return amplify(source, gain(source, target))


def gain(source: NDArray[np.uint8], target: NDArray[np.uint8]) -> float:
    """Returns by how much another image of nearly the same view is brighter; 1 where that is not told."""
    before, now = _cells(source), _cells(target)
    bright = np.maximum(before, now) < SATURATED
    if not (fair := bright & (np.minimum(before, now) > DARK)).any():
        return 1.0
    ratio = now[fair] / before[fair]
    found = float(np.median(ratio))
    # Of cells that do not lie quite on one another, the median is that sure.
    deviation = 1.9 * float(np.median(np.abs(ratio - found))) / len(ratio) ** 0.5
    return 1.0 if abs(found - 1) < SURE * deviation else found


def amplify(image: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """Returns an (H, W) uint8 image at another exposure."""
    return image if factor == 1.0 else np.asarray(cv2.convertScaleAbs(image, alpha=factor), dtype=np.uint8)


def _cells(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns the mean brightness of the whole cells of an image (H, W), (H // CELL, W // CELL) or one at least."""
    rows, columns = (max(1, length // CELL) for length in image.shape)
    # Cells of whole pixels average ten times as fast as others do.
    whole = image[: rows * CELL, : columns * CELL]
    return np.asarray(cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA), dtype=np.float32)


def follow(
    source: NDArray[np.uint8], target: NDArray[np.uint8], pixels: Tensor, guess: Tensor, *, levels: int = 1
) -> tuple[Tensor, Tensor]:
    """Finds points of one image in another, starting from a guess.

    Args:
        source: (H, W) uint8 image in which the points lie.
        target: (H, W) uint8 image to find them in.
        pixels: (N, 2) float64 places in ``source``.
        guess: (N, 2) float64 guessed places in ``target``.
        levels: Pyramid levels above full size on which to search: each doubles how wrong the guess may be.

    Returns:
        (N, 2) float64 places in ``target`` and (N,) bool: found, inside the image, and back within ``ROUND_TRIP``.
    """
    if not len(pixels):
        return pixels.clone(), torch.zeros(0, dtype=torch.bool)
    start = pixels.numpy().astype(np.float32)
    there = guess.numpy().astype(np.float32)
    there, found, _ = _search(source, target, start, there, levels)
    back, returned, _ = _search(target, source, there, start, 0)
    height, width = target.shape
    inside = (there >= 1).all(1) & (there[:, 0] <= width - 2) & (there[:, 1] <= height - 2)
    good = (found[:, 0] > 0) & (returned[:, 0] > 0) & inside & (np.linalg.norm(back - start, axis=1) < ROUND_TRIP)
    return torch.from_numpy(there.astype(np.float64)), torch.from_numpy(good)


def _search(
    source: NDArray[np.uint8],
    target: NDArray[np.uint8],
    start: NDArray[np.float32],
    guess: NDArray[np.float32],
    levels: int,
) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.float32]]:
    found: Any = cv2.calcOpticalFlowPyrLK(
        source,
        target,
        start,
        guess.copy(),
        winSize=PATCH,
        maxLevel=levels,
        criteria=_STOP,
        flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
        minEigThreshold=1e-4,
    )
    return found
