"""What a step learns from, by number: rendered on the device when it is asked for, or rendered once and kept.

All of it comes from ``TrainingPairs``, as cameras of all sorts would have taken it. Where there is a GPU, every batch
is rendered anew. On a processor that takes longer than a step of training: there ``Stored`` gives again what it has
kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from flowodom import weights
from flowodom.errors import ConfigError, WeightsError
from flowodom.training.supervised import Plan
from flowodom.worlds.pairs import PairBatch, TrainingPairs
from flowodom.worlds.photometric import photometric

UNSEEN = 1 << 30
"""Added to the seed of what is learned from, gives that of what is only judged by."""

BLOCK = 8
"""Samples that are rendered together to be kept."""

SMALL = 64
"""Most numbers a sample may have under one name to be kept in full precision: poses and lenses, not pictures."""

S = TypeVar("S", bound="Samples")

Source = Callable[[Sequence[int]], S]
"""Gives the samples of consecutive numbers, of which the first is a multiple of how many there are."""


@dataclass(frozen=True)
class Samples:
    """B samples in one: every field is a tensor (B, ...) or samples again, None for what none of them has."""

    def tensors(self) -> dict[str, Tensor]:
        """Returns what they have, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def __len__(self) -> int:
        return len(next(iter(self.tensors().values())))

    def __getitem__(self: S, index: Tensor | slice) -> S:
        return type(self)(**{name: value[index] for name, value in self.tensors().items()})

    def to(self: S, device: torch.device | str) -> S:
        """Returns them on another device."""
        return type(self)(**{name: value.to(device) for name, value in self.tensors().items()})

    def mirrored(self: S) -> S:
        """Returns what a world with left and right exchanged would have given."""
        raise NotImplementedError


def together(parts: Sequence[S]) -> S:
    """Returns all samples in one."""
    found = [part.tensors() for part in parts]
    return type(parts[0])(**{name: torch.cat([tensors[name] for tensors in found]) for name in found[0]})


def rendered(kind: Callable[[PairBatch], S], *, seed: int, size: tuple[int, int], device: torch.device) -> Source[S]:
    """Returns a source that renders pairs of worlds when they are asked for, with a camera's faults.

    Args:
        kind: Makes samples of pairs.
        seed: The same seed gives the same pairs, if as many are asked for at a time.
        size: Width and height of the pictures.
        device: Where to render; the samples stay there.
    """

    def source(numbers: Sequence[int]) -> S:
        index = numbers[0] // len(numbers)
        return kind(photometric(TrainingPairs(seed, size, len(numbers), device)[index], index))

    return source


class Stored(Generic[S]):
    """The first samples of a source, kept in a folder and given in random order, mirrored or not.

    Damaged ones are made again.

    Args:
        kind: What the source gives.
        source: Where they come from.
        folder: Where they are kept; made if missing.
        count: How many different ones; after so many they come again in another order.

    Raises:
        ConfigError: There are none to be kept.
    """

    def __init__(self, kind: type[S], source: Source[S], folder: Path, *, count: int) -> None:
        if count < 1:
            raise ConfigError(f"there must be at least one sample to keep, got {count}")
        folder.mkdir(parents=True, exist_ok=True)
        self._kind, self._source, self._folder, self._count = kind, source, folder, count
        self._shuffled = lru_cache(maxsize=2)(
            lambda epoch: torch.randperm(count, generator=torch.Generator().manual_seed(epoch)).tolist()
        )

    def fill(self, *, progress: bool = False) -> None:
        """Makes what is missing."""
        for place in tqdm(range(self._count), desc="pairs", unit="pair", disable=not progress):
            if not self._path(place).is_file():
                self._make(place)

    def __call__(self, numbers: Sequence[int]) -> S:
        """Returns the samples of some numbers."""
        return together([self._one(number) for number in numbers])

    def _one(self, number: int) -> S:
        epoch, index = divmod(number, self._count)
        sample = self._read(self._shuffled(epoch)[index])
        mirrored = torch.rand((), generator=torch.Generator().manual_seed(number)) < 0.5
        return sample.mirrored() if mirrored else sample

    def _path(self, place: int) -> Path:
        return self._folder / f"{place:06d}.safetensors"

    def _read(self, place: int) -> S:
        if self._path(place).is_file():
            with contextlib.suppress(WeightsError):
                return self._kind(**_unpacked(weights.read(self._path(place))[0]))
        self._make(place)
        return self._kind(**_unpacked(weights.read(self._path(place))[0]))

    def _make(self, place: int) -> None:
        """Renders and keeps the block in which a sample is."""
        first = place - place % BLOCK
        block = self._source(range(first, first + BLOCK))
        for k in range(BLOCK):
            weights.write(self._path(first + k), _packed(block[k : k + 1].tensors()), {})


def _packed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a sample as it is kept: its pictures in half precision, flow exact to a hundredth of a pixel up to 16."""
    return {
        name: value.half() if value.is_floating_point() and value.numel() > SMALL else value
        for name, value in tensors.items()
    }


def _unpacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}


def sources(
    kind: type[S],
    of: Callable[[PairBatch], S],
    out: Path,
    plan: Plan,
    device: torch.device,
    *,
    progress: bool = False,
) -> tuple[Source[S], Source[S]]:
    """Returns what to learn from and what to judge by, the latter from worlds that the former never has.

    Args:
        kind: What a task takes.
        of: Makes that of pairs of worlds.
        out: Folder of the run; what is kept is in ``pairs`` there.
        plan: Says how large and how many.
        device: Where to render.
        progress: Whether to draw a progress bar while rendering what is kept.
    """
    learned, unseen = (rendered(of, seed=s, size=plan.size, device=device) for s in (plan.seed, UNSEEN + plan.seed))
    if not plan.pairs:
        return learned, unseen
    stored = Stored(kind, learned, out / "pairs", count=plan.pairs)
    stored.fill(progress=progress)
    return stored, unseen
