"""Pairs of views of procedural worlds, with exact depth and motion: what a single-image field learns from."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from flowodom.geometry import se3
from flowodom.worlds import World, pinhole, room, street
from flowodom.worlds.motion import OPTICAL_FROM_BODY, level_pose

TEXELS = 256
"""Texels across a texture: enough for small images, and quickly made."""

STREET_SHARE = 0.25
"""Share of the worlds that are streets; the rest are rooms."""

FIELD_OF_VIEW = (50.0, 95.0)
"""Horizontal field of view, degrees, from which cameras are drawn."""


@dataclass(frozen=True)
class ViewPairs:
    """N pairs of views, each of one camera, a step apart.

    Attributes:
        images: (N, 2, 3, H, W) uint8 RGB.
        rho: (N, 2, H, W) float16 exact inverse depth, 1/m, zero at infinity.
        motion: (N, 4, 4) float32 ``T_second_first``, metres.
        intrinsics: (N, 4) float32 fx, fy, cx, cy, pixels.
    """

    images: Tensor
    rho: Tensor
    motion: Tensor
    intrinsics: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor | slice) -> ViewPairs:
        return ViewPairs(*(getattr(self, f.name)[index] for f in fields(self)))

    def to(self, device: torch.device | str) -> ViewPairs:
        """Returns the pairs on another device."""
        return ViewPairs(*(getattr(self, f.name).to(device) for f in fields(self)))

    @staticmethod
    def concatenate(parts: list[ViewPairs]) -> ViewPairs:
        """Returns all pairs in one."""
        return ViewPairs(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(ViewPairs)))


def render_pairs(
    seed: int, count: int, *, width: int = 160, height: int = 120, device: torch.device | str = "cpu"
) -> ViewPairs:
    """Renders pairs of views from random places of one random world.

    Args:
        seed: The same seed gives the same world and views.
        count: Pairs.
        width: Of the images, pixels.
        height: Of the images, pixels.
        device: Where to render; the pairs are on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    outdoors = uniform(0, 1) < STREET_SHARE
    world: World = (street if outdoors else room)(seed, movers=2, texels=TEXELS, device=device)
    parts = []
    for _ in range(count):
        camera = pinhole(width, height, field_of_view=uniform(*FIELD_OF_VIEW))
        if outdoors:
            place = (uniform(0, 90), uniform(-1.6, 1.6), uniform(1.0, 2.0))
            angles = (uniform(-0.6, 0.6) + math.pi * round(uniform(0, 1)), uniform(-0.1, 0.15), uniform(-0.06, 0.06))
            reach = 0.8
        else:
            place = (uniform(-1.2, 1.2), uniform(-1.2, 1.2), uniform(0.35, 1.9))
            angles = (uniform(-math.pi, math.pi), uniform(-0.3, 0.55), uniform(-0.15, 0.15))
            reach = 0.2
        first = level_pose(*(torch.tensor(v, dtype=torch.float64) for v in (place, angles))) @ se3.inverse(
            OPTICAL_FROM_BODY
        )
        scale = torch.tensor([reach] * 3 + [0.06] * 3, dtype=torch.float64)
        second = first @ se3.exp(scale * torch.randn(6, generator=generator, dtype=torch.float64))
        # The world stands still between the two views: what moves belongs to other losses.
        time = uniform(0, 20)
        views = [world.render(pose, time, camera) for pose in (first, second)]
        images = torch.stack([view.image.cpu().permute(2, 0, 1) for view in views if view.image is not None])
        rho = torch.stack([(1 / view.depth).cpu().half() for view in views])
        motion = (se3.inverse(second) @ first).float()
        intrinsics = torch.tensor([camera.fx, camera.fy, camera.cx, camera.cy])
        parts.append(ViewPairs(images[None], rho[None], motion[None], intrinsics[None]))
    return ViewPairs.concatenate(parts)
