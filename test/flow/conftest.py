"""Pictures whose flow is known exactly: a smooth random pattern, moved by a formula instead of by resampling."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

Place = Callable[[Tensor], Tensor]
"""Maps (..., 2) pixels to (..., 2) pixels."""


def pattern(pixels: Tensor) -> Tensor:
    """Returns grey levels 0 to 255 at (..., 2) pixels: plane waves of 5 to 60 pixels in all directions."""
    generator = torch.Generator().manual_seed(3)
    count = 60
    length = 5 * 12 ** torch.rand(count, generator=generator, dtype=torch.float64)
    angle = 2 * torch.pi * torch.rand(count, generator=generator, dtype=torch.float64)
    phase = 2 * torch.pi * torch.rand(count, generator=generator, dtype=torch.float64)
    wave = 2 * torch.pi / length[:, None] * torch.stack((angle.cos(), angle.sin()), dim=-1)
    value = (torch.cos(pixels @ wave.T + phase) * length.sqrt()).sum(-1) / length.sum().sqrt()
    return 128 + 70 * value.clamp(-1.8, 1.8)


def grid(height: int, width: int) -> Tensor:
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack((u, v), dim=-1).to(torch.float64)


@pytest.fixture
def picture() -> Callable[..., Tensor]:
    """Returns (H, W) uint8 pictures of the pattern as seen through a map of pixels."""

    def make(height: int, width: int, place: Place = lambda pixels: pixels) -> Tensor:
        return pattern(place(grid(height, width))).round().to(torch.uint8)

    return make


@pytest.fixture
def translated(picture: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Returns two pictures and the exact flow between them, a translation."""

    def make(u: float, v: float, height: int = 120, width: int = 160) -> tuple[Tensor, Tensor, Tensor]:
        step = torch.tensor((u, v), dtype=torch.float64)
        flow = step.float().expand(height, width, 2)
        return picture(height, width), picture(height, width, lambda pixels: pixels - step), flow

    return make


@pytest.fixture
def rotated(picture: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Returns two pictures and the exact flow between them, a rotation about the middle by degrees."""

    def make(degrees: float, height: int = 120, width: int = 160) -> tuple[Tensor, Tensor, Tensor]:
        angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
        turn = torch.stack((torch.stack((angle.cos(), -angle.sin())), torch.stack((angle.sin(), angle.cos()))))
        middle = torch.tensor(((width - 1) / 2, (height - 1) / 2), dtype=torch.float64)
        back = picture(height, width, lambda pixels: (pixels - middle) @ turn + middle)
        pixels = grid(height, width)
        flow = ((pixels - middle) @ turn.T + middle - pixels).float()
        return picture(height, width), back, flow

    return make
