"""Depth from the two cameras of a stereo rig.

Both images are turned, in thought, until their rows lie along the baseline; then what is at infinity lies at the same
place in both, and what is nearer is shifted along the row, by its disparity ``focal * baseline / depth``. A matcher
finds disparities of all pixels at a small size. Its errors are a fixed share of a pixel, so those of inverse depth are the
same near and far. The few points that the pose is fitted to are matched again, at full size, by Lucas-Kanade, which is
several times as sharp.

Source: Fusiello, Trucco and Verri, "A Compact Algorithm for Rectification of Stereo Pairs" (2000); Hirschmueller,
"Stereo Processing by Semiglobal Matching and Mutual Information" (2008), through OpenCV.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowodom.config import DepthConfig
from flowodom.depth import FramePair, InverseDepth
from flowodom.flow.points import follow, turn
from flowodom.frame import Frame, OtherEye
from flowodom.geometry import PinholeCamera

PIXELS = 60_000
"""Pixels of the images that are matched densely."""

WIDEST = 0.125
"""Greatest disparity that is looked for, as a share of the image's width."""

LEAST = -2
"""Least disparity that is looked for: what is at infinity scatters about zero."""

BLOCK = 3
"""Side of the window of the matcher, pixels."""

UNIQUENESS = 10
"""By how many per cent the best match must be better than the next one elsewhere."""

SPECKLE = 40
"""Pixels that must share a surface to be believed."""

DENSE_NOISE = 0.35
"""Standard deviation of the matcher's disparities, pixels of the images that it matches."""

AGREEMENT = 4.0
"""Deviations of the matcher's disparity within which a sharper one must lie."""

OFF_LINE = 1.0
"""Most pixels by which a point may be seen off the line on which the other camera must see it."""

FARTHEST = 0.1
"""Least inverse depth, in its own deviations: a disparity below zero is one of something very far."""

MOST_RELATIVE = 0.5
"""Greatest relative deviation at which inverse depth counts as known to those who want to see it."""

class Rig:
    """Two cameras that see the same things, and how to bring their images side by side.

    Args:
        camera: Camera of the first image.
        eye: The other one.
    """

    def __init__(self, camera: PinholeCamera, eye: OtherEye) -> None:
        other, motion, rectified = eye.camera, eye.motion, eye.upright
        self.camera = camera
        self._other_camera, self._motion = other, motion
        self.shift = motion[:3, :3].T @ motion[:3, 3]
        """(3,) where a point at the first camera's origin is seen by the other one, were it not turned."""
        self.baseline = float(self.shift.norm())
        scale = min(1.0, (PIXELS / (camera.width * camera.height)) ** 0.5)
        self.grid = camera.scaled(scale)
        """Camera of the field: the first one at the size that is matched."""
        size, place = _frame_of(self.grid, rectified)
        self._size = size
        self._focal = self.grid.focal
        inverse = torch.linalg.inv
        self._from_grid = place @ rectified @ inverse(_matrix(self.grid))
        small = other.scaled(min(1.0, self._focal / other.focal))
        self._other = small
        self._from_other = place @ rectified @ motion[:3, :3].T @ inverse(_matrix(small))
        rays = self.grid.rays(self.grid.pixels(dtype=torch.float64)) @ rectified.T
        self.per_disparity = (rays[..., 2] / (self._focal * self.baseline)).float()
        """(H, W) inverse depth of one pixel of disparity, on ``grid``."""
        self.level = _matrix(camera) @ motion[:3, :3].T @ inverse(_matrix(other))
        """(3, 3) from the other image's pixels to those of the first camera, put in the place of the other."""

    def fits(self, camera: PinholeCamera, eye: OtherEye) -> bool:
        """Tells whether it is the rig of these two cameras."""
        cameras = camera == self.camera and eye.camera == self._other_camera
        return cameras and torch.equal(eye.motion, self._motion)

    def match(self, grey: NDArray[np.uint8], other: NDArray[np.uint8], nearest: float) -> NDArray[np.float32]:
        """Returns the disparities (H, W) of ``grid``, pixels, NaN where there is no match.

        Args:
            grey: (H, W) uint8 of the first camera.
            other: (H, W) uint8 of the other one.
            nearest: Least depth that is looked for, metres.
        """
        first = self._rectify(grey, self.grid, self._from_grid)
        second = self._rectify(other, self._other, self._from_other)
        widest = min(WIDEST * self._size[0], self._focal * self.baseline / max(nearest, 1e-3))
        count = 16 * int(np.ceil((widest - LEAST) / 16))
        matcher = cv2.StereoSGBM.create(
            minDisparity=LEAST,
            numDisparities=count,
            blockSize=BLOCK,
            P1=8 * BLOCK**2,
            P2=32 * BLOCK**2,
            disp12MaxDiff=1,
            preFilterCap=31,
            uniquenessRatio=UNIQUENESS,
            speckleWindowSize=SPECKLE,
            speckleRange=1,
            mode=cv2.StereoSGBM_MODE_SGBM_3WAY,
        )
        # The matcher passes over the columns in which the widest disparity would lead out of the image.
        pad = count + LEAST
        first, second = (cv2.copyMakeBorder(i, 0, 0, pad, 0, cv2.BORDER_REPLICATE) for i in (first, second))
        found = matcher.compute(first, second)[:, pad:].astype(np.float32) / 16
        inside = np.arange(found.shape[1], dtype=np.float32) - found >= 0
        found[(found < LEAST) | ~inside] = np.nan
        if _is_identity(self._from_grid):
            return found
        return np.asarray(
            cv2.warpPerspective(
                found,
                self._from_grid.numpy(),
                (self.grid.width, self.grid.height),
                flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_CONSTANT,
                borderValue=(float("nan"),),
            ),
            dtype=np.float32,
        )

    def _rectify(self, image: NDArray[np.uint8], small: PinholeCamera, homography: Tensor) -> NDArray[np.uint8]:
        """Returns an image at the size that is matched, its rows along the baseline."""
        size = (small.width, small.height)
        if image.shape[::-1] != size:
            image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
        if size == self._size and _is_identity(homography):
            return image
        return np.asarray(
            cv2.warpPerspective(image, homography.numpy(), self._size, borderMode=cv2.BORDER_REPLICATE), dtype=np.uint8
        )


def _matrix(camera: PinholeCamera) -> Tensor:
    return torch.tensor(((camera.fx, 0, camera.cx), (0, camera.fy, camera.cy), (0, 0, 1)), dtype=torch.float64)


def _is_identity(homography: Tensor) -> bool:
    return bool((homography - torch.eye(3, dtype=torch.float64)).abs().max() < 1e-6)


def _frame_of(camera: PinholeCamera, rectified: Tensor) -> tuple[tuple[int, int], Tensor]:
    """Returns size and matrix (3, 3) of the turned camera that sees all that ``camera`` sees."""
    right, bottom = camera.width - 1, camera.height - 1
    corners = torch.tensor(((0, 0), (right, 0), (0, bottom), (right, bottom)), dtype=torch.float64)
    rays = camera.rays(corners) @ rectified.T
    seen = camera.focal * rays[:, :2] / rays[:, 2:].clamp_min(0.1)
    least, most = seen.min(0).values, seen.max(0).values
    width, height = (min(int(n), 2 * (right + bottom)) for n in (most - least + 1.5).tolist())
    u, v = least.tolist()
    focal = camera.focal
    return (width, height), torch.tensor(((focal, 0, -u), (0, focal, -v), (0, 0, 1)), dtype=torch.float64)


@dataclass(frozen=True)
class PairDepth(InverseDepth):
    """What a stereo pair tells of a frame: of all pixels roughly, of single points sharply.

    Attributes:
        frame: The frame.
        rig: Its two cameras.
        noise: Standard deviation of a single point's disparity, pixels of the frame.
    """

    frame: Frame
    rig: Rig
    noise: float

    def of_points(self, camera: PinholeCamera, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Matches a few points of the frame at full size; see ``InverseDepth``."""
        rho, variance = super().of_points(camera, pixels)
        known = variance.isfinite()
        if not known.any():
            return rho, variance
        assert self.frame.other is not None
        there, shift = camera.rays(pixels[known]), self.rig.shift
        guess = camera.project(there + rho[known, None] * shift)
        level = _levelled(self.frame.other, self.rig)
        seen, found = follow(self.frame.grey, level, pixels[known], guess)
        a, b = camera.epipolar_rows(there, shift, seen)
        along = (b * b).sum(-1)
        sharp, sharp_variance = -(a * b).sum(-1) / along, self.noise**2 / camera.focal**2 / along
        off_line = camera.focal * (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).abs() / along.sqrt()
        found &= off_line < OFF_LINE
        found &= (sharp - rho[known]).square() < AGREEMENT**2 * variance[known]
        rho[known] = torch.where(found, torch.maximum(sharp, FARTHEST * sharp_variance.sqrt()), rho[known])
        variance[known] = torch.where(found, sharp_variance, variance[known])
        return rho, variance


def _levelled(other: OtherEye, rig: Rig) -> NDArray[np.uint8]:
    """Returns what the first camera would see in the place of the other."""
    if other.camera == rig.camera and _is_identity(rig.level):
        return other.grey
    return np.asarray(
        cv2.warpPerspective(
            other.grey,
            rig.level.numpy(),
            (rig.camera.width, rig.camera.height),
            flags=cv2.INTER_CUBIC,
            borderMode=cv2.BORDER_REPLICATE,
        ),
        dtype=np.uint8,
    )


class StereoDepth:
    """Inverse depth from the images of two cameras.

    Args:
        config: Noise, and the range of depths that count as known.
        device: Torch device of the fields.
    """

    metric = True

    def __init__(self, config: DepthConfig, device: torch.device | str = "cpu") -> None:
        self._config = config
        self._device = device
        self._rig: Rig | None = None

    def observe(self, frame: Frame) -> InverseDepth | None:
        """Returns the field of the pair, None where the frame has no other image or nothing matches."""
        if frame.other is None:
            return None
        rig = self._rig
        if rig is None or not rig.fits(frame.camera, frame.other):
            rig = self._rig = Rig(frame.camera, frame.other)
        disparity = torch.from_numpy(rig.match(frame.grey, frame.other.grey, self._config.minimum))
        known = disparity.isfinite()
        if not known.any():
            return None
        deviation = DENSE_NOISE * rig.per_disparity
        mean = torch.maximum(disparity, torch.full_like(disparity, FARTHEST * DENSE_NOISE)) * rig.per_disparity
        variance = torch.where(known, deviation**2, torch.inf)
        mean = torch.where(known, mean, torch.nan)
        return PairDepth(rig.grid, mean.to(self._device), variance.to(self._device), frame, rig, self._config.disparity)

    def begin(self, frame: Frame) -> None:
        """Has nothing to do; see ``DepthSource``."""

    def fuse(self, observed: InverseDepth | None, previous: InverseDepth | None, pair: FramePair) -> InverseDepth:
        """Returns ``observed``: a pair needs no past. See ``DepthSource``."""
        return observed if observed is not None else InverseDepth.unknown(pair.camera, self._device)

    def complete(self, known: InverseDepth, frame: Frame) -> InverseDepth:
        """Leaves out what is too far to be told; see ``DepthSource``."""
        told = (known.variance < (MOST_RELATIVE * known.mean) ** 2) & (known.mean * self._config.maximum >= 1)
        mean, variance = torch.where(told, known.mean, torch.nan), torch.where(told, known.variance, torch.inf)
        return InverseDepth(known.camera, mean, variance)
