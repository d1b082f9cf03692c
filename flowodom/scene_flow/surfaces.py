"""Views on a grid of cells: grey levels and inverse depth of what they show.

What images and fields on a GPU say of the cells is brought over to the processor here, where NumPy and OpenCV make
shorter work of some thousand cells than torch does anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from flowodom.depth import InverseDepth
from flowodom.flow import consistency
from flowodom.geometry import PinholeCamera
from flowodom.scene_flow.grids import Array, Flags, median

CELLS = 13_000
"""About how many cells, each of which has one probability, an image is cut into: what it costs hangs on that."""

LEAST_CELL = 2
"""Fewest pixels of the dense grid, each way, that share one probability."""

THINNED = 23
"""Of how many pixels one is asked where all of them together tell one number."""


@dataclass(frozen=True)
class Surface:
    """One view on a coarser grid.

    Attributes:
        camera: Camera of the grid (H, W).
        grey: (H, W) float32 grey levels.
        rho: (H, W) float32 inverse depth, NaN unknown.
        variance: (H, W) float32 its variance, infinite where unknown.
        dense: (h, w) uint8 grey of the dense grid.
        depth: What ``rho`` and ``variance`` were taken from, at any resolution.
    """

    camera: PinholeCamera
    grey: Array
    rho: Array
    variance: Array
    dense: Tensor
    depth: InverseDepth

    @classmethod
    def of(cls, camera: PinholeCamera, dense: Tensor, depth: InverseDepth, cell: int) -> Surface:
        """Makes the coarse view.

        Args:
            camera: Camera of the dense grid.
            dense: (H, W) uint8 grey on that grid.
            depth: Its inverse depth at any resolution, of which the nearest value to each cell's middle is taken.
            cell: Pixels of the dense grid each way that become one.
        """
        grid = coarse_camera(camera, cell)
        index = _middles(grid, cell / camera.height, cell / camera.width, depth.mean.shape, depth.mean.device)
        rho, variance = (
            field.reshape(-1).index_select(0, index).reshape(grid.height, grid.width).cpu().numpy()
            for field in (depth.mean, depth.variance)
        )
        grey = shrink(dense if dense.is_cpu else dense.float(), cell).astype(np.float32)
        return cls(grid, grey, rho, variance, dense, depth)

    @property
    def cell(self) -> int:
        """Pixels of the dense grid each way that are one here."""
        return self.dense.shape[1] // self.camera.width

    @cached_property
    def known(self) -> Flags:
        """(H, W): its inverse depth is known."""
        return self.variance < np.inf

    @cached_property
    def filled(self) -> Array:
        """(H, W) inverse depth, zero where it is unknown."""
        return np.where(np.isnan(self.rho), np.float32(0), self.rho)

    @cached_property
    def typical(self) -> Any:
        """Median of what is known of its inverse depth; 1 where nothing is."""
        thinned = self.rho.reshape(-1)[::THINNED]
        known = thinned[~np.isnan(thinned)]
        return median(known) if len(known) else np.float32(1)

    @cached_property
    def range(self) -> tuple[Array, Array]:
        """Least and greatest inverse depth, each (H, W), in the neighbourhood of each pixel; NaN where none is."""
        square, blank = np.ones((3, 3), dtype=np.uint8), np.isnan(self.rho)
        far = cv2.erode(np.where(blank, np.float32(np.inf), self.rho), square)
        near = cv2.dilate(np.where(blank, np.float32(-np.inf), self.rho), square)
        none = np.isinf(far)
        far[none], near[none] = np.nan, np.nan
        return far, near


def shrink(field: Tensor, cell: int) -> Array:
    """Returns the means over cells of ``cell`` by ``cell`` pixels.

    Args:
        field: (H, W) or (H, W, C); what is left over of it is cut off.
        cell: Pixels each way.

    Returns:
        (H // cell, W // cell) or (C, H // cell, W // cell), of the same type.
    """
    height, width = (n // cell for n in field.shape[:2])
    return consistency.shrink(field[: height * cell, : width * cell], height, width).cpu().numpy()


@lru_cache(maxsize=16)
def _middles(grid: PinholeCamera, down: float, right: float, size: tuple[int, int], device: torch.device) -> Tensor:
    """Returns the (H * W,) flat places, in a field of ``size``, of the middles of a grid's cells.

    Args:
        grid: Camera of the grid (H, W).
        down: Height of a cell, as a share of the field's.
        right: Its width, likewise.
        size: Rows and columns of the field.
        device: Where they are wanted.
    """
    rows = ((torch.arange(grid.height, device=device) + 0.5) * (down * size[0])).long()
    columns = ((torch.arange(grid.width, device=device) + 0.5) * (right * size[1])).long()
    return (rows[:, None] * size[1] + columns).flatten()


@lru_cache(maxsize=16)
def pixel_rays(camera: PinholeCamera) -> tuple[Array, Array]:
    """Returns the (2, H, W) pixels of a camera and their (3, H * W) rays with z = 1."""
    pixels = camera.pixels()
    rays = camera.rays(pixels).flatten(0, 1).T
    return tuple(np.ascontiguousarray(part.numpy()) for part in (pixels.movedim(-1, 0), rays))  # type: ignore[return-value]


def cell_of(camera: PinholeCamera) -> int:
    """Returns how many pixels of a camera's dense grid, each way, share one probability."""
    return max(LEAST_CELL, round((camera.width * camera.height / CELLS) ** 0.5))


def coarse_camera(camera: PinholeCamera, cell: int) -> PinholeCamera:
    """Returns the camera of a grid whose pixels are ``cell`` by ``cell`` of another's; what is left over is cut off."""
    return PinholeCamera(
        camera.fx / cell,
        camera.fy / cell,
        (camera.cx + 0.5) / cell - 0.5,
        (camera.cy + 0.5) / cell - 0.5,
        camera.width // cell,
        camera.height // cell,
    )


def thin(field: Tensor, cell: int) -> Tensor:
    """Returns what a dense field (H, W, ...) is in the middles of cells."""
    height, width = field.shape[0] // cell, field.shape[1] // cell
    return field[cell // 2 :: cell, cell // 2 :: cell][:height, :width]
