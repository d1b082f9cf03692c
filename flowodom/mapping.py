"""Maps: clouds of one rigid thing, fused over time, free of what moved through it, of bounded size.

The static world is such a thing, and so is every moving object in a frame that goes along with it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flowodom.errors import FlowodomError

MOST_VOXELS = 2_000_000
"""A map that grows beyond it forgets the half that was seen least."""

LEAST_HITS = 3
"""A voxel seen in fewer clouds is noise."""

MERGE = 8
"""Clouds of the static world that are merged at a time."""

_MOST_HITS = 40
"""More hits do not make a voxel surer: whatever stood there may leave."""

_CELLS, _MARGIN = 64, 0.1
"""Cells across the picture in which a view's depth is kept, and how much nearer than all in its cell, relative, a voxel
must be to have been seen through."""

_BITS = 21
"""Bits of a voxel's index along each axis."""

Array = NDArray[np.float64]


class RigidMap:
    """Voxels of what stands still in one frame, each with the mean place and colour of the points seen in it.

    A voxel is kept while it is hit more often than it is seen through: what stood a while and then left is taken out
    again, also where nobody saw it move.

    Args:
        voxel: Size of a voxel, metres.
        most: Voxels beyond which the half that was seen least is forgotten.
        merge: Clouds that are merged at a time.
    """

    def __init__(self, voxel: float, *, most: int = MOST_VOXELS, merge: int = MERGE) -> None:
        self.voxel = voxel
        self._most, self._every = most, merge
        self._keys: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        # Sums of x y z r g b and of points; clouds that hit, clouds that saw through.
        self._sums: Array = np.zeros((0, 7))
        self._hits: Array = np.zeros(0)
        self._misses: Array = np.zeros(0)
        self._waiting: list[tuple[NDArray[np.int64], Array]] = []

    def __len__(self) -> int:
        """Number of voxels, those of clouds not yet merged left out."""
        return len(self._keys)

    def add(self, points: Array, colours: NDArray[np.uint8], moving: NDArray[np.bool_], pose: Array) -> None:
        """Takes in one cloud.

        Args:
            points: (N, 3) metres, optical frame of the camera.
            colours: (N, 3) RGB.
            moving: (N,) True for points of things that move; they only tell what lies behind them is hidden.
            pose: (4, 4) ``T_map_camera``.
        """
        if len(points) == 0:
            return
        still = points[~moving]
        world = still @ pose[:3, :3].T + pose[:3, 3]
        index = np.floor(world / self.voxel).astype(np.int64) + (1 << (_BITS - 1))
        inside = ((index >= 0) & (index < 1 << _BITS)).all(1)
        keys = (index[inside] << np.array([2 * _BITS, _BITS, 0])).sum(1)
        values = np.column_stack((world[inside], colours[~moving][inside], np.ones(inside.sum())))
        self._waiting.append((keys, values))
        if len(self._waiting) >= self._every:
            self._merge()
            self._carve(points, pose)

    @property
    def means(self) -> Array:
        """(M, 3) mean places of all voxels, sure or not, metres."""
        return self._sums[:, :3] / self._sums[:, 6:]

    @property
    def counts(self) -> Array:
        """(M,) how many points were seen in each voxel."""
        return self._sums[:, 6]

    def cloud(self) -> tuple[Array, NDArray[np.uint8]]:
        """Returns (N, 3) points, metres, map frame, and (N, 3) colours of the voxels that are sure."""
        self._merge()
        kept = (self._hits >= LEAST_HITS) & (self._hits > self._misses)
        means = self._sums[kept, :6] / self._sums[kept, 6:]
        return means[:, :3], means[:, 3:].round().astype(np.uint8)

    def _merge(self) -> None:
        """Fuses the clouds that wait."""
        if not self._waiting:
            return
        hit = [np.unique(keys) for keys, _ in self._waiting]
        keys = np.concatenate((self._keys, *(keys for keys, _ in self._waiting)))
        values = np.concatenate((self._sums, *(values for _, values in self._waiting)))
        self._waiting.clear()
        unique, place = np.unique(keys, return_inverse=True)
        count, old = len(unique), place[: len(self._keys)]
        sums = np.zeros((count, 7))
        np.add.at(sums, place, values)
        hits, misses = np.zeros(count), np.zeros(count)
        hits[old], misses[old] = self._hits, self._misses
        for found in hit:
            hits[np.searchsorted(unique, found)] += 1
        np.minimum(hits, _MOST_HITS, out=hits)
        self._keys, self._sums, self._hits, self._misses = unique, sums, hits, misses
        if count > self._most:
            self._keep(np.argsort(-hits, kind="stable")[: self._most // 2])

    def _carve(self, points: Array, pose: Array) -> None:
        """Counts the voxels that a cloud sees through."""
        cell, depth = _cells(points)
        nearest = np.full((_CELLS * _CELLS), np.inf)
        np.minimum.at(nearest, cell, depth)
        nearest[nearest == np.inf] = 0.0
        local = (self.means - pose[:3, 3]) @ pose[:3, :3]
        ahead = np.flatnonzero(local[:, 2] > 0.05)
        cell, depth = _cells(local[ahead])
        through = ahead[depth < (1 - _MARGIN) * nearest[cell]]
        self._misses[through] += 2 * self._every
        self._keep(np.flatnonzero(self._misses < 2 * self._hits + 4 * self._every))

    def _keep(self, which: NDArray[np.int64]) -> None:
        which.sort()
        self._keys, self._sums = self._keys[which], self._sums[which]
        self._hits, self._misses = self._hits[which], self._misses[which]


def write(path: Path, points: Array, colours: NDArray[np.uint8], voxel: float) -> Path:
    """Writes a map as PLY, without voxels that stand alone.

    Args:
        path: The file.
        points: (N, 3) metres, map frame.
        colours: (N, 3) RGB.
        voxel: Size of the map's voxels, metres.

    Returns:
        The file, its path absolute.

    Raises:
        FlowodomError: The map is empty, open3d cannot be imported, or the file cannot be written.
    """
    try:
        import open3d
    except (ImportError, OSError) as error:
        raise FlowodomError(
            f"a map is written with open3d, which cannot be imported: {error}; pip install open3d, "
            "and on Linux apt install libusb-1.0-0 libgl1"
        ) from error
    if not len(points):
        raise FlowodomError("the map is empty: nothing static was seen with known depth for long enough")
    if path.suffix.lower() != ".ply":
        raise FlowodomError(f"a map is written as .ply, got {path}")
    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points))
    cloud.colors = open3d.utility.Vector3dVector(colours / 255)
    cloud, _ = cloud.remove_radius_outlier(nb_points=3, radius=2.5 * voxel)
    if cloud.is_empty():
        raise FlowodomError(
            f"the map is empty: its {len(points)} points are too far apart for voxels of {voxel:g} m; make them larger"
        )
    if not open3d.io.write_point_cloud(path, cloud):
        raise FlowodomError(f"cannot write the map to {path}: does its folder exist?")
    return path.resolve()


def _cells(points: Array) -> tuple[NDArray[np.int64], Array]:
    """Returns the (N,) cells of 90 by 90 degrees of view in which (N, 3) points are seen, and their depths."""
    z = np.maximum(points[:, 2], 1e-6)
    place = np.floor((points[:, :2] / z[:, None] + 1) * 0.5 * _CELLS).astype(np.int64)
    inside = ((place >= 0) & (place < _CELLS)).all(1) & (points[:, 2] > 0)
    cell = place[:, 1].clip(0, _CELLS - 1) * _CELLS + place[:, 0].clip(0, _CELLS - 1)
    # What is outside the cells counts as infinitely far: it neither hides nor is seen through.
    return cell, np.where(inside, points[:, 2], np.inf)
