"""Arithmetic on grids of cells: nearest places, lengths, medians."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

Flags = NDArray[np.bool_]


def square(vectors: Array) -> Array:
    """Returns the (H, W) squared lengths of vectors (2, H, W)."""
    return vectors[0] * vectors[0] + vectors[1] * vectors[1]


def index_of(size: Sequence[int], u: Array, v: Array) -> NDArray[np.intp]:
    """Returns the flat places (...) of the pixels of a grid (height, width) nearest to columns and rows (...)."""
    height, width = size
    column, row = np.rint(u).clip(0, width - 1), np.rint(v).clip(0, height - 1)
    return (row * width + column).astype(np.intp)


def inside(size: Sequence[int], places: Array, border: float = 0.0) -> Flags:
    """Returns (H, W): whether places (2, H, W), columns and rows, lie in a grid (height, width) off its border."""
    across, down = 0.5 * (size[1] - 1), 0.5 * (size[0] - 1)
    return (np.abs(places[0] - across) <= across - border) & (np.abs(places[1] - down) <= down - border)


def median(values: Array) -> Array:
    """Returns the medians (...) of values (..., N), the upper one of two."""
    middle = values.shape[-1] // 2
    return np.partition(values, middle, axis=-1)[..., middle]
