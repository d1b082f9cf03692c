"""Adapting the single-image field to a user's own recordings: images and their calibration, nothing else."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowodom.bags import BagReader
from flowodom.calibration import Calibration
from flowodom.config import FlowConfig
from flowodom.depth.field import COARSER, FieldDepth, FieldNetwork, load_field, normalised, places, save_field
from flowodom.drawing import inverse_depth_picture
from flowodom.errors import BagError, FlowodomError, TrajectoryError
from flowodom.evaluation import compare
from flowodom.flow import FlowField
from flowodom.flow.consistency import chained, shrink
from flowodom.flow.dis import DisFlow
from flowodom.flow.methods import make_flow
from flowodom.frame import Frame
from flowodom.frames import clean
from flowodom.geometry import se3
from flowodom.messages import decode_image, stamp
from flowodom.training.samples import together
from flowodom.training.self_supervised import NOISE, VideoPairs, losses, motions, photometric_error, total
from flowodom.training.supervised import Group, Plan, Run
from flowodom.trajectory import Trajectory, read_bag

log = logging.getLogger(__name__)

HELD_OUT = 0.2
"""Share of each recording, at its end, that is not learned from but measured on."""

GAPS = (1, 2, 3, 4, 6, 8, 12, 16, 24)
"""How many frames may lie between the two of a pair."""

ENOUGH_FLOW, LEAST_FLOW = 0.05, 0.02
"""Median displacement, as a share of the image's width, that a pair should have to tell depth, and that it must have
where flow between frames farther apart is lost."""

LEAST_SURE = 0.5
"""Share of the pixels whose flow must be known to a pixel or so, for a pair to be learned from."""

LEAST_PAIRS = 10
"""Pairs below which there is nothing to learn."""

FLOW_PIXELS = 120_000
"""Most pixels of the images between which flow is found: the motion is no better than that."""

BATCH = 4
"""Pairs in a step."""

AVERAGE = 0.98
"""Share of the average of the weights that a step keeps: there may be few."""

MEASURES = {
    "photometric": "photometric error, grey levels 0 to 1",
    "kitti_translation": "drift of the field's own poses, %",
    "ate_sim3_rmse": "their ATE after alignment with scale, m",
    "rpe_frame_translation_rmse": "their translation error from pose to pose, scaled to the truth, m",
}
"""What a field is judged by, by its name in the log; the poses' figures are those of ``flowodom.evaluation``."""

SHOWN = 6
"""Pairs on the picture sheet."""


@dataclass(frozen=True)
class Adapted:
    """What came of it.

    Attributes:
        weights: The new weights.
        pairs: Pairs learned from.
        before: The ``MEASURES`` on what was held out, before.
        after: And after.
    """

    weights: Path
    pairs: int
    before: Mapping[str, float]
    after: Mapping[str, float]

    def summary(self) -> str:
        """Returns it in words, for a terminal."""
        lines = [f"learned from {self.pairs} pairs of frames; on what was held out, before and after:"]
        for name, before in self.before.items():
            after = self.after[name]
            change = f" ({100 * (after / before - 1):+.1f} %)" if before > 0 else ""
            lines.append(f"  {MEASURES[name]}: {before:.4g}, {after:.4g}{change}")
        return "\n".join((*lines, f"wrote {self.weights}; use it with --set depth.field={self.weights}"))


@dataclass(frozen=True)
class HeldOut:
    """The end of a recording.

    Attributes:
        pairs: What a field is judged by.
        truth: True poses of the camera; nothing is learned from them. None where the recording has none.
    """

    pairs: VideoPairs
    truth: Trajectory | None = None


@dataclass(frozen=True)
class VideoBatch:
    """Pairs of one recording, and the number that says which of their pixels are looked at."""

    pairs: VideoPairs
    number: int


class VideoTask:
    """What video alone tells a field.

    Args:
        network: The field to begin with; it learns.
        learned: Pairs to learn from, of each recording.
        held_out: What to judge by, of each recording that has enough.
    """

    name = "field"
    model: nn.Module

    def __init__(self, network: FieldNetwork, learned: Sequence[VideoPairs], held_out: Sequence[HeldOut]) -> None:
        self.model, self._learned, self._held_out = network, learned, held_out
        self._share = torch.tensor([len(clip) for clip in learned], dtype=torch.float)

    def batch(self, numbers: Sequence[int]) -> VideoBatch:
        """Returns random pairs of a random recording, as images of one size can share a batch; see ``Task``."""
        generator = torch.Generator().manual_seed(numbers[0])
        clip = self._learned[int(torch.multinomial(self._share, 1, generator=generator))]
        chosen = clip[torch.randint(len(clip), (len(numbers),), generator=generator)]
        return VideoBatch(varied(chosen, generator), numbers[0])

    def loss(self, model: nn.Module, batch: VideoBatch, device: torch.device) -> Tensor:
        """Returns the weighted sum of all losses; see ``Task``."""
        assert isinstance(model, FieldNetwork)
        generator = torch.Generator(device).manual_seed(batch.number)
        return total(losses(model, batch.pairs.to(device), generator=generator))

    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Returns the ``MEASURES`` that can be told, means over the recordings; see ``Task``."""
        assert isinstance(model, FieldNetwork)
        rows = [judge(model, part, device) for part in self._held_out]
        known = {name: [row[name] for row in rows if name in row] for name in MEASURES}
        return {name: float(np.mean(values)) for name, values in known.items() if values}

    def sheet(self, model: nn.Module, device: torch.device) -> NDArray[np.uint8]:
        """Draws image and found depth of pairs that are learned from, in rows; see ``Task``."""
        assert isinstance(model, FieldNetwork)
        clip = self._learned[0]
        shown = np.linspace(0, len(clip) - 1, min(SHOWN, len(clip))).astype(int)
        return np.concatenate([_row(model, clip[slice(k, k + 1)].to(device)) for k in shown])

    def save(self, path: Path, model: nn.Module, words: Mapping[str, str]) -> None:
        """See ``Task``."""
        assert isinstance(model, FieldNetwork)
        save_field(path, model, words)


def _row(network: FieldNetwork, pair: VideoPairs) -> NDArray[np.uint8]:
    """Draws the first image of a pair and the depth that the field finds in it."""
    image = pair.images[:, 0]
    rows, columns = image.shape[-2] // COARSER, image.shape[-1] // COARSER
    at = places(rows, columns, image).reshape(1, -1, 2)
    mean, _ = network.depth(network.encode(image, pair.intrinsics), at)
    depth = (1 / mean.float()).view(rows, columns).cpu().numpy()
    colours = (255 * image[0].permute(1, 2, 0)).round().to(torch.uint8).cpu().numpy()
    grey = np.asarray(cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
    near, far = (float(np.quantile(depth, q)) for q in (0.02, 0.98))
    return np.concatenate((colours, inverse_depth_picture(grey, depth, near, far)), axis=1)


def adapt(
    bags: Sequence[Path],
    out: Path,
    network: FieldNetwork,
    *,
    steps: int = 180,
    rate: float = 2e-4,
    device: torch.device | str = "cpu",
    topics: Mapping[str, str | None] | None = None,
    frames: int | None = None,
    seed: int = 0,
    resume: bool = False,
    progress: bool = False,
) -> Adapted:
    """Lets a field learn from recordings of one or more cameras, without poses or depth.

    Args:
        bags: The recordings.
        out: Folder for ``field.safetensors``, the log, the picture sheet and the checkpoints; made where missing.
        network: The field to begin with; it is changed.
        steps: Steps of learning.
        rate: Greatest learning rate of the one cycle.
        device: Torch device.
        topics: Topics that are not to be found automatically, see ``selection.select``.
        frames: Most images to take of each recording; all when None.
        seed: The same seed gives the same result on the same device.
        resume: Whether to go on from the last checkpoint in ``out``, if there is one.
        progress: Whether to draw a progress bar.

    Raises:
        BagError: A recording cannot be used, or they hold too little motion to learn from.
        ConfigError: There is a run in ``out`` and it is not to be resumed, or its plan was another.
        FlowodomError: The results cannot be written.
    """
    device = torch.device(device)
    clips = [pairs_of(video(bag, topics, frames), network.to(device)) for bag in bags]
    learned, ends = zip(*map(cut, clips), strict=True)
    count = sum(map(len, learned))
    if count < LEAST_PAIRS:
        raise BagError(
            f"only {count} pairs of frames with enough motion in {', '.join(map(str, bags))}; "
            f"at least {LEAST_PAIRS} are needed"
        )
    held_out = [HeldOut(end, true_poses(bag, topics)) for bag, end in zip(bags, ends, strict=True) if len(end)]
    task = VideoTask(network, learned, held_out)
    before = task.validate(network, device)
    plan = Plan(steps=steps, batch=BATCH, rate=rate, average=AVERAGE, validate=max(1, steps // 10), seed=seed)
    try:
        # The loss fits motions, for which half precision is too coarse.
        Run(task, out, plan, group=Group(device), resume=resume, half=False).train(progress=progress)
    except OSError as error:
        raise FlowodomError(f"cannot write to {out}: {error.strerror or error}") from error
    weights = out / "field.safetensors"
    return Adapted(weights, count, before, task.validate(load_field(weights).to(device), device))


def cut(clip: VideoPairs) -> tuple[VideoPairs, VideoPairs]:
    """Returns what is learned from, and the end, which shares no frame with it."""
    if not len(clip):
        return clip, clip
    begin = clip.stamps[min(len(clip) - 1, round((1 - HELD_OUT) * len(clip))), 0]
    return clip[clip.stamps[:, 1] < begin], clip[clip.stamps[:, 0] >= begin]


def judge(network: FieldNetwork, held_out: HeldOut, device: torch.device) -> dict[str, float]:
    """Returns the ``MEASURES`` of a field on the end of a recording; drift only where true poses are there."""
    pairs = held_out.pairs.to(device)
    figures = {"photometric": photometric_error(network, pairs)}
    if held_out.truth is not None:
        try:
            paths = paths_of(pairs, motions(network, pairs))
            found = [compare(path, held_out.truth, correct_scale=True) for path in paths]
        except TrajectoryError as error:
            log.warning("no drift: %s", error)
            return figures
        for name in MEASURES:
            known = [value for one in found if (value := getattr(one, name, None)) is not None]
            if known:
                figures[name] = float(np.mean(known))
    return figures


def paths_of(pairs: VideoPairs, motions: Tensor) -> list[Trajectory]:
    """Chains motions, each pair beginning where the one before ended; where none begins, the camera stands still.

    Args:
        pairs: B pairs of one recording, in order.
        motions: (B, 4, 4) ``T_second_first`` of each.

    Returns:
        A path from each frame before the first one's partner on, so that all motions are made use of.
    """
    steps = list(zip(pairs.stamps.tolist(), se3.inverse(motions).cpu().numpy(), strict=True))
    paths = []
    for start in (k for k, ((first, _), _) in enumerate(steps) if first < steps[0][0][1]):
        stamps, poses = [steps[start][0][0]], [np.eye(4)]
        for (first, second), motion in steps[start:]:
            if first >= stamps[-1]:
                stamps.append(second)
                poses.append(poses[-1] @ motion)
        paths.append(Trajectory(np.array(stamps, dtype=np.int64), np.stack(poses)))
    return paths


def true_poses(bag: Path, topics: Mapping[str, str | None] | None = None) -> Trajectory | None:
    """Returns the true poses of a recording's camera, as of its optical frame; None where there are none to be used.

    Args:
        bag: The recording.
        topics: Topics that are not to be found automatically, see ``selection.select``.
    """
    with BagReader(bag) as reader:
        chosen = reader.select(topics)
        if chosen.ground_truth is None:
            return None
        _, _, image = next(reader.messages([chosen.image]))
    try:
        return read_bag(bag, chosen.ground_truth, body=clean(image.header.frame_id))
    except FlowodomError as error:
        log.warning("the truth on %s cannot be used: %s", chosen.ground_truth, error)
        return None


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
    """Returns pairs of frames between which the image moves enough, as far apart as that takes and flow can follow.

    Args:
        frames: Of one camera, in order.
        network: The field before it learns; says at which size images are encoded, and in which unit.
    """
    shots = [
        _Shot(_shrunk(frame, network.config.pixels), torch.from_numpy(_shrunk(frame, FLOW_PIXELS).grey))
        for frame in frames
    ]
    source = FieldDepth(network, next(network.parameters()).device)
    search, polish = DisFlow(), make_flow(FlowConfig(method="refined"))
    parts = []
    # Patterns repeat, so that flow found from nothing may be off by one of their periods, both ways alike. Where an
    # image goes is followed from frame to frame, which leads less far than a period, and flow begins there.
    steps: deque[Tensor] = deque()
    last = None
    for k, shot in enumerate(shots):
        best, moved, expected, gone = None, 0.0, torch.zeros(*shot.grey.shape, 2), 0
        focal = shot.frame.camera.focal * shot.grey.shape[1] / shot.frame.camera.width
        for gap in GAPS:
            if k + gap >= len(shots):
                break
            while len(steps) < gap:
                one, other = shots[k + len(steps) : k + len(steps) + 2]
                found = search(one.grey, other.grey, last)
                steps.append(found.forward)
                last = found.forward if _sure(found, focal) else None
            for step in itertools.islice(steps, gone, gap):
                expected = chained(expected, step)
            found = search(shot.grey, shots[k + gap].grey, expected)
            if not _sure(found, focal):
                break  # farther off it is only worse
            best, expected, gone = shots[k + gap], found.forward, gap
            moved = float(expected.norm(dim=-1).median()) / shot.grey.shape[1]
            if moved > ENOUGH_FLOW:
                break
        if steps:
            steps.popleft()
        if best is not None and moved > LEAST_FLOW:
            # Motions are no better than the flow: through a narrow lens they turn by degrees with a tenth of a pixel.
            parts.append(_pair(shot.frame, best.frame, polish(shot.grey, best.grey, expected), source))
    if not parts:
        return VideoPairs(*(torch.zeros(0) for _ in dataclasses.fields(VideoPairs)))
    return together(parts)


def _sure(flow: FlowField, focal: float) -> bool:
    """Whether enough of the flow between two images, whose focal length in pixels is given, is known."""
    return float((flow.forward_variance < (NOISE * focal) ** 2).float().mean()) >= LEAST_SURE


@dataclass(frozen=True)
class _Shot:
    """A frame as it is encoded, and its (H, W) uint8 grey image as its flow is found."""

    frame: Frame
    grey: Tensor


def varied(pairs: VideoPairs, generator: torch.Generator) -> VideoPairs:
    """Returns pairs as another day might have shown them: mirrored or not, of other brightness, contrast and colour.

    Both frames of a pair change alike, so that what holds between them still does.
    """
    gain = 0.7 + 0.6 * torch.rand(len(pairs), 1, 3, 1, 1, generator=generator)
    gamma = 0.7 + 0.6 * torch.rand(len(pairs), 1, 1, 1, 1, generator=generator)
    pairs = dataclasses.replace(pairs, images=(gain * pairs.images.clamp_min(1e-3) ** gamma).clamp(0, 1))
    return pairs.mirrored() if float(torch.rand((), generator=generator)) < 0.5 else pairs


def _shrunk(frame: Frame, pixels: int) -> Frame:
    """Returns a frame in colour at the size at which it is encoded."""
    height, width = frame.camera.height, frame.camera.width
    camera = frame.camera.scaled(min(1.0, math.sqrt(pixels / (height * width))))
    image = frame.image if frame.image.ndim == 3 else cv2.cvtColor(frame.image, cv2.COLOR_GRAY2RGB)
    image = cv2.resize(image, (camera.width, camera.height), interpolation=cv2.INTER_AREA)
    return Frame(frame.stamp, np.asarray(image, dtype=np.uint8), camera)


def _pair(first: Frame, second: Frame, flow: FlowField, source: FieldDepth) -> VideoPairs:
    """Returns one pair."""
    rows, columns = first.camera.height, first.camera.width
    height, width = flow.forward.shape[:2]
    size = torch.tensor((width, height)).view(2, 1, 1)
    there, back = (shrink(part, rows, columns) / size for part in (flow.forward, flow.backward))
    variance = torch.stack([shrink(part, rows, columns) for part in (flow.forward_variance, flow.backward_variance)])
    depth = source.observe(first)
    assert depth is not None
    images = torch.from_numpy(np.stack((first.image, second.image))).movedim(-1, 1)
    return VideoPairs(
        images=images[None].float() / 255,
        flow=torch.stack((there, back)).movedim(1, -1)[None],
        deviation=variance.sqrt()[None] / (first.camera.focal * width / columns),
        intrinsics=normalised(first.camera),
        unit=depth.mean.log().mean().cpu()[None],
        stamps=torch.tensor([[first.stamp, second.stamp]]),
    )
