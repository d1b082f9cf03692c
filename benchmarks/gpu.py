"""What a GPU makes of the learned pipeline, against the plain published design, and how near it comes to its limits.

    python benchmarks/gpu.py [--device cuda] [--size 640x480] [--pairs 50] [--raft FILE] [--threads N] [--out FILE]
    python benchmarks/gpu.py --odometry 2 3 4 8 --device cpu --size 320x240 --threads 2

A pair of frames becomes flow both ways (RAFT-small), inverse depth of both (the single-image field), points of both
times, and the camera's motion by a weighted SE(3) fit. The plain design does all of it anew for every pair, in single
precision, with 8 updates from zero each way; ours is what the package runs: half precision, both ways as one batch,
features and fields of an image kept for the next pair, updates from the flow before and only until they have settled.

The limit is what the device's own measured speed of arithmetic and of memory would allow: of every operation that is
run, whichever of both takes longer, summed. Training pairs are those of ``train flow``, with a camera's faults.

With ``--odometry`` it is the whole odometry instead, from frames to poses, with a depth camera and with one camera
alone, with DIS and with so many updates of RAFT at most. Movers and noise are those of a rendered room.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))

from worlds import measure_pairs

from flowodom import weights
from flowodom.config import OdometryConfig, override
from flowodom.depth import InverseDepth
from flowodom.depth.field import FieldDepth, FieldNetwork, load_field, normalised, places
from flowodom.flow.checkpoint import load_raft
from flowodom.flow.consistency import consistency_variance
from flowodom.flow.learned import RaftFlow
from flowodom.flow.raft import Raft
from flowodom.frame import Frame
from flowodom.odometry import Odometry, resolve_device
from flowodom.precision import half_precision
from flowodom.process import prepare
from flowodom.registration.procrustes import procrustes
from flowodom.worlds import Sensor, pinhole, sequence
from flowodom.worlds.recording import scene

PERCENTILES = {"median ms": 50, "best tenth ms": 10}
"""How the times of the frames are summed up; other work on the machine lengthens the median more than the best."""

UPDATES = 8
"""Of the flow, at most."""

STRIDE = 4
"""Pixels, each way, from one point of the fit to the next."""

MEASURES = {
    "pairs a second": "pairs of frames through flow, depth and fit",
    "updates": "updates of the flow a pair, mean",
    "limit ms": "time of a pair if every operation ran at the measured peak of arithmetic or of memory",
    "share of limit %": "the same over the time measured",
}
"""What is printed, and what it is."""


def frames(size: tuple[int, int], count: int) -> list[Frame]:
    """Returns frames of a rendered room from a hand."""
    world, path = scene("room", "hand_held", seed=1, movers=1)
    sensor = Sensor(image_noise=1.5, depth=False, seed=1)
    return [step.frame for step in sequence(world, path, pinhole(*size), frames=count, rate=30.0, sensor=sensor)]


def fit(first: InverseDepth, second: InverseDepth, flow: Tensor, variance: Tensor, camera: Any) -> Tensor:
    """Returns the (4, 4) motion ``T_second_first`` that the flow and the depths of both its ends tell."""
    here = camera.pixels(device=flow.device)[::STRIDE, ::STRIDE]
    there = here + flow[::STRIDE, ::STRIDE]
    near, _ = first.at(camera, here)
    far, _ = second.at(camera, there)
    known = near.isfinite() & far.isfinite() & (near > 0) & (far > 0)
    points = camera.unproject(here, 1 / torch.where(known, near, 1))
    targets = camera.unproject(there, 1 / torch.where(known, far, 1))
    weight = known / (variance[::STRIDE, ::STRIDE] + 0.01)
    return procrustes(points.flatten(0, 1), targets.flatten(0, 1), weight.flatten())


class Plain:
    """The published design, eagerly: everything anew for every pair, in single precision."""

    def __init__(self, raft: Raft, field: FieldNetwork, device: torch.device) -> None:
        self._raft, self._field, self._device = raft.to(device).eval(), field.to(device).eval(), device

    @torch.inference_mode()
    def __call__(self, previous: Frame, current: Frame) -> Tensor:
        """Returns the motion between two frames."""
        greys = [torch.from_numpy(frame.grey).to(self._device).float() / 127.5 - 1 for frame in (previous, current)]
        first, second = (grey.expand(1, 3, -1, -1) for grey in greys)
        forward, backward = (
            self._raft(*images, updates=UPDATES)[-1].flow[0].permute(1, 2, 0)
            for images in ((first, second), (second, first))
        )
        variance = consistency_variance(forward, backward)
        return fit(self._depth(previous), self._depth(current), forward, variance, previous.camera)

    def _depth(self, frame: Frame) -> InverseDepth:
        image = torch.from_numpy(frame.image).to(self._device).permute(2, 0, 1)[None].float() / 255
        factor = min(1.0, (self._field.config.pixels / image[0, 0].numel()) ** 0.5)
        image = torch.nn.functional.interpolate(image, scale_factor=factor, mode="area")
        field = self._field.encode(image, normalised(frame.camera).to(image))
        rows, columns = (side // 4 for side in image.shape[-2:])
        at = places(rows, columns, image).reshape(1, -1, 2)
        mean, variance = (part.view(rows, columns) for part in self._field.depth(field, at))
        return InverseDepth(frame.camera.resized(columns, rows), mean, variance)


class Ours:
    """What the package runs."""

    def __init__(self, raft: Raft, field: FieldNetwork, device: torch.device, *, tolerance: float) -> None:
        self._flow, self._device = RaftFlow(raft, updates=UPDATES, tolerance=tolerance), device
        self._field = FieldDepth(field, device)
        self._image: Tensor | None = None
        self._depth: InverseDepth | None = None
        self._before: Tensor | None = None

    @torch.no_grad()
    def __call__(self, previous: Frame, current: Frame) -> Tensor:
        """Returns the motion between two frames, of which the first is the second of the last call."""
        if self._image is None or self._depth is None:
            self._image, self._depth = self._look(previous)
        image, depth = self._look(current)
        found = self._flow(self._image, image, self._before)
        motion = fit(self._depth, depth, found.forward, found.forward_variance, previous.camera)
        self._image, self._depth, self._before = image, depth, found.forward
        return motion

    def _look(self, frame: Frame) -> tuple[Tensor, InverseDepth]:
        depth = self._field.observe(frame)
        assert depth is not None
        return torch.from_numpy(frame.grey).to(self._device), depth


class Work(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up how long what is run would take at a device's peaks.

    Args:
        rates: Operations a second by data type.
        bandwidth: Bytes a second.
    """

    def __init__(self, rates: Mapping[torch.dtype, float], bandwidth: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rates, self._bandwidth = rates, bandwidth
        self._counter = FlopCounterMode(display=False)
        self.seconds = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation and counts it."""
        with self._counter:
            out = func(*args, **(kwargs or {}))
        if any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns):
            return out  # a view moves nothing
        moved = [x for x in (*tree_leaves((args, kwargs)), *tree_leaves(out)) if isinstance(x, Tensor)]
        operations = self._counter.get_total_flops()
        rate = self._rates.get(moved[-1].dtype, self._rates[torch.float32]) if moved else 1.0
        size = sum(x.numel() * x.element_size() for x in moved)
        self.seconds += max(operations / rate, size / self._bandwidth)
        return out


def synchronise(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(device: torch.device, action: Callable[[], object], times: int) -> float:
    """Returns the mean time of an action, after one that does not count."""
    action()
    synchronise(device)
    start = time.perf_counter()
    for _ in range(times):
        action()
    synchronise(device)
    return (time.perf_counter() - start) / times


def peaks(device: torch.device) -> tuple[dict[torch.dtype, float], float]:
    """Measures operations a second of large products, by data type, and bytes a second of large copies."""
    side, length = (8192, 1 << 30) if device.type == "cuda" else (1024, 1 << 26)
    rates = {}
    for dtype in {torch.float32, half_precision(device) or torch.float32}:
        a = torch.randn(side, side, device=device, dtype=dtype)
        rates[dtype] = 2 * side**3 / seconds(device, lambda a=a: a @ a, 5)  # type: ignore[misc]
    rates.setdefault(torch.float16, max(rates.values()))
    source = torch.zeros(length, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return rates, 2 * length / seconds(device, lambda: target.copy_(source), 5)


def measure(
    pipeline: Plain | Ours, raft: Raft, shots: Sequence[Frame], device: torch.device, limits: tuple[Any, float]
) -> dict[str, float]:
    """Returns the ``MEASURES`` of a pipeline on pairs of consecutive frames."""
    steps = 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1

    two = list(pairwise(shots))
    for previous, current in two[:2]:
        pipeline(previous, current)
    with Work(*limits) as work:
        pipeline(*two[2])
    hook = raft.update.register_forward_hook(count)
    synchronise(device)
    start = time.perf_counter()
    for previous, current in two[3:]:
        pipeline(previous, current)
    synchronise(device)
    mean = (time.perf_counter() - start) / len(two[3:])
    hook.remove()
    return {
        "pairs a second": 1 / mean,
        "updates": steps / len(two[3:]) / (2 if isinstance(pipeline, Plain) else 1),
        "limit ms": 1e3 * work.seconds,
        "share of limit %": 100 * work.seconds / mean,
    }


def compared(raft: Raft, field: FieldNetwork, device: torch.device) -> Iterator[tuple[str, Plain | Ours]]:
    """Yields what is compared, one after the other."""
    yield "plain", Plain(raft, field, device)
    yield "ours, 8 updates", Ours(raft, field, device, tolerance=0.0)
    yield "ours", Ours(raft, field, device, tolerance=0.02)


def odometry(
    raft: Path, size: tuple[int, int], count: int, device: torch.device, *, updates: Sequence[int]
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yields what the odometry takes for a frame, with DIS and with RAFT of so many updates at most."""
    world, path = scene("room", "hand_held", seed=1, movers=1)
    sensor = Sensor(image_noise=1.5, seed=1)
    steps = list(sequence(world, path, pinhole(*size), frames=count, sensor=sensor))
    for depth, rounds in itertools.product((True, False), (0, *updates)):
        flow = {"flow.method": "raft", "flow.updates": rounds, "flow.weights": str(raft)}
        chosen = flow if rounds else {"flow.method": "dis"}
        tracker = Odometry(override(OdometryConfig(), chosen | {"device": str(device)}))
        times, lost = [], 0
        begun = time.process_time()
        for step in steps:
            frame = step.frame if depth else replace(step.frame, depth=None)
            start = time.perf_counter()
            lost += tracker.step(frame).pose is None
            synchronise(device)
            times.append(1e3 * (time.perf_counter() - start))
        spent = 1e3 * (time.process_time() - begun) / len(steps)
        row = {name: float(np.percentile(times[1:], q)) for name, q in PERCENTILES.items()}
        row |= {"frames a second": 1e3 / row["best tenth ms"], "cpu ms": spent, "no pose %": 100 * lost / len(steps)}
        yield f"{'RGB-D' if depth else 'one camera'}, {f'{rounds} updates' if rounds else 'DIS'}", row


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (%(default)s)")
    parser.add_argument("--size", default="640x480", help="of the frames (%(default)s)")
    parser.add_argument("--pairs", type=int, default=50, help="pairs that are timed (%(default)s)")
    parser.add_argument("--raft", type=Path, default=weights.FOLDER / "raft_small.safetensors", help="weights of RAFT")
    parser.add_argument("--training-size", default="320x240", help="of training pairs (%(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="training pairs at a time (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch (%(default)s)")
    parser.add_argument(
        "--odometry", type=int, nargs="+", metavar="N", help="time the odometry, by updates of the flow"
    )
    parser.add_argument("--out", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    device = resolve_device(options.device)
    size, training_size = (
        (int(w), int(h)) for w, h in (text.split("x") for text in (options.size, options.training_size))
    )
    prepare(options.threads)
    torch.manual_seed(0)
    if options.odometry:
        rows = odometry(options.raft, size, options.pairs + 1, device, updates=options.odometry)
        timed: dict[str, dict[str, float]] = {}
        for label, row in rows:
            if not timed:
                print(f"{'':24s}" + "".join(f"{name:>18s}" for name in row))
            print(f"{label:24s}" + "".join(f"{value:18.1f}" for value in row.values()), flush=True)
            timed[label] = row
        _write(options.out, {"size": options.size, "threads": options.threads, "results": timed})
        return
    raft = load_raft(options.raft)
    file = weights.shipped("field")
    field = load_field(file) if file else FieldNetwork()
    rates, bandwidth = limits = peaks(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "processor"
    speeds = ", ".join(f"{rate / 1e12:.3g} Tflop/s in {str(kind)[6:]}" for kind, rate in rates.items())
    print(f"torch {torch.__version__}, {name}: {speeds}, {bandwidth / 1e9:.4g} GB/s\n{options.size}")
    shots = frames(size, options.pairs + 4)
    print(f"{'':18s}" + "".join(f"{measure:>20s}" for measure in MEASURES))
    results: dict[str, dict[str, float]] = {}
    for label, pipeline in compared(raft, field, device):
        row = results[label] = measure(pipeline, raft, shots, device, limits)
        print(f"{label:18s}" + "".join(f"{row[m]:20.3f}" for m in MEASURES), flush=True)
    ratio = list(results.values())[-1]["pairs a second"] / results["plain"]["pairs a second"]
    print(f"ours is {ratio:.2f} times as fast as the plain design")
    rendered = measure_pairs(training_size, options.batch, str(device), max(1, options.pairs // 10))
    print(f"training pairs a second, {options.training_size}: {rendered['photometric_hz']:.1f}")
    for measured, meaning in MEASURES.items():
        print(f"  {measured}: {meaning}")
    figures = {"device": name, "flops": {str(k): v for k, v in rates.items()}, "bandwidth": bandwidth}
    figures |= {"results": results, "ratio": ratio, "training pairs": rendered, "definitions": MEASURES}
    _write(options.out, figures)


def _write(path: Path | None, figures: Mapping[str, Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
