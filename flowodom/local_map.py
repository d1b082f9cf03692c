"""The local map: keyframes that the window has left behind, against which the camera is found again.

Odometry that knows its last keyframes only drifts on where it looks at the same place for the tenth time. Held against
the oldest keyframe that saw what it sees now, its error is that of one look, however long ago that keyframe was.

Source: Klein and Murray, "Parallel Tracking and Mapping for Small AR Workspaces" (ISMAR 2007), for keyframes that stay
and thumbnails that recognise them; Vizzo et al., "KISS-ICP" (2023), for an odometry that holds on to a local map.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowodom.geometry import PinholeCamera, se3
from flowodom.registration.planes import Patches
from flowodom.registration.refine import Matches

OVERLAP = 0.6
"""Share of a keyframe's points that a camera must see, nearly as it saw them, to be held against it."""

REDUNDANT = 0.75
"""The same share from which another keyframe would tell nothing new."""

MOST_PARALLAX = 0.08
"""How far these points may have gone by translation, as a share of the image's width, and ..."""

MOST_STRETCH = 0.25
"""... by how much their distance may have changed, as a share of it, to look nearly the same."""

SAMPLES = 48
"""Points of a keyframe by which overlap is told."""

LEAST_POINTS = 60
"""Points of known depth without which a keyframe is not worth remembering."""

CAPACITY = 64e6
"""Pixels that all remembered images may have together, a byte each."""

THUMBNAIL = (32, 24)
"""Width and height at which images are compared as a whole."""


@dataclass(frozen=True, eq=False)
class Keyframe:
    """What is remembered of a keyframe.

    Attributes:
        grey: (H, W) uint8, its image.
        pose: (4, 4) float64 ``T_odom_keyframe``.
        covariance: (6, 6) of its right perturbation.
        slip: (3,) by how far its place is off, one standard deviation, because the unit of length is; in odom.
        places: (N, 2) float64 pixels at which its image shows its points.
        rays: (N, 3) rays to them, z = 1, free of the shear of its shutter.
        rho: (N,) their inverse depths.
        variance: (N,) of those.
    """

    grey: NDArray[np.uint8]
    pose: Tensor
    covariance: Tensor
    slip: Tensor
    places: Tensor
    rays: Tensor
    rho: Tensor
    variance: Tensor

    @cached_property
    def patches(self) -> Patches:
        """What its image shows around its points."""
        return Patches.around(self.grey, self.places, self.rays, self.rho, self.variance)

    def matches(self) -> Matches:
        """Returns its points as matches that nobody has seen yet."""
        blank = torch.full_like(self.rho, torch.nan)
        return Matches(
            direction=self.rays,
            offset=torch.zeros_like(self.rays),
            rho=self.rho,
            rho_variance=self.variance,
            pixels=blank[:, None].expand(-1, 2),
            pixel_covariance=blank[:, None, None].expand(-1, 2, 2),
            seen_rho=blank,
            seen_variance=torch.full_like(self.rho, torch.inf),
            row=blank,
        )

    def rho_near(self, pixels: Tensor) -> Tensor:
        """Returns the inverse depth (M,) of the point nearest to each of (M, 2) pixels."""
        return self.rho[torch.cdist(pixels, self.places).argmin(1)] if len(pixels) else self.rho[:0]

    @cached_property
    def thumbnail(self) -> NDArray[np.float32]:
        """See ``thumbnail``."""
        return thumbnail(self.grey)


def thumbnail(grey: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns a small copy of an image, of mean zero and length one."""
    small = cv2.GaussianBlur(cv2.resize(grey, THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.float32), (0, 0), 1.0)
    small -= small.mean()
    return np.asarray(small / max(float(np.linalg.norm(small)), 1e-6), dtype=np.float32)


class LocalMap:
    """Keyframes that lie behind, oldest first, as many as there is room for.

    Args:
        camera: The camera.
        origin: (4, 4) float64 ``T_odom_camera`` from where all of them are seen: where the segment began.
    """

    def __init__(self, camera: PinholeCamera, origin: Tensor) -> None:
        self._camera = camera
        self.origin = origin
        self._room = max(8, int(CAPACITY / (camera.width * camera.height)))
        self._keyframes: list[Keyframe] = []
        self._samples = torch.zeros(0, SAMPLES, 4, dtype=torch.float64)

    def __len__(self) -> int:
        return len(self._keyframes)

    def add(self, keyframe: Keyframe) -> None:
        """Remembers a keyframe, unless another one sees the same; where there is no room, the oldest is forgotten."""
        if len(keyframe.rho) < LEAST_POINTS or (self._overlap(keyframe.pose) > REDUNDANT).any():
            return
        if len(self) == self._room:
            self.forget(self._keyframes[0])
        pick = torch.linspace(0, len(keyframe.rho) - 1, SAMPLES).long()
        sample = torch.cat((keyframe.rays[pick], keyframe.rho[pick, None]), dim=-1)
        self._keyframes.append(keyframe)
        self._samples = torch.cat((self._samples, sample[None]))

    def forget(self, keyframe: Keyframe) -> None:
        """Forgets a keyframe: what it shows has changed, or never was as it seemed."""
        index = self._keyframes.index(keyframe)
        self._keyframes.pop(index)
        self._samples = torch.cat((self._samples[:index], self._samples[index + 1 :]))

    def rescale(self, factor: float) -> None:
        """Multiplies what keyframes know of lengths by ``factor``; where they stood has been told, and stays."""
        self._keyframes = [replace(k, rho=k.rho / factor, variance=k.variance / factor**2) for k in self._keyframes]
        self._samples[..., 3] /= factor

    def seen_from(self, pose: Tensor) -> list[Keyframe]:
        """Returns the keyframes that saw what a camera at ``T_odom_camera`` (4, 4) sees, oldest first."""
        return [self._keyframes[int(i)] for i in (self._overlap(pose) > OVERLAP).nonzero()]

    def alike(self, grey: NDArray[np.uint8], count: int) -> list[Keyframe]:
        """Returns the keyframes whose images look most like one (H, W), best first, ``count`` at most."""
        small = thumbnail(grey)
        return sorted(self._keyframes, key=lambda k: -float((k.thumbnail * small).sum()))[:count]

    def _overlap(self, pose: Tensor) -> Tensor:
        """Returns the share of the points of each keyframe (K,) that a camera at a pose sees nearly as it did."""
        if not self._keyframes:
            return torch.zeros(0, dtype=torch.float64)
        change = se3.inverse(pose) @ torch.stack([k.pose for k in self._keyframes])
        turned = self._samples[..., :3] @ change[:, :3, :3].mT
        moved = turned + self._samples[..., 3:] * change[:, None, :3, 3]
        there, by_turn = (self._camera.project(points, min_depth=1e-3) for points in (moved, turned))
        parallax = (there - by_turn).norm(dim=-1)
        stretch = (moved[..., 2] / turned[..., 2].clamp_min(1e-3) - 1).abs()
        alike = (parallax < MOST_PARALLAX * self._camera.width) & (stretch < MOST_STRETCH)
        return (alike & self._camera.contains(there) & (moved[..., 2] > 1e-3)).double().mean(-1)
