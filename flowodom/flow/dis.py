"""Dense inverse search: the default flow without a GPU.

Source: Kroeger, Timofte, Dai and Van Gool, "Fast Optical Flow using Dense Inverse Search" (ECCV 2016), through OpenCV.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from flowodom.errors import ShapeError
from flowodom.flow.consistency import RoundTripFlow

MINIMUM_SIZE = 16
"""Shortest image side, pixels, on which the search has a pyramid to run on."""


class DisFlow:
    """DIS flow; the way back is searched on a second thread, while the caller goes on with the way there.

    Args:
        finest_scale: Pyramid level at which the search ends; 1 searches down to half the image's size.
        iterations: Gradient-descent steps of each patch.
        variational_iterations: Steps of the variational refinement on each level.
    """

    def __init__(self, *, finest_scale: int = 1, iterations: int = 16, variational_iterations: int = 5) -> None:
        self._searches: list[Any] = []
        for _ in range(2):
            search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
            search.setFinestScale(finest_scale)
            search.setGradientDescentIterations(iterations)
            search.setVariationalRefinementIterations(variational_iterations)
            self._searches.append(search)
        self._backward_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="dis-backward")

    def __call__(self, previous: Tensor, current: Tensor, initial: Tensor | None = None) -> RoundTripFlow:
        """Finds the flow; see ``FlowMethod``."""
        if previous.shape != current.shape or previous.ndim != 2 or min(previous.shape) < MINIMUM_SIZE:
            raise ShapeError(
                f"flow needs two grey images of one size, at least {MINIMUM_SIZE} pixels each way, "
                f"got {tuple(previous.shape)} and {tuple(current.shape)}"
            )
        if previous.dtype != torch.uint8 or current.dtype != torch.uint8:
            raise ShapeError(f"flow needs uint8 images, got {previous.dtype} and {current.dtype}")
        first, second = (np.ascontiguousarray(image.cpu().numpy()) for image in (previous, current))
        start = None if initial is None else initial.cpu().numpy().astype(np.float32)
        pending = self._backward_thread.submit(self._searches[1].calc, second, first, None if start is None else -start)
        forward = torch.from_numpy(self._searches[0].calc(first, second, start)).to(previous.device)
        return RoundTripFlow(forward, lambda: torch.from_numpy(pending.result()).to(previous.device))
