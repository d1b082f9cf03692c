"""Depth from the two cameras of a stereo rig.

Both images are turned, in thought, until their rows lie along the baseline; then what is at infinity lies at the same
place in both, and what is nearer is shifted along the row, by its disparity ``focal * baseline / depth``. Semiglobal
matching finds the disparities of all pixels at a small size, to a third of a pixel, drawn towards whole ones; along the
surfaces that it finds, Lucas-Kanade makes them several times as sharp. Errors are some share of a pixel, so those of
inverse depth are the same near and far. The few points that a keyframe holds on to are matched at full size.

Source: Fusiello, Trucco and Verri, "A Compact Algorithm for Rectification of Stereo Pairs" (2000); Hirschmueller,
"Stereo Processing by Semiglobal Matching and Mutual Information" (2008), through OpenCV; Lucas and Kanade, "An
Iterative Image Registration Technique with an Application to Stereo Vision" (1981).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowodom.config import DepthConfig
from flowodom.depth import InverseDepth
from flowodom.depth.measured import MeasuredDepth
from flowodom.flow.points import amplify, choose, follow, gain
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

ROUNDS = 2
"""Steps of Lucas-Kanade."""

SURFACE = (5, 1.0, 2.5)
"""Along which disparities are smoothed before each step: size of the window, pixels; difference of disparity, and
distance, at which a neighbour counts little."""

PATCH = (7, 7)
"""Window of Lucas-Kanade, pixels."""

ROUGH = 0.35
"""Standard deviation of the matcher's own disparities, pixels: what is left where there is nothing to sharpen."""

SHARPEST = 0.25
"""Standard deviation, pixels, that no disparity is surer than: neighbours share much of their errors."""

IMAGE_NOISE = 3.0
"""Standard deviation of the difference of two images of one surface, grey levels."""

AGREEMENT = 4.0
"""Deviations of the matcher's disparity within which a sharper one must lie."""

OFF_LINE = 1.0
"""Most pixels by which a point may be seen off the line on which the other camera must see it."""

UNLIKE = 0.5
"""Share of what a patch shows that may differ in the other image, beside the noise: more is another thing."""

LEVELLING = 1000
"""Points by which it is told how the rows of both cameras meet, ..."""

LEAST_LEVELLING = 40
"""... the least of them that both must see, ..."""

LEVELLING_STEPS = 5
"""... and steps of the robust fit to them."""

LEAST_SHARE = 0.02
"""Share of the pixels that must match for both images to be of the same scene."""

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
        self.camera, self._eye = camera, eye
        self.shift = motion[:3, :3].T @ motion[:3, 3]
        """(3,) where a point at the first camera's origin is seen by the other one, were it not turned."""
        self.baseline = float(self.shift.norm())
        scale = min(1.0, (PIXELS / (camera.width * camera.height)) ** 0.5)
        self.grid = _resized(camera, scale)
        """Camera of the field: the first one at the size that is matched."""
        self._size, place = _frame_of(self.grid, rectified)
        self._focal = self.grid.fx
        inverse = torch.linalg.inv
        self._from_grid = place @ rectified @ inverse(self.grid.matrix)
        small = _resized(other, min(1.0, self._focal / other.fx))
        self._other = small
        self._from_other = place @ rectified @ motion[:3, :3].T @ inverse(small.matrix)
        rays = self.grid.rays(self.grid.pixels(dtype=torch.float64)) @ rectified.T
        self.per_disparity = (rays[..., 2] / (self._focal * self.baseline)).float()
        """(H, W) inverse depth of one pixel of disparity, on ``grid``."""
        self.level = camera.matrix @ motion[:3, :3].T @ inverse(other.matrix)
        """(3, 3) from the other image's pixels to those of the first camera, put in the place of the other."""

    def fits(self, camera: PinholeCamera, eye: OtherEye) -> bool:
        """Tells whether it is the rig of these two cameras."""
        return camera == self.camera and eye.stands_like(self._eye)

    def match(
        self, grey: NDArray[np.uint8], other: NDArray[np.uint8], nearest: float
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
        """Returns disparities and their variances (H, W) on ``grid``, pixels, NaN where there are none, and the gain.

        Args:
            grey: (H, W) uint8 of the first camera.
            other: (H, W) uint8 of the other one; multiplied by the gain it is as bright as the first.
            nearest: Least depth that is looked for, metres.
        """
        first = self._rectify(grey, self.grid, self._from_grid)
        second = self._rectify(other, self._other, self._from_other)
        widest = min(WIDEST * self._size[0], self._focal * self.baseline / max(nearest, 1e-3))
        disparity, variance, bright = _sharpen(first, second, _find(first, second, widest))
        if _is_identity(self._from_grid):
            return disparity, variance, bright
        upright = cv2.warpPerspective(
            np.dstack((disparity, variance)),
            self._from_grid.numpy(),
            (self.grid.width, self.grid.height),
            flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(float("nan"),) * 2,
        )
        return np.ascontiguousarray(upright[..., 0]), np.ascontiguousarray(upright[..., 1]), bright

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


def _find(first: NDArray[np.uint8], second: NDArray[np.uint8], widest: float) -> NDArray[np.float32]:
    """Returns the disparities (H, W) of one rectified image in the other, NaN where there is no single good match."""
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
    padded = (cv2.copyMakeBorder(image, 0, 0, pad, 0, cv2.BORDER_REPLICATE) for image in (first, second))
    found = np.asarray(matcher.compute(*padded)[:, pad:], dtype=np.float32) / np.float32(16)
    inside = np.arange(found.shape[1], dtype=np.float32) - found >= 0
    found[(found < LEAST) | ~inside] = np.nan
    return found


def _sharpen(
    first: NDArray[np.uint8], second: NDArray[np.uint8], disparity: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
    """Moves disparities (H, W) to where the images are alike, by Lucas-Kanade along the row.

    Returns:
        Disparities, their variances, and the gain of the first image over the second.
    """
    height, width = disparity.shape
    column, row = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    known = np.isfinite(disparity)
    there, least_texture = known.astype(np.float32), (IMAGE_NOISE / ROUGH) ** 2
    found = np.where(known, disparity, np.float32(-2 * width))
    texture, seen, bright = there, there, 1.0
    for step in range(ROUNDS):
        found = np.asarray(cv2.bilateralFilter(found, *SURFACE), dtype=np.float32)
        other = cv2.remap(second, column - found, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        if step == 0:
            bright = gain(np.asarray(other * known, dtype=np.uint8), first * known)
        seen = np.float32(bright) * np.asarray(other, dtype=np.float32)
        slope = there * np.asarray(cv2.Sobel(seen, -1, 1, 0, ksize=1, scale=0.5), dtype=np.float32)
        texture = _total(slope * slope) + least_texture
        found += there * np.clip(_total(slope * (seen - first)) / texture, -1, 1)
    known &= _scatter(seen - first) < UNLIKE * _scatter(first.astype(np.float32)) + IMAGE_NOISE**2
    variance = np.where(known, SHARPEST**2 + IMAGE_NOISE**2 / texture, np.nan).astype(np.float32)
    return np.where(known, found, np.float32(np.nan)), variance, bright


def _total(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the (H, W) sum of an image (H, W) over the patch about each pixel."""
    return np.asarray(cv2.boxFilter(image, -1, PATCH, normalize=False), dtype=np.float32)


def _scatter(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the (H, W) variance of an image (H, W) within the patch about each pixel."""
    mean, square = (_total(part) / (PATCH[0] * PATCH[1]) for part in (image, image * image))
    return np.asarray(square - mean * mean, dtype=np.float32)


def _is_identity(homography: Tensor) -> bool:
    return bool((homography - torch.eye(3, dtype=torch.float64)).abs().max() < 1e-6)


def _frame_of(camera: PinholeCamera, rectified: Tensor) -> tuple[tuple[int, int], Tensor]:
    """Returns size and matrix (3, 3) of the turned camera that sees all that ``camera`` sees."""
    right, bottom = camera.width - 1, camera.height - 1
    corners = torch.tensor(((0, 0), (right, 0), (0, bottom), (right, bottom)), dtype=torch.float64)
    rays = camera.rays(corners) @ rectified.T
    focal = rays.new_tensor((camera.fx, camera.fy))
    seen = focal * rays[:, :2] / rays[:, 2:].clamp_min(0.1)
    least, most = seen.min(0).values, seen.max(0).values
    width, height = (min(int(n), 2 * (right + bottom)) for n in (most - least + 1.5).tolist())
    u, v = least.tolist()
    return (width, height), torch.tensor(((camera.fx, 0, -u), (0, camera.fy, -v), (0, 0, 1)), dtype=torch.float64)


def _resized(camera: PinholeCamera, scale: float) -> PinholeCamera:
    """Returns the camera of an image that is shrunk to about ``scale`` of its size."""
    return camera.resized(round(camera.width * scale), round(camera.height * scale))


@dataclass(frozen=True)
class PairDepth(InverseDepth):
    """What a stereo pair tells of a frame: of all pixels roughly, of single points sharply.

    Attributes:
        frame: The frame.
        rig: Its two cameras.
        noise: Standard deviation of a single point's disparity, pixels of the frame.
        gain: What makes the other image as bright as the frame's.
    """

    frame: Frame
    rig: Rig
    noise: float
    gain: float

    def of_points(self, camera: PinholeCamera, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Matches a few points of the frame at full size; see ``InverseDepth``. Of what is far some are below zero."""
        rho, variance = self.read(camera, pixels)
        known = variance.isfinite()
        if not known.any():
            return rho, variance
        there, shift = camera.rays(pixels[known]), self.rig.shift
        seen, found = self._follow(pixels[known], rho[known])
        a, b = camera.epipolar_rows(there, shift, seen)
        along = (b * b).sum(-1)
        sharp, sharp_variance = -(a * b).sum(-1) / along, self.noise**2 / camera.focal**2 / along
        off_line = camera.focal * (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).abs() / along.sqrt()
        found &= off_line < OFF_LINE
        found &= (sharp - rho[known]).square() < AGREEMENT**2 * variance[known]
        rho[known] = torch.where(found, sharp, rho[known])
        variance[known] = torch.where(found, sharp_variance, variance[known])
        return rho, variance

    def tilt(self) -> tuple[float, float]:
        """Returns pitch and roll of the other camera beside what the rig says, radians, by how rows meet.

        They are the first and the last of a rotation vector in the axes of ``OtherEye.upright``, by which what it sees
        is turned; zero where too little is seen by both.
        """
        camera, other = self.frame.camera, self.frame.other
        assert other is not None
        pixels = choose(self.frame.grey, LEVELLING)
        rho, variance = self.read(camera, pixels)
        pixels, rho = pixels[variance.isfinite()], rho[variance.isfinite()]
        seen, found = self._follow(pixels, rho)
        if int(found.sum()) < LEAST_LEVELLING:
            return 0.0, 0.0
        before, now = (camera.rays(each[found]) @ other.upright.T for each in (pixels, seen))
        x, y = (now[:, :2] / now[:, 2:]).unbind(-1)
        missed, slope = y - before[:, 1] / before[:, 2], torch.stack((-1 - y * y, x), dim=-1)
        tilt, weight = slope.new_zeros(2), torch.ones_like(y)
        for _ in range(LEVELLING_STEPS):
            weighted = weight[:, None] * slope
            tilt = torch.linalg.solve(weighted.T @ slope, weighted.T @ missed)
            off = (missed - slope @ tilt).square()
            kernel = 9 * float(off.median()) + 1e-12
            weight = (kernel / (kernel + off)) ** 2
        return float(tilt[0]), float(tilt[1])

    def _follow(self, pixels: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
        """Returns where points (M, 2) of about inverse depth (M,) are seen by the other camera, and which are, (M,).

        The places are those of a camera like the first one, looking as it does, in the place of the other.
        """
        guess = self.frame.camera.project(self.frame.camera.rays(pixels) + rho[:, None] * self.rig.shift)
        return follow(self.frame.grey, self._level, pixels, guess)

    @cached_property
    def _level(self) -> NDArray[np.uint8]:
        """What the first camera would see in the place of the other, as bright as what it sees."""
        assert self.frame.other is not None
        return amplify(_levelled(self.frame.other, self.rig), self.gain)


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


class StereoDepth(MeasuredDepth):
    """Inverse depth from the images of two cameras."""

    def __init__(self, config: DepthConfig, device: torch.device | str = "cpu") -> None:
        super().__init__(config, device)
        self._rig: Rig | None = None

    def observe(self, frame: Frame) -> PairDepth | None:
        """Returns the field of the pair, None where the frame has no other image or next to nothing matches."""
        if frame.other is None:
            return None
        rig = self._rig
        if rig is None or not rig.fits(frame.camera, frame.other):
            rig = self._rig = Rig(frame.camera, frame.other)
        found, variances, bright = rig.match(frame.grey, frame.other.grey, self._config.minimum)
        disparity, variance = torch.from_numpy(found), torch.from_numpy(variances)
        known = disparity.isfinite()
        if known.float().mean() < LEAST_SHARE:
            return None
        disparity = torch.maximum(disparity, FARTHEST * variance.sqrt())
        mean = (disparity * rig.per_disparity).to(self._device)
        variance = torch.where(known, variance * rig.per_disparity.square(), torch.inf).to(self._device)
        return PairDepth(rig.grid, mean, variance, frame, rig, self._config.disparity, bright)

    def complete(self, known: InverseDepth, frame: Frame) -> InverseDepth:
        """Leaves out what is too far to be told; see ``DepthSource``."""
        told = (known.variance < (MOST_RELATIVE * known.mean) ** 2) & (known.mean * self._config.maximum >= 1)
        mean, variance = torch.where(told, known.mean, torch.nan), torch.where(told, known.variance, torch.inf)
        return InverseDepth(known.camera, mean, variance)
