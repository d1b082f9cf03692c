"""What a field can learn from video alone: no poses, no depth, no labels.

The depths that the field renders for two frames lift their optical flow to scene flow; a weighted fit of that gives the
camera's motion, differentiably; and what the field of one frame shows from where the other was taken must be what the
other shows. The losses of FlowCam are there (re-rendered colours, flow induced by the pose, colours of the context
frame), and beside them the agreement of both frames' depths, of both directions of time, of depth with
triangulation, and the prior that what is seen stands still. What the fit finds to move on its own has no voice in what
is said of flow and depth.

All but the colours are relative, so that the unit of length is nowhere observed; it is held where it was at the start.

Source: FlowCam (Smith et al., 2023), sections 3.2 and 3.3; Flux4D for the prior "as static as possible".
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowodom.depth.field import COARSER, Field, FieldNetwork, places, rays, sample
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

STEPS = 10
"""Gauss-Newton steps of the pose."""

AHEAD = 0.1
"""Length of a step ahead or back with which the fit may begin, as a share of the median depth."""

OUTLIER = 1.5
"""Medians of the best fit's misses, a miss of which counts half of what the worst does, where fits are compared."""

LEAST_SCATTER = 0.1
"""Least squared miss, in deviations, that is told from none."""

ROUGH, FINER = 0.02, 0.5
"""Deviation of flow, in focal lengths, for which the first of these steps takes it, and its share from step to step."""

SPREAD = 0.6
"""Relative deviation of depth for which the fit takes the field's. It is wider than the field's own: what neighbouring
points have wrong in common does not average out, and a field that learns believes itself too soon."""

LEAST_SHARE = 0.2
"""Of the field's inverse depth, that a step of the fit may leave of a point's."""


@dataclass(frozen=True)
class VideoPairs(Samples):
    """B pairs of video frames and the flow between them.

    Attributes:
        images: (B, 2, 3, H, W) RGB, 0 to 1.
        flow: (B, 2, H, W, 2) from the first to the second and back, in shares of width and height.
        deviation: (B, 2, H, W) of the flow, in focal lengths.
        intrinsics: (B, 4) fx, fy, cx, cy in shares of width and height.
        unit: (B,) mean logarithm of the first frame's inverse depth before learning began.
        stamps: (B, 2) int64 nanoseconds.
    """

    images: Tensor
    flow: Tensor
    deviation: Tensor
    intrinsics: Tensor
    unit: Tensor
    stamps: Tensor

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

    place, cells = draw(2), network.config.cells
    lifted = lift(network, pairs, first, second, place, draw(cells), draw(cells))
    ray, seen_ray, rho, seen_rho = lifted.ray, lifted.seen_ray, lifted.rho, lifted.seen_rho
    points, targets, deviation, voice = lifted.points, lifted.targets, lifted.deviation, lifted.voice

    motion, still = fit_motion(points, targets, seen_ray[..., :2], voice, deviation)
    back, _ = fit_motion(targets, points, ray[..., :2], voice, deviation)
    voice = voice * still
    moved = se3.act(motion[:, None], points)
    z = moved[..., 2].clamp_min(0.1 * network.config.near)
    miss = moved[..., :2] / z[..., None] - seen_ray[..., :2]
    depth_miss = (z * seen_rho).log()
    found, found_variance = _triangulate(motion.detach(), ray, seen_ray[..., :2], deviation)
    spread = (lifted.variance + found_variance).sqrt() / rho.detach()

    # What the other frame shows, rendered from the first one's field.
    other = draw(2)
    colour, share = network.colour(first, other, pairs.intrinsics, se3.inverse(motion), offset=draw(cells))
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
        "unit": (rho.log().mean(1) - pairs.unit).mean().square(),
    }


@dataclass(frozen=True)
class Lifted:
    """Scene flow of B pairs at N places: the flow, lifted by the field's depths of both frames.

    Attributes:
        ray: (B, N, 3) of the first frame, z = 1.
        rho: (B, N) inverse depth there.
        variance: (B, N) of it.
        seen_ray: (B, N, 3) where the flow leads, in the second frame.
        seen_rho: (B, N) inverse depth there.
        deviation: (B, N) of the flow, in focal lengths.
        voice: (B, N) weight in the fit, 0 to 1.
    """

    ray: Tensor
    rho: Tensor
    variance: Tensor
    seen_ray: Tensor
    seen_rho: Tensor
    deviation: Tensor
    voice: Tensor

    @property
    def points(self) -> Tensor:
        """(B, N, 3) points P of the first frame."""
        return self.ray / self.rho[..., None]

    @property
    def targets(self) -> Tensor:
        """(B, N, 3) where the second frame sees each, P + F."""
        return self.seen_ray / self.seen_rho[..., None]


def lift(
    network: FieldNetwork,
    pairs: VideoPairs,
    first: Field,
    second: Field,
    place: Tensor,
    offset: Tensor | float = 0.5,
    seen_offset: Tensor | float = 0.5,
) -> Lifted:
    """Lifts flow to scene flow.

    Args:
        network: The field.
        pairs: B pairs.
        first: The fields of their first frames.
        second: And of their second ones.
        place: (B, N, 2) places in the first frames.
        offset: Where in their cells rays of the first frames are sampled, see ``FieldNetwork.depth``.
        seen_offset: And those of the second ones.
    """
    there = place + sample(pairs.flow[:, 0].movedim(-1, 1), place)
    rho, variance = network.depth(first, place, offset=offset)
    seen_rho, _ = network.depth(second, there, offset=seen_offset)
    ray, seen_ray = rays(place, pairs.intrinsics[:, None]), rays(there, pairs.intrinsics[:, None])
    inside = ((there > 0) & (there < 1)).all(-1)
    deviation = sample(pairs.deviation[:, :1], place)[..., 0]
    voice = inside / (1 + (deviation / NOISE).square())
    return Lifted(ray, rho, variance, seen_ray, seen_rho, deviation, voice)


@torch.no_grad()
def motions(network: FieldNetwork, pairs: VideoPairs, *, batch: int = 8) -> Tensor:
    """Returns the (B, 4, 4) ``T_second_first``, float64, that flow and the field's depths tell.

    It is the fit that the losses go through, on all pixels of the field's depth.
    """
    height, width = pairs.images.shape[-2:]
    grid = places(height // COARSER, width // COARSER, pairs.images).reshape(1, -1, 2)
    found = []
    for part in (pairs[slice(k, k + batch)] for k in range(0, len(pairs), batch)):
        first, second = (network.encode(part.images[:, k], part.intrinsics) for k in (0, 1))
        lifted = lift(network, part, first, second, grid.expand(len(part), -1, -1))
        seen = lifted.seen_ray[..., :2]
        motion, _ = fit_motion(lifted.points, lifted.targets, seen, lifted.voice, lifted.deviation)
        found.append(motion.double())
    return torch.cat(found)


def total(parts: dict[str, Tensor]) -> Tensor:
    """Returns the weighted sum of the losses."""
    return torch.stack([WEIGHTS[name] * value for name, value in parts.items()]).sum()


def fit_motion(
    points: Tensor, targets: Tensor, seen: Tensor, weight: Tensor, deviation: Tensor
) -> tuple[Tensor, Tensor]:
    """Fits the camera's motion to lifted scene flow, robustly, where the points are seen.

    Held fixed, wrong depths would shorten the motion and turn it, so every point's inverse depth is unknown too, with
    the field's for a prior. What does not follow the common motion loses its voice.

    A mover that fills a tenth of the image draws a search that begins with all points into a motion between its own and
    the camera's, since depths give way. So one search begins with each of the ``_parts``, which a mover seldom has all
    of; those with all points begin at the closed form (which takes the errors of depth for motion), at rest, and a step
    ahead and back, the others at rest. The one that explains most points is kept. At the optimum one more step is made,
    through which derivatives go: they are those of the optimum itself.

    Args:
        points: (B, N, 3) points of the first frame.
        targets: (B, N, 3) where the second frame sees each.
        seen: (B, N, 2) the direction in which it does, at unit depth.
        weight: (B, N) weights >= 0.
        deviation: (B, N) of ``seen``.

    Returns:
        (B, 4, 4) ``T_second_first``, and (B, N) how far each point stands still, 0 to 1, without derivatives.
    """
    ray, prior = points / points[..., 2:], 1 / points[..., 2]
    with torch.no_grad():
        # Errors of depth grow with depth, so far points say less in metres; in pixels all say the same.
        closed = procrustes(points, targets, weight / points[..., 2].square())
        parts = _parts(ray, prior)
        motion = torch.eye(4, dtype=points.dtype, device=points.device).repeat(len(parts), len(points), 1, 1)
        motion[0] = closed
        motion[1:3, :, 2, 3] = AHEAD * points[..., 2].median(dim=1).values * motion.new_tensor((1, -1))[:, None]
        rho = prior.expand(len(motion), *prior.shape)
        for number in range(STEPS):
            # With flow taken for rough at first, depth says which way the camera went before it may itself be off.
            rough = torch.hypot(deviation, deviation.new_tensor(ROUGH * FINER**number))
            voice = weight * parts if number < STEPS // 2 else weight
            motion, rho, squared = _step(motion, rho, ray, prior, seen, voice, rough)
        scatter = squared.median(dim=-1).values.amin(0).clamp_min(LEAST_SCATTER)[:, None]
        best = _mean(squared / (OUTLIER**2 * scatter + squared), weight, dim=-1).argmin(0)
        chosen = best, torch.arange(len(points), device=points.device)
        motion, rho = motion[chosen], rho[chosen]
    motion, _, squared = _step(motion, rho, ray, prior, seen, weight, deviation)
    return motion, _robust(squared)


def _parts(ray: Tensor, rho: Tensor) -> Tensor:
    """Returns (H, B, N) bool, which points each search begins with.

    They are four times all, then the far half, and the left, right, upper and lower ones.
    """
    x, y, far = ray[..., 0], ray[..., 1], -rho
    middle = (v > v.median(dim=1, keepdim=True).values for v in (far, x, -x, y, -y))
    return torch.stack((*torch.ones(4, *rho.shape, dtype=torch.bool, device=rho.device), *middle))


def _robust(squared: Tensor) -> Tensor:
    """Returns the (..., N) voices of points with so large squared misses: a kernel as wide as most of them scatter."""
    width = LEAST_SCATTER + 2 * squared.median(dim=-1, keepdim=True).values
    return (width / (width + squared)).square()


def _step(
    motion: Tensor,
    rho: Tensor,
    ray: Tensor,
    prior: Tensor,
    seen: Tensor,
    weight: Tensor,
    deviation: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Makes a Gauss-Newton step of motions (..., 4, 4) and inverse depths (..., N), the latter eliminated.

    Returns:
        Both, and (..., N) what was wrong before: the squared misses, in deviations.
    """
    eye, plane = (torch.eye(k, dtype=rho.dtype, device=rho.device) for k in (6, 2))
    held = ray / rho[..., None]
    moved = se3.act(motion[..., None, :, :], held)
    z = moved[..., 2].clamp_min(1e-3)
    at = moved[..., :2] / z[..., None]
    zero = torch.zeros_like(z)
    rows = (
        torch.stack((1 / z, zero, -at[..., 0] / z), -1),
        torch.stack((zero, 1 / z, -at[..., 1] / z), -1),
    )
    jacobian = torch.stack(rows, -2) @ se3.act_jacobian(motion[..., None, :, :], held)
    shift = motion[..., None, :3, 3]
    slope = ((shift[..., :2] - at * shift[..., 2:]) / (rho * z)[..., None]).detach()
    miss = (at - seen + slope * (prior - rho)[..., None])[..., None]
    # Along the epipolar line a point may be off by what its depth is; across, by what flow is.
    noise = deviation.square()[..., None, None]
    reach = ((SPREAD * prior)[..., None] * slope).detach()[..., None]
    information = (plane - reach @ reach.mT / (noise + reach.square().sum(-2, keepdim=True))) / noise
    squared = (miss.mT @ information @ miss).detach()[..., 0, 0]
    robust = (weight * _robust(squared))[..., None, None] * information
    hessian = (jacobian.mT @ robust @ jacobian).sum(-3)
    gradient = (jacobian.mT @ robust @ miss).sum(-3)
    damping = 1e-6 * hessian.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] * eye
    step = torch.linalg.solve(hessian + damping + 1e-9 * eye, gradient)
    left = miss - jacobian @ step[..., None, :, :]
    gain = (SPREAD * prior).detach() * (reach.mT @ information @ left)[..., 0, 0]
    rho = torch.maximum(prior - gain, LEAST_SHARE * prior)
    return motion @ se3.exp(-step[..., 0]), rho, squared


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


def _mean(values: Tensor, weight: Tensor, dim: int | None = None) -> Tensor:
    return (weight * values).sum(dim) / weight.sum(dim).clamp_min(1e-6)
