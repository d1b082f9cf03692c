"""A world made of primitives, and what a camera in it sees: images, and the truth behind them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from flowodom.errors import ShapeError
from flowodom.geometry import PinholeCamera, se3
from flowodom.worlds.casting import Shape, cast
from flowodom.worlds.motion import Motion
from flowodom.worlds.textures import Atlas
from flowodom.worlds.threads import one_thread

FACES = 6
"""Faces a primitive: two for each axis, low then high; a cylinder's side is face 0, a sphere's six are a cube's."""

_SPREAD = torch.tensor([[-0.375, -0.125], [0.125, -0.375], [0.375, 0.125], [-0.125, 0.375]], dtype=torch.float64)
"""Where edge pixels are sampled, pixels: a rotated grid."""

_PROBES = ((1, 0.55), (2, 0.3), (4, -1.0))
"""How many times a sample's footprint is probed along its length, down to which cosine between view and normal."""

_ONE_PROBE = ((1, -1.0),)
"""Where a pixel is sampled in several places anyway, each of them needs no more."""

_SPOT = 0.75
"""Size of the texels that are looked up, relative to a pixel: smaller would alias, larger would blur."""

_STRETCH = 1.6
"""A probe may blur a texture by so much more than the pixel's width to cover the whole length."""

_LARGE = 1280 * 720
"""From so many pixels on, work on the processor is split over threads."""

_MARGIN = 1e-5
"""A point is hidden when something is nearer by more than this share of its depth."""


@dataclass(frozen=True)
class Material:
    """How a surface looks.

    Attributes:
        tile: Index of the texture in the atlas.
        period: Size of one tile on the surface, metres.
        tint: Factor on red, green and blue.
        detail: Strength of the fine detail laid over the texture, 0 for none.
        glow: 0 for a surface that needs light, 1 for one that shines by itself (a sky).
    """

    tile: int
    period: float
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    detail: float = 0.5
    glow: float = 0.0


@dataclass(frozen=True)
class Primitive:
    """A box, cylinder or sphere that belongs to a body.

    Attributes:
        shape: Its kind.
        half: Half extents, metres (see ``Shape``).
        pose: (4, 4) float64 ``T_body_primitive``.
        materials: One material for all faces, or six in the order of ``FACES``.
        body: Index of the body; 0 is the static world.
        inward: Seen from within, as a room's shell is.
    """

    shape: Shape
    half: tuple[float, float, float]
    pose: Tensor
    materials: tuple[Material, ...]
    body: int = 0
    inward: bool = False


@dataclass(frozen=True)
class Light:
    """A point light without falloff.

    Attributes:
        position: Metres, world frame.
        strength: Brightness that a surface facing it gains.
    """

    position: tuple[float, float, float]
    strength: float


@dataclass(frozen=True)
class Rendering:
    """What a camera sees, and the truth about it. Tensors are on the world's device.

    Attributes:
        camera: The camera.
        pose: (4, 4) float64 ``T_world_camera``, optical, on the CPU.
        time: Seconds.
        bodies: (M, 4, 4) float64 ``T_world_body`` of every body at ``time``, on the CPU; the first is the identity.
        depth: (H, W) float64 metres along the optical axis at the pixel centre, infinite where nothing is met.
        primitive: (H, W) int64 index of the primitive at the pixel centre, -1 where there is none.
        object_id: (H, W) int64 index of the body, 0 for all that is static.
        image: (H, W, 3) uint8 RGB; None when only geometry was asked for.
        normal: (H, W, 3) float32 unit normals towards the camera, optical frame; None without an image.
    """

    camera: PinholeCamera
    pose: Tensor
    time: float
    bodies: Tensor
    depth: Tensor
    primitive: Tensor
    object_id: Tensor
    image: Tensor | None = None
    normal: Tensor | None = None

    @property
    def points(self) -> Tensor:
        """The (H, W, 3) float64 points seen, metres, optical frame."""
        pixels = self.camera.pixels(device=self.depth.device, dtype=torch.float64)
        return self.camera.unproject(pixels, self.depth)


@dataclass(frozen=True)
class FlowTruth:
    """Exact motion between two renderings.

    Attributes:
        forward: (H, W, 2) float64 pixels, from the previous image to the current one; NaN where the point ends up
            behind the camera or there is no point.
        backward: (H, W, 2) float64 pixels, from the current image to the previous one.
        forward_hidden: (H, W) bool on the previous image: the point is out of view or occluded in the current one.
        backward_hidden: (H, W) bool on the current image: the point is out of view or occluded in the previous one.
        scene_flow: (H, W, 3) float64 metres: previous point (previous camera) plus this is the point now (current
            camera).
        motions: (M, 4, 4) float64 for each body: maps points of the previous camera's frame that are fixed to it to the
            current camera's frame. The first is the camera's own ``T_current_previous``. On the CPU.
    """

    forward: Tensor
    backward: Tensor
    forward_hidden: Tensor
    backward_hidden: Tensor
    scene_flow: Tensor
    motions: Tensor


def _flow(seen: Rendering, other: Rendering) -> tuple[Tensor, Tensor, Tensor]:
    """Returns where the points of ``seen`` are in ``other``'s camera, their flow, and the bodies' motions."""
    camera_from_body = se3.inverse(other.pose) @ other.bodies
    motions = camera_from_body @ se3.inverse(se3.inverse(seen.pose) @ seen.bodies)
    points = seen.points
    moved = se3.act(motions[0].to(points.device), points)
    for k in range(1, len(motions)):
        mask = seen.object_id == k
        moved[mask] = se3.act(motions[k].to(points.device), points[mask])
    pixels = other.camera.project(moved)
    flow = pixels - seen.camera.pixels(device=points.device, dtype=torch.float64)
    flow = torch.where((moved[..., 2:] > 0) & torch.isfinite(moved[..., 2:]), flow, torch.nan)
    return moved, flow, motions


@dataclass(frozen=True)
class World:
    """A scene, static but for its moving bodies.

    Attributes:
        name: What to call it.
        primitives: Everything in it.
        motions: Motion of bodies 1, 2, ...: ``T_world_body`` over time.
        atlas: The textures.
        detail: One tile of one channel, laid over the others as fine detail; its mean is one half.
        lights: Lights.
        ambient: Brightness that every surface has without a light.
    """

    name: str
    primitives: tuple[Primitive, ...]
    motions: tuple[Motion, ...]
    atlas: Atlas
    detail: Atlas
    lights: tuple[Light, ...] = ()
    ambient: float = 0.5

    @property
    def device(self) -> torch.device:
        """Where it renders."""
        return self.atlas.image.device

    @cached_property
    def _half(self) -> Tensor:
        return torch.tensor([p.half for p in self.primitives], dtype=torch.float64)

    @cached_property
    def _body(self) -> Tensor:
        return torch.tensor([p.body for p in self.primitives])

    @cached_property
    def _local(self) -> Tensor:
        return torch.stack([p.pose for p in self.primitives])

    @cached_property
    def _looks(self) -> Tensor:
        """A (9, N * FACES) float32 table: tile, 1 / period, two offsets, tint, detail, glow of each face."""
        rows = []
        for k, primitive in enumerate(self.primitives):
            for face in range(FACES):
                m = primitive.materials[face % len(primitive.materials)]
                # Irrational steps keep neighbouring faces from showing the same part of a tile.
                shift = k * FACES + face
                offset = ((shift * 0.6180339887) % 1.0, (shift * 0.7548776662) % 1.0)
                rows.append((float(m.tile), 1 / m.period, *offset, *m.tint, m.detail, m.glow))
        return torch.tensor(rows, dtype=torch.float32, device=self.device).t().contiguous()

    def bodies(self, time: float) -> Tensor:
        """Returns the (M, 4, 4) float64 poses ``T_world_body`` at ``time``; the first is the static world's."""
        return torch.stack([se3.identity(), *(motion(time) for motion in self.motions)])

    def _primitive_from_camera(self, pose: Tensor, bodies: Tensor) -> Tensor:
        return se3.inverse(bodies[self._body] @ self._local) @ pose

    def _cast(self, rays: Tensor, primitive_from_camera: Tensor, camera: PinholeCamera) -> tuple[Tensor, Tensor]:
        shapes = [p.shape for p in self.primitives]
        inward = [p.inward for p in self.primitives]
        return cast(shapes, self._half, inward, primitive_from_camera, rays, camera)

    def render(self, pose: Tensor, time: float, camera: PinholeCamera, *, colour: bool = True) -> Rendering:
        """Renders one image.

        Args:
            pose: (4, 4) float64 ``T_world_camera``, optical.
            time: Seconds; says where the moving bodies are.
            camera: The camera.
            colour: Whether to make the image and the normals; without them it is geometry only, and faster.

        Raises:
            ShapeError: The pose is not a (4, 4) matrix.
        """
        if pose.shape != (4, 4):
            raise ShapeError(f"pose must be (4, 4), T_world_camera, got {tuple(pose.shape)}")
        with one_thread(self._small(camera)):
            return self._render(pose.to("cpu", torch.float64), time, camera, colour)

    def _render(self, pose: Tensor, time: float, camera: PinholeCamera, colour: bool) -> Rendering:
        bodies = self.bodies(time)
        transforms = self._primitive_from_camera(pose, bodies)
        pixels = camera.pixels(device=self.device, dtype=torch.float64)
        rays = camera.rays(pixels)[..., :2].movedim(-1, 0).contiguous()
        depth, primitive = self._cast(rays, transforms, camera)
        object_id = torch.where(primitive < 0, 0, self._body.to(self.device)[primitive])
        image, normal = None, None
        if colour:
            image, normal = self._picture(rays, depth, primitive, transforms, pose, camera)
        return Rendering(camera, pose, time, bodies, depth, primitive, object_id, image, normal)

    def flow_between(self, previous: Rendering, current: Rendering) -> FlowTruth:
        """Returns the exact flow, both ways, and what is hidden, between two renderings of this world."""
        with one_thread(self._small(previous.camera)):
            moved, forward, motions = _flow(previous, current)
            moved_back, backward, _ = _flow(current, previous)
            return FlowTruth(
                forward=forward,
                backward=backward,
                forward_hidden=self._hidden(moved, current),
                backward_hidden=self._hidden(moved_back, previous),
                scene_flow=moved - previous.points,
                motions=motions,
            )

    def _small(self, camera: PinholeCamera) -> bool:
        """Whether splitting the work over processor threads does not pay."""
        return self.device.type == "cpu" and camera.width * camera.height < _LARGE

    def _hidden(self, points: Tensor, view: Rendering) -> Tensor:
        """Returns (H, W) bool: whether (H, W, 3) points in the camera of ``view`` are out of it or behind something."""
        inside = view.camera.visible(points)
        hidden = ~inside
        wanted = points[inside]
        rays = (wanted[:, :2] / wanted[:, 2:]).t().contiguous()
        depth, _ = self._cast(rays, self._primitive_from_camera(view.pose, view.bodies), view.camera)
        hidden[inside] = depth < wanted[:, 2] * (1 - _MARGIN)
        return hidden

    def _picture(
        self, rays: Tensor, depth: Tensor, primitive: Tensor, transforms: Tensor, pose: Tensor, camera: PinholeCamera
    ) -> tuple[Tensor, Tensor]:
        """Shades the pixel grid; pixels on edges are shaded in several places and averaged."""
        size = depth.shape
        colour, normal, surface = self._shade(
            rays.flatten(1), depth.flatten(), primitive.flatten(), transforms, pose, camera
        )
        surface = surface.view(size)
        edge = torch.zeros(size, dtype=torch.bool, device=self.device)
        across, down = surface[:, 1:] != surface[:, :-1], surface[1:] != surface[:-1]
        edge[:, 1:] |= across
        edge[:, :-1] |= across
        edge[1:] |= down
        edge[:-1] |= down
        where = edge.flatten().nonzero()[:, 0]
        if len(where):
            scale = torch.tensor([1 / camera.fx, 1 / camera.fy], dtype=torch.float64, device=self.device)
            spread = (_SPREAD.to(self.device) * scale).t()
            finer = (rays.flatten(1)[:, where, None] + spread[:, None, :]).flatten(1)
            finer_depth, finer_primitive = self._cast(finer, transforms, camera)
            samples, _, _ = self._shade(finer, finer_depth, finer_primitive, transforms, pose, camera, spacing=0.5)
            colour[:, where] = samples.view(3, -1, len(_SPREAD)).mean(-1)
        image = (colour * 255).round().clamp(0, 255).to(torch.uint8)
        return image.view(3, *size).permute(1, 2, 0).contiguous(), normal.view(3, *size).permute(1, 2, 0).contiguous()

    def _shade(
        self,
        rays: Tensor,
        depth: Tensor,
        primitive: Tensor,
        transforms: Tensor,
        pose: Tensor,
        camera: PinholeCamera,
        *,
        spacing: float = 1.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (3, R) colours and normals, and (R) surfaces of samples ``spacing`` pixels apart."""
        missed = primitive < 0
        primitive = primitive.clamp_min(0)
        distance = torch.where(missed, 1.0, depth).float()
        x, y = rays.float()
        geometry = self._geometry_table(transforms, pose).index_select(1, primitive)
        rotation, origin, half = geometry[:9].view(3, 3, -1), geometry[9:12], geometry[12:15]
        kind, side = geometry[15], geometry[16]
        lights = geometry[17:].view(len(self.lights), 3, len(distance))

        # Where and from where, in the primitive's frame.
        slope = rotation[:, 0] * x + rotation[:, 1] * y + rotation[:, 2]
        point = origin + slope * distance
        length = (x * x + y * y + 1).sqrt()
        view = slope / length
        normal, face, u, v, along_u, along_v = _surface(point, view, half, kind, side)
        surface = primitive * FACES + face
        looks = self._looks.index_select(1, surface)
        tile, scale, shift_u, shift_v, tint, detail, glow = (*looks[:4], looks[4:7], looks[7], looks[8])

        # A sample covers an ellipse on the surface: this wide, and longer along the view direction.
        slant = -(normal * view).sum(0)
        width = distance * length * (_SPOT * spacing / camera.focal)
        colour = torch.empty_like(point)
        shorter = torch.inf
        for probes, flattest in _PROBES if spacing == 1 else _ONE_PROBE:
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

        shade = torch.full_like(distance, self.ambient)
        for light, position in zip(self.lights, lights, strict=True):
            to_light = position - point
            facing = (normal * to_light).sum(0) / (to_light * to_light).sum(0).sqrt().clamp_min(1e-6)
            shade = shade + light.strength * facing.clamp_min(0)
        shade = torch.lerp(shade * _corner(point, half, side), torch.ones_like(shade), glow)
        colour = colour * tint * shade
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

    def _geometry_table(self, transforms: Tensor, pose: Tensor) -> Tensor:
        """Returns a (17 + 3 L, N) float32 table of what shading needs to know of each primitive."""
        count = len(self.primitives)
        lights = torch.tensor([light.position for light in self.lights], dtype=torch.float64).view(-1, 3)
        lights_camera = se3.act(se3.inverse(pose), lights)
        lights_local = se3.act(transforms[:, None], lights_camera[None])
        side = torch.tensor([-1.0 if p.inward else 1.0 for p in self.primitives], dtype=torch.float64)
        kind = torch.tensor([float(p.shape) for p in self.primitives], dtype=torch.float64)
        rows = (
            transforms[:, :3, :3].reshape(count, 9),
            transforms[:, :3, 3],
            self._half,
            kind[:, None],
            side[:, None],
            lights_local.reshape(count, -1),
        )
        return torch.cat(rows, dim=1).t().float().contiguous().to(self.device)


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

    round_ = (kind != float(Shape.BOX)).nonzero()[:, 0]
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
