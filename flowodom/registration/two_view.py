"""The motion between two views of one camera, up to scale: by the essential matrix, and by a plane's homography.

Source: Nister, "An Efficient Solution to the Five-Point Relative Pose Problem" (2004), and Malis and Vargas, "Deeper
understanding of the homography decomposition for vision-based control" (2007), both through OpenCV, with the least
median of squares (Rousseeuw 1984), which need not be told how exact matches are: with little parallax, whatever motion
is within half a pixel of most of them would do for a threshold of that size.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from flowodom.geometry import PinholeCamera, se3
from flowodom.registration.reprojection import whitened

MOST_EPIPOLAR_ERROR = 0.7
"""Distance to the epipolar line, pixels, up to which a match agrees with the essential matrix."""

LEAST_SUPPORT = 0.6
"""Share of the matches that must agree with the essential matrix."""

LEAST_POINTS = 20
"""Matches without which no motion is looked for."""

MOST_OF_IT = 0.9
"""Share of a plane's points that must lie in front of the first camera: one of its two motions turns it up steeply."""


def two_view(camera: PinholeCamera, pixels: Tensor, seen: Tensor) -> Tensor | None:
    """Finds the relative pose of two views of a static scene, up to scale.

    Args:
        camera: The camera of both views.
        pixels: (N, 2) float64 places in the first view.
        seen: (N, 2) float64 places in the second.

    Returns:
        (4, 4) float64 ``T_second_first`` with a translation of length one, or None where too few matches agree.
    """
    if len(pixels) < LEAST_POINTS:
        return None
    a, b = camera.rays(pixels)[:, :2].numpy(), camera.rays(seen)[:, :2].numpy()
    cv2.setRNGSeed(0)
    essential, _ = cv2.findEssentialMat(a, b, np.eye(3), method=cv2.LMEDS, prob=0.9999)
    if essential is None or essential.shape != (3, 3):
        return None
    line = cv2.convertPointsToHomogeneous(a)[:, 0] @ essential.T
    distance = np.abs((line[:, :2] * b).sum(-1) + line[:, 2]) / np.linalg.norm(line[:, :2], axis=-1)
    mask = (distance < MOST_EPIPOLAR_ERROR / camera.focal).astype(np.uint8)
    if mask.sum() < LEAST_SUPPORT * len(pixels):
        return None
    # Not all need lie in front of both cameras: what is far may seem to lie behind them, and so may traffic.
    _, rotation, translation, _, _ = cv2.recoverPose(essential, a, b, np.eye(3), distanceThresh=1000.0, mask=mask)
    return se3.matrix(torch.from_numpy(rotation), torch.from_numpy(translation[:, 0] / np.linalg.norm(translation)))


def planar_views(camera: PinholeCamera, pixels: Tensor, seen: Tensor) -> list[Tensor]:
    """Finds the relative poses of which two views of a plane leave one or two open, up to scale.

    Args:
        camera: The camera of both views.
        pixels: (N, 2) float64 places in the first view.
        seen: (N, 2) float64 places in the second.

    Returns:
        (4, 4) float64 ``T_second_first``, with translations of length one, that have most of the plane in front of the
        camera; none where it has not left its place.
    """
    if len(pixels) < LEAST_POINTS:
        return []
    a, b = camera.rays(pixels).numpy(), camera.rays(seen).numpy()
    cv2.setRNGSeed(0)
    homography, _ = cv2.findHomography(a[:, :2], b[:, :2], cv2.LMEDS)
    if homography is None:
        return []
    poses = []
    for rotation, way, normal in zip(*cv2.decomposeHomographyMat(homography, np.eye(3))[1:], strict=True):
        length = np.linalg.norm(way)
        if length > 0 and (a @ normal > 0).mean() > MOST_OF_IT:
            poses.append(se3.matrix(torch.from_numpy(rotation), torch.from_numpy(way[:, 0] / length)))
    return poses


def triangulate(
    camera: PinholeCamera, ray: Tensor, shift: Tensor, pixels: Tensor, white: Tensor
) -> tuple[Tensor, Tensor]:
    """Finds the inverse depths of points by linear least squares.

    A point at inverse depth rho is seen at ``ray + rho shift``, up to scale; its two rows are linear in rho, so the
    rows of several views add up.

    Args:
        camera: The camera of the second view.
        ray: (N, 3) ray of each point in its first view, turned into the second.
        shift: (N, 3) or (3,) place of the first view in the second.
        pixels: (N, 2) where the second view sees each.
        white: (4, N) what brings errors of these to unit covariance, see ``whitening``.

    Returns:
        (N,) numerator and (N,) denominator: rho is their quotient, and the denominator its information.
    """
    focal = torch.tensor((camera.fx, camera.fy), dtype=ray.dtype)
    a, b = (whitened(white, (focal * row).T) for row in camera.epipolar_rows(ray, shift, pixels))
    return -(a * b).sum(0), (b * b).sum(0)
