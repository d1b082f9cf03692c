"""Forward-backward consistency: where two opposite flows agree, and how far to trust them."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
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


def chained(first: Tensor, second: Tensor) -> Tensor:
    """Returns the (H, W, 2) flow, pixels, over two steps: what the first leads to, and from there on the second."""
    start = torch.from_numpy(_grid(*first.shape[:2], 1)).to(first)
    return first + sample(second, start + first)


def shrink(field: Tensor, height: int, width: int) -> Tensor:
    """Returns the means of a field over the pixels of a coarser grid.

    Args:
        field: (H, W) or (H, W, C).
        height: Rows of the coarser grid.
        width: Its columns.

    Returns:
        (height, width) or (C, height, width), of the same type.
    """
    if field.device.type != "cpu":
        stacked = field[None, None] if field.ndim == 2 else field.movedim(-1, 0)[None]
        return functional.adaptive_avg_pool2d(stacked, (height, width))[0].reshape(*field.shape[2:], height, width)
    # On the processor OpenCV is three times as fast.
    means = cv2.resize(field.numpy(), (width, height), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(means if means.ndim == 2 else np.stack(cv2.split(means)))


@lru_cache(maxsize=16)
def _grid(height: int, width: int, stride: int) -> NDArray[np.float32]:
    """Returns the (H, W, 2) pixels (u, v) of every so manieth row and column, the first being ``stride // 2``."""
    rows, columns = (np.arange(stride // 2, length, stride, dtype=np.float32) for length in (height, width))
    return np.stack(np.meshgrid(columns, rows), axis=-1)


def round_trip(forward: Tensor, backward: Tensor, *, stride: int = 1) -> Tensor:
    """Returns by how much going forward and back misses the start, squared, pixels squared.

    Args:
        forward: (H, W, 2) flow, pixels.
        backward: (H, W, 2) flow of the other way.
        stride: Every how manieth row and column is asked for, the first being ``stride // 2``.

    Returns:
        (H, W), or fewer rows and columns.
    """
    height, width = forward.shape[:2]
    first = stride // 2
    if forward.is_cpu and not forward.requires_grad:
        # On the processor OpenCV is three times as fast; it cuts pixels into 32 parts each way.
        ahead = np.ascontiguousarray(forward.numpy()[first::stride, first::stride])
        place, second_map = ahead + _grid(height, width, stride), np.empty(0, dtype=np.float32)
        gap = ahead + cv2.remap(backward.numpy(), place, second_map, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return torch.from_numpy(np.square(gap[..., 0]) + np.square(gap[..., 1]))
    u = torch.arange(first, width, stride, device=forward.device, dtype=forward.dtype)
    v = torch.arange(first, height, stride, device=forward.device, dtype=forward.dtype)[:, None]
    forward_u, forward_v = forward[first::stride, first::stride].permute(2, 0, 1).contiguous()
    scale_u, scale_v = 2 / max(width - 1, 1), 2 / max(height - 1, 1)
    grid = torch.stack(((forward_u + u) * scale_u - 1, (forward_v + v) * scale_v - 1))
    back = functional.grid_sample(
        backward.permute(2, 0, 1)[None],
        grid.permute(1, 2, 0)[None],
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    )[0]
    return (forward_u + back[0]).square_() + (forward_v + back[1]).square_()


def consistency_variance(forward: Tensor, backward: Tensor, *, stride: int = 1) -> Tensor:
    """Returns the (H, W) variance of ``forward``, pixels squared, from its round trip through ``backward``.

    A round trip carries the errors of both directions, so half its square is what one of them contributes.

    Args:
        forward: (H, W, 2) flow, pixels.
        backward: (H, W, 2) flow of the other way.
        stride: Rows and columns that share one variance: that in the middle.
    """
    variance = FLOW_NOISE**2 + 0.5 * round_trip(forward, backward, stride=stride)
    if stride == 1:
        return variance
    rows, columns = (
        _nearest(length, count, stride, variance.device)
        for length, count in zip(forward.shape, variance.shape, strict=False)
    )
    return variance.index_select(0, rows).index_select(1, columns)


@lru_cache(maxsize=16)
def _nearest(length: int, count: int, stride: int, device: torch.device) -> Tensor:
    """Returns which of ``count`` numbers, one for every so manieth place, is that of each of (length,) places."""
    return (torch.arange(length, device=device) // stride).clamp_max_(count - 1)
