"""Learning flow: RAFT from nothing, and the refiner from what DIS finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowodom.drawing import flow_picture
from flowodom.errors import ConfigError, WeightsError
from flowodom.flow.checkpoint import load_raft, save_raft
from flowodom.flow.dis import DisFlow
from flowodom.flow.raft import LEAST_SIDE, STRIDE, Prediction, Raft
from flowodom.flow.refiner import Refiner, load_refiner, save_refiner
from flowodom.flow.uncertainty import variance
from flowodom.training.losses import flow_figures, sequence_loss
from flowodom.training.samples import Samples, Source, sources
from flowodom.training.supervised import Plan, Run, processes
from flowodom.worlds.pairs import PairBatch

MODELS = ("raft_small", "raft_large", "refiner")
"""Networks that ``train_flow`` knows."""

SHOWN = 6
"""Pairs on the picture sheet."""

GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey image."""


@dataclass(frozen=True)
class FlowPlan(Plan):
    """How long, how fast and on what flow is learned.

    Attributes:
        crop: Width and height of the part of the images that a step learns from, somewhere in them, pixels; None for
            all of them.
        updates: Of the flow, while RAFT learns.
    """

    crop: tuple[int, int] | None = None
    updates: int = 8


@dataclass(frozen=True)
class FlowBatch(Samples):
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

    @classmethod
    def of(cls, pairs: PairBatch) -> FlowBatch:
        """Returns what rendered pairs tell of flow."""
        weight = pairs.intrinsics.new_tensor(GREY).view(1, 3, 1, 1)
        previous, current = (
            (image.float() * weight).sum(1, keepdim=True).round().to(torch.uint8)
            for image in (pairs.image0, pairs.image1)
        )
        return cls(previous, current, pairs.flow_forward, pairs.hidden_forward)

    def mirrored(self) -> FlowBatch:
        """See ``Samples``."""
        flipped = {name: value.flip(-1) for name, value in self.tensors().items()}
        other = torch.tensor((-1.0, 1.0), device=self.flow.device).view(2, 1, 1)
        flows = ("flow", "start", "start_back")
        return FlowBatch(**{name: value * other if name in flows else value for name, value in flipped.items()})

    def cropped(self, left: int, top: int, size: tuple[int, int]) -> FlowBatch:
        """Returns the part of some width and height that begins at a pixel; what leaves it counts as hidden."""
        width, height = size
        part = (..., slice(top, top + height), slice(left, left + width))
        cut = FlowBatch(**{name: value[part] for name, value in self.tensors().items()})
        u = torch.arange(width, device=cut.flow.device) + cut.flow[:, 0]
        v = torch.arange(height, device=cut.flow.device)[:, None] + cut.flow[:, 1]
        inside = (u >= 0) & (u <= width - 1) & (v >= 0) & (v <= height - 1)
        return replace(cut, hidden=cut.hidden | ~inside)


class FlowTask:
    """What the two tasks share: batches of pairs, the loss, figures and pictures.

    Args:
        train: Pairs to learn from.
        unseen: Pairs to judge by, from other worlds.
        crop: Width and height of the part of a pair that is learned from; None for all of it.
        judged: How many pairs to judge by.
    """

    name: str
    model: nn.Module

    def __init__(
        self,
        train: Source[FlowBatch],
        unseen: Source[FlowBatch],
        *,
        crop: tuple[int, int] | None = None,
        judged: int = 32,
    ) -> None:
        self._train, self._unseen, self._crop, self._judged = train, unseen, crop, judged
        self._exam: list[FlowBatch] = []

    def batch(self, numbers: Sequence[int]) -> FlowBatch:
        """Returns pairs, all of them cut at the same place; see ``Task``."""
        pairs = self._train(numbers)
        if self._crop is not None:
            height, width = pairs.hidden.shape[-2:]
            place = np.random.default_rng(numbers[0])
            left, top = (int(place.integers(0, a - b + 1)) for a, b in zip((width, height), self._crop, strict=True))
            pairs = pairs.cropped(left, top, self._crop)
        return self.begun(pairs)

    def loss(self, model: nn.Module, batch: FlowBatch, device: torch.device) -> Tensor:
        """Returns the sequence loss; see ``Task``."""
        return sequence_loss(self.predict(model, batch, device), batch.flow.to(device), batch.hidden.to(device))

    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Returns mean figures over unseen pairs; see ``Task``."""
        rows = []
        for batch in self._examination():
            last = self.predict(model, batch, device)[-1]
            flow, truth, hidden = last.flow.cpu(), batch.flow.cpu(), batch.hidden.cpu()
            row = flow_figures(flow, truth, hidden)
            if batch.start is not None:
                start = flow_figures(batch.start.cpu(), truth, hidden)
                row |= {f"start_{name}": value for name, value in start.items()}
            if last.mixture is not None:
                seen = truth.isfinite().all(1) & ~hidden
                ratio = ((flow - truth).square().sum(1) / (2 * variance(last.mixture).cpu()))[seen]
                row["whitened"] = float(ratio.detach().mean())
            rows.append(row)
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

    def sheet(self, model: nn.Module, device: torch.device) -> NDArray[np.uint8]:
        """Draws image, true flow, found flow, error and deviation in rows; see ``Task``."""
        rows = []
        for batch in self._examination()[:SHOWN]:
            last = self.predict(model, batch, device)[-1]
            grey = batch.previous[0, 0].cpu().numpy()
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

    def begun(self, batch: FlowBatch) -> FlowBatch:
        """Returns pairs with what the network starts from, where it starts from anything."""
        return batch

    def _examination(self) -> list[FlowBatch]:
        if not self._exam:
            self._exam = [self.begun(self._unseen([number])) for number in range(self._judged)]
        return self._exam


class RaftTask(FlowTask):
    """RAFT with its uncertainty.

    Args:
        train: Pairs to learn from.
        unseen: Pairs to judge by.
        network: The RAFT that learns, with its uncertainty.
        updates: While training.
        crop: See ``FlowTask``.
        judged: How many to judge by.
    """

    def __init__(
        self,
        train: Source[FlowBatch],
        unseen: Source[FlowBatch],
        network: Raft,
        *,
        updates: int = 8,
        crop: tuple[int, int] | None = None,
        judged: int = 32,
    ) -> None:
        super().__init__(train, unseen, crop=crop, judged=judged)
        self.name = f"raft_{network.size}"
        self.model = network
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
        unseen: Pairs to judge by; sides multiples of 8.
        network: The refiner that learns.
        crop: See ``FlowTask``.
        judged: How many to judge by.
    """

    def __init__(
        self,
        train: Source[FlowBatch],
        unseen: Source[FlowBatch],
        network: Refiner,
        *,
        crop: tuple[int, int] | None = None,
        judged: int = 32,
    ) -> None:
        super().__init__(train, unseen, crop=crop, judged=judged)
        self.name = "refiner"
        self.model = network
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

    def begun(self, batch: FlowBatch) -> FlowBatch:
        """Returns pairs with what DIS finds, both ways."""
        fields = [self._dis(*pair) for pair in zip(batch.previous[:, 0], batch.current[:, 0], strict=True)]
        there, back = (
            torch.stack(flows).permute(0, 3, 1, 2).contiguous()
            for flows in zip(*((field.forward, field.backward) for field in fields), strict=True)
        )
        return replace(batch, start=there, start_back=back)


def train_flow(
    out: Path,
    plan: FlowPlan,
    *,
    model: str = "raft_small",
    device: torch.device,
    start: Path | None = None,
    resume: bool = False,
    progress: bool = False,
) -> bool:
    """Trains a network that finds flow.

    Args:
        out: Folder of the weights, the log, the picture sheet, the checkpoints and stored pairs.
        plan: How long, how fast and on what; sizes are multiples of 8, and at least 128 for RAFT. A part to learn from
            is no larger than the images.
        model: One of ``MODELS``.
        device: Where to train.
        start: Weights to begin with, published ones too; random ones when None.
        resume: Whether to go on from the last checkpoint, if there is one.
        progress: Whether to draw progress bars.

    Returns:
        Whether the plan is done.

    Raises:
        ConfigError: A value is unfit, or the run in ``out`` is not to be resumed or had another plan.
        WeightsError: The checkpoint is damaged, or what is to begin with is of another network.
    """
    least = 16 if model == "refiner" else LEAST_SIDE
    if model not in MODELS:
        raise ConfigError(f"the model must be one of {', '.join(MODELS)}, got {model!r}")
    for size in (plan.size, plan.crop or plan.size):
        if min(size) < least or any(side % STRIDE for side in size):
            raise ConfigError(f"width and height must be multiples of {STRIDE}, {least} or more, got {size}")
    if plan.crop is not None and any(a > b for a, b in zip(plan.crop, plan.size, strict=True)):
        raise ConfigError(f"what is cut out must fit into {plan.size}, got {plan.crop}")
    if plan.updates < 1:
        raise ConfigError(f"there must be at least one update, got {plan.updates}")
    with processes(device) as group:
        torch.manual_seed(plan.seed)
        bar = progress and group.rank == 0
        network = _refiner(start) if model == "refiner" else _raft(model.removeprefix("raft_"), start)
        train, unseen = sources(FlowBatch, FlowBatch.of, out, plan, group.device, progress=bar)
        task: RefinerTask | RaftTask
        if isinstance(network, Refiner):
            task = RefinerTask(train, unseen, network, crop=plan.crop)
        else:
            task = RaftTask(train, unseen, network, updates=plan.updates, crop=plan.crop)
        return Run(task, out, plan, group=group, resume=resume).train(progress=progress)


def _refiner(start: Path | None) -> Refiner:
    """Returns the refiner to begin with."""
    return Refiner() if start is None else load_refiner(start)


def _raft(size: str, start: Path | None) -> Raft:
    """Returns a RAFT with its uncertainty, which is untrained where the weights to begin with do not tell it."""
    network = Raft(size=size, uncertain=True)
    if start is not None:
        known = load_raft(start)
        if known.size != size:
            raise WeightsError(f"{start} holds raft_{known.size}, and raft_{size} is to be trained; name that model")
        network.load_state_dict(known.state_dict(), strict=False)  # published weights lack the uncertainty alone
    return network
