"""The report's plots, as SVG that takes its colours from the page's style sheet (so that it suits light and dark).

Drawn on matplotlib's SVG canvas through its object interface: no window system, no pyplot state.
"""

from __future__ import annotations

import html
import io
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flowodom.trajectory import Array, Indices

ROLES = (
    "ink",
    "muted",
    "grid",
    "estimate",
    "truth",
    "translation",
    "rotation",
    "band",
    "time",
    "tracking",
    "initializing",
    "lost",
)
"""Names of the colours; the page gives each as a CSS variable ``--name``."""

_STAND_INS = {role: f"#fe{i:02x}a{i:x}" for i, role in enumerate(ROLES)}
"""Colours that matplotlib draws with, to be replaced by the page's; none of them is used for itself."""

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "flowodom",
    "path.simplify_threshold": 0.4,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11,
    "axes.labelsize": 11,
    "axes.titlesize": 11,
    "text.color": _STAND_INS["ink"],
    "axes.edgecolor": _STAND_INS["grid"],
    "axes.labelcolor": _STAND_INS["muted"],
    "axes.titlecolor": _STAND_INS["ink"],
    "xtick.color": _STAND_INS["grid"],
    "ytick.color": _STAND_INS["grid"],
    "xtick.labelcolor": _STAND_INS["muted"],
    "ytick.labelcolor": _STAND_INS["muted"],
    "grid.color": _STAND_INS["grid"],
    "grid.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "lines.solid_joinstyle": "round",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}

_WIDE, _HALF = 11.0, 5.4
"""Widths in inches (72 points each) of a plot across the page, and of one of two side by side."""

_MOST_BAND_POINTS = 1500


@dataclass(frozen=True)
class Span:
    """A stretch of time in one state.

    Attributes:
        start: Seconds.
        end: Seconds.
        role: The state, and its colour, one of ``ROLES``.
    """

    start: float
    end: float
    role: str


@dataclass(frozen=True)
class Key:
    """One entry of a legend.

    Attributes:
        role: Its colour, one of ``ROLES``.
        kind: What it looks like: ``line``, ``thick``, ``dash``, ``dot``, ``ring``, ``box`` or ``band``.
        label: What it is.
    """

    role: str
    kind: str
    label: str


@dataclass(frozen=True)
class Plot:
    """A drawn plot.

    Attributes:
        svg: The SVG element.
        keys: Its legend, which the page writes (in its own letters, and with line breaks where it is narrow).
    """

    svg: str
    keys: tuple[Key, ...] = ()


def colour(role: str) -> str:
    """Returns the stand-in of a colour of the page."""
    return _STAND_INS[role]


def path_plot(estimate: Sequence[Array], truth: Array | None, labels: tuple[str, str], *, description: str) -> Plot:
    """Draws paths in a plane, to one scale in both directions.

    Args:
        estimate: (N, 2) for each segment.
        truth: (M, 2), None without one.
        labels: What the two axes are, with their unit.
        description: For readers who cannot see it.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_HALF, 4.2), layout="constrained")
        axes = figure.add_subplot()
        if truth is not None:
            axes.plot(truth[:, 0], truth[:, 1], color=colour("truth"), linewidth=4, solid_capstyle="round")
        for part in estimate:
            axes.plot(part[:, 0], part[:, 1], color=colour("estimate"))
        for i, part in enumerate(estimate):
            fill = colour("estimate") if i == 0 else "none"
            axes.plot(*part[0], "o", markersize=6, markerfacecolor=fill, markeredgecolor=colour("estimate"))
        axes.set_aspect("equal", adjustable="datalim")
        axes.margins(0.08)
        axes.grid(True)
        axes.set(xlabel=labels[0], ylabel=labels[1])
        keys = [Key("truth", "thick", "truth")] if truth is not None else []
        keys += [Key("estimate", "line", "estimate"), Key("estimate", "dot", "start")]
        keys += [Key("estimate", "ring", "start after a loss")] if len(estimate) > 1 else []
        return Plot(_svg(figure, description), tuple(keys))


def error_plot(
    progress: Array,
    translation: Array,
    rotation: Array,
    *,
    label: str,
    breaks: Indices,
    description: str,
    reference: float | None = None,
) -> Plot:
    """Draws translation and rotation error one above the other.

    Args:
        progress: (N,) seconds or metres.
        translation: (N,) metres.
        rotation: (N,) degrees.
        label: What ``progress`` is, with its unit.
        breaks: (B,) indices at which a new segment begins.
        description: For readers who cannot see it.
        reference: Draws this share of ``progress`` as a line for comparison; None for none.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_HALF, 4.2), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True)
        for axes, values, role, name in (
            (upper, translation, "translation", "translation [m]"),
            (lower, rotation, "rotation", "rotation [deg]"),
        ):
            _line(axes, progress, values, breaks, colour(role))
            axes.set(ylabel=name)
            axes.set_ylim(0, max(1e-9, 1.08 * float(values.max())))
            _quiet(axes, progress)
        keys = [Key("translation", "line", "translation"), Key("rotation", "line", "rotation")]
        if reference is not None:
            line = reference * progress
            shown = line <= upper.get_ylim()[1]
            upper.plot(
                progress[shown],
                line[shown],
                color=colour("muted"),
                linewidth=1,
                linestyle=(0, (2, 3)),
            )
            keys.append(Key("muted", "dash", f"{100 * reference:g} % of the distance"))
        upper.tick_params(bottom=False)
        lower.set(xlabel=label)
        figure.align_ylabels()
        return Plot(_svg(figure, description), tuple(keys))


def bounds_plot(seconds: Array, errors: Array, sigmas: Array, *, breaks: Indices, description: str) -> Plot:
    """Draws the error on each of six axes within three sigma.

    Args:
        seconds: (N,).
        errors: (N, 6) metres, then degrees.
        sigmas: (N, 6) in the same units.
        breaks: (B,) indices at which a new segment begins.
        description: For readers who cannot see it.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDE, 4.0), layout="constrained")
        rows = figure.subplots(2, 3, sharex=True)
        thin = slice(None, None, max(1, len(seconds) // _MOST_BAND_POINTS))
        for axis, axes in enumerate(rows.flat):
            role = "translation" if axis < 3 else "rotation"
            bound = 3 * sigmas[:, axis]
            x, y = _broken(seconds[thin], bound[thin], np.searchsorted(np.arange(len(seconds))[thin], breaks))
            axes.fill_between(x, -y, y, color=colour("band"), alpha=0.25, linewidth=0)
            _line(axes, seconds, errors[:, axis], breaks, colour(role))
            axes.set_title(f"{'xyz'[axis % 3]}  [{'m' if axis < 3 else 'deg'}]", loc="left")
            # A bound far too wide runs off the plot rather than flatten the error.
            most = float(np.abs(errors[:, axis]).max())
            limit = max(1e-9, 1.15 * most, min(1.1 * float(bound.max()), 20 * most or np.inf))
            axes.set_ylim(-limit, limit)
            _quiet(axes, seconds)
        for axes in rows[1]:
            axes.set(xlabel="time [s]")
        rows[0, 0].set(ylabel="translation")
        rows[1, 0].set(ylabel="rotation")
        for axes in rows[0]:
            axes.tick_params(bottom=False)
        figure.align_ylabels()
        keys = (Key("translation", "line", "translation error"), Key("rotation", "line", "rotation error"))
        return Plot(_svg(figure, description), (*keys, Key("band", "band", "three sigma")))


def frame_time_plot(seconds: Array, milliseconds: Array, budget: float | None, *, description: str) -> Plot:
    """Draws the time that each frame took.

    Args:
        seconds: (N,).
        milliseconds: (N,).
        budget: Milliseconds between the camera's frames, None when not known.
        description: For readers who cannot see it.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_HALF, 3.4), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(seconds, milliseconds, color=colour("time"), linewidth=1)
        median = float(np.median(milliseconds))
        axes.axhline(median, color=colour("ink"), linewidth=1.2)
        # A few slow frames (the first one, most of all) must not flatten the rest.
        top = 1.6 * float(np.percentile(milliseconds, 99))
        keys = [Key("time", "line", "each frame"), Key("ink", "line", f"median {median:.1f} ms")]
        if budget is not None and budget < 3 * top:
            axes.axhline(budget, color=colour("muted"), linewidth=1.2, linestyle=(0, (2, 3)))
            keys.append(Key("muted", "dash", f"camera's period {budget:.1f} ms"))
            top = max(top, 1.25 * budget)
        axes.set_ylim(0, max(top, 1e-9))
        axes.set(xlabel="time [s]", ylabel="time a frame [ms]")
        _quiet(axes, seconds)
        return Plot(_svg(figure, description), tuple(keys))


def state_plot(seconds: Array, matches: Array, inliers: Array, spans: Sequence[Span], *, description: str) -> Plot:
    """Draws the states as a strip, and the points used in the fit beneath.

    Args:
        seconds: (N,).
        matches: (N,) points offered to the fit.
        inliers: (N,) points that it kept.
        spans: The states, in order.
        description: For readers who cannot see it.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDE, 2.6), layout="constrained")
        strip, axes = figure.subplots(2, 1, sharex=True, height_ratios=(1, 6))
        for span in spans:
            strip.axvspan(span.start, span.end, color=colour(span.role), linewidth=0)
        strip.set_yticks([])
        strip.tick_params(bottom=False, labelbottom=False)
        strip.spines[:].set_visible(False)
        axes.plot(seconds, matches, color=colour("truth"), linewidth=1.2)
        axes.plot(seconds, inliers, color=colour("estimate"), linewidth=1.2)
        axes.set_ylim(0, max(1.0, 1.15 * float(matches.max()), 1.15 * float(inliers.max())))
        axes.set(xlabel="time [s]", ylabel="points")
        _quiet(axes, seconds)
        keys = [Key(role, "box", role) for role in dict.fromkeys(span.role for span in spans)]
        keys += [Key("truth", "line", "points offered"), Key("estimate", "line", "points kept by the fit")]
        return Plot(_svg(figure, description), tuple(keys))


def _quiet(axes: Axes, progress: Array) -> None:
    axes.grid(True, axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    low, high = float(progress[0]), float(progress[-1])
    axes.set_xlim(low, high if high > low else low + 1)


def _line(axes: Axes, x: Array, y: Array, breaks: Indices, shade: str) -> None:
    """Draws a line that is broken between segments, and a segment of one pose as a dot."""
    axes.plot(*_broken(x, y, breaks), color=shade, linewidth=1.4)
    edges = np.concatenate(([0], breaks, [len(x)]))
    alone = edges[:-1][np.diff(edges) == 1]
    axes.plot(x[alone], y[alone], "o", color=shade, markersize=3)


def _broken(x: Array, y: Array, breaks: Indices) -> tuple[Array, Array]:
    """Puts a NaN before each break, so that no line joins two segments."""
    return np.insert(x, breaks, np.nan), np.insert(y, breaks, np.nan)


def _svg(figure: Figure, description: str) -> str:
    """Renders a figure as an SVG element for a page that holds others of its kind."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    head, _, body = text.partition(">")
    box = re.search(r'viewBox="[^"]*"', head)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box[0] if box else ""}'
    head += f' role="img" aria-label="{html.escape(description)}"'
    # Ids must differ between the plots of one page; the contents' checksum tells them apart, run after run.
    prefix = f"p{zlib.crc32(body.encode()):08x}-"
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}", body)
    for role, stand_in in _STAND_INS.items():
        body = body.replace(stand_in, f"var(--{role})")
    return f"{head}>{body}"


def growth_plot(curves: Sequence[tuple[str, Array, Array]], path: Path, *, x: str, y: str, scale: float = 1.0) -> None:
    """Writes an SVG of how several figures grow, on a logarithmic scale, in colours of its own on white.

    Args:
        curves: Name, x and y of each; where y is next to nothing it is left out.
        path: Where to.
        x: Label of the x axis.
        y: Label of the y axis.
        scale: Factor on y.
    """
    with matplotlib.rc_context({"svg.hashsalt": "flowodom", "font.size": 10}):
        figure = Figure(figsize=(8, 5.5), layout="constrained", facecolor="white")
        axes = figure.subplots()
        for k, (name, across, up) in enumerate(curves):
            shown = up > 1e-3 * up.max()
            axes.plot(across[shown], scale * up[shown], label=name, linestyle="--" if k == 0 else "-", linewidth=1.8)
        axes.set(xlabel=x, ylabel=y, yscale="log")
        axes.grid(True, which="major", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None})
