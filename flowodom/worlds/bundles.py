"""Casting rays at many scenes at once: bundles of neighbouring rays, each with the few things that it can meet.

A picture is cut into square tiles; the rays of a tile are a bundle. Which primitives a bundle can meet is known before
any ray is cast, from the primitives' bounding boxes, on the processor; the device then does one pass a primitive slot,
over the bundles of all scenes that can meet what is in that slot.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from flowodom.worlds.casting import Shape, extent, intersect

TILE = 16
"""Pixels across a tile."""

_GROUP = 16
"""Pixels in a bundle of finer rays."""


@dataclass(frozen=True)
class Bundles:
    """Rays that belong together.

    Attributes:
        rays: (G, 2, P) x and y at unit depth.
        scene: (G) int64 index of the scene, on the CPU.
        meets: (G, S) bool: whether a bundle can meet what is in a slot, on the CPU.
    """

    rays: Tensor
    scene: Tensor
    meets: Tensor


@dataclass(frozen=True)
class Grid:
    """A picture of whole tiles, large enough for ``width`` by ``height`` pixels.

    Attributes:
        width: Pixels across.
        height: Pixels down.
    """

    width: int
    height: int

    @property
    def across(self) -> int:
        """Tiles across."""
        return -(-self.width // TILE)

    @property
    def down(self) -> int:
        """Tiles down."""
        return -(-self.height // TILE)

    def pixels(self, device: torch.device) -> Tensor:
        """Returns the (tiles, 2, TILE^2) pixel coordinates (u, v)."""
        u = torch.arange(self.across * TILE, device=device, dtype=torch.float32)
        v = torch.arange(self.down * TILE, device=device, dtype=torch.float32)
        whole = torch.stack((u.expand(len(v), -1), v[:, None].expand(-1, len(u))))
        cut = whole.view(2, self.down, TILE, self.across, TILE).permute(1, 3, 0, 2, 4)
        return cut.reshape(self.down * self.across, 2, TILE * TILE)

    def picture(self, values: Tensor) -> Tensor:
        """Lays (..., rows * tiles, TILE^2) values out as (..., rows, height, width)."""
        cut = values.reshape(*values.shape[:-2], -1, self.down, self.across, TILE, TILE)
        whole = cut.transpose(-3, -2).flatten(-4, -3).flatten(-2, -1)
        return whole[..., : self.height, : self.width]

    def tiles(self, picture: Tensor) -> Tensor:
        """Cuts (..., rows, height, width) values into (..., rows * tiles, TILE^2); zero beyond the picture."""
        margin = (0, self.across * TILE - self.width, 0, self.down * TILE - self.height)
        whole = functional.pad(picture, margin)
        cut = whole.reshape(*whole.shape[:-2], self.down, TILE, self.across, TILE).transpose(-3, -2)
        return cut.flatten(-2, -1).flatten(-4, -2)

    def bundles(self, slot_from_camera: Tensor, half: Tensor, intrinsics: Tensor, device: torch.device) -> Bundles:
        """Makes the bundles of one picture of each scene.

        Args:
            slot_from_camera: (N, S, 4, 4) ``T_slot_camera``, on the CPU.
            half: (N, S, 3) half extents, metres, on the CPU.
            intrinsics: (N, 4) fx, fy, cx, cy, on the CPU.
            device: Where rays are cast.
        """
        focal, centre = intrinsics[:, None, :2], intrinsics[:, None, 2:]
        seen = extent(half, slot_from_camera).float().view(*half.shape[:2], 2, 2) * focal[:, None] + centre[:, None]
        low, high = seen[:, :, 0] - 1, seen[:, :, 1] + 1
        ends = torch.arange(max(self.across, self.down)) * TILE
        u, v = ends[: self.across], ends[: self.down]
        across = (low[..., :1] < u + TILE) & (high[..., :1] >= u)
        down = (low[..., 1:] < v + TILE) & (high[..., 1:] >= v)
        meets = (down[..., :, None] & across[..., None, :]).flatten(-2).transpose(1, 2).flatten(0, 1)
        rays = (self.pixels(device) - centre[..., None].to(device)) / focal[..., None].to(device)
        scene = torch.arange(len(half)).repeat_interleave(self.across * self.down)
        return Bundles(rays.flatten(0, 1), scene, meets)


def cast(shapes: tuple[Shape, ...], slot_from_camera: Tensor, half: Tensor, bundles: Bundles) -> tuple[Tensor, Tensor]:
    """Finds what rays meet first.

    Args:
        shapes: The shape of each of S slots; the first is seen from within, the others from without.
        slot_from_camera: (N, S, 4, 4) float32 ``T_slot_camera`` of each scene.
        half: (N, S, 3) half extents, metres.
        bundles: The rays.

    Returns:
        (G, P) depths, metres, infinite where nothing is met, and int64 slots, -1 there.
    """
    rays, device = bundles.rays, bundles.rays.device
    depth = torch.full((rays.shape[0], rays.shape[2]), torch.inf, device=device)
    slot = torch.full(depth.shape, -1, dtype=torch.int64, device=device)
    which, where = bundles.meets.t().nonzero().unbind(1)
    counts = torch.bincount(which, minlength=len(shapes)).tolist()
    lists = torch.split(where.to(device, non_blocking=True), counts)
    scenes = torch.split(bundles.scene[where].to(device, non_blocking=True), counts)
    for k, (shape, here, scene) in enumerate(zip(shapes, lists, scenes, strict=True)):
        if not len(here):
            continue
        x, y = rays[here].unbind(1)
        pose = slot_from_camera[scene, k, :3].permute(1, 2, 0)[..., None]
        direction = pose[:, 0] * x + pose[:, 1] * y + pose[:, 2]
        size = half[scene, k].t()[..., None]
        found = intersect(shape, pose[:, 3], direction, size, inward=k == 0)
        before = depth[here]
        nearer = found < before
        depth[here] = torch.where(nearer, found, before)
        slot[here] = torch.where(nearer, k, slot[here])
    return depth, slot


def finer(bundles: Bundles, chosen: Tensor, spread: Tensor) -> tuple[Bundles, Tensor, Tensor]:
    """Makes finer rays about chosen ones, in bundles that each come from one bundle.

    Args:
        bundles: The rays.
        chosen: (G, P) bool, about which.
        spread: (G, 2, Q) where the finer rays are, relative to the chosen one, at unit depth.

    Returns:
        The new bundles of rays, (G', 16 Q); and (G', 16) int64 indices of the bundle and of the ray in it about which
        they are. A bundle that is not full repeats its last ray.
    """
    device = bundles.rays.device
    bundle, ray = chosen.nonzero().unbind(1)
    count = chosen.sum(1)
    groups = (count + _GROUP - 1) // _GROUP
    start, group_start = count.cumsum(0) - count, groups.cumsum(0) - groups
    owner = torch.repeat_interleave(torch.arange(len(count), device=device), groups)
    number = torch.arange(len(owner), device=device) - group_start[owner]
    rank = (number * _GROUP)[:, None] + torch.arange(_GROUP, device=device)
    at = start[owner, None] + rank.minimum(count[owner, None] - 1)
    centre = bundles.rays[bundle[at], :, ray[at]]
    rays = centre[..., None] + spread[owner, None]
    home = owner.cpu()
    made = Bundles(rays.transpose(1, 2).flatten(2), bundles.scene[home], bundles.meets[home])
    return made, bundle[at], ray[at]
