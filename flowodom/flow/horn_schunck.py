"""Pyramidal Horn-Schunck: the smoothest flow that explains the images.

Source: Horn and Schunck, "Determining Optical Flow" (Artificial Intelligence, 1981); Meinhardt-Llopis, Sanchez and
Kondermann, "Horn-Schunck Optical Flow with a Multi-Scale Strategy" (IPOL 2013) for pyramid and warping.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from flowodom.flow import DenseFlow
from flowodom.flow.pyramid import blur, gradient, residual, solve

PRESMOOTHING = 0.8
"""Standard deviation, pixels, of the blur that keeps image noise out of single-pixel gradients."""

SUPPORT = 2.0
"""Standard deviation, pixels, of the neighbourhood that one flow vector mostly depends on where there is texture."""


class HornSchunckFlow:
    """Horn-Schunck with warping.

    Finds the least ``sum (r + g (u - u0))^2 + smoothness^2 |grad u|^2``: r is the difference left by the flow u0 of the
    last warp, g the gradient half-way between the images. Solved by Jacobi steps, on both directions at once. No warp
    may move a pixel by more than one: beyond it the linear model of the images says nothing, and a few wild pixels at a
    coarse level would drag large parts of the finer ones along.

    Args:
        levels: Most levels of the pyramid.
        warps: Times that the equations are set up anew at full size; twice as often at coarser levels.
        iterations: Jacobi steps between them.
        smoothness: Weight of smoothness against brightness, grey levels.
    """

    def __init__(self, *, levels: int = 5, warps: int = 3, iterations: int = 30, smoothness: float = 10.0) -> None:
        self._levels = levels
        self._warps = warps
        self._iterations = iterations
        self._smoothness = smoothness

    def __call__(self, previous: Tensor, current: Tensor, initial: Tensor | None = None) -> DenseFlow:
        """Finds the flow; see ``FlowMethod``."""
        return solve(previous, current, initial, self._refine, levels=self._levels, support=SUPPORT)

    def _refine(self, first: Tensor, second: Tensor, flow: Tensor, level: int) -> Tensor:
        first, second = blur(first, PRESMOOTHING), blur(second, PRESMOOTHING)
        for _ in range(self._warps if level == 0 else 2 * self._warps):
            start = flow
            difference, inside = residual(first, second, start)
            slope = torch.cat(gradient(first + 0.5 * difference), dim=1) * inside
            constant = difference - (slope * start).sum(1, keepdim=True)
            step = slope / (self._smoothness**2 + (slope * slope).sum(1, keepdim=True))
            for _ in range(self._iterations):
                mean = neighbour_mean(flow)
                flow = mean - step * ((slope * mean).sum(1, keepdim=True) + constant)
            flow = start + (flow - start).clamp(-1, 1)
        return flow


def neighbour_mean(field: Tensor) -> Tensor:
    """Returns the mean of the eight neighbours in (B, C, H, W), the diagonal ones at half weight."""
    padded = functional.pad(field, (1, 1, 1, 1), mode="replicate")
    centre = padded[..., 1:-1, :]
    vertical = padded[..., :-2, :] + padded[..., 2:, :]
    sides = 2 * centre + vertical
    return (sides[..., :-2] + sides[..., 2:] + 2 * vertical[..., 1:-1]) / 12
