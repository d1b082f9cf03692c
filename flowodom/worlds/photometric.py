"""What a real camera does to pictures: motion blur, exposure, vignetting, noise, JPEG; seeded, on the device."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from flowodom.worlds.pairs import PairBatch

_TAPS = 5
"""Places along the motion that make up a blurred pixel."""

_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
"""Quantisation of luminance at quality 50 (ITU T.81, annex K)."""

_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
"""RGB to luminance and the two colour differences (JFIF)."""


def photometric(batch: PairBatch, seed: int) -> PairBatch:
    """Returns the pairs as cameras of all sorts would have taken them; the truth stays as it is.

    Each pair has its camera: strengths of every effect are drawn for each, and some have none. Exposure and white
    balance change a little from one picture to the other, noise is new in each.

    Args:
        batch: The pairs, with clean pictures.
        seed: The same seed gives the same effects on the same device.
    """
    generator = torch.Generator().manual_seed(seed)
    device, rows = batch.image0.device, len(batch.image0)

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return (low + (high - low) * torch.rand(rows, *shape, generator=generator)).to(device)

    shutter = draw(-0.3, 0.5, 1, 1, 1).clamp_min(0)
    gain, gamma, tint = draw(-0.35, 0.35, 1, 1, 1).exp(), draw(-0.3, 0.3, 1, 1, 1).exp(), draw(-0.1, 0.1, 3, 1, 1).exp()
    change = draw(-0.15, 0.15, 3, 1, 1) * (draw(0, 1, 1, 1, 1) < 0.5)
    vignette = draw(-0.2, 0.5, 1, 1, 1).clamp_min(0)
    read, shot = draw(-0.005, 0.02, 1, 1, 1).clamp_min(0), draw(-0.01, 0.03, 1, 1, 1).clamp_min(0)
    quality = draw(30, 130, 1, 1, 1, 1, 1).clamp_max(100)
    noise = torch.Generator(device).manual_seed(seed)
    images = []
    pairs = ((batch.image0, batch.flow_forward, 0.0), (batch.image1, -batch.flow_backward, 1.0))
    for image, flow, later in pairs:
        light = blur(image.float() / 255, flow * shutter)
        light = light * gain * tint * (later * change).exp() * _falloff(light, vignette)
        light = light.clamp(0, 1) ** gamma
        grain = torch.randn(light.shape, generator=noise, device=device)
        light = light + grain * (read**2 + shot**2 * light).sqrt()
        images.append((jpeg(light.clamp(0, 1) * 255, quality)).round().clamp(0, 255).to(torch.uint8))
    return replace(batch, image0=images[0], image1=images[1])


def blur(image: Tensor, streak: Tensor) -> Tensor:
    """Returns (B, 3, H, W) pictures averaged along (B, 2, H, W) streaks of motion, pixels, centred on each pixel."""
    height, width = image.shape[-2:]
    v, u = torch.meshgrid(
        torch.arange(height, device=image.device, dtype=image.dtype),
        torch.arange(width, device=image.device, dtype=image.dtype),
        indexing="ij",
    )
    scale = image.new_tensor((2 / (width - 1), 2 / (height - 1)))
    # A streak longer than this would fall apart into its taps.
    streak = streak * (12 / streak.norm(dim=1, keepdim=True).clamp_min(12))
    total = torch.zeros_like(image)
    for tap in range(_TAPS):
        place = torch.stack((u, v), -1) + (tap / (_TAPS - 1) - 0.5) * streak.movedim(1, -1)
        total += functional.grid_sample(image, place * scale - 1, padding_mode="border", align_corners=True)
    return total / _TAPS


def _falloff(image: Tensor, strength: Tensor) -> Tensor:
    """Returns (B, 1, H, W) factors that fall off towards the corners by the given share."""
    height, width = image.shape[-2:]
    v = torch.linspace(-1, 1, height, device=image.device)[:, None]
    u = torch.linspace(-1, 1, width, device=image.device)
    return 1 - strength * (0.5 * (u * u + v * v)) ** 1.5


def jpeg(image: Tensor, quality: Tensor) -> Tensor:
    """Returns (B, 3, H, W) pictures, grey levels, as JPEG leaves them; without entropy coding, which loses nothing.

    Args:
        image: (B, 3, H, W) float32 RGB, 0 to 255.
        quality: (B, 1, 1, 1, 1, 1) the library quality, 1 to 100; 100 leaves the picture all but as it is.
    """
    height, width = image.shape[-2:]
    index = torch.arange(8, device=image.device, dtype=image.dtype)
    basis = (
        torch.cos((2 * index + 1) * index[:, None] * math.pi / 16)
        * torch.where(index == 0, 0.125, 0.25)[:, None].sqrt()
    )
    table = image.new_tensor(_LUMINANCE)
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality) / 100
    steps = (table * scale).clamp_min(1).round()
    to_ycc = image.new_tensor(_TO_YCC)
    ycc = torch.einsum("ij,bjhw->bihw", to_ycc, image) - image.new_tensor((128, 0, 0))[:, None, None]
    padded = functional.pad(ycc, (0, -width % 8, 0, -height % 8), mode="replicate")
    blocks = padded.reshape(*padded.shape[:2], padded.shape[2] // 8, 8, padded.shape[3] // 8, 8).transpose(3, 4)
    found = basis @ blocks @ basis.t()
    kept = basis.t() @ ((found / steps).round() * steps) @ basis
    whole = (
        kept.transpose(3, 4).reshape(padded.shape)[..., :height, :width] + image.new_tensor((128, 0, 0))[:, None, None]
    )
    return torch.einsum("ij,bjhw->bihw", torch.linalg.inv(to_ycc), whole)
