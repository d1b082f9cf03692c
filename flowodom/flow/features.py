"""Features matched one by one over the whole image: where things went that have gone too far for flow.

Source: Rublee et al., "ORB: an efficient alternative to SIFT or SURF" (2011), through OpenCV.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

COUNT = 1000
"""Most features of an image."""

CORNER = 7
"""Least contrast of a feature to the ring around it, grey levels: what blurred and dim images still have."""


def match(previous: NDArray[np.uint8], current: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Finds the same features in two images, however far apart; many pairs are wrong.

    Args:
        previous: (H, W) uint8 image.
        current: (H, W) uint8 image.

    Returns:
        (N, 2) float64 pixels (u, v) in the previous and in the current image; each the other's most similar.
    """
    detector = cv2.ORB.create(COUNT, fastThreshold=CORNER)
    keys, looks = zip(*(detector.detectAndCompute(image, None) for image in (previous, current)), strict=True)
    if any(look is None for look in looks):
        none = torch.zeros(0, 2, dtype=torch.float64)
        return none, none
    pairs = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(*looks)
    places = ([keys[0][pair.queryIdx].pt for pair in pairs], [keys[1][pair.trainIdx].pt for pair in pairs])
    before, now = (torch.tensor(side, dtype=torch.float64).reshape(-1, 2) for side in places)
    return before, now
