"""Dense fields drawn on the image that they belong to, as RGB pictures for people.

All functions take the image in grey and a field of any size over the same view, and return a picture of the image's
size. Where a field says nothing (NaN, zero), the image shows through, so that one sees what the colour lies on.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Field = NDArray[np.float32]

WEIGHT_COLOUR = (45, 212, 160)
"""RGB of weight 1."""

MOVING_COLOUR = (255, 96, 64)
"""RGB of what moves on its own beyond doubt."""

_DIM = 0.55
"""Brightness of the image under a colour, so that the colour stands out."""


def flow_picture(grey: Image, flow: Field, longest: float) -> Image:
    """Draws vectors by the colour wheel: hue is the direction, opacity the length.

    Args:
        grey: (H, W) uint8.
        flow: (h, w, 2) vectors (right, down), NaN where unknown.
        longest: Length drawn at full opacity, in the unit of ``flow``.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    known = np.isfinite(flow).all(axis=-1, keepdims=True)
    flow = _resize(np.where(known, flow, np.float32(0)), grey)
    length: Field = np.hypot(flow[..., 0], flow[..., 1])
    return _blend(grey, _direction_colours(flow), np.clip(length * np.float32(0.85 / longest), 0, np.float32(0.85)))


def flow_wheel(size: int) -> tuple[Image, Image]:
    """Returns the legend of ``flow_picture``.

    Args:
        size: Pixels along each side.

    Returns:
        (size, size, 3) uint8 RGB, and its (size, size) uint8 opacity, 0 outside of the wheel.
    """
    axis = ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32)
    flow: Field = np.stack(np.meshgrid(axis, axis), axis=-1)
    length = np.hypot(flow[..., 0], flow[..., 1])
    inside = np.clip((1 - length) * size / 2, 0, 1) * np.clip(length, 0, 1)
    return _direction_colours(flow), np.rint(255 * inside).astype(np.uint8)


def inverse_depth_picture(grey: Image, depth: Field, near: float, far: float) -> Image:
    """Draws depth by its inverse: bright is near, dark is far, grey is unknown.

    Args:
        grey: (H, W) uint8.
        depth: (h, w) metres, NaN where unknown.
        near: Depth drawn brightest, metres.
        far: Depth drawn darkest, metres.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    known = np.isfinite(depth) & (depth > 0)
    inverse = 1 / np.where(known, depth, np.float32(far))
    span = max(1 / near - 1 / far, 1e-9)
    level = np.rint(255 * np.clip((inverse - 1 / far) / span, 0, 1)).astype(np.uint8)
    size = (grey.shape[1], grey.shape[0])
    level = np.asarray(cv2.resize(level, size, interpolation=cv2.INTER_NEAREST), dtype=np.uint8)
    opacity = cv2.resize(known.astype(np.float32), size, interpolation=cv2.INTER_NEAREST)
    colours = cv2.cvtColor(cv2.applyColorMap(level, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    return _blend(grey, np.asarray(colours, dtype=np.uint8), 0.9 * np.asarray(opacity, dtype=np.float32))


def weight_picture(grey: Image, weight: Field, tint: tuple[int, int, int] = WEIGHT_COLOUR) -> Image:
    """Draws weights in [0, 1] as a tint: full is used in the fit, none is not.

    Args:
        grey: (H, W) uint8.
        weight: (h, w), NaN counts as 0.
        tint: RGB of weight 1.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    opacity = _resize(np.nan_to_num(weight, nan=0.0, posinf=0.0, neginf=0.0), grey)
    colours = np.broadcast_to(np.array(tint, dtype=np.uint8), (*grey.shape, 3))
    return _blend(grey, colours, 0.65 * np.clip(opacity, 0, 1))


def _direction_colours(flow: Field) -> Image:
    """Returns saturated colours: right is red, then by the clock through yellow (down), cyan (left), violet (up)."""
    turns = np.arctan2(flow[..., 1], flow[..., 0]) / (2 * np.pi) % 1
    hsv = np.full((*flow.shape[:2], 3), 255, dtype=np.uint8)
    hsv[..., 0] = np.rint(turns * 179.5).astype(np.uint8) % 180
    hsv[..., 1] = 225
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), dtype=np.uint8)


def _blend(grey: Image, colours: Image, opacity: Field) -> Image:
    alpha = opacity[..., None]
    base = _DIM * grey[..., None].astype(np.float32)
    return np.rint(base * (1 - alpha) + colours * alpha).astype(np.uint8)


def _resize(field: Field, like: Image) -> Field:
    size = (like.shape[1], like.shape[0])
    return np.asarray(cv2.resize(np.ascontiguousarray(field), size, interpolation=cv2.INTER_LINEAR), dtype=np.float32)
