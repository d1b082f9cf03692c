"""Adapting the single-image field to a user's own recordings: images and their calibration, nothing else."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from flowodom.bags import BagReader
from flowodom.calibration import Calibration
from flowodom.depth.field import FieldDepth, FieldNetwork, normalised, save_field
from flowodom.errors import BagError, FlowodomError
from flowodom.flow import FlowField
from flowodom.flow.dis import DisFlow
from flowodom.frame import Frame
from flowodom.messages import decode_image, stamp
from flowodom.training.self_supervised import WEIGHTS, VideoPairs, losses, photometric_error, total

log = logging.getLogger(__name__)

HELD_OUT = 0.2
"""Share of each recording, at its end, that is not learned from but measured on."""

GAPS = (1, 2, 3, 4, 6, 8, 12, 16, 24)
"""How many frames may lie between the two of a pair."""

LEAST_FLOW = 0.05
"""Median displacement, as a share of the image's width, that a pair should have to tell depth."""

LEAST_PAIRS = 10
"""Pairs below which there is nothing to learn."""

BATCH = 4
"""Pairs in a step."""


@dataclass(frozen=True)
class Adapted:
    """What came of it.

    Attributes:
        weights: The new weights.
        pairs: Pairs learned from.
        before: Photometric error on the held-out pairs before, 0 to 1.
        after: And after.
    """

    weights: Path
    pairs: int
    before: float
    after: float

    def summary(self) -> str:
        """Returns it in words, for a terminal."""
        change = 100 * (self.after / self.before - 1) if self.before > 0 else 0.0
        return (
            f"learned from {self.pairs} pairs of frames; photometric error on what was held out: "
            f"{self.before:.4f} before, {self.after:.4f} after ({change:+.1f} %)\n"
            f"wrote {self.weights}; use it with --set depth.field={self.weights}"
        )


def adapt(
    bags: Sequence[Path],
    out: Path,
    network: FieldNetwork,
    *,
    steps: int = 1500,
    rate: float = 2e-4,
    device: torch.device | str = "cpu",
    topics: Mapping[str, str | None] | None = None,
    frames: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Adapted:
    """Lets a field learn from recordings of one or more cameras, without poses or depth.

    Args:
        bags: The recordings.
        out: Folder for ``field.safetensors`` and ``losses.csv``; made where missing.
        network: The field to begin with; it is changed.
        steps: Steps of learning.
        rate: Greatest learning rate of the one cycle.
        device: Torch device.
        topics: Topics that are not to be found automatically, see ``selection.select``.
        frames: Most images to take of each recording; all when None.
        seed: The same seed gives the same result on the same device.
        progress: Whether to draw a progress bar.

    Raises:
        BagError: A recording cannot be used, or they hold too little motion to learn from.
        FlowodomError: The results cannot be written.
    """
    torch.manual_seed(seed)
    network = network.to(device).train()
    clips = [pairs_of(video(bag, topics, frames), network) for bag in bags]
    kept = [round((1 - HELD_OUT) * len(clip)) for clip in clips]
    count = sum(kept)
    if count < LEAST_PAIRS:
        raise BagError(
            f"only {count} pairs of frames with enough motion in {', '.join(map(str, bags))}; "
            f"at least {LEAST_PAIRS} are needed"
        )
    # Images of one size can share a batch, so every recording makes batches of its own.
    learned = [clip[:k].to(device) for clip, k in zip(clips, kept, strict=True)]
    held_out = [clip[k:].to(device) for clip, k in zip(clips, kept, strict=True) if k < len(clip)]
    before = _error(network, held_out)
    optimiser = torch.optim.AdamW(network.parameters(), rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)
    rows: list[dict[str, float]] = []
    bar = tqdm(range(steps), desc="adapt", unit="step", disable=not progress)
    share = torch.tensor([len(clip) for clip in learned], dtype=torch.float)
    for step in bar:
        clip = learned[int(torch.multinomial(share, 1))]
        parts = losses(network, varied(clip[torch.randint(len(clip), (BATCH,)).to(device)]))
        loss = total(parts)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        if torch.isfinite(norm):
            optimiser.step()
        schedule.step()
        rows.append({"step": step, "loss": loss.item(), **{name: value.item() for name, value in parts.items()}})
        bar.set_postfix(loss=f"{rows[-1]['loss']:.3f}")
    after = _error(network, held_out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        save_field(out / "field.safetensors", network, {"steps": str(steps), "seed": str(seed)})
        with (out / "losses.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["step", "loss", *WEIGHTS])
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise FlowodomError(f"cannot write to {out}: {error.strerror or error}") from error
    return Adapted(out / "field.safetensors", count, before, after)


def video(bag: Path, topics: Mapping[str, str | None] | None = None, count: int | None = None) -> Iterator[Frame]:
    """Yields the images of a recording, rectified, without depth.

    Args:
        bag: The recording.
        topics: Topics that are not to be found automatically, see ``selection.select``.
        count: Most images; all when None.

    Raises:
        BagError: It has no image or no calibration.
    """
    with BagReader(bag) as reader:
        chosen = reader.select(topics)
        if chosen.camera_info is None:
            raise BagError(f"{bag} has no calibration for {chosen.image}; name it with --camera-info")
        info = next((message for _, _, message in reader.messages([chosen.camera_info])), None)
        if info is None:
            raise BagError(f"{bag} has no message on {chosen.camera_info}")
        calibration = Calibration.from_info(info, rectified=chosen.rectified)
        for _, _, message in itertools.islice(reader.messages([chosen.image]), count):
            yield Frame(stamp(message), calibration.rectify(decode_image(message)), calibration.camera)


def pairs_of(frames: Iterator[Frame], network: FieldNetwork) -> VideoPairs:
    """Returns pairs of frames between which the image moves enough, as far apart as that takes.

    Args:
        frames: Of one camera, in order.
        network: The field before it learns; says at which size images are encoded, and in which unit.
    """
    shots = [_shrunk(frame, network.config.pixels) for frame in frames]
    source = FieldDepth(network, next(network.parameters()).device)
    search = DisFlow()
    parts = []
    for k, frame in enumerate(shots):
        for other in (shots[k + gap] for gap in GAPS if k + gap < len(shots)):
            found = search(torch.from_numpy(frame.grey), torch.from_numpy(other.grey))
            if float(found.forward.norm(dim=-1).median()) > LEAST_FLOW * frame.camera.width:
                parts.append(_pair(frame, other, found, source))
                break
    network.train()
    if not parts:
        return VideoPairs(*(torch.zeros(0) for _ in dataclasses.fields(VideoPairs)))
    return VideoPairs(*(torch.stack([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(VideoPairs)))


def varied(pairs: VideoPairs) -> VideoPairs:
    """Returns pairs as another day might have shown them: mirrored or not, of other brightness, contrast and colour.

    Both frames of a pair change alike, so that what holds between them still does.
    """
    gain = 0.7 + 0.6 * torch.rand(len(pairs), 1, 3, 1, 1)
    gamma = 0.7 + 0.6 * torch.rand(len(pairs), 1, 1, 1, 1)
    images = (gain.to(pairs.images.device) * pairs.images.clamp_min(1e-3) ** gamma.to(pairs.images.device)).clamp(0, 1)
    pairs = dataclasses.replace(pairs, images=images)
    return pairs.mirrored() if float(torch.rand(())) < 0.5 else pairs


def _shrunk(frame: Frame, pixels: int) -> Frame:
    """Returns a frame in colour at the size at which it is encoded."""
    height, width = frame.camera.height, frame.camera.width
    camera = frame.camera.scaled(min(1.0, math.sqrt(pixels / (height * width))))
    image = frame.image if frame.image.ndim == 3 else cv2.cvtColor(frame.image, cv2.COLOR_GRAY2RGB)
    image = cv2.resize(image, (camera.width, camera.height), interpolation=cv2.INTER_AREA)
    return Frame(frame.stamp, np.asarray(image, dtype=np.uint8), camera)


def _pair(first: Frame, second: Frame, flow: FlowField, source: FieldDepth) -> VideoPairs:
    """Returns one pair, without the dimension of the batch."""
    size = torch.tensor((first.camera.width, first.camera.height))
    depth = source.observe(first)
    assert depth is not None
    images = torch.from_numpy(np.stack((first.image, second.image))).movedim(-1, 1)
    return VideoPairs(
        images=images.float() / 255,
        flow=torch.stack((flow.forward, flow.backward)) / size,
        deviation=torch.stack((flow.forward_variance, flow.backward_variance)).sqrt() / first.camera.focal,
        intrinsics=normalised(first.camera)[0],
        unit=depth.mean.log().mean().cpu(),
    )


def _error(network: FieldNetwork, clips: Sequence[VideoPairs]) -> float:
    return sum(photometric_error(network, clip) * len(clip) for clip in clips) / max(1, sum(map(len, clips)))
