"""Where the camera, the objects and their points will be: everything goes on with its present twist.

The covariance grows with the time ahead: the twist's own, and that of the accelerations that nobody can foresee.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowodom.geometry import se3

HORIZONS = (0.1, 0.25, 0.5, 1.0, 2.0)
"""Seconds ahead at which forecasts are made and judged."""

ACCELERATION = (1.0, 1.0)
"""What bodies are expected to do, m/s^2 and rad/s^2, one standard deviation."""


@dataclass(frozen=True)
class Forecast:
    """Where one body will be.

    Attributes:
        seconds: (K,) times ahead.
        poses: (K, 4, 4) float64 ``T_odom_body``.
        covariances: (K, 6, 6) of their right perturbations, the present pose being known.
    """

    seconds: tuple[float, ...]
    poses: Tensor
    covariances: Tensor


def forecast(
    pose: Tensor, twist: Tensor, covariance: Tensor | None = None, seconds: Sequence[float] = HORIZONS
) -> Forecast:
    """Extrapolates a body with its constant twist.

    Args:
        pose: (4, 4) float64 ``T_odom_body``.
        twist: (6,) velocity of the body in itself, m/s and rad/s, translation first.
        covariance: (6, 6) of the twist; zero when None.
        seconds: Times ahead.
    """
    ahead = torch.tensor(tuple(seconds), dtype=torch.float64)
    known = torch.zeros(6, 6, dtype=torch.float64) if covariance is None else covariance
    unforeseen = torch.diag(torch.tensor([ACCELERATION[0]] * 3 + [ACCELERATION[1]] * 3, dtype=torch.float64) ** 2)
    square = (ahead * ahead)[:, None, None]
    covariances = square * known + 0.25 * square * square * unforeseen
    return Forecast(tuple(seconds), pose @ se3.exp(ahead[:, None] * twist), covariances)


def move(points: Tensor, velocity: Tensor, seconds: float | Tensor) -> Tensor:
    """Returns where (..., 3) points with (..., 3) velocities of their own will be in a world that stays."""
    return points + seconds * velocity


@dataclass(frozen=True)
class Way:
    """Where one body was, and how it moved.

    Attributes:
        stamps: (N,) nanoseconds, ascending.
        poses: (N, 4, 4) float64 ``T_odom_body``: the estimate's own or the truth's.
        twists: (N, 6) twist at each, NaN for none.
        segments: (N,) run of the tracker that each belongs to; forecasts across two are not judged. One run when None.
        points: (M, 3) points fixed to the body, in it; None for none.
    """

    stamps: NDArray[np.int64]
    poses: Tensor
    twists: Tensor
    segments: NDArray[np.int64] | None = None
    points: Tensor | None = None


@dataclass(frozen=True)
class Judgement:
    """How far forecasts missed what then happened; medians, NaN where nothing can be compared.

    Attributes:
        seconds: (K,) times ahead.
        translation: (K,) distance, metres.
        rotation: (K,) angle, degrees.
        points: (K,) distance of points on the bodies that were to go on straight, each with its own velocity, metres.
        resting: (K,) what ``translation`` would be had they been expected to stay.
        count: (K,) how many forecasts were judged.
    """

    seconds: tuple[float, ...]
    translation: NDArray[np.float64]
    rotation: NDArray[np.float64]
    points: NDArray[np.float64]
    resting: NDArray[np.float64]
    count: NDArray[np.int64]

    def as_dict(self) -> dict[str, list[float | None]]:
        """Returns the figures by name, None where there is none."""
        figures = {name: getattr(self, name) for name in ("translation", "rotation", "points", "resting", "count")}
        listed = {name: [None if np.isnan(x) else x for x in values.tolist()] for name, values in figures.items()}
        return {"seconds": list(self.seconds), **listed}


def judge(*ways: Way, seconds: Sequence[float] = HORIZONS, tolerance: float = 0.05) -> Judgement:
    """Compares forecasts from every frame with the poses that came.

    Args:
        ways: Of the bodies, all judged together.
        seconds: Times ahead.
        tolerance: Most seconds between the time foreseen and the frame it is compared with.
    """
    rows = []
    for ahead in seconds:
        missed = [_missed(way, ahead, tolerance) for way in ways]
        pooled = [torch.cat(parts) for parts in zip(*missed, strict=True)] or [torch.zeros(0)] * 4
        rows.append([*(float(x.median()) if len(x) else np.nan for x in pooled), len(pooled[0])])
    translation, rotation, points, resting, count = np.array(rows).T
    return Judgement(tuple(seconds), translation, rotation, points, resting, count.astype(np.int64))


def _missed(way: Way, ahead: float, tolerance: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns distances and angles (L,), distances of points (P,), and distances had it stayed (L,)."""
    stamps, known = way.stamps, torch.isfinite(way.twists).all(-1).numpy()
    runs = np.zeros(len(stamps), dtype=np.int64) if way.segments is None else way.segments
    wanted = stamps + round(ahead * 1e9)
    after = np.searchsorted(stamps, wanted).clip(0, max(len(stamps) - 1, 0))
    before = (after - 1).clip(0)
    nearer = np.where(np.abs(stamps[before] - wanted) < np.abs(stamps[after] - wanted), before, after)
    good = known & (np.abs(stamps[nearer] - wanted) <= tolerance * 1e9) & (runs == runs[nearer])
    start, end = np.flatnonzero(good), nearer[good]
    lapse = torch.from_numpy((stamps[end] - stamps[start]) * 1e-9)[:, None]
    now, then, twist = way.poses[start], way.poses[end], way.twists[start]
    miss = se3.inverse(now @ se3.exp(lapse * twist)) @ then
    fixed = torch.zeros(0, 3, dtype=torch.float64) if way.points is None else way.points
    velocity = twist[:, None, :3] + torch.linalg.cross(twist[:, None, 3:].expand(-1, len(fixed), 3), fixed[None])
    straight = se3.act(now[:, None], move(fixed, velocity, lapse[..., None]))
    return (
        miss[:, :3, 3].norm(dim=-1),
        se3.so3_log(miss[:, :3, :3]).norm(dim=-1).rad2deg(),
        (straight - se3.act(then[:, None], fixed)).norm(dim=-1).flatten(),
        (then - now)[:, :3, 3].norm(dim=-1),
    )
