"""Depth between its samples: small gaps are closed where all around lies on one surface.

Depth that was moved from another camera onto the image without being filled, as that of head-worn devices, or of a
lidar, is known at every second to tenth pixel only, and reading a field asks for four known neighbours.

Source: Knutsson and Westin, "Normalized and differential convolution" (CVPR 1993), with a triangular applicability,
which on a regular grid of samples is linear interpolation.
"""

from __future__ import annotations

import torch
from torch import Tensor

GAPPY = 0.02
"""Share of the known pixels with an unknown one to their right, from which on there are gaps and not only holes."""

WIDEST = 6
"""Most pixels from the middle of a gap to its edge."""

ONE_SURFACE = 0.015
"""Deviation of inverse depths around a pixel, as a share of their mean, up to which they lie on one surface."""


def closed(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Closes the gaps of a field; what is known stays as it is.

    Args:
        mean: (H, W) float32 inverse depth, NaN unknown.
        variance: (H, W) float32, infinite where unknown.

    Returns:
        Both, with gaps as narrow as most of the field has filled in: a hole that is wider stays, and so does one across
        which depth jumps. What is filled in is as unsure as its surroundings and their spread make it.
    """
    known = mean.isfinite()
    radius = _radius(known)
    if not radius:
        return mean, variance
    inverse, noise = mean.nan_to_num(), torch.where(known, variance, 0)
    # Less what is usual, squares lose no digits.
    usual = inverse.sum() / known.sum()
    shifted = torch.where(known, inverse - usual, 0)
    share, first, second, noise = _smoothed(
        torch.stack((known.to(mean.dtype), shifted, shifted * shifted, noise)), radius
    )
    share = share.clamp_min(1e-6)
    around, spread = usual + first / share, (second / share - (first / share) ** 2).clamp_min(0)
    fill = _spanned(known, radius) & ~known & (spread < (ONE_SURFACE * around) ** 2)
    return torch.where(fill, around, mean), torch.where(fill, noise / share + spread, variance)


def _radius(known: Tensor) -> int:
    """Returns by how many pixels what is known (H, W) must grow to be whole but for holes; zero where it is."""
    for radius in range(WIDEST):
        ragged = (known[:, :-1] & ~known[:, 1:]).sum() / known.sum().clamp_min(1)
        if float(ragged) < GAPPY:
            return radius
        known = _grown(known)
    return WIDEST


def _grown(mask: Tensor) -> Tensor:
    """Returns a mask (H, W) that has grown by one pixel in all eight directions."""
    wide = mask.clone()
    wide[:, 1:] |= mask[:, :-1]
    wide[:, :-1] |= mask[:, 1:]
    high = wide.clone()
    high[1:] |= wide[:-1]
    high[:-1] |= wide[1:]
    return high


def _spanned(known: Tensor, radius: int) -> Tensor:
    """Returns the pixels (H, W) that known ones span: those that growing by ``radius`` fills from all sides."""
    for _ in range(radius):
        known = _grown(known)
    for _ in range(radius):
        known = ~_grown(~known)
    return known


def _smoothed(images: Tensor, radius: int) -> Tensor:
    """Returns images (C, H, W), whose mean weighs neighbours by a triangle that ends ``2 radius + 1`` pixels away."""
    size = 2 * radius + 1
    for dim in (1, 2):
        length, total = images.shape[dim], size * images
        for off in range(1, min(size, length)):
            for to, of in ((off, 0), (0, off)):
                total.narrow(dim, to, length - off).add_(images.narrow(dim, of, length - off), alpha=size - off)
        images = total / size**2
    return images
