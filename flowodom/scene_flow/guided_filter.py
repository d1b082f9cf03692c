"""Smoothing along surfaces, never across their edges.

Source: He, Sun and Tang, "Guided Image Filtering" (2010).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

from flowodom.scene_flow.grids import Array

RADIUS = 3
"""Half the width of the window of the smoothing, pixels of the grid."""


def box(fields: Sequence[Array], radius: int) -> list[Array]:
    """Returns the means of fields (H, W) over square windows, cut off at the border."""
    size = (2 * radius + 1, 2 * radius + 1)
    covered = _covered(*fields[0].shape, radius)
    return [
        np.divide(cv2.boxFilter(f, -1, size, normalize=False, borderType=cv2.BORDER_CONSTANT), covered) for f in fields
    ]


@lru_cache(maxsize=16)
def _covered(height: int, width: int, radius: int) -> Array:
    """Returns how many pixels (height, width) the window about each covers."""
    rows, columns = (
        np.convolve(np.ones(length), np.ones(2 * radius + 1))[radius:-radius] for length in (height, width)
    )
    return (rows[:, None] * columns).astype(np.float32)


def smooth(values: Array, weight: Array, guide: Array, deviation: Array) -> Array:
    """Smooths along surfaces: in each window the values are a linear function of the guide.

    Args:
        values: (H, W) to be smoothed.
        weight: (H, W) in [0, 1], how far each is known.
        guide: (H, W), NaN unknown.
        deviation: (H, W) differences of the guide that mean nothing.

    Returns:
        (H, W) smoothed values, shrunk to zero where little is known; zero where the guide is unknown.
    """
    known = ~np.isnan(guide)
    g = np.where(known, guide, np.float32(0))
    w = np.where(known, weight, np.float32(0))
    wg, wv = w * g, w * values
    total, mean_g, mean_v, gg, gv = box((w, wg, wv, wg * g, wg * values), RADIUS)
    over = 1 / np.maximum(total, np.float32(1e-6))
    mean_g *= over
    mean_v *= over
    spread_g = np.maximum(gg * over - np.square(mean_g), np.float32(0))
    slope = (gv * over - mean_g * mean_v) / (spread_g + np.square(deviation))
    constant = mean_v - slope * mean_g
    total, slope, constant = box((total, total * slope, total * constant), RADIUS)
    return (slope * g + constant) / (total + np.float32(0.05)) * known
