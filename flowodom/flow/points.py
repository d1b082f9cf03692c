"""Points for the pose fit: chosen over the whole image, followed by dense flow, polished by Lucas-Kanade.

Dense flow finds where a point went, however far; a Lucas-Kanade step against the keyframe's own pixels then makes the
match as sharp as the full-size image allows, and free of the drift that chaining flow would add.

Lucas-Kanade shifts a window and does nothing else to it: where the camera has come nearer, has turned, or looks along a
slanted surface, the window is stretched as well, and the match is biased. So each point's patch is cut from the first
image as the second camera should see it, and sought in a tile of the second one; all tiles lie in one mosaic.

A match is as unsure as its patch lets it be: across an edge all are alike, along it each errs by as many times more as
the patch has less contrast that way. ``benchmarks/matches.py`` shows it.

Source: Shi and Tomasi, "Good Features to Track" (CVPR 1994); Harris and Stephens, "A Combined Corner and Edge Detector"
(1988), whose response tells the ratio of the eigenvalues without them; Bouguet, "Pyramidal Implementation of the Lucas
Kanade Feature Tracker" (2000), through OpenCV; for patches that are warped first, Klein and Murray, "Parallel Tracking
and Mapping for Small AR Workspaces" (ISMAR 2007); for the covariance of a match, Forstner and Gulch, "A fast operator
for detection and precise location of distinct points, corners and centres of circular features" (1987).
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PATCH = (11, 11)
"""Lucas-Kanade window, pixels."""

REACH = 6
"""Most pixels of a level by which its guess may be wrong, across and down."""

ROUND_TRIP = 0.7
"""Most pixels by which a point followed there and back may miss its start."""

ALIKE = 1.0
"""Mean difference between a window and what it was found to be, over the contrast that it has, up to which the two show
the same: noise alone differs by more, however it is shifted."""

DARK_CORNER = 4e-5
"""Least smaller eigenvalue of the structure tensor, grey levels squared on a scale of one, for a point to be chosen."""

BLOCK, DERIVATIVE = 5, 3
"""Pixels at half the size over which the structure tensor is summed, and of the derivatives in it."""

EDGE = 0.02
"""Least smaller eigenvalue as a share of the larger one: on less of a corner windows shift along the edge unseen."""

NOISE = 1.5e-4
"""Larger eigenvalue of the structure tensor, grey levels squared on a scale of one, where noise doubles variances: more
than in rendered images, less than in those of an old Kinect."""

LEAST_CORNER = 1e-3
"""Smaller eigenvalue of it, as a share of the larger one, that any patch has at least."""

CELL = 16
"""Side, pixels, of the cells whose brightness tells the exposure."""

DARK, SATURATED = 8, 240
"""Grey levels between which brightness follows exposure."""

SURE = 3.0
"""Deviations by which an exposure must have changed to be brought into line."""

RADIUS = PATCH[0] // 2 + REACH
SIDE = 2 * RADIUS + 1
"""Pixels from a tile's middle to its edge, and from edge to edge: a window fits in wherever it is found."""

_AROUND = np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1][::-1].reshape(2, -1).astype(np.float32)
"""(2, SIDE * SIDE) pixels of a tile, u and v from its middle."""

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
    strength = cv2.cornerMinEigenVal(half, BLOCK, ksize=DERIVATIVE)
    strength[cv2.cornerHarris(half, BLOCK, DERIVATIVE, EDGE / (1 + EDGE) ** 2) <= 0] = 0
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


def gain(source: NDArray[np.uint8], target: NDArray[np.uint8]) -> float:
    """Returns by how much another (H, W) uint8 image of nearly the same view is brighter; 1 where that is not told.

    Cameras change their exposure as they look about, and Lucas-Kanade takes a change of brightness for motion.
    """
    return _brightening(_cells(source), _cells(target))


def _brightening(before: NDArray[np.float32], now: NDArray[np.float32]) -> float:
    """Returns by how much places of mean brightness ``before`` are brighter now; 1 where that is not told."""
    bright = np.maximum(before, now) < SATURATED
    if not (fair := bright & (np.minimum(before, now) > DARK)).any():
        return 1.0
    ratio = now[fair] / before[fair]
    found = float(np.median(ratio))
    # Of places that do not lie quite on one another, the median is that sure.
    deviation = 1.9 * float(np.median(np.abs(ratio - found))) / len(ratio) ** 0.5
    return 1.0 if abs(found - 1) < SURE * deviation else found


def match_noise(image: NDArray[np.uint8], places: Tensor) -> Tensor:
    """Returns how the errors of matches of patches are distributed, by the contrast that the patches have.

    Along an edge a window shifts nearly unseen: Lucas-Kanade errs as the inverse of the structure tensor, which it
    inverts. Across the best direction errors are alike whatever the contrast is, but where noise outshines it.

    Args:
        image: (H, W) uint8 image from which the patches are cut.
        places: (N, 2) float64 their middles.

    Returns:
        (N, 2, 2) float64 covariances, in units of the variance across a sharp edge.
    """
    u, v = places.round().long().clamp_min(0).numpy().T - np.array(PATCH)[:, None] // 2
    slopes = []
    for slope in cv2.spatialGradient(image):
        windows = np.lib.stride_tricks.sliding_window_view(slope, PATCH)
        rows, columns = windows.shape[:2]
        slopes.append(windows[v.clip(0, rows - 1), u.clip(0, columns - 1)].reshape(len(places), PATCH[0] * PATCH[1]))
    gradient = torch.from_numpy(np.stack(slopes, axis=1).astype(np.float32)) / (8 * 255)
    tensor = (gradient @ gradient.mT).double() / gradient.shape[-1]
    trace = tensor.diagonal(dim1=-2, dim2=-1).sum(-1)
    sharp = 0.5 * trace + (0.25 * trace**2 - torch.linalg.det(tensor)).clamp_min(0).sqrt()
    least = torch.eye(2, dtype=torch.float64) * (LEAST_CORNER * sharp + 1e-9)[:, None, None]
    return (sharp + NOISE)[:, None, None] * torch.linalg.inv(tensor + least)


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
    source: NDArray[np.uint8],
    target: NDArray[np.uint8],
    pixels: Tensor,
    guess: Tensor,
    warps: Tensor | None = None,
    *,
    levels: int = 0,
) -> tuple[Tensor, Tensor]:
    """Finds points of one image in another, starting from a guess.

    Args:
        source: (H, W) uint8 image in which the points lie.
        target: (H, W) uint8 image to find them in.
        pixels: (N, 2) float64 places in ``source``.
        guess: (N, 2) float64 guessed places in ``target``.
        warps: (N, 2, 2) derivative of the places in ``target`` by those in ``source``; None where patches only shift.
        levels: Pyramid levels above full size on which to search: each doubles how wrong the guess may be.

    Returns:
        (N, 2) float64 places in ``target`` and (N,) bool: found, alike, inside the image, and back within
        ``ROUND_TRIP``.
    """
    if not len(pixels):
        return pixels.clone(), torch.zeros(0, dtype=torch.bool)
    unwarp = np.eye(2)[None] if warps is None else np.linalg.inv(warps.numpy())
    pyramid = [(source, target)]
    for _ in range(levels):
        pyramid.append((_halved(pyramid[-1][0]), _halved(pyramid[-1][1])))
    start, there = pixels.numpy(), guess.numpy()
    good = np.zeros(len(there), dtype=np.bool_)
    for level in reversed(range(levels + 1)):
        scale = 0.5**level
        place, good = _search(*pyramid[level], (start + 0.5) * scale - 0.5, (there + 0.5) * scale - 0.5, unwarp)
        there = np.where(good[:, None], (place + 0.5) / scale - 0.5, there)
    height, width = target.shape
    good &= (there >= 1).all(1) & (there[:, 0] <= width - 2) & (there[:, 1] <= height - 2)
    return torch.from_numpy(there), torch.from_numpy(good)


def _search(
    source: NDArray[np.uint8],
    target: NDArray[np.uint8],
    start: NDArray[np.float64],
    guess: NDArray[np.float64],
    unwarp: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Returns where points are found on one level, (N, 2), and (N,) bool, whether they are and lead back.

    Args:
        source: (H, W) image in which they lie.
        target: (H, W) image to find them in.
        start: (N, 2) places in ``source``.
        guess: (N, 2) guessed places in ``target``.
        unwarp: (N, 2, 2) or (1, 2, 2) derivative of places in ``source`` by those in ``target``.
    """
    height, width = target.shape
    middle = np.rint(guess).clip(0, (width - 1, height - 1))
    patches, tiles = _cut(source, start, unwarp), _tiles(target, middle)
    brightness = (part.mean((1, 2), dtype=np.float32) for part in (patches, tiles))
    (first, centre), (second, _) = _mosaic(amplify(patches, _brightening(*brightness))), _mosaic(tiles)
    offset = (guess - middle).clip(-REACH, REACH).astype(np.float32)
    found, good = lucas_kanade(first, second, centre, centre + offset)
    shift = (found - centre).astype(np.float64)
    return middle + shift, good & (np.abs(shift) <= REACH).all(1)


def _halved(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _cut(image: NDArray[np.uint8], places: NDArray[np.float64], unwarp: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Returns the patches (N, SIDE, SIDE) around places (N, 2) as they are seen in another image.

    Args:
        image: The image.
        places: The places.
        unwarp: (N, 2, 2) or (1, 2, 2) derivative of places in it by those in the other image.
    """
    place, step = places.astype(np.float32), unwarp.astype(np.float32)
    x, y = (place[:, k, None] + step[:, k, 0, None] * _AROUND[0] + step[:, k, 1, None] * _AROUND[1] for k in (0, 1))
    # A row a patch: OpenCV is faster over long rows.
    patches = cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(patches, dtype=np.uint8).reshape(-1, SIDE, SIDE)


def _tiles(image: NDArray[np.uint8], middles: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Returns the tiles (N, SIDE, SIDE) of an image around whole pixels (N, 2)."""
    padded = cv2.copyMakeBorder(image, *4 * (RADIUS,), cv2.BORDER_REPLICATE)
    u, v = middles.astype(np.int64).T
    return np.asarray(np.lib.stride_tricks.sliding_window_view(padded, (SIDE, SIDE))[v, u], dtype=np.uint8)


def _mosaic(tiles: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Returns one image of tiles (N, SIDE, SIDE), side by side, and the (N, 2) places of their middles."""
    columns = math.isqrt(len(tiles) - 1) + 1
    order = np.arange(columns**2)
    filled = np.zeros((columns**2, SIDE, SIDE), dtype=np.uint8)
    filled[: len(tiles)] = tiles
    image = filled.reshape(columns, columns, SIDE, SIDE).swapaxes(1, 2).reshape(2 * (columns * SIDE,))
    middles = SIDE * np.stack(np.divmod(order, columns)[::-1], axis=1) + RADIUS
    return image, middles[: len(tiles)].astype(np.float32)


def lucas_kanade(
    source: NDArray[np.uint8], target: NDArray[np.uint8], start: NDArray[np.float32], guess: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Shifts windows until they fit, and back.

    Args:
        source: (H, W) uint8 image in which the points lie.
        target: (H, W) uint8 image to find them in.
        start: (N, 2) float32 places in ``source``.
        guess: (N, 2) float32 guessed places in ``target``, right to a few pixels.

    Returns:
        (N, 2) float32 places in ``target`` and (N,) bool: found there, alike, and back within ``ROUND_TRIP``.
    """
    there, found, difference = _shift(source, target, start, guess)
    back, returned, _ = _shift(target, source, there, start)
    alike = difference < ALIKE * _contrast(source, start)
    return there, found & alike & returned & (np.linalg.norm(back - start, axis=1) < ROUND_TRIP)


def _contrast(image: NDArray[np.uint8], places: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the mean absolute deviation (N,) of windows around places (N, 2) from their mean, grey levels."""
    windows = np.lib.stride_tricks.sliding_window_view(image, PATCH)
    first = np.rint(places).astype(np.int64) - PATCH[0] // 2
    u, v = first.clip(0, np.array(windows.shape[1::-1]) - 1).T
    window = windows[v, u].reshape(len(places), -1).astype(np.float32)
    return np.asarray(np.abs(window - window.mean(1, keepdims=True)).mean(1), dtype=np.float32)


def _shift(
    source: NDArray[np.uint8], target: NDArray[np.uint8], start: NDArray[np.float32], guess: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32]]:
    """Returns where windows fit best (N, 2), whether that was found (N,), and their mean difference (N,) there."""
    there, found, difference = cv2.calcOpticalFlowPyrLK(
        source,
        target,
        start,
        guess.copy(),
        winSize=PATCH,
        maxLevel=0,
        criteria=_STOP,
        flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
        minEigThreshold=1e-4,
    )
    return np.asarray(there, dtype=np.float32), found[:, 0] > 0, np.asarray(difference[:, 0], dtype=np.float32)
