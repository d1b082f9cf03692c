"""Depth from a depth camera registered to the image."""

from __future__ import annotations

import numpy as np
import torch

from flowodom.depth import InverseDepth
from flowodom.depth.gaps import closed
from flowodom.depth.measured import MeasuredDepth
from flowodom.frame import Frame


class SensorDepth(MeasuredDepth):
    """Inverse depth as measured: triangulating depth cameras have a constant error in it (it is their disparity)."""

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
        return InverseDepth(camera, *closed(mean, variance.to(mean.dtype)))
