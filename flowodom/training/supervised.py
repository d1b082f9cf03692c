"""The loop that trains any task: mixed precision, clipping, one cycle, an average of the weights, checkpoints.

What a step learns from depends on its number alone, so a run that was stopped goes on as if it had not been. Under
``torchrun`` every process takes its share of each batch, and the gradients are averaged.

Source: Smith and Topin, "Super-Convergence" (2018) for the one cycle; Loshchilov and Hutter, "Decoupled Weight Decay
Regularization" (ICLR 2019).
"""

from __future__ import annotations

import csv
import gc
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from flowodom import weights
from flowodom.errors import ConfigError
from flowodom.precision import autocast
from flowodom.training import checkpoints

Batch = TypeVar("Batch")


class Task(Protocol[Batch]):
    """What is learned, from what, and how well.

    Attributes:
        name: What the finished weights are called.
        model: The network.
    """

    name: str
    model: nn.Module

    def batch(self, numbers: Sequence[int]) -> Batch:
        """Returns the samples of these numbers, on the CPU or any device; the same numbers give the same samples."""
        ...

    def loss(self, model: nn.Module, batch: Batch, device: torch.device) -> Tensor:
        """Returns the mean loss of the samples; ``model`` is the network, perhaps wrapped to share gradients."""
        ...

    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Returns figures of merit on what is never trained on."""
        ...

    def sheet(self, model: nn.Module, device: torch.device) -> NDArray[np.uint8]:
        """Returns an (H, W, 3) RGB picture for people to judge by."""
        ...

    def save(self, path: Path, model: nn.Module, words: Mapping[str, str]) -> None:
        """Writes weights as they are used, with words about them."""
        ...


@dataclass(frozen=True)
class Plan:
    """How long, how fast and on what.

    Attributes:
        steps: Steps of the whole run, over which the learning rate goes up and down once.
        batch: Samples a step, all processes together.
        rate: Greatest learning rate.
        decay: Weight decay.
        clip: Most length of the gradient.
        average: Share of the average of the weights that a step keeps.
        validate: Steps between validations.
        save: Seconds between checkpoints.
        minutes: Time after which to stop, to be resumed; 0 for none.
        seed: Of the first weights and of what is seen when.
        size: Width and height of the images that are learned from, pixels.
        pairs: Pairs of images to render once and keep; 0 renders every batch anew, which asks for a GPU.
    """

    steps: int = 100_000
    batch: int = 8
    rate: float = 4e-4
    decay: float = 1e-5
    clip: float = 1.0
    average: float = 0.999
    validate: int = 1000
    save: float = 60.0
    minutes: float = 0.0
    seed: int = 1
    size: tuple[int, int] = (320, 240)
    pairs: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.pairs < 0:
            raise ConfigError(
                f"steps and batch must be at least 1 and pairs 0 or more, got {self.steps}, {self.batch}, {self.pairs}"
            )

    def promised(self) -> dict[str, Any]:
        """Returns what a run that goes on must keep to, in terms of JSON."""
        kept = {name: value for name, value in asdict(self).items() if name not in ("minutes", "save")}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}


WARM_UP = 0.05
"""Share of the steps over which the learning rate rises."""


def one_cycle(step: int, steps: int) -> float:
    """Returns the share of the greatest learning rate at a step: it rises, then falls to nothing, linearly."""
    rise = max(1.0, WARM_UP * steps)
    return min((step + 1) / rise, max(0.0, steps - step) / max(1.0, steps - rise))


@dataclass(frozen=True)
class Group:
    """The processes that train together.

    Attributes:
        device: Of this one.
        rank: Its number.
        count: How many there are.
    """

    device: torch.device
    rank: int = 0
    count: int = 1

    def any(self, flag: bool) -> bool:
        """Returns whether the flag is set in any process."""
        if self.count == 1:
            return flag
        value = torch.tensor(float(flag), device=self.device)
        distributed.all_reduce(value, distributed.ReduceOp.MAX)
        return bool(value)


@contextmanager
def processes(device: torch.device) -> Iterator[Group]:
    """Joins the other processes that ``torchrun`` started, if any; each takes a GPU of its own."""
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if count == 1:
        yield Group(device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Group(device, rank, count)
        distributed.barrier()  # nobody leaves while another may still talk to him
    finally:
        # What has trained refers to the group in circles. While it does, the group's threads go on, and one that still
        # clears up when Python ends aborts the process.
        gc.collect()
        distributed.destroy_process_group()


class Run(Generic[Batch]):
    """A run of training, from its beginning or from its last checkpoint.

    Args:
        task: What is learned.
        out: Folder of ``log.csv``, ``sheet.png``, the checkpoints and the finished weights.
        plan: How long and how fast; must be that of the checkpoint, but for ``minutes`` and ``save``.
        group: Where to train, and with whom.
        resume: Whether to go on from the last checkpoint, if there is one.
        half: Whether to compute in half precision where that is faster.

    Raises:
        ConfigError: There is a run in ``out`` and it is not to be resumed, or its plan was another.
        WeightsError: The checkpoint is damaged or of another network.
    """

    def __init__(
        self, task: Task[Batch], out: Path, plan: Plan, *, group: Group, resume: bool = False, half: bool = True
    ) -> None:
        if plan.batch % group.count:
            raise ConfigError(f"the batch of {plan.batch} must be a multiple of the {group.count} processes")
        self._task, self._out, self._plan = task, out, plan
        self._group, self._half = group, half
        self._model = task.model.to(group.device)
        blend = get_ema_multi_avg_fn(plan.average)  # type: ignore[no-untyped-call]
        self._average = AveragedModel(self._model, multi_avg_fn=blend, use_buffers=True)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=plan.rate, weight_decay=plan.decay)
        self.step = 0
        found = checkpoints.load(out / "checkpoints")
        if found is not None:
            if not resume:
                raise ConfigError(f"there is a run in {out}; resume it or choose another folder")
            self._restore(*found)

    def _restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        mine, theirs = self._plan.promised(), state["plan"]
        if mine != theirs:
            changed = ", ".join(f"{k} was {theirs.get(k)} and is {v}" for k, v in mine.items() if v != theirs.get(k))
            raise ConfigError(f"the run in {self._out} had another plan ({changed}); give the same, or another folder")
        self.step = int(state["step"])
        where = self._out / "checkpoints"
        weights.fill(self._model, _part(tensors, "model."), where)
        weights.fill(self._average, _part(tensors, "average."), where)
        moments = _part(tensors, "optimizer.")
        index = {k: _part(moments, f"{k}.") for k in range(len(list(self._model.parameters())))}
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": {k: m for k, m in index.items() if m}, "param_groups": groups})

    def _save(self) -> None:
        tensors = {f"model.{name}": value for name, value in self._model.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self._average.state_dict().items()}
        for index, moments in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
        checkpoints.save(self._out / "checkpoints", self.step, tensors, {"plan": self._plan.promised()})

    def train(self, *, progress: bool = False) -> bool:
        """Trains until the plan is done or its time is up.

        Args:
            progress: Whether to draw a progress bar.

        Returns:
            Whether the plan is done; the weights are then in ``out``.
        """
        plan, task, group = self._plan, self._task, self._group
        model: nn.Module = self._model if group.count == 1 else DistributedDataParallel(self._model)
        first = group.rank == 0
        share = plan.batch // group.count
        begun = saved = time.monotonic()
        self._out.mkdir(parents=True, exist_ok=True)
        if first:
            self._forget()

        def samples(step: int) -> Sequence[int]:
            start = step * plan.batch + group.rank * share
            return range(start, start + share)

        bar = tqdm(initial=self.step, total=plan.steps, desc=task.name, unit="step", disable=not (progress and first))
        with ThreadPoolExecutor(1, "batches") as ahead, bar:
            waiting = ahead.submit(task.batch, samples(self.step))
            while self.step < plan.steps:
                batch = waiting.result()
                if self.step + 1 < plan.steps:
                    waiting = ahead.submit(task.batch, samples(self.step + 1))
                loss = self._learn(model, batch)
                self.step += 1
                bar.update()
                now = time.monotonic()
                over = group.any(bool(plan.minutes) and now - begun > 60 * plan.minutes)
                done = self.step == plan.steps
                if first and (done or over or self.step % plan.validate == 0):
                    figures = self._judge()
                    self._log({"step": self.step, "loss": float(loss), **figures})
                    bar.set_postfix({name: f"{value:.3g}" for name, value in figures.items()})
                if first and (done or over or now - saved > plan.save):
                    self._save()
                    saved = now
                if over:
                    break
        return self.step == plan.steps

    def _learn(self, model: nn.Module, batch: Batch) -> Tensor:
        device = self._group.device
        model.train()
        for group in self._optimizer.param_groups:
            group["lr"] = self._plan.rate * one_cycle(self.step, self._plan.steps)
        with autocast(device, half=self._half):
            loss = self._task.loss(model, batch, device)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if nn.utils.clip_grad_norm_(self._model.parameters(), self._plan.clip).isfinite():
            self._optimizer.step()
        self._average.update_parameters(self._model)
        return loss.detach()

    @torch.no_grad()
    def _judge(self) -> dict[str, float]:
        """Validates the average of the weights, writes it out and draws what it does."""
        average, device = self._average.module.eval(), self._group.device
        with autocast(device, half=self._half):
            figures = self._task.validate(average, device)
            picture = self._task.sheet(average, device)
        cv2.imwrite(str(self._out / "sheet.png"), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        words = {"steps": str(self.step), "batch": str(self._plan.batch), "seed": str(self._plan.seed)}
        words |= {name: f"{value:.4g}" for name, value in figures.items()}
        self._task.save(self._out / f"{self._task.name}.safetensors", average, words)
        return figures

    def _forget(self) -> None:
        """Takes out of the log what a process that was killed wrote about steps that are done again."""
        path = self._out / "log.csv"
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            past = [line for line in lines[1:] if line.endswith("\n") and int(line.partition(",")[0]) <= self.step]
            if past:
                path.write_text("".join(lines[:1] + past), encoding="utf-8")
            else:
                path.unlink()

    def _log(self, row: Mapping[str, float]) -> None:
        path = self._out / "log.csv"
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row))
            if new:
                writer.writeheader()
            writer.writerow({name: f"{value:.6g}" for name, value in row.items()})


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
