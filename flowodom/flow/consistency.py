"""Forward-backward consistency: where two opposite flows agree, and how far to trust them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

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


class RoundTripFlow:
    """A ``FlowField`` that says how sure it is by going there and back, once somebody asks.

    Args:
        forward: (H, W, 2) float32, pixels.
        backward: Gives the (H, W, 2) flow the other way; called at most once.
    """

    def __init__(self, forward: Tensor, backward: Callable[[], Tensor]) -> None:
        self._find_backward = backward
        self.forward = forward

    @cached_property
    def backward(self) -> Tensor:
        """See ``FlowField``."""
        return self._find_backward()

    @cached_property
    def forward_variance(self) -> Tensor:
        """See ``FlowField``."""
        return consistency_variance(self.forward, self.backward)

    @cached_property
    def backward_variance(self) -> Tensor:
        """See ``FlowField``."""
        return consistency_variance(self.backward, self.forward)
