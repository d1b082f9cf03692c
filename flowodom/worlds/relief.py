"""The shape of hilly ground: a few waves, long ones high and short ones low, as in nature."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_WAVES = ((1.3, 2.1, 0.4), (-3.4, 2.6, 1.9), (5.2, 6.1, 3.1), (11.3, -8.7, 5.0))
"""Cycles over the whole length along x and y, and phase, radians."""

_WEIGHTS = tuple(1 / math.hypot(a, b) for a, b, _ in _WAVES)
_SHARE = tuple(weight / sum(_WEIGHTS) for weight in _WEIGHTS)


def height(place: Tensor, half: Tensor) -> Tensor:
    """Returns the (...) heights, metres, at (2, ...) places of ground with (3, ...) half extents; broadcasts."""
    x, y = math.pi * place[0] / half[0], math.pi * place[1] / half[1]
    total = torch.zeros_like(x)
    for (a, b, phase), share in zip(_WAVES, _SHARE, strict=True):
        total = total + share * torch.sin(a * x + b * y + phase)
    return total * half[2]


def slope(place: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the (...) derivatives of ``height`` along x and y."""
    x, y = math.pi * place[0] / half[0], math.pi * place[1] / half[1]
    by_x, by_y = torch.zeros_like(x), torch.zeros_like(y)
    for (a, b, phase), share in zip(_WAVES, _SHARE, strict=True):
        wave = share * torch.cos(a * x + b * y + phase)
        by_x, by_y = by_x + a * wave, by_y + b * wave
    return by_x * half[2] * math.pi / half[0], by_y * half[2] * math.pi / half[1]
