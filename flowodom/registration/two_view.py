"""The start of a single camera: rotation from rays, and, once there is parallax, the essential matrix.

Source: Nister, "An Efficient Solution to the Five-Point Relative Pose Problem" (2004), through OpenCV's least median of
squares (Rousseeuw 1984), which need not be told how exact matches are: with little parallax, whatever motion is within
half a pixel of most of them would do for a threshold of that size.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from flowodom.geometry import PinholeCamera, se3

MOST_EPIPOLAR_ERROR = 0.7
"""Distance to the epipolar line, pixels, up to which a match agrees with the essential matrix."""

LEAST_SUPPORT = 0.6
"""Share of the matches that must agree with the essential matrix and lie in front of both cameras."""


def two_view(camera: PinholeCamera, pixels: Tensor, seen: Tensor) -> Tensor | None:
    """Finds the relative pose of two views of a static scene, up to scale.

    Args:
        camera: The camera of both views.
        pixels: (N, 2) float64 places in the first view.
        seen: (N, 2) float64 places in the second.

    Returns:
        (4, 4) float64 ``T_second_first`` with a translation of length one, or None where too few matches agree.
    """
    if len(pixels) < 20:
        return None
    a, b = camera.rays(pixels)[:, :2].numpy(), camera.rays(seen)[:, :2].numpy()
    cv2.setRNGSeed(0)
    essential, _ = cv2.findEssentialMat(a, b, np.eye(3), method=cv2.LMEDS, prob=0.9999)
    if essential is None or essential.shape != (3, 3):
        return None
    line = cv2.convertPointsToHomogeneous(a)[:, 0] @ essential.T
    distance = np.abs((line[:, :2] * b).sum(-1) + line[:, 2]) / np.linalg.norm(line[:, :2], axis=-1)
    mask = (distance < MOST_EPIPOLAR_ERROR / camera.focal).astype(np.uint8)
    support, rotation, translation, _, _ = cv2.recoverPose(essential, a, b, np.eye(3), distanceThresh=1000.0, mask=mask)
    if support < LEAST_SUPPORT * len(pixels):
        return None
    return se3.matrix(torch.from_numpy(rotation), torch.from_numpy(translation[:, 0] / np.linalg.norm(translation)))


def triangulate(camera: PinholeCamera, ray: Tensor, shift: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Finds the inverse depths of points by linear least squares.

    A point at inverse depth rho is seen at ``ray + rho shift``, up to scale; its two rows are linear in rho, so the
    rows of several views add up.

    Args:
        camera: The camera of the second view.
        ray: (N, 3) ray of each point in its first view, turned into the second.
        shift: (N, 3) or (3,) place of the first view in the second.
        pixels: (N, 2) where the second view sees each.

    Returns:
        (N,) numerator and (N,) denominator: rho is their quotient, and the denominator times the focal length squared,
        over the variance of a pixel, its information.
    """
    a, b = camera.epipolar_rows(ray, shift, pixels)
    return -(a * b).sum(-1), (b * b).sum(-1)
