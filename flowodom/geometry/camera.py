"""The pinhole camera: where a 3D point falls on the image, and the ray on which a pixel lies."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flowodom.errors import CalibrationError


@dataclass(frozen=True)
class PinholeCamera:
    """An ideal (rectified) pinhole camera in the optical frame: z forward, x right, y down.

    Pixel centres have integer coordinates: the top-left pixel's centre is (0, 0).

    Attributes:
        fx: Focal length along u, pixels.
        fy: Focal length along v, pixels.
        cx: Principal point u, pixels.
        cy: Principal point v, pixels.
        width: Image width, pixels.
        height: Image height, pixels.

    Raises:
        CalibrationError: A focal length is not positive, a number is not finite, or the image is empty.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    def __post_init__(self) -> None:
        if not (0 < self.fx < math.inf and 0 < self.fy < math.inf):
            raise CalibrationError(
                f"focal lengths must be positive, got fx={self.fx}, fy={self.fy}: "
                "is the camera calibrated? (an uncalibrated driver publishes K of zeros)"
            )
        if not (math.isfinite(self.cx) and math.isfinite(self.cy)):
            raise CalibrationError(f"the principal point must be finite, got cx={self.cx}, cy={self.cy}")
        if self.width < 1 or self.height < 1:
            raise CalibrationError(f"image size must be positive, got {self.width}x{self.height}")

    @property
    def focal(self) -> float:
        """Mean focal length, pixels."""
        return 0.5 * (self.fx + self.fy)

    @property
    def matrix(self) -> Tensor:
        """(3, 3) float64 map of points to homogeneous pixels."""
        return torch.tensor(((self.fx, 0, self.cx), (0, self.fy, self.cy), (0, 0, 1)), dtype=torch.float64)

    def scaled(self, factor: float) -> PinholeCamera:
        """Returns the camera of the same view resampled by ``factor`` (0.5 halves the image)."""
        return self._resampled(factor, factor, round(self.width * factor), round(self.height * factor))

    def resized(self, width: int, height: int) -> PinholeCamera:
        """Returns the camera of the same view resampled to another size."""
        return self._resampled(width / self.width, height / self.height, width, height)

    def _resampled(self, x: float, y: float, width: int, height: int) -> PinholeCamera:
        return PinholeCamera(
            self.fx * x, self.fy * y, (self.cx + 0.5) * x - 0.5, (self.cy + 0.5) * y - 0.5, width, height
        )

    def thinned(self, stride: int) -> PinholeCamera:
        """Returns the camera of every ``stride``-th row and column, the first being ``stride // 2``."""
        first = stride // 2
        return PinholeCamera(
            self.fx / stride,
            self.fy / stride,
            (self.cx - first) / stride,
            (self.cy - first) / stride,
            len(range(first, self.width, stride)),
            len(range(first, self.height, stride)),
        )

    def pixels(
        self,
        *,
        which: slice = slice(None),
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Returns the (H, W, 2) grid of pixel coordinates (u, v), or of the rows and columns that a slice picks."""
        v, u = torch.meshgrid(
            torch.arange(self.height, device=device, dtype=dtype)[which],
            torch.arange(self.width, device=device, dtype=dtype)[which],
            indexing="ij",
        )
        return torch.stack((u, v), dim=-1)

    def rays(self, pixels: Tensor) -> Tensor:
        """Returns the points at unit depth seen at ``pixels``.

        Args:
            pixels: (..., 2) pixel coordinates (u, v).

        Returns:
            (..., 3) with z = 1, optical frame.
        """
        x = (pixels[..., 0] - self.cx) / self.fx
        y = (pixels[..., 1] - self.cy) / self.fy
        return torch.stack((x, y, torch.ones_like(x)), dim=-1)

    def epipolar_rows(self, ray: Tensor, shift: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what a match says of inverse depth: two rows ``a + rho b = 0``, linear in it.

        Args:
            ray: (..., 3) ray of each point in another view, turned into this one.
            shift: (..., 3) place of that view in this one.
            pixels: (..., 2) where this view sees each; it would be at ``ray + rho shift``, up to scale.

        Returns:
            a and b, each (..., 2), on the plane of unit depth.
        """
        x, y = (pixels[..., 0] - self.cx) / self.fx, (pixels[..., 1] - self.cy) / self.fy
        a = torch.stack((ray[..., 0] - x * ray[..., 2], ray[..., 1] - y * ray[..., 2]), dim=-1)
        b = torch.stack((shift[..., 0] - x * shift[..., 2], shift[..., 1] - y * shift[..., 2]), dim=-1)
        return a, b

    def unproject(self, pixels: Tensor, depth: Tensor) -> Tensor:
        """Lifts pixels to points.

        Args:
            pixels: (..., 2) pixel coordinates (u, v).
            depth: (...) distance along the optical axis, metres.

        Returns:
            (..., 3) points in metres, optical frame.
        """
        return self.rays(pixels) * depth[..., None]

    def project(self, points: Tensor, *, min_depth: float = 1e-6) -> Tensor:
        """Projects points to pixels.

        Args:
            points: (..., 3) points, optical frame.
            min_depth: Depths below it (points behind the camera too) are clamped to it, so the result stays finite;
                whoever needs to know asks ``visible``.

        Returns:
            (..., 2) pixel coordinates (u, v).
        """
        z = points[..., 2].clamp_min(min_depth)
        u = self.fx * points[..., 0] / z + self.cx
        v = self.fy * points[..., 1] / z + self.cy
        return torch.stack((u, v), dim=-1)

    def projection_jacobian(self, points: Tensor, *, min_depth: float = 1e-6) -> Tensor:
        """Returns the (..., 2, 3) derivative of ``project`` at ``points`` of shape (..., 3)."""
        z = points[..., 2].clamp_min(min_depth)
        zero = torch.zeros_like(z)
        row_u = torch.stack((self.fx / z, zero, -self.fx * points[..., 0] / (z * z)), dim=-1)
        row_v = torch.stack((zero, self.fy / z, -self.fy * points[..., 1] / (z * z)), dim=-1)
        return torch.stack((row_u, row_v), dim=-2)

    def contains(self, pixels: Tensor, *, border: float = 0.0) -> Tensor:
        """Returns a (...) bool: whether (..., 2) pixels lie in the image, ``border`` pixels off its edge."""
        u, v = pixels[..., 0], pixels[..., 1]
        return (u >= border) & (v >= border) & (u <= self.width - 1 - border) & (v <= self.height - 1 - border)

    def visible(self, points: Tensor, *, border: float = 0.0, min_depth: float = 1e-6) -> Tensor:
        """Returns a (...) bool: whether (..., 3) points lie in front of the camera and inside its image."""
        return (points[..., 2] > min_depth) & self.contains(self.project(points, min_depth=min_depth), border=border)
