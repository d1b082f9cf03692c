"""Learning the single-image field from rendered worlds, where depth and motion are exact.

Each step learns the depth of one view, how sure to be of it, and what the other view sees of its field.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from flowodom.depth.field import (
    COARSER,
    LEAST_SIZE,
    FieldConfig,
    FieldNetwork,
    load_field,
    places,
    sample,
    save_field,
)
from flowodom.drawing import inverse_depth_picture
from flowodom.errors import ConfigError
from flowodom.geometry import se3
from flowodom.training.samples import Samples, Source, sources
from flowodom.training.supervised import Plan, Run, processes
from flowodom.worlds.pairs import PairBatch

RAYS = 768
"""Rays of a view on which its depth is compared."""

OTHER_RAYS = 64
"""Rays of the other view on which colours are compared."""

FARTHEST = 1 / 160
"""Least inverse depth that is told from infinity, 1/m."""

JUDGED = 1 / 60
"""Least inverse depth on which a field is judged, 1/m."""

JUDGED_VIEWS = 64
"""Pairs of unseen worlds to judge by; each tells one scale."""

SHOWN = 6
"""Views on the picture sheet."""


@dataclass(frozen=True)
class Views(Samples):
    """Pairs of views of worlds: images, and what is true of the first.

    Attributes:
        images: (B, 2, 3, H, W) uint8 RGB.
        rho: (B, H, W) float32 inverse depth of the first, 1/m.
        moving: (B, H, W) bool, what the second shows of things that move on their own.
        motion: (B, 4, 4) float32 ``T_first_second``, metres.
        intrinsics: (B, 4) float32 fx, fy, cx, cy in shares of width and height.
    """

    images: Tensor
    rho: Tensor
    moving: Tensor
    motion: Tensor
    intrinsics: Tensor

    @classmethod
    def of(cls, pairs: PairBatch) -> Views:
        """Returns what rendered pairs tell of depth."""
        height, width = pairs.depth0.shape[-2:]
        size = pairs.intrinsics.new_tensor((width, height, width, height))
        centre = pairs.intrinsics.new_tensor((0, 0, 0.5, 0.5))
        images = torch.stack((pairs.image0, pairs.image1), 1)
        motion, intrinsics = se3.inverse(pairs.motion), (pairs.intrinsics + centre) / size
        return cls(images, 1 / pairs.depth0, pairs.object_id1 > 0, motion, intrinsics)

    def mirrored(self) -> Views:
        """See ``Samples``."""
        other = torch.diag(self.motion.new_tensor((-1, 1, 1, 1)))
        fx, fy, cx, cy = self.intrinsics.unbind(-1)
        return Views(
            self.images.flip(-1),
            self.rho.flip(-1),
            self.moving.flip(-1),
            other @ self.motion @ other,
            torch.stack((fx, fy, 1 - cx, cy), -1),
        )


@dataclass(frozen=True)
class Lesson(Samples):
    """Views, and the random rays on which they are compared with what the field renders.

    Attributes:
        views: B pairs of views.
        place: (B, N, 2) places in the first view.
        offset: (B, N, K) where in its cells each ray is sampled.
        other: (B, M, 2) places in the second view.
        other_offset: (B, M, K) likewise.
    """

    views: Views
    place: Tensor
    offset: Tensor
    other: Tensor
    other_offset: Tensor

    @classmethod
    def draw(cls, views: Views, cells: int, seed: int) -> Lesson:
        """Returns views with random rays of ``cells`` cells; the same seed gives the same."""
        generator = torch.Generator().manual_seed(seed)
        shapes = (RAYS, 2), (RAYS, cells), (OTHER_RAYS, 2), (OTHER_RAYS, cells)
        return cls(views, *(torch.rand(len(views), *shape, generator=generator) for shape in shapes))


class FieldTask:
    """Depth, its uncertainty, and what another camera would see.

    Args:
        train: Views to learn from.
        unseen: Views to judge by, from other worlds.
        network: The field that learns.
        judged: How many to judge by.
    """

    name = "field"
    model: nn.Module

    def __init__(self, train: Source[Views], unseen: Source[Views], network: FieldNetwork, *, judged: int = 64) -> None:
        self.model, self._cells = network, network.config.cells
        self._train, self._unseen, self._judged = train, unseen, judged
        self._exam: list[Views] = []

    def batch(self, numbers: Sequence[int]) -> Lesson:
        """Returns views and rays; see ``Task``."""
        return Lesson.draw(self._train(numbers), self._cells, numbers[0])

    def loss(self, model: nn.Module, batch: Lesson, device: torch.device) -> Tensor:
        """Returns the sum of ``losses``; see ``Task``."""
        return torch.stack(list(losses(model, batch.to(device)).values())).sum()

    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Judges the field on unseen worlds, and tells it how sure of itself it may be; see ``Task`` and ``judge``."""
        assert isinstance(model, FieldNetwork)
        figures = judge(model, [views.to(device) for views in self._examination()])
        model.config = dataclasses.replace(
            model.config, scale_deviation=figures["scale_deviation"], calibration=figures["calibration"]
        )
        return figures

    def sheet(self, model: nn.Module, device: torch.device) -> NDArray[np.uint8]:
        """Draws image, true depth, found depth, relative error and relative deviation in rows; see ``Task``."""
        assert isinstance(model, FieldNetwork)
        return np.concatenate([_row(model, views.to(device)) for views in self._examination()[:SHOWN]])

    def save(self, path: Path, model: nn.Module, words: Mapping[str, str]) -> None:
        """See ``Task``."""
        assert isinstance(model, FieldNetwork)
        save_field(path, model, words)

    def _examination(self) -> list[Views]:
        if not self._exam:
            self._exam = [self._unseen([number]) for number in range(self._judged)]
        return self._exam


def losses(model: nn.Module, lesson: Lesson) -> dict[str, Tensor]:
    """Returns the losses of a batch, weighted.

    Args:
        model: The field, perhaps wrapped to share gradients.
        lesson: The batch, on the field's device.
    """
    views = lesson.views
    images = views.images.float() / 255
    rho, variance, seen, share = model(
        images[:, 0], views.intrinsics, lesson.place, lesson.other, views.motion, lesson.offset, lesson.other_offset
    )
    true = _nearest(views.rho, lesson.place).clamp_min(FARTHEST)
    error = (rho.clamp_min(1e-4) / true).log()
    deviation = variance.sqrt()
    likelihood = (rho - true).abs() * math.sqrt(2) / deviation + (deviation / true).log()
    # What has moved on its own is not where the motion of the camera alone would show it.
    share = share * ~_nearest(views.moving.float(), lesson.other).bool()
    return {
        "depth": 0.7 * error.abs().mean(),
        # Shape counts beside scale.
        "shape": 0.35 * (error - error.detach().median(1, keepdim=True).values).abs().mean(),
        "likelihood": 0.6 * likelihood.mean(),
        "colour": 0.7 * ((seen - sample(images[:, 1], lesson.other)).abs().mean(-1) * share).mean(),
    }


@torch.no_grad()
def judge(network: FieldNetwork, exam: Sequence[Views]) -> dict[str, float]:
    """Returns how well a field does on the first views of pairs, each of a world of its own.

    Returns:
        ``abs_rel``, the mean of |depth - truth| / truth up to 60 m; ``delta``, the share of the pixels within a factor
        of 1.25 of the truth; ``abs_rel_scaled``, as ``abs_rel`` after scaling by the median; ``scale_deviation``, the
        standard deviation of the logarithm of that scale; ``calibration``, the factor that makes the variance that of
        the errors.
    """
    rows = []
    for views in exam:
        rho, variance, true = (part.flatten() for part in _found(network, views))
        there = true > JUDGED
        if not there.any():
            continue
        rho, true, variance = rho[there], true[there], variance[there]
        ratio = true / rho
        scale = ratio.median()
        rows.append(
            (
                (ratio - 1).abs().mean(),
                (torch.maximum(ratio, 1 / ratio) < 1.25).float().mean(),
                (ratio / scale - 1).abs().mean(),
                scale.log(),
                ((rho * scale - true).square() / (variance * scale.square())).quantile(0.8),
            )
        )
    table = torch.tensor(rows)
    mean = table.mean(0).tolist()
    return {
        "abs_rel": mean[0],
        "delta": mean[1],
        "abs_rel_scaled": mean[2],
        "scale_deviation": float(table[:, 3].std(unbiased=False)),
        # Errors have heavy tails: four fifths of them, not half, are made to be where a normal deviate has them.
        "calibration": mean[4] / 1.642,
    }


def _found(network: FieldNetwork, views: Views) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the (B, h, w) inverse depth that a field renders, its variance, and the truth."""
    batch, height, width = views.rho.shape
    images = views.images[:, 0].float() / 255
    rows, columns = height // COARSER, width // COARSER
    at = places(rows, columns, images).reshape(1, -1, 2).expand(batch, -1, -1)
    rho, variance = network.depth(network.encode(images, views.intrinsics), at)
    size = (batch, rows, columns)
    return rho.float().view(size), variance.float().view(size), _nearest(views.rho, at).view(size)


def _row(network: FieldNetwork, views: Views) -> NDArray[np.uint8]:
    """Draws the first of some views."""
    rho, variance, true = (part[0].cpu().numpy() for part in _found(network, views))
    colours = views.images[0, 0].permute(1, 2, 0).cpu().numpy()
    grey = np.asarray(cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
    near, far = (float(1 / np.quantile(true, q)) for q in (0.98, 0.02))

    def level(values: NDArray[np.float32]) -> NDArray[np.uint8]:
        large = cv2.resize(np.clip(255 * values, 0, 255).astype(np.uint8), grey.shape[::-1])
        return np.repeat(np.asarray(large, dtype=np.uint8)[..., None], 3, axis=-1)

    depths = [inverse_depth_picture(grey, 1 / np.maximum(part, FARTHEST), near, far) for part in (true, rho)]
    shown = np.maximum(true, FARTHEST)
    return np.concatenate([colours, *depths, level(abs(rho / shown - 1)), level(np.sqrt(variance) / shown)], axis=1)


def _nearest(maps: Tensor, place: Tensor) -> Tensor:
    """Reads (B, H, W) maps at the pixels nearest to (B, N, 2) places, so that depth edges stay sharp."""
    grid = (2 * place - 1)[:, None].to(maps.dtype)
    found = functional.grid_sample(maps[:, None], grid, mode="nearest", padding_mode="border", align_corners=False)
    return found[:, 0, 0]


def train_field(
    out: Path,
    plan: Plan,
    *,
    device: torch.device,
    start: Path | None = None,
    resume: bool = False,
    progress: bool = False,
) -> bool:
    """Trains a single-image field.

    Args:
        out: Folder of the weights, the log, the picture sheet, the checkpoints and stored pairs.
        plan: How long, how fast and on what.
        device: Where to train.
        start: Weights to begin with, and so the shape; the default shape and random ones when None.
        resume: Whether to go on from the last checkpoint, if there is one.
        progress: Whether to draw progress bars.

    Returns:
        Whether the plan is done.

    Raises:
        ConfigError: A value is unfit, or the run in ``out`` is not to be resumed or had another plan.
        WeightsError: The checkpoint is damaged, or what is to begin with is no field.
    """
    if min(plan.size) < LEAST_SIZE:
        raise ConfigError(f"width and height must be {LEAST_SIZE} or more, got {plan.size}")
    with processes(device) as group:
        torch.manual_seed(plan.seed)
        bar = progress and group.rank == 0
        network = FieldNetwork(FieldConfig()) if start is None else load_field(start)
        network.config = dataclasses.replace(network.config, pixels=plan.size[0] * plan.size[1])
        train, unseen = sources(Views, Views.of, out, plan, group.device, progress=bar)
        task = FieldTask(train, unseen, network, judged=JUDGED_VIEWS)
        return Run(task, out, plan, group=group, resume=resume).train(progress=progress)
