"""Training of the single-image field on rendered worlds, where depth and motion are exact.

Each step learns the depth of one view, and what the other view sees of its field. The same seed gives the same weights,
and a run that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import pickle
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from flowodom import weights
from flowodom.depth.field import COARSER, FieldConfig, FieldNetwork, places, sample, save_field
from flowodom.errors import ConfigError, WeightsError
from flowodom.geometry import se3
from flowodom.training.views import ViewPairs, render_pairs

FIRST_WORLD = 1_000_000
"""Seed of the first world; tests and benchmarks use the small ones."""

UNSEEN = 2_000_000
"""Seed of the first world that only the validation sees."""

PAIRS_A_WORLD = 8
"""Pairs of views of one world: making a world takes as long as rendering several."""

RAYS = 768
"""Rays of a view on which its depth is compared."""

OTHER_RAYS = 128
"""Rays of the other view on which colours are compared."""

EMA = 0.998
"""Share of the averaged weights that a step leaves."""

KEEP = 500
"""Steps between checkpoints."""

FARTHEST = 1 / 160
"""Least inverse depth that is told from infinity, 1/m."""

JUDGED = 1 / 60
"""Least inverse depth on which a field is judged, 1/m."""


class Stateful(Protocol):
    """Anything whose state can be kept."""

    def state_dict(self) -> dict[str, Any]:
        """Returns it."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> object:
        """Puts it back."""
        ...


@dataclass(frozen=True)
class Quality:
    """How well a field does on unseen worlds.

    Attributes:
        abs_rel: Mean of |depth - truth| / truth, up to 60 m.
        delta: Share of the pixels within a factor of 1.25 of the truth.
        abs_rel_scaled: As ``abs_rel``, after scaling by the median.
        scale_deviation: Standard deviation of the logarithm of that scale.
        calibration: Factor that makes the variance that of the errors.
    """

    abs_rel: float
    delta: float
    abs_rel_scaled: float
    scale_deviation: float
    calibration: float


def train_field(
    out: Path,
    *,
    config: FieldConfig | None = None,
    steps: int = 20_000,
    worlds: int = 600,
    batch: int = 8,
    rate: float = 2e-3,
    size: tuple[int, int] = (160, 120),
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: bool = False,
) -> Quality:
    """Trains a field, or goes on with a training that was stopped.

    Args:
        out: Folder for ``field.safetensors``, ``field.csv``, the checkpoint and the rendered views; a checkpoint that
            is there is gone on with.
        config: The network's shape; its default where None.
        steps: Steps of the whole training.
        worlds: Worlds to render and learn from.
        batch: Pairs of views in a step.
        rate: Greatest learning rate of the one cycle.
        size: Width and height of the views, pixels.
        device: Torch device.
        seed: The same seed gives the same weights on the same device.
        progress: Whether to draw progress bars.

    Raises:
        ConfigError: A number is out of its range.
        WeightsError: The checkpoint is damaged.
    """
    if min(steps, worlds, batch) < 1:
        raise ConfigError(f"steps, worlds and batch must be at least 1, got {steps}, {worlds} and {batch}")
    out.mkdir(parents=True, exist_ok=True)
    learned = _stored(out / "views", FIRST_WORLD, worlds, size, progress)
    unseen = _stored(out / "unseen", UNSEEN, max(1, worlds // 20), size, progress)
    config = config or FieldConfig()
    torch.manual_seed(seed)
    network = FieldNetwork(config).to(device).train()
    averaged = FieldNetwork(config).to(device).requires_grad_(False)
    averaged.load_state_dict(network.state_dict())
    optimiser = torch.optim.AdamW(network.parameters(), rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps + 1, pct_start=0.03)
    parts: dict[str, Stateful] = {
        "network": network,
        "averaged": averaged,
        "optimiser": optimiser,
        "schedule": schedule,
    }
    checkpoint, done = out / "checkpoint.pt", 0
    if checkpoint.is_file():
        done = _resume(checkpoint, parts)
    with (out / "field.csv").open("a", newline="") as file:
        log = csv.writer(file)
        bar = tqdm(range(done, steps), initial=done, total=steps, unit="step", disable=not progress)
        for step in bar:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
            pairs = learned[torch.randint(len(learned), (batch,), generator=generator)].to(device)
            views = augment(pairs, generator)
            with torch.autocast(torch.device(device).type, torch.bfloat16):
                found = losses(network, views, generator, colours=step % 2 == 0)
            optimiser.zero_grad()
            torch.stack(list(found.values())).sum().backward()  # type: ignore[no-untyped-call]
            if torch.isfinite(torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)):
                optimiser.step()
            schedule.step()
            with torch.no_grad():
                share = min(EMA, (1 + step) / (10 + step))
                for mean, value in zip(averaged.parameters(), network.parameters(), strict=True):
                    mean.lerp_(value, 1 - share)
            if (step + 1) % KEEP == 0 or step + 1 == steps:
                log.writerow([step + 1, *(f"{value.item():.5f}" for value in found.values())])
                _keep(checkpoint, parts, step + 1)
                file.flush()
    quality = judge(averaged, unseen)
    averaged.config = dataclasses.replace(
        config, scale_deviation=quality.scale_deviation, calibration=quality.calibration
    )
    save_field(out / "field.safetensors", averaged, steps=steps, seed=seed)
    return quality


@dataclass(frozen=True)
class Views:
    """B pairs of views as the network takes them.

    Attributes:
        images: (B, 2, 3, H, W) RGB, 0 to 1.
        rho: (B, 2, H, W) inverse depth, 1/m.
        motion: (B, 4, 4) ``T_second_first``.
        intrinsics: (B, 4) fx, fy, cx, cy in shares of width and height.
    """

    images: Tensor
    rho: Tensor
    motion: Tensor
    intrinsics: Tensor

    @classmethod
    def of(cls, pairs: ViewPairs) -> Views:
        """Returns pairs as they are."""
        height, width = pairs.images.shape[-2:]
        size = pairs.intrinsics.new_tensor((width, height, width, height))
        centre = pairs.intrinsics.new_tensor((0, 0, 0.5, 0.5))
        return cls(pairs.images.float() / 255, pairs.rho.float(), pairs.motion, (pairs.intrinsics + centre) / size)


def augment(pairs: ViewPairs, generator: torch.Generator) -> Views:
    """Returns pairs as other cameras might have taken them: mirrored, of other colours, noisy, out of focus."""
    views = Views.of(pairs)

    def between(low: float, high: float, channels: int = 1) -> Tensor:
        drawn = torch.rand(len(pairs), 1, channels, 1, 1, generator=generator)
        return (low + (high - low) * drawn).to(views.images.device)

    images = views.images
    grey = images.mean(2, keepdim=True)
    saturation = between(0, 1.3) * (between(0, 1) > 0.1)
    images = (grey + (images - grey) * saturation).clamp(1e-3, 1) ** between(0.65, 1.35)
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    images = (images * between(0.75, 1.25, 3) + between(-0.1, 0.1) + between(0, 0.03) * noise).clamp(0, 1)
    blurred = functional.avg_pool2d(images.flatten(0, 1), 3, 1, 1).reshape(images.shape)
    images = torch.lerp(images, blurred, between(-2, 1).clamp_min(0))
    if float(torch.rand((), generator=generator)) < 0.5:
        mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0], device=images.device))
        fx, fy, cx, cy = views.intrinsics.unbind(-1)
        intrinsics = torch.stack((fx, fy, 1 - cx, cy), dim=-1)
        return Views(images.flip(-1), views.rho.flip(-1), mirror @ views.motion @ mirror, intrinsics)
    return dataclasses.replace(views, images=images)


def losses(network: FieldNetwork, views: Views, generator: torch.Generator, *, colours: bool) -> dict[str, Tensor]:
    """Returns the losses of a batch, weighted.

    Args:
        network: The field.
        views: The batch.
        generator: Source of the random rays, on the CPU.
        colours: Whether to compare what the second view sees, too.
    """
    images = views.images
    batch, cells = len(images), network.config.cells

    def draw(*shape: int) -> Tensor:
        return torch.rand(batch, *shape, generator=generator).to(images.device)

    field = network.encode(images[:, 0], views.intrinsics)
    place = draw(RAYS, 2)
    rho, variance = network.depth(field, place, offset=draw(RAYS, cells))
    true = _nearest(views.rho[:, :1], place)[..., 0].clamp_min(FARTHEST)
    error = (rho.clamp_min(1e-4) / true).log()
    deviation = variance.sqrt()
    likelihood = (rho - true).abs() * math.sqrt(2) / deviation + (deviation / true).log()
    found = {
        "depth": 0.7 * error.abs().mean(),
        # Shape counts beside scale.
        "shape": 0.35 * (error - error.detach().median(1, keepdim=True).values).abs().mean(),
        "likelihood": 0.6 * likelihood.mean(),
    }
    if colours:
        other = draw(OTHER_RAYS, 2)
        back = se3.inverse(views.motion)
        seen, share = network.colour(field, other, views.intrinsics, back, offset=draw(OTHER_RAYS, cells))
        found["colour"] = 0.7 * ((seen - sample(images[:, 1], other)).abs().mean(-1) * share).mean()
    return found


@torch.no_grad()
def judge(network: FieldNetwork, pairs: ViewPairs) -> Quality:
    """Returns how well a field does on the first views of pairs."""
    network.eval()
    rows = []
    for k in range(len(pairs)):
        views = Views.of(pairs[slice(k, k + 1)].to(next(network.parameters()).device))
        height, width = views.rho.shape[-2:]
        at = places(height // COARSER, width // COARSER, views.images).reshape(1, -1, 2)
        rho, variance = network.depth(network.encode(views.images[:, 0], views.intrinsics), at)
        true = _nearest(views.rho[:, :1], at)[..., 0]
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
    # Errors have heavy tails: four fifths of them, not half, are made to be where a normal deviate has them.
    spread = float(table[:, 3].std(unbiased=False))
    return Quality(mean[0], mean[1], mean[2], spread, calibration=mean[4] / 1.642)


def _nearest(maps: Tensor, place: Tensor) -> Tensor:
    """Reads (B, C, H, W) maps at the pixels nearest to (B, N, 2) places, so that depth edges stay sharp."""
    grid = (2 * place - 1)[:, None].to(maps.dtype)
    return functional.grid_sample(maps, grid, mode="nearest", padding_mode="border", align_corners=False)[
        :, :, 0
    ].movedim(1, 2)


def _stored(folder: Path, first: int, worlds: int, size: tuple[int, int], progress: bool) -> ViewPairs:
    """Returns the pairs of worlds from a folder; renders those that are not there."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for k in tqdm(range(worlds), desc=f"views in {folder.name}", unit="world", disable=not progress):
        path = folder / f"{k:06d}.safetensors"
        if not path.is_file():
            pairs = render_pairs(first + k, PAIRS_A_WORLD, width=size[0], height=size[1])
            weights.write(path, {f.name: getattr(pairs, f.name) for f in fields(ViewPairs)}, {})
        parts.append(ViewPairs(**weights.read(path)[0]))
    return ViewPairs.concatenate(parts)


def _keep(path: Path, parts: dict[str, Stateful], step: int) -> None:
    """Writes a checkpoint, whole or not at all."""
    temporary = path.with_suffix(".part")
    torch.save({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, temporary)
    temporary.replace(path)


def _resume(path: Path, parts: dict[str, Stateful]) -> int:
    """Puts a checkpoint's states where they belong and returns the steps done."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return int(state["step"])
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise WeightsError(f"{path} is no checkpoint of this training: {error}; remove it to begin anew") from error
