"""A frame as the odometry looks at it: where it shows the points of a keyframe, and how far away they are in it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowodom.depth import InverseDepth
from flowodom.flow import FlowField
from flowodom.flow.consistency import sample
from flowodom.flow.points import follow
from flowodom.frame import Frame
from flowodom.geometry import PinholeCamera
from flowodom.registration.planes import Patches
from flowodom.registration.refine import Matches
from flowodom.registration.shear import rows
from flowodom.scene_flow.moving import Carried, Moving


class Sight(NamedTuple):
    """Where a view shows the points of a keyframe.

    Attributes:
        pixels: (M, 2) float64, NaN where nothing was looked for.
        found: (M,) bool, which were found.
        noise: (M, 2, 2) float64 how errors of these pixels are distributed, see ``match_noise``.
    """

    pixels: Tensor
    found: Tensor
    noise: Tensor


@dataclass(frozen=True)
class View:
    """A frame, prepared.

    Attributes:
        frame: The frame.
        grey: (H, W) uint8.
        dense: (h, w) uint8, grey at the size of the dense fields.
        depth: What the image alone tells of depth; None for nothing.
    """

    frame: Frame
    grey: NDArray[np.uint8]
    dense: Tensor
    depth: InverseDepth | None

    @property
    def camera(self) -> PinholeCamera:
        """The camera of ``grey``."""
        return self.frame.camera

    @property
    def dense_camera(self) -> PinholeCamera:
        """The camera of ``dense``."""
        height, width = self.dense.shape
        return self.camera.resized(width, height)

    @property
    def stamp(self) -> float:
        """Time of the frame, seconds."""
        return self.frame.stamp * 1e-9

    def carried(self, places: Tensor, flow: FlowField) -> Tensor:
        """Returns where dense flow to this view takes pixels (M, 2) of the view before; NaN stays NaN."""
        height, width = self.dense.shape
        scale = torch.tensor((self.camera.width / width, self.camera.height / height), dtype=torch.float64)
        place = places.nan_to_num()
        there = place + sample(flow.rough, (place + 0.5) / scale - 0.5).cpu().double() * scale
        return torch.where(places.isnan(), torch.nan, there)

    def find(
        self,
        patches: Patches,
        expected: Tensor,
        guess: Tensor,
        moving: Moving | Carried | None = None,
        *,
        levels: int = 0,
    ) -> Sight:
        """Finds the points of a keyframe.

        What a mask leaves out is not found, nor is anything looked for where something moves on its own.

        Args:
            patches: What the keyframe shows around its M points.
            expected: (4, 4) ``T_view_keyframe``, about.
            guess: (M, 2) where to begin, NaN for where they are expected.
            moving: What moves on its own in the view; None for nothing.
            levels: See ``follow``.
        """
        reprojected, warps = patches.seen(self.camera, expected)
        start = torch.where(guess.isnan(), reprojected, guess)
        seen, found = start.clone(), self.camera.contains(start)
        if moving is not None:
            found &= ~moving.doubted(self.camera, start)
        asked, among = found.clone(), (patches.places[found], start[found], warps[found])
        seen[asked], found[asked] = follow(patches.grey, self.grey, *among, levels=levels)
        seen[~asked] = torch.nan
        if self.frame.ignore is not None:
            column, row = seen.round().long().unbind(-1)
            inside = self.camera.contains(seen)
            index = row.clamp(0, self.camera.height - 1), column.clamp(0, self.camera.width - 1)
            found &= inside & ~torch.from_numpy(self.frame.ignore)[index]
        return Sight(seen, found, warps @ patches.noise @ warps.mT)

    def matched(self, matches: Matches, sight: Sight, pixel_noise: float) -> Matches:
        """Returns points as they are seen, with the depth that the view has there.

        Args:
            matches: M points.
            sight: Where they are seen.
            pixel_noise: Standard deviation of a match across an edge, pixels.
        """
        rho, variance = self.measured(sight.pixels)
        return replace(
            matches,
            pixels=sight.pixels,
            pixel_covariance=pixel_noise**2 * sight.noise,
            row=rows(self.camera, sight.pixels),
            seen_rho=rho,
            seen_variance=variance,
        )

    def measured(self, pixels: Tensor, *, closely: bool = False) -> tuple[Tensor, Tensor]:
        """Returns what the image alone tells of inverse depth at pixels (M, 2); see ``read``."""
        return read(self.depth, self.camera, pixels, closely=closely)

    def unfit(self, moving: Moving | None) -> NDArray[np.bool_] | None:
        """Returns the (H, W) pixels on which no point may be chosen: what is masked, and what moves."""
        unfit = [] if self.frame.ignore is None else [self.frame.ignore]
        if moving is not None:
            unfit.append(moving.mask(self.grey.shape, doubted=True))
        return np.logical_or.reduce(unfit) if unfit else None


def read(
    depth: InverseDepth | None, camera: PinholeCamera, pixels: Tensor, *, closely: bool = False
) -> tuple[Tensor, Tensor]:
    """Returns inverse depth and variance (M,) of a field at pixels (M, 2) of a camera; unknown where there is no field.

    What the window is going to hold on to is looked at ``closely``; one frame alone hardly gains by it.
    """
    if depth is None:
        blank = torch.full((len(pixels),), torch.nan, dtype=torch.float64)
        return blank, torch.full_like(blank, torch.inf)
    return (depth.of_points if closely else depth.read)(camera, pixels)
