"""A world made of primitives, and what a camera in it sees: images, and the truth behind them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from flowodom.errors import ShapeError
from flowodom.geometry import PinholeCamera, se3
from flowodom.threads import one_thread
from flowodom.worlds.casting import Shape, cast, distance
from flowodom.worlds.motion import Motion
from flowodom.worlds.shading import FACES, SPREAD, Shader, edges, geometry_table
from flowodom.worlds.textures import Atlas

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
        gloss: Strength of highlights, 0 for none.
    """

    tile: int
    period: float
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    detail: float = 0.5
    glow: float = 0.0
    gloss: float = 0.0


@dataclass(frozen=True)
class Primitive:
    """A simple solid that belongs to a body.

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
        """The (10, N * FACES) float32 looks of each face, see ``Shader``."""
        rows = []
        for k, primitive in enumerate(self.primitives):
            for face in range(FACES):
                m = primitive.materials[face % len(primitive.materials)]
                # Irrational steps keep neighbouring faces from showing the same part of a tile.
                shift = k * FACES + face
                offset = ((shift * 0.6180339887) % 1.0, (shift * 0.7548776662) % 1.0)
                rows.append((float(m.tile), 1 / m.period, *offset, *m.tint, m.detail, m.glow, m.gloss))
        return torch.tensor(rows, dtype=torch.float32, device=self.device).t().contiguous()

    def bodies(self, time: float) -> Tensor:
        """Returns the (M, 4, 4) float64 poses ``T_world_body`` at ``time``; the first is the static world's."""
        return torch.stack([se3.identity(), *(motion(time) for motion in self.motions)])

    def distance(self, points: Tensor, body: int = 0) -> Tensor:
        """Returns how far points are from the nearest surface of a body, (N) float64 metres, on the CPU.

        Args:
            points: (N, 3) float64 metres, frame of the body; that of body 0 is the world.
            body: Index of the body.

        Raises:
            ValueError: The body is made of shapes whose distance has no closed form (blobs, terrain), or of none.
        """
        parts = [p for p in self.primitives if p.body == body]
        if not parts:
            raise ValueError(f"{self.name} has no body {body}")
        half = torch.tensor([p.half for p in parts], dtype=torch.float64)
        return torch.stack(
            [distance(p.shape, se3.act(se3.inverse(p.pose), points), half[k]) for k, p in enumerate(parts)]
        ).amin(0)

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
        shader = Shader(self._geometry(transforms, pose), self._looks, self.atlas, self.detail)
        pixel = 1 / camera.focal
        colour, normal, surface = shader.shade(rays.flatten(1), depth.flatten(), primitive.flatten(), pixel)
        where = edges(surface.view(size)).flatten().nonzero()[:, 0]
        if len(where):
            scale = torch.tensor([1 / camera.fx, 1 / camera.fy], dtype=torch.float64, device=self.device)
            spread = (SPREAD.to(self.device) * scale).t()
            finer = (rays.flatten(1)[:, where, None] + spread[:, None, :]).flatten(1)
            finer_depth, finer_primitive = self._cast(finer, transforms, camera)
            samples, _, _ = shader.shade(finer, finer_depth, finer_primitive, 0.5 * pixel, alone=False)
            colour[:, where] = samples.view(3, -1, len(SPREAD)).mean(-1)
        image = (colour * 255).round().clamp(0, 255).to(torch.uint8)
        return image.view(3, *size).permute(1, 2, 0).contiguous(), normal.view(3, *size).permute(1, 2, 0).contiguous()

    def _geometry(self, transforms: Tensor, pose: Tensor) -> Tensor:
        """Returns the table of what shading needs to know of each primitive."""
        count, double = len(self.primitives), torch.float64
        places = torch.tensor([light.position for light in self.lights], dtype=double).view(-1, 3)
        strengths = torch.tensor([light.strength for light in self.lights], dtype=double)
        lights = torch.cat((se3.act(se3.inverse(pose), places), strengths[:, None]), -1)
        kind = torch.tensor([float(p.shape) for p in self.primitives], dtype=double)
        side = torch.tensor([-1.0 if p.inward else 1.0 for p in self.primitives], dtype=double)
        ambient = torch.full((count,), self.ambient, dtype=double)
        table = geometry_table(transforms, self._half, kind, side, ambient, lights.expand(count, -1, 4))
        return table.to(self.device)
