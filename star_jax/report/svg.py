"""A matplotlib drawing as SVG that sits inside the page: its colours are the page's CSS variables, its ids its own.

Text that comes from a run (class labels, run names) never gets into such an SVG: it stands in the HTML legend,
which wraps on a narrow screen and is escaped like the rest of the page. What matplotlib writes there is numbers and
ours.
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

SERIES_COLOURS = 8  # page.css defines --series-0 .. --series-7, for light and for dark

# matplotlib wants colours, the page wants variables: each stand-in below is replaced in the finished SVG.
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
    "svg.fonttype": "none",  # text stays text: it can be searched, and takes the page's font and colour
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


def render(draw: Callable[[Axes], None], prefix: str, title: str, height: float, width: float = 6.0) -> Markup:
    """Draws on fresh axes of `width` x `height` inches and returns the SVG element, every id in it begun with `prefix`.

    `title` is for those who hear the page.
    """
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(width, height))
        # Fixed margins in inches: with room for labels that CSS enlarges on a narrow screen.
        left, right, below, above = (0.9, 0.25, 0.55, 0.15) if width >= 5 else (0.62, 0.15, 0.5, 0.12)
        across = width - left - right
        axes = figure.add_axes((left / width, below / height, across / width, 1 - (below + above) / height))
        draw(axes)
        axes.yaxis.set_label_coords(-0.66 / across, 0.5)
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
