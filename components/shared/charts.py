"""Charts as inline SVG: deterministic, readable on light and dark pages, and safe with untrusted labels.

Series differ by dash and marker as well as by colour. Margins are set from the lengths of the labels instead of by
matplotlib's layout engine, which would double the time that a page of charts takes. `inline_svg` makes the SVG.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from components.shared.errors import PlumblineError
from components.shared.inline_svg import BAD, GRID, INK, MUTED, SERIES, drawing, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Panel", "Series", "svg_bars", "svg_histogram", "svg_line", "svg_panels"]

_DASHES = ["-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (9, 3))]
_MARKERS = ["o", "s", "^", "D", "v", "P"]
_WIDTH_INCHES = 8.0
_LEFT_INCHES, _TOP_INCHES, _BOTTOM_INCHES = 0.75, 0.36, 0.52
_LABEL_INCHES, _LEGEND_INCHES = 0.073, 0.066  # a character's mean width at the labels' font size


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: What the legend calls it.
        x: Positions, `(n,)`.
        y: Values, `(n,)`; None and NaN leave a gap.
        lower: Lower ends of the intervals, `(n,)`, or None.
        upper: Upper ends of the intervals, `(n,)`, or None.
        markers: Marks each point; for few points.
        colour: Index of the series colour, by default its place in the chart.
        faint: A thin plain line, for what stands in the background.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    lower: Sequence[float | None] | None = None
    upper: Sequence[float | None] | None = None
    markers: bool = False
    colour: int | None = None
    faint: bool = False


@dataclass(frozen=True)
class Panel:
    """One of several charts that share their x axis.

    Attributes:
        y_label: What the y axis shows, with its unit.
        series: The lines.
        references: Horizontal lines by name, such as a target.
        y_range: Fixed limits of the y axis.
        height: In inches.
        legend: Whether the series are named; once is enough where panels share their series.
    """

    y_label: str
    series: Sequence[Series]
    references: Mapping[str, float] = field(default_factory=dict)
    y_range: tuple[float, float] | None = None
    height: float = 1.75
    legend: bool = True


def svg_line(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    references: Mapping[str, float] | None = None,
    y_range: tuple[float, float] | None = None,
    height: float = 2.7,
    description: str | None = None,
) -> Markup:
    """A line chart.

    Args:
        series: The lines, each perhaps with an interval.
        title: Shown above; also the accessible name.
        x_label: With its unit.
        y_label: With its unit.
        references: Horizontal lines by name, such as `{"target": 2.5}`.
        y_range: Fixed limits of the y axis.
        height: In inches.
        description: A sentence for screen readers beside the title.
    """
    panel = Panel(y_label, series, references or {}, y_range, height)
    return svg_panels([panel], title=title, x_label=x_label, description=description)


def svg_panels(panels: Sequence[Panel], *, title: str, x_label: str, description: str | None = None) -> Markup:
    """Charts under one another that share their x axis: several units on one picture without several y axes."""
    heights = [panel.height for panel in panels]
    with drawing():
        figure = _figure(sum(heights) + 0.9)
        grid: Any = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)
        for axes, panel in zip(grid[:, 0], panels, strict=True):
            _draw_panel(axes, panel)
        grid[-1, 0].set_xlabel(x_label)
        figure.align_ylabels()
        _arrange(figure, title)
        return to_svg(figure, title, description)


def svg_bars(
    labels: Sequence[str],
    values: Sequence[float | None],
    *,
    title: str,
    value_label: str,
    lower: Sequence[float | None] | None = None,
    upper: Sequence[float | None] | None = None,
    limits: Sequence[float | None] | None = None,
    limit_name: str = "limit",
    reference: float | None = None,
    reference_name: str = "",
    value_range: tuple[float, float] | None = None,
    points: bool = False,
    description: str | None = None,
) -> Markup:
    """Horizontal bars (or points), one a label, with intervals and limits.

    Args:
        labels: Names, top to bottom.
        values: A value a label; None says "no data".
        title: Shown above; also the accessible name.
        value_label: What the values are, with unit.
        lower: Lower ends of intervals.
        upper: Upper ends of intervals.
        limits: A limit a label, drawn as a tick across its bar.
        limit_name: What the legend calls the limits.
        reference: One vertical line for all.
        reference_name: What the legend calls it.
        value_range: Fixed limits of the value axis.
        points: Points instead of bars, for values whose zero means nothing (a win rate).
        description: A sentence for screen readers beside the title.
    """
    with drawing():
        figure = _figure(0.34 * max(len(labels), 2) + 1.05)
        axes: Any = figure.subplots()
        rows = np.arange(len(labels))
        _draw_bars(axes, rows, _numbers(values), lower, upper, points=points)
        if limits is not None:
            axes.plot(
                _numbers(limits), rows, "|", color=BAD, markersize=15, markeredgewidth=2.2, label=_label(limit_name)
            )
        if reference is not None:
            axes.axvline(
                reference, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), label=_label(reference_name), zorder=1
            )
        names = [_label(label) for label in labels]
        axes.set_yticks(rows, names)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        if value_range is not None:
            axes.set_xlim(*value_range)
        axes.set_xlabel(value_label)
        axes.grid(axis="x", color=GRID, linewidth=0.8)
        axes.tick_params(axis="y", length=0)
        _legend(axes)
        _arrange(figure, title, left_label=max(map(len, names), default=0))
        return to_svg(figure, title, description)


def svg_histogram(
    groups: Mapping[str, Sequence[float]],
    *,
    title: str,
    x_label: str,
    y_label: str = "count",
    bins: int = 30,
    references: Mapping[str, float] | None = None,
    description: str | None = None,
) -> Markup:
    """Histograms over common bins, one outline a group; values that are not finite are left out.

    Args:
        groups: Values by name.
        title: Shown above; also the accessible name.
        x_label: With its unit.
        y_label: What is counted.
        bins: How many bins.
        references: Vertical lines by name.
        description: A sentence for screen readers beside the title.
    """
    finite = {name: _finite(values) for name, values in groups.items()}
    pooled = np.concatenate([*finite.values(), np.empty(0)])
    edges = np.histogram_bin_edges(pooled, bins=bins) if pooled.size else np.linspace(0.0, 1.0, bins + 1)
    with drawing():
        figure = _figure(2.8)
        axes: Any = figure.subplots()
        for index, (name, values) in enumerate(finite.items()):
            colour = SERIES[index % len(SERIES)]
            counts = np.histogram(values, bins=edges)[0]
            axes.stairs(counts, edges, fill=True, color=colour, alpha=0.18)
            axes.stairs(
                counts, edges, color=colour, linewidth=1.6, linestyle=_DASHES[index % len(_DASHES)], label=_label(name)
            )
        for name, value in (references or {}).items():
            axes.axvline(value, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), label=_label(name))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        _legend(axes)
        _arrange(figure, title)
        return to_svg(figure, title, description)


def _draw_panel(axes: Axes, panel: Panel) -> None:
    for name, value in panel.references.items():
        if math.isfinite(value):
            axes.axhline(value, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), label=_label(name), zorder=1)
    for index, line in enumerate(panel.series):
        _draw_series(axes, line, index, named=panel.legend)
    axes.set_ylabel(panel.y_label)
    axes.grid(color=GRID, linewidth=0.8)
    if panel.y_range is not None:
        axes.set_ylim(*panel.y_range)
    _legend(axes)


def _draw_series(axes: Axes, line: Series, index: int, *, named: bool) -> None:
    if len(line.x) != len(line.y):
        raise PlumblineError(f"{len(line.x)} positions for {len(line.y)} values.", where=f"chart series {line.name!r}")
    colour = SERIES[(index if line.colour is None else line.colour) % len(SERIES)]
    x, y = _numbers(line.x), _numbers(line.y)
    marker = _MARKERS[index % len(_MARKERS)] if line.markers or np.isfinite(y).sum() == 1 else None
    if line.lower is not None and line.upper is not None:
        lower, upper = _numbers(line.lower), _numbers(line.upper)
        if line.markers:
            axes.vlines(x, lower, upper, color=colour, linewidth=1.4, alpha=0.8, zorder=2)
        else:
            axes.fill_between(x, lower, upper, color=colour, alpha=0.16, linewidth=0)
    dashes: Any = "-" if line.faint else _DASHES[index % len(_DASHES)]
    width, opacity, order = (1.1, 0.75, 2) if line.faint else (1.8, 1.0, 3)
    label = _label(line.name) if named else None
    axes.plot(
        x,
        y,
        color=colour,
        linewidth=width,
        alpha=opacity,
        linestyle=dashes,
        marker=marker,
        markersize=5,
        label=label,
        zorder=order,
    )


def _draw_bars(axes: Axes, rows: Any, values: Any, lower: Any, upper: Any, *, points: bool) -> None:
    if points:
        axes.plot(values, rows, "o", color=SERIES[0], markersize=7, zorder=3)
    else:
        axes.barh(rows, np.nan_to_num(values), height=0.6, color=SERIES[0], alpha=0.75, zorder=2)
    if lower is not None and upper is not None:
        axes.hlines(rows, _numbers(lower), _numbers(upper), color=SERIES[0] if points else INK, linewidth=1.8, zorder=3)
    for row, value in zip(rows, values, strict=True):
        if not math.isfinite(value):
            axes.text(0.01, row, "no data", color=MUTED, va="center", transform=axes.get_yaxis_transform())


def _numbers(values: Sequence[float | None]) -> Any:
    """Values as floats, `(n,)`; what is None or not finite becomes NaN, which matplotlib does not draw."""
    array = np.array([math.nan if value is None else float(value) for value in values], dtype=float)
    array[~np.isfinite(array)] = math.nan
    return array


def _finite(values: Sequence[float | None]) -> Any:
    array = _numbers(values)
    return array[np.isfinite(array)]


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH_INCHES, height))
    figure.patch.set_alpha(0.0)
    return figure


def _arrange(figure: Figure, title: str, *, left_label: int = 0) -> None:
    """Title and margins.

    Args:
        figure: With everything drawn on it.
        title: Its title.
        left_label: Characters of the longest label on the left; 0 for numbers.
    """
    width, height = figure.get_size_inches()
    legends = [legend for axes in figure.axes if (legend := axes.get_legend())]
    longest = max((len(text.get_text()) for legend in legends for text in legend.get_texts()), default=0)
    left = max(_LEFT_INCHES, 0.25 + _LABEL_INCHES * left_label)
    right = 0.8 + _LEGEND_INCHES * longest if longest else 0.2
    figure.subplots_adjust(
        left=left / width,
        right=max(1.0 - right / width, left / width + 0.2),
        top=1.0 - _TOP_INCHES / height,
        bottom=_BOTTOM_INCHES / height,
        hspace=0.12,
    )
    figure.suptitle(title, x=0.01, y=1.0 - 0.07 / height, ha="left", va="top", fontsize=11, fontweight="bold")
    for axes in figure.axes:
        axes.patch.set_alpha(0.0)


def _legend(axes: Axes) -> None:
    """A legend to the right of the panel, where it hides no data; none for a single unnamed series."""
    handles, labels = axes.get_legend_handles_labels()
    if any(labels):
        axes.legend(
            handles,
            labels,
            loc="upper left",
            bbox_to_anchor=(1.005, 1.02),
            frameon=False,
            fontsize=8.5,
            handlelength=2.6,
        )


def _label(text: str, longest: int = 44) -> str:
    """A name that fits beside a chart; matplotlib would leave names with a leading underscore out of the legend."""
    text = " ".join(text.split())
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return "\u200b" + text if text.startswith("_") else text
