"""Draws the series as SVG that sits inside the page: its colours are the page's CSS variables, its ids are its own.

Text that comes from a run (class labels, run names) never gets into such an SVG: it stands in the HTML legend,
which wraps on a narrow screen and is escaped like the rest of the page. What matplotlib writes there is numbers and
ours. `picture` is the figure of accuracy by itself, a PNG with everything in it, drawn by the same functions.
"""

import dataclasses
import io
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.style
from cycler import cycler
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from star_jax.report import series
from star_jax.report.load import Run
from star_jax.report.series import Kept, Loss, Point
from star_jax.report.texts import visible

SERIES_COLOURS = 8  # page.css defines --series-0 .. --series-7, for light and for dark
MOST_BARS_BY_CLASS = 40  # more bars than this would be too thin to read: then one bar an iteration
MOST_POINTS_A_LINE = 400  # a curve has no more pixels than this

# matplotlib wants colours, the page wants variables: each stand-in below is replaced in the finished SVG.
_INK, _GRID = "#0a0b01", "#0a0b02"
_SERIES = tuple(f"#0a0c{index:02x}" for index in range(SERIES_COLOURS))
_VARIABLES = {_INK: "currentColor", _GRID: "var(--grid)"} | {
    colour: f"var(--series-{index})" for index, colour in enumerate(_SERIES)
}
# matplotlib's name of a marker -> the same marker as a path around (0, 0), for the legend.
_MARKERS = {
    "o": "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0 -6 0Z",
    "s": "M-3 -3H3V3H-3Z",
    "^": "M0 -3.6L3.6 3H-3.6Z",
    "D": "M0 -4L4 0L0 4L-4 0Z",
    "v": "M0 3.6L3.6 -3H-3.6Z",
}
_STYLE = {
    "svg.fonttype": "none",  # text stays text: it can be searched, and takes the page's font and colour
    "svg.hashsalt": "star_jax",  # the same run gives the same bytes
    "text.parse_math": False,
    "font.size": 9.5,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=_SERIES),
    "axes.grid.axis": "y",
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


@dataclasses.dataclass(frozen=True)
class Key:
    """One entry of a figure's legend."""

    label: str
    colour: str = "currentColor"  # CSS
    shape: str = "line"  # "line", "dashed", "fill" or "outline"
    marker: str = ""  # an SVG path around (0, 0), drawn on a line
    opacity: float = 1.0
    note: str = ""  # what the line comes to, in words


@dataclasses.dataclass(frozen=True)
class Plot:
    """A finished figure; `svg` is safe markup, the legend's texts are not."""

    svg: Markup
    legend: tuple[Key, ...]


def accuracy(run: Run, prefix: str) -> Plot | None:
    """Accuracy of each class by iteration with 95 % intervals, and the mean of classes; None: no evaluation yet."""
    if not has_accuracy(run):
        return None
    legend: list[Key] = []

    def draw(axes: Axes) -> None:
        legend.extend(_accuracy_lines(axes, run))

    return Plot(_svg(draw, prefix, "Accuracy by class against the iteration", height=3.4), tuple(legend))


def has_accuracy(run: Run) -> bool:
    """Whether the run has an evaluation to draw."""
    return bool(series.accuracy_series(run) or series.mean_series(run))


def picture(runs: Mapping[str, Run], light: Mapping[str, str]) -> bytes:
    """The figure of `accuracy` as a PNG with its legend: one panel a run, titled by its name where there are several.

    `light`: the page's variables on a light screen. Every run must have an evaluation; see `has_accuracy`.
    """
    style: dict[str, Any] = {
        **{key: {_INK: light["ink"], _GRID: light["grid"]}.get(str(value), value) for key, value in _STYLE.items()},
        "axes.prop_cycle": cycler(color=[light[f"series-{index}"] for index in range(SERIES_COLOURS)]),
    }
    lines = max(len(series.accuracy_series(run)) for run in runs.values()) + 1
    with matplotlib.style.context(["default", style]):
        figure = Figure(figsize=(5.6 * len(runs), 3.2 + 0.2 * math.ceil(lines / 2)), layout="constrained")
        panels = figure.subfigures(1, len(runs), squeeze=False)[0]
        for panel, (name, run) in zip(panels, runs.items(), strict=True):
            axes = panel.subplots()
            labels = [f"{visible(key.label)}  {key.note}" for key in _accuracy_lines(axes, run)]
            panel.legend(axes.lines, labels, loc="outside lower center", ncols=2, frameon=False)
            if len(runs) > 1:
                axes.set_title(visible(name))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=160, facecolor=light["page"])
    return buffer.getvalue()


def overlay(names: Sequence[str], runs: Sequence[Run], prefix: str) -> Plot | None:
    """The mean of classes of each run by iteration; None: no run has an evaluation yet."""
    drawn = [(name, mean) for name, run in zip(names, runs, strict=True) if (mean := series.mean_series(run))]
    if not drawn:
        return None
    legend: list[Key] = []

    def draw(axes: Axes) -> None:
        for index, (name, points) in enumerate(drawn):
            legend.append(_accuracy_line(axes, index, name, points, shift=0.0, intervals=False))
        _accuracy_axes(axes, [p.iteration for _, points in drawn for p in points])

    return Plot(_svg(draw, prefix, "Mean accuracy of each run against the iteration", height=3.2), tuple(legend))


def kept(run: Run, prefix: str) -> Plot | None:
    """Examples kept by iteration, stacked by source, before the number of problems; None: nothing filtered yet."""
    totals, by_class = series.kept_series(run), series.kept_by_class_series(run)
    if not totals:
        return None
    broken_down = 0 < len(by_class) <= MOST_BARS_BY_CLASS
    bars = by_class if broken_down else totals
    legend: list[Key] = []

    def draw(axes: Axes) -> None:
        legend.extend(_kept_bars(axes, bars))
        axes.set_xlabel("iteration")
        axes.set_ylabel("examples kept")
        axes.set_xticks(sorted({bar.iteration for bar in bars}))
        axes.tick_params(axis="x", length=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))

    title = (
        "Examples kept by iteration, by class and source" if broken_down else "Examples kept by iteration, by source"
    )
    return Plot(_svg(draw, prefix, title, height=3.0), tuple(legend))


def loss(lines: Sequence[Loss], prefix: str, title: str) -> Plot | None:
    """Training loss against the step, one line an entry, the later the stronger; None: nothing to draw."""
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    values = [value for line in lines for _, value in line.points]
    legend: list[Key] = []

    def draw(axes: Axes) -> None:
        for index, line in enumerate(lines):
            opacity = 1.0 if len(lines) == 1 else 0.3 + 0.7 * index / (len(lines) - 1)
            steps, losses = zip(*_thin(line.points), strict=True)
            marker = "o" if len(steps) == 1 else ""
            axes.plot(steps, losses, color=_SERIES[0], alpha=opacity, marker=marker, linewidth=1.4)
            label = f"iteration {line.iteration}" if line.stage == series.FINE_TUNE else line.stage or "training"
            note = f"{losses[0]:.3g} → {losses[-1]:.3g}"
            if line.not_finite:
                note += f", {line.not_finite} not finite"
            legend.append(Key(label, "var(--series-0)", opacity=opacity, note=note))
        axes.set_xlabel("step")
        axes.set_ylabel("loss (nats a token)")
        if min(values) > 0 and max(values) > 20 * min(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))

    return Plot(_svg(draw, prefix, title, height=2.7), tuple(legend))


def _accuracy_lines(axes: Axes, run: Run) -> list[Key]:
    """Draws the accuracy of each class and their mean; returns the legend, an entry a line."""
    by_class, mean = series.accuracy_series(run), series.mean_series(run)
    intervals = len(by_class) <= SERIES_COLOURS
    legend = []
    for index, (label, points) in enumerate(by_class.items()):
        # A little to the side of each other, so that intervals of equal accuracies do not hide one another.
        shift = 0.05 * (index - (len(by_class) - 1) / 2) if intervals else 0.0
        legend.append(_accuracy_line(axes, index, label or "all problems", points, shift, intervals))
    if len(by_class) != 1 and mean:
        xs, ys = [p.iteration for p in mean], [100 * p.accuracy for p in mean]
        ink = matplotlib.rcParams["text.color"]
        axes.plot(xs, ys, color=ink, linestyle="--", linewidth=1.3, marker="o", markersize=2)
        legend.append(Key("mean of classes", shape="dashed", note=_first_to_last(mean)))
    _accuracy_axes(axes, [p.iteration for points in (*by_class.values(), mean) for p in points])
    return legend


def _accuracy_line(axes: Axes, index: int, label: str, points: Sequence[Point], shift: float, intervals: bool) -> Key:
    """Draws one accuracy line, with its intervals where it has them; returns its legend entry."""
    colours = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]  # the page's stand-ins, or a picture's own
    colour, marker = colours[index % SERIES_COLOURS], list(_MARKERS)[index % len(_MARKERS)]
    xs, ys = [p.iteration + shift for p in points], [100 * p.accuracy for p in points]
    axes.plot(xs, ys, color=colour, marker=marker)
    for x, point in zip(xs, points, strict=True):
        if intervals and point.low is not None and point.high is not None:
            axes.vlines(x, 100 * point.low, 100 * point.high, color=colour, alpha=0.45, linewidth=2.2)
    note = _first_to_last(points)
    return Key(label, f"var(--series-{index % SERIES_COLOURS})", marker=_MARKERS[marker], note=note)


def _accuracy_axes(axes: Axes, iterations: Sequence[int]) -> None:
    axes.set_ylim(-3, 103)
    axes.set_yticks(range(0, 101, 20), [f"{value} %" for value in range(0, 101, 20)])
    axes.set_ylabel("accuracy")
    axes.set_xlabel("iteration")
    first, last = min(iterations), max(iterations)
    axes.set_xlim(first - 0.35, last + 0.35)
    stride = max(1, math.ceil((last - first) / 10))
    ticks = range(first, last + 1, stride)
    axes.set_xticks(ticks, ["base" if tick == 0 else str(tick) for tick in ticks])


def _kept_bars(axes: Axes, bars: Sequence[Kept]) -> list[Key]:
    """Draws the stacked bars, those of an iteration side by side; returns the legend."""
    labels = list(dict.fromkeys(bar.label for bar in bars))
    width = 0.84 / len(labels)
    for bar in bars:
        place = labels.index(bar.label)
        x = bar.iteration + (place - (len(labels) - 1) / 2) * width
        if bar.problems is not None:
            axes.bar(x, bar.problems, 0.92 * width, facecolor="none", edgecolor=_INK, linewidth=0.5, alpha=0.45)
        bottom = 0.0
        for amount, opacity in ((bar.sampled, 1.0), (bar.rationalized, 0.45), (bar.reference, 0.2)):
            if amount:
                colour = _SERIES[place % SERIES_COLOURS]
                axes.bar(x, amount, 0.92 * width, bottom, color=colour, alpha=opacity, linewidth=0)
                bottom += amount
    colour = "currentColor" if len(labels) > 1 else "var(--series-0)"
    legend = [Key("sampled", colour, "fill"), Key("rationalized", colour, "fill", opacity=0.45)]
    if any(bar.reference for bar in bars):
        legend.append(Key("reference answer", colour, "fill", opacity=0.2))
    if any(bar.problems is not None for bar in bars):
        legend.append(Key("problems there are", shape="outline"))
    if len(labels) > 1:
        colours = [f"var(--series-{place % SERIES_COLOURS})" for place in range(len(labels))]
        legend += [Key(label or "no class", colour, "fill") for label, colour in zip(labels, colours, strict=True)]
    return legend


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Every k-th point and the last one, so that no more than about MOST_POINTS_A_LINE are left."""
    stride = max(1, math.ceil(len(points) / MOST_POINTS_A_LINE))
    thinned = list(points[::stride])
    return thinned if thinned[-1] == points[-1] else [*thinned, points[-1]]


def _first_to_last(points: Sequence[Point]) -> str:
    first, last = (f"{100 * point.accuracy:.1f}" for point in (points[0], points[-1]))
    return f"{last} %" if len(points) == 1 else f"{first} → {last} %"


def _svg(draw: Callable[[Axes], None], prefix: str, title: str, height: float) -> Markup:
    """Draws on fresh axes of 6 x `height` inches and returns the SVG element, every id in it begun with `prefix`."""
    with matplotlib.style.context(["default", _STYLE]):
        figure = Figure(figsize=(6.0, height))
        # Fixed margins in inches: with room for labels that CSS enlarges on a narrow screen.
        axes = figure.add_axes((0.9 / 6, 0.55 / height, 5.0 / 6, 1 - 0.7 / height))
        draw(axes)
        axes.yaxis.set_label_coords(-0.66 / 5.0, 0.5)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(buffer.getvalue())
    _adapt(root, prefix)
    root.attrib = {"class": "plot", "viewBox": root.attrib["viewBox"], "role": "img", "aria-label": title}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _adapt(root: ElementTree.Element, prefix: str) -> None:
    """Turns matplotlib's document into a part of an HTML page, in place."""
    for parent in list(root.iter()):
        for child in list(parent):
            # Its style element speaks for every element of whatever page it lands on; page.css has the rule.
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {
            name.rpartition("}")[2]: _attribute(name.rpartition("}")[2], value, prefix)
            for name, value in element.attrib.items()
        }


def _attribute(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return prefix + value
    if name == "href":
        return f"#{prefix}{value[1:]}"
    if name == "style":
        # The font is the page's: page.css sets it, and its size by the width of the screen.
        declarations = (part.strip() for part in value.split(";"))
        value = "; ".join(part for part in declarations if not part.startswith("font"))
    for stand_in, variable in _VARIABLES.items():
        value = value.replace(stand_in, variable)
    return re.sub(r"url\(#", f"url(#{prefix}", value)
