"""Lifting flow to scene flow: the property set P, F, W, C of a frame pair.

Source: FlowCam (Smith et al., 2023), equation 3, for the lift; Flow4R for the property set.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowodom.depth import EDGE_RATIO, InverseDepth
from flowodom.flow import FlowField
from flowodom.geometry import PinholeCamera
from flowodom.registration.refine import OUTLIER
from flowodom.registration.reprojection import reproject


@dataclass(frozen=True)
class PropertySet:
    """What is known of every pixel of the previous frame; float32, NaN where depth is unknown.

    Attributes:
        camera: Camera of the dense grid (H, W).
        points: (H, W, 3) P, metres, previous camera.
        scene_flow: (H, W, 3) F, metres: ``points + scene_flow`` is where each point is now, current camera.
        weight: (H, W) W in [0, 1]: how far the point follows the camera's motion, zero where it was not observed.
        confidence: (H, W) C, inverse variance of F, 1/m^2.
        flow: (H, W, 2) pixels of the dense grid, previous to current.
        residual: (H, W, 3) ``F - F_ego``, metres, current camera: what moved on its own.
    """

    camera: PinholeCamera
    points: Tensor
    scene_flow: Tensor
    weight: Tensor
    confidence: Tensor
    flow: Tensor
    residual: Tensor


SLIP = 3.0
"""Pixels of the dense grid by which even the surest flow may end beside the edge of what it follows: half a patch."""


def lift(
    camera: PinholeCamera,
    flow: FlowField,
    previous: InverseDepth,
    current: InverseDepth,
    motion: Tensor,
    *,
    stride: int = 1,
) -> PropertySet:
    """Lifts dense flow to scene flow with the depth of both frames.

    Args:
        camera: Camera of the dense grid, to which ``flow`` belongs.
        flow: Flow from the previous to the current frame.
        previous: Inverse depth of the previous frame, at any resolution.
        current: Inverse depth of the current frame.
        motion: (4, 4) float64 ``T_current_previous``, the camera's own part.
        stride: Every how manieth row and column is lifted; the property set's grid is coarser by that.

    Returns:
        The property set of the previous frame's pixels.
    """
    grid, thin = camera.thinned(stride), slice(stride // 2, None, stride)
    pixels = camera.pixels(which=thin, device=flow.forward.device).movedim(-1, 0).flatten(1)
    forward, forward_variance = flow.forward[thin, thin].movedim(-1, 0).flatten(1), flow.forward_variance[thin, thin]
    target, forward_variance = pixels + forward, forward_variance.flatten()
    rho, rho_variance = previous.at(camera, pixels.T)
    ray, motion = camera.rays(pixels.T).T.contiguous(), motion.to(pixels)
    place = motion @ torch.cat((ray, rho[None]))
    seen_rho, seen_variance = _seen(current, camera, target, forward_variance, place[3] / place[2])

    # Residuals in pixels and inverse depth, where the noise is nearly Gaussian: the same measure as the pose fit's.
    there = reproject(camera, place, motion[:, 3:], torch.cat((target, seen_rho[None])))
    square, by_rho = there.error.square(), there.by_rho.square()
    pixel_variance = forward_variance + 0.5 * rho_variance * (by_rho[0] + by_rho[1])
    squared = (square[0] + square[1]) / pixel_variance + square[2] / (rho_variance * by_rho[2] + seen_variance)
    kernel = OUTLIER * OUTLIER
    weight = (kernel / (kernel + squared)).square()
    observed = camera.contains(target.T) & (squared < torch.inf)

    depth_squared, seen_depth_squared = rho.square().reciprocal(), seen_rho.square().reciprocal()
    variance = (
        depth_squared.square() * rho_variance
        + seen_depth_squared.square() * seen_variance
        + 2 / camera.focal**2 * seen_depth_squared * forward_variance
    )
    points, expected, now = ray / rho, place[:3] / rho, camera.rays(target.T).T / seen_rho

    def components_last(field: Tensor) -> Tensor:
        return field.movedim(0, -1).reshape(grid.height, grid.width, *field.shape[:-1])

    return PropertySet(
        camera=grid,
        points=components_last(points),
        scene_flow=components_last(now - points),
        weight=components_last(torch.where(observed, weight, 0)),
        confidence=components_last(torch.where(observed, 1 / variance, 0)),
        flow=components_last(forward / stride),
        residual=components_last(now - expected),
    )


def _seen(
    depth: InverseDepth, camera: PinholeCamera, target: Tensor, target_variance: Tensor, expected: Tensor
) -> tuple[Tensor, Tensor]:
    """Reads the inverse depth where flow ends, which beside an edge may be on the wrong side of it.

    Where another surface in reach is nearer to the expected depth, that is taken, the world being as static as
    possible; it is then as uncertain as the two are apart.

    Args:
        depth: Inverse depth of the current frame.
        camera: Camera of the dense grid.
        target: (2, N) pixels of the dense grid.
        target_variance: (N,) per component.
        expected: (N,) inverse depth of what stands still.

    Returns:
        (N,) inverse depth, NaN where none is known at the target itself, and (N,) variance.
    """
    rho, variance = depth.at(camera, target.T)
    apart = EDGE_RATIO * rho + 3 * variance.sqrt()
    # Another surface can be nearer only to what lies at least half as far off; that is little of an image.
    off = ((rho - expected).abs_() > 0.5 * apart).nonzero()[:, 0]
    here, mine, noise, expected, apart, reach = (
        field.index_select(-1, off) for field in (target, rho, variance, expected, apart, target_variance)
    )
    steps = target.new_tensor(((1, 0), (-1, 0), (0, 1), (0, -1)))[..., None] * (SLIP + 2 * reach.sqrt())
    around, noise_around = depth.at(camera, (here + steps).movedim(1, -1))
    around, noise_around = torch.cat((mine[None], around)), torch.cat((noise[None], noise_around))
    nearest = (around - expected).abs_().nan_to_num_(nan=torch.inf).min(0, keepdim=True).indices
    other, noise = around.gather(0, nearest)[0], noise_around.gather(0, nearest)[0]
    gap = other - mine
    slipped = gap.abs() > apart
    off = off[slipped]
    rho[off], variance[off] = other[slipped], (noise + gap * gap)[slipped]
    return rho, variance
