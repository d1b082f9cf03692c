"""Dense inverse search: the default flow without a GPU.

Source: Kroeger, Timofte, Dai and Van Gool, "Fast Optical Flow using Dense Inverse Search" (ECCV 2016), through OpenCV.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from flowodom.flow.consistency import consistency_variance
from flowodom.flow.pyramid import check_pair

ROUGH_SCALE = 2
"""Pyramid level at which the search for the rough flow ends: a quarter of the size, in a quarter of the time."""


PATCH_STRIDE = 2
"""Pixels of the finest pyramid level for which one variance is enough: patches lie twice as far apart."""


class DisFlow:
    """DIS flow. The search at full detail runs on threads of its own, once somebody is going to need it.

    Args:
        finest_scale: Pyramid level at which the search ends; 1 searches down to half the image's size.
        iterations: Gradient-descent steps of each patch.
        variational_iterations: Steps of the variational refinement on each level.
    """

    def __init__(self, *, finest_scale: int = 1, iterations: int = 16, variational_iterations: int = 5) -> None:
        def search(finest: int) -> Any:
            made = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
            made.setFinestScale(finest)
            made.setGradientDescentIterations(iterations)
            made.setVariationalRefinementIterations(variational_iterations)
            return made

        self._cell = PATCH_STRIDE * 2**finest_scale
        self._rough = search(max(finest_scale, ROUGH_SCALE))
        # A search keeps its buffers, so each direction has a thread that runs one at a time.
        self._searches = [
            (search(finest_scale), ThreadPoolExecutor(1, f"dis-{way}", initializer=_in_background))
            for way in ("there", "back")
        ]

    def __call__(self, previous: Tensor, current: Tensor, initial: Tensor | None = None) -> DisField:
        """Finds the flow; see ``FlowMethod``."""
        check_pair(previous, current, initial)
        first, second = (np.ascontiguousarray(image.cpu().numpy()) for image in (previous, current))
        # A search writes what it finds over what it starts from; and left without a start, OpenCV takes that of the
        # call before, at whatever size that was.
        start = np.zeros((*first.shape, 2)) if initial is None else initial.cpu().numpy()
        start = start.astype(np.float32)
        rough = torch.from_numpy(self._rough.calc(first, second, start.copy())).to(previous.device)
        (there, there_thread), (back, back_thread) = self._searches

        def begin() -> tuple[Future[Any], Future[Any]]:
            behind = -start
            return (
                there_thread.submit(there.calc, first, second, start),
                back_thread.submit(back.calc, second, first, behind),
            )

        return DisField(rough, begin, cell=self._cell)


def _in_background() -> None:
    """Has the calling thread wait for its turn where others, that of the pose above all, run on the same processor."""
    with contextlib.suppress(AttributeError, OSError):  # Linux alone tells threads for throughput from others.
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


class DisField:
    """A ``FlowField`` whose detail is searched when first asked for, and judged by going there and back.

    Args:
        rough: (H, W, 2) float32, pixels.
        begin: Starts the searches there and back; called at most once.
        cell: Rows and columns for which one variance is enough.
    """

    def __init__(self, rough: Tensor, begin: Callable[[], tuple[Future[Any], Future[Any]]], *, cell: int) -> None:
        self.rough = rough
        self._cell = cell
        self._begin = begin

    @cached_property
    def _searches(self) -> tuple[Future[Any], Future[Any]]:
        return self._begin()

    def begin(self) -> None:
        """See ``FlowField``, as for the others."""
        _ = self._searches

    @cached_property
    def forward(self) -> Tensor:
        """(H, W, 2) float32, pixels."""
        return torch.from_numpy(self._searches[0].result()).to(self.rough.device)

    @cached_property
    def backward(self) -> Tensor:
        """(H, W, 2) float32, pixels."""
        return torch.from_numpy(self._searches[1].result()).to(self.rough.device)

    @cached_property
    def forward_variance(self) -> Tensor:
        """(H, W) float32, pixels squared."""
        return consistency_variance(self.forward, self.backward, stride=self._cell)

    @cached_property
    def backward_variance(self) -> Tensor:
        """(H, W) float32, pixels squared."""
        return consistency_variance(self.backward, self.forward, stride=self._cell)
