"""The confusion matrix of a run as a picture: which classes the shared model takes for which."""

from __future__ import annotations

import json
from html import escape

from colearn_hpc.studies.blocks import Figure
from colearn_hpc.studies.run_folder import RunFolder

FILE = "confusion.json"  # of models/confusion.py, in each data center's folder
_WIDTH, _TOP, _LETTER = 440, 46, 6.5  # as wide as the charts; letters of 12 units are about 6.5 wide
_LIMIT = 50


def confusion_figure(run: RunFolder, prefix: str) -> Figure | None:
    """The matrix of the first data center that left one; None without one, or where it cannot be drawn.

    Args:
        run: the run.
        prefix: of the figure's name.
    """
    for name in run.center_names:
        path = run.path / "centers" / name / FILE
        if not path.exists():
            continue
        try:
            content = json.loads(path.read_text())
            classes = [str(label) for label in content["classes"]]
            counts = [[int(count) for count in row] for row in content["counts"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            run.problems.append(f"{path}: no confusion matrix can be read ({error!r})")
            return None
        if not 2 <= len(classes) <= _LIMIT or [len(row) for row in counts] != [len(classes)] * len(classes):
            run.problems.append(f"{path}: {len(classes)} classes and a matrix of {len(counts)} rows do not fit")
            return None
        total, right = sum(map(sum, counts)), sum(counts[i][i] for i in range(len(classes)))
        caption = f"Confusion matrix, {right} of {total} right; rows are the true classes, columns the predicted ones"
        return Figure(f"{prefix}-confusion", _svg(classes, counts, caption), caption)
    return None


def _svg(classes: list[str], counts: list[list[int]], caption: str) -> str:
    names = [label if len(label) <= 12 else label[:11] + "…" for label in classes]
    left = 16 + _LETTER * max(map(len, names))
    cell = (_WIDTH - left - 4) / len(classes)
    size = min(12.0, cell * 0.9)
    height = _TOP + cell * len(classes) + 4
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" role="img" '
        f'font-family="sans-serif" font-size="{size:.1f}"><title>{escape(caption)}</title>'
    ]
    for i, (name, row) in enumerate(zip(names, counts, strict=True)):
        middle = cell * (i + 0.5)
        parts.append(
            f'<text x="{left - 4:.1f}" y="{_TOP + middle + size / 3:.1f}" text-anchor="end">{escape(name)}</text>'
        )
        x, y = left + middle, _TOP - 4
        turn = f' transform="rotate(-40 {x:.1f} {y})"' if max(map(len, names)) * _LETTER > cell else ""
        anchor = "start" if turn else "middle"
        parts.append(f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}"{turn}>{escape(name)}</text>')
        for j, count in enumerate(row):
            share = count / max(1, sum(row))
            color = "#0072b2" if i == j else "#d55e00"
            place = f'x="{left + cell * j:.1f}" y="{_TOP + cell * i:.1f}" width="{cell:.1f}" height="{cell:.1f}"'
            parts.append(f'<rect {place} fill="{color}" fill-opacity="{share:.3f}" stroke="#ccc" stroke-width="0.5"/>')
            if count and cell >= 16:
                ink = "#fff" if share > 0.6 else "#000"
                parts.append(
                    f'<text x="{left + cell * (j + 0.5):.1f}" y="{_TOP + middle + size / 3:.1f}" text-anchor="middle" '
                    f'fill="{ink}">{count}</text>'
                )
    return "".join([*parts, "</svg>"])
