"""What a session costs beside the odometry: a VGA RGB-D frame from bytes to bytes, with an odometry that does nothing.

Claim: under 1 ms a frame (median), clouds excluded because they are paid only when somebody listens. Prints the table,
writes ``out/benchmarks/session.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowodom.config import SessionConfig
from flowodom.frame import Frame
from flowodom.geometry import PinholeCamera, se3
from flowodom.messages import MessageFactory
from flowodom.odometry import Estimate, Odometry, Status
from flowodom.session import Session

CAMERA = PinholeCamera(fx=525.0, fy=525.0, cx=319.5, cy=239.5, width=640, height=480)
STEP = 33_333_333


class NoOdometry(Odometry):
    """Answers at once."""

    def __init__(self) -> None:
        self._covariance = torch.eye(6, dtype=torch.float64) * 1e-4
        self._motion = se3.exp(torch.tensor([0.01, 0, 0, 0, 0, 0.01], dtype=torch.float64))

    def reset(self, pose: Tensor | None = None) -> None:
        """Does nothing."""

    def step(self, frame: Frame, *, fields: bool = False, guess: Tensor | None = None) -> Estimate:
        """Returns the same motion again and again."""
        return Estimate(
            frame.stamp,
            Status.TRACKING,
            0,
            pose=se3.identity(),
            covariance=self._covariance,
            motion=self._motion,
            motion_covariance=self._covariance,
            interval=STEP * 1e-9,
        )


def run(frames: int) -> dict[str, float]:
    """Returns the median milliseconds of reading, handling, writing, and of all of a frame."""
    make = MessageFactory()
    rng = np.random.default_rng(7)
    image = rng.integers(0, 255, (480, 640, 3), dtype=np.uint8)
    depth = rng.integers(500, 5000, (480, 640)).astype(np.uint16)
    session = Session(SessionConfig(), odometry=NoOdometry(), wanted=lambda topic: topic in ("odom", "/tf"))
    optical = se3.exp(torch.tensor([0.1, 0.0, 0.2, 0.5, 0.5, 0.5], dtype=torch.float64))
    session.handle("/tf_static", make.tf_message([make.transform(0, "base_link", "camera", optical)]))
    stages: dict[str, list[float]] = {"read": [], "session": [], "write": [], "all": []}
    for i in range(frames):
        stamp = i * STEP
        sent = [
            (name, message.__msgtype__, bytes(make.serialize(message)))
            for name, message in (
                ("camera_info", make.camera_info(stamp, "camera", CAMERA)),
                ("image", make.image(stamp, "camera", image)),
                ("depth", make.image(stamp, "camera", depth)),
            )
        ]
        begin = time.perf_counter()
        received: list[tuple[str, Any]] = [(name, make.deserialize(data, kind)) for name, kind, data in sent]
        read = time.perf_counter()
        out = [publication for name, message in received for publication in session.handle(name, message, stamp)]
        handled = time.perf_counter()
        for _, message in out:
            bytes(make.serialize(message))
        end = time.perf_counter()
        for stage, seconds in zip(stages, (read - begin, handled - read, end - handled, end - begin), strict=True):
            stages[stage].append(1e3 * seconds)
    return {stage: median(values[frames // 10 :]) for stage, values in stages.items()}


def main() -> None:
    """Prints and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/session.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = run(options.frames)
    for stage, milliseconds in figures.items():
        print(f"{stage:<8} {milliseconds:7.3f} ms")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"milliseconds": figures, "frames": options.frames}, indent=2) + "\n")


if __name__ == "__main__":
    main()
