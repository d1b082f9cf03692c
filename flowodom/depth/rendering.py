"""Differentiable volume rendering: from optical thickness along a ray to what is seen and how far away it is.

A ray is cut into cells, each with an optical thickness ``tau`` (density times length). Light from cell k reaches the
camera with the weight ``w_k = T_k - T_{k+1}``, ``T_k = exp(-sum_{j<k} tau_j)``; what passes all cells comes from the
background, which is one more, opaque, cell. So the weights are a probability of where the ray ends.

Source: Max, "Optical Models for Direct Volume Rendering" (1995); Mildenhall et al., "NeRF" (2020), equation 3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowodom.errors import ShapeError


def log_depths(near: float, far: float, cells: int, *, offset: Tensor | float = 0.5) -> Tensor:
    """Returns where the cells of a ray are sampled: evenly in the logarithm of depth.

    Equal steps in the logarithm are equal shares of depth, the measure in which a single image tells it.

    Args:
        near: Where the first cell begins, metres.
        far: Where the last cell ends, metres.
        cells: How many, K.
        offset: Where in its cell each sample lies, 0 to 1: a number, or (..., K) random ones for training.

    Returns:
        (K,) or (..., K) natural logarithms of depth, in metres.
    """
    step = math.log(far / near) / cells
    start = offset if isinstance(offset, Tensor) else torch.full((cells,), offset)
    return math.log(near) + step * (torch.arange(cells, dtype=start.dtype, device=start.device) + start)


def composite(thickness: Tensor) -> Tensor:
    """Returns the share of each cell in what a ray sees.

    Args:
        thickness: (..., K) optical thickness of the cells, >= 0, nearest first.

    Returns:
        (..., K + 1) weights >= 0 that sum to one, the last of the background.
    """
    passed = torch.exp(-torch.cumsum(thickness, dim=-1))
    before = torch.cat((torch.ones_like(passed[..., :1]), passed), dim=-1)
    return torch.cat((before[..., :-1] - passed, passed[..., -1:]), dim=-1)


def moments(weights: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and variance (...) of values under a ray's weights.

    Args:
        weights: (..., K + 1) as ``composite`` returns them.
        values: (K + 1,) or (..., K + 1), for example the inverse depth of each cell.

    Raises:
        ShapeError: There is not one value for each weight.
    """
    if values.shape[-1] != weights.shape[-1]:
        raise ShapeError(f"moments needs a value for each of {weights.shape[-1]} weights, got {values.shape[-1]}")
    mean = (weights * values).sum(-1)
    # Not E[v^2] - E[v]^2, which cancels in single precision.
    return mean, (weights * (values - mean[..., None]) ** 2).sum(-1)
