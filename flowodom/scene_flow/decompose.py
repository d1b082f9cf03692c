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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from flowodom.depth import InverseDepth
from flowodom.flow import FlowField, consistency
from flowodom.flow.consistency import FLOW_NOISE, sample
from flowodom.geometry import PinholeCamera, se3
from flowodom.registration.refine import spread
from flowodom.registration.reprojection import LEAST_DEPTH

CELLS = 13_000
"""About how many cells, each of which has one probability, an image is cut into: what it costs hangs on that."""

LEAST_CELL = 2
"""Fewest pixels of the dense grid, each way, that share one probability."""

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

SLOPE = 1.0
"""Misplacement, pixels of the dense grid, whose brightness error is forgiven."""

SEEN_THROUGH = 3.0
"""Log likelihood ratio of a pixel where something farther away was seen before."""

UNCOVERED = -1.0
"""Log likelihood ratio of a pixel that, standing still, had something nearer before it: it explains why it is new."""

EDGE = 0.06
"""Relative difference of inverse depth between two surfaces."""

THINNED = 23
"""Of how many pixels one is asked where all of them together tell one number."""

RADIUS = 3
"""Half the width of the window of the smoothing, pixels of the grid."""

VICINITY = 6
"""Half the width of the window in which what moves is compared with what stands still beside it, pixels of the grid."""


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
        index = _middles(grid, cell / camera.height, cell / camera.width, depth.mean.shape, depth.mean.device)
        rho, variance = (_take(field, index) for field in (depth.mean, depth.variance))
        return cls(grid, shrink(dense.float(), cell), rho, variance, dense, depth)

    @property
    def cell(self) -> int:
        """Pixels of the dense grid each way that are one here."""
        return self.dense.shape[1] // self.camera.width

    @cached_property
    def known(self) -> Tensor:
        """(H, W) bool: its inverse depth is known."""
        return self.variance < torch.inf

    @cached_property
    def range(self) -> Tensor:
        """(2, H, W) least and greatest inverse depth in the neighbourhood of each pixel; NaN where none is known."""
        rho, square = self.rho.cpu().numpy(), np.ones((3, 3), dtype=np.uint8)
        blank = np.isnan(rho)
        far = cv2.erode(np.where(blank, np.inf, rho), square)
        near = cv2.dilate(np.where(blank, -np.inf, rho), square)
        limits = torch.from_numpy(np.stack((far, near)))
        return limits.masked_fill_(limits.isinf(), torch.nan).to(self.rho)


def shrink(field: Tensor, cell: int) -> Tensor:
    """Returns the means over cells of ``cell`` by ``cell`` pixels.

    Args:
        field: (H, W) or (H, W, C); what is left over of it is cut off.
        cell: Pixels each way.

    Returns:
        (H // cell, W // cell) or (C, H // cell, W // cell), of the same type.
    """
    height, width = (n // cell for n in field.shape[:2])
    return consistency.shrink(field[: height * cell, : width * cell], height, width)


@lru_cache(maxsize=16)
def _middles(grid: PinholeCamera, down: float, right: float, size: tuple[int, int], device: torch.device) -> Tensor:
    """Returns the (H, W) flat places, in a field of ``size``, of the middles of a grid's cells.

    Args:
        grid: Camera of the grid (H, W).
        down: Height of a cell, as a share of the field's.
        right: Its width, likewise.
        size: Rows and columns of the field.
        device: Where they are wanted.
    """
    rows = ((torch.arange(grid.height, device=device) + 0.5) * (down * size[0])).long()
    columns = ((torch.arange(grid.width, device=device) + 0.5) * (right * size[1])).long()
    return rows[:, None] * size[1] + columns


@lru_cache(maxsize=16)
def _pixels(camera: PinholeCamera, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the (2, H, W) pixels of a camera and their (3, H * W) rays with z = 1."""
    pixels = camera.pixels(device=device)
    return pixels.movedim(-1, 0).contiguous(), camera.rays(pixels).flatten(0, 1).T.contiguous()


def cell_of(camera: PinholeCamera) -> int:
    """Returns how many pixels of a camera's dense grid, each way, share one probability."""
    return max(LEAST_CELL, round((camera.width * camera.height / CELLS) ** 0.5))


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
    """Both explanations of where each pixel (H, W) of one view is in another: by the flow, and by the camera's motion.

    Attributes:
        places: (2, 2, H, W) where the two put it; pixels (u, v) of the grid.
        at: (2, H, W) flat places of the other view's pixels nearest to these.
        nearest: (2, H, W) greatest inverse depth around these, NaN unknown.
        still_rho: (H, W) inverse depth where the camera's motion puts it, NaN unknown.
        squared: (H, W) squared Mahalanobis distance between the two, in pixels and inverse depth.
        usable: (H, W) bool: the flow can be trusted and stays in the image.
        margin: (H, W) differences of inverse depth up to which two surfaces are one; NaN where depth is unknown.
    """

    places: Tensor
    at: Tensor
    nearest: Tensor
    still_rho: Tensor
    squared: Tensor
    usable: Tensor
    margin: Tensor


def tell(other: Surface, view: Surface, flow: Tensor, flow_variance: Tensor, motion: Tensor) -> Stories:
    """Works out both stories of where each pixel of one view is in another.

    Args:
        other: The other view.
        view: The view whose pixels are asked for.
        flow: (2, H, W) flow from this view to the other, pixels of their grid.
        flow_variance: (H, W) its variance per component, pixels squared, of which the floors are part.
        motion: (4, 4) float64 ``T_other_view`` of the camera.
    """
    camera, rho, size = view.camera, view.rho.nan_to_num(), view.rho.shape
    (u, v), rays = _pixels(camera, rho.device)
    moved_u, moved_v = flow[0] + u, flow[1] + v

    typical = view.rho.reshape(-1)[::THINNED].nanmedian().nan_to_num(nan=1.0)
    rho_variance = torch.where(view.known, view.variance + (RELATIVE_FLOOR * rho).square_(), (3 * typical) ** 2)
    motion = motion.to(rho)
    x, y, z = (motion[:3, :3] @ rays).reshape(3, *size).addcmul_(motion[:3, 3, None, None], rho)
    over_z = z.clamp_min_(LEAST_DEPTH).reciprocal_()
    x, y = x.mul_(over_z), y.mul_(over_z)
    still_u, still_v = x * camera.fx + camera.cx, y * camera.fy + camera.cy
    by_x, by_y, by_z = motion[:3, 3].tolist()
    by_u = (by_x - by_z * x).mul_(over_z).mul_(camera.fx)
    by_v = (by_y - by_z * y).mul_(over_z).mul_(camera.fy)

    error_u, error_v = moved_u - still_u, moved_v - still_v
    variance = flow_variance + SYSTEMATIC**2 * ((still_u - u).square_() + (still_v - v).square_())
    along = error_u * by_u + error_v * by_v
    denominator = variance + rho_variance * (by_u.square_() + by_v.square_())
    squared = (error_u.square_() + error_v.square_() - rho_variance * along.square_() / denominator) / variance

    # Depth counts as different only when nothing about the place has the right one.
    still_rho = view.rho * over_z
    places = torch.stack((moved_u, moved_v, still_u, still_v)).reshape(2, 2, *size)
    at = index_of(size, places[:, 0], places[:, 1])
    low, high = (_take(limit, at) for limit in other.range)
    gap = torch.maximum(low[0] - still_rho, still_rho - high[0]).clamp_min_(0).nan_to_num_(nan=0.0)
    squared += gap.square_() / (2 * rho_variance)
    return Stories(
        places=places,
        at=at,
        nearest=high,
        still_rho=still_rho,
        squared=squared,
        usable=_inside(size, places[0]),
        margin=3 * rho_variance.sqrt_() + EDGE * still_rho,
    )


def index_of(size: Sequence[int], u: Tensor, v: Tensor) -> Tensor:
    """Returns the flat places (...) of the pixels of a grid (height, width) nearest to columns and rows (...)."""
    height, width = size
    column, row = u.round().clamp_(0, width - 1), v.round().clamp_(0, height - 1)
    return torch.add(column, row, alpha=width).long().clamp_(0, height * width - 1)


def _take(field: Tensor, index: Tensor) -> Tensor:
    """Returns the values (...) of a field at flat places (...); faster than ``take``."""
    return field.reshape(-1).index_select(0, index.reshape(-1)).reshape(index.shape)


def _inside(size: Sequence[int], places: Tensor, border: float = 0.0) -> Tensor:
    """Returns (...) bool: whether places (2, ...), columns and rows, lie in a grid (height, width) off its border."""
    u, v = places
    across, down = 0.5 * (size[1] - 1), 0.5 * (size[0] - 1)
    return ((u - across).abs_() <= across - border) & ((v - down).abs_() <= down - border)


def _read(layers: Tensor, places: Tensor) -> Tensor:
    """Returns the (P, C, H, W) values of fields (C, h, w) at (P, 2, H, W) places (u, v), clamped to the border."""
    last = torch.tensor(layers.shape[:0:-1], dtype=places.dtype, device=places.device) - 1
    grid = (places * (2 / last)[:, None, None] - 1).permute(0, 2, 3, 1)
    layers = layers.expand(len(places), *layers.shape)
    return functional.grid_sample(layers, grid, mode="bilinear", padding_mode="border", align_corners=True)


def _backward(flow: FlowField, cell: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns flow to the view before on a grid of cells.

    Returns:
        (2, H, W) flow and (H, W) variance with its floors, pixels of the grid, and (H, W) bool, where it is trusted.
    """
    backward, variance = _thin(flow.backward, cell).movedim(-1, 0), _thin(flow.backward_variance, cell)
    trusted = variance < FLOW_NOISE**2 + 0.5 * MOST_MISS**2
    return backward / cell, (variance + PIXEL_FLOOR**2) / cell**2, trusted


def _thin(field: Tensor, cell: int) -> Tensor:
    """Returns what a dense field (H, W, ...) is in the middles of cells."""
    height, width = field.shape[0] // cell, field.shape[1] // cell
    return field[cell // 2 :: cell, cell // 2 :: cell][:height, :width]


def evidence(
    seen: Tensor, current: Surface, stories: Stories, hidden: Tensor, through: Tensor, believed: Tensor
) -> tuple[Tensor, Tensor]:
    """Weighs the two stories against each other.

    Args:
        seen: (2, H, W) grey levels seen before where each pixel was if it moved, and where it was if it stood still.
        current: View now.
        stories: Where each pixel was.
        hidden: (H, W) bool: where it would have been if it stood still, something nearer was seen.
        through: (H, W) bool: there, only something farther was seen.
        believed: (H, W) log odds of moving that each pixel starts with.

    Returns:
        (H, W) log likelihood ratio of moving to standing still, zero where nothing tells them apart, and (H, W) bool
        where something does.
    """
    told = stories.usable & current.known
    squared = stories.squared / scatter(stories.squared, told & (believed < 0))
    distance = (0.5 * (squared - SIGNIFICANT)).clamp_(-2, 3)

    # Of a slope, grey levels vary by two thirds of its square over three pixels each way.
    grey = current.grey
    change = (seen[1] - grey).square_() - (seen[0] - grey).square_()
    change, grey, grey_squared = box(torch.stack((change, grey, grey.square())), 1)
    slope = 1.5 * (grey_squared - grey.square_())
    brightness = (0.5 * change / (BRIGHTNESS_NOISE**2 + (SLOPE / current.cell) ** 2 * slope)).clamp_(-2, 2)

    told &= ~hidden
    ratio = torch.where(told, distance + brightness, 0) + SEEN_THROUGH * through
    return torch.where(hidden, UNCOVERED, ratio), told | through | hidden


def scatter(squared: Tensor, typical: Tensor) -> Tensor:
    """Returns by how much, squared, residuals (H, W) scatter more than stated where ``typical``."""
    thinned = squared.reshape(-1)[::THINNED][typical.reshape(-1)[::THINNED]]
    if len(thinned) < 50:
        return squared.new_tensor(1.0)
    return squared.new_tensor(max(spread(thinned), LEAST_SCATTER))


def box(fields: Tensor, radius: int) -> Tensor:
    """Returns the mean of (C, H, W) fields over square windows, cut off at the border."""
    width, values = 2 * radius + 1, fields.cpu().numpy()
    means = np.empty_like(values)
    for field, mean in zip(values, means, strict=True):
        cv2.boxFilter(field, -1, (width, width), dst=mean, normalize=False, borderType=cv2.BORDER_CONSTANT)
    means /= _covered(fields.shape[1], fields.shape[2], radius)
    return torch.from_numpy(means).to(fields.device)


@lru_cache(maxsize=16)
def _covered(height: int, width: int, radius: int) -> NDArray[np.float32]:
    """Returns how many pixels (height, width) the window about each covers."""
    rows, columns = (
        np.convolve(np.ones(length), np.ones(2 * radius + 1))[radius:-radius] for length in (height, width)
    )
    return (rows[:, None] * columns).astype(np.float32)


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
    g = guide.nan_to_num()
    w = weight * known
    wg, wv = w * g, w * values
    sums = box(torch.stack((w, wg, wv, wg * g, wg * values)), RADIUS)
    total = sums[0]
    mean_g, mean_v, gg, gv = sums[1:] / total.clamp_min(1e-6)
    slope = (gv - mean_g * mean_v) / ((gg - mean_g * mean_g).clamp_min_(0) + deviation * deviation)
    constant = mean_v - slope * mean_g
    total, slope, constant = box(torch.stack((total, total * slope, total * constant)), RADIUS)
    return (slope * g + constant) / (total + 0.05) * known


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
        known = self.surface.known
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
        sums = box(torch.stack((near, near * value, far, far * value)), VICINITY)
        beside = (sums[0] > 0.2) & (sums[2] > 0.2)
        ratio = (sums[1] / sums[0] / (sums[3] / sums[2])).log()
        return float(torch.where(beside, ratio, 0).sum() / beside.sum().clamp_min(1))

    @cached_property
    def backed(self) -> float:
        """Share of what stands still that is farther than the middle of what moves, where depth is known; 1 for none.

        Movers stand before the world: where it is nearly zero, what moves is the world, and what stands still hides it.
        """
        known, logit, rho = (
            field.reshape(-1)[::THINNED] for field in (self.surface.known, self.logit, self.surface.rho)
        )
        moves, still = rho[known & (logit > 0)], rho[known & (logit <= 0)]
        if not len(moves) or not len(still):
            return 1.0
        return float((still < moves.median()).double().mean())

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
        """Returns what is doubted of the next image before anything of it is known: where the rough flow takes it.

        Args:
            flow: Dense flow from this image to the next.
        """
        doubt = self.doubt.cpu().numpy()
        row, column = np.nonzero(doubt > 0)
        cell = self.surface.cell
        u, v = _thin(flow.rough, cell).cpu().numpy()[row, column].T / cell
        ahead = np.full_like(doubt, -MOST_LOGIT)
        there = index_of(doubt.shape, *map(torch.from_numpy, (column + u, row + v))).numpy()
        ahead.reshape(-1)[there] = doubt[row, column]
        # What comes nearer leaves gaps.
        closed = cv2.morphologyEx(ahead, cv2.MORPH_CLOSE, np.ones((3, 3), dtype=np.uint8))
        carried = torch.from_numpy(closed).to(self.doubt)
        return replace(self, logit=carried, doubt=carried, past=None, stories=None)

    def mask(self, size: tuple[int, ...], *, doubted: bool = False) -> NDArray[np.bool_]:
        """Returns which pixels of an image of ``size`` (height, width) are likelier to move than to stand still.

        With ``doubted`` those that did so a short while ago are among them.
        """
        belief = (self.doubt if doubted else self.logit).cpu().numpy()
        # The grid ends where no whole cell is left.
        dense, cell = self.surface.dense.shape, self.surface.cell
        right, down = dense[1] / (cell * size[1]), dense[0] / (cell * size[0])
        from_image = np.array([[right, 0, 0.5 * right - 0.5], [0, down, 0.5 * down - 0.5]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        found = cv2.warpAffine(belief, from_image, size[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(found > 0)

    def places(self, camera: PinholeCamera, pixels: Tensor) -> Tensor:
        """Returns where (..., 2) pixels of a camera with the same view at any resolution lie on the grid."""
        right, down = self.camera.fx / camera.fx, self.camera.fy / camera.fy
        first = pixels.new_tensor((self.camera.cx - right * camera.cx, self.camera.cy - down * camera.cy))
        return (pixels * pixels.new_tensor((right, down)) + first).to(self.logit)

    def at(self, camera: PinholeCamera, pixels: Tensor) -> Tensor:
        """Returns the (...) probability at (..., 2) pixels of a camera with the same view at any resolution."""
        return sample(self.logit[..., None], self.places(camera, pixels))[..., 0].sigmoid()

    def doubted(self, camera: PinholeCamera, pixels: Tensor) -> Tensor:
        """Returns (...) bool: what is doubted at (..., 2) pixels of a camera with the same view at any resolution."""
        return self.doubt.take(index_of(self.doubt.shape, *self.places(camera, pixels).unbind(-1))) > 0


def glance(previous: Surface, current: Surface, flow: FlowField, motion: Tensor) -> bool:
    """Tells by few, large cells, and by the rough flow alone, whether anything may move at all."""
    sure = torch.full_like(previous.grey, (FLOW_NOISE**2 + PIXEL_FLOOR**2) / GLANCE_CELL**2)
    stories = tell(current, previous, shrink(flow.rough, GLANCE_CELL) / GLANCE_CELL, sure, motion)
    usable = stories.usable & previous.known
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
        previous: View before, on a grid of cells.
        current: View now.
        flow: Dense flow between the two.
        motion: (4, 4) float64 ``T_current_previous`` of the camera.
        before: What moved in the view before; None where nothing did.
    """
    shift, variance, trusted = _backward(flow, current.cell)
    stories = tell(previous, current, shift, variance, se3.inverse(motion))
    stories = replace(stories, usable=stories.usable & trusted)
    nearest = stories.nearest[1]
    hidden = nearest > stories.still_rho + stories.margin
    through = (nearest < stories.still_rho - stories.margin) & _inside(hidden.shape, stories.places[1], border=1.0)

    # The pixel moves and came with the flow, or it stands still and was where the camera's motion says.
    layers = [previous.grey] if before is None else [previous.grey, before.logit, before.doubt]
    read = _read(torch.stack(layers), stories.places)
    prior = torch.full_like(current.grey, math.log(PRIOR / (1 - PRIOR)))
    doubt = torch.full_like(prior, -MOST_LOGIT)
    if before is not None:
        # Another surface has no past to go by; whether one without depth is the same is known by its lack of it.
        other = (_take(previous.rho, stories.at[0]) - stories.still_rho).abs_() > stories.margin
        new = torch.stack((other, hidden)) | (~current.known & (stories.nearest > -torch.inf))
        moves, stays = torch.where(new, PRIOR, (1 - FADING) * read[:, 1].sigmoid() + FADING * PRIOR)
        prior = (moves / (1 - stays)).log_()
        doubt = torch.where(new[0], doubt, read[0, 2] - RELIEF)
    ratio, told = evidence(read[:, 0], current, stories, hidden, through, prior)
    deviation = 2 * current.variance.sqrt().clamp_max_(1) + 0.5 * EDGE * current.rho.nan_to_num()
    ratio = smooth(ratio, told.to(ratio), current.rho, deviation)
    logit = (prior + ratio).clamp_(-MOST_LOGIT, MOST_LOGIT)
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
    cell = cell_of(camera)
    past = Surface.of(camera, *previous, cell) if before is None else before.surface
    moving = decompose(past, Surface.of(camera, *current, cell), flow, motion, before)
    return moving if moving.doubted_share > LEAST_SHARE else None
