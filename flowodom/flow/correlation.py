"""Correlation of two feature maps, looked up around where flow points, at several scales.

Two ways to the same numbers: ``AllPairs`` computes the correlation of every pixel with every other once and reads from
it; ``OnDemand`` computes only what is read, whose memory grows with the number of pixels instead of its square. Both
pool the second map, which is pooling the correlation, since both are linear.

Source: Teed and Deng, "RAFT: Recurrent All-Pairs Field Transforms for Optical Flow" (ECCV 2020), section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

CHUNK = 512
"""Pixels whose neighbourhoods ``OnDemand`` gathers at a time."""


class Correlation(Protocol):
    """Correlation features of the pixels of one feature map with places in another."""

    def __call__(self, places: Tensor) -> Tensor:
        """Looks up the neighbourhood of each place at every scale.

        Args:
            places: (B, 2, h, w) float32 places (u, v) in the second map, one for each pixel of the first.

        Returns:
            (B, levels (2 radius + 1)^2, h, w) float32; within a level the offset in v runs fastest.
        """
        ...


CorrelationKind = Callable[[Tensor, Tensor, int, int], Correlation]
"""Makes a correlation of two (B, C, h, w) maps with a number of levels and a radius."""


class AllPairs:
    """The correlation volume of all pairs.

    Args:
        first: (B, C, h, w) features.
        second: (B, C, h, w) features.
        levels: Scales, each half the one before.
        radius: Neighbours on either side that are looked up.
    """

    def __init__(self, first: Tensor, second: Tensor, levels: int, radius: int) -> None:
        self._radius = radius
        first = first.flatten(2).mT / first.shape[1] ** 0.5
        pyramid = _pyramid(second, levels)
        self._sizes = [level.shape[-2:] for level in pyramid]
        volumes = [(first @ level.flatten(2)).flatten(0, 1) for level in pyramid]
        # Multiplied in the precision of the networks; but gradients of many look-ups add up.
        self._volumes = [volume.float() if volume.requires_grad else volume for volume in volumes]

    def __call__(self, places: Tensor) -> Tensor:
        """Looks up; see ``Correlation``."""

        def read(level: int, u: Tensor, v: Tensor) -> Tensor:
            index = v * self._sizes[level][1] + u
            return self._volumes[level].gather(1, index.flatten(1)).view(index.shape).float()

        return _look_up(places, self._sizes, self._radius, read)


class OnDemand:
    """Correlation computed where it is looked up.

    Args:
        first: (B, C, h, w) features.
        second: (B, C, h, w) features.
        levels: Scales, each half the one before.
        radius: Neighbours on either side that are looked up.
    """

    def __init__(self, first: Tensor, second: Tensor, levels: int, radius: int) -> None:
        self._radius = radius
        self._first = first.float().flatten(2).mT.flatten(0, 1) / first.shape[1] ** 0.5
        self._pyramid = _pyramid(second.float(), levels)

    def __call__(self, places: Tensor) -> Tensor:
        """Looks up; see ``Correlation``."""

        def read(level: int, u: Tensor, v: Tensor) -> Tensor:
            second = self._pyramid[level]
            batch, channels, height, width = second.shape
            cells = second.permute(0, 2, 3, 1).reshape(batch * height * width, channels)
            image = torch.arange(batch, device=u.device).repeat_interleave(len(u) // batch)
            index = (image[:, None, None] * height + v) * width + u
            with torch.autocast(u.device.type, enabled=False):
                values = [
                    torch.einsum("nabc,nc->nab", cells[where], mine)
                    for where, mine in zip(torch.split(index, CHUNK), torch.split(self._first, CHUNK), strict=True)
                ]
            return torch.cat(values)

        return _look_up(places, [second.shape[-2:] for second in self._pyramid], self._radius, read)


def _pyramid(finest: Tensor, levels: int) -> list[Tensor]:
    """Returns (B, C, h + 2, w + 2) maps at each scale, within a border of zeros: outside, nothing correlates."""
    pyramid = [finest]
    for _ in range(levels - 1):
        pyramid.append(functional.avg_pool2d(pyramid[-1], 2))
    return [functional.pad(level, (1, 1, 1, 1)) for level in pyramid]


def _look_up(
    places: Tensor, sizes: list[torch.Size], radius: int, read: Callable[[int, Tensor, Tensor], Tensor]
) -> Tensor:
    """Reads whole cells around each place and blends neighbours, since all offsets share one fraction of a cell.

    Args:
        places: (B, 2, h, w) places at the finest scale.
        sizes: Height and width of each scale, border included.
        radius: Neighbours on either side.
        read: Gives the values (N, k, k) of a level at cells u (N, k, 1) and v (N, 1, k), counted from the border on.
    """
    batch, _, height, width = places.shape
    points = places.permute(0, 2, 3, 1).reshape(-1, 2)
    reach = torch.arange(-radius, radius + 2, device=places.device)
    found = []
    for level, (rows, columns) in enumerate(sizes):
        # Beyond the reach of the neighbourhood nothing is found; what diverged must still become an integer.
        limit = points.new_tensor((columns + radius, rows + radius))
        point = (points / 2**level + 1).nan_to_num().clamp_min(-radius - 1.0).minimum(limit)
        corner = point.floor()
        fraction = (point - corner)[..., None, None]
        cells = corner.long()[..., None] + reach
        u, v = cells.clamp_min(0).minimum(cells.new_tensor((columns - 1, rows - 1))[:, None]).unbind(1)
        values = read(level, u[:, :, None], v[:, None, :])
        values = torch.lerp(values[:, :-1], values[:, 1:], fraction[:, 0])
        values = torch.lerp(values[..., :-1], values[..., 1:], fraction[:, 1])
        found.append(values.flatten(1))
    return torch.cat(found, dim=1).view(batch, height, width, -1).permute(0, 3, 1, 2)
