"""How far an estimated trajectory is from the truth: every figure, each defined once.

Knows trajectories only. ``FIGURES`` holds the unit and the definition of each figure; the terminal table, drift.json,
the report and the documentation all take them from there.

Sources: Umeyama, "Least-squares estimation of transformation parameters between two point patterns" (1991) for the
alignments; Sturm et al., "A benchmark for the evaluation of RGB-D SLAM systems" (2012) for ATE and RPE; Geiger et al.,
"Are we ready for autonomous driving?" (2012) for errors over sub-sequences; Zhang and Scaramuzza, "A tutorial on
quantitative trajectory evaluation" (2018) for sub-sequences that scale with the path.
"""

from __future__ import annotations

import dataclasses
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flowodom.errors import TrajectoryError
from flowodom.geometry import se3
from flowodom.trajectory import TOLERANCE, Array, Indices, Trajectory, associate, read_pair

KITTI_LENGTHS: tuple[float, ...] = (100.0, 200.0, 300.0, 400.0, 500.0, 600.0, 700.0, 800.0)
"""Lengths of KITTI's sub-sequences, metres."""

KITTI_STEP = 10
"""Frames between the starts of KITTI's sub-sequences."""

SHORT_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Lengths of the sub-sequences of a path too short for KITTI's, as shares of it; they start at every frame."""

_STILL = 1e-6
"""Metres; a path or spread below it is that of a body standing still."""


@dataclass(frozen=True)
class Figure:
    """What one figure is.

    Attributes:
        label: Its name for people.
        unit: Its unit, empty for a pure number.
        group: Heading under which it is listed.
        definition: One sentence that says how it is computed.
        digits: How many of its digits are shown.
    """

    label: str
    unit: str
    group: str
    definition: str
    digits: int = 3

    def text(self, value: float | None) -> str:
        """Returns a value of this figure as text without its unit, a dash for None."""
        return number_text(value, self.digits)


def _figure(label: str, unit: str, group: str, definition: str, *, digits: int = 3) -> Any:
    return dataclasses.field(default=None, metadata={"figure": Figure(label, unit, group, definition, digits)})


_DATA, _ATE, _RPE, _DRIFT, _SIGMA = (
    "What was compared",
    "Absolute error",
    "Relative error",
    "Drift",
    "Published uncertainty",
)
_SE3 = "distances between estimated and true positions after the rigid alignment (rotation, translation) that fits best"
_SIM3 = (
    "distances between estimated and true positions after the similarity (rotation, translation, scale) that fits best"
)
_OVER_FRAME = "in the motion between consecutive poses"
_OVER_SECOND = (
    "in the motion between poses one second apart (all pairs, the nearest stamp, divided by the actual seconds)"
)
_OVER_METRE = (
    "in the motion between poses one metre apart along the true path (all pairs, divided by the actual metres)"
)


def _errors(spread: str, kind: str, motion: str) -> str:
    return f"{spread} of the {kind} error {motion}."


_RMSE, _MEDIAN = "Root mean square", "Median"


@dataclass(frozen=True)
class SegmentEvaluation:
    """One segment (run of the tracker between two losses) by itself; names mean what they mean in ``Evaluation``."""

    segment: int
    poses: int
    duration: float
    path_length: float
    ate_se3_rmse: float | None
    ate_sim3_rmse: float | None
    scale: float | None


@dataclass(frozen=True)
class Evaluation:
    """Every figure of one comparison; None where it cannot be told (``FIGURES`` defines each).

    Absolute figures and drift take the trajectory as a whole. Relative ones never span two segments, since a tracker
    that lost its way claims no motion between them.

    Attributes:
        scale_corrected: Whether relative errors and drift were taken after each segment was multiplied by its
            recovered scale, as for a single camera of unknown scale.
        segments: Each segment by itself.
    """

    poses: int = _figure("poses compared", "", _DATA, "Estimated poses that have a true pose at their stamp.")
    frames: int | None = _figure("frames", "", _DATA, "Camera frames that the odometry was given.")
    tracked: float | None = _figure("frames tracked", "%", _DATA, "Share of the camera frames that were given a pose.")
    coverage: float | None = _figure(
        "time covered",
        "%",
        _DATA,
        "Share of the truth's time span in which the estimate has poses, "
        "not counting gaps longer than three median intervals.",
    )
    segment_count: int = _figure(
        "segments", "", _DATA, "Uninterrupted runs of the tracker; each loss of tracking begins a new one."
    )
    duration: float = _figure("duration", "s", _DATA, "Time from the first compared pose to the last.")
    path_length: float = _figure("path length", "m", _DATA, "Length of the true path through the compared poses.")

    ate_se3_rmse: float | None = _figure("ATE SE(3) rmse", "m", _ATE, f"{_RMSE} of the {_SE3}.")
    ate_se3_mean: float | None = _figure("ATE SE(3) mean", "m", _ATE, f"Mean of the {_SE3}.")
    ate_se3_median: float | None = _figure("ATE SE(3) median", "m", _ATE, f"{_MEDIAN} of the {_SE3}.")
    ate_se3_max: float | None = _figure("ATE SE(3) max", "m", _ATE, f"Largest of the {_SE3}.")
    ate_sim3_rmse: float | None = _figure("ATE Sim(3) rmse", "m", _ATE, f"{_RMSE} of the {_SIM3}.")
    ate_sim3_mean: float | None = _figure("ATE Sim(3) mean", "m", _ATE, f"Mean of the {_SIM3}.")
    ate_sim3_median: float | None = _figure("ATE Sim(3) median", "m", _ATE, f"{_MEDIAN} of the {_SIM3}.")
    ate_sim3_max: float | None = _figure("ATE Sim(3) max", "m", _ATE, f"Largest of the {_SIM3}.")
    scale: float | None = _figure(
        "recovered scale",
        "",
        _ATE,
        "Factor by which the similarity alignment multiplies the estimate: 1 is right, 1.05 means 5 % too small.",
        digits=4,
    )

    rpe_frame_translation_rmse: float | None = _figure(
        "translation per frame rmse", "m", _RPE, _errors(_RMSE, "translation", _OVER_FRAME)
    )
    rpe_frame_translation_median: float | None = _figure(
        "translation per frame median", "m", _RPE, _errors(_MEDIAN, "translation", _OVER_FRAME)
    )
    rpe_frame_rotation_rmse: float | None = _figure(
        "rotation per frame rmse", "deg", _RPE, _errors(_RMSE, "rotation", _OVER_FRAME)
    )
    rpe_frame_rotation_median: float | None = _figure(
        "rotation per frame median", "deg", _RPE, _errors(_MEDIAN, "rotation", _OVER_FRAME)
    )
    rpe_second_translation_rmse: float | None = _figure(
        "translation per second rmse", "m/s", _RPE, _errors(_RMSE, "translation", _OVER_SECOND)
    )
    rpe_second_translation_median: float | None = _figure(
        "translation per second median", "m/s", _RPE, _errors(_MEDIAN, "translation", _OVER_SECOND)
    )
    rpe_second_rotation_rmse: float | None = _figure(
        "rotation per second rmse", "deg/s", _RPE, _errors(_RMSE, "rotation", _OVER_SECOND)
    )
    rpe_second_rotation_median: float | None = _figure(
        "rotation per second median", "deg/s", _RPE, _errors(_MEDIAN, "rotation", _OVER_SECOND)
    )
    rpe_metre_translation_rmse: float | None = _figure(
        "translation per metre rmse", "m/m", _RPE, _errors(_RMSE, "translation", _OVER_METRE)
    )
    rpe_metre_translation_median: float | None = _figure(
        "translation per metre median", "m/m", _RPE, _errors(_MEDIAN, "translation", _OVER_METRE)
    )
    rpe_metre_rotation_rmse: float | None = _figure(
        "rotation per metre rmse", "deg/m", _RPE, _errors(_RMSE, "rotation", _OVER_METRE)
    )
    rpe_metre_rotation_median: float | None = _figure(
        "rotation per metre median", "deg/m", _RPE, _errors(_MEDIAN, "rotation", _OVER_METRE)
    )

    kitti_translation: float | None = _figure(
        "KITTI translation",
        "%",
        _DRIFT,
        "Mean end-point error of all sub-sequences of 100, 200 ... 800 m (of 10, 20 ... 50 % of a path under 100 m), "
        "divided by their length.",
    )
    kitti_rotation: float | None = _figure(
        "KITTI rotation",
        "deg/100 m",
        _DRIFT,
        "Mean end-point rotation error of the same sub-sequences, divided by their length.",
    )
    end_translation: float | None = _figure(
        "end position error",
        "m",
        _DRIFT,
        "Distance between the estimated and the true last position, seen from the first pose, with no alignment.",
    )
    end_rotation: float | None = _figure(
        "end rotation error",
        "deg",
        _DRIFT,
        "Angle between the estimated and the true rotation from the first pose to the last.",
    )
    drift: float | None = _figure("drift", "%", _DRIFT, "End position error divided by the length of the true path.")

    sigma_share: float | None = _figure(
        "within 3 sigma",
        "%",
        _SIGMA,
        "Share of poses whose error since their segment's first pose lies within 3 sigma of the published covariance, "
        "less that with which the segment began, on all six axes.",
    )
    sigma_width: float | None = _figure(
        "sigma over error",
        "",
        _SIGMA,
        "One over the root mean square of the error whitened by the published covariance: 1 is right, 2 is a sigma "
        "twice too wide.",
    )

    scale_corrected: bool = False
    segments: tuple[SegmentEvaluation, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Returns what drift.json holds: every figure by name, the segments, and the definitions."""
        return {
            **{name: getattr(self, name) for name in FIGURES},
            "scale_corrected": self.scale_corrected,
            "segments": [dataclasses.asdict(segment) for segment in self.segments],
            "definitions": {
                name: {"unit": figure.unit, "definition": figure.definition} for name, figure in FIGURES.items()
            },
        }

    def known(self) -> dict[str, dict[str, Figure]]:
        """Returns the figures that could be told, by group and name, in order."""
        groups: dict[str, dict[str, Figure]] = {}
        for name, figure in FIGURES.items():
            if getattr(self, name) is not None:
                groups.setdefault(figure.group, {})[name] = figure
        return groups

    def text(self, name: str) -> str:
        """Returns a figure as text without its unit, a dash where it is None."""
        return FIGURES[name].text(getattr(self, name))

    def table(self, *, width: int = 120, definitions: bool = True) -> str:
        """Returns the figures as a table for a terminal.

        Args:
            width: Columns of the terminal; definitions are wrapped to it.
            definitions: Whether each figure is followed by its definition.
        """
        label = max(len(figure.label) for figure in FIGURES.values())
        unit = max(len(figure.unit) for figure in FIGURES.values())
        lines: list[str] = []
        for group, figures in self.known().items():
            lines += [""] * bool(lines) + [group]
            for name, figure in figures.items():
                head = f"  {figure.label:<{label}}  {self.text(name):>8} {figure.unit:<{unit}}"
                if not definitions:
                    lines.append(head.rstrip())
                    continue
                indent = " " * (len(head) + 2)
                lines += textwrap.wrap(
                    figure.definition,
                    max(width, len(indent) + 30),
                    initial_indent=f"{head}  ",
                    subsequent_indent=indent,
                )
        if len(self.segments) > 1:
            lines += ["", "Segments"]
            lines.append("  segment  poses  duration s  path m  ATE SE(3) rmse m  ATE Sim(3) rmse m  scale")
            for s in self.segments:
                lines.append(
                    f"  {s.segment:>7}  {s.poses:>5}  {number_text(s.duration):>10}  {number_text(s.path_length):>6}  "
                    f"{number_text(s.ate_se3_rmse):>16}  {number_text(s.ate_sim3_rmse):>17}  "
                    f"{number_text(s.scale, 4):>5}"
                )
        if self.scale_corrected:
            lines += ["", "Relative errors and drift are taken after scaling each segment to the truth."]
        return "\n".join(lines)


FIGURES: dict[str, Figure] = {
    entry.name: entry.metadata["figure"] for entry in dataclasses.fields(Evaluation) if "figure" in entry.metadata
}
"""Every figure by name, in order of listing: the one place that says what it is."""


def number_text(value: float | None, digits: int = 3) -> str:
    """Returns a number with so many digits that matter, whole numbers whole, a dash for None."""
    if value is None:
        return "-"
    if isinstance(value, int) or value == 0:
        return str(int(value))
    if abs(value) < 1e-4:
        return f"{value:.1e}"
    # Rounded first: 99.96 has no digit after its point to show.
    size = abs(float(f"{value:.{digits - 1}e}"))
    return f"{value:.{max(0, digits - 1 - int(np.floor(np.log10(size))))}f}"


@dataclass(frozen=True)
class Alignment:
    """The similarity ``p -> scale * rotation @ p + translation``.

    Attributes:
        rotation: (3, 3).
        translation: (3,) metres.
        scale: Positive; 1 for a rigid motion.
    """

    rotation: Array
    translation: Array
    scale: float

    def apply(self, trajectory: Trajectory) -> Trajectory:
        """Returns the trajectory seen from the other world (covariances, which are of the body, scaled with it)."""
        poses = trajectory.poses.copy()
        poses[:, :3, :3] = self.rotation @ trajectory.rotations
        poses[:, :3, 3] = self.scale * trajectory.positions @ self.rotation.T + self.translation
        covariances = trajectory.covariances
        if covariances is not None:
            unit = np.repeat([self.scale, 1.0], 3)
            covariances = covariances * unit[:, None] * unit
        return dataclasses.replace(trajectory, poses=poses, covariances=covariances)


def umeyama(source: Array, target: Array, *, with_scale: bool = False) -> Alignment | None:
    """Returns the alignment that brings ``source`` points nearest to ``target`` points in the least-squares sense.

    Where points lie on one line the rotation about it is free; one of the best is returned.

    Args:
        source: (N, 3) metres.
        target: (N, 3) metres.
        with_scale: Whether the scale is free too.

    Returns:
        The alignment; None for fewer than three points, or where a scale is asked for and one side stands still.
    """
    if len(source) < 3:
        return None
    mean_source, mean_target = source.mean(axis=0), target.mean(axis=0)
    a, b = source - mean_source, target - mean_target
    spread = float((a * a).sum() / len(a))
    if with_scale and min(spread, float((b * b).sum() / len(b))) < _STILL**2:
        return None
    u, singular, vt = np.linalg.svd(b.T @ a / len(a))
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = (u * sign) @ vt
    scale = float((singular * sign).sum()) / spread if with_scale else 1.0
    if with_scale and not scale > 0:
        return None
    return Alignment(rotation, mean_target - scale * rotation @ mean_source, scale)


def align(estimate: Trajectory, truth: Trajectory, *, with_scale: bool = False) -> Alignment | None:
    """Returns the alignment of an estimate to the truth at the same stamps; None where ``umeyama`` has none.

    Raises:
        TrajectoryError: The trajectories do not have the same stamps; ``associate`` them first.
    """
    _check_same(estimate, truth)
    return umeyama(estimate.positions, truth.positions, with_scale=with_scale)


def relative_errors(estimate: Trajectory, truth: Trajectory, first: Indices, second: Indices) -> tuple[Array, Array]:
    """Returns how the estimated motions between pairs of poses differ from the true ones.

    Args:
        estimate: N poses.
        truth: N poses at the same stamps.
        first: (M,) index of the first pose of each pair.
        second: (M,) index of the second.

    Returns:
        (M,) metres and (M,) degrees: the translation and angle of ``inverse(Q_first^-1 Q_second) P_first^-1 P_second``.
    """
    estimated = _inverse(estimate.poses[first]) @ estimate.poses[second]
    true = _inverse(truth.poses[first]) @ truth.poses[second]
    error = _inverse(true) @ estimated
    return np.linalg.norm(error[:, :3, 3], axis=1), angles(error[:, :3, :3])


def angles(rotations: Array) -> Array:
    """Returns the (N,) angles of (N, 3, 3) rotations, degrees, exact near zero too."""
    return np.asarray(np.rad2deg(se3.so3_log(torch.from_numpy(rotations)).norm(dim=-1).numpy()), dtype=np.float64)


def pairs_apart(progress: Array, step: float) -> tuple[Indices, Indices]:
    """Returns, for each pose, the pose whose progress is nearest to ``step`` further on.

    A pose has none when the step ends beyond the last pose. A partner less than half a step on is passed over for the
    next one: a pose that is hardly further on says nothing about a step.

    Args:
        progress: (N,) non-decreasing: seconds or metres.
        step: In the unit of ``progress``.

    Returns:
        (M,) and (M,) indices.
    """
    if len(progress) < 2:
        return np.zeros(0, dtype=np.intp), np.zeros(0, dtype=np.intp)
    first = np.flatnonzero(progress + step <= progress[-1] + 1e-6 * step)
    goal = progress[first] + step
    after = np.clip(np.searchsorted(progress, goal), first + 1, len(progress) - 1)
    before = after - 1
    nearer = goal - progress[before] <= progress[after] - goal
    second = np.where(nearer & (progress[before] - progress[first] >= 0.5 * step), before, after)
    return first, second


def subsequences(distances: Array) -> tuple[Indices, Indices, Array]:
    """Returns the sub-sequences over which KITTI's figures are taken.

    From a start, the sub-sequence of a length ends at the first pose that is more than this length further on. Lengths
    are 100 to 800 m with a start at every tenth frame, as the benchmark has them. A path under 100 m gives none of
    these: then the lengths are 10, 20, 30, 40 and 50 % of it, with a start at every frame.

    Args:
        distances: (N,) metres travelled.

    Returns:
        (M,) index of the start, (M,) index of the end, (M,) nominal length in metres.
    """
    total = float(distances[-1]) if len(distances) else 0.0
    if total > KITTI_LENGTHS[0]:
        lengths, step = KITTI_LENGTHS, KITTI_STEP
    elif total > _STILL:
        lengths, step = tuple(share * total for share in SHORT_SHARES), 1
    else:
        lengths, step = (), 1
    first, second, nominal = [np.zeros(0, dtype=np.intp)], [np.zeros(0, dtype=np.intp)], [np.zeros(0)]
    for length in lengths:
        starts = np.arange(0, len(distances), step)
        ends = np.searchsorted(distances, distances[starts] + length, side="right")
        keep = ends < len(distances)
        first.append(starts[keep])
        second.append(ends[keep])
        nominal.append(np.full(int(keep.sum()), length))
    return np.concatenate(first), np.concatenate(second), np.concatenate(nominal)


def pose_errors(estimate: Trajectory, truth: Trajectory) -> Array:
    """Returns the error of each pose relative to the first one, as a tangent in the body.

    Args:
        estimate: N poses.
        truth: N poses at the same stamps.

    Returns:
        (N, 6) ``(rho, phi)`` in ``T_true = T_estimated exp(xi)``, metres and radians, both seen from their first pose.
    """
    estimated = _inverse(estimate.poses[:1]) @ estimate.poses
    true = _inverse(truth.poses[:1]) @ truth.poses
    return np.asarray(se3.log(torch.from_numpy(_inverse(estimated) @ true)).numpy(), dtype=np.float64)


def compare(
    estimate: Trajectory,
    truth: Trajectory,
    *,
    tolerance: float = TOLERANCE,
    frames: int | None = None,
    correct_scale: bool = False,
) -> Evaluation:
    """Computes every figure of an estimate against the truth.

    Args:
        estimate: The trajectory to be judged, of the same body as the truth.
        truth: The trajectory it is judged by, at any rate.
        tolerance: See ``associate``, seconds.
        frames: How many frames the odometry was given, None when not known.
        correct_scale: Whether relative errors and drift are taken after each segment was multiplied by its recovered
            scale; for a single camera whose scale is not known.

    Raises:
        TrajectoryError: No pose has a true pose near its stamp.
    """
    matched, true = associate(estimate, truth, tolerance)
    rigid, similar = align(matched, true), align(matched, true, with_scale=True)
    parts = [(part, true.select(np.isin(true.stamps, part.stamps))) for part in matched.split()]
    segments = tuple(_segment(part, other) for part, other in parts)
    if correct_scale:
        parts = [(_scaled(part, align(part, other, with_scale=True) or similar), other) for part, other in parts]
    return Evaluation(
        poses=len(matched),
        frames=frames,
        tracked=100 * len(estimate) / frames if frames else None,
        coverage=_coverage(estimate, truth),
        segment_count=len(parts),
        duration=float(true.seconds[-1]),
        path_length=float(true.distances[-1]),
        scale=similar.scale if similar else None,
        scale_corrected=correct_scale,
        segments=segments,
        **_absolute("ate_se3", matched, true, rigid),
        **_absolute("ate_sim3", matched, true, similar),
        **_relative(parts),
        **_kitti(parts),
        **_end(_scaled(matched, similar) if correct_scale else matched, true),
        **_sigma(parts),
    )


def evaluate(
    est_path: Path,
    truth_path: Path,
    *,
    est_topic: str | None = None,
    truth_topic: str | None = None,
    times: Path | None = None,
    tolerance: float = TOLERANCE,
    correct_scale: bool = False,
) -> Evaluation:
    """Computes every figure of one recording or file against another.

    Args:
        est_path: TUM file, KITTI file or bag with the estimate.
        truth_path: TUM file, KITTI file or bag with the truth.
        est_topic: Topic of the estimate when it is a bag, see ``trajectory.read_bag``; None finds it.
        truth_topic: Topic of the truth when it is a bag; None finds it.
        times: Stamps of KITTI files, see ``trajectory.read_kitti``.
        tolerance: See ``trajectory.associate``, seconds.
        correct_scale: See ``compare``.

    Raises:
        TrajectoryError: A file cannot be read or the two cannot be compared.
        BagError: A recording cannot be read.
    """
    estimate, truth = read_pair(est_path, truth_path, est_topic=est_topic, truth_topic=truth_topic, times=times)
    return compare(estimate, truth, tolerance=tolerance, correct_scale=correct_scale)


_Parts = list[tuple[Trajectory, Trajectory]]
"""The segments of an estimate, each with the truth at its stamps."""


def _absolute(name: str, estimate: Trajectory, truth: Trajectory, alignment: Alignment | None) -> dict[str, Any]:
    if alignment is None:
        return {}
    errors = np.linalg.norm(alignment.apply(estimate).positions - truth.positions, axis=1)
    return {
        f"{name}_rmse": _rms(errors),
        f"{name}_mean": float(errors.mean()),
        f"{name}_median": float(np.median(errors)),
        f"{name}_max": float(errors.max()),
    }


def _segment(estimate: Trajectory, truth: Trajectory) -> SegmentEvaluation:
    similar = align(estimate, truth, with_scale=True)
    return SegmentEvaluation(
        segment=0 if estimate.segments is None else int(estimate.segments[0]),
        poses=len(estimate),
        duration=float(truth.seconds[-1]),
        path_length=float(truth.distances[-1]),
        ate_se3_rmse=_absolute("ate", estimate, truth, align(estimate, truth)).get("ate_rmse"),
        ate_sim3_rmse=_absolute("ate", estimate, truth, similar).get("ate_rmse"),
        scale=similar.scale if similar else None,
    )


def _relative(parts: _Parts) -> dict[str, Any]:
    translations: dict[str, list[Array]] = {"frame": [], "second": [], "metre": []}
    rotations: dict[str, list[Array]] = {"frame": [], "second": [], "metre": []}
    for estimate, truth in parts:
        count = np.arange(len(truth), dtype=np.float64)
        for name, progress in (("frame", count), ("second", truth.seconds), ("metre", truth.distances)):
            first, second = pairs_apart(progress, 1.0)
            translation, rotation = relative_errors(estimate, truth, first, second)
            apart = progress[second] - progress[first]
            translations[name].append(translation / apart)
            rotations[name].append(rotation / apart)
    result = {}
    for kind, found in (("translation", translations), ("rotation", rotations)):
        for name, lists in found.items():
            errors = np.concatenate(lists)
            if len(errors):
                result[f"rpe_{name}_{kind}_rmse"] = _rms(errors)
                result[f"rpe_{name}_{kind}_median"] = float(np.median(errors))
    return result


def _kitti(parts: _Parts) -> dict[str, Any]:
    translations, rotations = [], []
    for estimate, truth in parts:
        first, second, lengths = subsequences(truth.distances)
        translation, rotation = relative_errors(estimate, truth, first, second)
        translations.append(100 * translation / lengths)
        rotations.append(100 * rotation / lengths)
    if not sum(len(errors) for errors in translations):
        return {}
    return {
        "kitti_translation": float(np.concatenate(translations).mean()),
        "kitti_rotation": float(np.concatenate(rotations).mean()),
    }


def _end(estimate: Trajectory, truth: Trajectory) -> dict[str, Any]:
    if len(estimate) < 2:
        return {}
    first, last = np.array([0]), np.array([len(estimate) - 1])
    translation, rotation = (float(error[0]) for error in relative_errors(estimate, truth, first, last))
    length = float(truth.distances[-1])
    return {
        "end_translation": translation,
        "end_rotation": rotation,
        "drift": 100 * translation / length if length > _STILL else None,
    }


def _sigma(parts: _Parts) -> dict[str, Any]:
    inside: list[NDArray[np.bool_]] = []
    whitened: list[Array] = []
    for estimate, truth in parts:
        if estimate.covariances is None:
            continue
        errors, covariances = pose_errors(estimate, truth)[1:], _since_first(estimate.poses, estimate.covariances)[1:]
        usable = _positive(covariances)
        errors, covariances = errors[usable], covariances[usable]
        sigma = np.sqrt(np.diagonal(covariances, axis1=1, axis2=2))
        inside.append(np.asarray((np.abs(errors) <= 3 * sigma).all(axis=1)))
        whitened.append((errors * np.linalg.solve(covariances, errors[:, :, None])[:, :, 0]).sum(axis=1) / 6)
    if not sum(len(shares) for shares in inside):
        return {}
    mean = float(np.concatenate(whitened).mean())
    return {
        "sigma_share": 100 * float(np.concatenate(inside).mean()),
        "sigma_width": mean**-0.5 if mean > 0 else None,
    }


def _since_first(poses: Array, covariances: Array) -> Array:
    """Returns (N, 6, 6) how unsure each pose is beside the first, which may not be known itself where a segment begins.

    Where a covariance does not say so, because it has not grown by that much, it is taken as it is.
    """
    carried = np.asarray(se3.adjoint(_inverse(_inverse(poses[:1]) @ poses)))
    added = covariances - carried @ covariances[:1] @ carried.swapaxes(-1, -2)
    return np.where(_positive(added)[:, None, None], added, covariances)


def _positive(matrices: Array) -> NDArray[np.bool_]:
    """Returns which of (N, 6, 6) symmetric matrices are finite and positive definite, (N,)."""
    finite = np.asarray(np.isfinite(matrices).all(axis=(1, 2)))
    return np.asarray(np.linalg.eigvalsh(np.where(finite[:, None, None], matrices, 0.0))[:, 0] > 0)


def _coverage(estimate: Trajectory, truth: Trajectory) -> float | None:
    span = int(truth.stamps[-1] - truth.stamps[0])
    if span <= 0:
        return None
    covered = 0
    for part in estimate.split():
        gaps = np.diff(np.clip(part.stamps, truth.stamps[0], truth.stamps[-1]))
        if len(gaps):
            covered += int(gaps[gaps <= 3 * np.median(np.diff(part.stamps))].sum())
    return 100 * covered / span


def _scaled(trajectory: Trajectory, alignment: Alignment | None) -> Trajectory:
    if alignment is None:
        return trajectory
    return Alignment(np.eye(3), np.zeros(3), alignment.scale).apply(trajectory)


def _check_same(estimate: Trajectory, truth: Trajectory) -> None:
    if not np.array_equal(estimate.stamps, truth.stamps):
        raise TrajectoryError(
            f"the trajectories must have the same stamps, got {len(estimate)} and {len(truth)}; associate them first"
        )


def _inverse(poses: Array) -> Array:
    return np.asarray(se3.inverse(torch.from_numpy(poses)).numpy(), dtype=np.float64)


def _rms(errors: Array) -> float:
    return float(np.sqrt((errors * errors).mean()))
