"""The health of sampling as small figures, one for each sign."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from star_jax.records import LABELS, Source, Verdict
from star_jax.report.figures import readings
from star_jax.report.figures.readings import Reading
from star_jax.report.figures.svg import MARKERS, SERIES, LegendKey, Plot, render
from star_jax.report.samples import SOURCES, Health, SampleStats

Points = list[tuple[int, float]]  # (iteration, value)


@dataclasses.dataclass(frozen=True)
class Panel:
    """A heading and lines by name. `share`: the values are shares in 0..1, otherwise numbers."""

    heading: str
    reading: Reading
    lines: dict[str, Points]
    share: bool = True


def health_panels(series: Sequence[Health]) -> list[Panel]:
    """The panels, without those that have no values in any iteration."""
    sampled = LABELS[Source.SAMPLED]
    failures = (Verdict.WRONG, Verdict.UNPARSABLE, Verdict.TRUNCATED)
    with_right = [(h.iteration, h.sampled) for h in series if h.sampled.verdicts[Verdict.RIGHT]]
    wrong_steps = [(n, stats.wrong_steps / stats.verdicts[Verdict.RIGHT]) for n, stats in with_right]
    panels = [
        Panel(
            "Samples not right",
            readings.NOT_RIGHT,
            {LABELS[v]: [(h.iteration, h.sampled.share(v)) for h in series] for v in failures},
        ),
        Panel(
            "Right answer, wrong steps",
            readings.WRONG_STEPS,
            {sampled: wrong_steps if any(share for _, share in wrong_steps) else []},
        ),
        Panel(
            "Distinct texts",
            readings.DISTINCT,
            {sampled: [(h.iteration, h.sampled.distinct / h.sampled.samples) for h in series]},
        ),
        Panel("Tokens per sample", readings.TOKENS, _by_source(series, _tokens_per_sample), share=False),
        Panel("NLL per token, nats", readings.NLL, _by_source(series, lambda stats: stats.nll_per_token), share=False),
        Panel(
            "Kept that mention a hint",
            readings.HINTS,
            {LABELS[s]: _finite((h.iteration, h.leaking(s)) for h in series) for s in SOURCES},
        ),
        Panel(
            "Tried, but never solved so far",
            readings.NEVER_SOLVED,
            {sampled: [(h.iteration, h.never_solved / h.tried_so_far) for h in series]},
        ),
        *_exploration(series),
    ]
    with_values = [
        Panel(p.heading, p.reading, {name: points for name, points in p.lines.items() if points}, p.share)
        for p in panels
    ]
    return [panel for panel in with_values if panel.lines]


def _exploration(series: Sequence[Health]) -> list[Panel]:
    """What several samples of a problem find; none where each has one."""
    several = [(h.iteration, h.sampled) for h in series if h.sampled.draws > 1]
    sampled = LABELS[Source.SAMPLED]
    return [
        Panel("pass@k − pass@1", readings.EXPLORATION, {sampled: [(n, stats.exploration) for n, stats in several]}),
        Panel(
            "Solutions per solved problem",
            readings.SOLUTIONS,
            {sampled: _finite((n, stats.solutions_per_problem) for n, stats in several)},
            share=False,
        ),
    ]


def health_plots(series: Sequence[Health], prefix: str) -> dict[str, Plot]:
    """Heading -> figure. `prefix`: of the ids in the SVGs."""
    return {panel.heading: _plot(panel, f"{prefix}{index}-") for index, panel in enumerate(health_panels(series))}


def _plot(panel: Panel, prefix: str) -> Plot:
    legend: list[LegendKey] = []
    factor = 100 if panel.share else 1

    def draw(axes: Axes) -> None:
        for index, (name, points) in enumerate(panel.lines.items()):
            xs, ys = zip(*((n, factor * value) for n, value in points), strict=True)
            axes.plot(xs, ys, color=SERIES[index], marker=list(MARKERS)[index], linewidth=1.4, markersize=3.5)
            ends = [f"{value:.1f}" if panel.share else f"{value:.3g}" for value in dict.fromkeys((ys[0], ys[-1]))]
            note = " → ".join(ends) + (" %" if panel.share else "")
            legend.append(LegendKey(name, f"var(--series-{index})", marker=list(MARKERS.values())[index], note=note))
        highest = factor * max(value for points in panel.lines.values() for _, value in points)
        # The scale begins at zero and covers at least 1 %, so that a rate near zero looks like one.
        axes.set_ylim(-0.04 * highest, max(1.1 * highest, 1.0 if panel.share else 1e-9))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}{' %' if panel.share else ''}"))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("iteration")

    return Plot(render(draw, prefix, panel.heading, height=1.9, width=3.3), tuple(legend), panel.reading)


def _by_source(series: Sequence[Health], mean: Callable[[SampleStats], float | None]) -> dict[str, Points]:
    """A mean over the samples, by source, without iterations that have no sample or no finite value."""
    stats: dict[Source, list[tuple[int, SampleStats | None]]] = {
        Source.SAMPLED: [(h.iteration, h.sampled) for h in series],
        Source.RATIONALIZED: [(h.iteration, h.rationalized) for h in series],
    }
    return {LABELS[s]: _finite((n, mean(of) if of else None) for n, of in pairs) for s, pairs in stats.items()}


def _tokens_per_sample(stats: SampleStats) -> float | None:
    return stats.tokens / stats.samples if stats.samples else None


def _finite(points: Iterable[tuple[int, float | None]]) -> Points:
    return [(n, value) for n, value in points if value is not None and math.isfinite(value)]
