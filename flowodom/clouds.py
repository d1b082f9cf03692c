"""Turns the dense fields of a frame pair into points that carry a colour and a velocity of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowodom.config import CloudConfig
from flowodom.frame import Frame
from flowodom.scene_flow import PropertySet
from flowodom.scene_flow.moving import Moving
from flowodom.scene_flow.objects import MovingObject


@dataclass(frozen=True)
class Cloud:
    """Points of one frame.

    Attributes:
        fields: Name to (N,) float32: x y z (metres, where the point is now, current optical frame), rgb ((N, 3) uint8),
            vx vy vz (m/s relative to the static world, current optical frame), moving_probability (0 to 1), object_id
            (int32, 0 for none), weight (0 to 1) and confidence (inverse variance, 1/m^2).
        moving: (N,) bool, True where a point moves on its own.
    """

    fields: dict[str, NDArray[Any]]
    moving: NDArray[np.bool_]

    def select(self, mask: NDArray[Any]) -> Cloud:
        """Returns the points where the (N,) bool ``mask`` is True, or those that an index names."""
        return Cloud({name: values[mask] for name, values in self.fields.items()}, self.moving[mask])


def make_cloud(
    frame: Frame,
    properties: PropertySet,
    interval: float,
    config: CloudConfig,
    moving: Moving | None = None,
    objects: Sequence[MovingObject] = (),
    pose: Tensor | None = None,
) -> Cloud:
    """Keeps the points whose depth is known, in range, one a voxel.

    The velocity is the expected one: that of the point's object, or else what scene flow leaves after the camera's own
    motion, times the probability that the point moves at all. What stands still has none.

    Args:
        frame: The current frame, for the colours.
        properties: The fields, from the previous frame to the current one.
        interval: Seconds between the two, positive.
        config: Range, voxels, and what counts as moving.
        moving: What moves on its own in the current frame; None for nothing.
        objects: The objects in it.
        pose: (4, 4) float64 ``T_odom_camera``, needed with objects.
    """
    now = (properties.points + properties.scene_flow).reshape(-1, 3)
    keep = torch.isfinite(now).all(-1) & (now[:, 2] > 0)
    if config.range > 0:
        keep &= now.norm(dim=-1) <= config.range
    index = keep.nonzero()[:, 0]
    if config.voxel > 0:
        index = index[_one_a_voxel(now[index], config.voxel)]
    now = now[index]
    pixels = (properties.camera.pixels(device=now.device) + properties.flow).reshape(-1, 2)[index]
    velocity = properties.residual.reshape(-1, 3)[index] / interval
    probability = torch.zeros_like(now[:, 0])
    numbers = torch.zeros(len(now), dtype=torch.int32, device=now.device)
    if moving is not None:
        places = moving.index(properties.camera, pixels)
        probability = moving.at(properties.camera, pixels)
        for known in objects:
            if known.mask is None or known.mask.shape != moving.logit.shape:
                continue
            assert pose is not None
            on = torch.from_numpy(known.mask.take(places)).to(now.device)
            numbers[on] = known.id
            velocity[on] = known.velocity_at(now[on], pose)
    weight = properties.weight.reshape(-1)[index] * (1 - probability)
    velocity = velocity * probability[:, None]
    confidence = properties.confidence.reshape(-1)[index]
    columns = torch.cat((now, velocity, torch.stack((probability, weight, confidence), dim=-1)), dim=-1)
    x, y, z, vx, vy, vz, p, w, c = columns.to(torch.float32).cpu().numpy().T
    fields = {"x": x, "y": y, "z": z, "rgb": _colours(frame, properties, pixels), "vx": vx, "vy": vy, "vz": vz}
    fields |= {"moving_probability": p, "object_id": numbers.cpu().numpy(), "weight": w, "confidence": c}
    return Cloud(fields, p > config.probability)


def _one_a_voxel(points: Tensor, size: float) -> Tensor:
    """Returns the indices of the first of (N, 3) points in each cube of ``size`` metres."""
    cell = (points / size).floor().long()
    cell = cell - cell.amin(0) if len(cell) else cell
    span = cell.amax(0) + 1 if len(cell) else cell.new_ones(3)
    key, order = ((cell[:, 0] * span[1] + cell[:, 1]) * span[2] + cell[:, 2]).sort(stable=True)
    first = torch.ones_like(key, dtype=torch.bool)
    first[1:] = key[1:] != key[:-1]
    return order[first].sort().values


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
