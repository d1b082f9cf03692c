"""Pairs of images with their exact flow, by number: the same number gives the same pair, on any machine.

Where there is a GPU, ``LivePairs`` renders every batch anew. On a processor that takes longer than a step of training:
there ``StoredPairs`` keeps what ``RenderedPairs`` makes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import cv2
import torch
from torch import Tensor
from tqdm import tqdm

from flowodom import weights
from flowodom.errors import ShapeError, WeightsError
from flowodom.geometry import PinholeCamera
from flowodom.worlds import Motion, Rendering, World, hand_held, pinhole, room, rotation, straight, street, wheeled
from flowodom.worlds.pairs import TrainingPairs
from flowodom.worlds.photometric import photometric

PAIRS_A_WORLD = 8
"""Consecutive numbers that share a world, since making one takes as long as rendering several pairs of it."""

FIRST_WORLD = 1 << 20
"""Seed of the first world; benchmarks and tests use the small ones."""

UNSEEN = 1 << 30
"""First number of the pairs that are kept for validation; training never counts so far."""


@dataclass(frozen=True)
class Pair:
    """Two grey images and the exact motion between them.

    Attributes:
        previous: (H, W) uint8.
        current: (H, W) uint8.
        forward: (H, W, 2) float32 pixels, from the previous image to the current one; NaN where there is none.
        backward: (H, W, 2) float32 pixels, from the current image to the previous one.
        forward_hidden: (H, W) bool on the previous image: the current one does not show the point.
        backward_hidden: (H, W) bool on the current image: the previous one does not show the point.
    """

    previous: Tensor
    current: Tensor
    forward: Tensor
    backward: Tensor
    forward_hidden: Tensor
    backward_hidden: Tensor


PairSource = Callable[[int], Pair]
"""Gives the pair of a number; all of one size."""


class RenderedPairs:
    """Pairs rendered from random worlds: rooms and streets, with movers, cameras of all kinds, and many rates.

    Args:
        size: Width and height of the images, pixels.
        device: Where to render.
    """

    def __init__(self, *, size: tuple[int, int] = (320, 240), device: torch.device | str = "cpu") -> None:
        self._size = size
        self._place = lru_cache(maxsize=2)(lambda seed: _place(seed, size, device))

    def __call__(self, number: int) -> Pair:
        """Returns the pair of a number, 0 or more."""
        world, path, camera = self._place(FIRST_WORLD + number // PAIRS_A_WORLD)
        generator = torch.Generator().manual_seed(number)
        start, pace = torch.rand(2, generator=generator).tolist()
        start, interval = 10 * start, (1 / 40) * 8**pace
        before, after = (world.render(path(t), t, camera) for t in (start, start + interval))
        truth = world.flow_between(before, after)
        return Pair(
            _grey(before),
            _grey(after),
            truth.forward.float(),
            truth.backward.float(),
            truth.forward_hidden,
            truth.backward_hidden,
        )


def _place(seed: int, size: tuple[int, int], device: torch.device | str) -> tuple[World, Motion, PinholeCamera]:
    """Returns a random world, a camera's path through it, and the camera."""
    generator = torch.Generator().manual_seed(seed)
    kind, motion, view, turn, speed, share = torch.rand(6, generator=generator).tolist()
    movers = int(torch.randint(0, 5, (), generator=generator))
    camera = pinhole(*size, field_of_view=50 + 40 * view)
    turn, speed = 8 * 6**turn, 0.15 * 6**speed
    path: Motion
    if kind < 0.3:
        if motion < 0.5:
            path = straight(position=(0.0, 0.0, 1.65), speed=10 * speed)
        else:
            path = hand_held(seed, position=(0.0, 0.0, 1.5), velocity=(3 * speed, 0.0, 0.0), turn=turn)
        return street(seed, movers=movers, device=device), path, camera
    if motion < 0.55:
        path = hand_held(seed, speed=speed, turn=turn)
    elif motion < 0.8:
        path = wheeled(seed, speed=speed)
    else:
        path = rotation(seed, turn=turn)
    coverage = 0.05 + 0.4 * share if movers and share < 0.6 else None
    return room(seed, movers=movers, coverage=coverage, path=path, device=device), path, camera


def _grey(rendering: Rendering) -> Tensor:
    assert rendering.image is not None
    return torch.from_numpy(cv2.cvtColor(rendering.image.cpu().numpy(), cv2.COLOR_RGB2GRAY)).to(rendering.image.device)


class LivePairs:
    """Pairs rendered on the device when they are asked for, as many at a time, with a camera's faults.

    Args:
        seed: The same seed gives the same pairs.
        size: Width and height of the images, pixels.
        device: Where to render.
    """

    def __init__(self, *, seed: int, size: tuple[int, int], device: torch.device) -> None:
        self._seed, self._size, self._device = seed, size, device

    def __call__(self, numbers: Sequence[int]) -> list[Pair]:
        """Returns the pairs of consecutive numbers, of which the first is a multiple of how many there are."""
        index = numbers[0] // len(numbers)
        batch = photometric(TrainingPairs(self._seed, self._size, len(numbers), self._device)[index], index)
        weight = torch.tensor((0.299, 0.587, 0.114), device=self._device).view(1, 3, 1, 1)
        greys = [(x.float() * weight).sum(1).round().to(torch.uint8) for x in (batch.image0, batch.image1)]
        flows = [flow.permute(0, 2, 3, 1) for flow in (batch.flow_forward, batch.flow_backward)]
        hidden = (batch.hidden_forward, batch.hidden_backward)
        return [Pair(*parts) for parts in zip(*greys, *flows, *hidden, strict=True)]


class StoredPairs:
    """The first pairs of a source, kept in a folder and given in random order; damaged ones are made again.

    Args:
        source: Where they come from.
        folder: Where they are kept; made if missing.
        count: How many different ones; after so many they come again in another order.
    """

    def __init__(self, source: PairSource, folder: Path, *, count: int) -> None:
        if count < 1:
            raise ShapeError(f"there must be at least one pair to store, got {count}")
        folder.mkdir(parents=True, exist_ok=True)
        self._source, self._folder, self._count = source, folder, count
        self._order = lru_cache(maxsize=2)(
            lambda epoch: torch.randperm(count, generator=torch.Generator().manual_seed(epoch)).tolist()
        )

    def fill(self, *, progress: bool = False) -> None:
        """Makes what is missing, in the source's own order, in which it is fastest."""
        for place in tqdm(range(self._count), desc="pairs", unit="pair", disable=not progress):
            if not self._path(place).is_file():
                self._make(place)

    def __call__(self, number: int) -> Pair:
        """Returns the pair of a number."""
        epoch, index = divmod(number, self._count)
        place = self._order(epoch)[index]
        path = self._path(place)
        if path.is_file():
            with contextlib.suppress(WeightsError):
                return _unpack(weights.read(path)[0])
        return self._make(place)

    def _path(self, place: int) -> Path:
        return self._folder / f"{place:06d}.safetensors"

    def _make(self, place: int) -> Pair:
        stored = _pack(self._source(place))
        weights.write(self._path(place), stored, {})
        return _unpack(stored)


def _pack(pair: Pair) -> dict[str, Tensor]:
    """Returns a pair as it is stored: flow in half precision, exact to a hundredth of a pixel up to 16 of them."""
    values = {field.name: getattr(pair, field.name) for field in fields(pair)}
    return {name: value.half() if value.is_floating_point() else value for name, value in values.items()}


def _unpack(stored: dict[str, Tensor]) -> Pair:
    return Pair(**{name: value.float() if value.is_floating_point() else value for name, value in stored.items()})
