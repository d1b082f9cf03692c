"""Coarse to fine: what the torch flow methods share. Both directions travel through it together, as a batch of two.

Source: Bouguet, "Pyramidal Implementation of the Lucas Kanade Feature Tracker" (2000) for the pyramid; Brox, Bruhn,
Papenberg and Weickert, "High Accuracy Optical Flow Estimation Based on a Theory for Warping" (ECCV 2004) for warping.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from flowodom.errors import ShapeError
from flowodom.flow import DenseFlow
from flowodom.flow.consistency import round_trip

MINIMUM_SIZE = 16
"""Shortest image side, pixels, at the coarsest level and so of any image."""

IMAGE_NOISE = 1.5
"""Least standard deviation, grey levels, that a difference of two images is believed to have."""

BLUNDER = 0.05
"""Floor of the standard deviation, pixels, for what no model of noise covers: interpolation, shading, edges."""


class Refine(Protocol):
    """Improves the flow of one level."""

    def __call__(self, first: Tensor, second: Tensor, flow: Tensor, level: int) -> Tensor:
        """Returns the better flow.

        Args:
            first: (B, 1, h, w) float32 grey, in which the flow starts.
            second: (B, 1, h, w) float32 grey, in which it ends.
            flow: (B, 2, h, w) float32 pixels of this level.
            level: Halvings between this level and the images themselves.
        """
        ...


def solve(
    previous: Tensor,
    current: Tensor,
    initial: Tensor | None,
    refine: Refine,
    *,
    levels: int,
    support: float,
) -> DenseFlow:
    """Runs a method from the coarsest level to the finest, forward and backward, and judges the outcome.

    Args:
        previous: (H, W) uint8 grey image.
        current: (H, W) uint8 grey image.
        initial: (H, W, 2) float32 guess of the forward flow, pixels; None for none.
        refine: What the method does on one level.
        levels: Most levels; fewer where the image is too small.
        support: Standard deviation, pixels, of the neighbourhood from which the method draws the flow of a pixel.

    Returns:
        The flow, its variance from structure tensor, residual and round trip.

    Raises:
        ShapeError: The images differ in size, are not grey uint8 or are too small, or the guess does not fit.
    """
    check_pair(previous, current, initial)
    images = torch.stack((previous, current)).unsqueeze(1).to(torch.float32)
    pyramid = [images]
    while len(pyramid) < levels and min(pyramid[-1].shape[-2:]) >= 2 * MINIMUM_SIZE:
        pyramid.append(halve(pyramid[-1]))
    if initial is None:
        flow = images.new_zeros(2, 2, *pyramid[-1].shape[-2:])
    else:
        guess = initial.to(images).permute(2, 0, 1)
        flow = resize(torch.stack((guess, -guess)), pyramid[-1].shape[-2:])
    for level in reversed(range(len(pyramid))):
        first = pyramid[level]
        flow = refine(first, first.flip(0), resize(flow, first.shape[-2:]), level)
    forward, backward = flow.permute(0, 2, 3, 1).contiguous()
    variance = noise_variance(images, images.flip(0), flow, support)
    # A round trip carries the errors of both directions, so half its square is what one of them contributes.
    return DenseFlow(
        forward,
        backward,
        variance[0] + 0.5 * round_trip(forward, backward),
        variance[1] + 0.5 * round_trip(backward, forward),
    )


def check_pair(previous: Tensor, current: Tensor, initial: Tensor | None) -> None:
    """Raises ShapeError where two images or the guess of their flow are not what a ``FlowMethod`` takes."""
    if previous.shape != current.shape or previous.ndim != 2 or min(previous.shape) < MINIMUM_SIZE:
        raise ShapeError(
            f"flow needs two grey images (H, W) of one size, at least {MINIMUM_SIZE} pixels each way, "
            f"got {tuple(previous.shape)} and {tuple(current.shape)}"
        )
    if previous.dtype != torch.uint8 or current.dtype != torch.uint8:
        raise ShapeError(f"flow needs uint8 images, got {previous.dtype} and {current.dtype}")
    if initial is not None and initial.shape != (*previous.shape, 2):
        raise ShapeError(f"the guess of the flow must be {(*previous.shape, 2)}, got {tuple(initial.shape)}")


def halve(images: Tensor) -> Tensor:
    """Returns (B, C, H, W) images of half the size (rounded up), blurred beforehand so that nothing aliases."""
    height, width = images.shape[-2:]
    return functional.interpolate(
        blur(images, 0.8), size=((height + 1) // 2, (width + 1) // 2), mode="bilinear", align_corners=False
    )


def resize(flow: Tensor, size: tuple[int, ...]) -> Tensor:
    """Returns (B, 2, H, W) flow at another size, in pixels of that size."""
    height, width = flow.shape[-2:]
    if (height, width) == tuple(size):
        return flow
    factor = flow.new_tensor((size[1] / width, size[0] / height)).view(1, 2, 1, 1)
    return factor * functional.interpolate(flow, size=tuple(size), mode="bilinear", align_corners=False)


def blur(images: Tensor, sigma: float) -> Tensor:
    """Returns (B, C, H, W) images filtered by a Gaussian of ``sigma`` pixels; beyond the border it mirrors nothing in.

    At the border the kernel is cut off and renormalised, so a constant stays a constant.
    """
    radius = max(1, round(2.5 * sigma))
    x = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel = kernel / kernel.sum()
    channels, height, width = images.shape[1:]
    rows, columns = kernel.expand(channels, 1, 1, -1), kernel[:, None].expand(channels, 1, -1, 1)
    # Depthwise convolution on a CPU is some twenty times faster with channels last.
    result = images.contiguous(memory_format=torch.channels_last)
    result = functional.conv2d(result, rows, padding=(0, radius), groups=channels)
    result = functional.conv2d(result, columns, padding=(radius, 0), groups=channels).contiguous()
    weight_u = functional.conv1d(images.new_ones(1, 1, width), kernel.view(1, 1, -1), padding=radius)
    weight_v = functional.conv1d(images.new_ones(1, 1, height), kernel.view(1, 1, -1), padding=radius)
    return result / (weight_v.view(1, 1, height, 1) * weight_u.view(1, 1, 1, width))


def gradient(images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the derivatives by u and by v of (B, 1, H, W) images, grey levels a pixel (Scharr)."""
    side, middle = 3 / 16, 10 / 16
    smooth = images.new_tensor((side, middle, side))
    slope = images.new_tensor((-0.5, 0.0, 0.5))
    padded = functional.pad(images, (1, 1, 1, 1), mode="replicate")
    along_u = functional.conv2d(padded, (smooth[:, None] * slope[None]).view(1, 1, 3, 3))
    along_v = functional.conv2d(padded, (slope[:, None] * smooth[None]).view(1, 1, 3, 3))
    return along_u, along_v


def warp(images: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """Looks (B, 1, H, W) images up where (B, 2, H, W) flow points.

    Interpolates linearly: torch's cubic kernel does not reproduce a ramp, which biases flow by up to 0.05 pixels.

    Returns:
        (B, 1, H, W) values, and (B, 1, H, W) bool: whether the place is inside the image.
    """
    height, width = images.shape[-2:]
    u = torch.arange(width, device=flow.device, dtype=flow.dtype) + flow[:, 0]
    v = torch.arange(height, device=flow.device, dtype=flow.dtype)[:, None] + flow[:, 1]
    grid = torch.stack((2 * u / (width - 1) - 1, 2 * v / (height - 1) - 1), dim=-1)
    values = functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)
    inside = (u >= 0) & (u <= width - 1) & (v >= 0) & (v <= height - 1)
    return values, inside.unsqueeze(1)


def residual(first: Tensor, second: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """Returns ``second(x + flow) - first(x)`` in grey levels and where it is known; exactly zero for equal images.

    ``first`` passes through the same interpolation, so that its rounding cancels.
    """
    values, inside = warp(second, flow)
    here, _ = warp(first, torch.zeros_like(flow))
    return torch.where(inside, values - here, 0.0), inside


def noise_variance(first: Tensor, second: Tensor, flow: Tensor, support: float) -> Tensor:
    """Returns the (B, H, W) variance per component, pixels squared, that image noise gives to a flow.

    The least-squares flow of a neighbourhood with structure tensor A has covariance ``s^2 inv(A)``; s^2 is the mean
    squared residual there. The trace of the inverse is taken in closed form; without texture it grows without bound,
    which a prior of one image side, at most 100 pixels, ends.

    Args:
        first: (B, 1, H, W) grey, in which the flow starts.
        second: (B, 1, H, W) grey, in which it ends.
        flow: (B, 2, H, W) pixels.
        support: Standard deviation of the neighbourhood, pixels.
    """
    ix, iy = gradient(first)
    difference, _ = residual(first, second, flow)
    means = blur(torch.cat((ix * ix, ix * iy, iy * iy, difference * difference), dim=1), support)
    a, b, c, energy = means.unbind(1)
    noise = energy + IMAGE_NOISE**2
    prior = noise / min(100.0, max(first.shape[-2:])) ** 2
    a, c = a + prior, c + prior
    effective = 4 * torch.pi * support**2
    return BLUNDER**2 + 0.5 * noise / effective * (a + c) / (a * c - b * b)
