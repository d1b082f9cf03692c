"""Random worlds by seed: a furnished room, a street."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowodom.threads import one_thread
from flowodom.worlds.casting import Shape
from flowodom.worlds.motion import Following, Motion, Wander, Waves, level_pose
from flowodom.worlds.textures import PATTERNS, Atlas
from flowodom.worlds.world import Light, Material, Primitive, World

_SPECIAL = ("plaster", "marks", "wallpaper", "foliage", "facade", "sky")
"""Patterns that are used only where they are asked for by name."""

TEXELS = 512
"""Texels across each texture; a power of two. A world with fewer is made faster and looks blurred from near."""


def _place(x: float, y: float, z: float, yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> Tensor:
    return level_pose(
        torch.tensor([x, y, z], dtype=torch.float64), torch.tensor([yaw, pitch, roll], dtype=torch.float64)
    )


class _Builder:
    """Collects primitives and textures; all chance comes from the seed."""

    def __init__(self, seed: int, patterns: list[str], texels: int):
        self.generator = torch.Generator().manual_seed(seed + (1 << 32))
        self.patterns = patterns
        # Textures draw as many numbers as they have texels: a source of their own keeps the rest the same.
        paint = torch.Generator().manual_seed(seed)
        self.tiles = [PATTERNS[name](texels, paint) for name in patterns]
        self.fine = PATTERNS["fine"](texels, paint)
        self.primitives: list[Primitive] = []
        self.motions: list[Motion] = []

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def choose(self, *names: str) -> str:
        return names[int(torch.randint(len(names), (), generator=self.generator))]

    def material(self, *names: str, period: float, spread: float = 0.1, detail: float = 0.5) -> Material:
        """Draws one of the textures whose pattern has one of the names (any general one for none)."""
        wanted = names or tuple(sorted({p for p in self.patterns if p not in _SPECIAL}))
        options = [k for k, pattern in enumerate(self.patterns) if pattern in wanted]
        tile = options[int(torch.randint(len(options), (), generator=self.generator))]
        bright = self.uniform(0.8, 1.15)
        red, blue = self.uniform(1 - spread, 1 + spread), self.uniform(1 - spread, 1 + spread)
        return Material(tile, period * self.uniform(0.85, 1.2), (bright * red, bright, bright * blue), detail)

    def add(
        self, shape: Shape, half: tuple[float, float, float], pose: Tensor, *materials: Material, body: int = 0
    ) -> None:
        self.primitives.append(Primitive(shape, half, pose, materials, body))

    def box(self, half: tuple[float, float, float], pose: Tensor, *materials: Material, body: int = 0) -> None:
        self.add(Shape.BOX, half, pose, *materials, body=body)

    def world(self, name: str, lights: tuple[Light, ...], ambient: float, device: torch.device | str) -> World:
        atlas = Atlas.build(self.tiles, device=device)
        detail = Atlas.build([self.fine[:1]], device=device)
        return World(name, tuple(self.primitives), tuple(self.motions), atlas, detail, lights, ambient)


_ROOM_PATTERNS = [
    "plaster", "wallpaper", "wallpaper", "clouds", "clouds", "cells", "bricks", "checker",
    "stripes", "wood", "wood", "speckle", "speckle", "marks", "marks",
]  # fmt: skip


@one_thread()
def room(
    seed: int,
    *,
    movers: int = 1,
    coverage: float | None = None,
    path: Motion | None = None,
    texels: int = TEXELS,
    device: torch.device | str = "cpu",
) -> World:
    """Makes a furnished room, about 6 by 6 by 2.7 metres, its floor at z = 0 and its middle free for a camera.

    Cameras keep within 1.2 m of the z axis and above 0.25 m. The movers cross in front of a camera that looks along x.

    Args:
        seed: The same seed gives the same room.
        movers: How many objects move on their own.
        coverage: Share of the image, 0 to 0.6, that the first mover covers on average; it then goes to and fro in front
            of the camera wherever that goes, close by, as a person might. None for movers that mind their own business.
        path: The camera path, needed with ``coverage``.
        texels: Texels across each texture, a power of two.
        device: Where to render.

    Raises:
        ValueError: ``coverage`` is asked for without a path or a mover, or is not a share.
    """
    if coverage is not None and (path is None or movers < 1 or not 0 < coverage <= 0.6):
        raise ValueError(
            f"coverage must be in (0, 0.6] and needs a camera path and movers >= 1, "
            f"got coverage={coverage}, path={path}, movers={movers}"
        )
    build = _Builder(seed, _ROOM_PATTERNS, texels)
    x, y, z = build.uniform(2.9, 3.5), build.uniform(2.7, 3.3), build.uniform(1.25, 1.45)
    walls = [
        build.material("plaster", period=2.0, detail=0.15),
        build.material("plaster", "wallpaper", "stripes", "bricks", period=2.4),
        build.material("bricks", "wallpaper", "clouds", "cells", period=2.4),
        build.material("plaster", "wallpaper", "stripes", period=2.4),
    ]
    floor = build.material("wood", "checker", "speckle", "cells", period=2.2)
    ceiling = Material(build.patterns.index("plaster"), 2.6, (1.15, 1.15, 1.15), 0.25)
    build.primitives.append(Primitive(Shape.BOX, (x, y, z), _place(0, 0, z), (*walls, floor, ceiling), inward=True))
    _hang_pictures(build, x, y)
    _furnish(build, x, y)
    rug = build.material("stripes", "checker", "cells", "speckle", period=1.3)
    build.box((build.uniform(0.8, 1.2), build.uniform(0.6, 1.0), 0.006), _place(0.4, 0.1, 0.006, 0.3), rug)
    for k in range(movers):
        if coverage is not None and k == 0:
            assert path is not None
            _add_follower(build, path, coverage)
        else:
            _add_mover(build, x, k)
    lights = (
        Light((build.uniform(-1, 1), build.uniform(-1, 1), 2 * z - 0.15), 0.45),
        Light((build.uniform(-2, -1), build.uniform(-2, 2), 1.6), 0.25),
    )
    return build.world(f"room-{seed}", lights, 0.45, device)


def _hang_pictures(build: _Builder, x: float, y: float) -> None:
    for wall in range(4):
        along, across = (y, x) if wall % 2 == 0 else (x, y)
        yaw = wall * math.pi / 2
        for k in range(3):
            offset = along * (-0.6 + 0.6 * k) + build.uniform(-0.2, 0.2)
            half = (0.012, build.uniform(0.22, 0.45), build.uniform(0.18, 0.4))
            pose = _place(0, 0, 0, yaw) @ _place(across - 0.012, offset, build.uniform(1.35, 1.8))
            poster = build.material("marks", "cells", "clouds", "speckle", period=2.4 * max(half[1:]))
            build.box(half, pose, poster)


def _furnish(build: _Builder, x: float, y: float) -> None:
    """Puts things along the walls."""
    for wall in range(4):
        along, across = (y, x) if wall % 2 == 0 else (x, y)
        to_wall = _place(0, 0, 0, wall * math.pi / 2)
        for slot in (-0.62, 0.0, 0.62):
            kind = build.choose("cupboard", "table", "ball", "column", "crate", "sofa")
            at = along * slot + build.uniform(-0.15, 0.15)
            if kind == "cupboard":
                half = (build.uniform(0.2, 0.3), build.uniform(0.35, 0.6), build.uniform(0.4, 0.95))
                build.box(half, to_wall @ _place(across - half[0], at, half[2]), build.material(period=1.1))
                if half[2] < 0.6:
                    r = build.uniform(0.1, 0.17)
                    pose = to_wall @ _place(across - half[0], at, 2 * half[2] + r)
                    build.add(Shape.SPHERE, (r, r, r), pose, build.material(period=0.6))
            elif kind == "table":
                half = (0.35, build.uniform(0.45, 0.65), 0.025)
                pose = to_wall @ _place(across - 0.5, at, 0.72, build.uniform(-0.2, 0.2))
                build.box(half, pose, build.material("wood", "clouds", period=1.0))
                leg = build.material("wood", "clouds", period=0.5)
                for sx in (-1, 1):
                    for sy in (-1, 1):
                        foot = pose @ _place(0.8 * sx * half[0], 0.85 * sy * half[1], -0.37)
                        build.add(Shape.CYLINDER, (0.03, 0.03, 0.345), foot, leg)
                size = (0.1, build.uniform(0.1, 0.2), build.uniform(0.08, 0.2))
                thing = pose @ _place(0, build.uniform(-0.2, 0.2), 0.025 + size[2], build.uniform(-1, 1))
                build.box(size, thing, build.material("marks", "stripes", "cells", "clouds", period=0.5))
            elif kind == "ball":
                r = build.uniform(0.18, 0.35)
                pose = to_wall @ _place(across - 0.2 - r, at, r, build.uniform(0, 6), build.uniform(-1, 1))
                build.add(Shape.SPHERE, (r, r, r), pose, build.material(period=0.9))
            elif kind == "column":
                r, h = build.uniform(0.12, 0.25), build.uniform(0.3, 0.9)
                pose = to_wall @ _place(across - 0.15 - r, at, h)
                build.add(Shape.CYLINDER, (r, r, h), pose, build.material(period=0.9))
            elif kind == "crate":
                half = (build.uniform(0.15, 0.3), build.uniform(0.15, 0.35), build.uniform(0.15, 0.3))
                turn = build.uniform(-0.8, 0.8)
                build.box(half, to_wall @ _place(across - 0.5, at, half[2], turn), build.material(period=0.8))
                small = (0.6 * half[0], 0.6 * half[1], 0.12)
                pose = to_wall @ _place(across - 0.5, at, 2 * half[2] + 0.12, turn + 0.5)
                build.box(small, pose, build.material("marks", "cells", "stripes", period=0.5))
            else:
                cloth = build.material("stripes", "clouds", "speckle", "checker", period=0.9)
                width = build.uniform(0.5, 0.7)
                build.box((0.38, width, 0.21), to_wall @ _place(across - 0.4, at, 0.21), cloth)
                build.box((0.1, width, 0.24), to_wall @ _place(across - 0.12, at, 0.66), cloth)


def _add_mover(build: _Builder, x: float, count: int) -> None:
    """A pile of two things that sweeps to and fro in front of the furniture at x, turning as it goes."""
    body = len(build.motions) + 1
    half = (build.uniform(0.16, 0.25), build.uniform(0.2, 0.32), build.uniform(0.2, 0.35))
    build.box(half, _place(0, 0, 0), build.material("cells", "speckle", "bricks", "stripes", period=0.7), body=body)
    r = 0.7 * min(half[0], half[1])
    build.add(Shape.SPHERE, (r, r, r), _place(0, 0, half[2] + r), build.material(period=0.6), body=body)
    waves = Waves.random([0.12, 0.55, 0.15, 0.5, 0.15, 0.15], build.generator, band=(0.1, 0.22), count=2)
    build.motions.append(Wander((x - 1.25 + 0.2 * count, build.uniform(-0.3, 0.3), 1.2), waves=waves))


_FOLLOW_DISTANCE, _VIEW = 1.3, (0.61, 0.46)
"""How far ahead of the camera the follower keeps, and the tangents of half the field of view assumed for it."""

_TILTED = 1.1
"""A camera that tilts sees less of what stays at its height; so much is made up for."""


def _add_follower(build: _Builder, path: Motion, coverage: float) -> None:
    """A person-like box that goes to and fro in front of the camera and covers the wanted share on average."""
    body = len(build.motions) + 1
    distance = _FOLLOW_DISTANCE
    reach_u, reach_v = _VIEW[0] * distance, _VIEW[1] * distance
    # It sweeps out to where about half of it is out of view.
    half_v = reach_v * min(0.95, math.sqrt(coverage) * 1.35)
    sweep = torch.sin(torch.linspace(0, 2 * math.pi, 241, dtype=torch.float64)[:-1]) * 0.62 * reach_u

    def covered(half_u: float) -> float:
        seen = (sweep + half_u).clamp(max=reach_u) - (sweep - half_u).clamp(min=-reach_u)
        return float(seen.clamp_min(0).mean()) / (2 * reach_u) * half_v / reach_v

    low, high = 0.0, 2 * reach_u
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if covered(middle) < _TILTED * coverage else (low, middle)
    thickness = 0.12
    build.box(
        (thickness, low, half_v),
        _place(thickness, 0, 0),
        build.material("cells", "speckle", "bricks", "clouds", period=0.8),
        body=body,
    )
    # One sweep in 3.4 seconds: up to 0.9 m/s across the view, and a little bobbing.
    rate = 2 * math.pi / 3.4
    amplitude = torch.tensor([0.05, 0.62 * reach_u, 0.04, 0.1, 0.03, 0.05], dtype=torch.float64)[:, None]
    rates = rate * torch.tensor([0.7, 1.0, 1.3, 0.8, 0.9, 1.1], dtype=torch.float64)[:, None]
    phase = 2 * math.pi * torch.rand(6, 1, generator=build.generator, dtype=torch.float64)
    offset = Wander((distance, 0.0, 0.0), waves=Waves(amplitude, rates, phase))
    build.motions.append(Following(path, 0.3, offset))


_STREET_PATTERNS = [
    "plaster", "clouds", "clouds", "cells", "bricks", "bricks", "stripes", "speckle", "speckle",
    "foliage", "foliage", "facade", "facade", "sky",
]  # fmt: skip


@one_thread()
def street(
    seed: int,
    *,
    movers: int = 0,
    length: float = 120.0,
    texels: int = TEXELS,
    device: torch.device | str = "cpu",
) -> World:
    """Makes a straight street along x, with houses, trees, poles and parked cars on both sides, under a sky.

    The lane of the camera is y = 0, 2.5 m free on either side, from x = 0; the ground is z = 0.

    Args:
        seed: The same seed gives the same street.
        movers: Cars that come towards the camera on the lane beside it (y = 3 m).
        length: How far it goes on, metres.
        texels: Texels across each texture, a power of two.
        device: Where to render.
    """
    build = _Builder(seed, _STREET_PATTERNS, texels)
    sky = Material(build.patterns.index("sky"), 6000.0, detail=0.0, glow=1.0)
    build.primitives.append(Primitive(Shape.SPHERE, (5000.0,) * 3, _place(0, 0, 0), (sky,), inward=True))
    asphalt = build.material("speckle", period=3.0, spread=0.05)
    build.box((length + 200, 6.0, 0.5), _place(length / 2, 1.0, -0.5), asphalt)
    pavement = build.material("cells", "bricks", period=3.0, spread=0.05)
    build.box((length + 200, 60.0, 0.5), _place(length / 2, 0, -0.54), pavement)
    kerb = build.material("bricks", "cells", "clouds", period=2.0, spread=0.05)
    for side in (-1, 1):
        edge = 7.0 if side > 0 else -5.0
        build.box((length + 200, 1.5, 0.07), _place(length / 2, edge + 1.5 * side, 0.07), kerb)
        x = build.uniform(-12, -6)
        while x < length + 40:
            half = (build.uniform(3.0, 7.0), build.uniform(3.0, 5.0), build.uniform(2.5, 6.0))
            depth = edge + side * (3.2 + build.uniform(0, 2.0) + half[1])
            facade = build.material("facade", "facade", "bricks", "plaster", period=6.0)
            build.box(half, _place(x + half[0], depth, half[2]), facade)
            x += 2 * half[0] + build.uniform(0.0, 3.5)
        x = build.uniform(2, 9)
        while x < length + 20:
            at = edge + side * build.uniform(0.7, 2.3)
            if build.uniform(0, 1) < 0.45:
                r = build.uniform(0.9, 1.7)
                build.add(Shape.CYLINDER, (0.16, 0.16, 1.6), _place(x, at, 1.6), build.material("clouds", period=1.0))
                leaves = build.material("foliage", period=2.5)
                build.add(Shape.SPHERE, (r, r, r), _place(x, at, 2.6 + r, build.uniform(0, 6)), leaves)
            else:
                half = (build.uniform(1.7, 2.2), 0.85, 0.45)
                paint = build.material("clouds", "stripes", "plaster", period=2.0)
                y = edge - side * 1.2
                build.box(half, _place(x, y, 0.3 + half[2]), paint)
                build.box((0.55 * half[0], 0.75, 0.32), _place(x - 0.2, y, 1.5), build.material("clouds", period=1.5))
            x += build.uniform(6.0, 14.0)
    for k in range(movers):
        body = len(build.motions) + 1
        paint = build.material("stripes", "cells", "clouds", period=2.0)
        build.box((2.0, 0.85, 0.45), _place(0, 0, 0.75), paint, body=body)
        build.box((1.1, 0.75, 0.32), _place(-0.2, 0, 1.5), paint, body=body)
        velocity = (-build.uniform(6.0, 11.0), 0.0, 0.0)
        build.motions.append(Wander((25.0 + 22.0 * k, 3.0, 0.0), (math.pi, 0.0, 0.0), velocity))
    sun = Light((-3000.0, 4000.0 * (1 if build.uniform(0, 1) < 0.5 else -1), 5000.0), 0.45)
    return build.world(f"street-{seed}", (sun,), 0.6, device)
