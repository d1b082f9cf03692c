"""Many small random scenes at once: where things are, how they look, how they and the camera move.

A scene here is one row of arrays, so that a whole batch is drawn, cast and shaded together. Every scene has the same
slots, each for one shape; what a scene lacks is parked far below. World frames have z up; angles are yaw, pitch and
roll, radians (z-y-x order).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowodom.geometry import se3
from flowodom.worlds.casting import Shape
from flowodom.worlds.motion import OPTICAL_FROM_BODY, level_pose
from flowodom.worlds.relief import height

Array = NDArray[np.float64]

MOVERS = 4
"""Things that move on their own in a scene, at most; the fourth hangs on the third by a hinge."""

_STATIC = (
    (Shape.BOX, 2),
    (Shape.TERRAIN, 1),
    (Shape.BOX, 18),
    (Shape.CYLINDER, 6),
    (Shape.SPHERE, 3),
    (Shape.BLOB, 6),
)
_MOVING = (Shape.BOX, Shape.SPHERE, Shape.BLOB, Shape.CYLINDER, Shape.BOX, Shape.BLOB, Shape.BOX, Shape.CYLINDER)

SHAPES = tuple(shape for shape, count in _STATIC for _ in range(count)) + _MOVING
"""The shape of each slot. Slot 0 is the shell, seen from within, 1 a flat ground, 2 hilly ground."""

BODIES = (0,) * (len(SHAPES) - len(_MOVING)) + tuple(1 + k // 2 for k in range(len(_MOVING)))
"""The body to which each slot belongs, 0 for the static world."""

_THINGS = slice(3, len(SHAPES) - len(_MOVING))
_FIRST_MOVING = len(SHAPES) - len(_MOVING)

PALETTE = (
    ("plain", ("plaster", "plaster", "blank")),
    ("wall", ("plaster", "wallpaper", "wallpaper", "bricks", "clouds", "facade", "natural")),
    ("floor", ("wood", "wood", "speckle", "speckle", "cells", "checker", "bricks", "natural")),
    ("thing", ("clouds", "clouds", "cells", "stripes", "speckle", "marks", "marks", "leaves", "leaves", "natural")),
    ("repeated", ("checker", "mosaic", "mosaic", "stripes", "wallpaper")),
    ("foliage", ("foliage", "foliage")),
    ("facade", ("facade", "facade", "facade")),
    ("sky", ("sky", "sky")),
)
"""Textures a batch may use, by what they are for."""

PATTERN_NAMES = tuple(name for _, names in PALETTE for name in names)
"""The pattern of each tile of the atlas."""

_RANGES: dict[str, tuple[int, int]] = {}
for _use, _names in PALETTE:
    _start = max((end for _, end in _RANGES.values()), default=0)
    _RANGES[_use] = (_start, _start + len(_names))

GONE = 0.01
"""Half extent of what a scene lacks, metres."""

_PARKED = -1e4
_SKY = 3000.0


@dataclass
class Layout:
    """B scenes of S slots, two moments and L = 2 lights.

    Attributes:
        half: (B, S, 3) half extents, metres.
        position: (B, S, 3) metres, frame of the slot's body.
        angles: (B, S, 3) of the slot in its body.
        tile: (B, S, 6) texture of each face.
        period: (B, S) size of a tile, metres.
        tint: (B, S, 3) factor on red, green and blue.
        detail: (B, S) strength of the fine detail.
        glow: (B, S) 1 for what shines by itself.
        gloss: (B, S) strength of highlights.
        light: (B, 2, 4) place, metres, and strength.
        ambient: (B) brightness without a light.
        eye: (B, 6) place and angles of the camera's body at the first moment (x forward, z up).
        size: (B) typical distance of things, metres, to which motions are scaled.
    """

    half: Array
    position: Array
    angles: Array
    tile: Array
    period: Array
    tint: Array
    detail: Array
    glow: Array
    gloss: Array
    light: Array
    ambient: Array
    eye: Array
    size: Array


class _Draw:
    """Draws ``count`` scenes of one kind at a time."""

    def __init__(self, generator: np.random.Generator, count: int):
        slots = len(SHAPES)
        self.random, self.count = generator, count
        self.layout = Layout(
            half=np.full((count, slots, 3), GONE),
            position=np.full((count, slots, 3), _PARKED),
            angles=np.zeros((count, slots, 3)),
            tile=self.tiles("thing", slots)[..., None].repeat(6, -1),
            period=np.ones((count, slots)),
            tint=self.uniform(0.6, 1.25, slots)[..., None] * self.uniform(0.85, 1.15, slots, 3),
            detail=self.uniform(0, 0.7, slots),
            glow=np.zeros((count, slots)),
            gloss=self.uniform(0.2, 0.9, slots) * (self.uniform(0, 1, slots) < 0.15),
            light=np.zeros((count, 2, 4)),
            ambient=self.uniform(0.3, 0.6),
            eye=np.zeros((count, 6)),
            size=np.ones(count),
        )

    def uniform(self, low: float, high: float, *shape: int) -> Array:
        return self.random.uniform(low, high, (self.count, *shape))

    def log_uniform(self, low: float, high: float, *shape: int) -> Array:
        return np.exp(self.uniform(math.log(low), math.log(high), *shape))

    def tiles(self, use: str, *shape: int) -> Array:
        return self.random.integers(*_RANGES[use], (self.count, *shape)).astype(np.float64)

    def put(self, slots: slice, half: Array, position: Array, yaw: Array | float = 0.0) -> None:
        """Places upright things: (count, n, 3) half extents and positions, (count, n) headings."""
        self.layout.half[:, slots], self.layout.position[:, slots] = half, position
        self.layout.angles[:, slots, 0] = yaw
        self.layout.period[:, slots] = half.max(-1) * self.uniform(0.7, 2.2, half.shape[1])

    def shell(self, half: Array, low: Array | float) -> None:
        """Puts the scene in a box whose floor is at ``low``."""
        self.put(slice(0, 1), half[:, None], np.stack((*np.zeros((2, self.count)), half[:, 2] + low), -1)[:, None])

    def sky(self) -> None:
        self.shell(np.full((self.count, 3), _SKY), -_SKY)
        look = self.layout
        look.tile[:, 0], look.period[:, 0], look.glow[:, 0] = self.tiles("sky")[:, None], 2 * _SKY, 1.0
        look.tint[:, 0], look.detail[:, 0], look.gloss[:, 0] = self.uniform(0.7, 1.1)[:, None], 0.0, 0.0
        place = np.concatenate((self.uniform(-40, 40, 2), self.uniform(30, 60, 1)), -1)
        look.light[:, 0] = np.concatenate((place, self.uniform(0.4, 0.8, 1)), -1)
        look.light[:, 1, 2], look.size = 50.0, self.uniform(5, 12)

    def indoors(self, half: Array) -> None:
        self.shell(half, 0.0)
        look = self.layout
        look.tile[:, 0] = self.tiles("wall", 6)
        look.tile[:, 0, 4], look.tile[:, 0, 5] = self.tiles("floor"), self.tiles("plain")
        look.period[:, 0], look.detail[:, 0] = self.uniform(1.2, 3.0), self.uniform(0.0, 0.6)
        for k, strength in enumerate(((0.3, 0.7), (0.0, 0.3))):
            place = self.uniform(-0.6, 0.6, 2) * half[:, :2]
            up = 2 * half[:, 2:] * self.uniform(0.7, 0.95, 1)
            look.light[:, k] = np.concatenate((place, up, self.uniform(*strength, 1)), -1)
        look.size = self.uniform(1.5, 3.0)

    def look(self, place: Array, yaw: Array, pitch: Array) -> None:
        roll = self.random.normal(0, 1, self.count) * np.where(self.uniform(0, 1) < 0.2, 0.5, 0.05)
        self.layout.eye = np.concatenate((place, np.stack((yaw, pitch, roll), -1)), -1)

    def pitch(self) -> Array:
        return self.random.normal(0.08, 0.18, self.count)


def _scatter(draw: _Draw, reach: Array, ground: Callable[[Array], Array], scale: float) -> None:
    """Stands things about within (count, 2) half lengths, some on top of others or in the air."""
    count = len(SHAPES[_THINGS])
    half = draw.log_uniform(0.06, 0.5, count, 3) * scale * draw.log_uniform(0.6, 1.6, count, 1)
    shapes = np.array([int(shape) for shape in SHAPES[_THINGS]])
    half[:, shapes == Shape.CYLINDER, 1] = half[:, shapes == Shape.CYLINDER, 0]
    ball = shapes == Shape.SPHERE
    half[:, ball] = half[:, ball, :1]
    place = draw.uniform(-1, 1, count, 2) * reach[:, None]
    lifted = np.where(draw.uniform(0, 1, count) < 0.25, draw.uniform(0.2, 1.6, count) * scale, 0.0)
    z = ground(place) + half[..., 2] + lifted
    draw.put(_THINGS, half, np.concatenate((place, z[..., None]), -1), draw.uniform(-math.pi, math.pi, count))
    tilted = draw.uniform(0, 1, count, 2) < 0.12
    draw.layout.angles[:, _THINGS, 1:] = np.where(tilted, draw.random.normal(0, 0.5, tilted.shape), 0.0)


def _pictures(draw: _Draw, half: Array) -> None:
    """Hangs four flat things on each long wall, in the first eight of the things' slots."""
    slots = slice(3, 11)
    side = np.tile([1.0, -1.0], 4)
    along = np.repeat(np.linspace(-0.75, 0.75, 4), 2) * half[:, :1] + draw.uniform(-0.3, 0.3, 8)
    size = np.stack((draw.uniform(0.15, 0.6, 8), np.full((draw.count, 8), 0.015), draw.uniform(0.15, 0.5, 8)), -1)
    up = half[:, 2:] + draw.uniform(-0.4, 0.5, 8)
    draw.put(slots, size, np.stack((along, side * (half[:, 1:2] - 0.015), up), -1))
    draw.layout.angles[:, slots, 1:] = 0.0


def _flat(place: Array) -> Array:
    return np.zeros(place.shape[:-1])


def room(generator: np.random.Generator, count: int) -> Layout:
    """Draws furnished rooms."""
    draw = _Draw(generator, count)
    half = np.stack((draw.uniform(1.8, 4.5), draw.uniform(1.6, 4.0), draw.uniform(1.15, 1.6)), -1)
    draw.indoors(half)
    _scatter(draw, half[:, :2], _flat, 0.9)
    _pictures(draw, half)
    place = np.concatenate((draw.uniform(-0.6, 0.6, 2) * half[:, :2], draw.uniform(0.25, 2.0, 1)), -1)
    draw.look(place, draw.uniform(-math.pi, math.pi), draw.pitch())
    return draw.layout


def corridor(generator: np.random.Generator, count: int) -> Layout:
    """Draws long, narrow corridors."""
    draw = _Draw(generator, count)
    half = np.stack((draw.uniform(5, 20), draw.uniform(0.8, 1.5), draw.uniform(1.15, 1.5)), -1)
    draw.indoors(half)
    _scatter(draw, np.stack((np.minimum(half[:, 0], 7), half[:, 1]), -1), _flat, 0.6)
    _pictures(draw, half * (np.minimum(1, 7 / half[:, :1]) ** np.array([1, 0, 0])))
    place = np.stack((draw.uniform(-2, 2), draw.uniform(-0.4, 0.4) * half[:, 1], draw.uniform(0.25, 1.9)), -1)
    ahead = np.where(draw.uniform(0, 1) < 0.5, 0.0, math.pi)
    draw.look(place, ahead + draw.random.normal(0, 0.3, count), draw.pitch())
    return draw.layout


def street(generator: np.random.Generator, count: int) -> Layout:
    """Draws streets with houses, poles, trees and parked cars."""
    draw = _Draw(generator, count)
    draw.sky()
    draw.put(slice(1, 2), np.full((count, 1, 3), [300.0, 300.0, 0.5]), np.full((count, 1, 3), [0.0, 0.0, -0.5]))
    look = draw.layout
    look.tile[:, 1], look.period[:, 1] = draw.tiles("floor")[:, None], draw.uniform(1.5, 4.0)
    width = draw.uniform(4, 8, 1)
    _scatter(draw, np.concatenate((np.full((count, 1), 22.0), width), -1), _flat, 2.0)
    houses, slots = 8, slice(3, 11)
    side = np.tile([1.0, -1.0], 4)
    half = np.stack((draw.uniform(3.5, 7, 8), draw.uniform(3, 5, 8), draw.uniform(2.5, 7, 8)), -1)
    along = np.repeat(np.linspace(-24, 24, 4), 2) + draw.uniform(-3, 3, 8)
    draw.put(slots, half, np.stack((along, side * (width + half[..., 1] + draw.uniform(0, 2, 8)), half[..., 2]), -1))
    look.tile[:, slots], look.angles[:, slots] = draw.tiles("facade", houses)[..., None], 0.0
    look.period[:, slots] = draw.uniform(4, 8, houses)
    poles = slice(_first(Shape.CYLINDER), _first(Shape.CYLINDER) + 4)
    half = np.stack((*[draw.uniform(0.05, 0.25, 4)] * 2, draw.uniform(1.5, 3.0, 4)), -1)
    place = np.stack((draw.uniform(-18, 18, 4), np.sign(draw.uniform(-1, 1, 4)) * width * 0.9, half[..., 2]), -1)
    draw.put(poles, half, place)
    crowns = slice(_first(Shape.SPHERE), _first(Shape.SPHERE) + 3)
    draw.put(crowns, np.repeat(draw.uniform(0.8, 1.8, 3, 1), 3, -1), place[:, :3] + [0, 0, 2.5])
    look.tile[:, crowns] = draw.tiles("foliage", 3)[..., None]
    place = np.stack((draw.uniform(-3, 3), draw.uniform(-2, 2), draw.log_uniform(0.4, 4.0)), -1)
    ahead = np.where(draw.uniform(0, 1) < 0.5, 0.0, math.pi)
    draw.look(place, ahead + draw.random.normal(0, 0.4, count), draw.pitch())
    return draw.layout


def ground(generator: np.random.Generator, count: int) -> Layout:
    """Draws open, hilly ground with clutter on it, some seen from a drone."""
    draw = _Draw(generator, count)
    draw.sky()
    look = draw.layout
    half = np.stack((*draw.uniform(30, 90, 2).T, draw.uniform(0.3, 3.0)), -1)
    draw.put(slice(2, 3), half[:, None], np.zeros((count, 1, 3)))
    look.tile[:, 2], look.period[:, 2] = draw.tiles("floor")[:, None], draw.uniform(1.5, 5.0)
    look.gloss[:, 2] = 0.0

    def high(place: Array) -> Array:
        sides = half.reshape(count, *(1,) * (place.ndim - 2), 3)
        return height(torch.from_numpy(place).movedim(-1, 0), torch.from_numpy(sides).movedim(-1, 0)).numpy()

    _scatter(draw, draw.uniform(8, 20, 1) * np.ones(2), high, 1.6)
    plants = np.array([_first(Shape.SPHERE) + k for k in range(3)] + [_first(Shape.BLOB) + k for k in range(3)])
    look.tile[:, plants] = draw.tiles("foliage", len(plants))[..., None]
    flying = draw.uniform(0, 1) < 0.4
    place = draw.uniform(-4, 4, 2)
    up = high(place) + np.where(flying, draw.uniform(3, 12), draw.uniform(0.4, 2.0))
    pitch = np.where(flying, draw.uniform(0.2, 1.3), draw.pitch())
    draw.look(np.concatenate((place, up[:, None]), -1), draw.uniform(-math.pi, math.pi), pitch)
    return draw.layout


def _first(shape: Shape) -> int:
    """The first slot among the things that has a shape."""
    return SHAPES.index(shape, 3)


KINDS = (ground, street, corridor, room)
"""The kinds of scene. Only the first has hilly ground."""


def draw(generator: np.random.Generator, counts: tuple[int, ...]) -> Layout:
    """Draws scenes of every kind, with their movers and with what makes some of them hard to see.

    Args:
        generator: Source of randomness.
        counts: How many of each kind, in the order of ``KINDS``, which is also that of the rows.
    """
    parts = [kind(generator, count) for kind, count in zip(KINDS, counts, strict=True) if count]
    layout = Layout(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Layout)})
    rows = len(layout.size)
    # A tenth hardly have any texture, another tenth hardly have any but repeated ones.
    theme = generator.uniform(0, 1, (rows, 1, 1))
    chance = generator.uniform(0, 1, layout.tile.shape)
    outside = layout.glow[..., None] == 0
    bare, alike = (theme < 0.1) & (chance < 0.8) & outside, (theme > 0.9) & (chance < 0.8) & outside
    layout.tile = np.where(bare, generator.integers(*_RANGES["plain"], layout.tile.shape), layout.tile)
    layout.tile = np.where(alike, generator.integers(*_RANGES["repeated"], layout.tile.shape), layout.tile)
    layout.detail *= 1 - 0.9 * (theme[..., 0] < 0.1)
    return layout


def poses(layout: Layout) -> Tensor:
    """Returns the (B, S, 4, 4) float64 ``T_body_slot``."""
    return level_pose(torch.from_numpy(layout.position), torch.from_numpy(layout.angles))


def _twist(generator: np.random.Generator, rows: int, shift: Array, turn: Array) -> Array:
    """Draws (rows, 6) twists of random direction with the given lengths."""
    twist = generator.normal(0, 1, (rows, 2, 3))
    twist /= np.linalg.norm(twist, axis=-1, keepdims=True)
    return np.concatenate((twist[:, 0] * shift[:, None], twist[:, 1] * turn[:, None]), -1)


def camera_motion(generator: np.random.Generator, layout: Layout) -> tuple[Tensor, Tensor]:
    """Draws (B, 4, 4) float64 ``T_world_camera`` (optical) at both moments.

    A fifth each of the cameras are in a hand, on wheels, on a drone, only turn, or only go straight. Motions are from
    hardly any to large, as between frames of fast and slow, calm and hurried cameras.
    """
    rows = len(layout.size)
    shift = layout.size * np.exp(generator.uniform(math.log(0.001), math.log(0.12), rows))
    turn = np.radians(np.exp(generator.uniform(math.log(0.05), math.log(10), rows)))
    twist = _twist(generator, rows, shift, turn)
    style = generator.integers(0, 5, rows)[:, None]
    sign = np.sign(generator.normal(0, 1, (rows, 2)))
    zero = np.zeros(rows)
    wheels = np.stack((shift, zero, zero, zero, zero, 0.5 * turn * sign[:, 0]), -1)
    drone = twist * np.array([1.3, 1.0, 1.3, 1.2, 1.2, 0.8])
    turning = twist * np.array([0, 0, 0, 1, 1, 1])
    ahead = np.stack((shift * sign[:, 1], zero, zero, zero, zero, zero), -1)
    options = np.stack((twist, wheels, drone, turning, ahead))
    twist = np.take_along_axis(options, style[None], 0)[0]
    eye = torch.from_numpy(layout.eye)
    body = level_pose(eye[:, :3], eye[:, 3:])
    to_body = se3.inverse(OPTICAL_FROM_BODY)
    return body @ to_body, body @ se3.exp(torch.from_numpy(twist)) @ to_body


def add_movers(generator: np.random.Generator, layout: Layout, camera: Tensor) -> Tensor:
    """Fills the movers' slots and draws their motion.

    Args:
        generator: Source of randomness.
        layout: The scenes; changed.
        camera: (B, 4, 4) ``T_world_camera`` at the first moment; movers start in its view.

    Returns:
        (2, B, 1 + MOVERS, 4, 4) float64 ``T_world_body`` at both moments; body 0 is the world.
    """
    rows = len(layout.size)
    scale = layout.size[:, None]
    there = np.arange(MOVERS) < generator.integers(0, MOVERS + 1, (rows, 1))
    distance = scale * np.exp(generator.uniform(math.log(0.4), math.log(2.0), (rows, MOVERS)))
    across = generator.uniform(-0.6, 0.6, (rows, MOVERS, 2)) * distance[..., None]
    place = se3.act(camera[:, None], torch.from_numpy(np.concatenate((across, distance[..., None]), -1)))
    start = level_pose(place, torch.from_numpy(generator.uniform(-math.pi, math.pi, (rows, MOVERS, 3))))
    shift = distance * np.exp(generator.uniform(math.log(0.003), math.log(0.15), (rows, MOVERS)))
    turn = np.radians(np.exp(generator.uniform(math.log(0.2), math.log(15), (rows, MOVERS))))
    still = generator.uniform(0, 1, (rows, MOVERS)) < 0.1
    count = rows * MOVERS
    twist = _twist(generator, count, (shift * ~still).reshape(-1), (turn * ~still).reshape(-1))
    end = start @ se3.exp(torch.from_numpy(twist)).view(rows, MOVERS, 4, 4)

    # The first slot of a mover is its trunk, the second sits on its upper end.
    trunk = scale[..., None] * np.exp(generator.uniform(math.log(0.04), math.log(0.2), (rows, MOVERS, 3)))
    half = np.stack((trunk, trunk * generator.uniform(0.4, 0.9, (rows, MOVERS, 1))), 2).reshape(rows, -1, 3)
    for k, shape in enumerate(_MOVING):
        if shape is Shape.SPHERE:
            half[:, k] = half[:, k].min(-1, keepdims=True)
        elif shape is Shape.CYLINDER:
            half[:, k, 1] = half[:, k, 0]
    position = np.zeros_like(half)
    position[:, 1::2, 2] = half[:, 0::2, 2] + 0.8 * half[:, 1::2, 2]

    # The fourth swings about y at the side of the third.
    angle = generator.uniform(-2, 2, rows)
    swing = np.radians(generator.uniform(-15, 15, rows))
    joint = torch.from_numpy(np.stack((half[:, 4, 0] + half[:, 6, 0], *np.zeros((2, rows))), -1))
    for moment, turned in ((start, angle), (end, angle + swing)):
        hinge = np.stack((np.zeros(rows), turned, np.zeros(rows)), -1)
        moment[:, 3] = moment[:, 2] @ level_pose(joint, torch.from_numpy(hinge))
    position[:, 6:, 2] -= half[:, 6:7, 2]

    present = np.repeat(there, 2, 1)[..., None]
    layout.half[:, _FIRST_MOVING:] = np.where(present, half, GONE)
    layout.position[:, _FIRST_MOVING:] = np.where(present, position, _PARKED)
    layout.period[:, _FIRST_MOVING:] = half.max(-1) * generator.uniform(0.8, 2.5, half.shape[:2])
    world = se3.identity().expand(rows, 1, 4, 4)
    return torch.stack([torch.cat((world, moment), 1) for moment in (start, end)])


def clear_eyes(layout: Layout, slot_from_camera: Tensor) -> None:
    """Parks what a camera is in or all but touches.

    Args:
        layout: The scenes; changed.
        slot_from_camera: (K, B, S, 4, 4) ``T_slot_camera`` of K cameras; changed likewise.
    """
    gap = slot_from_camera[..., :3, 3].abs().numpy() - layout.half
    inside = (gap.max(-1) < 0.05 * layout.size[:, None]).any(0)
    inside[:, :3] = False
    layout.half[inside] = GONE
    slot_from_camera[:, inside, :3, 3] = _PARKED
