"""Where rays meet boxes, cylinders, spheres, soft blobs and hilly ground.

A ``World`` works in float64: depth, flow and occlusion are meant to be truth. Rays have unit depth (z = 1 in the
camera's optical frame), so the parameter along a ray is the depth.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from flowodom.geometry import PinholeCamera
from flowodom.worlds.relief import height

NEAR = 0.02
"""Nothing nearer than this depth is seen, metres."""


_BLOB_STEPS = 14
"""Steps of Newton's method; rays that graze a blob take the most."""

_MARCH, _MARCH_BIAS, _CLOSE = 32, 1.0, 9
"""Steps in search of the ground, the depth from which on they grow, metres, and the steps that close in on it."""

_EDGES = torch.tensor([[a, a | bit] for bit in (1, 2, 4) for a in range(8) if not a & bit])
"""The twelve edges of a box, by the binary numbers of its corners."""


Box = tuple[int, int, int, int]
"""Pixels u0, v0, u1, v1, upper ends excluded."""


class Shape(enum.IntEnum):
    """The primitives. All are centred on their own origin; ``half`` are half extents, metres."""

    BOX = 0
    """``half`` = half lengths along x, y, z."""
    CYLINDER = 1
    """``half`` = radius, radius, half height; the axis is z, with flat ends."""
    SPHERE = 2
    """``half`` = radius three times."""
    BLOB = 3
    """A soft pillow, the superellipsoid of exponent 4 (Barr 1981); ``half`` = half lengths. Never seen from within."""
    TERRAIN = 4
    """Hilly ground over the x-y plane (see ``relief``); ``half`` = half lengths along x, y, and the greatest height."""


def _interval_box(origin: Tensor, direction: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    inverse = torch.where(direction == 0, 1e-30, direction).reciprocal()
    middle, reach = -origin * inverse, half * inverse.abs()
    return (middle - reach).amax(0), (middle + reach).amin(0)


def _interval_round(origin: Tensor, direction: Tensor, radius: Tensor, axes: int) -> tuple[Tensor, Tensor]:
    """Entry and exit of an infinite cylinder about z (two axes) or of a sphere (three axes)."""
    o, d = origin[:axes], direction[:axes]
    a = (d * d).sum(0).clamp_min(1e-30)
    middle = -(o * d).sum(0) / a
    # The squared distance from the nearest point of the line to the centre loses no digits to cancellation.
    nearest = o + middle * d
    reach2 = (radius * radius - (nearest * nearest).sum(0)) / a
    reach = reach2.clamp_min(0).sqrt()
    return torch.where(reach2 > 0, middle - reach, torch.inf), middle + reach


def _first_blob(origin: Tensor, direction: Tensor, half: Tensor, near: Tensor) -> Tensor:
    """Newton's method from where the ray enters the bounding box; convexity keeps it before the first root."""
    d = direction / half
    o = origin / half + near * d
    o2, od, d2 = o * o, o * d, d * d
    c0, c1, c2 = (o2 * o2).sum(0) - 1, 4 * (o2 * od).sum(0), 6 * (od * od).sum(0)
    c3, c4 = 4 * (od * d2).sum(0), (d2 * d2).sum(0)
    step, value = torch.zeros_like(c0), c0
    for _ in range(_BLOB_STEPS):
        rate = (((4 * c4 * step + 3 * c3) * step + 2 * c2) * step + c1).clamp_max(-1e-12)
        step = torch.where(rate < -1e-12, step - value / rate, step)
        value = (((c4 * step + c3) * step + c2) * step + c1) * step + c0
    return torch.where(value < 1e-4, near + step, torch.inf)


def _first_terrain(origin: Tensor, direction: Tensor, half: Tensor, near: Tensor, far: Tensor) -> Tensor:
    """Marches in growing steps to where the ray changes sides, then closes in on that place."""
    near, far = near.clamp_min(NEAR), far.clamp_min(NEAR)

    def above(depth: Tensor) -> Tensor:
        place = origin + depth * direction
        return place[2] - height(place[:2], half)

    growth = ((far + _MARCH_BIAS) / (near + _MARCH_BIAS)) ** (1 / _MARCH)
    before, value_before = near, above(near)
    low, high = near, torch.full_like(near, torch.inf)
    value_low, value_high = value_before, value_before
    for _ in range(_MARCH):
        after = (before + _MARCH_BIAS) * growth - _MARCH_BIAS
        value_after = above(after)
        crossed = torch.isinf(high) & (value_before * value_after <= 0)
        low, high = torch.where(crossed, before, low), torch.where(crossed, after, high)
        value_low = torch.where(crossed, value_before, value_low)
        value_high = torch.where(crossed, value_after, value_high)
        before, value_before = after, value_after
    hit = torch.isfinite(high)
    high = torch.where(hit, high, low)
    # Regula falsi that halves the value of the end that stays (the Illinois rule), lest that end stay for ever.
    middle = low
    for _ in range(_CLOSE):
        share = value_low / torch.where(value_low == value_high, 1.0, value_low - value_high)
        middle = torch.lerp(low, high, share.clamp(0, 1))
        value = above(middle)
        same = value * value_low > 0
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
        value_low, value_high = torch.where(same, value, 0.5 * value_low), torch.where(same, 0.5 * value_high, value)
    return torch.where(hit, middle, torch.inf)


def intersect(shape: Shape, origin: Tensor, direction: Tensor, half: Tensor, *, inward: bool) -> Tensor:
    """Finds where rays first meet one primitive.

    Args:
        shape: What it is.
        origin: (3, ...) start of the rays, primitive's frame; broadcasts against ``direction``.
        direction: (3, ...) directions, primitive's frame, unit depth in the camera.
        half: (3, ...) half extents, metres; broadcasts.
        inward: Whether it is seen from within (a room, a sky) instead of from without.

    Returns:
        (...) depths, infinite where the ray misses.
    """
    if shape in (Shape.BOX, Shape.BLOB, Shape.TERRAIN):
        near, far = _interval_box(origin, direction, half)
    elif shape is Shape.SPHERE:
        near, far = _interval_round(origin, direction, half[0], 3)
    else:
        near, far = _interval_round(origin, direction, half[0], 2)
        cap_near, cap_far = _interval_box(origin[2:], direction[2:], half[2:])
        near, far = torch.maximum(near, cap_near), torch.minimum(far, cap_far)
    depth = far if inward else near
    if shape is Shape.BLOB:
        depth = _first_blob(origin, direction, half, near)
    elif shape is Shape.TERRAIN:
        depth = _first_terrain(origin, direction, half, near, far)
    return torch.where((near <= far) & (depth > NEAR), depth, torch.inf)


def distance(shape: Shape, points: Tensor, half: Tensor) -> Tensor:
    """Returns how far (N, 3) points in a primitive's frame are from its surface, (N) metres.

    Args:
        shape: A box, a cylinder or a sphere.
        points: (N, 3) metres.
        half: (3,) half extents, metres.

    Raises:
        ValueError: The shape's distance has no closed form.
    """
    if shape is Shape.SPHERE:
        return (points.norm(dim=-1) - half[0]).abs()
    if shape is Shape.BOX:
        beyond = points.abs() - half
    elif shape is Shape.CYLINDER:
        beyond = torch.stack((points[:, :2].norm(dim=-1) - half[0], points[:, 2].abs() - half[2]), dim=-1)
    else:
        raise ValueError(f"the distance from a {shape.name.lower()} has no closed form")
    return beyond.clamp_min(0).norm(dim=-1) - beyond.amax(-1).clamp_max(0)


def extent(half: Tensor, primitive_from_camera: Tensor) -> Tensor:
    """Finds in which directions primitives can be seen.

    Args:
        half: (..., 3) half extents, metres.
        primitive_from_camera: (..., 4, 4) poses ``T_primitive_camera``.

    Returns:
        (..., 4) least x and y, greatest x and y at unit depth of its bounding box; infinite, and the least above the
        greatest, when it is behind the camera.
    """
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=half.dtype)] * 3)
    corners = signs * half[..., None, :] - primitive_from_camera[..., None, :3, 3]
    corners = corners @ primitive_from_camera[..., :3, :3]  # the inverse rotation, on row vectors
    # What is in front of the camera of a box has for vertices the ends of the box's edges, cut where they go behind.
    ends = corners[..., _EDGES, :]
    behind = ends[..., 2] < NEAR
    step = ends[..., 1, 2] - ends[..., 0, 2]
    cut = (NEAR - ends[..., 0, 2]) / torch.where(step == 0, 1.0, step)
    cuts = torch.lerp(ends[..., 0, :], ends[..., 1, :], cut[..., None])
    ends = torch.where(behind[..., None], cuts[..., None, :], ends).flatten(-3, -2)
    gone = behind.all(-1, keepdim=True).expand(behind.shape).flatten(-2)[..., None]
    seen = ends[..., :2] / ends[..., 2:].clamp_min(NEAR)
    low, high = torch.where(gone, torch.inf, seen).amin(-2), torch.where(gone, -torch.inf, seen).amax(-2)
    return torch.cat((low, high), dim=-1)


def bounds(half: Tensor, primitive_from_camera: Tensor, camera: PinholeCamera) -> list[Box | None]:
    """Finds where primitives can be in the image.

    Args:
        half: (N, 3) half extents, metres.
        primitive_from_camera: (N, 4, 4) poses ``T_primitive_camera``.
        camera: The camera.

    Returns:
        For each the pixels (u0, v0, u1, v1), upper ends excluded, that its bounding box can touch; None when it is out
        of view.
    """
    seen = extent(half, primitive_from_camera).view(-1, 2, 2)
    pixels = seen * half.new_tensor((camera.fx, camera.fy)) + half.new_tensor((camera.cx, camera.cy))
    limit = half.new_tensor((camera.width, camera.height))
    low = pixels[:, 0].sub(1).floor().clamp_min(0).minimum(limit)
    high = pixels[:, 1].add(2).ceil().clamp_min(0).minimum(limit)
    boxes = torch.cat((low, high), dim=-1).long().tolist()
    return [(u0, v0, u1, v1) if u0 < u1 and v0 < v1 else None for u0, v0, u1, v1 in boxes]


def cast(
    shapes: list[Shape],
    half: Tensor,
    inward: list[bool],
    primitive_from_camera: Tensor,
    rays: Tensor,
    camera: PinholeCamera,
) -> tuple[Tensor, Tensor]:
    """Finds what rays through the image meet first.

    Args:
        shapes: N kinds of primitive.
        half: (N, 3) float64 half extents, metres.
        inward: N flags, whether seen from within.
        primitive_from_camera: (N, 4, 4) float64 ``T_primitive_camera``, on the CPU.
        rays: (2, H, W) float64 x and y at unit depth of the pixel grid of ``camera``, or (2, R) of any pixels in it.
        camera: The camera.

    Returns:
        Depth (H, W) or (R), float64 metres, infinite where nothing is met; and the int64 index of the primitive, -1
        there.
    """
    boxes = bounds(half, primitive_from_camera, camera)
    selections: Iterable[Any]
    order: Tensor | None = None
    if rays.ndim == 3:
        selections = (box and (slice(box[1], box[3]), slice(box[0], box[2])) for box in boxes)
    else:
        order = rays[1].argsort()
        rays = rays.index_select(1, order)
        selections = _among(camera.fx * rays[0] + camera.cx, camera.fy * rays[1] + camera.cy, boxes)
    depth = torch.full(rays.shape[1:], torch.inf, dtype=torch.float64, device=rays.device)
    index = torch.full(rays.shape[1:], -1, dtype=torch.int64, device=rays.device)
    transforms = primitive_from_camera.to(rays.device)
    sizes = half.to(rays.device)
    for k, where in enumerate(selections):
        if where is None:
            continue
        x, y = rays[0][where], rays[1][where]
        lift = (3,) + (1,) * x.ndim
        columns = transforms[k, :3].unbind(1)
        direction = columns[0].view(lift) * x + columns[1].view(lift) * y + columns[2].view(lift)
        found = intersect(shapes[k], columns[3].view(lift), direction, sizes[k].view(lift), inward=inward[k])
        before = depth[where]
        nearer = found < before
        depth[where] = torch.where(nearer, found, before)
        index[where] = torch.where(nearer, k, index[where])
    if order is not None:
        depth = torch.empty_like(depth).index_copy_(0, order, depth)
        index = torch.empty_like(index).index_copy_(0, order, index)
    return depth, index


def _among(u: Tensor, v: Tensor, boxes: list[Box | None]) -> Iterator[Tensor | None]:
    """Yields for each box the indices of the (R) pixels in it, which are sorted by v; None where there is none."""
    rows = [(box[1] - 1.0, box[3] + 0.0) if box else (0.0, 0.0) for box in boxes]
    limits = torch.searchsorted(v, torch.tensor(rows, dtype=v.dtype, device=v.device)).tolist()
    for box, (first, last) in zip(boxes, limits, strict=True):
        if box is None or first == last:
            yield None
            continue
        row = u[first:last]
        yield ((row >= box[0] - 1) & (row <= box[2])).nonzero()[:, 0] + first
