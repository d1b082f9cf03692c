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
    thin = (slice(stride // 2, None, stride),) * 2
    forward, forward_variance = flow.forward[thin], flow.forward_variance[thin]
    pixels = camera.pixels(device=forward.device)[thin]
    target = pixels + forward
    rho, rho_variance = previous.at(camera, pixels)
    points = camera.unproject(pixels, 1 / rho)
    rotation, translation = motion[:3, :3].to(points), motion[:3, 3].to(points)
    expected = points @ rotation.T + translation
    seen_rho, seen_variance = _seen(current, camera, target, forward_variance, 1 / expected[..., 2])
    now = camera.unproject(target, 1 / seen_rho)

    # Residuals in pixels and inverse depth, where the noise is nearly Gaussian: the same measure as the pose fit's.
    pixel_error = camera.project(expected, min_depth=1e-3) - target
    z = expected[..., 2].clamp_min(1e-3)
    depth_error = 1 / z - seen_rho
    # How far the uncertainty of rho moves the expected pixel: translation seen from the point.
    by_rho = (camera.project(expected + translation, min_depth=1e-3) - camera.project(expected, min_depth=1e-3)) * z[
        ..., None
    ]
    pixel_variance = forward_variance + 0.5 * rho_variance * (by_rho * by_rho).sum(-1)
    squared = (pixel_error * pixel_error).sum(-1) / pixel_variance
    squared = squared + depth_error * depth_error / (rho_variance + seen_variance)
    kernel = OUTLIER * OUTLIER
    weight = (kernel / (kernel + squared)) ** 2
    observed = camera.contains(target) & squared.isfinite()

    depth, seen_depth = 1 / rho, 1 / seen_rho
    variance = (
        depth**4 * rho_variance
        + seen_depth**4 * seen_variance
        + 2 * (seen_depth / camera.focal) ** 2 * forward_variance
    )
    return PropertySet(
        camera=camera.thinned(stride),
        points=points,
        scene_flow=now - points,
        weight=torch.where(observed, weight, 0),
        confidence=torch.where(observed, 1 / variance, 0),
        flow=forward / stride,
        residual=now - expected,
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
        target: (..., 2) pixels of the dense grid.
        target_variance: (...) per component.
        expected: (...) inverse depth of what stands still.

    Returns:
        (...) inverse depth, NaN where none is known at the target itself, and (...) variance.
    """
    rho, variance = depth.at(camera, target)
    apart = EDGE_RATIO * rho + 3 * variance.sqrt()
    # Another surface can be nearer only to what lies at least half as far off; that is little of an image.
    off = (rho - expected).abs() > 0.5 * apart
    here, reach = target[off], (SLIP + 2 * target_variance[off].sqrt())[..., None]
    steps = target.new_tensor(((1, 0), (-1, 0), (0, 1), (0, -1)))
    values, variances = zip(*(depth.at(camera, here + reach * step) for step in steps), strict=True)
    around, noise = torch.stack((rho[off], *values)), torch.stack((variance[off], *variances))
    miss = (around - expected[off]).abs().nan_to_num(nan=torch.inf)
    nearest = miss.argmin(0, keepdim=True)
    other = around.gather(0, nearest)[0]
    gap = other - rho[off]
    slipped = gap.abs() > apart[off]
    rho[off] = torch.where(slipped, other, rho[off])
    variance[off] = torch.where(slipped, noise.gather(0, nearest)[0] + gap * gap, variance[off])
    return rho, variance
