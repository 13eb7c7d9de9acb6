"""Draws the series as figures of the page; `accuracy_png` draws the figure of accuracy as a PNG."""

import dataclasses
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

from star_jax.records import LABELS, Source
from star_jax.report.figures import readings, series
from star_jax.report.figures.series import KeptCounts, LossCurve, Point, RunGroup, StepCounts
from star_jax.report.figures.svg import GRID, INK, MARKERS, SERIES, SERIES_COLOURS, STYLE, LegendKey, Plot, render
from star_jax.report.run_data import RunData
from star_jax.terminal import visible

MAX_CATEGORY_BARS = 40  # with more, bars would be too thin to read: then one bar for each iteration
MAX_PANELS = 12
MAX_BANDS = 4  # more of them would cover each other
MAX_LINE_POINTS = 400  # a line has no more pixels than this


def accuracy(run: RunData, prefix: str) -> Plot | None:
    """Accuracy of each category by iteration with 95 % intervals, and of all; None before the first evaluation."""
    if not has_accuracy(run):
        return None
    legend: list[LegendKey] = []

    def draw(axes: Axes) -> None:
        legend.extend(_accuracy_lines(axes, run))

    return Plot(
        render(draw, prefix, "Accuracy by category against the iteration", height=3.4), tuple(legend), readings.ACCURACY
    )


def has_accuracy(run: RunData) -> bool:
    """True if the run has an evaluation to draw."""
    return bool(series.accuracy_series(run) or series.overall_series(run))


def accuracy_png(runs: Mapping[str, RunData], colours: Mapping[str, str]) -> bytes:
    """The figure of `accuracy` with its legend as a PNG: one panel for each run, titled if there are several.

    Args:
      runs: by name; each must have an evaluation (see `has_accuracy`).
      colours: CSS variable of page.css -> colour.
    """
    style: dict[str, Any] = {
        **{key: {INK: colours["ink"], GRID: colours["grid"]}.get(str(value), value) for key, value in STYLE.items()},
        "axes.prop_cycle": cycler(color=[colours[f"series-{index}"] for index in range(SERIES_COLOURS)]),
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
        figure.savefig(buffer, format="png", dpi=160, facecolor=colours["page"])
    return buffer.getvalue()


def accuracy_overlay(groups: Sequence[RunGroup], prefix: str) -> Plot | None:
    """Accuracy over all problems by iteration, one line for each group of runs; None before the first evaluation."""
    return _group_lines(groups, None, prefix, "Accuracy of each run against the iteration", small=False)


@dataclasses.dataclass(frozen=True)
class SeedDots:
    """One row of `seed_dots`: the runs of an arm of a study."""

    number: int  # of the row; names stand in the legend
    name: str
    accuracies: tuple[float, ...]  # of its seeds, at least one
    is_reference: bool


def seed_dots(rows: Sequence[SeedDots], prefix: str) -> Plot:
    """The accuracy of each seed as a dot, their mean as a bar, one row for each arm. `rows`: at least one."""
    legend: list[LegendKey] = []

    def draw(axes: Axes) -> None:
        for row in rows:
            index = 1 if row.is_reference else 0
            values = [100 * accuracy for accuracy in row.accuracies]
            mean = sum(values) / len(values)
            axes.scatter(values, [row.number] * len(values), 26, color=SERIES[index], alpha=0.6, linewidth=0)
            axes.vlines(mean, row.number - 0.32, row.number + 0.32, color=SERIES[index], linewidth=2.2)
            name = f"{row.number}: {row.name}" + " (reference)" * row.is_reference
            spread = f", {min(values):.1f} to {max(values):.1f}\u00a0%" if len(values) > 1 else ""
            legend.append(LegendKey(name, f"var(--series-{index})", "fill", note=f"mean {mean:.1f}\u00a0%{spread}"))
        axes.set_yticks([row.number for row in rows], [str(row.number) for row in rows])
        axes.set_ylim(rows[-1].number + 0.6, rows[0].number - 0.6)
        axes.grid(axis="x")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
        axes.set_xlabel("accuracy")
        axes.set_ylabel("arm")

    title = "Accuracy of each run by arm"
    return Plot(render(draw, prefix, title, height=1.0 + 0.3 * len(rows)), tuple(legend), readings.SEED_DOTS)


def category_overlays(groups: Sequence[RunGroup], prefix: str) -> dict[str, Plot]:
    """Category -> accuracy by iteration, one line for each group of runs; empty for one category or too many."""
    categories = list(dict.fromkeys(category for group in groups for run in group.runs for category in run.categories))
    if not 1 < len(categories) <= MAX_PANELS:
        return {}
    plots = {
        category: _group_lines(groups, category, f"{prefix}{index}-", "Accuracy against the iteration", small=True)
        for index, category in enumerate(categories)
    }
    return {category: plot for category, plot in plots.items() if plot}


def solution_steps(counts: Sequence[StepCounts], prefix: str) -> Plot | None:
    """Steps of right solutions against the references' steps: dots whose area is the number of problems.

    None if there is nothing to draw.
    """
    if not counts:
        return None
    legend: list[LegendKey] = []

    def draw(axes: Axes) -> None:
        most_steps = max(max(pair) for each in counts for pair in each.pairs)
        most_problems = max(each.pairs.most_common(1)[0][1] for each in counts)
        axes.plot((0, most_steps), (0, most_steps), color=GRID, linewidth=1.2)
        for index, each in enumerate(counts):
            # Shifted, so that the dots of two iterations do not cover each other.
            shift = 0.16 * (index - (len(counts) - 1) / 2)
            xs, ys = zip(*((reference + shift, model) for reference, model in each.pairs), strict=True)
            areas = [max(4.0, 180 * count / most_problems) for count in each.pairs.values()]
            axes.scatter(xs, ys, s=areas, color=SERIES[index], alpha=0.75, linewidth=0)
            name = f"iteration {each.iteration}" if each.iteration else "base"
            equal, shorter = (100 * number / each.problems for number in (each.equal, each.shorter))
            note = f"{equal:.1f} % equal, {shorter:.1f} % shorter, of {each.problems:,} solved"
            legend.append(LegendKey(name, f"var(--series-{index})", "fill", note=note))
        axes.set_xlabel("steps of the reference")
        axes.set_ylabel("steps of the model")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(8, integer=True))
        axes.margins(0.08)

    title = "Steps of the model's right solutions and of the references"
    return Plot(render(draw, prefix, title, height=3.4), tuple(legend), readings.STEPS)


def kept(run: RunData, prefix: str) -> Plot | None:
    """Kept examples by iteration, stacked by source, within the number of problems; None before the first filter."""
    totals, by_category = series.kept_series(run), series.kept_by_category_series(run)
    if not totals:
        return None
    with_categories = 0 < len(by_category) <= MAX_CATEGORY_BARS
    bars = by_category if with_categories else totals
    legend: list[LegendKey] = []

    def draw(axes: Axes) -> None:
        legend.extend(_kept_bars(axes, bars))
        axes.set_xlabel("iteration")
        axes.set_ylabel("examples kept")
        axes.set_xticks(sorted({bar.iteration for bar in bars}))
        axes.tick_params(axis="x", length=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))

    title = f"Examples kept by iteration, by {'category and source' if with_categories else 'source'}"
    return Plot(render(draw, prefix, title, height=3.0), tuple(legend), readings.KEPT)


def loss(curves: Sequence[LossCurve], prefix: str, title: str) -> Plot | None:
    """Training loss against the step, later curves in stronger colour; None if there is nothing to draw."""
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return None
    values = [value for curve in curves for _, value in curve.points]
    reading = readings.LOSS if curves[0].stage == series.FINE_TUNE else readings.BASE_LOSS
    legend: list[LegendKey] = []

    def draw(axes: Axes) -> None:
        for index, curve in enumerate(curves):
            opacity = 1.0 if len(curves) == 1 else 0.3 + 0.7 * index / (len(curves) - 1)
            steps, losses = zip(*_thinned(curve.points), strict=True)
            marker = "o" if len(steps) == 1 else ""
            axes.plot(steps, losses, color=SERIES[0], alpha=opacity, marker=marker, linewidth=1.4)
            label = f"iteration {curve.iteration}" if curve.stage == series.FINE_TUNE else curve.stage or "training"
            note = f"{losses[0]:.3g} → {losses[-1]:.3g}"
            if curve.not_finite:
                note += f", {curve.not_finite} not finite"
            legend.append(LegendKey(label, "var(--series-0)", opacity=opacity, note=note))
        axes.set_xlabel("step")
        axes.set_ylabel("loss (nats per token)")
        if min(values) > 0 and max(values) > 20 * min(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))

    return Plot(render(draw, prefix, title, height=2.7), tuple(legend), reading)


def _accuracy_lines(axes: Axes, run: RunData) -> list[LegendKey]:
    """Draws the accuracy of each category and of all problems; returns the legend in the same order."""
    by_category, overall = series.accuracy_series(run), series.overall_series(run)
    first_trained = series.first_trained_on(run)
    if len(set(first_trained.values())) < 2:
        first_trained = {}  # all categories from the same iteration: nothing to show
    intervals = len(by_category) <= SERIES_COLOURS
    legend = []
    for index, (category, points) in enumerate(by_category.items()):
        # Shifted, so that the intervals of equal accuracies do not cover each other.
        shift = 0.05 * (index - (len(by_category) - 1) / 2) if intervals else 0.0
        since = first_trained.get(category, 0)
        legend.append(_accuracy_line(axes, index, category or "all problems", points, shift, intervals, since))
    if len(by_category) != 1 and overall:
        xs, ys = [p.iteration for p in overall], [100 * p.accuracy for p in overall]
        ink = matplotlib.rcParams["text.color"]
        axes.plot(xs, ys, color=ink, linestyle="--", linewidth=1.3, marker="o", markersize=2)
        legend.append(LegendKey("all problems", shape="dashed", note=_first_to_last(overall)))
    _accuracy_axes(axes, [p.iteration for points in (*by_category.values(), overall) for p in points])
    return legend


def _group_lines(groups: Sequence[RunGroup], category: str | None, prefix: str, title: str, small: bool) -> Plot | None:
    """One line for each group; of a few groups, those of several runs have a band from lowest to highest accuracy."""
    with_points = [(group, points) for group in groups if (points := group.spread(category))]
    if not with_points:
        return None
    legend: list[LegendKey] = []

    def draw(axes: Axes) -> None:
        for index, (group, points) in enumerate(with_points):
            several = len(group.runs) > 1
            name = ", ".join(group.names) + (f": mean and range of {_run_counts(points)}" if several else "")
            legend.append(_accuracy_line(axes, index, name, points, shift=0.0, intervals=False))
            if several and len(with_points) <= MAX_BANDS:
                bounds = ((p.iteration, 100 * (p.low or 0), 100 * (p.high or 0)) for p in points)
                xs, low, high = zip(*bounds, strict=True)
                axes.fill_between(xs, low, high, color=SERIES[index % SERIES_COLOURS], alpha=0.2, linewidth=0)
        _accuracy_axes(axes, [p.iteration for _, points in with_points for p in points])

    overlay = readings.OVERLAY if len(with_points) <= MAX_BANDS else readings.MANY_LINES
    reading = readings.CATEGORY_OVERLAYS if small else overlay
    size = {"height": 2.2, "width": 3.3} if small else {"height": 3.2}
    return Plot(render(draw, prefix, title, **size), tuple(legend), reading)


def _accuracy_line(
    axes: Axes,
    index: int,
    label: str,
    points: Sequence[Point],
    shift: float,
    intervals: bool,
    since: int | None = 0,
) -> LegendKey:
    """Draws one line of accuracy, with intervals if it has them; returns its legend entry.

    `since`: the first iteration that trained on the category (None: none did). Earlier markers are hollow.
    """
    colours = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]  # the page's placeholders, or those of a PNG
    colour, marker = colours[index % SERIES_COLOURS], list(MARKERS)[index % len(MARKERS)]
    xs, ys = [p.iteration + shift for p in points], [100 * p.accuracy for p in points]
    hollow = [i for i, p in enumerate(points) if since is None or (since > 1 and p.iteration < since)]
    axes.plot(xs, ys, color=colour, marker=marker, markevery=[i for i in range(len(xs)) if i not in hollow])
    if hollow:
        hollow_xs, hollow_ys = [xs[i] for i in hollow], [ys[i] for i in hollow]
        axes.scatter(hollow_xs, hollow_ys, 22, marker=marker, facecolor="none", edgecolor=colour, linewidth=1.2)
    for x, point in zip(xs, points, strict=True):
        if intervals and point.low is not None and point.high is not None:
            axes.vlines(x, 100 * point.low, 100 * point.high, color=colour, alpha=0.45, linewidth=2.2)
    note = _first_to_last(points)
    if since is None:
        note += ", not trained on"
    elif since > 1:
        note += f", trained on from iteration {since} on"
    return LegendKey(label, f"var(--series-{index % SERIES_COLOURS})", marker=MARKERS[marker], note=note)


def _run_counts(points: Sequence[Point]) -> str:
    """How many runs each point has: "3 runs", or "3 runs (2 at iterations 4, 5)"."""
    most = max(point.runs for point in points)
    iterations: dict[int, list[str]] = {}
    for point in points:
        if point.runs < most:
            iterations.setdefault(point.runs, []).append(str(point.iteration or "base"))
    fewer = "; ".join(
        f"{runs} at {'iteration' if len(names) == 1 else 'iterations'} {', '.join(names)}"
        for runs, names in sorted(iterations.items(), reverse=True)
    )
    return f"{most} runs" + (f" ({fewer})" if fewer else "")


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


def _kept_bars(axes: Axes, bars: Sequence[KeptCounts]) -> list[LegendKey]:
    """Draws the stacked bars, those of an iteration side by side; returns the legend."""
    categories = list(dict.fromkeys(bar.category for bar in bars))
    width = 0.84 / len(categories)
    for bar in bars:
        index = categories.index(bar.category)
        x = bar.iteration + (index - (len(categories) - 1) / 2) * width
        if bar.problems is not None:
            axes.bar(x, bar.problems, 0.92 * width, facecolor="none", edgecolor=INK, linewidth=0.5, alpha=0.45)
        bottom = 0.0
        for amount, opacity in ((bar.sampled, 1.0), (bar.rationalized, 0.45), (bar.reference, 0.2)):
            if amount:
                colour = SERIES[index % SERIES_COLOURS]
                axes.bar(x, amount, 0.92 * width, bottom, color=colour, alpha=opacity, linewidth=0)
                bottom += amount
    colour = "currentColor" if len(categories) > 1 else "var(--series-0)"
    legend = [LegendKey(LABELS[Source.SAMPLED], colour, "fill")]
    legend.append(LegendKey(LABELS[Source.RATIONALIZED], colour, "fill", opacity=0.45))
    if any(bar.reference for bar in bars):
        legend.append(LegendKey(LABELS[Source.REFERENCE], colour, "fill", opacity=0.2))
    if any(bar.problems is not None for bar in bars):
        legend.append(LegendKey("number of problems", shape="outline"))
    if len(categories) > 1:
        for index, category in enumerate(categories):
            legend.append(LegendKey(category or "no category", f"var(--series-{index % SERIES_COLOURS})", "fill"))
    return legend


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Every k-th point and the last one: about MAX_LINE_POINTS at most."""
    stride = max(1, math.ceil(len(points) / MAX_LINE_POINTS))
    thinned = list(points[::stride])
    return thinned if thinned[-1] == points[-1] else [*thinned, points[-1]]


def _first_to_last(points: Sequence[Point]) -> str:
    first, last = (f"{100 * point.accuracy:.1f}" for point in (points[0], points[-1]))
    return f"{last} %" if len(points) == 1 else f"{first} → {last} %"
