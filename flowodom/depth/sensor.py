"""Depth from a depth camera registered to the image."""

from __future__ import annotations

import numpy as np
import torch

from flowodom.config import DepthConfig
from flowodom.depth import FramePair, InverseDepth
from flowodom.depth.filter import FilterDepth
from flowodom.frame import Frame


class SensorDepth:
    """Inverse depth as measured: triangulating depth cameras have a constant error in it (it is their disparity).

    Args:
        config: Range limits and noise.
        device: Torch device of the fields.
    """

    metric = True

    def __init__(self, config: DepthConfig, device: torch.device | str = "cpu") -> None:
        self._config = config
        self._device = device
        self._filter = FilterDepth(device)

    def observe(self, frame: Frame) -> InverseDepth | None:
        """Returns the measured field, None where the frame has no valid depth at all."""
        if frame.depth is None:
            return None
        depth = torch.from_numpy(np.ascontiguousarray(frame.depth)).to(self._device)
        valid = (depth >= self._config.minimum) & (depth <= self._config.maximum)
        if not valid.any():
            return None
        camera = frame.camera.resized(depth.shape[1], depth.shape[0])
        mean = torch.where(valid, 1 / depth, torch.nan)
        variance = torch.where(valid, self._config.noise**2, torch.inf)
        return InverseDepth(camera, mean, variance.to(mean.dtype))

    def begin(self, frame: Frame) -> None:
        """Has nothing to do; see ``DepthSource``."""

    def fuse(self, observed: InverseDepth | None, previous: InverseDepth | None, pair: FramePair) -> InverseDepth:
        """Returns ``observed``: a depth camera needs no past; what it misses motion tells. See ``DepthSource``."""
        return observed if observed is not None else self._filter.fuse(None, previous, pair)

    def complete(self, known: InverseDepth, frame: Frame) -> InverseDepth:
        """Returns ``known``: there is nothing to add. See ``DepthSource``."""
        return known
