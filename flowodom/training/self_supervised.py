"""What a field can learn from video alone: no poses, no depth, no labels.

The depths that the field renders for two frames lift their optical flow to scene flow; a weighted fit of that gives the
camera's motion, differentiably; and what the field of one frame shows from where the other was taken must be what the
other shows. The losses of FlowCam are there (re-rendered colours, flow induced by the pose, colours of the context
frame), and beside them the agreement of both frames' depths, of both directions of time, of depth with
triangulation, and the prior that what is seen stands still.

All but the colours are relative, so that the unit of length is nowhere observed; it is held where it was at the start.

Source: FlowCam (Smith et al., 2023), sections 3.2 and 3.3; Flux4D for the prior "as static as possible".
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowodom.depth.field import FieldNetwork, rays, sample
from flowodom.geometry import se3
from flowodom.registration.procrustes import procrustes
from flowodom.training.samples import Samples

WEIGHTS = {
    "colour": 1.0, "flow": 0.3, "context": 0.2, "depth": 0.3, "triangulation": 0.2, "cycle": 0.3, "static": 0.3,
    "unit": 1.0,
}  # fmt: skip
"""How much each loss counts."""

NOISE = 0.005
"""Deviation of flow, in focal lengths, at which a pixel's voice is halved; also the width of the robust kernels."""

STEPS = 3
"""Gauss-Newton steps of the pose after the closed form."""


@dataclass(frozen=True)
class VideoPairs(Samples):
    """B pairs of video frames and the flow between them.

    Attributes:
        images: (B, 2, 3, H, W) RGB, 0 to 1.
        flow: (B, 2, H, W, 2) from the first to the second and back, in shares of width and height.
        deviation: (B, 2, H, W) of the flow, in focal lengths.
        intrinsics: (B, 4) fx, fy, cx, cy in shares of width and height.
        unit: (B,) mean logarithm of the first frame's inverse depth before learning began.
    """

    images: Tensor
    flow: Tensor
    deviation: Tensor
    intrinsics: Tensor
    unit: Tensor

    def mirrored(self) -> VideoPairs:
        """See ``Samples``."""
        intrinsics = self.intrinsics * self.intrinsics.new_tensor((1, 1, -1, 1))
        return replace(
            self,
            images=self.images.flip(-1),
            flow=self.flow.flip(-2) * self.flow.new_tensor((-1, 1)),
            deviation=self.deviation.flip(-1),
            intrinsics=intrinsics + intrinsics.new_tensor((0, 0, 1, 0)),
        )


def losses(
    network: FieldNetwork, pairs: VideoPairs, *, generator: torch.Generator | None = None, count: int = 384
) -> dict[str, Tensor]:
    """Returns every loss of a batch, by the names in ``WEIGHTS``.

    Args:
        network: The field that learns.
        pairs: The batch.
        generator: Source of the random pixels, on the pairs' device.
        count: Pixels drawn for each pair.
    """
    batch = len(pairs)
    first, second = (network.encode(pairs.images[:, k], pairs.intrinsics) for k in (0, 1))

    def draw(*shape: int) -> Tensor:
        return torch.rand(batch, count, *shape, generator=generator, device=pairs.images.device)

    # Lift the flow at random places to scene flow: P and P + F.
    place = draw(2)
    there = place + sample(pairs.flow[:, 0].movedim(-1, 1), place)
    rho, variance = network.depth(first, place, offset=draw(network.config.cells))
    seen_rho, _ = network.depth(second, there, offset=draw(network.config.cells))
    ray, seen_ray = rays(place, pairs.intrinsics[:, None]), rays(there, pairs.intrinsics[:, None])
    points, targets = ray / rho[..., None], seen_ray / seen_rho[..., None]
    inside = ((there > 0) & (there < 1)).all(-1)
    deviation = sample(pairs.deviation[:, :1], place)[..., 0]
    voice = inside / (1 + (deviation / NOISE).square())

    motion = fit_motion(points, targets, seen_ray[..., :2], voice)
    back = fit_motion(targets, points, ray[..., :2], voice)
    moved = se3.act(motion[:, None], points)
    z = moved[..., 2].clamp_min(0.1 * network.config.near)
    miss = moved[..., :2] / z[..., None] - seen_ray[..., :2]
    depth_miss = (z * seen_rho).log()
    found, found_variance = _triangulate(motion.detach(), ray, seen_ray[..., :2], deviation)
    spread = (variance + found_variance).sqrt() / rho.detach()

    # What the other frame shows, rendered from the first one's field.
    other = draw(2)
    colour, share = network.colour(
        first, other, pairs.intrinsics, se3.inverse(motion), offset=draw(network.config.cells)
    )
    own, _ = network.colour(
        first, place, pairs.intrinsics, torch.eye(4, device=place.device).expand(batch, 4, 4), offset=0.5
    )
    trusted = share.detach() / (1 + (sample(pairs.deviation[:, 1:], other)[..., 0] / NOISE).square())
    loop = se3.log((motion @ back).double())
    loop = torch.cat((loop[:, :3] * rho.detach().mean(1, keepdim=True), loop[:, 3:]), dim=-1)
    return {
        "colour": _mean((colour - sample(pairs.images[:, 1], other)).abs().mean(-1), trusted),
        "flow": _mean(torch.log1p((miss / NOISE).square().sum(-1)), voice),
        "context": (own - sample(pairs.images[:, 0], place)).abs().mean(),
        "depth": _mean(depth_miss.abs(), voice),
        "triangulation": _mean(((rho - found) / rho.detach()).abs() / spread + spread.log(), voice),
        "cycle": loop.norm(dim=-1).mean().float(),
        "static": _mean((targets - moved).norm(dim=-1) * rho.detach(), voice),
        "unit": (rho.log().mean(1) - pairs.unit).square().mean(),
    }


def total(parts: dict[str, Tensor]) -> Tensor:
    """Returns the weighted sum of the losses."""
    return torch.stack([WEIGHTS[name] * value for name, value in parts.items()]).sum()


def fit_motion(points: Tensor, targets: Tensor, seen: Tensor, weight: Tensor) -> Tensor:
    """Fits the camera's motion to lifted scene flow: in closed form, then robustly where the points are seen.

    The closed form takes the errors of depth for motion; the steps after it hold the points and let only the places at
    which they are seen speak. What does not follow the common motion loses its voice. Derivatives go through all of it.

    Args:
        points: (B, N, 3) points of the first frame.
        targets: (B, N, 3) where the second frame sees each.
        seen: (B, N, 2) the direction in which it does, at unit depth.
        weight: (B, N) weights >= 0.

    Returns:
        (B, 4, 4) ``T_second_first``.
    """
    # Errors of depth grow with depth, so far points say less in metres; in pixels all say the same.
    motion = procrustes(points, targets, weight / points[..., 2].detach().square())
    eye = torch.eye(6, dtype=points.dtype, device=points.device)
    for _ in range(STEPS):
        moved = se3.act(motion[:, None], points)
        z = moved[..., 2].clamp_min(1e-3)
        at = moved[..., :2] / z[..., None]
        miss = at - seen
        zero = torch.zeros_like(z)
        rows = (
            torch.stack((1 / z, zero, -at[..., 0] / z), -1),
            torch.stack((zero, 1 / z, -at[..., 1] / z), -1),
        )
        jacobian = torch.stack(rows, -2) @ se3.act_jacobian(motion[:, None], points)
        squared = miss.detach().square().sum(-1)
        width = NOISE**2 + squared.median(dim=1, keepdim=True).values
        robust = (weight * (width / (width + squared)).square())[..., None, None]
        hessian = (jacobian.transpose(-1, -2) @ (robust * jacobian)).sum(1)
        gradient = (jacobian.transpose(-1, -2) @ (robust * miss[..., None])).sum(1)
        damping = 1e-4 * hessian.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None] * eye
        step = torch.linalg.solve(hessian + damping + 1e-9 * eye, gradient)[..., 0]
        motion = motion @ se3.exp(-step)
    return motion


@torch.no_grad()
def photometric_error(network: FieldNetwork, pairs: VideoPairs, *, batch: int = 8) -> float:
    """Returns how far re-rendered colours are from the second frames, mean of grey levels 0 to 1, on fixed pixels."""
    network.eval()
    generator = torch.Generator(pairs.images.device).manual_seed(0)
    parts = [
        losses(network, pairs[k : k + batch], generator=generator)["colour"] * len(pairs[k : k + batch])
        for k in range(0, len(pairs), batch)
    ]
    network.train()
    return float(torch.stack(parts).sum()) / len(pairs)


def _triangulate(motion: Tensor, ray: Tensor, seen: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the inverse depth (B, N) that a motion and the flow give, and its variance.

    It knows nothing of the field's depth but the length of the motion, so that what it tells of the field's errors, and
    of how sure the field may be, is news.
    """
    turned = (motion[:, None, :3, :3] @ ray[..., None])[..., 0]
    shift = motion[:, None, :3, 3]
    a = turned[..., :2] - seen * turned[..., 2:]
    b = shift[..., :2] - seen * shift[..., 2:]
    squared = b.square().sum(-1).clamp_min(1e-9)
    return -(a * b).sum(-1) / squared, deviation.square() / squared


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    return (weight * values).sum() / weight.sum().clamp_min(1e-6)
