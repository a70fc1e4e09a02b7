"""Pictures for the report, as PNG bytes: labelled curves and strips of faces."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, PercentFormatter
from PIL import Image

from sparface.files import open_regular

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#56B4E9", "#4D4D4D")
"""Okabe and Ito's palette, safe for colour-blind readers; its yellow is darkened so that text is legible."""
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)))
STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "axes.edgecolor": "#9aa0a6",
    "axes.linewidth": 0.7,
    "axes.labelcolor": "#4a4f55",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e8eaed",
    "grid.linewidth": 0.7,
    "xtick.color": "#9aa0a6",
    "ytick.color": "#9aa0a6",
    "xtick.labelcolor": "#4a4f55",
    "ytick.labelcolor": "#4a4f55",
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.solid_capstyle": "round",
}
LONGEST_NAME = 26
"""Maximum length of a curve's label, in characters; longer names are shortened to their end."""
NAME_HEIGHT = 11
"""Distance between labels, in points."""
MOST_NAMES = 100
"""A picture is not made taller for more labels."""
STRIP = 8
"""Faces in a row of a preview."""
MAX_PIXELS = 50_000_000
"""Previews with more pixels are not decoded."""
DPI = 200
SMOOTH_FROM = 40
"""Curves with more points are drawn as a running mean over their faint raw values."""


@dataclass(frozen=True)
class Line:
    """A curve and its label; `index` selects colour and dash."""

    name: str
    index: int
    x: Sequence[float]
    y: Sequence[float]

    @property
    def colour(self) -> str:
        return colour(self.index)

    @property
    def dash(self) -> Any:
        return DASHES[self.index // len(COLOURS) % len(DASHES)]


def colour(index: int) -> str:
    """Return the colour of the run with this index, the same in every picture and table."""
    return COLOURS[index % len(COLOURS)]


def over_training(
    lines: Sequence[Line],
    *,
    size: tuple[float, float] = (5.6, 3.4),
    percent: bool = False,
    chance: bool = True,
    names: bool = True,
) -> bytes:
    """Plot curves over images seen; `percent` formats values as percentages and, with `chance`, marks 0.5."""
    with matplotlib.rc_context(STYLE):
        figure, axes = blank(with_room(size, len(lines)) if names else size)
        for line in lines:
            _curve(axes, line)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axes.xaxis.set_major_locator(MaxNLocator(5 if size[0] > 4 else 4))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.ticklabel_format(axis="y", scilimits=(-3, 5))
        axes.set_xlabel("images seen")
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            if chance:
                _chance(axes)
        if names:
            _name_ends(axes, lines)
        return png(figure)


def over_strength(
    lines: Sequence[tuple[Line, Sequence[float], Sequence[float]]],
    label: str,
    *,
    size: tuple[float, float] = (5.6, 3.4),
) -> bytes:
    """Plot accuracies over the strength of an attack, each with the ends of its interval as a band."""
    with matplotlib.rc_context(STYLE):
        figure, axes = blank(with_room(size, len(lines)))
        for line, low, high in lines:
            axes.fill_between(line.x, low, high, color=line.colour, alpha=0.13, linewidth=0)
            _curve(axes, line)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.set_xlabel(label)
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        _name_ends(axes, [line for line, _, _ in lines])
        return png(figure)


def against_share(points: Sequence[tuple[float, float]], *, size: tuple[float, float] = (5.6, 3.4)) -> bytes:
    """Plot accuracy over the share of made faces: a dot per run, a line through the means."""
    with matplotlib.rc_context(STYLE):
        figure, axes = blank(size)
        shares, accuracies = (np.array(values) for values in zip(*points, strict=True))
        levels = np.unique(shares)
        axes.plot(levels, [accuracies[shares == level].mean() for level in levels], color=COLOURS[0])
        axes.plot(shares, accuracies, "o", color=COLOURS[0], markersize=4, alpha=0.6)
        axes.set_xlabel("share of made faces in a batch")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1, decimals=0))
        return png(figure)


def roc(
    lines: Sequence[Line],
    labels: tuple[str, str] = ("false accept rate (FAR)", "true accept rate (TAR)"),
    *,
    size: tuple[float, float] = (5.6, 3.4),
) -> bytes:
    """Plot ROC curves. FAR is logarithmic, as its low end matters most when errors are costly."""
    low = min([0.1, *(far for line in lines for far in line.x if far > 0)])
    with matplotlib.rc_context(STYLE):
        figure, axes = blank(with_room(size, len(lines)))
        chance = np.geomspace(low, 1, 100)
        axes.plot(chance, chance, color="#b4b8bd", linewidth=0.9, linestyle=(0, (2, 2)))
        for line in lines:
            far, tar = np.asarray(line.x), np.asarray(line.y)
            start = np.flatnonzero(far == 0)[-1]
            far = np.maximum(far[start:], low)
            axes.plot(
                far,
                tar[start:],
                color=line.colour,
                linestyle=line.dash,
                linewidth=1.7,
                drawstyle="steps-post",
            )
        axes.set_xscale("log")
        axes.set_xlim(low, 1)
        axes.set_ylim(0, 1.02)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.tick_params(which="minor", length=0)
        _name_corner(axes, lines)
        return png(figure)


def confusion(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> bytes:
    """Draw a confusion matrix: the number of faces by true class (row) and answer (column), on a shade that
    says which share of their class they are."""
    table = np.asarray(counts, float)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    names = [short_name(name) for name in classes]
    side = 1.6 + 0.42 * len(names)
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = blank((side, side))
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", parse_math=False)
        axes.set_yticks(range(len(names)), names, parse_math=False)
        for row, column in np.argwhere(table > 0).tolist():
            dark = "white" if shares[row, column] > 0.5 else "#4a4f55"
            axes.text(
                column, row, f"{table[row, column]:g}", ha="center", va="center", color=dark, fontsize=7
            )
        return png(figure)


def strip(path: Path) -> tuple[bytes, int]:
    """Return the first row of a preview as a PNG, and its width in pixels.

    Previews are grids with `STRIP` square faces per row and 2 pixels in between; any other picture is
    returned whole. Raises ValueError if the picture is too large.
    """
    with open_regular(path) as file, Image.open(file, formats=["PNG"]) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise ValueError("too large")
        picture = opened.convert("RGB")
    cell = (picture.width - 2) // STRIP
    if (picture.width - 2) % STRIP == 0 and picture.height > cell + 2 and (picture.height - 2) % cell == 0:
        picture = picture.crop((0, 0, picture.width, cell + 2))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue(), picture.width


def short(value: float) -> str:
    """Abbreviate a count: 12500 → 12.5k."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def short_name(name: str) -> str:
    """Shorten a long name to its end."""
    return name if len(name) <= LONGEST_NAME else "…" + name[1 - LONGEST_NAME :]


def with_room(size: tuple[float, float], names: int) -> tuple[float, float]:
    """Return a size in inches that is tall enough for that many labels, up to `MOST_NAMES`, one above the
    other."""
    return size[0], max(size[1], (min(names, MOST_NAMES) + 4) * NAME_HEIGHT / 72)


def blank(size: tuple[float, float]) -> tuple[Figure, Axes]:
    """Return a figure in inches with one pair of axes."""
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    return figure, figure.subplots()


def _curve(axes: Axes, line: Line) -> None:
    x, y = np.asarray(line.x, float), np.asarray(line.y, float)
    if len(x) > SMOOTH_FROM:
        axes.plot(x, y, color=line.colour, alpha=0.22, linewidth=0.7)
        y = running_mean(y, len(y) // 20)
    marker = "o" if len(x) <= 12 else None
    axes.plot(x, y, color=line.colour, linestyle=line.dash, linewidth=1.7, marker=marker, markersize=3.2)


def running_mean(values: np.ndarray[Any, Any], reach: int) -> np.ndarray[Any, Any]:
    """Return the mean over up to `reach` values before and after each value, ignoring NaN."""
    padded = np.pad(values, reach, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
    finite = np.isfinite(windows)
    total = np.where(finite, windows, 0).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(total / finite.sum(axis=1))


def _chance(axes: Axes) -> None:
    axes.axhline(0.5, color="#b4b8bd", linewidth=0.9, linestyle=(0, (2, 2)))
    style: dict[str, Any] = {"color": "#8a9097", "fontsize": 7.5, "textcoords": "offset points"}
    axes.annotate("chance", (0.01, 0.5), xycoords=("axes fraction", "data"), xytext=(0, 3), **style)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.47), min(max(high, 0.6), 1.005))


def _name_ends(axes: Axes, lines: Sequence[Line]) -> None:
    """Label the curves at their right ends, moving labels apart that would overlap."""
    ends = [(line, _last_finite(line)) for line in lines]
    shown = sorted(((end, line) for line, end in ends if end is not None), key=lambda pair: pair[0][1])
    right = max((end[0] for end, _ in shown), default=0.0)
    for early in (True, False):
        _name_side([(end, line) for end, line in shown if (end[0] < 0.8 * right) is early], axes)


def _name_side(shown: Sequence[tuple[tuple[float, float], Line]], axes: Axes) -> None:
    low, high = axes.get_ylim()
    height = axes.get_window_extent().height * 72 / DPI
    wanted = [(end[1] - low) / (high - low) * height for end, _ in shown]
    places = spread(wanted, gap=NAME_HEIGHT, top=height)
    for (end, line), want, place in zip(shown, wanted, places, strict=True):
        _write(axes, line, end, (6, place - want), va="center", annotation_clip=False)


def _write(axes: Axes, line: Line, at: tuple[float, float], offset: tuple[float, float], **more: Any) -> None:
    name = short_name(line.name)
    style: dict[str, Any] = {
        "color": line.colour,
        "fontweight": "bold",
        "fontsize": 8,
        "textcoords": "offset points",
    }
    # a `$` in a run's name does not start a formula
    axes.annotate(name, at, xytext=offset, parse_math=False, **style, **more)


def spread(places: Sequence[float], gap: float, top: float) -> list[float]:
    """Move ascending positions apart until they are at least `gap` apart and at most `top`."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else place)
    limit = top
    for index in range(len(moved) - 1, -1, -1):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - gap
    return moved


def _last_finite(line: Line) -> tuple[float, float] | None:
    points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if np.isfinite(y)]
    return points[-1] if points else None


def _name_corner(axes: Axes, lines: Sequence[Line]) -> None:
    for index, line in enumerate(reversed(lines)):
        _write(axes, line, (0.985, 0.04), (0, NAME_HEIGHT * index), xycoords="axes fraction", ha="right")


def png(figure: Figure) -> bytes:
    """Render a figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()
