"""From a CameraInfo to an ideal pinhole camera, and from the images of the real lens to images of the ideal one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowodom.errors import CalibrationError
from flowodom.geometry import PinholeCamera, se3

_BROWN = ("plumb_bob", "rational_polynomial", "radtan")
_FISHEYE = ("equidistant", "fisheye", "kannala_brandt4")
_MOST_PIXELS = 1 << 27
_BROWN_LENGTHS = (4, 5, 8, 12, 14)
_LEAST_BASELINE = 1e-3
"""Metres between two cameras, below which they are said to be in one place."""
_REFOCUSED = 0.1
"""Share by which focal lengths, and of the width by which the centre, may differ between two states of one lens."""


@dataclass(frozen=True)
class Calibration:
    """The lens of one camera, and how to take its distortion out.

    The rectified image has the size of the one that came in and the focal lengths and principal point of ``K``, without
    skew; what ``P`` and ``R`` would do beside (zooming to the valid region, turning both eyes of a stereo rig parallel)
    is left out, so that the optical frame of tf stays that of the image. What they say of where the eyes of a rig are,
    ``between`` tells.

    Attributes:
        camera: The camera of the rectified image.
        distorted: Whether images must be resampled; without, they pass as they are.
        invalid: (H, W) bool, True where the rectified image has nothing to show; None where that is nowhere.
    """

    camera: PinholeCamera
    distorted: bool = False
    invalid: NDArray[np.bool_] | None = None
    _smooth: tuple[NDArray[Any], NDArray[Any]] | None = field(default=None, repr=False)
    _nearest: tuple[NDArray[Any], NDArray[Any]] | None = field(default=None, repr=False)

    @classmethod
    def from_info(cls, info: Any, *, rectified: bool = False, like: PinholeCamera | None = None) -> Calibration:
        """Reads a sensor_msgs/CameraInfo.

        ``K`` and ``D`` are of the full sensor. The region of interest is cut first, then binning joins pixels into
        larger ones, whose centres lie between those of the small ones: ``cx = (cx_full - x_offset + 0.5) / binning_x -
        0.5``. Models: plumb_bob (4 or 5 coefficients), rational_polynomial (8, 12 or 14) and equidistant (4).

        Args:
            info: The message.
            rectified: Whether the images are rectified already though ``D`` is not zero, as image_proc's
                ``image_rect`` beside its ``image_raw``; then ``P`` is their camera.
            like: Camera to which images are brought where the lens is nearly that, but focused otherwise; or None.

        Raises:
            CalibrationError: The camera is not calibrated (``K`` of zeros), or its distortion model is unknown or has
                the wrong number of coefficients.
        """
        coefficients = np.asarray(info.d, dtype=np.float64).reshape(-1)
        matrix = np.asarray(info.k, dtype=np.float64).reshape(3, 3)
        projection = np.asarray(info.p, dtype=np.float64).reshape(3, 4)[:, :3]
        if rectified or not matrix[0, 0] > 0:
            if projection[0, 0] > 0:
                matrix, coefficients = projection, np.zeros(0)
            elif rectified:
                coefficients = np.zeros(0)
        if not (np.isfinite(matrix).all() and matrix[0, 0] > 0 and matrix[1, 1] > 0):
            raise CalibrationError(
                f"camera {info.header.frame_id!r} is not calibrated: its CameraInfo has K = "
                f"{np.asarray(info.k).tolist()}; calibrate it, or give a CameraInfo topic that holds its calibration"
            )
        region = info.roi
        left, top = int(region.x_offset), int(region.y_offset)
        width, height = int(region.width) or int(info.width) - left, int(region.height) or int(info.height) - top
        columns, rows = max(1, int(info.binning_x)), max(1, int(info.binning_y))
        width, height = width // columns, height // rows
        if not 0 < width * height <= _MOST_PIXELS:
            raise CalibrationError(
                f"CameraInfo of {info.header.frame_id!r} has the impossible size {info.width}x{info.height} "
                f"(region {region.width}x{region.height} at {left}, {top}, binning {columns}x{rows})"
            )
        delivered = matrix / matrix[2, 2] if matrix[2, 2] else matrix.copy()
        delivered[2] = 0, 0, 1
        delivered[0] /= columns
        delivered[1] /= rows
        delivered[0, 2] = (matrix[0, 2] - left + 0.5) / columns - 0.5
        delivered[1, 2] = (matrix[1, 2] - top + 0.5) / rows - 0.5
        camera = PinholeCamera(
            fx=float(delivered[0, 0]),
            fy=float(delivered[1, 1]),
            cx=float(delivered[0, 2]),
            cy=float(delivered[1, 2]),
            width=width,
            height=height,
        )
        ideal = like if like is not None and _is_refocused(camera, like) else camera
        model = str(info.distortion_model).lower()
        if not np.any(coefficients):
            if ideal == camera:
                return cls(camera)
            coefficients, model = np.zeros(4), _BROWN[0]
        return cls._distorted(ideal, delivered, coefficients, model)

    @classmethod
    def _distorted(
        cls, camera: PinholeCamera, matrix: NDArray[np.float64], coefficients: NDArray[np.float64], model: str
    ) -> Calibration:
        _check_model(model, coefficients)
        if not np.isfinite(coefficients).all():
            raise CalibrationError(f"distortion coefficients must be finite, got {coefficients.tolist()}")
        ideal = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
        size = (camera.width, camera.height)
        if model in _FISHEYE:
            x, y = cv2.fisheye.initUndistortRectifyMap(matrix, coefficients, np.eye(3), ideal, size, cv2.CV_32FC1)
        else:
            x, y = cv2.initUndistortRectifyMap(matrix, coefficients, None, ideal, size, cv2.CV_32FC1)
        inside = (x > -0.5) & (y > -0.5) & (x < camera.width - 0.5) & (y < camera.height - 0.5)
        inside &= _radius(camera) < _turning_radius(model, coefficients)
        x[~inside] = y[~inside] = -2.0
        return cls(
            camera,
            distorted=True,
            invalid=None if inside.all() else ~inside,
            _smooth=cv2.convertMaps(x, y, cv2.CV_16SC2),
            _nearest=cv2.convertMaps(x, y, cv2.CV_16SC2, nninterpolation=True),
        )

    def rectify(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Returns the image as the ideal camera would have taken it (bilinear; black where nothing was seen).

        Args:
            image: (H, W) or (H, W, 3) uint8. Without distortion it is returned as it is.

        Raises:
            CalibrationError: The image is not of the calibrated size.
        """
        self._check_size(image)
        if self._smooth is None:
            return image
        edge = cv2.remap(image, *self._smooth, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        if self.invalid is not None:
            edge[self.invalid] = 0
        return np.asarray(edge, dtype=np.uint8)

    def rectify_depth(self, depth: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns depth that is registered to the raw image, rectified like it (nearest neighbour, NaN outside).

        Args:
            depth: (H, W) float32 metres. Without distortion it is returned as it is.

        Raises:
            CalibrationError: The depth image is not of the calibrated size.
        """
        self._check_size(depth)
        if self._nearest is None:
            return depth
        result = cv2.remap(
            depth, *self._nearest, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=(float("nan"),)
        )
        return np.asarray(result, dtype=np.float32)

    def _check_size(self, image: NDArray[Any]) -> None:
        height, width = image.shape[:2]
        if (width, height) != (self.camera.width, self.camera.height):
            raise CalibrationError(
                f"image is {width}x{height} but its CameraInfo (after region of interest and binning) says "
                f"{self.camera.width}x{self.camera.height}; give the CameraInfo topic of this image"
            )


def between(camera: Any, other: Any, *, rectified: bool = False) -> Tensor | None:
    """Returns how the cameras of a stereo rig stand, as ``R`` and ``P`` of their CameraInfos say.

    ``R`` turns each camera into the frame in which both are parallel, and ``P`` projects from the origin of one of them
    (which need be neither): its last column is ``K`` times where that origin is in the camera.

    Args:
        camera: sensor_msgs/CameraInfo of the one.
        other: That of the other.
        rectified: Whether the images are rectified already, and so parallel.

    Returns:
        (4, 4) float64 ``T_other_camera``, metres; None where ``P`` holds no distance between the two.
    """
    (turn, origin), (other_turn, other_origin) = _rectification(camera), _rectification(other)
    shift = other_origin - origin
    if not (torch.isfinite(shift).all() and shift.norm() > _LEAST_BASELINE):
        return None
    if rectified:
        return se3.matrix(torch.eye(3, dtype=torch.float64), shift)
    return se3.matrix(other_turn.T @ turn, other_turn.T @ shift)


def _rectification(info: Any) -> tuple[Tensor, Tensor]:
    """Returns the turn (3, 3) of a CameraInfo, and where the origin of its rig is (3,) in the turned camera."""
    turn = torch.from_numpy(np.array(info.r, dtype=np.float64).reshape(3, 3))
    projection = torch.from_numpy(np.array(info.p, dtype=np.float64).reshape(3, 4))
    if not turn.any():
        turn = torch.eye(3, dtype=torch.float64)
    if int(torch.linalg.matrix_rank(projection[:, :3])) != 3:
        return turn, torch.zeros(3, dtype=torch.float64)
    return turn, torch.linalg.solve(projection[:, :3], projection[:, 3])


def _is_refocused(camera: PinholeCamera, like: PinholeCamera) -> bool:
    """Tells whether two cameras may be one whose lens was focused, zoomed a little or stabilised in between."""
    if (camera.width, camera.height) != (like.width, like.height):
        return False
    stretch = max(abs(camera.fx / like.fx - 1), abs(camera.fy / like.fy - 1))
    shift = max(abs(camera.cx - like.cx), abs(camera.cy - like.cy)) / like.width
    return stretch < _REFOCUSED and shift < _REFOCUSED


def _check_model(model: str, coefficients: NDArray[np.float64]) -> None:
    if model in _FISHEYE:
        if coefficients.size != 4:
            raise CalibrationError(f"{model} distortion must have 4 coefficients, got {coefficients.tolist()}")
    elif model in _BROWN:
        if coefficients.size not in _BROWN_LENGTHS:
            raise CalibrationError(
                f"{model} distortion must have {', '.join(map(str, _BROWN_LENGTHS))} coefficients, "
                f"got {coefficients.tolist()}"
            )
    else:
        raise CalibrationError(
            f"distortion model {model!r} is not supported: use plumb_bob, rational_polynomial or equidistant, "
            "or rectify the images first and publish a CameraInfo with D of zeros"
        )


def _radius(camera: PinholeCamera) -> NDArray[np.float32]:
    """Returns the (H, W) tangent of the angle between each pixel's ray and the optical axis."""
    u = (np.arange(camera.width, dtype=np.float32) - camera.cx) / camera.fx
    v = (np.arange(camera.height, dtype=np.float32) - camera.cy) / camera.fy
    return np.hypot(u[None, :], v[:, None])


def _turning_radius(model: str, coefficients: NDArray[np.float64]) -> float:
    """Returns the tangent from which on a distortion polynomial folds back, so that pixels would be seen twice."""
    radius = np.linspace(0, 20, 20001)
    if model in _FISHEYE:
        angle = np.arctan(radius)
        k1, k2, k3, k4 = coefficients
        s = angle * angle
        image = angle * (1 + s * (k1 + s * (k2 + s * (k3 + s * k4))))
    else:
        k = np.zeros(8)
        k[: min(8, coefficients.size)] = coefficients[:8]
        s = radius * radius
        with np.errstate(divide="ignore", invalid="ignore"):
            image = radius * (1 + s * (k[0] + s * (k[1] + s * k[4]))) / (1 + s * (k[5] + s * (k[6] + s * k[7])))
    falls = np.flatnonzero(~(np.diff(image) > 0))
    return float(radius[falls[0]]) if falls.size else float("inf")
