"""Networks as flow methods: images to tensors and back, both directions as one batch, and what to do without memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional

from flowodom.errors import DeviceError
from flowodom.flow import DenseFlow, FlowField, FlowMethod
from flowodom.flow.consistency import consistency_variance
from flowodom.flow.correlation import AllPairs, CorrelationKind, OnDemand
from flowodom.flow.dis import DisField, DisFlow
from flowodom.flow.pyramid import check_pair, resize
from flowodom.flow.raft import LEAST_SIDE, STRIDE, Features, Prediction, Raft, State
from flowodom.flow.refiner import STRIDE as REFINER_STRIDE
from flowodom.flow.refiner import Refiner
from flowodom.flow.uncertainty import variance
from flowodom.precision import autocast

log = logging.getLogger(__name__)


class Settled:
    """Tells when updates have become small, without making a GPU wait.

    There, what is looked at is the size of the update before: it has been computed while the next was being queued.

    Args:
        tolerance: Mean length of an update, pixels of the image, below which the flow has settled; 0 for never.
    """

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._pending: tuple[Tensor, torch.cuda.Event] | None = None

    def __call__(self, state: State) -> bool:
        """Returns whether the updates up to this state are enough."""
        if self._tolerance <= 0:
            return False
        size = STRIDE * state.step.float().norm(dim=1).mean()
        if size.device.type != "cuda":
            return float(size) < self._tolerance
        before = self._pending
        host = torch.empty((), pin_memory=True)
        host.copy_(size, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._pending = host, event
        if before is None:
            return False
        before[1].synchronize()
        return float(before[0]) < self._tolerance


@dataclass(frozen=True)
class Effort:
    """How the network is run.

    Attributes:
        correlate: How correlation is looked up.
        halvings: How often the image is halved first.
    """

    correlate: CorrelationKind
    halvings: int

    def lower(self, height: int, width: int) -> Effort | None:
        """Returns what needs less memory for an image of that size; None where nothing does."""
        if self.correlate is AllPairs:
            return replace(self, correlate=OnDemand)
        if min(height, width) >> (self.halvings + 1) < LEAST_SIDE:
            return None
        return replace(self, halvings=self.halvings + 1)


class RaftFlow:
    """RAFT behind ``FlowMethod``.

    Features of an image are kept for the next call, in which it is the previous one. On a device that runs out of
    memory it goes on with less, for good, and says so.

    Args:
        model: The network; moves to the device of the images.
        updates: Most updates of the flow.
        tolerance: Mean length of an update, pixels, below which no more follow; 0 for none to be left out.
        half: Whether to compute in half precision where that is faster.
    """

    def __init__(self, model: Raft, *, updates: int = 8, tolerance: float = 0.02, half: bool = True) -> None:
        self._model: Raft = model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._updates, self._tolerance, self._half = updates, tolerance, half
        self._effort = Effort(AllPairs, 0)
        self._kept: tuple[Tensor, int, Effort, Features] | None = None

    def __call__(self, previous: Tensor, current: Tensor, initial: Tensor | None = None) -> FlowField:
        """Finds the flow; see ``FlowMethod``.

        Raises:
            DeviceError: There is too little memory even at the least size.
        """
        check_pair(previous, current, initial)
        self._model.to(previous.device)
        while True:
            try:
                with torch.inference_mode(), autocast(previous.device, half=self._half):
                    return self._find(previous, current, initial)
            except torch.cuda.OutOfMemoryError as error:
                reason = str(error).partition("\n")[0]
            # Only here, when the error is gone and with it what its frames held, is memory free again.
            self._give_way(previous, reason)

    def _give_way(self, image: Tensor, reason: str) -> None:
        lower = self._effort.lower(*image.shape)
        size = f"{image.shape[1]}x{image.shape[0]}"
        if lower is None:
            raise DeviceError(
                f"too little memory on {image.device} for the flow of {size} images ({reason}); "
                "set flow.max_pixels lower, or flow.method=dis"
            )
        self._effort, self._kept = lower, None
        if image.device.type == "cuda":
            torch.cuda.empty_cache()
        how = (
            f"at 1/{2**lower.halvings} of the size" if lower.halvings else "with correlation on demand, which is slower"
        )
        log.warning("too little memory on %s for the flow of %s images: going on %s", image.device, size, how)

    def _find(self, previous: Tensor, current: Tensor, initial: Tensor | None) -> FlowField:
        first = self._features(previous)
        second = self._features(current)
        self._kept = current, current._version, self._effort, second
        there = Features(*(torch.cat(parts) for parts in zip(_parts(first), _parts(second), strict=True)))
        back = Features(*(torch.cat(parts) for parts in zip(_parts(second), _parts(first), strict=True)))
        height, width = previous.shape
        small = (height >> self._effort.halvings, width >> self._effort.halvings)
        margins = _margins(small, STRIDE, LEAST_SIDE)
        start = None
        if initial is not None:
            guess = resize(torch.stack((initial, -initial)).permute(0, 3, 1, 2).float(), small)
            start = functional.avg_pool2d(functional.pad(guess, margins, mode="replicate"), STRIDE) / STRIDE
        settled = Settled(self._tolerance)
        states = self._model.states(there, back, initial=start, correlate=self._effort.correlate)
        for state in islice(states, self._updates):
            if settled(state):
                break
        prediction = _crop(self._model.full_size(state), margins)
        flow = resize(prediction.flow, (height, width)).permute(0, 2, 3, 1).contiguous()
        if prediction.mixture is None:
            spread = torch.stack((consistency_variance(flow[0], flow[1]), consistency_variance(flow[1], flow[0])))
        else:
            spread = variance(prediction.mixture) * 4**self._effort.halvings
            spread = functional.interpolate(spread[:, None], size=(height, width), mode="bilinear")[:, 0]
        return DenseFlow(flow[0], flow[1], spread[0], spread[1])

    def _features(self, image: Tensor) -> Features:
        if self._kept is not None:
            kept, version, effort, features = self._kept
            if kept is image and version == image._version and effort == self._effort:
                return features
        x = image[None, None].float() / 127.5 - 1
        for _ in range(self._effort.halvings):
            x = functional.avg_pool2d(x, 2)
        margins = _margins(x.shape[-2:], STRIDE, LEAST_SIDE)
        return self._model.encode(functional.pad(x, margins, mode="replicate").expand(-1, 3, -1, -1))


def _parts(features: Features) -> tuple[Tensor, Tensor, Tensor]:
    return features.matching, features.hidden, features.context


def _margins(size: Sequence[int], stride: int, least: int) -> tuple[int, int, int, int]:
    """Returns the left, right, top and bottom margins that make height and width multiples of a stride, and enough."""
    more_v, more_u = (max(least, -(-side // stride) * stride) - side for side in size)
    return more_u // 2, more_u - more_u // 2, more_v // 2, more_v - more_v // 2


def _crop(prediction: Prediction, margins: tuple[int, int, int, int]) -> Prediction:
    left, right, top, bottom = margins
    height, width = prediction.flow.shape[-2:]
    inner = (..., slice(top, height - bottom), slice(left, width - right))
    return Prediction(prediction.flow[inner], None if prediction.mixture is None else prediction.mixture[inner])


class RefinedFlow:
    """DIS, corrected by the refiner where somebody asks for detail.

    Args:
        model: The network; moves to the device of the images.
        start: What finds where DIS starts: RAFT misses less by far, DIS less by little. None for no motion.
        half: Whether to compute in half precision where that is faster.
    """

    def __init__(self, model: Refiner, *, start: FlowMethod | None = None, half: bool = True) -> None:
        self._model = model.eval()
        self._first, self._half = start, half
        self._dis = DisFlow()

    def __call__(self, previous: Tensor, current: Tensor, initial: Tensor | None = None) -> FlowField:
        """Finds the flow; see ``FlowMethod``."""
        if self._first is not None:
            initial = self._first(previous, current, initial).forward
        return RefinedField(self, previous, current, self._dis(previous, current, initial))

    @torch.inference_mode()
    def refine(self, previous: Tensor, current: Tensor, found: DisField) -> DenseFlow:
        """Returns the corrected flow, both ways, of what DIS found."""
        device = previous.device
        self._model.to(device)
        images = torch.stack((previous, current))[:, None].float()
        flow = torch.stack((found.forward, found.backward)).permute(0, 3, 1, 2)
        margins = _margins(previous.shape, REFINER_STRIDE, REFINER_STRIDE)
        images, flow = (functional.pad(x, margins, mode="replicate") for x in (images, flow))
        with autocast(device, half=self._half):
            last = self._model(images, images.flip(0), flow, flow.flip(0))[-1]
        last = _crop(last, margins)
        assert last.mixture is not None
        forward, backward = last.flow.permute(0, 2, 3, 1).contiguous()
        there, back = variance(last.mixture)
        return DenseFlow(forward, backward, there, back)


class RefinedField:
    """A ``FlowField`` that is refined when its detail is first asked for.

    Args:
        method: Refines.
        previous: (H, W) uint8.
        current: (H, W) uint8.
        start: What DIS found.
    """

    def __init__(self, method: RefinedFlow, previous: Tensor, current: Tensor, start: DisField) -> None:
        self._method, self._images, self._start = method, (previous, current), start

    @property
    def rough(self) -> Tensor:
        """See ``FlowField``, as for the others."""
        return self._start.rough

    def begin(self) -> None:
        """Starts the searches of DIS, from which the refiner goes on."""
        self._start.begin()

    @cached_property
    def _dense(self) -> DenseFlow:
        return self._method.refine(*self._images, self._start)

    @property
    def forward(self) -> Tensor:
        """(H, W, 2) float32, pixels."""
        return self._dense.forward

    @property
    def backward(self) -> Tensor:
        """(H, W, 2) float32, pixels."""
        return self._dense.backward

    @property
    def forward_variance(self) -> Tensor:
        """(H, W) float32, pixels squared."""
        return self._dense.forward_variance

    @property
    def backward_variance(self) -> Tensor:
        """(H, W) float32, pixels squared."""
        return self._dense.backward_variance
