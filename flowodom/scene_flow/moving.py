"""How likely each pixel of an image moves on its own, and what is told by that."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowodom.flow import FlowField
from flowodom.flow.consistency import sample
from flowodom.flow.points import PATCH
from flowodom.geometry import PinholeCamera
from flowodom.scene_flow.grids import Array, Flags, index_of, median
from flowodom.scene_flow.guided_filter import box
from flowodom.scene_flow.hypotheses import Stories
from flowodom.scene_flow.surfaces import THINNED, Surface

PRIOR = 0.02
"""Probability that a pixel of which nothing is known moves."""

MOST_LOGIT = 5.0
"""Log odds beyond which belief does not grow, so that it can change its mind."""

VICINITY = 6
"""Half the width of the window in which what moves is compared with what stands still beside it, pixels of the grid."""


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
        return float((still < median(moves)).mean())

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
        return sigmoid(self.logit)

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
        """Returns (...) bool: whether anything is doubted where patches came from, as the flow beside them tells.

        A patch that straddles the outline of what moves is drawn along by it.

        Args:
            camera: Their camera.
            pixels: (..., 2) pixels in the middles of the patches.
        """
        before, cell = self.before, self.before.surface.cell
        u, v = before.places(camera, *np.moveaxis(pixels.numpy(), -1, 0))
        row, column = np.divmod(index_of(before.doubt.shape, u, v), before.camera.width)
        middle = (row * cell + cell // 2) * self.flow.rough.shape[1] + column * cell + cell // 2
        along = np.moveaxis(self.flow.rough.cpu().numpy().reshape(-1, 2).take(middle, axis=0), -1, 0) / cell
        came = index_of(before.doubt.shape, u - along[0], v - along[1])
        reach = math.ceil(PATCH[0] // 2 * before.camera.fx / camera.fx)
        around = cv2.dilate(before.doubt, np.ones(2 * [2 * reach + 1], dtype=np.uint8))
        return torch.from_numpy(around.take(came) > 0)


def sigmoid(logit: Array) -> Array:
    """Returns the probability (...) of log odds (...)."""
    return 1 / (1 + np.exp(-logit))
