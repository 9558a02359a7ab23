"""Line charts by matplotlib, as SVG that is part of a page: its own ids, the page's text colour, values to point at."""

from __future__ import annotations

import io
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from colearn_hpc.studies.blocks import Figure

STYLE = Path(__file__).with_name("colearn.mplstyle")
WIDTH = 4.9  # inches of 72 units: its letters of 10 units can be read where a phone makes the picture 350 pixels wide
_INK = "#1b1f24"  # of the style; in the picture it is the colour of the text around
_SVG = "http://www.w3.org/2000/svg"
_HREF = "{http://www.w3.org/1999/xlink}href"
_MOST_NAMES = 12  # a longer legend would be larger than its picture; pointing at a line tells its name too
# A picture in a file of its own has no page around it.
_ALONE = (
    "<style>svg{color:#1b1f24;background:#fff}@media(prefers-color-scheme:dark)"
    "{svg{color:#e6edf3;background:#0d1117}}</style>"
)

Point = tuple[float, float, str]

ET.register_namespace("", _SVG)
ET.register_namespace("xlink", "http://www.w3.org/1999/xlink")


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        label: in the legend; empty: not there.
        points: (x, y), x rising; NaN breaks the line.
        band: (x, low, high) around it.
        marks: x at which a triangle sits on the line.
        stepped: y holds from its x to the next one.
        best: x of the point with a ring around it.
    """

    label: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()
    marks: Sequence[float] = ()
    stepped: bool = False
    best: float | None = None


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        y_label: text; a logarithmic axis adds that it is one.
        lines: in the order of the legend.
        level: a horizontal line with a name, e.g. (0.018, "ε").
        log: logarithmic y axis; values that are not positive are left out.
        from_zero: the y axis begins at 0.
        range: least and greatest y shown; None: what the lines need. Lines are cut off at it.
        whole: y counts something: ticks at whole numbers.
    """

    y_label: str
    lines: Sequence[Line]
    level: tuple[float, str] | None = None
    log: bool = False
    from_zero: bool = False
    range: tuple[float, float] | None = None
    whole: bool = False


def chart(name: str, title: str, x_label: str, panels: Sequence[Panel], caption: str) -> Figure:
    """Panels one above the other over one x axis of whole numbers, with one legend.

    Args:
        name: of the figure, unique in a report.
        title: above the picture.
        x_label: below it.
        panels: at least one.
        caption: what it shows.
    """
    labels = [line.label for line in panels[0].lines if line.label]
    columns = _columns(labels)
    rows = math.ceil(len(labels) / columns) if len(labels) <= _MOST_NAMES else 0
    if labels and not rows:
        caption += " Point at a line to see whose it is."
    with canvas((2.2 if len(panels) == 1 else 1.4 * len(panels)) + 0.7 + 0.22 * rows) as figure:
        axes: list[Axes] = list(figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0])
        axes[0].set_title(title)
        axes[-1].set_xlabel(x_label)
        axes[-1].xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        for panel, axis in zip(panels, axes, strict=True):
            _draw(panel, axis)
        if rows:
            drawn = [line for line in axes[0].get_lines() if line.get_gid() == "named"]
            figure.legend(drawn, labels, loc="outside lower center", ncols=columns)
        svg, height = _svg(figure, name, title)
        points = [
            point
            for panel, axis in zip(panels, axes, strict=True)
            for line in panel.lines
            for point in _places(panel, line, x_label, axis, height)
        ]
    return Figure(name, svg, caption, points)


@contextmanager
def canvas(height: float, width: float = WIDTH) -> Iterator[Canvas]:
    """An empty picture in our style, for what is no line chart; inches."""
    with matplotlib.rc_context(fname=STYLE):
        yield Canvas(figsize=(width, height), layout="constrained")


def picture(figure: Canvas, name: str, title: str) -> str:
    """The ``<svg>`` element of a canvas that is still open."""
    return _svg(figure, name, title)[0]


def alone(svg: str) -> str:
    """A picture as a file of its own, light or dark as the reader's system is."""
    start = svg.index(">") + 1
    return f"{svg[:start]}{_ALONE}{svg[start:]}\n"


def _draw(panel: Panel, axis: Axes) -> None:
    for line in panel.lines:
        points = [(x, y) for x, y in line.points if _shown(panel, y)]
        style: dict[str, Any] = {"drawstyle": "steps-post"} if line.stepped else {}
        marker = "" if line.stepped or len(points) > 60 else "o"
        (drawn,) = axis.plot(*_columns_of(points), marker=marker, gid="named" if line.label else None, **style)
        color = drawn.get_color()
        band = [part for part in line.band if _shown(panel, part[1]) and _shown(panel, part[2])]
        if len(band) > 1:
            x, low, high = zip(*band, strict=True)
            axis.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
        for mark in line.marks:
            if before := [y for at, y in points if at <= mark]:
                axis.plot([mark], [before[-1]], marker="v", markersize=6, color=color, linestyle="", zorder=3)
        for at, y in points:
            if at == line.best:
                axis.plot([at], [y], marker="o", markersize=9, color=color, fillstyle="none", linestyle="", zorder=3)
    if panel.log and any(_shown(panel, y) for line in panel.lines for _, y in line.points):
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        axis.yaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.5g}"))
    axis.set_ylabel(f"{panel.y_label} (log scale)" if panel.log else panel.y_label)
    if panel.whole:
        axis.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
    if panel.range:
        axis.set_ylim(panel.range)
    if panel.from_zero:
        axis.set_ylim(bottom=0)
    if panel.level is not None and _shown(panel, panel.level[0]):
        axis.axhline(panel.level[0], linestyle=(0, (4, 3)), linewidth=1, color=_INK)
        # Beside the axes: a curve that falls to the level would run through its name.
        axis.text(1.01, panel.level[0], panel.level[1], transform=axis.get_yaxis_transform(), va="center")


def _shown(panel: Panel, value: float) -> bool:
    return math.isfinite(value) and (value > 0 or not panel.log)


def _columns_of(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _columns(labels: Sequence[str]) -> int:
    """How many names fit side by side under a picture."""
    longest = max(map(len, labels), default=0)
    return max(1, min(5, int(62 / (longest + 7)), len(labels)))


def _places(panel: Panel, line: Line, x_label: str, axis: Axes, height: float) -> Iterator[Point]:
    """Where a line's points lie in the picture, and what to say of them."""
    low, high = sorted(axis.get_ylim())
    for x, y in line.points:
        if _shown(panel, y) and low <= y <= high:
            across, up = axis.transData.transform((x, y))
            what = f"{line.label}: " if line.label else ""
            yield (
                round(float(across), 1),
                round(height - float(up), 1),
                f"{what}{panel.y_label} {y:.5g}, {x_label} {x:g}",
            )


def _svg(figure: Canvas, name: str, title: str) -> tuple[str, float]:
    """(the element, its height in units)."""
    output = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):  # the same picture is the same bytes
        figure.savefig(output, format="svg", metadata={"Date": None})
    root = ET.fromstring(output.getvalue())
    for part in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(part)
    for defs in root.iter(f"{{{_SVG}}}defs"):
        for style in defs.findall(f"{{{_SVG}}}style"):
            defs.remove(style)  # it speaks of every element of the page
    used = set(re.findall(r"url\(#([^)]+)\)", output.getvalue()))
    used |= {value[1:] for node in root.iter() if (value := node.get(_HREF, "")).startswith("#")}
    for node in root.iter():
        # Ids are the page's, and every picture numbers its parts from 1.
        if (identity := node.attrib.pop("id", None)) in used:
            node.set("id", f"{name}-{identity}")
        for key, value in node.attrib.items():
            if key == _HREF and value.startswith("#"):
                value = f"#{name}-{value[1:]}"
            node.set(key, value.replace("url(#", f"url(#{name}-").replace(_INK, "currentColor"))
    height = float(root.attrib.pop("height").removesuffix("pt"))
    del root.attrib["width"]
    root.attrib |= {"role": "img", "stroke-linejoin": "round", "class": "chart"}
    heading = ET.Element(f"{{{_SVG}}}title")
    heading.text = title
    root.insert(0, heading)
    return ET.tostring(root, encoding="unicode"), height
