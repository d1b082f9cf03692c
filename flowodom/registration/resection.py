"""A camera's pose from points of known depth, by random sampling: a start that no outlier can bend.

Source: Fischler and Bolles, "Random Sample Consensus" (1981); Gao et al., "Complete Solution Classification for the
Perspective-Three-Point Problem" (2003), through OpenCV.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from flowodom.geometry import PinholeCamera, se3

MOST_ERROR = 1.0
"""Reprojection error, pixels, up to which a point supports a pose."""


def resection(camera: PinholeCamera, points: Tensor, pixels: Tensor) -> Tensor | None:
    """Finds the pose of a camera that sees known points.

    Args:
        camera: The camera.
        points: (N, 3) float64 points, reference frame.
        pixels: (N, 2) float64 where it sees them.

    Returns:
        (4, 4) float64 ``T_camera_reference``, or None where no pose is supported.
    """
    if len(points) < 6:
        return None
    cv2.setRNGSeed(0)
    found, turn, translation, _ = cv2.solvePnPRansac(
        points.numpy(),
        camera.rays(pixels)[:, :2].numpy(),
        np.eye(3),
        None,
        iterationsCount=100,
        reprojectionError=MOST_ERROR / camera.focal,
        confidence=0.999,
        flags=cv2.SOLVEPNP_AP3P,
    )
    if not found:
        return None
    return se3.matrix(se3.so3_exp(torch.from_numpy(turn[:, 0])), torch.from_numpy(translation[:, 0]))
