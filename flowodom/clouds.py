"""Turns the dense fields of a frame pair into points that carry a colour and a velocity of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowodom.config import CloudConfig
from flowodom.frame import Frame
from flowodom.scene_flow import PropertySet


@dataclass(frozen=True)
class Cloud:
    """Points of one frame.

    Attributes:
        fields: Name to (N,) float32: x y z (metres, where the point is now, current optical frame), rgb ((N, 3) uint8),
            vx vy vz (m/s relative to the static world, current optical frame; NaN where not known), weight (0 to 1) and
            confidence (inverse variance, 1/m^2).
        moving: (N,) bool, True where a point moves on its own.
    """

    fields: dict[str, NDArray[Any]]
    moving: NDArray[np.bool_]

    def select(self, mask: NDArray[np.bool_]) -> Cloud:
        """Returns the points where the (N,) ``mask`` is True."""
        return Cloud({name: values[mask] for name, values in self.fields.items()}, self.moving[mask])


def make_cloud(frame: Frame, properties: PropertySet, interval: float, config: CloudConfig) -> Cloud:
    """Keeps the points whose depth is known.

    A point moves on its own where its residual scene flow is both significant (by its own confidence) and fast enough.

    Args:
        frame: The current frame, for the colours.
        properties: The fields, from the previous frame to the current one.
        interval: Seconds between the two, positive.
        config: What counts as moving.
    """
    now = (properties.points + properties.scene_flow).reshape(-1, 3)
    keep = torch.isfinite(now).all(-1) & (now[:, 2] > 0)
    now = now[keep]
    confidence = properties.confidence.reshape(-1)[keep]
    weight = properties.weight.reshape(-1)[keep]
    pixels = (properties.camera.pixels(device=now.device) + properties.flow).reshape(-1, 2)[keep]
    residual = properties.residual.reshape(-1, 3)[keep]
    distance = residual.norm(dim=-1)
    velocity = residual / interval
    moving = (distance * confidence.sqrt() > config.significance) & (distance > config.speed * interval)
    names = ("x", "y", "z", "vx", "vy", "vz", "weight", "confidence")
    columns = torch.cat((now, velocity, weight[:, None], confidence[:, None]), dim=-1).to(torch.float32).cpu().numpy()
    values = dict(zip(names, columns.T, strict=True))
    colours = _colours(frame, properties, pixels)
    fields = {"x": values["x"], "y": values["y"], "z": values["z"], "rgb": colours}
    fields |= {name: values[name] for name in names[3:]}
    return Cloud(fields, moving.cpu().numpy())


def _colours(frame: Frame, properties: PropertySet, pixels: Tensor) -> NDArray[np.uint8]:
    """Returns the (N, 3) colours of the image at (N, 2) pixels of the dense grid."""
    height, width = frame.image.shape[:2]
    places = np.nan_to_num(pixels.cpu().numpy())
    u = (places[:, 0] + 0.5) * (width / properties.camera.width)
    v = (places[:, 1] + 0.5) * (height / properties.camera.height)
    column = np.clip(u, 0, width - 1).astype(np.intp)
    row = np.clip(v, 0, height - 1).astype(np.intp)
    colours = frame.image[row, column]
    return np.repeat(colours[:, None], 3, axis=1) if colours.ndim == 1 else colours
