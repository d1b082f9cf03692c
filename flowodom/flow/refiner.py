"""A small recurrent network that starts from another method's flow and learns its correction and its uncertainty.

It sees both images where the flow says that they should agree, what a step of least squares would do about their
difference, and how far the flow misses when followed there and back; all that at a quarter of the size, with a coarser
level for the surroundings. Untrained it corrects nothing.

Source: the recurrence and the convex upsampling of Teed and Deng, "RAFT" (ECCV 2020); in place of correlation the step
of Lucas and Kanade, "An Iterative Image Registration Technique" (IJCAI 1981), which the network weighs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowodom import weights
from flowodom.errors import WeightsError
from flowodom.flow import uncertainty
from flowodom.flow.pyramid import IMAGE_NOISE, gradient, residual, warp
from flowodom.flow.raft import Prediction, convex_upsample

MODEL = "refiner"
"""What the metadata of its files says under ``model``."""

FACTOR = 4
"""Pixels of the image to a pixel of the network."""

STRIDE = 8
"""Image sides must be multiples of it."""

CONTRAST = 32.0
"""Grey levels that count as one."""

REACH = 8.0
"""Pixels of flow that count as one."""

WINDOWS = (3, 7)
"""Sides of the neighbourhoods over which the steps are solved, pixels of the network."""

LONGEST_STEP = 3.0
"""Most that a step may move each component, pixels."""

EVIDENCE = 3 * len(WINDOWS) + 2
"""Channels of ``evidence``."""


def evidence(first: Tensor, second: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """Says how the images differ where flow points, and what would mend it.

    Args:
        first: (B, 1, H, W) float32 grey levels, in which the flow starts.
        second: (B, 1, H, W) float32 grey levels, in which it ends.
        flow: (B, 2, H, W) float32 pixels.

    Returns:
        (B, EVIDENCE, H / 4, W / 4): for each window the least-squares step, pixels, and how sure it is; then how large
        the difference is and which part of it is known. And the (B, 1, H, W) difference, grey levels.
    """
    difference, inside = residual(first, second, flow)
    slope_u, slope_v = gradient(first + 0.5 * difference)
    known = inside.to(first.dtype)
    products = known * torch.cat(
        (
            slope_u * slope_u,
            slope_u * slope_v,
            slope_v * slope_v,
            slope_u * difference,
            slope_v * difference,
            difference * difference,
        ),
        dim=1,
    )
    pooled = functional.avg_pool2d(products, FACTOR)
    channels = []
    for window in WINDOWS:
        mean = functional.avg_pool2d(pooled, window, stride=1, padding=window // 2, count_include_pad=False)
        a, b, c, du, dv, _ = mean.unbind(1)
        a, c = a + IMAGE_NOISE**2, c + IMAGE_NOISE**2
        determinant = a * c - b * b
        step = torch.stack((b * dv - c * du, b * du - a * dv), dim=1) / determinant[:, None]
        channels += [step.clamp(-LONGEST_STEP, LONGEST_STEP), (determinant / (a + c)).log()[:, None] / 4]
    energy = (pooled[:, 5:] + IMAGE_NOISE**2).log() / 4
    return torch.cat((*channels, energy, functional.avg_pool2d(known, FACTOR)), dim=1), difference


class Surroundings(nn.Module):
    """Convolutions at half the size, dilated so that they see far.

    Args:
        outer: Channels outside.
        inner: Channels inside.
    """

    def __init__(self, *, outer: int, inner: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(outer, inner, 3, stride=2, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(inner, inner, 3, padding=d, dilation=d) for d in (1, 2, 4))
        self.up = nn.Conv2d(inner, outer, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, outer, h, w) of the same."""
        y = functional.relu(self.down(x))
        for layer in self.layers:
            y = y + functional.relu(layer(y))
        return x + functional.interpolate(self.up(y), size=x.shape[-2:], mode="bilinear", align_corners=False)


class Refiner(nn.Module):
    """The network.

    Args:
        width: Channels at a quarter of the size; at an eighth there are twice as many.
        updates: How often it looks and corrects.
    """

    def __init__(self, *, width: int = 32, updates: int = 2) -> None:
        super().__init__()
        self.width, self.updates = width, updates
        seen = 2 * FACTOR**2 + EVIDENCE + 4
        self.look = nn.Conv2d(seen + width, width, 3, padding=1)
        self.surroundings = Surroundings(outer=width, inner=2 * width)
        self.state = nn.Conv2d(width, width, 3, padding=1)
        self.step = nn.Conv2d(width, 2 + len(WINDOWS), 3, padding=1)
        self.mixture = nn.Conv2d(width, uncertainty.CHANNELS, 3, padding=1)
        self.mask = nn.Conv2d(width, 9 * FACTOR**2, 1)
        for head in (self.step, self.mask):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)  # type: ignore[arg-type]

    def forward(self, first: Tensor, second: Tensor, flow: Tensor, back: Tensor) -> list[Prediction]:
        """Corrects flow.

        Args:
            first: (B, 1, H, W) float32 grey levels, in which the flow starts; H and W multiples of 8.
            second: (B, 1, H, W) float32 grey levels, in which it ends.
            flow: (B, 2, H, W) float32 pixels, to be corrected.
            back: (B, 2, H, W) float32 pixels, from the second image to the first.

        Returns:
            The flow after each update, and its uncertainty.
        """
        batch, _, height, width = first.shape
        returned = torch.cat([warp(back[:, k : k + 1], flow)[0] for k in (0, 1)], dim=1)
        miss = functional.avg_pool2d(torch.cat((flow, flow + returned), dim=1), FACTOR) / REACH
        image = functional.pixel_unshuffle((first - 128) / CONTRAST, FACTOR)
        hidden = first.new_zeros(batch, self.width, height // FACTOR, width // FACTOR)
        found, predictions = flow, []
        for _ in range(self.updates):
            found = found.detach()
            told, difference = evidence(first, second, found)
            seen = torch.cat((image, functional.pixel_unshuffle(difference / CONTRAST, FACTOR), told, miss, hidden), 1)
            hidden = self.surroundings(functional.relu(self.look(seen)))
            hidden = functional.relu(self.state(hidden))
            own, trust = self.step(hidden).float().split((2, len(WINDOWS)), dim=1)
            steps = told[:, : 3 * len(WINDOWS)].reshape(batch, len(WINDOWS), 3, *told.shape[-2:])[:, :, :2]
            step = own + (trust[:, :, None] * steps).sum(1)
            step = convex_upsample(step, self.mask(hidden).float(), FACTOR)
            mixture = functional.interpolate(
                self.mixture(hidden).float(), scale_factor=FACTOR, mode="bilinear", align_corners=False
            )
            found = found + step
            predictions.append(Prediction(found, mixture))
        return predictions


def load_refiner(path: Path) -> Refiner:
    """Makes the network that a file describes, on the CPU, set to evaluate.

    Raises:
        WeightsError: The file cannot be read or holds something else.
    """
    tensors, metadata = weights.read(path)
    if metadata.get("model") != MODEL or "look.bias" not in tensors:
        raise WeightsError(f"{path} holds {metadata.get('model', 'something else')}, not a {MODEL}")
    model = Refiner(width=len(tensors["look.bias"]), updates=int(metadata.get("updates", "2")))
    weights.fill(model, tensors, path)
    return model.eval()


def save_refiner(path: Path, model: Refiner, metadata: Mapping[str, str]) -> None:
    """Writes a network so that ``load_refiner`` finds it again; ``metadata`` are more words about it."""
    weights.write(path, model.state_dict(), {"model": MODEL, "updates": str(model.updates), **metadata})
