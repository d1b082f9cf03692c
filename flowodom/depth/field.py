"""Depth from a single image: a pixel-aligned radiance field, rendered along the rays of the image's own pixels.

An encoder gives every pixel a feature; a small decoder turns feature and depth into density and colour, so that the
feature describes all that lies along the pixel's ray. Rendering the image's own rays gives depth and how sure it is;
rendering the rays of another camera gives what that would see, which is how the field learns from video alone.

The encoder sees the direction of every pixel's ray and the focal length beside the colours, so that what it learns of
metres with one lens holds with another.

Source: Yu et al., "pixelNeRF" (2021); FlowCam (Smith et al., 2023), section 3.1, for the surface point of a pixel.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from flowodom import weights
from flowodom.depth import FramePair, InverseDepth
from flowodom.depth.rendering import composite, log_depths, moments
from flowodom.errors import ShapeError, WeightsError
from flowodom.frame import Frame
from flowodom.geometry import PinholeCamera, se3

LEAST_SIZE = 32
"""Shortest image side, pixels, that the encoder can halve as often as it does."""


OPEN = 2.0
"""Taken off what is decoded, so that a ray of an untrained network passes through most of its cells."""

COARSER = 4
"""Pixels of the encoded image, each way, for each pixel of the depth that is rendered; finer does not show more."""


@dataclass(frozen=True)
class FieldConfig:
    """The shape of a field's network; kept with its weights.

    Attributes:
        channels: Channels of the encoder, at one half of the image's size, one quarter, and so on.
        hidden: Width of the decoder.
        octaves: Frequencies of the depth code.
        cells: Samples along a ray.
        near: Least depth, metres.
        far: Greatest depth, metres; beyond it lies the background.
        pixels: Most pixels of the image that is encoded; larger ones are shrunk.
        scale_deviation: Relative deviation of its metres from the truth, from one unseen world to another.
        calibration: Factor that makes the rendered variance that of the errors on unseen worlds.
    """

    channels: tuple[int, ...] = (24, 32, 48, 64, 96)
    hidden: int = 40
    octaves: int = 5
    cells: int = 32
    near: float = 0.25
    far: float = 80.0
    pixels: int = 19_200
    scale_deviation: float = 0.2
    calibration: float = 1.0


@dataclass(frozen=True)
class Field:
    """The radiance fields of B images.

    Attributes:
        features: (B, C, h, w) one feature a pixel, at half the image's size.
        images: (B, 3, H, W) the images, 0 to 1.
        intrinsics: (B, 4) fx, fy, cx, cy in shares of width and height, so that they hold at every resolution.
    """

    features: Tensor
    images: Tensor
    intrinsics: Tensor


class FieldNetwork(nn.Module):
    """Encodes images into radiance fields, and decodes those along rays.

    Places in an image are shares of its width and height, (0, 0) the outer corner of the first pixel, (1, 1) that of
    the last, so that they hold at every resolution.

    Args:
        config: The network's shape.
    """

    def __init__(self, config: FieldConfig = FieldConfig()) -> None:
        super().__init__()
        self.config = config
        widths = config.channels
        self.stem = nn.Sequential(nn.Conv2d(6, widths[0], 5, stride=2, padding=2), _norm(widths[0]), nn.SiLU())
        self.down = nn.ModuleList(_Down(a, b) for a, b in pairwise(widths))
        self.context = nn.Linear(widths[-1], widths[-1])
        self.up = nn.ModuleList(_Up(a, b) for a, b in pairwise(widths[::-1]))
        self.head = nn.Conv2d(widths[0], config.hidden, 3, padding=1)
        self.depth_code = nn.Linear(1 + 2 * config.octaves, config.hidden)
        self.decoder = nn.Linear(config.hidden, 4)

    def forward(
        self,
        images: Tensor,
        intrinsics: Tensor,
        place: Tensor,
        other: Tensor,
        motion: Tensor,
        offset: Tensor,
        other_offset: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Renders rays of images and rays of another view with the same lens, as training does it, in one call.

        Returns:
            What ``depth`` and what ``colour`` return.
        """
        field = self.encode(images, intrinsics)
        seen = self.colour(field, other, intrinsics, motion, offset=other_offset)
        return *self.depth(field, place, offset=offset), *seen

    def encode(self, images: Tensor, intrinsics: Tensor) -> Field:
        """Returns the fields of images.

        Args:
            images: (B, 3, H, W) RGB, 0 to 1.
            intrinsics: (B, 4) fx, fy, cx, cy in shares of width and height.

        Raises:
            ShapeError: The images are no batch of colour images, or too small.
        """
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < LEAST_SIZE:
            raise ShapeError(
                f"the field needs images (B, 3, H, W) of at least {LEAST_SIZE} pixels each way, "
                f"got {tuple(images.shape)}"
            )
        batch, _, height, width = images.shape
        direction = rays(places(height, width, images), intrinsics[:, None, None])[..., :2].movedim(-1, 1)
        focal = intrinsics[:, 0].log()[:, None, None, None].expand(batch, 1, height, width)
        x = self.stem(torch.cat((4 * images - 2, direction, focal), dim=1))
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(x)
        x = x + self.context(x.mean((2, 3)))[..., None, None]
        for up in self.up:
            x = up(x, skips.pop())
        return Field(self.head(x), images, intrinsics)

    def density(self, features: Tensor, log_depth: Tensor) -> Tensor:
        """Decodes features at depths.

        Args:
            features: (..., K, C), or (..., 1, C) for all samples of a ray that is one pixel's own.
            log_depth: (..., K) logarithms of depth, metres.

        Returns:
            (..., K) optical thickness of one cell.
        """
        out = functional.linear(self._hidden(features, log_depth), self.decoder.weight[:1], self.decoder.bias[:1])
        return functional.softplus(out[..., 0] - OPEN)

    def decode(self, features: Tensor, log_depth: Tensor) -> tuple[Tensor, Tensor]:
        """Decodes features at depths, with the colour.

        Returns:
            (..., K) as ``density`` does, and (..., K, 3) what is to be added to the pixel's colour.
        """
        out = self.decoder(self._hidden(features, log_depth))
        return functional.softplus(out[..., 0] - OPEN), out[..., 1:]

    def _hidden(self, features: Tensor, log_depth: Tensor) -> Tensor:
        config = self.config
        share = (log_depth - math.log(config.near)) / math.log(config.far / config.near)
        angle = math.pi * share[..., None] * 2.0 ** torch.arange(config.octaves, device=share.device)
        code = torch.cat((share[..., None], angle.sin(), angle.cos()), dim=-1).to(features.dtype)
        return functional.silu(features + self.depth_code(code), inplace=True)

    def depth(self, field: Field, place: Tensor, *, offset: Tensor | float = 0.5) -> tuple[Tensor, Tensor]:
        """Renders inverse depth along the rays of a field's own pixels.

        Args:
            field: Fields of B images.
            place: (B, N, 2) places.
            offset: Where in their cells samples lie; (B, N, K) random ones for training.

        Returns:
            (B, N) expected inverse depth, 1/m, and its variance.
        """
        feature = sample(field.features, place)[:, :, None]
        log_depth = self._log_depths(offset, place)
        thickness = self.density(feature, log_depth).to(place.dtype)
        return self._inverse_depth(composite(thickness), log_depth)

    def colour(
        self, field: Field, place: Tensor, intrinsics: Tensor, motion: Tensor, *, offset: Tensor | float = 0.5
    ) -> tuple[Tensor, Tensor]:
        """Renders what another camera sees of a field.

        Args:
            field: Fields of B images.
            place: (B, N, 2) places in the other camera.
            intrinsics: (B, 4) of the other camera, in shares of width and height.
            motion: (B, 4, 4) ``T_field_other``, metres.
            offset: Where in their cells samples lie; (B, N, K) random ones for training.

        Returns:
            (B, N, 3) colours, 0 to 1, and (B, N) the share of the ray's light that comes from within the field's view.
        """
        log_depth = self._log_depths(offset, place).expand(*place.shape[:2], -1)
        points = rays(place, intrinsics[:, None])[..., None, :] * log_depth.exp()[..., None]
        with torch.autocast(place.device.type, enabled=False):  # half precision is too coarse for where things are
            there = se3.act(motion[:, None, None], points)
        z = there[..., 2].clamp_min(0.5 * self.config.near)
        seen_at = project(there / z[..., None], field.intrinsics[:, None, None])
        inside = ((seen_at > 0) & (seen_at < 1)).all(-1) & (there[..., 2] > 0.5 * self.config.near)
        batch, count, cells = z.shape
        flat = seen_at.reshape(batch, count * cells, 2)
        features = sample(field.features, flat).reshape(batch, count, cells, -1)
        thickness, change = self.decode(features, z.log())
        # What lies outside of the view is unknown: the ray goes through it.
        weights = composite(torch.where(inside, thickness.to(place.dtype), 0))
        own = sample(field.images, flat).reshape(batch, count, cells, 3)
        colours = torch.cat((own + change, own[:, :, -1:]), dim=-2)
        known = torch.cat((inside, inside[..., -1:]), dim=-1)
        share = (weights * known).sum(-1)
        return (weights[..., None] * known[..., None] * colours).sum(-2) / share.clamp_min(1e-4)[..., None], share

    def _log_depths(self, offset: Tensor | float, like: Tensor) -> Tensor:
        config = self.config
        return log_depths(config.near, config.far, config.cells, offset=offset).to(like)

    def _inverse_depth(self, weights: Tensor, log_depth: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the expected inverse depth of rays and its variance, that of a place within its cell included."""
        config = self.config
        rho = torch.cat(((-log_depth).exp(), torch.zeros_like(log_depth[..., :1])), dim=-1)
        mean, variance = moments(weights, rho.to(weights))
        cell = math.log(config.far / config.near) / config.cells
        return mean, variance + (cell * mean).square() / 12


def load_field(path: Path) -> FieldNetwork:
    """Returns the network of a file of weights.

    Raises:
        WeightsError: The file is missing, damaged, or not a field's.
    """
    tensors, about = weights.read(path)
    try:
        known = json.loads(about["field"])
        network = FieldNetwork(FieldConfig(**{**known, "channels": tuple(known["channels"])}))
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} does not say that it holds a field, or which: {error!r}") from error
    weights.fill(network, {name: value.float() for name, value in tensors.items()}, path)
    return network


def save_field(path: Path, network: FieldNetwork, words: Mapping[str, str]) -> None:
    """Writes a network's weights, in half precision, with its shape beside them.

    Args:
        path: Where to; what is there is replaced.
        network: The network.
        words: More about it.
    """
    tensors = {name: value.half() for name, value in network.state_dict().items()}
    shape = json.dumps(dataclasses.asdict(network.config))
    weights.write(path, tensors, {"model": "field", "field": shape, **words})


class FieldDepth:
    """Depth of each image by itself, in the metres of the worlds and bags that the field has learned from.

    Args:
        network: The trained network.
        device: Torch device on which it runs.
    """

    metric = True

    def __init__(self, network: FieldNetwork, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        network = network.to(self._device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._network: FieldNetwork = network.eval()

    @property
    def scale_deviation(self) -> float:
        """Relative deviation of its metres from the truth, from one scene to another."""
        return self._network.config.scale_deviation

    @torch.no_grad()
    def observe(self, frame: Frame) -> InverseDepth | None:
        """Returns what the image alone tells; see ``DepthSource``."""
        config = self._network.config
        height, width = frame.camera.height, frame.camera.width
        shrink = min(1.0, math.sqrt(config.pixels / (height * width)))
        size = (max(LEAST_SIZE, round(shrink * height)), max(LEAST_SIZE, round(shrink * width)))
        small = np.ascontiguousarray(frame.image)
        if size != (height, width):
            small = np.asarray(cv2.resize(small, size[::-1], interpolation=cv2.INTER_AREA))
        image = torch.from_numpy(small).to(self._device).float() / 255
        image = (image[..., None].expand(-1, -1, 3) if image.ndim == 2 else image).permute(2, 0, 1)[None]
        with torch.autocast(self._device.type, dtype=torch.float16, enabled=self._device.type == "cuda"):
            field = self._network.encode(image, normalised(frame.camera).to(image))
            rows, columns = size[0] // COARSER, size[1] // COARSER
            grid = places(rows, columns, image)
            mean, variance = self._network.depth(field, grid.reshape(1, -1, 2))
        camera = frame.camera.resized(columns, rows)
        return InverseDepth(
            camera,
            mean.reshape(rows, columns).float(),
            config.calibration * variance.reshape(rows, columns).float(),
        )

    def begin(self, frame: Frame) -> None:
        """Has nothing to do; see ``DepthSource``."""

    def fuse(self, observed: InverseDepth | None, previous: InverseDepth | None, pair: FramePair) -> InverseDepth:
        """Returns ``observed``: each image speaks for itself. See ``DepthSource``."""
        return observed if observed is not None else InverseDepth.unknown(pair.camera, self._device)

    def complete(self, known: InverseDepth, frame: Frame) -> InverseDepth:
        """Returns ``known``: it knows every pixel. See ``DepthSource``."""
        return known


def places(height: int, width: int, like: Tensor) -> Tensor:
    """Returns the (H, W, 2) places of all pixel centres, on the device and in the dtype of ``like``."""
    v = (torch.arange(height, dtype=like.dtype, device=like.device) + 0.5) / height
    u = (torch.arange(width, dtype=like.dtype, device=like.device) + 0.5) / width
    return torch.stack(torch.meshgrid(u, v, indexing="xy"), dim=-1)


def normalised(camera: PinholeCamera) -> Tensor:
    """Returns the (1, 4) fx, fy, cx, cy of a camera in shares of its width and height."""
    w, h = camera.width, camera.height
    return torch.tensor([[camera.fx / w, camera.fy / h, (camera.cx + 0.5) / w, (camera.cy + 0.5) / h]])


def rays(place: Tensor, intrinsics: Tensor) -> Tensor:
    """Returns the (..., 3) rays, z = 1, at (..., 2) places; intrinsics (..., 4) broadcast."""
    xy = (place - intrinsics[..., 2:]) / intrinsics[..., :2]
    return torch.cat((xy, torch.ones_like(xy[..., :1])), dim=-1)


def project(points: Tensor, intrinsics: Tensor) -> Tensor:
    """Returns the (..., 2) places of (..., 3) points with z = 1, the inverse of ``rays``."""
    return points[..., :2] * intrinsics[..., :2] + intrinsics[..., 2:]


def sample(maps: Tensor, place: Tensor) -> Tensor:
    """Reads (B, C, h, w) maps bilinearly at (B, N, 2) places, clamping at the border; returns (B, N, C)."""
    grid = (2 * place - 1)[:, None].to(maps.dtype)
    return functional.grid_sample(maps, grid, padding_mode="border", align_corners=False)[:, :, 0].mT.contiguous()


def _norm(channels: int) -> nn.Module:
    return nn.GroupNorm(8, channels)


class _Block(nn.Module):
    """A residual block of one 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), _norm(channels), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class _Down(nn.Module):
    """Halves the size."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride=2, padding=1), _norm(after), nn.SiLU(), _Block(after), _Block(after)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class _Up(nn.Module):
    """Doubles the size and adds what was there on the way down."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(before, after, 1)
        self.block = _Block(after)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        wide = functional.interpolate(self.narrow(x), skip.shape[2:], mode="bilinear", align_corners=False)
        return self.block(wide + skip)
