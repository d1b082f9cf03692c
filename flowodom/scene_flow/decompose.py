"""What moves on its own: a probability for every pixel, from what the camera's motion leaves unexplained.

For each pixel of the current image there are two stories. It stands still: then the camera's motion says where it was
before, at which depth and how bright. Or it moves: then the flow says where it was. The two are compared by the
distance between the two places (the pose fit's measure, in pixels and inverse depth, with its covariance), by the
brightness at each, and by whether something farther was seen through the place where it should have been. The logarithm
of the likelihood ratio is smoothed along surfaces, never across edges of depth, and added to what was believed of the
same point in the image before. Little is believed at first, and beliefs fade: the world is as static as possible.

Source: Bayes' rule in log odds, as in Moravec and Elfes, "High Resolution Maps from Wide Angle Sonar" (1985); He, Sun
and Tang, "Guided Image Filtering" (2010); the prior on stillness as in Yang et al., "Flux4D" (2025).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from flowodom.depth import InverseDepth
from flowodom.flow import FlowField
from flowodom.flow.consistency import FLOW_NOISE, sample
from flowodom.geometry import PinholeCamera, se3
from flowodom.registration.refine import spread

CELL = 2
"""Pixels of the dense grid, each way, that share one probability."""

GLANCE_CELL = 8
"""Pixels of the dense grid, each way, that share one residual in the first glance."""

GLANCE_SHARE = 0.005
"""Share of the first glance's cells that must disagree with the camera's motion for a closer look."""

GLANCE_SIGNIFICANT = 27.0
"""Squared Mahalanobis distance from which a cell of the first glance disagrees: the rough flow has large errors."""

PRIOR = 0.02
"""Probability that a pixel of which nothing is known moves."""

FADING = 0.1
"""Share by which belief returns to the prior from one frame to the next."""

RELIEF = 0.1
"""By how much doubt lessens from one frame to the next: what has moved is left out of the pose fit for a while."""

LEAST_SHARE = 0.0005
"""Share of the pixels that must be likelier to move than not for anything to be remembered."""

MOST_LOGIT = 5.0
"""Log odds beyond which belief does not grow, so that it can change its mind."""

SIGNIFICANT = 8.0
"""Squared Mahalanobis distance of the two stories' places at which neither is the likelier."""

SYSTEMATIC = 0.06
"""Error of the predicted place, as a share of the flow: calibration and rolling shutter turn with the camera."""

PIXEL_FLOOR = 0.15
"""Standard deviation, pixels of the dense grid, that no flow is surer than."""

RELATIVE_FLOOR = 0.01
"""Relative deviation of inverse depth that no depth is surer than."""

LEAST_SCATTER = 0.25
"""Least factor, squared, by which the stated noise can turn out too large."""

MOST_MISS = 2.0
"""Forward-backward error, pixels of the dense grid, above which flow says nothing."""

BRIGHTNESS_NOISE = 5.0
"""Standard deviation, grey levels, of the difference of two images of one surface."""

SLOPE = 0.5
"""Misplacement, pixels of the grid, whose brightness error is forgiven."""

SEEN_THROUGH = 3.0
"""Log likelihood ratio of a pixel where something farther away was seen before."""

UNCOVERED = -1.0
"""Log likelihood ratio of a pixel that, standing still, had something nearer before it: it explains why it is new."""

EDGE = 0.06
"""Relative difference of inverse depth between two surfaces."""

RADIUS = 4
"""Half the width of the window of the smoothing, pixels of the grid."""


@dataclass(frozen=True)
class Surface:
    """One view on a coarser grid.

    Attributes:
        camera: Camera of the grid (H, W).
        grey: (H, W) float32 grey levels.
        rho: (H, W) float32 inverse depth, NaN unknown.
        variance: (H, W) its variance, infinite where unknown.
        dense: (h, w) uint8 grey of the dense grid.
        depth: What ``rho`` and ``variance`` were taken from, at any resolution.
    """

    camera: PinholeCamera
    grey: Tensor
    rho: Tensor
    variance: Tensor
    dense: Tensor
    depth: InverseDepth

    @classmethod
    def of(cls, camera: PinholeCamera, dense: Tensor, depth: InverseDepth, cell: int) -> Surface:
        """Makes the coarse view.

        Args:
            camera: Camera of the dense grid.
            dense: (H, W) uint8 grey on that grid.
            depth: Its inverse depth at any resolution, of which the nearest value to each cell's middle is taken.
            cell: Pixels of the dense grid each way that become one.
        """
        grid = coarse_camera(camera, cell)
        height, width = depth.mean.shape
        device = depth.mean.device
        rows = ((torch.arange(grid.height, device=device) + 0.5) * (cell * height / camera.height)).long()
        columns = ((torch.arange(grid.width, device=device) + 0.5) * (cell * width / camera.width)).long()
        index = rows[:, None] * width + columns
        grey = functional.avg_pool2d(dense[None].float(), cell)[0]
        return cls(grid, grey, depth.mean.reshape(-1)[index], depth.variance.reshape(-1)[index], dense, depth)

    @cached_property
    def range(self) -> Tensor:
        """(H, W, 2) least and greatest inverse depth in the neighbourhood of each pixel; NaN where none is known."""
        rho, square = self.rho.cpu(), np.ones((3, 3), dtype=np.uint8)
        near = torch.from_numpy(cv2.dilate(rho.nan_to_num(nan=-torch.inf).numpy(), square))
        far = torch.from_numpy(cv2.erode(rho.nan_to_num(nan=torch.inf).numpy(), square))
        return torch.where(near.isfinite()[..., None], torch.stack((far, near), dim=-1), torch.nan).to(self.rho)


def coarse_camera(camera: PinholeCamera, cell: int) -> PinholeCamera:
    """Returns the camera of a grid whose pixels are ``cell`` by ``cell`` of another's; what is left over is cut off."""
    return PinholeCamera(
        camera.fx / cell,
        camera.fy / cell,
        (camera.cx + 0.5) / cell - 0.5,
        (camera.cy + 0.5) / cell - 0.5,
        camera.width // cell,
        camera.height // cell,
    )


@dataclass(frozen=True)
class Stories:
    """Both explanations of where each pixel (H, W) of one view is in another.

    Attributes:
        moved: (H, W, 2) where the flow puts it, pixels of the grid.
        still: (H, W, 2) where the camera's motion puts it.
        still_rho: (H, W) inverse depth there, NaN unknown.
        squared: (H, W) squared Mahalanobis distance between the two, in pixels and inverse depth.
        usable: (H, W) bool: the flow can be trusted and stays in the image.
        margin: (H, W) differences of inverse depth up to which two surfaces are one; NaN where depth is unknown.
        gap: (H, W) difference of inverse depth to what was seen where the flow points, zero where that is unknown.
    """

    moved: Tensor
    still: Tensor
    still_rho: Tensor
    squared: Tensor
    usable: Tensor
    margin: Tensor
    gap: Tensor


def tell(other: Surface, view: Surface, flow: Tensor, flow_variance: Tensor, motion: Tensor, cell: int) -> Stories:
    """Works out both stories of where each pixel of one view is in another.

    Args:
        other: The other view.
        view: The view whose pixels are asked for.
        flow: (h, w, 2) flow from this view to the other, pixels of the dense grid.
        flow_variance: (h, w) its variance per component, pixels squared.
        motion: (4, 4) float64 ``T_other_view`` of the camera.
        cell: Pixels of the dense grid each way that are one pixel of the views.
    """
    camera = view.camera
    pooled = functional.avg_pool2d(torch.cat((flow.permute(2, 0, 1), flow_variance[None])), cell)
    shift, flow_variance = pooled[:2].permute(1, 2, 0) / cell, pooled[2]
    here = camera.pixels(device=flow.device)
    moved = here + shift

    rotation, baseline = motion[:3, :3].to(here), motion[:3, 3].to(here)
    known = view.variance.isfinite()
    rho = torch.where(known, view.rho, 0)
    typical = view.rho.reshape(-1)[::7].nanmedian().nan_to_num(nan=1.0)
    rho_variance = torch.where(known, view.variance + (RELATIVE_FLOOR * rho) ** 2, (3 * typical) ** 2)
    turned = camera.rays(here) @ rotation.T
    scaled = turned + rho[..., None] * baseline
    z = scaled[..., 2].clamp_min(1e-3)
    focal = scaled.new_tensor((camera.fx, camera.fy))
    still = scaled[..., :2] / z[..., None] * focal + scaled.new_tensor((camera.cx, camera.cy))
    by_rho = (baseline[:2] - scaled[..., :2] * (baseline[2] / z)[..., None]) / z[..., None] * focal

    error = moved - still
    reach = (still - here).square().sum(-1)
    variance = (flow_variance + PIXEL_FLOOR**2) / cell**2 + SYSTEMATIC**2 * reach
    along = (error * by_rho).sum(-1)
    denominator = variance + rho_variance * by_rho.square().sum(-1)
    squared = (error.square().sum(-1) - rho_variance * along.square() / denominator) / variance

    # Depth counts as different only when nothing about the place has the right one.
    still_rho = torch.where(known, rho / z, torch.nan)
    low, high = nearest(other.range, moved).unbind(-1)
    gap = torch.maximum(low - still_rho, still_rho - high).clamp_min(0).nan_to_num(nan=0.0)
    squared = squared + gap.square() / (2 * rho_variance)
    margin = 3 * rho_variance.sqrt() + EDGE * still_rho
    miss = 2 * (flow_variance - FLOW_NOISE**2)
    usable = camera.contains(moved) & (miss < MOST_MISS**2)
    return Stories(moved, still, still_rho, squared, usable, margin, gap)


def nearest(field: Tensor, pixels: Tensor) -> Tensor:
    """Returns the (..., C) values of a field (H, W, C) at the pixels nearest to (..., 2) places."""
    height, width = field.shape[:2]
    column = pixels[..., 0].round().long().clamp(0, width - 1)
    row = pixels[..., 1].round().long().clamp(0, height - 1)
    return field.reshape(height * width, -1)[row * width + column]


def evidence(
    previous: Surface, current: Surface, stories: Stories, hidden: Tensor, believed: Tensor
) -> tuple[Tensor, Tensor]:
    """Weighs the two stories against each other.

    Args:
        previous: View before.
        current: View now.
        stories: Where each pixel was.
        hidden: (H, W) bool: where it would have been if it stood still, something nearer was seen.
        believed: (H, W) probability of moving that each pixel starts with.

    Returns:
        (H, W) log likelihood ratio of moving to standing still, zero where nothing tells them apart, and (H, W) bool
        where something does.
    """
    typical = stories.usable & current.variance.isfinite() & (believed < 0.5)
    squared = stories.squared / scatter(stories.squared, typical)
    distance = (0.5 * (squared - SIGNIFICANT)).clamp(-2, 3)

    grey = current.grey
    seen = sample(previous.grey[..., None], torch.stack((stories.moved, stories.still)))[..., 0] - grey
    slope = torch.stack(torch.gradient(grey)).square().sum(0)
    blurred = box(torch.cat((seen.square(), slope[None])), 1)
    noise = BRIGHTNESS_NOISE**2 + SLOPE**2 * blurred[2]
    brightness = (0.5 * (blurred[1] - blurred[0]) / noise).clamp(-2, 2)

    through = nearest(previous.range, stories.still)[..., 1] < stories.still_rho - stories.margin
    through &= current.camera.contains(stories.still, border=1.0)
    told = stories.usable & current.variance.isfinite() & ~hidden
    ratio = torch.where(told, distance + brightness, 0) + torch.where(through, SEEN_THROUGH, 0)
    return torch.where(hidden, UNCOVERED, ratio), told | through | hidden


def scatter(squared: Tensor, typical: Tensor) -> Tensor:
    """Returns by how much, squared, residuals (H, W) scatter more than stated where ``typical``."""
    thinned = squared.reshape(-1)[::7][typical.reshape(-1)[::7]]
    if len(thinned) < 50:
        return squared.new_tensor(1.0)
    return squared.new_tensor(max(spread(thinned), LEAST_SCATTER))


def box(fields: Tensor, radius: int) -> Tensor:
    """Returns the mean of (C, H, W) fields over square windows, cut off at the border."""
    width = 2 * radius + 1
    sums = [
        cv2.boxFilter(field, -1, (width, width), normalize=False, borderType=cv2.BORDER_CONSTANT)
        for field in (*fields.cpu().numpy(), np.ones(fields.shape[1:], dtype=np.float32))
    ]
    return torch.from_numpy(np.stack(sums[:-1]) / sums[-1]).to(fields)


def smooth(values: Tensor, weight: Tensor, guide: Tensor, deviation: Tensor) -> Tensor:
    """Smooths along surfaces: in each window the values are a linear function of the guide.

    Args:
        values: (H, W) to be smoothed.
        weight: (H, W) in [0, 1], how far each is known.
        guide: (H, W), NaN unknown.
        deviation: (H, W) differences of the guide that mean nothing.

    Returns:
        (H, W) smoothed values, shrunk to zero where little is known; zero where the guide is unknown.
    """
    known = guide.isfinite()
    g = torch.where(known, guide, 0)
    w = weight * known
    total, mean_g, mean_v, gg, gv = box(torch.stack((w, w * g, w * values, w * g * g, w * g * values)), RADIUS)
    n = total.clamp_min(1e-6)
    mean_g, mean_v = mean_g / n, mean_v / n
    variance = (gg / n - mean_g * mean_g).clamp_min(0)
    slope = (gv / n - mean_g * mean_v) / (variance + deviation * deviation)
    constant = mean_v - slope * mean_g
    total, slope, constant = box(torch.stack((total, total * slope, total * constant)), RADIUS)
    result = (slope * g + constant) / (total + 0.05)
    return torch.where(known, result, 0)


@dataclass(frozen=True)
class Moving:
    """How likely each pixel of one image moves on its own.

    Attributes:
        camera: Camera of the grid (H, W).
        logit: (H, W) float32 log odds.
        doubt: (H, W) float32, above zero where something moves or has moved a short while ago and may move again.
        surface: The view on that grid.
        past: The view before; None where nothing is known of it.
        stories: Where each pixel was in that.
    """

    camera: PinholeCamera
    logit: Tensor
    doubt: Tensor
    surface: Surface
    past: Surface | None = None
    stories: Stories | None = None

    @cached_property
    def share(self) -> float:
        """Share of the pixels of known depth that are likelier to move than to stand still."""
        known = self.surface.variance.isfinite()
        return float(((self.logit > 0) & known).sum() / known.sum().clamp_min(1))

    @cached_property
    def doubted_share(self) -> float:
        """Share of the pixels that are doubted."""
        return float((self.doubt > 0).float().mean())

    @cached_property
    def nearness(self) -> float:
        """By how much what moves is nearer than what stands still beside it: mean of the log ratio, 0 where unknown."""
        rho = self.surface.rho
        moves, known = (self.logit > 0).to(rho), rho.isfinite().to(rho)
        value = rho.nan_to_num()
        near, far = moves * known, (1 - moves) * known
        sums = box(torch.stack((near, near * value, far, far * value)), 2 * RADIUS)
        beside = (sums[0] > 0.2) & (sums[2] > 0.2)
        ratio = (sums[1] / sums[0] / (sums[3] / sums[2])).log()
        return float(torch.where(beside, ratio, 0).sum() / beside.sum().clamp_min(1))

    @cached_property
    def backed(self) -> float:
        """Share of what stands still that is farther than the middle of what moves, where depth is known; 1 for none.

        Movers stand before the world: where it is nearly zero, what moves is the world, and what stands still hides it.
        """
        known = self.surface.variance.isfinite()
        moves, still = known & (self.logit > 0), known & (self.logit <= 0)
        if not bool(moves.any()) or not bool(still.any()):
            return 1.0
        return float((self.surface.rho[still] < self.surface.rho[moves].median()).double().mean())

    def unbiased(self) -> Moving:
        """Returns what is believed where moving and standing still were equally likely before: for a first pair."""
        logit = self.logit - math.log(PRIOR / (1 - PRIOR))
        return replace(self, logit=logit, doubt=torch.maximum(logit, self.doubt))

    def swapped(self) -> Moving:
        """Returns the opposite: what stood still moves, and what moved stands still."""
        return replace(self, logit=-self.logit, doubt=-self.logit, past=None, stories=None)

    @property
    def probability(self) -> Tensor:
        """(H, W) in [0, 1]."""
        return self.logit.sigmoid()

    def carried(self, flow: FlowField) -> Moving:
        """Returns what is believed of the next image before anything of it is known.

        Args:
            flow: Dense flow from this image to the next.
        """
        backward = functional.avg_pool2d(flow.backward.permute(2, 0, 1), CELL).permute(1, 2, 0) / CELL
        beliefs = torch.stack((self.logit, self.doubt), dim=-1)
        logit, doubt = sample(beliefs, self.camera.pixels(device=backward.device) + backward).unbind(-1)
        return replace(self, logit=logit, doubt=doubt, past=None, stories=None)

    def mask(self, size: tuple[int, ...], *, doubted: bool = False) -> NDArray[np.bool_]:
        """Returns which pixels of an image of ``size`` (height, width) are likelier to move than to stand still.

        With ``doubted`` those that did so a short while ago are among them.
        """
        belief = (self.doubt if doubted else self.logit).cpu().numpy()
        return np.asarray(cv2.resize(belief, size[::-1], interpolation=cv2.INTER_LINEAR) > 0)

    def places(self, camera: PinholeCamera, pixels: Tensor) -> Tensor:
        """Returns where (..., 2) pixels of a camera with the same view at any resolution lie on the grid."""
        scale = pixels.new_tensor((self.camera.width / camera.width, self.camera.height / camera.height))
        return ((pixels + 0.5) * scale - 0.5).to(self.logit)

    def at(self, camera: PinholeCamera, pixels: Tensor) -> Tensor:
        """Returns the (...) probability at (..., 2) pixels of a camera with the same view at any resolution."""
        return sample(self.logit[..., None], self.places(camera, pixels))[..., 0].sigmoid()

    def doubted(self, camera: PinholeCamera, pixels: Tensor) -> Tensor:
        """Returns (...) bool: what is doubted at (..., 2) pixels of a camera with the same view at any resolution."""
        return nearest(self.doubt[..., None], self.places(camera, pixels))[..., 0] > 0


def glance(previous: Surface, current: Surface, flow: FlowField, motion: Tensor) -> bool:
    """Tells by few, large cells, and by the rough flow alone, whether anything may move at all."""
    sure = torch.full(flow.rough.shape[:2], FLOW_NOISE**2, device=flow.rough.device)
    stories = tell(current, previous, flow.rough, sure, motion, GLANCE_CELL)
    usable = stories.usable & previous.variance.isfinite()
    squared = stories.squared / scatter(stories.squared, usable)
    moves = (usable & (squared > GLANCE_SIGNIFICANT)).float()
    # Alone it is an error of the flow; with its neighbours it is a thing.
    things = (box(moves[None], 1)[0] > 0.85).float().mean()
    return bool(things > GLANCE_SHARE)


def decompose(
    previous: Surface, current: Surface, flow: FlowField, motion: Tensor, before: Moving | None = None
) -> Moving:
    """Splits what moves on its own from what the camera's motion explains.

    Args:
        previous: View before, on a grid of ``CELL``.
        current: View now.
        flow: Dense flow between the two.
        motion: (4, 4) float64 ``T_current_previous`` of the camera.
        before: What moved in the view before; None where nothing did.
    """
    stories = tell(previous, current, flow.backward, flow.backward_variance, se3.inverse(motion), CELL)
    hidden = nearest(previous.range, stories.still)[..., 1] > stories.still_rho + stories.margin
    prior = torch.full_like(current.grey, PRIOR).logit()
    doubt = torch.full_like(prior, -MOST_LOGIT)
    if before is not None:
        places = torch.stack((stories.moved, stories.still))
        beliefs = sample(torch.stack((before.logit, before.doubt), dim=-1), places)
        # Another surface has no past to go by; whether one without depth is the same is known by its lack of it.
        blank = ~current.variance.isfinite()
        seen = nearest(previous.range[..., 1:], places)[..., 0].isfinite()
        other = (nearest(previous.rho[..., None], stories.moved)[..., 0] - stories.still_rho).abs() > stories.margin
        new = torch.stack((other, hidden)) | (blank & seen)
        carried = torch.where(new, PRIOR, (1 - FADING) * beliefs[..., 0].sigmoid() + FADING * PRIOR)
        # The pixel moves and came with the flow, or it stands still and was where the camera's motion says.
        prior = carried[0].log() - (1 - carried[1]).log()
        doubt = torch.where(new[0], doubt, beliefs[0, ..., 1] - RELIEF)
    ratio, told = evidence(previous, current, stories, hidden, prior.sigmoid())
    deviation = 2 * current.variance.sqrt().clamp_max(1) + 0.5 * EDGE * current.rho.nan_to_num()
    ratio = smooth(ratio, told.to(ratio), current.rho, deviation)
    logit = (prior + ratio).clamp(-MOST_LOGIT, MOST_LOGIT)
    return Moving(current.camera, logit, torch.maximum(logit, doubt), current, previous, stories)


View = tuple[Tensor, InverseDepth]
"""A dense (H, W) uint8 grey image and its inverse depth, at any resolution."""


def find_moving(
    camera: PinholeCamera,
    previous: View,
    current: View,
    flow: FlowField,
    motion: Tensor,
    before: Moving | None,
    *,
    suspected: bool = False,
) -> Moving | None:
    """Finds what moves on its own, at little cost where nothing does.

    Args:
        camera: Camera of the dense grid.
        previous: View before.
        current: View now.
        flow: Dense flow between the two.
        motion: (4, 4) float64 ``T_current_previous`` of the camera.
        before: What moved in the view before; None for nothing.
        suspected: Whether something is known to move, so that no first glance is needed.

    Returns:
        What moves in the current view; None where nothing does.
    """
    if before is None and not suspected:
        coarse = [Surface.of(camera, *view, GLANCE_CELL) for view in (previous, current)]
        if not glance(coarse[0], coarse[1], flow, motion):
            return None
    past = Surface.of(camera, *previous, CELL) if before is None else before.surface
    moving = decompose(past, Surface.of(camera, *current, CELL), flow, motion, before)
    return moving if moving.doubted_share > LEAST_SHARE else None
