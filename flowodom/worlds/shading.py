"""How surfaces look from where they are seen: texture over the pixel's footprint, lights, corners, highlights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowodom.geometry import se3
from flowodom.worlds.casting import Shape
from flowodom.worlds.relief import slope
from flowodom.worlds.textures import Atlas

FACES = 6
"""Faces a primitive: two for each axis, low then high; a cylinder's side is face 0, a sphere's six are a cube's."""

SPREAD = torch.tensor([[-0.375, -0.125], [0.125, -0.375], [0.375, 0.125], [-0.125, 0.375]], dtype=torch.float64)
"""Where edge pixels are sampled, pixels: a rotated grid."""

_PROBES = ((1, 0.55), (2, 0.3), (4, -1.0))
"""How many times a sample's footprint is probed along its length, down to which cosine between view and normal."""

_ONE_PROBE = ((1, -1.0),)
"""Where a pixel is sampled in several places anyway, each of them needs no more."""

_SPOT = 0.75
"""Size of the texels that are looked up, relative to a pixel: smaller would alias, larger would blur."""

_STRETCH = 1.6
"""A probe may blur a texture by so much more than the pixel's width to cover the whole length."""

_SHINE = 24
"""Exponent of highlights (Phong 1975)."""


def edges(surface: Tensor) -> Tensor:
    """Returns (..., H, W) bool: pixels whose neighbour across or down is on another of the (..., H, W) surfaces."""
    edge = torch.zeros_like(surface, dtype=torch.bool)
    across, down = surface[..., 1:] != surface[..., :-1], surface[..., 1:, :] != surface[..., :-1, :]
    edge[..., 1:] |= across
    edge[..., :-1] |= across
    edge[..., 1:, :] |= down
    edge[..., :-1, :] |= down
    return edge


def geometry_table(
    primitive_from_camera: Tensor, half: Tensor, kind: Tensor, side: Tensor, ambient: Tensor, lights: Tensor
) -> Tensor:
    """Lays out what shading needs to know of N primitives and their L lights.

    Args:
        primitive_from_camera: (N, 4, 4) ``T_primitive_camera``.
        half: (N, 3) half extents, metres.
        kind: (N) ``Shape`` as a number.
        side: (N) 1, or -1 where seen from within.
        ambient: (N) brightness without a light.
        lights: (N, L, 4) place in the camera's frame, metres, and strength.

    Returns:
        (18 + 4 L, N) float32.
    """
    local = se3.act(primitive_from_camera[:, None], lights[..., :3])
    rows = (
        primitive_from_camera[:, :3, :3].flatten(1),
        primitive_from_camera[:, :3, 3],
        half,
        torch.stack((kind, side, ambient), -1),
        torch.cat((local, lights[..., 3:]), -1).flatten(1),
    )
    return torch.cat(rows, dim=1).t().float().contiguous()


@dataclass(frozen=True)
class Shader:
    """Colours samples of surfaces.

    Attributes:
        geometry: (18 + 4 L, N) float32, see ``geometry_table``.
        looks: (10, N * FACES) float32: tile, 1 / period, two offsets, three tints, detail, glow and gloss of each face.
        atlas: The textures.
        detail: One tile of one channel, laid over the others as fine detail; its mean is one half.
    """

    geometry: Tensor
    looks: Tensor
    atlas: Atlas
    detail: Atlas

    def shade(
        self,
        rays: Tensor,
        depth: Tensor,
        primitive: Tensor,
        pixel: Tensor | float,
        *,
        lit: Tensor | None = None,
        alone: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Colours R samples.

        Args:
            rays: (2, R) x and y at unit depth.
            depth: (R) metres, of any value where nothing is met.
            primitive: (R) int64 index, -1 where nothing is met.
            pixel: (R) or one width of a sample at unit depth.
            lit: (L, R) share of each light that reaches the sample; all of it for None.
            alone: Whether the sample stands for a whole pixel and so is worth several probes where it is long.

        Returns:
            (3, R) colours, around [0, 1]; (3, R) unit normals towards the camera, optical frame; both zero where
            nothing is met; and (R) int64 surfaces (primitive and face), -1 there.
        """
        missed = primitive < 0
        primitive = primitive.clamp_min(0)
        distance = torch.where(missed, 1.0, depth).float()
        x, y = rays.float()
        geometry = self.geometry.index_select(1, primitive)
        rotation, origin, half = geometry[:9].view(3, 3, -1), geometry[9:12], geometry[12:15]
        kind, side, ambient = geometry[15:18]
        lights = geometry[18:].view(-1, 4, len(distance))

        # Where and from where, in the primitive's frame.
        direction = rotation[:, 0] * x + rotation[:, 1] * y + rotation[:, 2]
        point = origin + direction * distance
        length = (x * x + y * y + 1).sqrt()
        view = direction / length
        normal, face, u, v, along_u, along_v = _surface(point, view, half, kind, side)
        surface = primitive * FACES + face
        looks = self.looks.index_select(1, surface)
        tile, scale, shift_u, shift_v = looks[:4]
        tint, detail, glow, gloss = looks[4:7], looks[7], looks[8], looks[9]

        # A sample covers an ellipse on the surface: this wide, and longer along the view direction.
        slant = -(normal * view).sum(0)
        width = distance * length * pixel * _SPOT
        colour = torch.empty_like(point)
        shorter = torch.inf
        for probes, flattest in _PROBES if alone else _ONE_PROBE:
            here = ((slant > flattest) & (slant <= shorter)).nonzero()[:, 0]
            shorter = flattest
            if not len(here):
                continue
            at = torch.stack((u, v, along_u, along_v, width, slant.clamp(0.02, 1), tile, scale, shift_u, shift_v))
            x, y, step_u, step_v, w, c, *look = at.index_select(1, here)
            blur = torch.maximum(w, torch.minimum(w / (c * probes), _STRETCH * w))
            stride = w / (_SPOT * c * (1 - c * c).sqrt().clamp_min(1e-3))
            total = torch.zeros_like(point[:, : len(here)])
            for probe in range(probes):
                offset = ((probe + 0.5) / probes - 0.5) * stride
                total += self._texture(x + offset * step_u, y + offset * step_v, blur, look, detail[here])
            colour[:, here] = total / probes

        shade, highlight = ambient, torch.zeros_like(ambient)
        mirrored = view + 2 * slant * normal
        for k, light in enumerate(lights):
            to_light = light[:3] - point
            to_light = to_light / (to_light * to_light).sum(0).sqrt().clamp_min(1e-6)
            strength = light[3] if lit is None else light[3] * lit[k]
            shade = shade + strength * (normal * to_light).sum(0).clamp_min(0)
            highlight = highlight + strength * (mirrored * to_light).sum(0).clamp_min(0) ** _SHINE
        shade = torch.lerp(shade * _corner(point, half, side), torch.ones_like(shade), glow)
        colour = colour * tint * shade + gloss * highlight
        to_camera = (rotation * normal[:, None]).sum(0)
        return (
            torch.where(missed, 0.0, colour),
            torch.where(missed, 0.0, to_camera),
            torch.where(missed, -1, surface),
        )

    def _texture(self, u: Tensor, v: Tensor, blur: Tensor, look: list[Tensor], detail: Tensor) -> Tensor:
        """Returns (3, R) colours at (R) surface coordinates, metres, over a spot that is ``blur`` metres wide."""
        tile, scale, shift_u, shift_v = look
        base = self.atlas.sample(tile, u * scale + shift_u, v * scale + shift_v, blur * scale)
        near = self.detail.sample(0, u * _DETAIL + shift_v, v * _DETAIL, blur * _DETAIL)
        return base * (1 + 2 * detail * (near - 0.5))


_DETAIL = 1 / 0.45
"""Tiles of fine detail a metre."""


def _corner(point: Tensor, half: Tensor, side: Tensor) -> Tensor:
    """Returns (R) how much darker it is in the corners of a room (surfaces seen from within); 1 elsewhere."""
    gap = (half - point.abs()).clamp_min(0)
    # On a face the gap along its normal is zero: its constant factor is taken out again.
    dark = (1 - 0.4 * torch.exp(gap * -3.0)).prod(0) / 0.6
    return torch.where(side < 0, dark, 1.0)


def _surface(
    point: Tensor, view: Tensor, half: Tensor, kind: Tensor, side: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Finds the face, the normal and the texture coordinates of points on primitives.

    Args:
        point: (3, R) points, primitive's frame, metres.
        view: (3, R) unit directions in which they are seen, primitive's frame.
        half: (3, R) half extents.
        kind: (R) ``Shape`` as a float.
        side: (R) 1, or -1 where seen from within.

    Returns:
        (3, R) unit normals towards the viewer, (R) int64 faces, (R) u and v in metres, and (R) the components of the
        view direction along u and v.
    """
    reach = point.abs() / half
    first = (reach[0] >= reach[1]) & (reach[0] >= reach[2])
    third = ~first & (reach[2] > reach[1])
    second = ~first & ~third
    axes = torch.stack((first, second, third))
    normal = torch.where(axes, torch.sign(point), 0.0) * side
    high = ((point > 0) & axes).any(0)
    face = second.long() * 2 + third.long() * 4 + high.long()
    u, v = torch.where(first, point[1], point[0]), torch.where(third, point[1], point[2])
    along_u, along_v = torch.where(first, view[1], view[0]), torch.where(third, view[1], view[2])

    blob = (kind == float(Shape.BLOB)).nonzero()[:, 0]
    if len(blob):
        out = (point[:, blob] / half[:, blob]) ** 3 / half[:, blob]
        normal[:, blob] = out / out.square().sum(0).sqrt().clamp_min(1e-12)
    ground = (kind == float(Shape.TERRAIN)).nonzero()[:, 0]
    if len(ground):
        by_x, by_y = slope(point[:2, ground], half[:, ground])
        up = torch.stack((-by_x, -by_y, torch.ones_like(by_x)))
        up = up / up.square().sum(0).sqrt()
        normal[:, ground] = torch.where((up * view[:, ground]).sum(0) < 0, up, -up)
        face[ground] = 5
        u[ground], v[ground] = point[0, ground], point[1, ground]
        along_u[ground], along_v[ground] = view[0, ground], view[1, ground]

    round_ = ((kind == float(Shape.CYLINDER)) | (kind == float(Shape.SPHERE))).nonzero()[:, 0]
    if len(round_):
        p, d, h, ball = point[:, round_], view[:, round_], half[:, round_], kind[round_] == float(Shape.SPHERE)
        out = p / h
        radial = torch.hypot(out[0], out[1])
        lid = ~ball & (out[2].abs() > radial)
        wall = ~ball & ~lid
        zero = torch.zeros_like(out[2])
        curved = torch.stack((out[0], out[1], torch.where(ball, out[2], zero)))
        curved = curved / curved.square().sum(0).sqrt().clamp_min(1e-9)
        flat = torch.stack((zero, zero, torch.sign(p[2])))
        n = torch.where(lid, flat, curved) * side[round_]
        # A sphere's faces are those of a cube around it, in equal angles; its box coordinates are turned into angles.
        main = torch.where(first[round_], p[0], torch.where(third[round_], p[2], p[1])).abs()
        angle_u = h[0] * torch.atan2(u[round_], main)
        angle_v = h[0] * torch.atan2(v[round_], main)
        turn = h[0] * torch.atan2(p[1], p[0])
        tangent = (out[0] * d[1] - out[1] * d[0]) / radial.clamp_min(1e-9)
        u[round_] = torch.where(ball, angle_u, torch.where(wall, turn, p[0]))
        v[round_] = torch.where(ball, angle_v, torch.where(wall, p[2], p[1]))
        along_u[round_] = torch.where(ball, along_u[round_], torch.where(wall, tangent, d[0]))
        along_v[round_] = torch.where(ball, along_v[round_], torch.where(wall, d[2], d[1]))
        faces = torch.where(ball, face[round_], torch.where(wall, 0, 4 + (p[2] > 0).long()))
        normal[:, round_] = n
        face[round_] = faces
    return normal, face, u, v, along_u, along_v
