"""Embeds matplotlib drawings in the page as SVG, with the page's CSS variables as colours and unique ids.

Texts of a run (categories, run names) never enter an SVG. They stand in the HTML legend, which wraps on a narrow screen
and is escaped like the rest of the page. The SVG holds numbers and fixed texts only.
"""

import dataclasses
import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import matplotlib.style
from cycler import cycler
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from star_jax.report.figures.readings import Reading

SERIES_COLOURS = 8  # page.css defines --series-0 .. --series-7, for light and for dark

# matplotlib needs colours, the page needs variables: each placeholder colour is replaced in the finished SVG.
INK, GRID = "#0a0b01", "#0a0b02"
SERIES = tuple(f"#0a0c{index:02x}" for index in range(SERIES_COLOURS))
_VARIABLES = {INK: "currentColor", GRID: "var(--grid)"} | {
    colour: f"var(--series-{index})" for index, colour in enumerate(SERIES)
}
# matplotlib's name of a marker -> the same marker as a path around (0, 0), for the legend.
MARKERS = {
    "o": "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0 -6 0Z",
    "s": "M-3 -3H3V3H-3Z",
    "^": "M0 -3.6L3.6 3H-3.6Z",
    "D": "M0 -4L4 0L0 4L-4 0Z",
    "v": "M0 3.6L3.6 -3H-3.6Z",
}
STYLE = {
    "svg.fonttype": "none",  # text stays text: searchable, in the page's font and colour
    "svg.hashsalt": "star_jax",  # the same run gives the same bytes
    "text.parse_math": False,
    "font.size": 9.5,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=SERIES),
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


@dataclasses.dataclass(frozen=True)
class LegendKey:
    """One entry of a figure's legend."""

    label: str
    colour: str = "currentColor"  # CSS
    shape: str = "line"  # "line", "dashed", "fill" or "outline"
    marker: str = ""  # an SVG path around (0, 0), drawn on a line
    opacity: float = 1.0
    note: str = ""  # a summary of the line, e.g. its first and last value


@dataclasses.dataclass(frozen=True)
class Plot:
    """A finished figure; `svg` is safe markup, the legend's texts are not."""

    svg: Markup
    legend: tuple[LegendKey, ...]
    reading: Reading


def render(draw: Callable[[Axes], None], prefix: str, title: str, height: float, width: float = 6.0) -> Markup:
    """Draws on new axes and returns the SVG element.

    Args:
      draw: draws on the axes it is given.
      prefix: begins every id in the SVG.
      title: the label for screen readers.
      height, width: inches.
    """
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(width, height))
        # Margins in inches, with room for labels that CSS enlarges on a narrow screen.
        left, right, below, above = (0.9, 0.25, 0.55, 0.15) if width >= 5 else (0.62, 0.15, 0.5, 0.12)
        plot_width = width - left - right
        axes = figure.add_axes((left / width, below / height, plot_width / width, 1 - (below + above) / height))
        draw(axes)
        axes.yaxis.set_label_coords(-0.66 / plot_width, 0.5)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(buffer.getvalue())
    _adapt(root, prefix)
    root.attrib = {"class": "plot", "viewBox": root.attrib["viewBox"], "role": "img", "aria-label": title}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _adapt(root: ElementTree.Element, prefix: str) -> None:
    """Turns matplotlib's SVG document into part of an HTML page, in place."""
    for parent in list(root.iter()):
        for child in list(parent):
            # Its style element would apply to the whole page; page.css has the rule.
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
        # page.css sets the font, and its size by the width of the screen.
        declarations = (part.strip() for part in value.split(";"))
        value = "; ".join(part for part in declarations if not part.startswith("font"))
    for placeholder, variable in _VARIABLES.items():
        value = value.replace(placeholder, variable)
    return re.sub(r"url\(#", f"url(#{prefix}", value)
