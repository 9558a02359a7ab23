"""Line charts as SVG, drawn here: no plotting library to install on a cluster, and the same bytes everywhere.

A chart is 440 units wide and its letters are 12 units high, so that it can be read at the width of a phone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 440, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 12, 30, 42
# Okabe and Ito's colours: told apart by colour-blind readers too; dashes tell them apart in print.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5f5f5f", "#8c6d1f", "#000000", "#a0522d")
DASHES = ("", "7 3", "2 3", "9 3 2 3", "", "7 3", "2 3", "9 3 2 3", "4 2", "1 2")


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        label: in the legend; empty: not there.
        points: (x, y), x rising; NaN breaks the line.
        band: (x, low, high) around it.
        marks: x at which a triangle sits on the line.
        stepped: y holds from its x to the next one.
        dots: a dot at every point.
    """

    label: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()
    marks: Sequence[float] = ()
    stepped: bool = False
    dots: bool = False


@dataclass
class Chart:
    """A chart to be drawn by :meth:`svg`.

    Attributes:
        title, x_label, y_label: texts.
        lines: in the order of the legend.
        level: a horizontal line with a name, e.g. (0.018, "ε").
        log: logarithmic y axis; values that are not positive are left out.
        from_zero: the y axis begins at 0.
        range: least and greatest y shown; None: what the lines need. Lines are cut off at it.
    """

    title: str
    x_label: str
    y_label: str
    lines: list[Line] = field(default_factory=list)
    level: tuple[float, str] | None = None
    log: bool = False
    from_zero: bool = False
    range: tuple[float, float] | None = None

    def svg(self, name: str) -> str:
        """The whole ``<svg>`` element; ``name`` must be unique in the page it becomes part of."""
        self._set_scales()
        rows = _legend_rows([line.label for line in self.lines])
        height = HEIGHT + 18 * len(rows)
        clip = f"clip-{escape(name)}"
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
            f'font-family="system-ui, DejaVu Sans, sans-serif" font-size="12" fill="#1b1f24">',
            f"<title>{escape(self.title)}</title>",
            f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
            f'<text x="{_LEFT}" y="16" font-weight="600">{escape(self.title)}</text>',
            f'<clipPath id="{clip}"><rect x="{_LEFT}" y="{_TOP - 4}" width="{WIDTH - _LEFT - _RIGHT + 4}" '
            f'height="{HEIGHT - _TOP - _BOTTOM + 8}"/></clipPath>',
            *self._axes(),
            f'<g clip-path="url(#{clip})">',
        ]
        for index, line in enumerate(self.lines):
            parts += self._draw(line, COLORS[index % len(COLORS)], DASHES[index % len(DASHES)])
        parts.append("</g>")
        if self.level is not None and self._shown(self.level[0]):
            y = self._y(self.level[0])
            parts.append(
                f'<path d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}" stroke="#57606a" stroke-dasharray="4 3"/>'
                f'<text x="{WIDTH - _RIGHT}" y="{y - 4:.1f}" text-anchor="end">{escape(self.level[1])}</text>'
            )
        parts += self._legend(rows)
        return "".join([*parts, "</svg>"])

    def _values(self) -> list[float]:
        values = [y for line in self.lines for _, y in line.points]
        values += [y for line in self.lines for _, low, high in line.band for y in (low, high)]
        values += [self.level[0]] if self.level is not None else []
        return [v for v in values if self._shown(v)]

    def _shown(self, value: float) -> bool:
        return math.isfinite(value) and (value > 0 or not self.log)

    def _set_scales(self) -> None:
        xs = [x for line in self.lines for x, _ in line.points] or [0.0, 1.0]
        ys = self._values() or [0.1, 1.0]
        low, high = self.range or (min(ys), max(ys))
        low = 0.0 if self.from_zero else low
        if self.log:
            low, high = math.log10(low), math.log10(high)
        if high - low < 1e-12:
            low, high = low - (abs(low) or 1) * 0.05, high + (abs(high) or 1) * 0.05
        pad = 0.0 if self.range else 0.06 * (high - low)
        self._low, self._high = (low if self.from_zero else low - pad), high + pad
        self._x_low, self._x_high = min(xs), max(max(xs), min(xs) + 1)

    def _x(self, x: float) -> float:
        return _LEFT + (x - self._x_low) / (self._x_high - self._x_low) * (WIDTH - _LEFT - _RIGHT)

    def _y(self, y: float) -> float:
        value = math.log10(y) if self.log else y
        return HEIGHT - _BOTTOM - (value - self._low) / (self._high - self._low) * (HEIGHT - _TOP - _BOTTOM)

    def _axes(self) -> list[str]:
        bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
        parts = []
        ticks = _log_ticks(self._low, self._high) if self.log else _ticks(self._low, self._high, 5)
        for tick in ticks:
            y = self._y(tick)
            parts.append(
                f'<path d="M{_LEFT} {y:.1f}H{right}" stroke="#e4e8ec"/>'
                f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>'
            )
        for tick in _ticks(self._x_low, self._x_high, 6):
            x = self._x(tick)
            parts.append(
                f'<path d="M{x:.1f} {bottom}v4" stroke="#57606a"/>'
                f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{number(tick)}</text>'
            )
        middle = (_TOP + bottom) / 2
        return [
            *parts,
            f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="#57606a"/>',
            f'<text x="{(_LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(self.x_label)}</text>',
            f'<text transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">{escape(self.y_label)}</text>',
        ]

    def _draw(self, line: Line, color: str, dash: str) -> list[str]:
        parts = []
        band = [(x, low, high) for x, low, high in line.band if self._shown(low) and self._shown(high)]
        if len(band) > 1:
            top = " ".join(f"{self._x(x):.1f},{self._y(high):.1f}" for x, _, high in band)
            under = " ".join(f"{self._x(x):.1f},{self._y(low):.1f}" for x, low, _ in reversed(band))
            parts.append(f'<polygon points="{top} {under}" fill="{color}" fill-opacity=".13"/>')
        points = [(x, y) for x, y in line.points if self._shown(y)]
        path = ""
        for index, (x, y) in enumerate(points):
            move = "M" if index == 0 else "L"
            if line.stepped and index:
                path += f"H{self._x(x):.1f}"
            path += f"{move}{self._x(x):.1f} {self._y(y):.1f}"
        if path:
            style = f' stroke-dasharray="{dash}"' if dash else ""
            parts.append(f'<path d="{path}" fill="none" stroke="{color}" stroke-width="1.8"{style}/>')
        if line.dots or len(points) == 1:
            parts += [
                f'<circle cx="{self._x(x):.1f}" cy="{self._y(y):.1f}" r="2.2" fill="{color}"/>' for x, y in points
            ]
        for mark in line.marks:
            before = [y for x, y in points if x <= mark] or [y for _, y in points[:1]]
            if before:
                tip = f"M{self._x(mark):.1f} {self._y(before[-1]) - 4:.1f}"
                parts.append(f'<path d="{tip}l-4.5 -8h9z" fill="{color}" stroke="#fff" stroke-width=".6"/>')
        return parts

    def _legend(self, rows: list[list[int]]) -> list[str]:
        parts = []
        columns = max((len(members) for members in rows), default=1)
        for row, members in enumerate(rows):
            y = HEIGHT + 10 + 18 * row
            for place, index in enumerate(members):
                x = 14 + place * (WIDTH - 20) / columns
                color, dash = COLORS[index % len(COLORS)], DASHES[index % len(DASHES)]
                style = f' stroke-dasharray="{dash}"' if dash else ""
                parts.append(
                    f'<path d="M{x:.1f} {y - 4}h24" stroke="{color}" stroke-width="2"{style}/>'
                    f'<text x="{x + 30:.1f}" y="{y}">{escape(self.lines[index].label)}</text>'
                )
        return parts


def number(value: float) -> str:
    """A number as an axis shows it."""
    if value == 0:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 1e-4:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.6g}"


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers between ``low`` and ``high``."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * f for f in (1, 2, 2.5, 5, 10) if power * f >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within, thinned out where there are many; arguments are logarithms."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [f * 10.0**d for d in decades for f in factors if low <= math.log10(f * 10.0**d) <= high]
        if len(ticks) <= 7:
            return ticks
    return ticks[:: math.ceil(len(ticks) / 6)]


def _legend_rows(labels: Sequence[str]) -> list[list[int]]:
    named = [index for index, label in enumerate(labels) if label]
    per_row = 2 if max((len(labels[i]) for i in named), default=0) > 12 else 3
    return [named[start : start + per_row] for start in range(0, len(named), per_row)]
