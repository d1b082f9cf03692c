"""What moves on its own: a probability for every pixel, from what the camera's motion leaves unexplained.

For each pixel of the current image there are two stories. It stands still: then the camera's motion says where it was
before, at which depth and how bright. Or it moves: then the flow says where it was. The two are compared by the
distance between the two places (the pose fit's measure, in pixels and inverse depth, with its covariance), by the
brightness at each, and by whether something farther was seen through the place where it should have been. The logarithm
of the likelihood ratio is smoothed along surfaces, never across edges of depth, and added to what was believed of the
same point in the image before. Little is believed at first, and beliefs fade: the world is as static as possible.

All of it is told by some thousand cells, of which NumPy and OpenCV on the processor make shorter work than torch does
anywhere: what images and fields on a GPU say of the cells is brought over first.

Source: Bayes' rule in log odds, as in Moravec and Elfes, "High Resolution Maps from Wide Angle Sonar" (1985); He, Sun
and Tang, "Guided Image Filtering" (2010); the prior on stillness as in Yang et al., "Flux4D" (2025).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowodom.depth import InverseDepth
from flowodom.flow import FlowField, consistency
from flowodom.flow.consistency import FLOW_NOISE, sample
from flowodom.geometry import PinholeCamera, se3
from flowodom.registration.refine import MOST_SPREAD, QUANTILE_OF_TWO, SPREAD_QUANTILE
from flowodom.registration.reprojection import LEAST_DEPTH

Array = NDArray[Any]
Flags = NDArray[np.bool_]

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
        variance: (H, W) float32 its variance, infinite where unknown.
        dense: (h, w) uint8 grey of the dense grid.
        depth: What ``rho`` and ``variance`` were taken from, at any resolution.
    """

    camera: PinholeCamera
    grey: Array
    rho: Array
    variance: Array
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
        rho, variance = (
            field.reshape(-1).index_select(0, index).reshape(grid.height, grid.width).cpu().numpy()
            for field in (depth.mean, depth.variance)
        )
        grey = shrink(dense if dense.is_cpu else dense.float(), cell).astype(np.float32)
        return cls(grid, grey, rho, variance, dense, depth)

    @property
    def cell(self) -> int:
        """Pixels of the dense grid each way that are one here."""
        return self.dense.shape[1] // self.camera.width

    @cached_property
    def known(self) -> Flags:
        """(H, W): its inverse depth is known."""
        return self.variance < np.inf

    @cached_property
    def filled(self) -> Array:
        """(H, W) inverse depth, zero where it is unknown."""
        return np.where(np.isnan(self.rho), np.float32(0), self.rho)

    @cached_property
    def range(self) -> tuple[Array, Array]:
        """Least and greatest inverse depth, each (H, W), in the neighbourhood of each pixel; NaN where none is."""
        square, blank = np.ones((3, 3), dtype=np.uint8), np.isnan(self.rho)
        far = cv2.erode(np.where(blank, np.float32(np.inf), self.rho), square)
        near = cv2.dilate(np.where(blank, np.float32(-np.inf), self.rho), square)
        none = np.isinf(far)
        far[none], near[none] = np.nan, np.nan
        return far, near


def shrink(field: Tensor, cell: int) -> Array:
    """Returns the means over cells of ``cell`` by ``cell`` pixels.

    Args:
        field: (H, W) or (H, W, C); what is left over of it is cut off.
        cell: Pixels each way.

    Returns:
        (H // cell, W // cell) or (C, H // cell, W // cell), of the same type.
    """
    height, width = (n // cell for n in field.shape[:2])
    return consistency.shrink(field[: height * cell, : width * cell], height, width).cpu().numpy()


@lru_cache(maxsize=16)
def _middles(grid: PinholeCamera, down: float, right: float, size: tuple[int, int], device: torch.device) -> Tensor:
    """Returns the (H * W,) flat places, in a field of ``size``, of the middles of a grid's cells.

    Args:
        grid: Camera of the grid (H, W).
        down: Height of a cell, as a share of the field's.
        right: Its width, likewise.
        size: Rows and columns of the field.
        device: Where they are wanted.
    """
    rows = ((torch.arange(grid.height, device=device) + 0.5) * (down * size[0])).long()
    columns = ((torch.arange(grid.width, device=device) + 0.5) * (right * size[1])).long()
    return (rows[:, None] * size[1] + columns).flatten()


@lru_cache(maxsize=16)
def pixel_rays(camera: PinholeCamera) -> tuple[Array, Array]:
    """Returns the (2, H, W) pixels of a camera and their (3, H * W) rays with z = 1."""
    pixels = camera.pixels()
    rays = camera.rays(pixels).flatten(0, 1).T
    return tuple(np.ascontiguousarray(part.numpy()) for part in (pixels.movedim(-1, 0), rays))  # type: ignore[return-value]


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
        places: (2, 2, H, W) float32 where the two put it; pixels (u, v) of the grid.
        at: (2, H, W) flat places of the other view's pixels nearest to these.
        nearest: (2, H, W) greatest inverse depth around these, NaN unknown.
        still_rho: (H, W) inverse depth where the camera's motion puts it, NaN unknown.
        squared: (H, W) squared Mahalanobis distance between the two, in pixels and inverse depth.
        usable: (H, W) bool: the flow can be trusted and stays in the image.
        margin: (H, W) differences of inverse depth up to which two surfaces are one; NaN where depth is unknown.
    """

    places: Array
    at: NDArray[np.intp]
    nearest: Array
    still_rho: Array
    squared: Array
    usable: Flags
    margin: Array


def tell(other: Surface, view: Surface, flow: Array, flow_variance: Array | float, motion: Tensor) -> Stories:
    """Works out both stories of where each pixel of one view is in another.

    Args:
        other: The other view.
        view: The view whose pixels are asked for.
        flow: (2, H, W) flow from this view to the other, pixels of their grid.
        flow_variance: (H, W) its variance per component, pixels squared, of which the floors are part, or that of all.
        motion: (4, 4) float64 ``T_other_view`` of the camera.
    """
    camera, rho, size = view.camera, view.filled, view.rho.shape
    pixels, rays = pixel_rays(camera)
    places = np.empty((2, 2, *size), dtype=np.float32)
    moved, still = np.add(flow, pixels, out=places[0]), places[1]

    typical = _median(view.rho.reshape(-1)[::THINNED])
    rho_variance = np.where(view.known, view.variance + np.square(RELATIVE_FLOOR * rho), np.square(3 * typical))
    rows = motion[:3].numpy().astype(np.float32)
    place, shift = (rows[:, :3] @ rays).reshape(3, *size), rows[:, 3, None, None]
    place += shift * rho
    over_z = 1 / np.maximum(place[2], np.float32(LEAST_DEPTH))
    focal, centre = (
        np.array(pair, dtype=np.float32)[:, None, None] for pair in ((camera.fx, camera.fy), (camera.cx, camera.cy))
    )
    on_plane = place[:2] * over_z
    np.add(on_plane * focal, centre, out=still)
    by_rho = (shift[:2] - shift[2] * on_plane) * (over_z * focal)

    error = moved - still
    variance = flow_variance + np.float32(SYSTEMATIC**2) * square(still - pixels)
    along = error[0] * by_rho[0] + error[1] * by_rho[1]
    squared = square(error) - rho_variance * np.square(along) / (variance + rho_variance * square(by_rho))
    squared /= variance

    # Depth counts as different only when nothing about the place has the right one.
    still_rho = view.rho * over_z
    at = index_of(size, places[:, 0], places[:, 1])
    far, near = other.range
    nearest = near.take(at)
    gap = np.fmax(np.maximum(far.take(at[0]) - still_rho, still_rho - nearest[0]), np.float32(0))
    with np.errstate(over="ignore"):
        squared += np.square(gap) / (2 * rho_variance)
    return Stories(
        places=places,
        at=at,
        nearest=nearest,
        still_rho=still_rho,
        squared=squared,
        usable=_inside(size, moved),
        margin=3 * np.sqrt(rho_variance) + EDGE * still_rho,
    )


def _median(values: Array) -> Any:
    """Returns the median of values (N,), the lower one of two, of which NaN is none; 1 for none."""
    values = values[~np.isnan(values)]
    middle = (len(values) - 1) // 2
    return np.partition(values, middle)[middle] if len(values) else np.float32(1)


def square(vectors: Array) -> Array:
    """Returns the (H, W) squared lengths of vectors (2, H, W)."""
    return vectors[0] * vectors[0] + vectors[1] * vectors[1]


def index_of(size: Sequence[int], u: Array, v: Array) -> NDArray[np.intp]:
    """Returns the flat places (...) of the pixels of a grid (height, width) nearest to columns and rows (...)."""
    height, width = size
    column, row = np.rint(u).clip(0, width - 1), np.rint(v).clip(0, height - 1)
    return (row * width + column).astype(np.intp)


def _inside(size: Sequence[int], places: Array, border: float = 0.0) -> Flags:
    """Returns (H, W): whether places (2, H, W), columns and rows, lie in a grid (height, width) off its border."""
    across, down = 0.5 * (size[1] - 1), 0.5 * (size[0] - 1)
    return (np.abs(places[0] - across) <= across - border) & (np.abs(places[1] - down) <= down - border)


def _read(layers: Sequence[Array], places: Array) -> list[Array]:
    """Returns the values (...) of each field (h, w) at places (2, ...), columns and rows, clamped to the border."""
    # OpenCV cuts pixels into 32 parts each way, which is finer than anything here.
    merged = layers[0] if len(layers) == 1 else cv2.merge(layers)
    u, v = places.reshape(2, -1, places.shape[-1])
    values = cv2.remap(merged, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    parts = [values] if len(layers) == 1 else cv2.split(values)
    return [part.reshape(places.shape[1:]) for part in parts]


def _backward(flow: FlowField, cell: int) -> tuple[Array, Array, Flags]:
    """Returns flow to the view before on a grid of cells.

    Returns:
        (2, H, W) flow and (H, W) variance with its floors, pixels of the grid, and (H, W), where it is trusted.
    """
    backward, variance = (_thin(field, cell).cpu().numpy() for field in (flow.backward, flow.backward_variance))
    trusted = variance < FLOW_NOISE**2 + 0.5 * MOST_MISS**2
    return np.ascontiguousarray(np.moveaxis(backward, -1, 0)) / cell, (variance + PIXEL_FLOOR**2) / cell**2, trusted


def _thin(field: Tensor, cell: int) -> Tensor:
    """Returns what a dense field (H, W, ...) is in the middles of cells."""
    height, width = field.shape[0] // cell, field.shape[1] // cell
    return field[cell // 2 :: cell, cell // 2 :: cell][:height, :width]


def evidence(
    moved: Array, stayed: Array, current: Surface, stories: Stories, hidden: Flags, through: Flags, believed: Array
) -> tuple[Array, Flags]:
    """Weighs the two stories against each other.

    Args:
        moved: (H, W) grey levels seen before where each pixel was if it moved.
        stayed: (H, W) those seen where it was if it stood still.
        current: View now.
        stories: Where each pixel was.
        hidden: (H, W): where it would have been if it stood still, something nearer was seen.
        through: (H, W): there, only something farther was seen.
        believed: (H, W) log odds of moving that each pixel starts with.

    Returns:
        (H, W) log likelihood ratio of moving to standing still, zero where nothing tells them apart, and (H, W) where
        something does.
    """
    told = stories.usable & current.known
    distance = stories.squared * (0.5 / scatter(stories.squared, told & (believed < 0))) - 0.5 * SIGNIFICANT
    distance.clip(-2, 3, out=distance)

    # Of a slope, grey levels vary by two thirds of its square over three pixels each way.
    grey = current.grey
    change = np.square(stayed - grey) - np.square(moved - grey)
    change, mean, squared = box((change, grey, np.square(grey)), 1)
    slope = 1.5 * (squared - np.square(mean))
    brightness = 0.5 * change / (BRIGHTNESS_NOISE**2 + (SLOPE / current.cell) ** 2 * slope)

    told &= ~hidden
    ratio = np.where(told, distance + brightness.clip(-2, 2), np.float32(0)) + np.float32(SEEN_THROUGH) * through
    ratio[hidden] = UNCOVERED
    return ratio, told | through | hidden


def scatter(squared: Array, typical: Flags) -> float:
    """Returns by how much, squared, residuals (H, W) scatter more than stated where ``typical``."""
    thinned = squared.reshape(-1)[::THINNED][typical.reshape(-1)[::THINNED]]
    if len(thinned) < 50:
        return 1.0
    rank = int(SPREAD_QUANTILE * (len(thinned) - 1))
    return min(max(float(np.partition(thinned, rank)[rank]) / QUANTILE_OF_TWO, LEAST_SCATTER), MOST_SPREAD)


def box(fields: Sequence[Array], radius: int) -> list[Array]:
    """Returns the means of fields (H, W) over square windows, cut off at the border."""
    size = (2 * radius + 1, 2 * radius + 1)
    covered = _covered(*fields[0].shape, radius)
    return [
        np.divide(cv2.boxFilter(f, -1, size, normalize=False, borderType=cv2.BORDER_CONSTANT), covered) for f in fields
    ]


@lru_cache(maxsize=16)
def _covered(height: int, width: int, radius: int) -> Array:
    """Returns how many pixels (height, width) the window about each covers."""
    rows, columns = (
        np.convolve(np.ones(length), np.ones(2 * radius + 1))[radius:-radius] for length in (height, width)
    )
    return (rows[:, None] * columns).astype(np.float32)


def smooth(values: Array, weight: Array, guide: Array, deviation: Array) -> Array:
    """Smooths along surfaces: in each window the values are a linear function of the guide.

    Args:
        values: (H, W) to be smoothed.
        weight: (H, W) in [0, 1], how far each is known.
        guide: (H, W), NaN unknown.
        deviation: (H, W) differences of the guide that mean nothing.

    Returns:
        (H, W) smoothed values, shrunk to zero where little is known; zero where the guide is unknown.
    """
    known = ~np.isnan(guide)
    g = np.where(known, guide, np.float32(0))
    w = np.where(known, weight, np.float32(0))
    wg, wv = w * g, w * values
    total, mean_g, mean_v, gg, gv = box((w, wg, wv, wg * g, wg * values), RADIUS)
    over = 1 / np.maximum(total, np.float32(1e-6))
    mean_g *= over
    mean_v *= over
    spread_g = np.maximum(gg * over - np.square(mean_g), np.float32(0))
    slope = (gv * over - mean_g * mean_v) / (spread_g + np.square(deviation))
    constant = mean_v - slope * mean_g
    total, slope, constant = box((total, total * slope, total * constant), RADIUS)
    return (slope * g + constant) / (total + np.float32(0.05)) * known


def _sigmoid(logit: Array) -> Array:
    """Returns the probability (...) of log odds (...)."""
    return 1 / (1 + np.exp(-logit))


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
    logit: Array
    doubt: Array
    surface: Surface
    past: Surface | None = None
    stories: Stories | None = None

    @cached_property
    def share(self) -> float:
        """Share of the pixels of known depth that are likelier to move than to stand still."""
        known = self.surface.known
        return float(np.count_nonzero((self.logit > 0) & known)) / max(int(np.count_nonzero(known)), 1)

    @cached_property
    def doubted_share(self) -> float:
        """Share of the pixels that are doubted."""
        return float(np.count_nonzero(self.doubt > 0)) / self.doubt.size

    @cached_property
    def nearness(self) -> float:
        """By how much what moves is nearer than what stands still beside it: mean of the log ratio, 0 where unknown."""
        value, known = self.surface.filled, ~np.isnan(self.surface.rho)
        near, far = ((flags & known).astype(np.float32) for flags in (self.logit > 0, ~(self.logit > 0)))
        near, near_rho, far, far_rho = box((near, near * value, far, far * value), VICINITY)
        beside = (near > 0.2) & (far > 0.2)
        ratio = np.log(near_rho[beside] / near[beside] / (far_rho[beside] / far[beside]))
        return float(ratio.sum() / max(len(ratio), 1))

    @cached_property
    def backed(self) -> float:
        """Share of what stands still that is farther than the middle of what moves, where depth is known; 1 for none.

        Movers stand before the world: where it is nearly zero, what moves is the world, and what stands still hides it.
        """
        fields: tuple[Array, ...] = (self.surface.known, self.logit, self.surface.rho)
        known, logit, rho = (field.reshape(-1)[::THINNED] for field in fields)
        moves, still = rho[known & (logit > 0)], rho[known & (logit <= 0)]
        if not len(moves) or not len(still):
            return 1.0
        return float((still < _median(moves)).mean())

    def unbiased(self) -> Moving:
        """Returns what is believed where moving and standing still were equally likely before: for a first pair."""
        logit = self.logit - np.float32(math.log(PRIOR / (1 - PRIOR)))
        return replace(self, logit=logit, doubt=np.maximum(logit, self.doubt))

    def swapped(self) -> Moving:
        """Returns the opposite: what stood still moves, and what moved stands still."""
        return replace(self, logit=-self.logit, doubt=-self.doubt, past=None, stories=None)

    @property
    def probability(self) -> Array:
        """(H, W) in [0, 1]."""
        return _sigmoid(self.logit)

    def carried(self, flow: FlowField) -> Carried:
        """Returns what is doubted of the next image before anything of it is known.

        Args:
            flow: Dense flow from this image to the next.
        """
        return Carried(self, flow)

    def mask(self, size: tuple[int, ...], *, doubted: bool = False) -> Flags:
        """Returns which pixels of an image of ``size`` (height, width) are likelier to move than to stand still.

        With ``doubted`` those that did so a short while ago are among them.
        """
        belief = self.doubt if doubted else self.logit
        # The grid ends where no whole cell is left.
        dense, cell = self.surface.dense.shape, self.surface.cell
        right, down = dense[1] / (cell * size[1]), dense[0] / (cell * size[0])
        from_image = np.array([[right, 0, 0.5 * right - 0.5], [0, down, 0.5 * down - 0.5]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        found = cv2.warpAffine(belief, from_image, size[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(found > 0)

    def places(self, camera: PinholeCamera, u: Any, v: Any) -> tuple[Any, Any]:
        """Returns which columns and rows (...) of the grid those of a camera with the same view, any size, are."""
        right, down = self.camera.fx / camera.fx, self.camera.fy / camera.fy
        return u * right + (self.camera.cx - right * camera.cx), v * down + (self.camera.cy - down * camera.cy)

    def at(self, camera: PinholeCamera, pixels: Tensor) -> Tensor:
        """Returns the (...) probability at (..., 2) pixels of a camera with the same view at any resolution."""
        places = torch.stack(self.places(camera, *pixels.unbind(-1)), dim=-1)
        return sample(torch.from_numpy(self.logit).to(pixels.device)[..., None], places.float())[..., 0].sigmoid()

    def index(self, camera: PinholeCamera, pixels: Tensor) -> NDArray[np.intp]:
        """Returns the flat places (...) on the grid of (..., 2) pixels of a camera with the same view at any size."""
        return index_of(self.doubt.shape, *self.places(camera, *np.moveaxis(pixels.cpu().numpy(), -1, 0)))

    def doubted(self, camera: PinholeCamera, pixels: Tensor) -> Tensor:
        """Returns (...) bool: what is doubted at (..., 2) pixels of a camera with the same view at any resolution."""
        return torch.from_numpy(self.doubt.take(self.index(camera, pixels)) > 0)


@dataclass(frozen=True)
class Carried:
    """What is doubted of an image of which nothing is known but the rough flow that leads to it.

    Attributes:
        before: What moved in the image before.
        flow: Dense flow from that image.
    """

    before: Moving
    flow: FlowField

    def doubted(self, camera: PinholeCamera, pixels: Tensor) -> Tensor:
        """Returns (...) bool: what is doubted where (..., 2) pixels of a camera came from, as the flow beside tells."""
        before, cell = self.before, self.before.surface.cell
        u, v = before.places(camera, *np.moveaxis(pixels.numpy(), -1, 0))
        row, column = np.divmod(index_of(before.doubt.shape, u, v), before.camera.width)
        middle = (row * cell + cell // 2) * self.flow.rough.shape[1] + column * cell + cell // 2
        along = np.moveaxis(self.flow.rough.cpu().numpy().reshape(-1, 2).take(middle, axis=0), -1, 0) / cell
        came = index_of(before.doubt.shape, u - along[0], v - along[1])
        return torch.from_numpy(before.doubt.take(came) > 0)


def glance(previous: Surface, current: Surface, flow: FlowField, motion: Tensor) -> bool:
    """Tells by few, large cells, and by the rough flow alone, whether anything may move at all."""
    sure = (FLOW_NOISE**2 + PIXEL_FLOOR**2) / GLANCE_CELL**2
    stories = tell(current, previous, shrink(flow.rough, GLANCE_CELL) / GLANCE_CELL, sure, motion)
    usable = stories.usable & previous.known
    moves = usable & (stories.squared > GLANCE_SIGNIFICANT * scatter(stories.squared, usable))
    # Alone it is an error of the flow; with its neighbours it is a thing.
    return bool((box((moves.astype(np.float32),), 1)[0] > 0.85).mean() > GLANCE_SHARE)


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
    greys, *beliefs = _read(layers, np.moveaxis(stories.places, 0, 1))
    if before is None:
        prior = np.full_like(current.grey, math.log(PRIOR / (1 - PRIOR)))
        doubt = np.full_like(prior, -MOST_LOGIT)
    else:
        # Another surface has no past to go by; whether one without depth is the same is known by its lack of it.
        other = np.abs(previous.rho.take(stories.at[0]) - stories.still_rho) > stories.margin
        new = np.stack((other, hidden)) | (~current.known & (stories.nearest > -np.inf))
        logits, doubts = beliefs
        moves, stays = np.where(new, np.float32(PRIOR), (1 - FADING) * _sigmoid(logits) + FADING * PRIOR)
        prior = np.log(moves / (1 - stays))
        doubt = np.where(new[0], np.float32(-MOST_LOGIT), doubts[0] - np.float32(RELIEF))
    ratio, told = evidence(greys[0], greys[1], current, stories, hidden, through, prior)
    deviation = 2 * np.sqrt(np.minimum(current.variance, np.float32(1))) + np.float32(0.5 * EDGE) * current.filled
    logit = (prior + smooth(ratio, told.astype(np.float32), current.rho, deviation)).clip(-MOST_LOGIT, MOST_LOGIT)
    return Moving(current.camera, logit, np.maximum(logit, doubt), current, previous, stories)


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
