"""What tests share: the recordings beside the checkout, and small bags made on the spot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from flowodom.bags import BagWriter
from flowodom.geometry import PinholeCamera, se3
from flowodom.messages import MessageFactory

RECORDINGS = Path(__file__).parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session")
def recordings() -> Path:
    """Folder of the real recordings; skips where there is none."""
    if not RECORDINGS.is_dir():
        pytest.skip(f"no real recordings at {RECORDINGS}")
    return RECORDINGS


@pytest.fixture
def factory() -> MessageFactory:
    return MessageFactory()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def texture(height: int, width: int, seed: int = 7) -> NDArray[np.uint8]:
    """Returns an (H, W, 3) RGB picture that has detail at every scale and no symmetry."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), dtype=np.float32)
    for size in (4, 12, 36):
        cells = rng.uniform(0, 85, (size, size, 3)).astype(np.float32)
        image += cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(image, 0, 255).astype(np.uint8)


CAMERA = PinholeCamera(fx=80.0, fy=80.0, cx=79.5, cy=59.5, width=160, height=120)
"""Camera of the small synthetic recordings."""

START = 1_700_000_000_000_000_000
PERIOD = 33_333_333


def plane_messages(
    count: int = 5,
    *,
    camera: PinholeCamera = CAMERA,
    depth: bool = True,
    baseline: float = 0.0,
    step: tuple[float, float, float] = (0.01, 0.0, 0.0),
    distance: float = 2.0,
) -> Iterator[tuple[str, Any, int]]:
    """Yields (topic, message, time) of a camera that slides along a textured plane, with its exact truth.

    With a ``baseline`` there is a stereo pair, on ``/left`` and ``/right`` in the place of ``/camera``.

    Args:
        count: Frames.
        camera: Camera of the images.
        depth: Whether there is registered depth.
        baseline: Metres from the camera to the right one of a stereo pair; 0 for none.
        step: Motion of the camera from frame to frame, metres, optical frame; z must be zero.
        distance: Of the plane, metres.
    """
    make = MessageFactory()
    wall = texture(3 * camera.height, 3 * camera.width)
    frame, name = "camera_optical_frame", "left" if baseline else "camera"
    optical = se3.matrix(
        torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]], dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    )
    yield "/tf_static", make.tf_message([make.transform(START, "camera_link", frame, optical)]), START
    for i in range(count):
        time = START + i * PERIOD
        x, y, _ = (i * s for s in step)
        image = _seen(wall, camera, x / distance, y / distance)
        pose = np.eye(4)
        pose[:3, 3] = optical[:3, :3].numpy() @ np.array([x, y, 0.0])
        yield f"/{name}/image_raw", make.image(time, frame, image), time
        yield f"/{name}/camera_info", make.camera_info(time, frame, camera), time
        if baseline:
            right = _seen(wall, camera, (x + baseline) / distance, y / distance)
            yield "/right/image_raw", make.image(time, frame, right), time
            yield "/right/camera_info", make.camera_info(time, frame, camera, baseline=baseline), time
        if depth:
            plane = np.full((camera.height, camera.width), distance, dtype=np.float32)
            yield "/camera/depth_registered/image_raw", make.image(time, frame, plane), time
        yield "/ground_truth/odom", make.odometry(time, "world", "camera_link", pose), time


def _seen(wall: NDArray[np.uint8], camera: PinholeCamera, x: float, y: float) -> NDArray[np.uint8]:
    """Returns what a camera sees of a wall in front of it, moved by x and y times the wall's distance."""
    shift = np.array([[1, 0, camera.width + camera.fx * x], [0, 1, camera.height + camera.fy * y]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(wall, shift, (camera.width, camera.height), flags=flags), dtype=np.uint8)


@pytest.fixture
def make_bag(tmp_path: Path) -> Callable[..., Path]:
    """Returns a function that writes a small recording of ``plane_messages`` and returns its path.

    ``make_bag(name="bag", edit=None, **kwargs)``: ``edit(topic, message, time)`` may return another such triple, or
    None to leave the message out; the rest goes to ``plane_messages``.
    """

    def make(name: str = "bag", edit: Callable[..., Any] | None = None, **kwargs: Any) -> Path:
        path = tmp_path / name
        with BagWriter(path) as writer:
            for item in plane_messages(**kwargs):
                edited = item if edit is None else edit(*item)
                if edited is not None:
                    writer.write(*edited)
        return path

    return make
