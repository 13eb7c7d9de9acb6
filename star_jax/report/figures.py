"""Draws the series; svg.py makes them a part of the page. `picture` is the figure of accuracy by itself, a PNG."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.style
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from star_jax.report import series
from star_jax.report.load import Run
from star_jax.report.series import Group, Kept, Loss, Point, Steps
from star_jax.report.svg import GRID, INK, MARKERS, SERIES, SERIES_COLOURS, STYLE, Key, Plot, render
from star_jax.report.texts import visible

MOST_BARS_BY_CLASS = 40  # more bars than this would be too thin to read: then one bar an iteration
MOST_PANELS = 12
MOST_POINTS_A_LINE = 400  # a curve has no more pixels than this


def accuracy(run: Run, prefix: str) -> Plot | None:
    """Accuracy of each class by iteration with 95 % intervals, and the mean of classes; None: no evaluation yet."""
    if not has_accuracy(run):
        return None
    legend: list[Key] = []

    def draw(axes: Axes) -> None:
        legend.extend(_accuracy_lines(axes, run))

    return Plot(render(draw, prefix, "Accuracy by class against the iteration", height=3.4), tuple(legend))


def has_accuracy(run: Run) -> bool:
    """Whether the run has an evaluation to draw."""
    return bool(series.accuracy_series(run) or series.mean_series(run))


def picture(runs: Mapping[str, Run], light: Mapping[str, str]) -> bytes:
    """The figure of `accuracy` as a PNG with its legend: one panel a run, titled by its name where there are several.

    `light`: the page's variables on a light screen. Every run must have an evaluation; see `has_accuracy`.
    """
    style: dict[str, Any] = {
        **{key: {INK: light["ink"], GRID: light["grid"]}.get(str(value), value) for key, value in STYLE.items()},
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


def overlay(groups: Sequence[Group], prefix: str) -> Plot | None:
    """The mean of classes of each group of runs by iteration; None: no run has an evaluation yet."""
    return _spreads(groups, None, prefix, "Mean accuracy of each run against the iteration", small=False)


def overlays(groups: Sequence[Group], prefix: str) -> dict[str, Plot]:
    """Class -> the accuracy of each group of runs by iteration; empty where there is one class, or too many."""
    labels = list(dict.fromkeys(label for group in groups for run in group.runs for label in run.classes))
    if not 1 < len(labels) <= MOST_PANELS:
        return {}
    plots = {
        label: _spreads(groups, label, f"{prefix}{place}-", "Accuracy against the iteration", small=True)
        for place, label in enumerate(labels)
    }
    return {label: plot for label, plot in plots.items() if plot}


def _spreads(groups: Sequence[Group], label: str | None, prefix: str, title: str, small: bool) -> Plot | None:
    """A line a group, and where it has several runs a band from the lowest to the highest of them."""
    drawn = [(group, points) for group in groups if (points := group.spread(label))]
    if not drawn:
        return None
    legend: list[Key] = []

    def draw(axes: Axes) -> None:
        for index, (group, points) in enumerate(drawn):
            several = len(group.runs) > 1
            name = ", ".join(group.names) + (f": mean and range of {len(group.runs)}" if several else "")
            legend.append(_accuracy_line(axes, index, name, points, shift=0.0, intervals=False))
            if several:
                xs, low, high = zip(
                    *((p.iteration, 100 * (p.low or 0), 100 * (p.high or 0)) for p in points), strict=True
                )
                axes.fill_between(xs, low, high, color=SERIES[index % SERIES_COLOURS], alpha=0.2, linewidth=0)
        _accuracy_axes(axes, [p.iteration for _, points in drawn for p in points])

    size = {"height": 2.2, "width": 3.3} if small else {"height": 3.2}
    return Plot(render(draw, prefix, title, **size), tuple(legend))


def steps(solutions: Sequence[Steps], prefix: str) -> Plot | None:
    """Steps of right solutions against their references', by the area of a dot a pair; None: nothing to draw."""
    if not solutions:
        return None
    legend: list[Key] = []

    def draw(axes: Axes) -> None:
        most = max(max(pair) for each in solutions for pair in each.pairs)
        fullest = max(each.pairs.most_common(1)[0][1] for each in solutions)
        axes.plot((0, most), (0, most), color=GRID, linewidth=1.2)
        for place, each in enumerate(solutions):
            # Side by side where there are two: of a pair that both have, neither hides the other.
            shift = 0.16 * (place - (len(solutions) - 1) / 2)
            xs, ys = zip(*((reference + shift, own) for reference, own in each.pairs), strict=True)
            areas = [max(4.0, 180 * count / fullest) for count in each.pairs.values()]
            axes.scatter(xs, ys, s=areas, color=SERIES[place], alpha=0.75, linewidth=0)
            name = f"iteration {each.iteration}" if each.iteration else "base"
            note = f"{100 * each.equal / each.problems:.1f} % equal, {100 * each.shorter / each.problems:.1f} % shorter"
            legend.append(Key(name, f"var(--series-{place})", "fill", note=f"{note}, of {each.problems:,} solved"))
        axes.set_xlabel("steps of the reference")
        axes.set_ylabel("steps of the model")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(8, integer=True))
        axes.margins(0.08)

    return Plot(render(draw, prefix, "Steps of the model's right solutions and of the references", 3.4), tuple(legend))


def kept(run: Run, prefix: str) -> Plot | None:
    """Examples kept by iteration, stacked by source, before the number of problems; None: nothing filtered yet."""
    totals, by_category = series.kept_series(run), series.kept_by_class_series(run)
    if not totals:
        return None
    broken_down = 0 < len(by_category) <= MOST_BARS_BY_CLASS
    bars = by_category if broken_down else totals
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
    return Plot(render(draw, prefix, title, height=3.0), tuple(legend))


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
            axes.plot(steps, losses, color=SERIES[0], alpha=opacity, marker=marker, linewidth=1.4)
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

    return Plot(render(draw, prefix, title, height=2.7), tuple(legend))


def _accuracy_lines(axes: Axes, run: Run) -> list[Key]:
    """Draws the accuracy of each class and their mean; returns the legend, an entry a line."""
    by_category, mean = series.accuracy_series(run), series.mean_series(run)
    introduced = series.introductions(run)
    if len(set(introduced.values())) < 2:
        introduced = {}  # all from the first: nothing to tell
    intervals = len(by_category) <= SERIES_COLOURS
    legend = []
    for index, (label, points) in enumerate(by_category.items()):
        # A little to the side of each other, so that intervals of equal accuracies do not hide one another.
        shift = 0.05 * (index - (len(by_category) - 1) / 2) if intervals else 0.0
        since = introduced.get(label, 0)
        legend.append(_accuracy_line(axes, index, label or "all problems", points, shift, intervals, since))
    if len(by_category) != 1 and mean:
        xs, ys = [p.iteration for p in mean], [100 * p.accuracy for p in mean]
        ink = matplotlib.rcParams["text.color"]
        axes.plot(xs, ys, color=ink, linestyle="--", linewidth=1.3, marker="o", markersize=2)
        legend.append(Key("mean of classes", shape="dashed", note=_first_to_last(mean)))
    _accuracy_axes(axes, [p.iteration for points in (*by_category.values(), mean) for p in points])
    return legend


def _accuracy_line(
    axes: Axes,
    index: int,
    label: str,
    points: Sequence[Point],
    shift: float,
    intervals: bool,
    since: int | None = 0,
) -> Key:
    """Draws one accuracy line, with its intervals where it has them; returns its legend entry.

    `since`: the first iteration that trained on it (None: none did); the markers before are hollow.
    """
    colours = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]  # the page's stand-ins, or a picture's own
    colour, marker = colours[index % SERIES_COLOURS], list(MARKERS)[index % len(MARKERS)]
    xs, ys = [p.iteration + shift for p in points], [100 * p.accuracy for p in points]
    early = [place for place, p in enumerate(points) if since is None or (since > 1 and p.iteration < since)]
    axes.plot(xs, ys, color=colour, marker=marker, markevery=[i for i in range(len(xs)) if i not in early])
    if early:
        places = [xs[place] for place in early], [ys[place] for place in early]
        axes.scatter(*places, 22, marker=marker, facecolor="none", edgecolor=colour, linewidth=1.2)
    for x, point in zip(xs, points, strict=True):
        if intervals and point.low is not None and point.high is not None:
            axes.vlines(x, 100 * point.low, 100 * point.high, color=colour, alpha=0.45, linewidth=2.2)
    note = _first_to_last(points)
    if since is None:
        note += ", not trained on"
    elif since > 1:
        note += f", trained on from iteration {since} on"
    return Key(label, f"var(--series-{index % SERIES_COLOURS})", marker=MARKERS[marker], note=note)


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
            axes.bar(x, bar.problems, 0.92 * width, facecolor="none", edgecolor=INK, linewidth=0.5, alpha=0.45)
        bottom = 0.0
        for amount, opacity in ((bar.sampled, 1.0), (bar.rationalized, 0.45), (bar.reference, 0.2)):
            if amount:
                colour = SERIES[place % SERIES_COLOURS]
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
