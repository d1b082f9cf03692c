"""The ghosting study: how much of a moving scene's blur flow takes out of an accumulated cloud, cheat by cheat.

Points of a clip with moving spheres and boxes are accumulated frame after frame. Static accumulation leaves each where
it was seen; what moves leaves ghosts. Flow-aware accumulation lets each point go where its scene flow takes it. The
error is how far a point is from where the piece of surface it came from truly is by now. The first rung of the ladder
is given exact flow, depth and poses; each rung below loses one of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from flowodom.config import FlowConfig, OdometryConfig
from flowodom.depth import FramePair, InverseDepth
from flowodom.depth.filter import FilterDepth
from flowodom.depth.sources import find_field
from flowodom.errors import FlowodomError
from flowodom.flow import DenseFlow, FlowField, FlowMethod
from flowodom.flow.methods import make_flow
from flowodom.geometry import PinholeCamera, se3
from flowodom.odometry import Odometry
from flowodom.plots import growth_plot
from flowodom.scene_flow import lift
from flowodom.scene_flow.tracks import Tracks, apd3d
from flowodom.worlds import Step, hand_held, pinhole, room, sequence

_SURE = 1e-9
"""Variance of what is exact, pixels squared; and of exact inverse depth, relative."""

_KNOWN = 0.15
"""Greatest relative deviation of a depth that is accumulated."""

_EVERY, _POINTS = 3, 400
"""Every third frame adds so many points."""


@dataclass(frozen=True)
class Rung:
    """One step down from the truth.

    Attributes:
        name: What is true and what is found.
        flow: Name of the flow method; empty for the exact flow.
        depth: ``exact``, ``filter`` for depth from epipolar geometry, or ``field`` for the single-image field's.
        odometry: Whether the poses are the odometry's instead of the exact ones.
    """

    name: str
    flow: str = ""
    depth: str = "exact"
    odometry: bool = False


LADDER = (
    Rung("exact flow, depth and pose"),
    Rung("pyramidal Lucas-Kanade, exact depth and pose", flow="lucas_kanade"),
    Rung("DIS, exact depth and pose", flow="dis"),
    Rung("DIS refined, exact depth and pose", flow="refined"),
    Rung("RAFT, exact depth and pose", flow="raft"),
    Rung("RAFT, then DIS refined, exact depth and pose", flow="raft_refined"),
    Rung("DIS, exact depth, pose by the odometry", flow="dis", odometry=True),
    Rung("DIS, depth by the single-image field, exact pose", flow="dis", depth="field"),
    Rung("DIS, depth from epipolar geometry, exact pose", flow="dis", depth="filter"),
)
"""The rungs, from the top."""


@dataclass(frozen=True)
class Outcome:
    """What a rung came to, means over the clips.

    Attributes:
        name: The rung.
        frames: Frames after which errors were taken.
        static: Mean error of static accumulation after each, metres.
        aware: Mean error of flow-aware accumulation after each, metres.
        factor: The last static error over the last flow-aware one.
        factor_seen: The same, of points that are truly in sight at the end.
        static_movers: Error of static accumulation at the end, of points on moving things, metres.
        aware_movers: The same of flow-aware accumulation.
        aware_rest: Error of flow-aware accumulation at the end, of points on what stands still.
        movers: Share of accumulated points that lie on moving things.
        apd: APD3D of the flow-aware points at the end, 0 to 1 (``scene_flow.tracks.apd3d``).
        apd_movers: The same of points on moving things alone.
    """

    name: str
    frames: list[int]
    static: list[float]
    aware: list[float]
    factor: float
    factor_seen: float
    static_movers: float
    aware_movers: float
    aware_rest: float
    movers: float
    apd: float
    apd_movers: float


def clip(seed: int, frames: int, size: tuple[int, int] = (320, 240)) -> list[Step]:
    """Renders a room in which three things made of a box and a sphere move, seen from a hand-held camera."""
    world = room(seed, movers=3)
    path = hand_held(seed, position=(-1.0, 0.0, 1.35), speed=0.5, turn=6.0)
    return list(sequence(world, path, pinhole(*size, field_of_view=75.0), frames=frames, flow=True))


class _Truth:
    """Where pieces of surface truly are, frame by frame."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = steps
        self._body = torch.zeros(0, dtype=torch.int64)
        self._local = torch.zeros(0, 3, dtype=torch.float64)

    def add(self, frame: int, pixels: Tensor) -> None:
        """Takes in the surface at (N) flat pixel indices of a frame."""
        view = self._steps[frame].rendering
        body = view.object_id.flatten()[pixels]
        points = se3.act(view.pose, view.points.view(-1, 3)[pixels])
        self._local = torch.cat((self._local, se3.act(se3.inverse(view.bodies)[body], points)))
        self._body = torch.cat((self._body, body))

    def at(self, frame: int) -> Tensor:
        """Returns the (N, 3) places in the world at a frame."""
        return se3.act(self._steps[frame].rendering.bodies[self._body], self._local)

    def visible(self, frame: int) -> Tensor:
        """Returns whether each can truly be seen at a frame."""
        view = self._steps[frame].rendering
        points = se3.act(se3.inverse(view.pose), self.at(frame))
        inside = view.camera.visible(points, min_depth=0.01)
        u, v = view.camera.project(points, min_depth=0.01).round().long().unbind(-1)
        v, u = v.clamp(0, view.camera.height - 1), u.clamp(0, view.camera.width - 1)
        return inside & (points[:, 2] < 1.02 * view.depth[v, u])

    @property
    def moving(self) -> Tensor:
        """Whether each lies on something that moves."""
        return self._body > 0


class _Sight:
    """What a rung knows of each frame of a clip: pose, flow, depth."""

    def __init__(self, rung: Rung, steps: Sequence[Step]) -> None:
        self._rung, self._steps = rung, steps
        self._method: FlowMethod | None = make_flow(FlowConfig(method=rung.flow)) if rung.flow else None
        self._filter = FilterDepth()
        self._single_image = find_field(OdometryConfig().depth) if rung.depth == "field" else None
        if rung.depth == "field" and self._single_image is None:
            raise FlowodomError("there are no weights of a single-image field: this rung cannot be climbed")
        self._field: InverseDepth | None = None
        self._odometry = Odometry() if rung.odometry else None
        self._pose = steps[0].pose
        if self._odometry is not None:
            self._odometry.reset(self._pose)

    @property
    def camera(self) -> PinholeCamera:
        """The camera of the clip."""
        return self._steps[0].frame.camera

    def look(self, frame: int) -> tuple[FlowField | None, InverseDepth | None, Tensor]:
        """Returns the flow from the frame before, None at the first; the depth; and the pose. In order of frames."""
        step = self._steps[frame]
        pose = step.pose
        if self._odometry is not None:
            estimate = self._odometry.step(step.frame)
            if estimate.pose is None:
                raise FlowodomError(f"the odometry lost the clip at frame {frame}: {estimate.reason}")
            pose = estimate.pose
        flow = None if frame == 0 else self._flow(frame)
        if self._rung.depth == "exact":
            rho = (1 / step.rendering.depth).float()
            self._field = InverseDepth(self.camera, rho, _SURE * rho * rho)
        elif self._single_image is not None:
            seen = self._single_image.observe(step.frame)
            self._field = None if seen is None else seen.on(self.camera)
        elif flow is not None:
            motion = se3.inverse(pose) @ self._pose
            covariance = torch.eye(6, dtype=torch.float64) * 1e-12
            pair = FramePair(step.frame, flow, self.camera, motion, covariance)
            self._field = self._filter.fuse(None, self._field, pair)
        self._pose = pose
        return flow, self._field, pose

    def _flow(self, frame: int) -> FlowField:
        step, before = self._steps[frame], self._steps[frame - 1]
        if self._method is not None:
            return self._method(torch.from_numpy(before.frame.grey), torch.from_numpy(step.frame.grey))
        assert step.flow is not None
        exact = step.flow

        def variance(hidden: Tensor) -> Tensor:
            return torch.where(hidden, torch.inf, _SURE)

        return DenseFlow(
            exact.forward.float(),
            exact.backward.float(),
            variance(exact.forward_hidden),
            variance(exact.backward_hidden),
        )


def accumulate(rung: Rung, steps: Sequence[Step]) -> dict[str, list[float]]:
    """Accumulates one clip both ways.

    Returns:
        By name, figures after each third frame: ``static`` and ``aware`` mean errors of all points, of those in sight
        (``static_seen``, ``aware_seen``), of those on movers (``static_movers``, ``aware_movers``), of the rest
        (``aware_rest``), metres; ``movers``, their share; ``apd`` and ``apd_movers``, scores; ``frame``.
    """
    sight, truth = _Sight(rung, steps), _Truth(steps)
    tracks = Tracks()
    left = torch.zeros(0, 3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    found: dict[str, list[float]] = {}
    previous: InverseDepth | None = None
    pose_before = steps[0].pose
    for frame, step in enumerate(steps):
        flow, field, pose = sight.look(frame)
        if flow is not None and field is not None:
            interval = (step.frame.stamp - steps[frame - 1].frame.stamp) * 1e-9
            before = previous or InverseDepth.unknown(sight.camera)
            properties = lift(sight.camera, flow, before, field, se3.inverse(pose) @ pose_before)
            tracks.advance(properties, pose_before, pose, interval)
        previous, pose_before = field, pose
        if frame % _EVERY or field is None:
            continue
        seen = field.on(sight.camera)
        known = (seen.variance < (_KNOWN * seen.mean) ** 2).flatten().nonzero()[:, 0]
        chosen = known[torch.randperm(len(known), generator=generator)[:_POINTS]]
        pixels = sight.camera.pixels(dtype=torch.float64).view(-1, 2)[chosen]
        points = se3.act(pose, sight.camera.unproject(pixels, 1 / seen.mean.flatten()[chosen].double()))
        truth.add(frame, chosen)
        tracks.add(points)
        left = torch.cat((left, points))
        real, moving, visible = truth.at(frame), truth.moving, truth.visible(frame)
        static, aware = (left - real).norm(dim=-1), (tracks.points - real).norm(dim=-1)
        figures = {
            "frame": float(frame),
            "static": static.mean(),
            "aware": aware.mean(),
            "static_seen": static[visible].mean(),
            "aware_seen": aware[visible].mean(),
            "static_movers": static[moving].mean(),
            "aware_movers": aware[moving].mean(),
            "aware_rest": aware[~moving].mean(),
            "movers": moving.float().mean(),
            "apd": apd3d(tracks.points, real),
            "apd_movers": apd3d(tracks.points[moving], real[moving]),
        }
        for name, value in figures.items():
            found.setdefault(name, []).append(float(value))
    return found


def study(
    *, seeds: Sequence[int] = (1, 2, 3), frames: int = 61, ladder: Sequence[Rung] = LADDER, progress: bool = False
) -> list[Outcome]:
    """Climbs down the ladder on several clips.

    Args:
        seeds: One clip each.
        frames: Frames of a clip, at 30 a second.
        ladder: The rungs.
        progress: Whether to show a progress bar.
    """
    runs: list[list[dict[str, list[float]]]] = [[] for _ in ladder]
    with tqdm(total=len(seeds) * len(ladder), unit="run", disable=not progress) as bar:
        for seed in seeds:
            steps = clip(seed, frames)
            for k, rung in enumerate(ladder):
                runs[k].append(accumulate(rung, steps))
                bar.update()
    return [_outcome(rung.name, run) for rung, run in zip(ladder, runs, strict=True)]


def _outcome(name: str, runs: list[dict[str, list[float]]]) -> Outcome:
    shortest = min(len(run["frame"]) for run in runs)

    def mean(key: str) -> list[float]:
        return [float(x) for x in np.nanmean([run[key][-shortest:] for run in runs], axis=0)]

    static, aware = mean("static"), mean("aware")
    return Outcome(
        name,
        [int(frame) for frame in mean("frame")],
        static,
        aware,
        static[-1] / max(aware[-1], 1e-12),
        mean("static_seen")[-1] / max(mean("aware_seen")[-1], 1e-12),
        mean("static_movers")[-1],
        mean("aware_movers")[-1],
        mean("aware_rest")[-1],
        mean("movers")[-1],
        mean("apd")[-1],
        mean("apd_movers")[-1],
    )


_COLUMNS: tuple[tuple[str, Callable[[Outcome], str]], ...] = (
    ("given", lambda o: o.name),
    ("factor", lambda o: f"{o.factor:.1f}"),
    ("factor in sight", lambda o: f"{o.factor_seen:.1f}"),
    ("static, mm", lambda o: f"{1e3 * o.static[-1]:.1f}"),
    ("flow-aware, mm", lambda o: f"{1e3 * o.aware[-1]:.1f}"),
    ("movers static, mm", lambda o: f"{1e3 * o.static_movers:.0f}"),
    ("movers flow-aware, mm", lambda o: f"{1e3 * o.aware_movers:.0f}"),
    ("rest flow-aware, mm", lambda o: f"{1e3 * o.aware_rest:.1f}"),
    ("APD3D all", lambda o: f"{o.apd:.3f}"),
    ("APD3D movers", lambda o: f"{o.apd_movers:.3f}"),
    ("points on movers", lambda o: f"{100 * o.movers:.1f} %"),
)


def table(outcomes: Sequence[Outcome]) -> str:
    """Returns the outcomes as a Markdown table."""
    lines = [" | ".join(name for name, _ in _COLUMNS), " | ".join("---" for _ in _COLUMNS)]
    lines += [" | ".join(text(outcome) for _, text in _COLUMNS) for outcome in outcomes]
    return "\n".join(f"| {line} |" for line in lines)


def write(outcomes: Sequence[Outcome], out: Path) -> list[Path]:
    """Writes table.md, ghosting.json and ghosting.svg into a folder and returns their paths.

    Raises:
        FlowodomError: They cannot be written.
    """
    files = [out / "table.md", out / "ghosting.json", out / "ghosting.svg"]
    curves = [(outcome.name, np.array(outcome.frames), np.array(outcome.aware)) for outcome in outcomes]
    curves.insert(0, ("static, exact depth", np.array(outcomes[0].frames), np.array(outcomes[0].static)))
    try:
        out.mkdir(parents=True, exist_ok=True)
        files[0].write_text(table(outcomes) + "\n", encoding="utf-8")
        files[1].write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2) + "\n", encoding="utf-8")
        growth_plot(curves, files[2], x="frames", y="mean error, mm", scale=1e3)
    except OSError as error:
        raise FlowodomError(f"cannot write to {out}: {error.strerror or error}") from error
    return files
