"""Forward-backward consistency: where two opposite flows agree, and how far to trust them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

FLOW_NOISE = 0.15
"""Standard deviation, pixels, of dense flow where both directions agree perfectly."""


def sample(field: Tensor, pixels: Tensor) -> Tensor:
    """Samples a field bilinearly at pixels, clamping at the border.

    Args:
        field: (H, W, C) float.
        pixels: (..., 2) pixel coordinates (u, v) in the field's own grid.

    Returns:
        (..., C), NaN only where the field is NaN.
    """
    height, width = field.shape[:2]
    size = pixels.new_tensor((max(width - 1, 1), max(height - 1, 1)))
    grid = (2 * pixels / size - 1).reshape(1, 1, -1, 2).to(field.dtype)
    values = functional.grid_sample(
        field.permute(2, 0, 1)[None], grid, mode="bilinear", padding_mode="border", align_corners=True
    )
    return values[0, :, 0].T.reshape(*pixels.shape[:-1], field.shape[-1])


def round_trip(forward: Tensor, backward: Tensor) -> Tensor:
    """Returns the (H, W) distance, pixels, by which going forward and back misses the start."""
    height, width = forward.shape[:2]
    v, u = torch.meshgrid(
        torch.arange(height, device=forward.device, dtype=forward.dtype),
        torch.arange(width, device=forward.device, dtype=forward.dtype),
        indexing="ij",
    )
    target = torch.stack((u, v), dim=-1) + forward
    return (forward + sample(backward, target)).norm(dim=-1)


def consistency_variance(forward: Tensor, backward: Tensor) -> Tensor:
    """Returns the (H, W) variance of ``forward``, pixels squared, from its round trip through ``backward``.

    A round trip carries the errors of both directions, so half its square is what one of them contributes.
    """
    miss = round_trip(forward, backward)
    return FLOW_NOISE**2 + 0.5 * miss * miss
