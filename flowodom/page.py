"""The report's page: one HTML file with its plots, pictures, style and definitions inside; no network, no script."""

from __future__ import annotations

import base64
import dataclasses
import html
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from flowodom import __version__, drawing, plots
from flowodom.config import parameters
from flowodom.evaluation import FIGURES, Alignment, Evaluation, Figure, align, number_text, pose_errors
from flowodom.evaluation import relative_errors as errors_between
from flowodom.scene_flow.forecast import Judgement
from flowodom.trajectory import Array, Indices, Trajectory, associate

if TYPE_CHECKING:
    from flowodom.report import Row, Snapshot

_MOST_EVENTS = 12
"""Stretches without tracking that are listed one by one."""

_SCALES = {
    "sensor": "metric scale from the depth camera",
    "stereo": "metric scale from the stereo pair",
    "camera_height": "metric scale from the camera's height above the ground",
    "learned": "metric scale from the single-image field",
    "first_baseline": "scale not metric (the first baseline is the unit)",
    "unknown": "scale not known",
}

RUN_FIGURES = {
    "frames": FIGURES["frames"],
    "tracked": FIGURES["tracked"],
    "segments": FIGURES["segment_count"],
    "keyframes": Figure(
        "keyframes", "", "This run", "Frames kept as keyframes, against which later frames are solved."
    ),
    "duration": Figure("recording", "s", "This run", "Time from the first frame's stamp to the last one's."),
    "camera_rate": Figure("camera rate", "Hz", "This run", "One over the median interval between frames' stamps."),
    "travelled": Figure("distance travelled", "m", "This run", "Length of the estimated path, all segments together."),
    "frame_time": Figure("time a frame", "ms", "This run", "Median over frames of the time of all stages together."),
    "frame_time_p95": Figure("slow frames", "ms", "This run", "Time a frame that 95 frames of 100 do not exceed."),
    "frame_rate": Figure("speed", "frames/s", "This run", "Frames divided by the time of all their stages."),
}
"""Figures of a run that need no truth: what each is."""


FORECAST = (
    "How far forecasts with constant twist miss what was estimated then, in metres and degrees: medians over all "
    "frames, by seconds ahead. Points on objects are the corners of their boxes, each sent on straight with its own "
    "velocity."
)
"""What the figures of forecasts are."""


@dataclass(frozen=True)
class Comparison:
    """An estimate beside the truth, as the plots show them.

    Attributes:
        estimate: N poses, aligned to the truth as a whole.
        truth: N poses at the same stamps.
        path: The truth at its own rate, as long as the run lasts.
        alignment: What brought the estimate there.
        drift: (N,) metres and (N,) degrees of error since the first pose, with no alignment but that of scale.
        axes: (N, 6) errors since each segment's first pose on the axes of the body, metres and degrees.
        sigmas: (N, 6) their published standard deviations; None without.
    """

    estimate: Trajectory
    truth: Trajectory
    path: Trajectory
    alignment: Alignment
    drift: tuple[Array, Array]
    axes: Array
    sigmas: Array | None

    @staticmethod
    def of(run: Run, truth: Trajectory, tolerance: float) -> Comparison:
        """Compares a run with the truth.

        Raises:
            TrajectoryError: No pose has a true pose near its stamp.
        """
        matched, true = associate(run.trajectory, truth, tolerance)
        alignment = align(matched, true, with_scale=not run.metric)
        if alignment is None:  # Too short or too still for a best fit: let the first poses coincide.
            first = true.poses[0] @ np.linalg.inv(matched.poses[0])
            alignment = Alignment(first[:3, :3], first[:3, 3], 1.0)
        aligned = alignment.apply(matched)
        order = np.arange(len(aligned))
        parts = [(part, true.select(np.isin(true.stamps, part.stamps))) for part in aligned.split()]
        unit = np.repeat([1.0, 180 / np.pi], 3)
        sigmas = None
        if aligned.covariances is not None:
            sigmas = np.sqrt(np.clip(np.diagonal(aligned.covariances, axis1=1, axis2=2), 0, None)) * unit
        ends = (run.rows[0].stamp, run.rows[-1].stamp)
        shown = truth.select((truth.stamps >= min(ends)) & (truth.stamps <= max(ends)))
        return Comparison(
            estimate=aligned,
            truth=true,
            path=shown if len(shown) > 1 else true,
            alignment=alignment,
            drift=errors_between(aligned, true, np.zeros_like(order), order),
            axes=np.concatenate([pose_errors(part, other) for part, other in parts]) * unit,
            sigmas=sigmas if sigmas is not None and np.isfinite(sigmas).all() else None,
        )


@dataclass(frozen=True)
class Run:
    """Everything that a page shows.

    Attributes:
        rows: Every frame.
        snapshots: The frames that are drawn.
        trajectory: The poses of ``rows``.
        scale: What the unit of length is, as ``Estimate.scale`` has it.
        metric: Whether lengths are metres, well enough not to be scaled before a comparison.
        optical: Whether poses are of a camera's optical frame (y down); otherwise of a body with z up.
        scale_deviation: Relative deviation of the unit from the metre, at the end; None where it is not known.
        evaluation: The figures of error, None without a truth.
        comparison: The curves of error, None without a truth.
        note: Why there is no comparison although there is a truth.
        forecasts: How far forecasts missed what came, of the ``base`` and of ``objects``.
        learned: What images have told of the cameras, in words, by name.
    """

    rows: Sequence[Row]
    snapshots: Sequence[Snapshot]
    trajectory: Trajectory
    scale: str
    metric: bool
    optical: bool
    scale_deviation: float | None = None
    evaluation: Evaluation | None = None
    comparison: Comparison | None = None
    note: str = ""
    forecasts: Mapping[str, Judgement] = dataclasses.field(default_factory=dict)
    learned: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def seconds(self) -> Array:
        """(N,) seconds of each row since the first."""
        stamps = np.array([row.stamp for row in self.rows], dtype=np.int64)
        return np.asarray((stamps - stamps[:1]) * 1e-9, dtype=np.float64)

    @property
    def period(self) -> float | None:
        """Median seconds between frames, None for fewer than two."""
        gaps = np.diff(self.seconds)
        gaps = gaps[gaps > 0]
        return float(np.median(gaps)) if len(gaps) else None

    @property
    def stages(self) -> dict[str, Array]:
        """Milliseconds of each stage in the frames that have it, in order of appearance."""
        found: dict[str, list[float]] = {}
        for row in self.rows:
            for stage, seconds in row.timing.items():
                if stage != "total":
                    found.setdefault(stage, []).append(1000 * seconds)
        return {stage: np.array(times) for stage, times in found.items()}

    @property
    def frame_times(self) -> Array:
        """(N,) milliseconds a frame: its ``total`` where there is one, else its stages added up."""
        return np.array([1000 * row.timing.get("total", sum(row.timing.values())) for row in self.rows])

    def figures(self) -> dict[str, float | None]:
        """Returns the value of each of ``RUN_FIGURES``."""
        times = self.frame_times
        timed = times.any()
        tracked = sum(row.pose is not None for row in self.rows)
        return {
            "frames": len(self.rows),
            "tracked": 100 * tracked / len(self.rows) if self.rows else None,
            "segments": len(self.trajectory.split()) if len(self.trajectory) else 0,
            "keyframes": sum(row.keyframe for row in self.rows),
            "duration": float(np.ptp(self.seconds)) if self.rows else None,
            "camera_rate": 1 / self.period if self.period else None,
            "travelled": sum(float(part.distances[-1]) for part in self.trajectory.split() if len(part))
            if self.metric
            else None,
            "frame_time": float(np.median(times)) if timed else None,
            "frame_time_p95": float(np.percentile(times, 95)) if timed else None,
            "frame_rate": 1000 * len(times) / float(times.sum()) if timed else None,
        }

    def spans(self) -> list[tuple[int, int]]:
        """Returns the stretches of equal status as ranges of rows."""
        edges = [i for i in range(1, len(self.rows)) if self.rows[i].status != self.rows[i - 1].status]
        edges = [0, *edges, len(self.rows)]
        return [(first, last) for first, last in itertools.pairwise(edges) if last > first]


def render(run: Run, title: str, configuration: Any = None) -> str:
    """Returns the page.

    Args:
        run: What to show.
        title: Its heading.
        configuration: A configuration dataclass or a mapping, None to leave it out.
    """
    sections = [
        _header(run, title),
        _headline(run),
        _trajectory(run),
        _error(run),
        _uncertainty(run),
        _speed(run),
        _tracking(run),
        _pictures(run),
        _forecast(run),
        _figures(run),
        _configuration(configuration),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{_text(title)} · flowodom</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + f"\n<footer>flowodom {_text(__version__)}. This page needs no network.</footer>\n</main>\n</body>\n</html>\n"
    )


def _header(run: Run, title: str) -> str:
    figures = run.figures()
    facts = [f"{len(run.rows)} frames"]
    if figures["duration"]:
        facts.append(f"{number_text(figures['duration'])} s")
    if figures["camera_rate"]:
        facts.append(f"{figures['camera_rate']:.3g} Hz")
    deviation = f" (±{100 * run.scale_deviation:.2g} %)" if run.scale_deviation else ""
    facts.append(_SCALES.get(run.scale, run.scale) + deviation)
    facts += [f"{name}: {what}" for name, what in run.learned.items()]
    return (
        f'<header><p class="eyebrow">flowodom report</p><h1>{_text(title)}</h1>'
        f"<p class='facts'>{' · '.join(map(_text, facts))}</p></header>"
    )


def _headline(run: Run) -> str:
    values = run.figures()
    tiles = []
    if run.evaluation is not None:
        kind = "ate_sim3_rmse" if run.evaluation.scale_corrected else "ate_se3_rmse"
        for name in (kind, "drift", "rpe_second_rotation_median"):
            tiles.append((FIGURES[name], getattr(run.evaluation, name)))
    else:
        tiles.append((RUN_FIGURES["travelled"], values["travelled"]))
        tiles.append((RUN_FIGURES["keyframes"], values["keyframes"]))
    tiles.append((RUN_FIGURES["tracked"], values["tracked"]))
    tiles.append((RUN_FIGURES["frame_rate"], values["frame_rate"]))
    cells = [
        f'<div class="tile"><h3>{_text(_capital(figure.label))}</h3>'
        f'<p class="value">{figure.text(value)}<span> {_text(figure.unit)}</span></p>'
        f"<p>{_text(figure.definition)}</p></div>"
        for figure, value in tiles
        if value is not None
    ]
    note = ""
    if run.evaluation is None:
        reason = run.note or "There is no ground truth, so errors cannot be told."
        note = f'<p class="note">{_text(reason)}</p>'
    elif run.evaluation.scale_corrected:
        note = (
            '<p class="note">The scale of the estimate is not that of the world. Relative errors and drift are taken '
            "after it was scaled to the truth.</p>"
        )
    return f'<section class="tiles">{"".join(cells)}</section>{note}'


def _trajectory(run: Run) -> str:
    comparison = run.comparison
    shown = comparison.estimate if comparison else run.trajectory
    if not len(shown):
        return _section("Trajectory", "No frame was given a pose.", "")
    truth = comparison.path.positions if comparison else None
    parts = [part.positions for part in shown.split()]
    everything = np.concatenate(parts if truth is None else [*parts, truth])
    up = _upwards(shown, run.optical)
    above, side, labels = _views(up, everything, "m" if run.metric or comparison else "")
    pieces = [
        _plot(
            f"From {name}",
            plots.path_plot(
                [part @ view for part in parts],
                None if truth is None else truth @ view,
                axes,
                description=f"Path of the camera seen from {name}",
            ),
        )
        for name, view, axes in (("above", above, labels[0]), ("the side", side, labels[1]))
    ]
    if comparison is None:
        caption = "The estimated path, in the frame of its first pose."
    elif run.metric:
        caption = "The estimate after the rigid alignment that fits it best to the truth."
    else:
        scale = FIGURES["scale"].text(comparison.alignment.scale)
        caption = f"The estimate after the similarity that fits it best to the truth; its scale is {scale}."
    return _section("Trajectory", caption, _row(pieces))


def _upwards(trajectory: Trajectory, optical: bool) -> str:
    """Returns the axis of the world that points up as the body was held: z (ROS) or -y (a camera's first frame)."""
    up = (-trajectory.rotations[:, :, 1] if optical else trajectory.rotations[:, :, 2]).mean(axis=0)
    return "-y" if -up[1] > abs(up[2]) else "z"


def _views(up: str, positions: Array, unit: str) -> tuple[Array, Array, tuple[tuple[str, str], tuple[str, str]]]:
    """Returns the (3, 2) projections from above and from the side, and the names of their axes."""
    right, ahead = (0, 2) if up == "-y" else (0, 1)
    height = np.array([0.0, -1.0, 0.0]) if up == "-y" else np.array([0.0, 0.0, 1.0])
    along = max((right, ahead), key=lambda axis: float(np.ptp(positions[:, axis])))
    axes = np.eye(3)
    above, side = np.stack((axes[right], axes[ahead]), axis=1), np.stack((axes[along], height), axis=1)
    suffix = f" [{unit}]" if unit else ""
    x, y, z = (f"{name}{suffix}" for name in ("xyz"[right], "xyz"[ahead], "z" if up == "z" else "up"))
    return above, side, ((x, y), (x if along == right else y, z))


def _error(run: Run) -> str:
    comparison = run.comparison
    if comparison is None:
        return ""
    estimate, truth = comparison.estimate, comparison.truth
    breaks = _breaks(estimate)
    off = np.linalg.norm(estimate.positions - truth.positions, axis=1)
    start = (estimate.stamps[0] - run.rows[0].stamp) * 1e-9
    pieces = [
        _plot(
            "Over time",
            plots.error_plot(
                estimate.seconds + start,
                off,
                comparison.drift[1],
                label="time [s]",
                breaks=breaks,
                description="Translation and rotation error over time",
            ),
            "Distance from the truth after the alignment that ATE takes, which goes by positions alone; angle since "
            "the first pose, with no alignment, as the end rotation error has it.",
        ),
        _plot(
            "Over distance",
            plots.error_plot(
                truth.distances,
                *comparison.drift,
                label="distance travelled [m]",
                breaks=breaks,
                description="Translation and rotation error since the start over distance travelled",
                reference=0.01,
            ),
            "How drift builds up: the error of the motion since the first pose, with no alignment"
            + (" but that of scale." if not run.metric else "."),
        ),
    ]
    return _section("Error", "", _row(pieces))


def _uncertainty(run: Run) -> str:
    comparison = run.comparison
    if comparison is None or comparison.sigmas is None:
        return ""
    start = (comparison.estimate.stamps[0] - run.rows[0].stamp) * 1e-9
    picture = plots.bounds_plot(
        comparison.estimate.seconds + start,
        comparison.axes,
        comparison.sigmas,
        breaks=_breaks(comparison.estimate),
        description="Error on six axes within three sigma of the published covariance",
    )
    caption = (
        "Error since the segment's first pose on each axis of the body (lines), and three sigma of the published "
        "covariance (bands)."
    )
    evaluation = run.evaluation
    if evaluation is not None and evaluation.sigma_share is not None:
        caption += f" {evaluation.text('sigma_share')} % of the poses lie within three sigma on all axes."
    return _section("Published uncertainty", caption, _plot("", picture, wide=True))


def _speed(run: Run) -> str:
    times = run.frame_times
    if not times.any():
        return ""
    period = run.period
    figures = run.figures()
    caption = f"{number_text(figures['frame_rate'])} frames a second"
    if period and figures["frame_rate"]:
        caption += f", {number_text(figures['frame_rate'] * period)} times the camera's rate"
    picture = plots.frame_time_plot(
        run.seconds, times, 1000 * period if period else None, description="Time that each frame took"
    )
    total = float(times.sum())
    rows = [
        (stage, np.median(values), values.mean(), np.percentile(values, 95), 100 * float(values.sum()) / total)
        for stage, values in run.stages.items()
    ]
    rows.append(("all stages", np.median(times), times.mean(), np.percentile(times, 95), 100.0))
    body = "".join(
        f"<tr{' class=total' if stage == 'all stages' else ''}><th scope=row>{_text(stage.replace('_', ' '))}</th>"
        f"<td>{median:.2f}</td><td>{mean:.2f}</td><td>{p95:.2f}</td>"
        f'<td class="bar"><i style="width:{min(share, 100):.1f}%"></i><span>{share:.0f} %</span></td></tr>'
        for stage, median, mean, p95, share in rows
    )
    table = (
        "<div class='scroll'><table class='numbers'><thead><tr><th>Stage</th><th>median</th><th>mean</th><th>95 %</th>"
        f"<th>share of the time</th></tr></thead><tbody>{body}</tbody></table></div>"
        "<p class='caption'>Milliseconds a frame, over the frames that ran the stage; 95 %: not exceeded by 95 frames "
        "of 100.</p>"
    )
    return _section(
        "Speed", f"{caption}.", _row([_plot("Each frame", picture), f"<div><h3>Each stage</h3>{table}</div>"])
    )


def _tracking(run: Run) -> str:
    if len(run.rows) < 2:
        return ""
    seconds = run.seconds
    spans = []
    events = []
    for first, last in run.spans():
        row = run.rows[first]
        end = float(seconds[min(last, len(seconds) - 1)])
        spans.append(plots.Span(float(seconds[first]), end, row.status.lower()))
        if row.status != "TRACKING":
            events.append((f"{seconds[first]:.2f}", str(last - first), row.status.lower(), row.reason))
    spans = [span for span in spans if span.role in plots.ROLES]
    picture = plots.state_plot(
        seconds,
        np.array([row.matches for row in run.rows], dtype=np.float64),
        np.array([row.inliers for row in run.rows], dtype=np.float64),
        spans,
        description="State of the tracker and points used over time",
    )
    tracking = sum(row.status == "TRACKING" for row in run.rows)
    caption = f"{tracking} of {len(run.rows)} frames were tracked, {run.figures()['keyframes']} became keyframes."
    table = ""
    if events:
        body = "".join(
            f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in event)}</tr>" for event in events[:_MOST_EVENTS]
        )
        more = f"<p class='caption'>{len(events) - _MOST_EVENTS} more.</p>" if len(events) > _MOST_EVENTS else ""
        table = (
            "<div class='scroll'><table class='events'><thead><tr><th>from [s]</th><th>frames</th><th>state</th>"
            f"<th>reason at first</th></tr></thead><tbody>{body}</tbody></table></div>{more}"
        )
    return _section("Tracking", caption, _plot("", picture, wide=True) + table)


def _pictures(run: Run) -> str:
    if not run.snapshots:
        return ""
    wheel, opacity = drawing.flow_wheel(96)
    icon = _image(np.dstack((wheel, opacity)), "Colour wheel: the direction of flow", ".png", "wheel")
    blocks = []
    for shot in run.snapshots:
        row = run.rows[shot.index]
        seconds = (row.stamp - run.rows[0].stamp) * 1e-9
        words = [f"frame {shot.index}", f"{seconds:.2f} s", row.status.lower(), f"{row.inliers} points kept"]
        cells = "".join(
            f"<figure>{_image(picture, name, '.jpg')}"
            f"<figcaption><b>{_text(name)}</b> {_text(text)}</figcaption></figure>"
            for name, text, picture in _panels(shot, " m" if run.metric else "")
        )
        # Wide images get wide panels, fewer in a row.
        least = round(300 * (0.75 * shot.grey.shape[1] / shot.grey.shape[0]) ** 0.5)
        head = f'<h3 class="shot">{" · ".join(map(_text, words))}</h3>'
        blocks.append(f'{head}<div class="panels" style="--least: {least}px">{cells}</div>')
    caption = (
        "Flow: hue is the direction (wheel), opacity the length. Depth: bright is near, grey is unknown. Weight: "
        "tinted where a pixel may serve the pose fit (static and observable). Residual flow: what the camera's own "
        "motion does not explain; things that move by themselves stand out. Moving: how likely a pixel does so."
    )
    return _section("Pictures", caption, "".join(blocks), aside=icon)


def _panels(shot: Snapshot, unit: str) -> list[tuple[str, str, drawing.Image]]:
    """Returns name, text and picture of each panel of a snapshot."""
    longest = _longest(shot.flow, 0.5)
    known = shot.depth[np.isfinite(shot.depth) & (shot.depth > 0)]
    near, far = (float(v) for v in np.percentile(known, (2, 98))) if known.size else (1.0, 1.0)
    panels = [
        ("Image", "", np.repeat(shot.grey[..., None], 3, axis=2)),
        ("Flow", f"up to {longest:.1f} px", drawing.flow_picture(shot.grey, shot.flow, longest)),
        (
            "Depth",
            f"{number_text(near)} to {number_text(far)}{unit}" if known.size else "unknown",
            drawing.inverse_depth_picture(shot.grey, shot.depth, near, far),
        ),
        (
            "Weight",
            f"mean {float(np.nan_to_num(shot.weight).mean()):.2f}",
            drawing.weight_picture(shot.grey, shot.weight),
        ),
    ]
    longest = _longest(shot.residual, 2.0)
    picture = drawing.flow_picture(shot.grey, shot.residual, longest)
    share = f"{float((shot.moving > 0.5).mean()):.1%} of the image"
    moving = drawing.weight_picture(shot.grey, shot.moving, drawing.MOVING_COLOUR)
    return [*panels, ("Residual flow", f"up to {longest:.1f} px", picture), ("Moving", share, moving)]


def _longest(flow: drawing.Field, least: float) -> float:
    """Returns the length to draw at full opacity: nearly the longest, so that noise is not blown up."""
    length = np.linalg.norm(flow, axis=-1)
    length = length[np.isfinite(length)]
    return max(least, float(np.percentile(length, 99))) if length.size else least


def _forecast(run: Run) -> str:
    """How far forecasts missed what was estimated then."""
    unit = "m" if run.metric else "units"
    tables = []
    for name, found in run.forecasts.items():
        rows = "".join(
            f"<tr><th scope=row>{seconds:g} s</th><td>{count}</td>"
            + "".join(f"<td>{number_text(float(x))} {_text(unit)}</td>" for x in (resting, miss))
            + f"<td>{turn:.2f}°</td>"
            + ("" if np.isnan(points) else f"<td>{number_text(float(points))} {_text(unit)}</td>")
            + "</tr>"
            for seconds, count, resting, miss, turn, points in zip(
                found.seconds, found.count, found.resting, found.translation, found.rotation, found.points, strict=True
            )
            if count
        )
        if not rows:
            continue
        columns = ["ahead", "forecasts", "had it stayed", "place", "direction"]
        columns += [] if np.isnan(found.points).all() else ["points on them"]
        head = "".join(f"<th scope=col>{column}</th>" for column in columns)
        title = {"base": "The camera or its base", "objects": "Moving objects"}[name]
        tables.append(
            f"<div><h3>{title}</h3><div class='scroll'><table class='numbers'><thead><tr>{head}</tr></thead>"
            f"<tbody>{rows}</tbody></table></div></div>"
        )
    return _section("Forecast", FORECAST, _row(tables)) if tables else ""


def _figures(run: Run) -> str:
    groups: dict[str, list[tuple[Figure, float | None]]] = {"This run": []}
    for name, value in run.figures().items():
        groups["This run"].append((RUN_FIGURES[name], value))
    if run.evaluation is not None:
        for group, figures in run.evaluation.known().items():
            known = [(figure, getattr(run.evaluation, name)) for name, figure in figures.items()]
            listed = {figure.label for figure, _ in groups["This run"]}
            groups[group] = [(figure, value) for figure, value in known if figure.label not in listed]
    body = ""
    for group, entries in groups.items():
        rows = "".join(
            f"<tr><th scope=row>{_text(_capital(figure.label))}</th><td>{figure.text(value)} {_text(figure.unit)}</td>"
            f"<td>{_text(figure.definition)}</td></tr>"
            for figure, value in entries
            if value is not None
        )
        body += f"<tbody><tr class=group><th colspan=3 scope=rowgroup>{_text(group)}</th></tr>{rows}</tbody>"
    table = f"<div class='scroll'><table class='figures'>{body}</table></div>"
    return _section("Figures", "Every figure and how it is computed.", table + _segments(run.evaluation))


def _segments(evaluation: Evaluation | None) -> str:
    if evaluation is None or len(evaluation.segments) < 2:
        return ""
    names = ("poses", "duration", "path_length", "ate_se3_rmse", "ate_sim3_rmse", "scale")
    head = "".join(
        f"<th>{_text(FIGURES[name].label)}{_text(f' [{FIGURES[name].unit}]' if FIGURES[name].unit else '')}</th>"
        for name in names
    )
    body = "".join(
        f"<tr><th scope=row>{segment.segment}</th>"
        + "".join(f"<td>{FIGURES[name].text(getattr(segment, name))}</td>" for name in names)
        + "</tr>"
        for segment in evaluation.segments
    )
    return (
        "<h3>Each segment by itself</h3><div class='scroll'><table class='numbers'><thead><tr><th>segment</th>"
        f"{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _configuration(configuration: Any) -> str:
    if configuration is None:
        return ""
    if dataclasses.is_dataclass(configuration):
        entries: Iterable[tuple[str, Any, str, str]] = (
            (p.name, p.value, p.unit, p.description) for p in parameters(configuration)
        )
    else:
        entries = ((name, value, "", "") for name, value in dict(configuration).items())
    body = "".join(
        f"<tr><th scope=row><code>{_text(name)}</code></th><td>{_text(value)} {_text(unit)}</td>"
        f"<td>{_text(description)}</td></tr>"
        for name, value, unit, description in entries
    )
    table = f"<div class='scroll'><table class='figures'><tbody>{body}</tbody></table></div>"
    return f"<section><details><summary><h2>Configuration</h2></summary>{table}</details></section>"


def _breaks(trajectory: Trajectory) -> Indices:
    """Returns the indices at which a new segment begins."""
    if trajectory.segments is None:
        return np.zeros(0, dtype=np.intp)
    return np.flatnonzero(np.diff(trajectory.segments)) + 1


def _section(title: str, caption: str, body: str, *, aside: str = "") -> str:
    caption = f"<p class='caption'>{_text(caption)}</p>" if caption else ""
    if aside:
        caption = f'<div class="aside">{aside}{caption}</div>'
    return f"<section><h2>{_text(title)}</h2>{caption}{body}</section>"


def _row(pieces: Sequence[str]) -> str:
    return f'<div class="row">{"".join(pieces)}</div>'


def _plot(title: str, plot: plots.Plot, caption: str = "", *, wide: bool = False) -> str:
    head = f"<h3>{_text(title)}</h3>" if title else ""
    head += f"<p class='caption'>{_text(caption)}</p>" if caption else ""
    style = "scroll wide" if wide else ""
    keys = "".join(
        f'<span><i class="{key.kind}" style="--key: var(--{key.role})"></i>{_text(key.label)}</span>'
        for key in plot.keys
    )
    return f'<div class="plot">{head}<p class="keys">{keys}</p><div class="{style}">{plot.svg}</div></div>'


def _image(picture: NDArray[np.uint8], alt: str, kind: str, style: str = "") -> str:
    """Returns an RGB or RGBA picture as an element that carries its data."""
    code = cv2.COLOR_RGBA2BGRA if picture.shape[2] == 4 else cv2.COLOR_RGB2BGR
    options = [cv2.IMWRITE_JPEG_QUALITY, 82] if kind == ".jpg" else []
    _, data = cv2.imencode(kind, cv2.cvtColor(picture, code), options)
    mime = "image/jpeg" if kind == ".jpg" else "image/png"
    height, width = picture.shape[:2]
    return (
        f'<img src="data:{mime};base64,{base64.b64encode(data.tobytes()).decode("ascii")}" alt="{_text(alt)}" '
        f'width="{width}" height="{height}"{f" class={style}" if style else ""}>'
    )


def _text(value: object) -> str:
    return html.escape(str(value)).replace(" %", "\u00a0%")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


_CSS = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --card: #f7f8fa; --line: #e4e7ec; --ink: #1a1d23; --muted: #5d6675; --grid: #e1e5ea;
  --estimate: #2459d3; --truth: #b4bcc8; --translation: #c2570c; --rotation: #7a3fc9; --band: #7d8aa0;
  --time: #0d8f86; --tracking: #3aa675; --initializing: #e0b020; --lost: #d43d3d;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #101318; --card: #181c23; --line: #2a303a; --ink: #e8eaee; --muted: #9aa4b3; --grid: #2c323c;
    --estimate: #7aa7ff; --truth: #59626f; --translation: #f29a52; --rotation: #bb94f5; --band: #8b98ac;
    --time: #41c7bb; --tracking: #4fbf8b; --initializing: #e5bf48; --lost: #f06a6a;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif;
  font-variant-numeric: tabular-nums;
}
main { max-width: 1120px; margin: 0 auto; padding: 48px 24px 32px; }
h1 { font-size: 32px; line-height: 1.2; margin: 0; letter-spacing: -0.015em; overflow-wrap: anywhere; }
h2 { font-size: 21px; line-height: 1.3; margin: 0 0 6px; letter-spacing: -0.01em; }
h3 { font-size: 14px; font-weight: 600; margin: 0 0 4px; }
p { margin: 0; }
section { margin-top: 48px; }
.eyebrow { font-size: 13px; color: var(--muted); margin-bottom: 4px; }
.facts, .caption, .note { color: var(--muted); }
.facts { margin-top: 6px; }
.caption { font-size: 14px; max-width: 80ch; margin-bottom: 12px; }
.note { font-size: 14px; margin-top: 16px; padding: 10px 14px; border-left: 3px solid var(--initializing);
  background: var(--card); }
.tiles { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); margin-top: 28px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; }
.tile h3 { color: var(--muted); font-weight: 500; margin: 0; }
.tile .value { font-size: 28px; font-weight: 600; line-height: 1.3; color: var(--ink); letter-spacing: -0.01em; }
.tile .value span { font-size: 15px; font-weight: 400; color: var(--muted); letter-spacing: 0; }
.tile p { font-size: 12.5px; line-height: 1.45; color: var(--muted); }
.row { display: grid; gap: 32px; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); }
.row > * { min-width: 0; }
.plot { display: flex; flex-direction: column; }
.plot .caption { margin-bottom: 4px; }
.keys { display: flex; flex-wrap: wrap; gap: 2px 18px; font-size: 13px; color: var(--muted); margin: 4px 0 6px; }
.keys span { display: inline-flex; align-items: center; gap: 7px; }
.keys i { width: 18px; border-top: 2px solid var(--key); }
.keys .thick { border-top-width: 5px; border-radius: 3px; } .keys .dash { border-top-style: dotted; }
.keys .dot, .keys .ring { width: 9px; height: 9px; border: 1.5px solid var(--key); border-radius: 50%; }
.keys .dot { background: var(--key); } .keys .band { height: 10px; border: 0; background: var(--key); opacity: 0.3; }
.keys .box { height: 10px; border: 0; background: var(--key); }
.wide svg { min-width: 720px; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif !important; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; font-weight: 500; }
td, th { padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { color: var(--muted); font-size: 13px; font-weight: 400; }
.numbers td, .numbers thead th + th { text-align: right; white-space: nowrap; }
.numbers .total th, .numbers .total td { font-weight: 600; border-bottom: 0; }
td.bar { width: 30%; min-width: 110px; position: relative; padding-left: 16px; padding-right: 0; }
td.bar i { display: block; position: absolute; left: 16px; bottom: 0; height: 2px; max-width: calc(100% - 16px);
  background: var(--time); }
.figures th { width: 24%; } .figures td:nth-child(2) { white-space: nowrap; width: 16%; }
.figures td:nth-child(3) { color: var(--muted); }
.figures .group th { color: var(--muted); font-size: 13px; font-weight: 400; padding-top: 18px; }
.events { margin-top: 12px; } .events td:last-child { width: 70%; }
.shot { color: var(--muted); font-weight: 400; margin: 20px 0 6px; }
.panels { display: grid; gap: 8px; grid-template-columns: repeat(auto-fit, minmax(min(var(--least), 100%), 1fr)); }
figure { margin: 0; }
figure img { display: block; width: 100%; height: auto; border-radius: 4px; }
figcaption { font-size: 12.5px; color: var(--muted); margin-top: 3px; }
figcaption b { font-weight: 500; color: var(--ink); }
.aside { display: flex; gap: 16px; align-items: center; }
.wheel { width: 48px; height: 48px; flex: none; }
summary { cursor: pointer; } summary h2 { display: inline; }
details .scroll { margin-top: 12px; }
code { font: 13px ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
footer { margin-top: 56px; padding-top: 16px; border-top: 1px solid var(--line); color: var(--muted); font-size: 13px; }
@media (max-width: 600px) {
  main { padding: 28px 16px; } h1 { font-size: 26px; } section { margin-top: 36px; }
  .figures td:nth-child(2) { white-space: normal; }
}
@media print { main { max-width: none; } .tile, figure, .plot { break-inside: avoid; } }
"""
