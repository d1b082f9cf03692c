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


def move(points: Tensor, velocity: Tensor, seconds: float) -> Tensor:
    """Returns where (..., 3) points with (..., 3) velocities of their own will be in a world that stays."""
    return points + seconds * velocity


@dataclass(frozen=True)
class Judgement:
    """How far forecasts missed what then happened.

    Attributes:
        seconds: (K,) times ahead.
        translation: (K,) median distance, metres; NaN where nothing can be compared.
        rotation: (K,) median angle, degrees.
        count: (K,) how many forecasts were judged.
    """

    seconds: tuple[float, ...]
    translation: NDArray[np.float64]
    rotation: NDArray[np.float64]
    count: NDArray[np.int64]


def judge(
    stamps: NDArray[np.int64],
    poses: Tensor,
    twists: Tensor,
    segments: NDArray[np.int64] | None = None,
    *,
    seconds: Sequence[float] = HORIZONS,
    tolerance: float = 0.05,
) -> Judgement:
    """Compares forecasts from every frame with the poses that came.

    Args:
        stamps: (N,) nanoseconds, ascending.
        poses: (N, 4, 4) float64 ``T_odom_body``: the estimate's own or the truth's.
        twists: (N, 6) twist at each, NaN for none.
        segments: (N,) run of the tracker that each belongs to; forecasts across two are not judged. One run when None.
        seconds: Times ahead.
        tolerance: Most seconds between the time foreseen and the frame it is compared with.
    """
    runs = np.zeros(len(stamps), dtype=np.int64) if segments is None else segments
    known = torch.isfinite(twists).all(-1).numpy()
    translation, rotation, count = [], [], []
    for ahead in seconds:
        wanted = stamps + round(ahead * 1e9)
        after = np.searchsorted(stamps, wanted).clip(0, max(len(stamps) - 1, 0))
        before = (after - 1).clip(0)
        nearer = np.where(np.abs(stamps[before] - wanted) < np.abs(stamps[after] - wanted), before, after)
        good = known & (np.abs(stamps[nearer] - wanted) <= tolerance * 1e9) & (runs == runs[nearer])
        start, end = np.flatnonzero(good), nearer[good]
        if not len(start):
            translation.append(np.nan)
            rotation.append(np.nan)
            count.append(0)
            continue
        lapse = torch.from_numpy((stamps[end] - stamps[start]) * 1e-9)[:, None]
        foreseen = poses[start] @ se3.exp(lapse * twists[start])
        miss = se3.inverse(foreseen) @ poses[end]
        translation.append(float(miss[:, :3, 3].norm(dim=-1).median()))
        rotation.append(float(se3.so3_log(miss[:, :3, :3]).norm(dim=-1).rad2deg().median()))
        count.append(len(start))
    return Judgement(tuple(seconds), np.array(translation), np.array(rotation), np.array(count))
