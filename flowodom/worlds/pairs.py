"""Training pairs: two pictures of a procedural world a moment apart, and everything that is true about them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from flowodom.errors import ConfigError
from flowodom.geometry import se3
from flowodom.threads import one_thread
from flowodom.worlds import layouts
from flowodom.worlds.bundles import Bundles, Grid, cast, finer
from flowodom.worlds.layouts import BODIES, PATTERN_NAMES, SHAPES, Layout
from flowodom.worlds.shading import SPREAD, Shader, edges, geometry_table
from flowodom.worlds.textures import PATTERNS, Atlas

TEXELS = 256
"""Texels across each texture."""

POOL_LIFE = 128
"""So many batches share one set of textures."""

_BEHIND = 5e-3
"""A point is hidden when all that is seen around it is nearer by more than this share of its depth."""

_SHADOW_MAP = 192
"""Pixels across a shadow map."""

_SHADOW_BIAS = 2.0
"""Pixels of the shadow map by which a surface may seem behind itself."""


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
        intrinsics = _intrinsics(generator, self.batch, self.size)
        with one_thread(self.device.type == "cpu"):
            pool = _pool(self.seed, k // POOL_LIFE, self.device)
            return _Views(layout, cameras, bodies, intrinsics, self.size, pool, self.device).batch()


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
        pool: tuple[Atlas, Atlas],
        device: torch.device,
    ) -> None:
        self.device, self.pairs, self.grid = device, len(intrinsics), Grid(*size)
        self.intrinsics = intrinsics.to(device)
        slots = bodies[:, :, list(BODIES)] @ layouts.poses(layout)
        transforms = se3.inverse(slots) @ cameras[:, :, None]
        layouts.clear_eyes(layout, transforms)
        half = torch.from_numpy(layout.half).repeat_interleave(2, 0)
        transforms = _rows(transforms)
        self.transforms, self.half = transforms.float().to(device), half.float().to(device)
        self.bundles = self.grid.bundles(transforms, half, intrinsics.repeat_interleave(2, 0), device)
        camera_from_body = se3.inverse(cameras)[:, :, None] @ bodies
        self.motions = (camera_from_body[1] @ se3.inverse(camera_from_body[0])).float().to(device)
        self.motions_back = (camera_from_body[0] @ se3.inverse(camera_from_body[1])).float().to(device)

        light = torch.from_numpy(layout.light)
        place = se3.act(se3.inverse(cameras)[:, :, None], light[..., :3])
        lights = _rows(torch.cat((place, light[..., 3:].expand(*place.shape[:-1], 1)), -1))
        self.shader = Shader(self._geometry(layout, lights.float()), self._looks(layout), *pool)
        self._prepare_shadows(layout, cameras, slots, half)

    def _geometry(self, layout: Layout, lights: Tensor) -> Tensor:
        rows, slots = self.half.shape[:2]
        kind = torch.tensor([float(shape) for shape in SHAPES]).expand(rows, -1).flatten()
        side = torch.ones(rows, slots).index_fill(1, torch.tensor([0]), -1.0).flatten()
        ambient = torch.from_numpy(layout.ambient).float().repeat_interleave(2 * slots)
        lights = lights[:, None].expand(-1, slots, -1, -1).flatten(0, 1)
        table = geometry_table(
            self.transforms.flatten(0, 1).cpu(), self.half.flatten(0, 1).cpu(), kind, side, ambient, lights
        )
        return table.to(self.device)

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

    def _prepare_shadows(self, layout: Layout, cameras: Tensor, slots: Tensor, half: Tensor) -> None:
        """Sees the scenes from their first light: a shadow map (Williams 1978) of each row."""
        light, size = torch.from_numpy(layout.light[:, 0, :3]), torch.from_numpy(layout.size)
        target = se3.act(cameras[0], torch.stack((0 * size, 0 * size, 0.8 * size), -1))
        ahead = functional.normalize(target - light, dim=-1)
        right = functional.normalize(torch.linalg.cross(ahead, ahead.roll(1, -1) + 0.1), dim=-1)
        axes = torch.stack((right, torch.linalg.cross(ahead, right), ahead), -1)
        eye = se3.matrix(axes, light)
        reach = (2 * size / (target - light).norm(dim=-1)).clamp(max=1.7)
        grid = Grid(_SHADOW_MAP, _SHADOW_MAP)
        focal = (0.5 * _SHADOW_MAP / reach).float().repeat_interleave(2)
        centre = torch.full_like(focal, 0.5 * (_SHADOW_MAP - 1))
        intrinsics = torch.stack((focal, focal, centre, centre), -1)
        transforms = _rows(se3.inverse(slots) @ eye[:, None])
        transforms[..., :3, 3] = torch.where(_rows(self._parked(layout)), 1e4, transforms[..., :3, 3])
        bundles = grid.bundles(transforms, half, intrinsics, self.device)
        bundles.meets[:, 0] = False
        depth, _ = cast(SHAPES, transforms.float().to(self.device), self.half, bundles)
        self._shadow_map, self._shadow_focal = grid.picture(depth).flatten(1), focal.to(self.device)[:, None]
        self._light_from_camera = _rows(se3.inverse(eye) @ cameras).float().to(self.device)

    def _parked(self, layout: Layout) -> Tensor:
        gone = torch.from_numpy(layout.half[..., :1] <= layouts.GONE)
        return gone.expand(2, *gone.shape)

    def _lit(self, points: Tensor) -> Tensor:
        """Returns (2 B, R) how much of the first light reaches (3, 2 B, R) points, camera frame."""
        pose = self._light_from_camera[:, :3].permute(1, 2, 0)[..., None]
        x, y, z = (pose[:, :3] * points).sum(1) + pose[:, 3]
        z = z.clamp_min(0.05)
        last = _SHADOW_MAP - 1
        u, v = (self._shadow_focal * x / z + 0.5 * last), (self._shadow_focal * y / z + 0.5 * last)
        inside = (u >= 0) & (v >= 0) & (u < last) & (v < last)
        left, top = u.clamp(0, last - 1).floor(), v.clamp(0, last - 1).floor()
        limit = z - _SHADOW_BIAS * z / self._shadow_focal
        lit = torch.zeros_like(z)
        for du in (0, 1):
            for dv in (0, 1):
                at = ((top + dv) * _SHADOW_MAP + left + du).long()
                weight = (1 - (u - left - du).abs()) * (1 - (v - top - dv).abs())
                lit = lit + weight * (self._shadow_map.gather(1, at) >= limit)
        return torch.where(inside, lit, 1.0)

    def _shade(
        self, bundles: Bundles, depth: Tensor, slot: Tensor, lit: Tensor, *, alone: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Shades (G, P) samples; returns (3, G, P) colours and normals and (G, P) surfaces."""
        rows = bundles.scene.to(self.device)[:, None]
        primitive = torch.where(slot < 0, -1, rows * len(SHAPES) + slot)
        pixel = ((1.0 if alone else 0.5) / self.intrinsics[:, :2].mean(1))[rows // 2].expand_as(depth)
        colour, normal, surface = self.shader.shade(
            bundles.rays.transpose(0, 1).flatten(1),
            depth.flatten(),
            primitive.flatten(),
            pixel.flatten(),
            lit=torch.stack((lit, torch.ones_like(lit))).flatten(1),
            alone=alone,
        )
        size = depth.shape
        return colour.view(3, *size), normal.view(3, *size), surface.view(size)

    def batch(self) -> PairBatch:
        """Renders the pairs and works out what is true of them."""
        grid, rays = self.grid, self.bundles.rays
        depth, slot = cast(SHAPES, self.transforms, self.half, self.bundles)
        points = torch.stack((rays[:, 0] * depth, rays[:, 1] * depth, depth))
        lit = self._lit(points.view(3, 2 * self.pairs, -1)).view_as(depth)
        colour, normal, surface = self._shade(self.bundles, depth, slot, lit, alone=True)
        self._soften(colour, surface, lit)
        image = _pair(grid.picture((colour * 255).round().clamp(0, 255).to(torch.uint8)).movedim(0, 1))
        normals = _pair(grid.picture(normal).movedim(0, 1))
        depths, slots, places = (
            _pair(grid.picture(depth)),
            _pair(grid.picture(slot)),
            _pair(grid.picture(points[:2]).movedim(0, 1)),
        )
        bodies = torch.tensor(BODIES, device=self.device)[slots]
        forward, hidden = self._flow(self.motions, places[0], depths, slots, bodies[0], 0)
        backward, hidden_back = self._flow(self.motions_back, places[1], depths, slots, bodies[1], 1)
        return PairBatch(
            image0=image[0].contiguous(),
            image1=image[1].contiguous(),
            flow_forward=forward,
            flow_backward=backward,
            hidden_forward=hidden,
            hidden_backward=hidden_back,
            depth0=depths[0].contiguous(),
            depth1=depths[1].contiguous(),
            normal0=normals[0].contiguous(),
            normal1=normals[1].contiguous(),
            motion=self.motions[:, 0],
            object_id0=bodies[0],
            object_id1=bodies[1],
            object_motion=self.motions,
            intrinsics=self.intrinsics,
        )

    def _soften(self, colour: Tensor, surface: Tensor, lit: Tensor) -> None:
        """Shades pixels on edges in several places each and averages them; changes ``colour``."""
        edge = self.grid.tiles(edges(self.grid.picture(surface)))
        spread = SPREAD.float().t().to(self.device) / self.intrinsics[:, :2, None]
        tiles = self.grid.across * self.grid.down
        bundles, bundle, ray = finer(self.bundles, edge, spread.repeat_interleave(2 * tiles, 0))
        depth, slot = cast(SHAPES, self.transforms, self.half, bundles)
        count = len(SPREAD)
        samples, _, _ = self._shade(bundles, depth, slot, lit[bundle, ray].repeat_interleave(count, 1), alone=False)
        colour[:, bundle, ray] = samples.view(3, *ray.shape, count).mean(-1)

    def _flow(
        self, motions: Tensor, place: Tensor, depths: Tensor, slots: Tensor, body: Tensor, source: int
    ) -> tuple[Tensor, Tensor]:
        """Returns the (B, 2, H, W) flow from moment ``source`` to the other, and (B, H, W) what is hidden there."""
        target = 1 - source
        depth, height, width = depths[source], self.grid.height, self.grid.width
        points = torch.cat((place, depth[:, None]), 1).movedim(1, 0)
        first = torch.arange(self.pairs, device=self.device)[:, None, None] * motions.shape[1]
        table = motions[:, :, :3].flatten(0, 1).flatten(1).t().contiguous()
        motion = table[:, first + body].view(3, 4, *body.shape)
        moved = (motion[:, :3] * points).sum(1) + motion[:, 3]
        focal, centre = self.intrinsics.t()[:2, :, None, None], self.intrinsics.t()[2:, :, None, None]
        landing = focal * moved[:2] / moved[2].clamp_min(1e-3) + centre
        start = focal * place.movedim(1, 0) / depth + centre

        u, v = landing
        inside = (moved[2] > 1e-3) & (u >= 0) & (v >= 0) & (u <= width - 1) & (v <= height - 1)
        left, top = u.clamp(0, width - 1).long(), v.clamp(0, height - 1).long()
        seen = torch.zeros_like(inside)
        other, others = depths[target].flatten(1), slots[target].flatten(1)
        for du in (0, 1):
            for dv in (0, 1):
                at = ((top + dv).clamp_max(height - 1) * width + (left + du).clamp_max(width - 1)).flatten(1)
                near = other.gather(1, at).view_as(depth) * (1 + _BEHIND) >= moved[2]
                seen |= near & (others.gather(1, at).view_as(depth) == slots[source])
        return (landing - start).movedim(0, 1).contiguous(), ~(inside & seen)


def _rows(moments: Tensor) -> Tensor:
    """Returns (2 B, ...) of (2, B, ...), with both moments of a pair side by side."""
    return moments.transpose(0, 1).flatten(0, 1)


def _pair(rows: Tensor) -> Tensor:
    """Returns (2, B, ...) of (2 B, ...)."""
    return rows.view(-1, 2, *rows.shape[1:]).transpose(0, 1)
