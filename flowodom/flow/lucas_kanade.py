"""Dense pyramidal Lucas-Kanade: every pixel's window moves as one.

Source: Lucas and Kanade, "An Iterative Image Registration Technique with an Application to Stereo Vision" (IJCAI
1981); Bouguet, "Pyramidal Implementation of the Lucas Kanade Feature Tracker" (2000) for the pyramid; Baker and
Matthews, "Lucas-Kanade 20 Years On" (IJCV 2004) for gradients that stay with the first image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowodom.flow import DenseFlow
from flowodom.flow.pyramid import blur, gradient, residual, solve


class LucasKanadeFlow:
    """Lucas-Kanade at every pixel, all windows at once by convolution.

    The window of a pixel x asks for the one flow u(x) that makes ``sum_y w(y) (r(y) + g(y) (u(x) - u(y)))^2`` least,
    where r is the difference left by the present flow u(y) of each pixel y in it and g the gradient of the first image.
    So a step costs one warp of the whole image and two blurs. Pixels whose match left the image have no r; they hold on
    to their flow.

    Args:
        levels: Most levels of the pyramid.
        iterations: Steps at full size; coarser levels, where most of the way is gone and little of the time, take four
            times as many.
        window: Standard deviation of the Gaussian window, pixels.
        damping: Strength, grey levels squared, with which a window without texture takes the mean flow around it.
    """

    def __init__(self, *, levels: int = 5, iterations: int = 4, window: float = 2.5, damping: float = 4.0) -> None:
        self._levels = levels
        self._iterations = iterations
        self._window = window
        self._damping = damping

    def __call__(self, previous: Tensor, current: Tensor, initial: Tensor | None = None) -> DenseFlow:
        """Finds the flow; see ``FlowMethod``."""
        return solve(previous, current, initial, self._refine, levels=self._levels, support=self._window)

    def _refine(self, first: Tensor, second: Tensor, flow: Tensor, level: int) -> Tensor:
        ix, iy = gradient(first)
        xx, xy, yy = ix * ix, ix * iy, iy * iy
        a, b, c = blur(torch.cat((xx, xy, yy), dim=1), self._window).chunk(3, dim=1)
        a, c = a + self._damping, c + self._damping
        determinant = a * c - b * b
        for _ in range(self._iterations if level == 0 else 4 * self._iterations):
            difference, _ = residual(first, second, flow)
            u, v = flow.chunk(2, dim=1)
            sides = torch.cat((xx * u + xy * v - ix * difference, xy * u + yy * v - iy * difference, u, v), dim=1)
            p, q, mean_u, mean_v = blur(sides, self._window).chunk(4, dim=1)
            p, q = p + self._damping * mean_u, q + self._damping * mean_v
            flow = torch.cat(((c * p - b * q) / determinant, (a * q - b * p) / determinant), dim=1)
        return flow
