"""Points against a cloud that is known already, as cells that each hold a normal distribution of its points.

A cell across which a surface runs is thin along the surface's normal and wide along the surface. Points are held to the
surface and may slide along it: where in its cell a point lies says nothing about motion. What no surface tells is left
to the prior.

Source: Biber and Strasser, "The Normal Distributions Transform" (2003); Segal et al., "Generalized-ICP" (2009) for
distributions that are wide along the surface; Koide et al., "Voxelized GICP" (2021) for cells in place of neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from flowodom.geometry import se3
from flowodom.registration.refine import OUTLIER

LEAST_POINTS = 5
"""Points that a cell needs for a distribution."""

CORRELATION = 10.0
"""How many points share one error: neighbours lie in one cell, whose distribution is not exact."""

ITERATIONS = 8
"""Most steps of the fit."""

CONVERGED = 1e-5
"""Step, metres and radians, below which the fit has ended."""

THIN, FREE = 0.15, 10.0
"""Deviation of a cell's points, as a share of its size, up to which a surface tells where they are, and the deviation
that is taken in place of any greater one."""

_BITS = 20
"""Bits of a cell's index along each axis."""


@dataclass(frozen=True)
class Distributions:
    """Cells of a cloud.

    Attributes:
        size: Of a cell, metres.
        keys: (M,) int64, ascending: where each is.
        means: (M, 3) float64 metres.
        covariances: (M, 3, 3), wide along surfaces.
    """

    size: float
    keys: Tensor
    means: Tensor
    covariances: Tensor

    @classmethod
    def of(cls, points: Tensor, size: float, weight: Tensor | None = None) -> Distributions:
        """Sorts points into cells.

        Args:
            points: (N, 3) float64 metres.
            size: Of a cell, metres.
            weight: (N,) positive: how much each counts; all alike when None.
        """
        keys, place = torch.unique(_keys(points, size), return_inverse=True)
        ones = torch.ones(len(points), dtype=torch.float64)
        weight = ones if weight is None else weight
        products = (points[:, :, None] * points[:, None, :]).flatten(1)
        sums = torch.zeros(len(keys), 14, dtype=torch.float64)
        columns = (weight[:, None] * points, weight[:, None] * products, weight[:, None], ones[:, None])
        sums.index_add_(0, place, torch.cat(columns, dim=1))
        enough = sums[:, 13] >= LEAST_POINTS
        keys, sums = keys[enough], sums[enough]
        means, products = sums[:, :3] / sums[:, 12:13], sums[:, 3:12] / sums[:, 12:13]
        spread = products.view(-1, 3, 3) - means[:, :, None] * means[:, None, :]
        values, axes = torch.linalg.eigh(spread)
        values = torch.where(values < (THIN * size) ** 2, values.clamp_min(0), (FREE * size) ** 2)
        return cls(size, keys, means, (axes * values[:, None]) @ axes.mT)

    def find(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the cells (N,) in which (N, 3) points lie, and whether there is one; there must be any cell."""
        keys = _keys(points, self.size)
        cell = torch.searchsorted(self.keys, keys).clamp_max(len(self.keys) - 1)
        return cell, self.keys[cell] == keys


class Alignment(NamedTuple):
    """Where points lie on a cloud.

    Attributes:
        motion: (4, 4) float64 ``T_cloud_points``.
        agreement: Share of the points, 0 to 1, that lie on the cloud.
    """

    motion: Tensor
    agreement: float


def align(points: Tensor, cloud: Distributions, start: Tensor, covariance: Tensor, noise: float) -> Alignment:
    """Fits points to a cloud.

    Args:
        points: (N, 3) float64 metres.
        cloud: Cells of the cloud.
        start: (4, 4) float64 ``T_cloud_points`` as it is expected.
        covariance: (6, 6) of its right perturbation.
        noise: Standard deviation of a point, metres.
    """
    if not len(cloud.keys) or not len(points):
        return Alignment(start, 0.0)
    prior, motion = torch.linalg.inv(covariance), start
    floor = noise**2 * torch.eye(3, dtype=torch.float64)
    for _ in range(ITERATIONS):
        error, information, squared, there = _residuals(points, cloud, motion, floor)
        weight = there / (1 + squared / OUTLIER**2) ** 2
        jacobian = se3.act_jacobian(motion, points)
        weighted = jacobian.transpose(1, 2) @ (weight[:, None, None] * information) / CORRELATION
        hessian, gradient = (weighted @ jacobian).sum(0), (weighted @ error[..., None]).sum(0)[:, 0]
        away = se3.log(se3.inverse(start) @ motion)
        step = torch.linalg.solve(hessian + prior, gradient - prior @ away)
        motion = motion @ se3.exp(step)
        if float(step.norm()) < CONVERGED:
            break
    _, _, squared, there = _residuals(points, cloud, motion, floor)
    return Alignment(motion, float((there & (squared < OUTLIER**2)).double().mean()))


def _residuals(
    points: Tensor, cloud: Distributions, motion: Tensor, floor: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the error (N, 3), its information (N, 3, 3), squared deviations (N,) and whether there is a cell."""
    moved = se3.act(motion, points)
    cell, there = cloud.find(moved)
    error = cloud.means[cell] - moved
    information = torch.linalg.inv(cloud.covariances + floor)[cell]
    squared = (error[:, None] @ information @ error[..., None])[:, 0, 0]
    return error, information, squared, there


def _keys(points: Tensor, size: float) -> Tensor:
    index = (points / size).floor().long() + (1 << (_BITS - 1))
    return (index[:, 0] << 2 * _BITS) | (index[:, 1] << _BITS) | index[:, 2]
