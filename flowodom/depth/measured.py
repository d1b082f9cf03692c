"""Depth that is measured, in metres, image by image."""

from __future__ import annotations

import torch

from flowodom.config import DepthConfig
from flowodom.depth import FramePair, InverseDepth
from flowodom.depth.filter import FilterDepth
from flowodom.frame import Frame


class MeasuredDepth:
    """A ``DepthSource`` that needs no motion but where it has measured nothing.

    Args:
        config: Noise, and the range of depths that count as known.
        device: Torch device of the fields.
    """

    metric = True

    def __init__(self, config: DepthConfig, device: torch.device | str = "cpu") -> None:
        self._config = config
        self._device = device
        self._filter = FilterDepth(device)

    def observe(self, frame: Frame) -> InverseDepth | None:
        """Returns the measured field, None where nothing was measured; see ``DepthSource``."""
        raise NotImplementedError

    def begin(self, frame: Frame) -> None:
        """Has nothing to do; see ``DepthSource``."""

    def fuse(self, observed: InverseDepth | None, previous: InverseDepth | None, pair: FramePair) -> InverseDepth:
        """Returns ``observed``; what was not measured, motion tells. See ``DepthSource``."""
        return observed if observed is not None else self._filter.fuse(None, previous, pair)

    def complete(self, known: InverseDepth, frame: Frame) -> InverseDepth:
        """Returns ``known``: there is nothing to add. See ``DepthSource``."""
        return known
