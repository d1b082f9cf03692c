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
    """Returns the (H, W) squared distance, pixels squared, by which going forward and back misses the start."""
    height, width = forward.shape[:2]
    u = torch.arange(width, device=forward.device, dtype=forward.dtype)
    v = torch.arange(height, device=forward.device, dtype=forward.dtype)
    there_u, there_v = forward[..., 0] + u, forward[..., 1] + v[:, None]
    grid = torch.stack((there_u * (2 / max(width - 1, 1)) - 1, there_v * (2 / max(height - 1, 1)) - 1), dim=-1)
    back = functional.grid_sample(
        backward.permute(2, 0, 1)[None], grid[None], mode="bilinear", padding_mode="border", align_corners=True
    )[0]
    miss_u, miss_v = forward[..., 0] + back[0], forward[..., 1] + back[1]
    return miss_u * miss_u + miss_v * miss_v


def consistency_variance(forward: Tensor, backward: Tensor) -> Tensor:
    """Returns the (H, W) variance of ``forward``, pixels squared, from its round trip through ``backward``.

    A round trip carries the errors of both directions, so half its square is what one of them contributes.
    """
    return FLOW_NOISE**2 + 0.5 * round_trip(forward, backward)
