"""What moves on its own: a probability for every pixel, from what the camera's motion leaves unexplained.

For each pixel of the current image there are two stories. It stands still: then the camera's motion says where it was
before, at which depth and how bright. Or it moves: then the flow says where it was. The two are compared by the
distance between the two places (the pose fit's measure, in pixels and inverse depth, with its covariance), by the
brightness at each, and by whether something farther was seen through the place where it should have been. The logarithm
of the likelihood ratio is smoothed along surfaces, never across edges of depth, and added to what was believed of the
same point in the image before. Little is believed at first, and beliefs fade: the world is as static as possible.

Source: Bayes' rule in log odds, as in Moravec and Elfes, "High Resolution Maps from Wide Angle Sonar" (1985); the prior
on stillness as in Yang et al., "Flux4D" (2025).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from torch import Tensor

from flowodom.depth import InverseDepth
from flowodom.flow import FlowField
from flowodom.flow.consistency import FLOW_NOISE
from flowodom.geometry import PinholeCamera, se3
from flowodom.registration.refine import MOST_SPREAD, QUANTILE_OF_TWO, SPREAD_QUANTILE
from flowodom.scene_flow.grids import Array, Flags, inside
from flowodom.scene_flow.guided_filter import box, smooth
from flowodom.scene_flow.hypotheses import EDGE, Stories, tell
from flowodom.scene_flow.moving import MOST_LOGIT, PRIOR, Moving, sigmoid
from flowodom.scene_flow.surfaces import THINNED, Surface, cell_of, shrink, thin

GLANCE_CELL = 8
"""Pixels of the dense grid, each way, that share one residual in the first glance."""

GLANCE_SHARE = 0.005
"""Share of the first glance's cells that must disagree with the camera's motion for a closer look."""

GLANCE_SIGNIFICANT = 27.0
"""Squared Mahalanobis distance from which a cell of the first glance disagrees: the rough flow has large errors."""

FADING = 0.1
"""Share by which belief returns to the prior from one frame to the next."""

RELIEF = 0.1
"""By how much doubt lessens from one frame to the next: what has moved is left out of the pose fit for a while."""

LEAST_SHARE = 0.0005
"""Share of the pixels that must be likelier to move than not for anything to be remembered."""

SIGNIFICANT = 8.0
"""Squared Mahalanobis distance of the two stories' places at which neither is the likelier."""

PIXEL_FLOOR = 0.15
"""Standard deviation, pixels of the dense grid, that no flow is surer than."""

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


def _backward(flow: FlowField, cell: int) -> tuple[Array, Array, Flags]:
    """Returns flow to the view before on a grid of cells.

    Returns:
        (2, H, W) flow and (H, W) variance with its floors, pixels of the grid, and (H, W), where it is trusted.
    """
    backward, variance = (thin(field, cell).cpu().numpy() for field in (flow.backward, flow.backward_variance))
    trusted = variance < FLOW_NOISE**2 + 0.5 * MOST_MISS**2
    return np.ascontiguousarray(np.moveaxis(backward, -1, 0)) / cell, (variance + PIXEL_FLOOR**2) / cell**2, trusted


def _read(layers: Sequence[Array], places: Array) -> list[Array]:
    """Returns the values (...) of each field (h, w) at places (2, ...), columns and rows, clamped to the border."""
    # OpenCV cuts pixels into 32 parts each way, which is finer than anything here.
    merged = layers[0] if len(layers) == 1 else cv2.merge(layers)
    u, v = places.reshape(2, -1, places.shape[-1])
    values = cv2.remap(merged, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    parts = [values] if len(layers) == 1 else cv2.split(values)
    return [part.reshape(places.shape[1:]) for part in parts]


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
    through = (nearest < stories.still_rho - stories.margin) & inside(hidden.shape, stories.places[1], border=1.0)

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
        moves, stays = np.where(new, np.float32(PRIOR), (1 - FADING) * sigmoid(logits) + FADING * PRIOR)
        prior = np.log(moves / (1 - stays))
        # Of what comes into sight nobody knows that it has moved.
        unseen = new[0] | ~inside(hidden.shape, stories.places[0])
        doubt = np.where(unseen, np.float32(-MOST_LOGIT), doubts[0] - np.float32(RELIEF))
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
