"""Training pairs: two pictures of a procedural world a moment apart, and everything that is true about them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from flowodom.errors import ConfigError
from flowodom.geometry import se3
from flowodom.worlds import layouts
from flowodom.worlds.casting import Shape, intersect
from flowodom.worlds.layouts import BODIES, PATTERN_NAMES, SHAPES, Layout
from flowodom.worlds.shading import FACES, SPREAD, Shader, edges, geometry_table
from flowodom.worlds.textures import PATTERNS, Atlas
from flowodom.worlds.threads import one_thread

TEXELS = 256
"""Texels across each texture."""

POOL_LIFE = 128
"""So many batches share one set of textures."""

_BEHIND = 5e-3
"""A point is hidden when all that is seen around it is nearer by more than this share of its depth."""

_SHADOW = 2e-3
"""What is nearer to the surface than this share of the way from the light casts no shadow on it."""


@dataclass(frozen=True)
class PairBatch:
    """B pairs of pictures and the truth about them. All tensors are on one device.

    Points are in the optical frame of their own camera, metres. Object 0 is all that is static; M counts it.

    Attributes:
        image0: (B, 3, H, W) uint8 RGB, the earlier pictures.
        image1: (B, 3, H, W) uint8 RGB, the later ones.
        flow_forward: (B, 2, H, W) float32 pixels (u, v) from picture 0 to picture 1; finite, but without meaning
            where the point is not in front of camera 1 (and so hidden).
        flow_backward: (B, 2, H, W) float32 pixels from picture 1 to picture 0.
        hidden_forward: (B, H, W) bool on picture 0: the point is out of view or occluded in picture 1.
        hidden_backward: (B, H, W) bool on picture 1: the point is out of view or occluded in picture 0.
        depth0: (B, H, W) float32 metres along the optical axis, kilometres for a sky.
        depth1: (B, H, W) float32, of picture 1.
        normal0: (B, 3, H, W) float32 unit normals towards the camera.
        normal1: (B, 3, H, W) float32, of picture 1.
        motion: (B, 4, 4) float32 ``T_1_0``: takes static points from camera 0 to camera 1.
        object_id0: (B, H, W) int64 in [0, M).
        object_id1: (B, H, W) int64.
        object_motion: (B, M, 4, 4) float32: takes each object's points from where camera 0 saw them at time 0 to where
            camera 1 sees them at time 1; of object 0 it is ``motion``.
        intrinsics: (B, 4) float32 fx, fy, cx, cy, pixels; pixel (0, 0) is the centre of the first pixel.
    """

    image0: Tensor
    image1: Tensor
    flow_forward: Tensor
    flow_backward: Tensor
    hidden_forward: Tensor
    hidden_backward: Tensor
    depth0: Tensor
    depth1: Tensor
    normal0: Tensor
    normal1: Tensor
    motion: Tensor
    object_id0: Tensor
    object_id1: Tensor
    object_motion: Tensor
    intrinsics: Tensor

    def to(self, device: torch.device | str) -> PairBatch:
        """Returns the batch on another device."""
        return PairBatch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


class TrainingPairs:
    """Batches of training pairs without end, the same for the same seed.

    The interface is ``pairs[k]``, the k-th batch, which depends on nothing but the arguments and ``k`` (so that
    training resumes where it was, and processes may share the work), and iteration over k = 0, 1, 2, ... Every pair is
    of a scene of its own: open ground, a street, a corridor or a room, in turn, with up to four movers, of which one
    may hang on another by a hinge. Pictures are clean; ``photometric`` makes them look like a camera's.

    Everything is cast and shaded for all pairs together on the device, in float32. Occlusion is decided by what is seen
    around the place where a point lands, so it is exact but for the pixels along an edge.

    Args:
        seed: The same seed gives the same pairs on the same device.
        size: Width and height of the pictures.
        batch: Pairs in a batch.
        device: Where to render; the batches stay there.

    Raises:
        ConfigError: A picture smaller than 16 pixels, or an empty batch.
    """

    def __init__(
        self, seed: int, size: tuple[int, int] = (320, 240), batch: int = 8, device: torch.device | str = "cpu"
    ) -> None:
        if min(size) < 16 or batch < 1:
            raise ConfigError(f"size must be 16 or more each way and batch 1 or more, got size={size}, batch={batch}")
        self.seed, self.size, self.batch, self.device = seed, size, batch, torch.device(device)

    def __iter__(self) -> Iterator[PairBatch]:
        """Yields batch 0, 1, 2, ... without end."""
        k = 0
        while True:
            yield self[k]
            k += 1

    def __getitem__(self, k: int) -> PairBatch:
        """Returns the k-th batch."""
        generator = np.random.default_rng([self.seed, k])
        kinds = len(layouts.KINDS)
        counts = tuple((self.batch + (kind + k) % kinds) // kinds for kind in range(kinds))
        layout = layouts.draw(generator, counts)
        cameras = torch.stack(layouts.camera_motion(generator, layout))
        bodies = layouts.add_movers(generator, layout, cameras[0])
        intrinsics = _intrinsics(generator, self.batch, self.size).to(self.device)
        with one_thread(self.device.type == "cpu"):
            pool = _pool(self.seed, k // POOL_LIFE, self.device)
            view = _Views(layout, cameras, bodies, intrinsics, self.size, hilly=2 * counts[0], pool=pool)
            return view.batch()


@lru_cache(maxsize=2)
def _pool(seed: int, number: int, device: torch.device) -> tuple[Atlas, Atlas]:
    """Returns a set of textures and the fine detail."""
    paint = torch.Generator().manual_seed(seed * 1_000_003 + number)
    tiles = [PATTERNS[name](TEXELS, paint) for name in PATTERN_NAMES]
    fine = PATTERNS["fine"](TEXELS, paint)[:1]
    return Atlas.build(tiles, device=device), Atlas.build([fine], device=device)


def _intrinsics(generator: np.random.Generator, rows: int, size: tuple[int, int]) -> Tensor:
    """Draws (rows, 4) fx, fy, cx, cy: 45 to 100 degrees of horizontal view, nearly square pixels, nearly centred."""
    width, height = size
    focal = 0.5 * width / np.tan(np.radians(generator.uniform(22.5, 50, rows)))
    aspect = generator.uniform(0.97, 1.03, rows)
    centre = 0.5 * (np.array(size) - 1) + generator.uniform(-0.04, 0.04, (rows, 2)) * np.array([width, height])
    return torch.from_numpy(np.stack((focal, focal * aspect, *centre.T), -1)).float()


class _Views:
    """What 2 B cameras see: row 2 b is pair b at the first moment, row 2 b + 1 at the second."""

    def __init__(
        self,
        layout: Layout,
        cameras: Tensor,
        bodies: Tensor,
        intrinsics: Tensor,
        size: tuple[int, int],
        *,
        hilly: int,
        pool: tuple[Atlas, Atlas],
    ) -> None:
        self.device, self.size, self.hilly = intrinsics.device, size, hilly
        self.pairs, self.intrinsics = len(intrinsics), intrinsics
        slots = bodies[:, :, list(BODIES)] @ layouts.poses(layout)
        transforms = se3.inverse(slots) @ cameras[:, :, None]
        layouts.clear_eyes(layout, transforms)
        self.transforms = transforms.transpose(0, 1).flatten(0, 1).float().to(self.device)
        half = torch.from_numpy(layout.half).repeat_interleave(2, 0)
        self.half = half.float().to(self.device)
        camera_from_body = se3.inverse(cameras)[:, :, None] @ bodies
        self.motions = (camera_from_body[1] @ se3.inverse(camera_from_body[0])).float().to(self.device)
        self.motions_back = (camera_from_body[0] @ se3.inverse(camera_from_body[1])).float().to(self.device)

        light = torch.from_numpy(layout.light)
        place = se3.act(se3.inverse(cameras)[:, :, None], light[..., :3])
        lights = torch.cat((place, light[..., 3:].expand(*place.shape[:-1], 1)), -1)
        self.lights = lights.transpose(0, 1).flatten(0, 1).float().to(self.device)
        self.shader = Shader(self._geometry(layout), self._looks(layout), *pool)

        width, height = size
        v, u = torch.meshgrid(
            torch.arange(height, dtype=torch.float32, device=self.device),
            torch.arange(width, dtype=torch.float32, device=self.device),
            indexing="ij",
        )
        self.pixels = torch.stack((u.flatten(), v.flatten()))
        per_row = intrinsics.repeat_interleave(2, 0)[..., None]
        self.focal, centre = per_row[:, :2], per_row[:, 2:]
        self.rays = (self.pixels - centre) / self.focal

    def _geometry(self, layout: Layout) -> Tensor:
        rows, slots = self.half.shape[:2]
        kind = torch.tensor([float(shape) for shape in SHAPES], device=self.device).expand(rows, -1)
        side = torch.ones_like(kind).index_fill(1, torch.zeros(1, dtype=torch.int64, device=self.device), -1.0)
        ambient = torch.from_numpy(layout.ambient).float().to(self.device).repeat_interleave(2)[:, None]
        lights = self.lights[:, None].expand(-1, slots, -1, -1).flatten(0, 1)
        return geometry_table(
            self.transforms.flatten(0, 1),
            self.half.flatten(0, 1),
            kind.flatten(),
            side.flatten(),
            ambient.expand_as(kind).flatten(),
            lights,
        )

    def _looks(self, layout: Layout) -> Tensor:
        """Returns the (10, 2 B S FACES) looks of every face."""
        shape = layout.tile.shape
        # Irrational steps keep neighbouring faces from showing the same part of a tile.
        number = np.arange(layout.tile.size).reshape(shape)
        slot = [layout.tint[..., 0], layout.tint[..., 1], layout.tint[..., 2], layout.detail, layout.glow, layout.gloss]
        rows = [
            layout.tile,
            np.broadcast_to(1 / layout.period[..., None], shape),
            (number * 0.6180339887) % 1.0,
            (number * 0.7548776662) % 1.0,
            *(np.broadcast_to(value[..., None], shape) for value in slot),
        ]
        table = torch.from_numpy(np.stack(rows)).float()
        return table.repeat_interleave(2, 1).flatten(1).to(self.device)

    def cast(self, rays: Tensor, transforms: Tensor, *, first: int = 0) -> tuple[Tensor, Tensor]:
        """Finds what (2 B, 3, R) rays meet first, from slot ``first`` on; depth and slot, (2 B, R), slot -1 for none."""
        depth = torch.full((rays.shape[0], rays.shape[2]), torch.inf, device=self.device)
        slot = torch.full(depth.shape, -1, dtype=torch.int64, device=self.device)
        for k in range(first, len(SHAPES)):
            rows = slice(self.hilly) if SHAPES[k] is Shape.TERRAIN else slice(None)
            pose = transforms[rows, k]
            if not len(pose):
                continue
            direction = torch.bmm(pose[:, :3, :3], rays[rows]).transpose(0, 1)
            origin = pose[:, :3, 3].t()[..., None]
            found = intersect(SHAPES[k], origin, direction, self.half[rows, k].t()[..., None], inward=k == 0)
            nearer = found < depth[rows]
            depth[rows] = torch.where(nearer, found, depth[rows])
            slot[rows] = torch.where(nearer, k, slot[rows])
        return depth, slot

    def _shadow(self, rays: Tensor, depth: Tensor) -> Tensor:
        """Returns (2 B, R) 1 where the first light reaches the surface, 0 where something is between."""
        light = self.lights[:, 0, :3]
        from_light = rays * depth[:, None] - light[..., None]
        transforms = self.transforms.clone()
        transforms[..., :3, 3] += (transforms[..., :3, :3] @ light[:, None, :, None])[..., 0]
        nearest, _ = self.cast(from_light, transforms, first=1)
        return (nearest > 1 - _SHADOW).float()

    def _shade(
        self, rays: Tensor, depth: Tensor, slot: Tensor, lit: Tensor, *, alone: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Shades (2 B, R) samples; returns (3, 2 B, R) colours and normals and (2 B, R) surfaces."""
        rows = torch.arange(len(slot), device=self.device)[:, None] * len(SHAPES)
        primitive = torch.where(slot < 0, -1, rows + slot)
        pixel = ((1.0 if alone else 0.5) / self.focal.mean(1)).expand_as(depth)
        reach = torch.stack((lit, torch.ones_like(lit))).flatten(1)
        colour, normal, surface = self.shader.shade(
            rays[:, :2].transpose(0, 1).flatten(1),
            depth.flatten(),
            primitive.flatten(),
            pixel.flatten(),
            lit=reach,
            alone=alone,
        )
        size = depth.shape
        return colour.view(3, *size), normal.view(3, *size), surface.view(size)

    def batch(self) -> PairBatch:
        """Renders the pairs and works out what is true of them."""
        rays = torch.cat((self.rays, torch.ones_like(self.rays[:, :1])), 1)
        depth, slot = self.cast(rays, self.transforms)
        lit = self._shadow(rays, depth)
        colour, normal, surface = self._shade(rays, depth, slot, lit, alone=True)
        self._soften(colour, surface, lit)
        image = (colour * 255).round().clamp(0, 255).to(torch.uint8)

        depth, slot = self._pair(depth), self._pair(slot)
        bodies = torch.tensor(BODIES, device=self.device)[slot]
        forward, hidden = self._flow(self.motions, depth, slot, bodies, 0)
        backward, hidden_back = self._flow(self.motions_back, depth, slot, bodies, 1)
        images, normals = self._pair(image.movedim(0, 1)), self._pair(normal.movedim(0, 1))
        return PairBatch(
            image0=self._grid(images[0]),
            image1=self._grid(images[1]),
            flow_forward=self._grid(forward),
            flow_backward=self._grid(backward),
            hidden_forward=self._grid(hidden),
            hidden_backward=self._grid(hidden_back),
            depth0=self._grid(depth[0]),
            depth1=self._grid(depth[1]),
            normal0=self._grid(normals[0]),
            normal1=self._grid(normals[1]),
            motion=self.motions[:, 0],
            object_id0=self._grid(bodies[0]),
            object_id1=self._grid(bodies[1]),
            object_motion=self.motions,
            intrinsics=self.intrinsics,
        )

    @staticmethod
    def _pair(rows: Tensor) -> Tensor:
        """Returns (2, B, ...) of (2 B, ...)."""
        return rows.unflatten(0, (-1, 2)).transpose(0, 1)

    def _grid(self, values: Tensor) -> Tensor:
        width, height = self.size
        return values.unflatten(-1, (height, width)).contiguous()

    def _soften(self, colour: Tensor, surface: Tensor, lit: Tensor) -> None:
        """Shades pixels on edges in several places each and averages them; changes ``colour``."""
        edge = edges(surface.unflatten(-1, (self.size[1], self.size[0]))).flatten(1)
        most = int(edge.sum(1).max())
        where = edge.float().topk(most).indices
        spread = SPREAD.float().to(self.device).t()[None] / self.focal
        centres = self.rays.gather(2, where[:, None].expand(-1, 2, -1))
        finer = (centres[..., None] + spread[:, :, None]).flatten(2)
        finer = torch.cat((finer, torch.ones_like(finer[:, :1])), 1)
        depth, slot = self.cast(finer, self.transforms)
        shaded = lit.gather(1, where).repeat_interleave(len(SPREAD), 1)
        samples, _, _ = self._shade(finer, depth, slot, shaded, alone=False)
        mean = samples.unflatten(-1, (-1, len(SPREAD))).mean(-1)
        colour.scatter_(2, where.expand(3, -1, -1), mean)

    def _flow(
        self, motions: Tensor, depth: Tensor, slot: Tensor, bodies: Tensor, source: int
    ) -> tuple[Tensor, Tensor]:
        """Returns the (B, 2, R) flow from moment ``source`` to the other, and (B, R) what is hidden there."""
        target = 1 - source
        rays = self._pair(self.rays)[source]
        points = torch.cat((rays, torch.ones_like(rays[:, :1])), 1) * depth[source][:, None]
        first = torch.arange(self.pairs, device=self.device)[:, None] * motions.shape[1]
        table = motions[:, :, :3].flatten(0, 1).flatten(1).t().contiguous()
        motion = table[:, first + bodies[source]].unflatten(0, (3, 4))
        moved = (motion[:, :3] * points.movedim(1, 0)).sum(1) + motion[:, 3]
        ahead = moved[2] > 1e-3
        focal, centre = self.intrinsics.t()[:2, :, None], self.intrinsics.t()[2:, :, None]
        place = focal * moved[:2] / moved[2].clamp_min(1e-3) + centre

        width, height = self.size
        inside = ahead & (place[0] >= 0) & (place[1] >= 0) & (place[0] <= width - 1) & (place[1] <= height - 1)
        low = place.clamp_min(0).floor().long()
        seen = torch.zeros_like(inside)
        for du in (0, 1):
            for dv in (0, 1):
                at = (low[1] + dv).clamp_max(height - 1) * width + (low[0] + du).clamp_max(width - 1)
                near = depth[target].gather(1, at) * (1 + _BEHIND) >= moved[2]
                seen |= near & (slot[target].gather(1, at) == slot[source])
        flow = place - self.pixels[:, None]
        return flow.movedim(0, 1), ~(inside & seen)
