"""What cameras do to a picture between the world and the file: exposure, blur, noise, compression, and mirrored worlds.

Each draw is a function of a number, so that a run that goes on sees what it would have seen.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowodom.training.pairs import Pair

Image = NDArray[np.uint8]


def augment(pair: Pair, seed: tuple[int, int], crop: tuple[int, int] | None = None) -> Pair:
    """Returns the pair as another camera might have seen it, perhaps mirrored, perhaps backwards in time.

    Args:
        pair: As rendered, without noise.
        seed: Of all chances.
        crop: Width and height of the part that is kept, in a random place; None keeps all.
    """
    rng = np.random.default_rng(seed)
    if rng.random() < 0.5:
        pair = Pair(pair.current, pair.previous, pair.backward, pair.forward, pair.backward_hidden, pair.forward_hidden)
    if crop is not None:
        pair = _crop(pair, crop, rng)
    if rng.random() < 0.5:
        pair = _mirror(pair, 1)
    if rng.random() < 0.2:
        pair = _mirror(pair, 0)
    previous, current = _photograph((pair.previous, pair.current), rng)
    return Pair(previous, current, pair.forward, pair.backward, pair.forward_hidden, pair.backward_hidden)


def _crop(pair: Pair, size: tuple[int, int], rng: np.random.Generator) -> Pair:
    height, width = pair.previous.shape
    left, top = (int(rng.integers(0, full - part + 1)) for full, part in zip((width, height), size, strict=True))
    part = (slice(top, top + size[1]), slice(left, left + size[0]))
    return Pair(*(getattr(pair, name)[part] for name in Pair.__dataclass_fields__))


def _mirror(pair: Pair, axis: int) -> Pair:
    """Mirrors top and bottom (axis 0) or left and right (axis 1)."""
    sign = torch.ones(2)
    sign[1 - axis] = -1
    values = {name: getattr(pair, name).flip(axis) for name in Pair.__dataclass_fields__}
    values["forward"], values["backward"] = values["forward"] * sign, values["backward"] * sign
    return Pair(**values)


def _photograph(images: tuple[Tensor, Tensor], rng: np.random.Generator) -> list[Tensor]:
    gain, offset, gamma = np.exp(rng.normal(0, 0.2)), rng.normal(0, 8), np.exp(rng.normal(0, 0.15))
    noise = rng.uniform(0, 5) if rng.random() < 0.8 else 0.0
    blur = rng.uniform(0.4, 1.0) if rng.random() < 0.3 else 0.0
    quality = int(rng.integers(50, 96)) if rng.random() < 0.5 else 0
    vary = rng.random() < 0.4
    taken = []
    for image in images:
        change = np.exp(rng.normal(0, 0.06)) if vary else 1.0
        picture: Any = 255 * (image.numpy().astype(np.float32) / 255) ** gamma * (gain * change) + offset
        if blur:
            picture = cv2.GaussianBlur(picture, (0, 0), blur)
        if noise:
            picture = picture + rng.normal(0, noise, picture.shape).astype(np.float32)
        done: Any = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
        if quality:
            done = cv2.imdecode(
                cv2.imencode(".jpg", done, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_GRAYSCALE
            )
        taken.append(torch.from_numpy(done))
    return taken
