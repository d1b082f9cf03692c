"""Learning flow: RAFT from nothing, and the refiner from what DIS finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowodom.drawing import flow_picture
from flowodom.flow.checkpoint import save_raft
from flowodom.flow.dis import DisFlow
from flowodom.flow.raft import Prediction, Raft
from flowodom.flow.refiner import Refiner, save_refiner
from flowodom.flow.uncertainty import variance
from flowodom.training.augmentation import augment
from flowodom.training.losses import flow_figures, sequence_loss
from flowodom.training.pairs import Pair, PairSource

SHOWN = 6
"""Pairs on the picture sheet."""


@dataclass(frozen=True)
class FlowBatch:
    """Pairs of images and their flow.

    Attributes:
        previous: (B, 1, H, W) uint8.
        current: (B, 1, H, W) uint8.
        flow: (B, 2, H, W) float32 pixels, NaN where unknown.
        hidden: (B, H, W) bool, the current image does not show the point.
        start: (B, 2, H, W) float32 pixels, what another method found; None for RAFT.
        start_back: (B, 2, H, W) float32 pixels, likewise from the current image to the previous one.
    """

    previous: Tensor
    current: Tensor
    flow: Tensor
    hidden: Tensor
    start: Tensor | None = None
    start_back: Tensor | None = None


class FlowTask:
    """What the two tasks share: batches of pairs, the loss, figures and pictures.

    Args:
        train: Pairs to learn from.
        unseen: Pairs to judge by, from other worlds.
        judged: How many of them.
        crop: Width and height of what is learned from at a time.
        seed: Of the augmentation.
    """

    name: str
    model: nn.Module

    def __init__(
        self, train: PairSource, unseen: PairSource, *, judged: int = 32, crop: tuple[int, int], seed: int = 1
    ) -> None:
        self._train, self._unseen = train, unseen
        self._judged, self._crop, self._seed = judged, crop, seed
        self._exam: list[FlowBatch] = []

    def batch(self, numbers: Sequence[int]) -> FlowBatch:
        """Returns augmented pairs; see ``Task``."""
        return self._collate([augment(self._train(n), (self._seed, n), self._crop) for n in numbers])

    def loss(self, model: nn.Module, batch: FlowBatch, device: torch.device) -> Tensor:
        """Returns the sequence loss; see ``Task``."""
        return sequence_loss(self.predict(model, batch, device), batch.flow.to(device))

    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Returns mean figures over unseen pairs, with mild augmentation; see ``Task``."""
        rows = []
        for batch in self._examination():
            last = self.predict(model, batch, device)[-1]
            flow, truth = last.flow.cpu(), batch.flow
            row = flow_figures(flow, truth, batch.hidden)
            if batch.start is not None:
                start = flow_figures(batch.start, truth, batch.hidden)
                row |= {f"start_{name}": value for name, value in start.items()}
            if last.mixture is not None:
                seen = truth.isfinite().all(1) & ~batch.hidden
                ratio = ((flow - truth).square().sum(1) / (2 * variance(last.mixture).cpu()))[seen]
                row["whitened"] = float(ratio.mean())
            rows.append(row)
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

    def sheet(self, model: nn.Module, device: torch.device) -> NDArray[np.uint8]:
        """Draws image, true flow, found flow, error and deviation in rows; see ``Task``."""
        rows = []
        for batch in self._examination()[:SHOWN]:
            last = self.predict(model, batch, device)[-1]
            grey = batch.previous[0, 0].numpy()
            longest = max(1.0, float(batch.flow[0].nan_to_num().norm(dim=0).quantile(0.95)))
            true, found = (f[0].permute(1, 2, 0).float().cpu().numpy() for f in (batch.flow, last.flow))
            error = (found - true) * 4
            cells = [
                np.repeat(grey[..., None], 3, axis=-1),
                *(flow_picture(grey, field, longest) for field in (true, found, error)),
            ]
            if last.mixture is not None:
                sigma = variance(last.mixture)[0].sqrt().cpu().numpy()
                level = np.clip(255 * sigma / longest, 0, 255).astype(np.uint8)
                cells.append(np.repeat(level[..., None], 3, axis=-1))
            rows.append(np.concatenate(cells, axis=1))
        return np.concatenate(rows)

    def predict(self, model: nn.Module, batch: FlowBatch, device: torch.device) -> list[Prediction]:
        """Returns what the network finds, after each update."""
        raise NotImplementedError

    def _start(self, batch: list[Pair]) -> tuple[Tensor, Tensor] | None:
        """Returns what another method finds, both ways; None where none is needed."""
        return None

    def _examination(self) -> list[FlowBatch]:
        if not self._exam:
            numbers = range(self._judged)
            self._exam = [self._collate([augment(self._unseen(n), (0, n), self._crop)]) for n in numbers]
        return self._exam

    def _collate(self, pairs: list[Pair]) -> FlowBatch:
        return FlowBatch(
            torch.stack([pair.previous for pair in pairs]).unsqueeze(1),
            torch.stack([pair.current for pair in pairs]).unsqueeze(1),
            torch.stack([pair.forward for pair in pairs]).permute(0, 3, 1, 2).contiguous(),
            torch.stack([pair.forward_hidden for pair in pairs]),
            *(self._start(pairs) or ()),
        )


class RaftTask(FlowTask):
    """RAFT with its uncertainty.

    Args:
        train: Pairs to learn from.
        unseen: Pairs to judge by.
        size: One of ``raft.SIZES``.
        updates: While training.
        crop: Width and height of what is learned from at a time; multiples of 8, at least 128.
        seed: Of the augmentation.
    """

    def __init__(
        self,
        train: PairSource,
        unseen: PairSource,
        *,
        size: str = "small",
        updates: int = 8,
        crop: tuple[int, int] = (320, 240),
        seed: int = 1,
    ) -> None:
        super().__init__(train, unseen, crop=crop, seed=seed)
        self.name = f"raft_{size}"
        self.model = Raft(size=size, uncertain=True)
        self._updates = updates

    def predict(self, model: nn.Module, batch: FlowBatch, device: torch.device) -> list[Prediction]:
        """See ``FlowTask``."""
        previous, current = (
            images.to(device).expand(-1, 3, -1, -1) / 127.5 - 1 for images in (batch.previous, batch.current)
        )
        return cast(list[Prediction], model(previous, current, updates=self._updates))

    def save(self, path: Path, model: nn.Module, words: Mapping[str, str]) -> None:
        """See ``Task``."""
        assert isinstance(model, Raft)
        save_raft(path, model, words)


class RefinerTask(FlowTask):
    """The refiner, from what DIS finds.

    Args:
        train: Pairs to learn from.
        unseen: Pairs to judge by.
        crop: Width and height of what is learned from at a time; multiples of 8.
        seed: Of the augmentation.
    """

    def __init__(
        self, train: PairSource, unseen: PairSource, *, crop: tuple[int, int] = (320, 240), seed: int = 1
    ) -> None:
        super().__init__(train, unseen, crop=crop, seed=seed)
        self.name = "refiner"
        self.model = Refiner()
        self._dis = DisFlow()

    def predict(self, model: nn.Module, batch: FlowBatch, device: torch.device) -> list[Prediction]:
        """See ``FlowTask``."""
        assert batch.start is not None
        assert batch.start_back is not None
        first, second = batch.previous.to(device).float(), batch.current.to(device).float()
        return cast(list[Prediction], model(first, second, batch.start.to(device), batch.start_back.to(device)))

    def save(self, path: Path, model: nn.Module, words: Mapping[str, str]) -> None:
        """See ``Task``."""
        assert isinstance(model, Refiner)
        save_refiner(path, model, words)

    def _start(self, batch: list[Pair]) -> tuple[Tensor, Tensor]:
        fields = [self._dis(pair.previous, pair.current) for pair in batch]
        forward = torch.stack([field.forward for field in fields])
        backward = torch.stack([field.backward for field in fields])
        return forward.permute(0, 3, 1, 2).contiguous(), backward.permute(0, 3, 1, 2).contiguous()
