"""Metric scale for a single camera from its height above flat ground.

On a plane the inverse depth is linear in the ray: ``n . X = h`` with ``X = ray / rho`` gives ``rho = (n / h) . ray``.
So the plane is a robust linear fit to the inverse depths of points, and the height follows from its length. What stands
on the ground tilts such a plane; but a camera that is carried at a height moves along it, so that ``n . X = 0`` for the
places where it was.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MOST_TILT = math.radians(25)
"""Angle between the camera's downward axis and the ground's normal, up to which a plane can be the ground."""

LEAST_POINTS = 40
"""Points on the plane needed to believe it."""

UNEVEN = 0.003
"""Deviation of the height along the way, as a share of it, ..."""

BENT = 0.01
"""... and by how much more for every length that the camera has come: a road is flat to half a degree."""

ALIKE = 10
"""Points that err alike, as they lie side by side."""

LEAST_DEVIATION = 0.025
"""Relative deviation that no height is surer than: what a road is not a plane by."""


def ground_height(rays: Tensor, rho: Tensor, variance: Tensor, been: Tensor) -> tuple[float, float] | None:
    """Finds the height of the camera above the ground plane.

    Args:
        rays: (N, 3) float64 rays of points, z = 1, optical frame.
        rho: (N,) float64 their inverse depths.
        variance: (N,) float64 of those.
        been: (M, 3) float64 places where the camera has been, in its present frame and their unit of length.

    Returns:
        Height in the unit of length of the depths and its relative standard deviation; None where no ground is seen.
    """
    below = (rays[:, 1] > 0.05) & (rays[:, 0].abs() < 2.5 * rays[:, 1]) & (variance < (0.3 * rho) ** 2) & (rho > 0)
    ray, rho, variance = rays[below], rho[below], variance[below]
    if len(rho) < LEAST_POINTS:
        return None
    # On level ground rho / y is the same everywhere: its mode starts the fit.
    ratio = (rho / ray[:, 1]).log()
    edges = torch.linspace(float(ratio.quantile(0.01)), float(ratio.quantile(0.99)) + 1e-6, 41, dtype=torch.float64)
    counts = torch.histogram(ratio.cpu(), edges).hist
    peak = int(torch.nn.functional.avg_pool1d(counts[None], 3, 1, 1)[0].argmax())
    plane = torch.zeros(3, dtype=torch.float64, device=ray.device)
    plane[1] = float(0.5 * (edges[peak] + edges[peak + 1]).exp())
    relative, far = 0.2, been.norm(dim=1)
    for _ in range(12):
        expected = ray @ plane
        spread = variance + (relative * expected) ** 2
        squared = (rho - expected) ** 2 / spread
        weight = (4 / (4 + squared)) ** 2 / spread
        level = ALIKE / len(been) / ((BENT * far * plane.norm()) ** 2 + UNEVEN**2) if len(been) else far
        normal_matrix = (ray * weight[:, None]).T @ ray + (been * level[:, None]).T @ been
        plane = torch.linalg.solve(
            normal_matrix + 1e-9 * normal_matrix.diagonal().mean() * torch.eye(3), ray.T @ (weight * rho)
        )
        relative = max(0.7 * relative, 0.02)
    on_plane = squared < 4
    normal = plane / plane.norm()
    if int(on_plane.sum()) < max(LEAST_POINTS, 0.3 * len(rho)) or float(normal[1]) < math.cos(MOST_TILT):
        return None
    scatter = float((weight[on_plane] * (rho - expected)[on_plane] ** 2).sum() / weight[on_plane].sum())
    typical = float((weight[on_plane] * rho[on_plane] ** 2).sum() / weight[on_plane].sum())
    return 1 / float(plane.norm()), max(math.sqrt(scatter / typical / (on_plane.sum() / ALIKE)), LEAST_DEVIATION)
