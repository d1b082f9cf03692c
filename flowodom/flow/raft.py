"""RAFT: features of both images, their correlation, and a recurrent unit that looks it up and updates the flow.

Source: Teed and Deng, "RAFT: Recurrent All-Pairs Field Transforms for Optical Flow" (ECCV 2020). With published weights
(``flow.checkpoint``) the results are the published ones. Added here: an optional head that tells the uncertainty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowodom.flow import uncertainty
from flowodom.flow.correlation import AllPairs, CorrelationKind

STRIDE = 8
"""Pixels of the image to a pixel of the features; image sides must be multiples of it."""

LEVELS = 4
"""Scales of the correlation."""

LEAST_SIDE = STRIDE * 2**LEVELS
"""Shortest image side, pixels, of which the coarsest correlation has more than one cell."""


@dataclass(frozen=True)
class Widths:
    """Numbers of channels.

    Attributes:
        stem: After the first convolution of the encoders.
        stages: After each of their three stages.
        features: Of what is matched.
        hidden: Of the recurrent state.
        context: Of what the update knows of the first image.
        correlation: After each convolution of the correlation.
        flow: After each convolution of the flow.
        motion: Of correlation and flow together.
        head: Inside the heads.
        radius: Neighbours on either side that the correlation is looked up for.
    """

    stem: int
    stages: tuple[int, int, int]
    features: int
    hidden: int
    context: int
    correlation: tuple[int, ...]
    flow: tuple[int, int]
    motion: int
    head: int
    radius: int


SIZES = {
    "small": Widths(32, (32, 64, 96), 128, 96, 64, (96,), (64, 32), 82, 128, 3),
    "large": Widths(64, (64, 96, 128), 256, 128, 128, (256, 192), (128, 64), 128, 256, 4),
}
"""The two published networks; large has about 5.3 million weights, small one million."""


def _instance_norm(channels: int) -> nn.Module:
    """Returns an instance norm; one of groups leaves channels where they are in memory."""
    return nn.GroupNorm(channels, channels, affine=False)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "instance": _instance_norm,
    "batch": nn.BatchNorm2d,
    "none": nn.Identity,
}
"""Normalisations by name, each made for a number of channels."""


def _conv(inputs: int, outputs: int, kernel: int | tuple[int, int], *, stride: int = 1) -> nn.Conv2d:
    """Returns a convolution that keeps the size but for its stride."""
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    return nn.Conv2d(inputs, outputs, (height, width), stride=stride, padding=(height // 2, width // 2))


class Block(nn.Module):
    """Two convolutions (large) or a bottleneck of three (small), with a shortcut around them.

    Args:
        inputs: Channels.
        outputs: Channels.
        stride: Of the block.
        bottleneck: Whether the 3x3 convolution works on a quarter of the channels.
        norm: One of ``NORMS``.
    """

    def __init__(self, *, inputs: int, outputs: int, stride: int, bottleneck: bool, norm: str) -> None:
        super().__init__()
        inner = outputs // 4
        plan = [(inner, 1, 1), (inner, 3, stride), (outputs, 1, 1)] if bottleneck else [(outputs, 3, stride)]
        plan += [] if bottleneck else [(outputs, 3, 1)]
        layers, channels = [], inputs
        for width, kernel, step in plan:
            convolution = _conv(channels, width, kernel, stride=step)
            layers.append(nn.Sequential(convolution, NORMS[norm](width), nn.ReLU(inplace=True)))
            channels = width
        self.branch = nn.Sequential(*layers)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(_conv(inputs, outputs, 1, stride=stride), NORMS[norm](outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, outputs, H / stride, W / stride) of (B, inputs, H, W)."""
        return (self.shortcut(x) + self.branch(x)).relu_()


class Encoder(nn.Module):
    """Features of an image at an eighth of its size.

    Args:
        widths: Channels.
        outputs: Channels of the features.
        bottleneck: Whether blocks are bottlenecks.
        norm: One of ``NORMS``.
    """

    def __init__(self, *, widths: Widths, outputs: int, bottleneck: bool, norm: str) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, widths.stem, 7, stride=2), NORMS[norm](widths.stem), nn.ReLU(inplace=True))
        stages, channels = [], widths.stem
        for width, stride in zip(widths.stages, (1, 2, 2), strict=True):
            blocks = [
                Block(inputs=i, outputs=width, stride=s, bottleneck=bottleneck, norm=norm)
                for i, s in ((channels, stride), (width, 1))
            ]
            stages.append(nn.Sequential(*blocks))
            channels = width
        self.stages = nn.Sequential(*stages)
        self.head = _conv(channels, outputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Returns (B, outputs, H / 8, W / 8) of (B, 3, H, W) in [-1, 1]."""
        return self.head(self.stages(self.stem(images)))


class MotionEncoder(nn.Module):
    """What correlation and flow tell together.

    Args:
        widths: Channels.
    """

    def __init__(self, *, widths: Widths) -> None:
        super().__init__()
        planes = LEVELS * (2 * widths.radius + 1) ** 2
        channels = (planes, *widths.correlation)
        self.correlation = nn.ModuleList(_conv(i, o, 1 if k == 0 else 3) for k, (i, o) in enumerate(pairwise(channels)))
        self.flow = nn.ModuleList((_conv(2, widths.flow[0], 7), _conv(*widths.flow, 3)))
        self.merge = _conv(widths.correlation[-1] + widths.flow[-1], widths.motion - 2, 3)

    def forward(self, correlation: Tensor, flow: Tensor) -> Tensor:
        """Returns (B, motion, h, w) of the looked-up correlation (B, C, h, w) and the flow (B, 2, h, w)."""
        seen = flow
        for layer in self.correlation:
            correlation = functional.relu(layer(correlation))
        for layer in self.flow:
            seen = functional.relu(layer(seen))
        merged = functional.relu(self.merge(torch.cat((correlation, seen), dim=1)))
        return torch.cat((merged, flow.to(merged.dtype)), dim=1)


class GatedUnit(nn.Module):
    """A convolutional gated recurrent unit.

    Args:
        hidden: Channels of the state.
        inputs: Channels of the input.
        kernel: Height and width.
    """

    def __init__(self, *, hidden: int, inputs: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.z, self.r, self.q = (_conv(hidden + inputs, hidden, kernel) for _ in range(3))

    def forward(self, hidden: Tensor, inputs: Tensor) -> Tensor:
        """Returns the next state (B, hidden, h, w)."""
        both = torch.cat((hidden, inputs), dim=1)
        update, reset = self.z(both).sigmoid(), self.r(both).sigmoid()
        proposal = self.q(torch.cat((reset * hidden, inputs), dim=1)).tanh()
        return (1 - update) * hidden + update * proposal


def _head(inputs: int, inner: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(_conv(inputs, inner, 3), nn.ReLU(), _conv(inner, outputs, kernel))


class Update(nn.Module):
    """One step: from what is seen where the flow points, to the next state; and what is read from a state.

    Args:
        widths: Channels.
        separable: Whether the unit is a horizontal and a vertical one instead of a square one.
        convex: Whether upsampling is learned.
        uncertain: Whether it tells the uncertainty.
    """

    def __init__(self, *, widths: Widths, separable: bool, convex: bool, uncertain: bool) -> None:
        super().__init__()
        self.motion = MotionEncoder(widths=widths)
        kernels = ((1, 5), (5, 1)) if separable else ((3, 3),)
        inputs = widths.context + widths.motion
        self.units = nn.ModuleList(GatedUnit(hidden=widths.hidden, inputs=inputs, kernel=kernel) for kernel in kernels)
        self.step = _head(widths.hidden, widths.head, 2, 3)
        self.mask = _head(widths.hidden, 256, 9 * STRIDE**2, 1) if convex else None
        self.mixture = _head(widths.hidden, 64, uncertainty.CHANNELS, 3) if uncertain else None

    def forward(self, hidden: Tensor, context: Tensor, correlation: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the next state (B, hidden, h, w) and what it adds to the flow (B, 2, h, w)."""
        inputs = torch.cat((context, self.motion(correlation, flow)), dim=1)
        for unit in self.units:
            hidden = unit(hidden, inputs)
        return hidden, self.step(hidden)


@dataclass(frozen=True)
class Features:
    """What the encoders tell of images.

    Attributes:
        matching: (B, C, h, w), what is correlated.
        hidden: (B, C, h, w), the first recurrent state.
        context: (B, C, h, w), what the update knows of the image all along.
    """

    matching: Tensor
    hidden: Tensor
    context: Tensor


@dataclass(frozen=True)
class State:
    """Flow after some updates, at an eighth of the size.

    Attributes:
        flow: (B, 2, h, w) float32, pixels of this size.
        step: (B, 2, h, w), what the last update added.
        hidden: (B, C, h, w), the recurrent state.
    """

    flow: Tensor
    step: Tensor
    hidden: Tensor


@dataclass(frozen=True)
class Prediction:
    """Flow at the size of the images.

    Attributes:
        flow: (B, 2, H, W) float32 pixels.
        mixture: (B, 3, H, W) float32, its uncertainty (see ``flow.uncertainty``); None where none was learned.
    """

    flow: Tensor
    mixture: Tensor | None


class Raft(nn.Module):
    """The network.

    Args:
        size: One of ``SIZES``.
        uncertain: Whether it tells the uncertainty; published weights do not.
    """

    def __init__(self, *, size: str = "small", uncertain: bool = True) -> None:
        super().__init__()
        widths, large = SIZES[size], size == "large"
        self.size, self.widths = size, widths
        self.features = Encoder(widths=widths, outputs=widths.features, bottleneck=not large, norm="instance")
        self.context = Encoder(
            widths=widths,
            outputs=widths.hidden + widths.context,
            bottleneck=not large,
            norm="batch" if large else "none",
        )
        self.update = Update(widths=widths, separable=large, convex=large, uncertain=uncertain)

    def encode(self, images: Tensor) -> Features:
        """Returns what is needed of (B, 3, H, W) images in [-1, 1]; H and W multiples of 8."""
        hidden, context = self.context(images).split((self.widths.hidden, self.widths.context), dim=1)
        return Features(self.features(images).float(), hidden.tanh(), context.relu())

    def states(
        self,
        first: Features,
        second: Features,
        *,
        initial: Tensor | None = None,
        correlate: CorrelationKind = AllPairs,
    ) -> Iterator[State]:
        """Yields better and better flow from the first images to the second, without end.

        Args:
            first: Of the images in which the flow starts.
            second: Of those in which it ends.
            initial: (B, 2, h, w) float32 flow to start from, pixels of this size; zero for None.
            correlate: How correlation is looked up.
        """
        correlation = correlate(first.matching, second.matching, LEVELS, self.widths.radius)
        batch, _, height, width = first.matching.shape
        flow = first.matching.new_zeros(batch, 2, height, width) if initial is None else initial
        hidden = first.hidden
        v, u = torch.meshgrid(
            torch.arange(height, dtype=flow.dtype, device=flow.device),
            torch.arange(width, dtype=flow.dtype, device=flow.device),
            indexing="ij",
        )
        here = torch.stack((u, v))
        while True:
            flow = flow.detach()
            hidden, step = self.update(hidden, first.context, correlation(here + flow), flow)
            flow = flow + step.float()
            yield State(flow, step, hidden)

    def full_size(self, state: State) -> Prediction:
        """Returns the flow of a state at the size of the images."""
        update = self.update
        mixture = None if update.mixture is None else update.mixture(state.hidden).float()
        if update.mask is None:
            mixture = None if mixture is None else _interpolate(mixture)
            return Prediction(STRIDE * _interpolate(state.flow), mixture)
        # The mask's gradient is a quarter, as in the published training; weights depend on it.
        mask = 0.25 * update.mask(state.hidden).float()
        flow = convex_upsample(STRIDE * state.flow, mask, STRIDE)
        return Prediction(flow, None if mixture is None else convex_upsample(mixture, mask, STRIDE))

    def forward(
        self, previous: Tensor, current: Tensor, *, initial: Tensor | None = None, updates: int = 12
    ) -> list[Prediction]:
        """Finds the flow and keeps every update's, as training needs.

        Args:
            previous: (B, 3, H, W) images in [-1, 1]; H and W multiples of 8, at least 128.
            current: (B, 3, H, W) images.
            initial: (B, 2, H / 8, W / 8) float32 flow to start from, pixels of that size.
            updates: How many.
        """
        batch = len(previous)
        both = self.encode(torch.cat((previous, current)))
        first, second = (
            Features(both.matching[part], both.hidden[part], both.context[part])
            for part in (slice(batch), slice(batch, None))
        )
        return [self.full_size(state) for state in islice(self.states(first, second, initial=initial), updates)]


def _interpolate(field: Tensor) -> Tensor:
    return functional.interpolate(field, scale_factor=STRIDE, mode="bilinear", align_corners=True)


def convex_upsample(field: Tensor, mask: Tensor, factor: int) -> Tensor:
    """Makes each fine value a convex combination of the nine coarse ones around it.

    Args:
        field: (B, C, h, w) float.
        mask: (B, 9 factor^2, h, w) logits: neighbour by neighbour, row by row; in each the fine pixels likewise.
        factor: Fine pixels along the side of a coarse one.

    Returns:
        (B, C, h factor, w factor).
    """
    batch, channels, height, width = field.shape
    weight = mask.view(batch, 1, 9, factor**2, height, width).softmax(dim=2)
    near = functional.unfold(field, 3, padding=1).view(batch, channels, 9, 1, height, width)
    return functional.pixel_shuffle((weight * near).sum(2).flatten(1, 2), factor)
