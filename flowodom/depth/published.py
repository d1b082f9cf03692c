"""A published monocular depth network in the place of the field, where a user has ``transformers`` and its weights.

Only networks that give metres are of use: what gives depth up to an unknown shift says nothing that could be fused.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional

from flowodom.depth import InverseDepth
from flowodom.errors import ConfigError, WeightsError
from flowodom.frame import Frame

PREFIX = "transformers:"
"""What the ``depth.field`` parameter begins with when it names such a network."""

DEVIATION = 0.15
"""Relative deviation with which its depths are taken at first; the fusion finds what is true in the scene."""

COARSER = 8
"""Pixels of the image, each way, for each pixel of its depth that is kept; errors of neighbours are alike."""

METRIC = ("depth_pro", "zoedepth")
"""Kinds of network that always give metres."""


class PublishedDepth:
    """Depth of each image by a network that ``transformers`` loads.

    Args:
        name: Folder or name of the network, as ``from_pretrained`` takes it.
        device: Torch device on which it runs.

    Raises:
        ConfigError: ``transformers`` is not installed, or the network does not give metres.
        WeightsError: The network cannot be loaded.
    """

    scale_deviation = 0.25

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        try:
            import transformers
        except ImportError as error:
            raise ConfigError(f"depth.field={PREFIX}{name} needs the package transformers: {error}") from error
        try:
            self._prepare: Any = transformers.AutoImageProcessor.from_pretrained(name)
            self._network: Any = transformers.AutoModelForDepthEstimation.from_pretrained(name).to(device).eval()
        except (OSError, ValueError) as error:
            raise WeightsError(f"transformers cannot load {name}: {error}") from error
        about = self._network.config
        if about.model_type not in METRIC and getattr(about, "depth_estimation_type", "") != "metric":
            raise ConfigError(f"{name} ({about.model_type}) does not give metres; take a metric depth network")
        self._device = torch.device(device)

    @torch.no_grad()
    def observe(self, frame: Frame) -> InverseDepth | None:
        """Returns what the image alone tells."""
        image = frame.image if frame.image.ndim == 3 else np.repeat(frame.image[..., None], 3, axis=-1)
        inputs = {name: value.to(self._device) for name, value in self._prepare(image, return_tensors="pt").items()}
        depth = self._network(**inputs).predicted_depth.float()
        camera = frame.camera.scaled(1 / COARSER)
        depth = functional.interpolate(depth[:, None], (camera.height, camera.width), mode="area")[0, 0]
        mean = 1 / depth.clamp_min(1e-2)
        return InverseDepth(camera, mean, (DEVIATION * mean).square())
