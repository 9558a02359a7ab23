"""Pictures of docs/performance.md from the JSON of the benchmarks: stacked bars as SVG.

python benchmarks/pictures.py benchmarks/results docs/pictures
"""

from __future__ import annotations

import argparse
import json
from html import escape
from pathlib import Path
from typing import Any

# Okabe and Ito's colours: told apart by colour-blind readers too.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8c6d1f", "#bbbbbb", "#f0e442", "#5f5f5f")
WIDTH, LEFT, BAR, STEP, TOP = 640, 190, 20, 30, 64


def bars(title: str, rows: list[tuple[str, list[tuple[str, float]]]], unit: str, note: str = "") -> str:
    """Horizontal bars, each of named parts; the sum stands at its end."""
    longest = max(sum(value for _, value in parts) for _, parts in rows)
    scale = (WIDTH - LEFT - 90) / longest
    names = list(dict.fromkeys(name for _, parts in rows for name, _ in parts if name))
    colors = dict(zip(names, COLORS, strict=False))
    height = TOP + STEP * len(rows) + 26
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"',
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="10" y="20" font-size="14" font-weight="bold">{escape(title)}</text>',
    ]
    x = 10.0
    for name in names:
        lines.append(f'<rect x="{x:.0f}" y="32" width="11" height="11" fill="{colors[name]}"/>')
        lines.append(f'<text x="{x + 15:.0f}" y="42">{escape(name)}</text>')
        x += 24 + 6.3 * len(name)
    for number, (label, parts) in enumerate(rows):
        y, x = TOP + STEP * number, float(LEFT)
        lines.append(f'<text x="{LEFT - 8}" y="{y + 14}" text-anchor="end">{escape(label)}</text>')
        for name, value in parts:
            color = colors.get(name, COLORS[0])
            lines.append(
                f'<rect x="{x:.1f}" y="{y}" width="{max(value * scale, 0.5):.1f}" height="{BAR}" fill="{color}"/>'
            )
            x += value * scale
        total = sum(value for _, value in parts)
        lines.append(f'<text x="{x + 6:.1f}" y="{y + 14}">{total:.3g} {escape(unit)}</text>')
    lines.append(f'<text x="10" y="{height - 8}" fill="#555">{escape(note)}</text></svg>')
    return "\n".join(lines) + "\n"


def stages(rows: list[dict[str, Any]]) -> str:
    """What a leader does in an exchange, beside the raw Allreduce."""
    wanted = ("finite check", "read", "send", "wait", "sum", "norm", "divergence", "commit")
    shown: list[tuple[str, list[tuple[str, float]]]] = []
    for row in rows:
        parts = [(name, row[f"{name} (s)"]) for name in wanted]
        parts.append(("rest", max(0.0, row["ours (s)"] - sum(value for _, value in parts))))
        shown.append((f"K = {row['centers']}, ours", parts))
        shown.append(("raw Allreduce", [("raw", row["raw (s)"])]))
    note = "58.2 M float32 over shared memory, 2 cores; seconds of the first leader"
    return bars("One exchange, module to module", shown, "s", note)


def peers(rows: list[dict[str, Any]]) -> str:
    shown = [(row["peer"], [("", row["exchange (s)"])]) for row in rows]
    return bars("One round of exchange, 58.2 M float32, 5 participants", shown, "s", "on one machine of 2 cores")


def main() -> None:
    """Draw what there are figures for."""
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("results", type=Path, help="folder with exchange.json and peers.json")
    options.add_argument("pictures", type=Path, help="folder for the SVGs")
    chosen = options.parse_args()
    for name, draw in (("exchange", stages), ("peers", peers)):
        path = chosen.results / f"{name}.json"
        if path.exists():
            (chosen.pictures / f"{name}.svg").write_text(draw(json.loads(path.read_text())["rows"]))


if __name__ == "__main__":
    main()
