"""Which object has come back into sight: by its pixels and its place, or by where it was going and its colours.

Source: Swain and Ballard, "Color Indexing" (1991); on logarithms of the ratios of colours, which shading leaves alone,
Funt and Finlayson, "Color Constant Color Indexing" (1995).
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from flowodom.geometry import se3
from flowodom.scene_flow.grids import Array
from flowodom.scene_flow.motions import MovingPixels
from flowodom.scene_flow.moving import Moving
from flowodom.scene_flow.objects import TRAIL, MovingObject

SHADES = 8
"""Steps of red against green, blue against green, and brightness each that are told apart."""

COLOURED = 2.0
"""Slope of those steps where the logarithm of a ratio is zero: nearly grey colours are told apart best."""

DARK = 8.0
"""Grey levels in which the noise of an image drowns the ratios of its colours."""

UNLIKE = 0.23
"""Difference of colours (one minus their Bhattacharyya coefficient) at which one object is as likely as two."""

LEAST_UNLIKE = 0.02
"""Difference of colours below which it tells no more."""

LOOKS = 3.0
"""Power of that difference with which the odds of being one object fall."""

IN_PART = 0.3
"""How far the middle of what is seen of an object may lie from its own, as a share of its size."""

WAYWARD = 0.5
"""How far an object may lie from where its constant velocity takes it, metres for each second."""

SPACE = 0.6
"""How far two objects lie apart, metres, one deviation."""

UNSTEADY = 0.25
"""Error of a velocity that a first or last glimpse tells, m/s."""

CHANGING = 2.0
"""How much velocities change, m/s for each second."""

UNRELATED = 0.6
"""By how much velocities of two objects differ, m/s, one deviation."""

MEMORY = 20
"""Looks at the colours of an object over which they are averaged."""

GLIMPSES = 4
"""Frames of which one is looked at for colours that have been seen that often."""


def nearness(known: MovingObject, new: MovingObject, seconds: float) -> float:
    """Returns the log odds, by its place and velocity, that a new object is one that was on its way when last seen.

    Something new lies off by ``SPACE`` and goes otherwise by ``UNRELATED`` as well.

    Args:
        known: The object.
        new: What is seen now.
        seconds: How long ago the object was seen last.
    """
    placed = math.hypot(IN_PART * float(known.extent.norm()), WAYWARD * seconds)
    off = float((new.centre - known.trail[-1] - known.velocity * seconds).norm())
    turned = float((new.velocity - known.velocity).norm())
    return _odds(off, placed, SPACE) + _odds(turned, math.hypot(UNSTEADY, CHANGING * seconds), UNRELATED)


def _odds(off: float, own: float, other: float) -> float:
    """Returns the log odds that a difference in space is one of deviation ``own``, not of ``other`` as well."""
    both = math.hypot(own, other)
    return 3 * math.log(both / own) - 0.5 * ((off / own) ** 2 - (off / both) ** 2)


def similarity(a: Array, b: Array) -> float:
    """Returns the log odds, by shares of colours (SHADES ** 3,), that they are those of two sights of one object."""
    unlike = 1 - float(np.sqrt(a * b).sum())
    return LOOKS * math.log(UNLIKE / max(unlike, LEAST_UNLIKE))


def colours(pixels: MovingPixels, which: Array, image: NDArray[np.uint8]) -> Array:
    """Returns the (SHADES ** 3,) shares of an image's colours on some of the pixels that move, an index (M,)."""
    row, column = np.divmod(pixels.index[which], pixels.camera.width)
    row, column = row * image.shape[0] // pixels.camera.height, column * image.shape[1] // pixels.camera.width
    counts = np.bincount(shades(image[row, column]), minlength=SHADES**3)
    return counts / max(len(which), 1)


def shades(colour: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Returns the numbers (N,), below SHADES ** 3, of what is told apart of colours (N, 3), RGB."""
    red, green, blue = (colour.T + np.float32(DARK)) / np.float32(256 + DARK)
    ratios = np.stack((red / green, blue / green))
    steps = np.stack((*(0.5 + 0.5 * np.tanh(COLOURED * np.log(ratios))), (red + green + blue) / 3))
    step = (SHADES * steps).astype(np.intp).clip(0, SHADES - 1)
    return (step[0] * SHADES + step[1]) * SHADES + step[2]


def is_noted(frames: int) -> bool:
    """Tells whether a frame is looked at for the colours of an object that has been seen in so many."""
    return frames <= MEMORY or frames % GLIMPSES == 0


def overlap(known: MovingObject, mask: Array, moving: Moving, local: Array) -> float:
    """Returns how far (0 to 1) something new is a missed object: by its pixels, or by its place.

    Args:
        known: The object, as of the frame before.
        mask: (H, W) bool pixels of what is new.
        moving: Where they were.
        local: (N, 3) points on it, in the object's frame as expected.
    """
    assert moving.stories is not None
    margin, (low, high) = 0.25 * float(known.extent.norm()), known.box.numpy()
    placed = 0.9 * float(((local > low - margin) & (local < high + margin)).all(-1).mean())
    if known.mask is None or known.mask.shape != mask.shape:
        return placed
    carried = known.mask.take(moving.stories.at[0])
    return max(placed, float((carried & mask).sum() / max((carried | mask).sum(), 1)))


def returned(known: MovingObject, new: MovingObject) -> MovingObject:
    """Returns an object that was out of sight, as what is seen of it shows it."""
    pose = known.pose.clone()
    pose[:3, 3] = new.centre - pose[:3, :3] @ known.box.mean(0)
    turn = se3.adjoint(se3.inverse(pose) @ new.pose)
    unsure = torch.diag(torch.cat((known.extent, torch.ones(3, dtype=torch.float64))) ** 2)
    return replace(
        new, id=known.id, pose=pose, covariance=known.covariance + unsure, box=known.box, twist=turn @ new.twist,
        twist_covariance=turn @ new.twist_covariance @ turn.T, frames=known.frames + new.frames,
        trail=torch.cat((known.trail, new.trail))[-TRAIL:],
    )  # fmt: skip
