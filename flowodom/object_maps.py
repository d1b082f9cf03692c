"""The 4D clouds: the cloud of each moving object in its own frame, fused over time, and where that frame went.

What is seen of an object is moved into its frame by its tracked pose and fused like a map of the world that stands
still with it. A tracked pose drifts, so each cloud is first fitted to what is known of the object, with the tracked
motion since the last one as the prior; one that does not fit is left out. Points of other things that were taken for
the object do not stand still with it and drop out: they do not repeat, or are seen through.

Source: Newcombe et al., "KinectFusion" (2011) for fitting each view to the fused model; Runz and Agapito, "Co-Fusion"
(2017) for one model an object.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowodom import mapping
from flowodom.errors import FlowodomError
from flowodom.geometry import se3
from flowodom.mapping import Array, RigidMap
from flowodom.registration.distributions import Alignment, Distributions, align
from flowodom.scene_flow.objects import MovingObject
from flowodom.trajectory import Trajectory, write_tum

MOST_VOXELS = 50_000
"""Voxels beyond which an object's map forgets the half that was seen least."""

MOST_OBJECTS = 50
"""Objects beyond which the one of which least was seen is forgotten."""

MOST_POSES = 20_000
"""Poses of an object beyond which every second one is forgotten."""

LEAST_POINTS = 30
"""Points that a cloud must show of an object, and that a saved cloud must have."""

CELL, NOISE = 4.0, 0.4
"""Size of the cells to which a cloud is fitted and deviation of its points, in voxels."""

WIDE, JUMP = 16.0, 100.0
"""Size of the cells, in voxels, and growth of the covariance, for a cloud that does not fit where it was tracked."""

SAMPLES = 600
"""Most points of a cloud that are fitted."""

DRIFT = (0.01, 0.03)
"""Least deviation of the tracked motion from one cloud to the next, m and rad."""

FITTING = 0.8
"""Share of a cloud's points that must lie on what is known of the object."""


class ObjectMap:
    """What is known of one object.

    Args:
        voxel: Size of a voxel, metres.
    """

    def __init__(self, voxel: float) -> None:
        self._voxel = voxel
        self._map = self._begin()
        self._tracked: MovingObject | None = None
        self._correction = se3.identity()
        self._fitted = self._missed = 0
        self._way: list[tuple[int, Array]] = []

    def _begin(self) -> RigidMap:
        return RigidMap(self._voxel, most=MOST_VOXELS, merge=1)

    def __len__(self) -> int:
        """Number of voxels, sure or not."""
        return len(self._map)

    def add(
        self, points: Array, colours: NDArray[np.uint8], on: NDArray[np.bool_], known: MovingObject, pose: Tensor
    ) -> None:
        """Takes in one cloud.

        Args:
            points: (N, 3) metres, optical frame of the camera.
            colours: (N, 3) RGB.
            on: (N,) True for the points of the object.
            known: The object as it is tracked.
            pose: (4, 4) float64 ``T_odom_camera``.
        """
        seen = torch.from_numpy(points[on])
        if len(seen) < LEAST_POINTS:
            return
        to_object = se3.inverse(known.pose) @ pose
        if self._tracked is not None:
            found = self._fit(se3.act(to_object, seen[:: -(-len(seen) // SAMPLES)]), self._doubt(known))
            if found.agreement < FITTING:
                self._missed += 1
                if self._missed <= self._fitted:
                    return
                # More clouds contradict what is known than made it: it was no single thing.
                self._map, self._fitted, self._missed, self._way = self._begin(), 0, 0, []
                found = Alignment(se3.identity(), 0.0)
            self._correction = found.motion
        self._tracked, self._fitted = known, self._fitted + 1
        to_map = self._correction @ to_object
        self._map.add(points, colours, ~on, to_map.numpy())
        self._way.append((known.stamp, (pose @ se3.inverse(to_map)).numpy()))
        if len(self._way) > MOST_POSES:
            del self._way[1::2]

    def _fit(self, points: Tensor, doubt: Tensor) -> Alignment:
        """Fits (N, 3) points, tracked frame, to what is known; again from farther away where tracking has jumped."""
        means, counts, noise = (
            torch.from_numpy(self._map.means),
            torch.from_numpy(self._map.counts),
            NOISE * self._voxel,
        )
        cells = Distributions.of(means, CELL * self._voxel, counts)
        found = align(points, cells, self._correction, doubt, noise)
        if found.agreement >= FITTING:
            return found
        wide = Distributions.of(means, WIDE * self._voxel, counts)
        jumped = align(points, wide, self._correction, JUMP * doubt, noise)
        return align(points, cells, jumped.motion, JUMP * doubt, noise)

    def _doubt(self, known: MovingObject) -> Tensor:
        """Returns the (6, 6) covariance of the motion that was tracked since the last cloud, a right perturbation."""
        assert self._tracked is not None
        turn = se3.adjoint(se3.inverse(known.pose) @ self._tracked.pose)
        grown = known.covariance - turn @ self._tracked.covariance @ turn.T
        values, vectors = torch.linalg.eigh(0.5 * (grown + grown.T))
        least = torch.tensor([DRIFT[0]] * 3 + [DRIFT[1]] * 3, dtype=torch.float64) ** 2
        return (vectors * values.clamp_min(0)) @ vectors.T + torch.diag(least)

    def cloud(self) -> tuple[Array, NDArray[np.uint8]]:
        """Returns (N, 3) points, metres, the object's frame, and (N, 3) colours of what is sure."""
        return self._map.cloud()

    def trajectory(self, frame: str, body: str) -> Trajectory:
        """Returns where the object's frame was at each cloud: ``T_frame_body``."""
        stamps = np.array([stamp for stamp, _ in self._way], dtype=np.int64)
        return Trajectory(stamps, np.array([pose for _, pose in self._way]), frame=frame, body=body)


class ObjectMaps:
    """What is known of all objects, by their numbers.

    Args:
        voxel: Size of a voxel, metres.
    """

    def __init__(self, voxel: float) -> None:
        self._voxel = voxel
        self.maps: dict[int, ObjectMap] = {}

    def add(
        self,
        points: Array,
        colours: NDArray[np.uint8],
        numbers: NDArray[np.int32],
        objects: Sequence[MovingObject],
        pose: Tensor,
    ) -> None:
        """Takes in one cloud.

        Args:
            points: (N, 3) metres, optical frame of the camera.
            colours: (N, 3) RGB.
            numbers: (N,) number of the object that each is on, 0 for none.
            objects: The objects as they are tracked.
            pose: (4, 4) float64 ``T_odom_camera``.
        """
        for known in objects:
            on = numbers == known.id
            if on.any():
                self.maps.setdefault(known.id, ObjectMap(self._voxel)).add(points, colours, on, known, pose)
        while len(self.maps) > MOST_OBJECTS:
            del self.maps[min(self.maps, key=lambda number: len(self.maps[number]))]

    def clouds(self, frame: str) -> list[ObjectCloud]:
        """Returns what is known now of each object of which enough is, with its way in ``frame``."""
        found = []
        for number, known in sorted(self.maps.items()):
            points, colours = known.cloud()
            if len(points) >= LEAST_POINTS:
                found.append(ObjectCloud(number, points, colours, known.trajectory(frame, f"object_{number}")))
        return found


class ObjectCloud(NamedTuple):
    """The 4D cloud of one object.

    Attributes:
        number: The object's.
        points: (N, 3) metres, the object's frame.
        colours: (N, 3) RGB.
        way: Where that frame was, ``T_odom_object``.
    """

    number: int
    points: Array
    colours: NDArray[np.uint8]
    way: Trajectory


def write(path: Path, clouds: Sequence[ObjectCloud], voxel: float) -> list[Path]:
    """Writes each object beside a map: for ``map.ply`` ``map.object_3.ply`` and its way, ``map.object_3.tum``.

    Files of objects of an earlier map of that name are removed.

    Args:
        path: File of the map.
        clouds: The objects.
        voxel: Size of their voxels, metres.

    Returns:
        The files, their paths absolute.

    Raises:
        FlowodomError: A file cannot be written.
    """
    path = path.resolve()
    pattern = re.compile(re.escape(path.stem) + r"\.object_\d+\.(ply|tum)")
    try:
        for old in path.parent.glob("*.object_*"):
            if pattern.fullmatch(old.name):
                old.unlink()
    except OSError as error:
        raise FlowodomError(f"cannot replace {old}: {error.strerror or error}") from error
    files = []
    for number, points, colours, way in clouds:
        cloud, poses = (path.with_name(f"{path.stem}.object_{number}.{kind}") for kind in ("ply", "tum"))
        mapping.write(cloud, points, colours, voxel)
        write_tum(poses, way)
        files += [cloud, poses]
    return files
