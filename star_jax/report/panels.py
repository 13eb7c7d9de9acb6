"""The signs of health as small figures, one a sign."""

import dataclasses
import math
from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from star_jax.report.audit_file import SOURCES
from star_jax.report.health import Health
from star_jax.report.svg import MARKERS, SERIES, Key, Plot, render

Points = list[tuple[int, float]]  # (iteration, value)


@dataclasses.dataclass(frozen=True)
class Panel:
    """One sign: lines by name, a heading, and whether its values are shares (0 to 1) or numbers."""

    heading: str
    lines: dict[str, Points]
    share: bool = True


def signs(series: Sequence[Health]) -> list[Panel]:
    """What the panels show; a sign that no iteration has is left out."""
    verdicts = {"wrong": "wrong", "unparsable": "unparsable", "cut off": "truncated"}
    right = [(h.iteration, h.sampled) for h in series if h.sampled.verdicts["right"]]
    steps = [(n, drawn.wrong_steps / drawn.verdicts["right"]) for n, drawn in right]
    found = [
        Panel(
            "Draws without a right answer",
            {name: [(h.iteration, h.sampled.share(key)) for h in series] for name, key in verdicts.items()},
        ),
        Panel("Right answer, wrong steps", {"sampled": steps if any(share for _, share in steps) else []}),
        Panel("Distinct texts among the draws", {"sampled": [(h.iteration, _distinct(h)) for h in series]}),
        Panel("Tokens a draw", _by_source(series, "tokens"), share=False),
        Panel("Surprise: −log p a token, nats", _by_source(series, "nats"), share=False),
        Panel(
            "Kept, and speaks of a hint",
            {source: _known((h.iteration, h.leaking(source)) for h in series) for source in SOURCES},
        ),
        Panel(
            "Tried, and never solved so far",
            {"sampled": [(h.iteration, h.never_solved / h.tried_so_far) for h in series]},
        ),
    ]
    trimmed = [Panel(p.heading, {n: points for n, points in p.lines.items() if points}, p.share) for p in found]
    return [panel for panel in trimmed if panel.lines]


def health(series: Sequence[Health], prefix: str) -> dict[str, Plot]:
    """Heading -> its small figure."""
    return {panel.heading: _plot(panel, f"{prefix}{place}-") for place, panel in enumerate(signs(series))}


def _plot(panel: Panel, prefix: str) -> Plot:
    legend: list[Key] = []
    factor = 100 if panel.share else 1

    def draw(axes: Axes) -> None:
        for place, (name, points) in enumerate(panel.lines.items()):
            xs, ys = zip(*((n, factor * value) for n, value in points), strict=True)
            axes.plot(xs, ys, color=SERIES[place], marker=list(MARKERS)[place], linewidth=1.4, markersize=3.5)
            ends = [f"{value:.1f}" if panel.share else f"{value:.3g}" for value in dict.fromkeys((ys[0], ys[-1]))]
            note = " → ".join(ends) + (" %" if panel.share else "")
            legend.append(Key(name, f"var(--series-{place})", marker=list(MARKERS.values())[place], note=note))
        highest = factor * max(value for points in panel.lines.values() for _, value in points)
        # From zero; and a rate of next to nothing should look like it.
        axes.set_ylim(-0.04 * highest, max(1.1 * highest, 1.0 if panel.share else 1e-9))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}{' %' if panel.share else ''}"))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("iteration")

    return Plot(render(draw, prefix, panel.heading, height=1.9, width=3.3), tuple(legend))


def _by_source(series: Sequence[Health], of: str) -> dict[str, Points]:
    """Means of the draws, for each source; those of no draw, and those that are no finite number, are left out."""
    values = {source: [(h.iteration, getattr(h, source)) for h in series] for source in SOURCES}
    if of == "tokens":
        return {
            s: _known((n, d.tokens / d.draws if d and d.draws else None) for n, d in drawn)
            for s, drawn in values.items()
        }
    return {s: _known((n, d.nats if d else None) for n, d in drawn) for s, drawn in values.items()}


def _known(points: Iterable[tuple[int, float | None]]) -> Points:
    return [(n, value) for n, value in points if value is not None and math.isfinite(value)]


def _distinct(health: Health) -> float:
    return health.sampled.distinct / health.sampled.draws
