"""Following pixels of a recording's first frame in 3D: chained scene flow, in the odometry's frame."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from flowodom.config import SessionConfig
from flowodom.errors import FlowodomError
from flowodom.frame import Frame
from flowodom.geometry import se3
from flowodom.odometry import Estimate
from flowodom.replay import replay
from flowodom.scene_flow.tracks import Tracks
from flowodom.session import Placement


class _Follower:
    """Starts the points at the first pair of frames in which all have a depth, and writes where they go."""

    def __init__(self, pixels: Sequence[tuple[float, float]]) -> None:
        self._pixels = pixels
        self.tracks: Tracks | None = None
        self.rows: list[tuple[int, int, float, float, float, int]] = []

    def observe(self, frame: Frame, estimate: Estimate, placement: Placement | None) -> None:
        """Takes in one frame."""
        if placement is None or estimate.lift is None or estimate.motion is None:
            return
        properties = estimate.lift(1)
        current = placement.pose @ placement.extrinsic
        previous = current @ se3.inverse(estimate.motion)
        if self.tracks is None:
            scale = torch.tensor([properties.camera.width / frame.camera.width] * 2, dtype=torch.float64)
            places = (torch.tensor(self._pixels, dtype=torch.float64) * scale).round().long()
            if not properties.camera.contains(places).all():
                size = f"{frame.camera.width}x{frame.camera.height}"
                raise FlowodomError(f"points must lie in the image of {size} pixels, got {list(self._pixels)}")
            points = properties.points[places[:, 1], places[:, 0]].cpu().double()
            if not torch.isfinite(points).all():
                return
            self.tracks = Tracks()
            self.tracks.add(se3.act(previous, points))
        self.tracks.advance(properties, previous, current, estimate.interval)
        for k, (point, seen) in enumerate(zip(self.tracks.points.tolist(), self.tracks.seen.tolist(), strict=True)):
            self.rows.append((estimate.stamp, k, *point, int(seen)))


def track(
    bag: Path,
    out: Path,
    pixels: Sequence[tuple[float, float]],
    config: SessionConfig | None = None,
    *,
    topics: Mapping[str, str | None] | None = None,
) -> Path:
    """Follows pixels through a recording.

    Args:
        bag: The recording.
        out: Folder for the results, which are those of ``replay`` and tracks.csv.
        pixels: (u, v) in the first frame that has depth.
        config: Parameters.
        topics: Topics that are not to be found automatically.

    Returns:
        The path of tracks.csv: stamp in nanoseconds, point, x, y, z in the odometry's frame, metres, and whether it was
        seen.

    Raises:
        FlowodomError: The recording cannot be used, a point is outside the image or never has a depth, or the results
            cannot be written.
        Exception: A fault in the program ended it early; what was followed until then is written.
    """
    follower = _Follower(pixels)
    result = replay(
        bag, out, config, topics=topics, report=False, points=False, progress=False, observe=follower.observe
    )
    if not follower.rows:
        raise FlowodomError("no frame has a depth at every point: choose others, or use a depth camera")
    path = out / "tracks.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("stamp", "point", "x", "y", "z", "seen"))
        writer.writerows(follower.rows)
    if result.failure is not None:
        raise result.failure
    return path
