"""The confusion matrix of a run as a picture: which classes the shared model takes for which."""

from __future__ import annotations

from typing import Any

import matplotlib.colors
import numpy as np

from colearn_hpc.studies.blocks import Figure
from colearn_hpc.studies.charts import Point, canvas, picture
from colearn_hpc.studies.records import parse_json
from colearn_hpc.studies.run_folder import RunFolder

FILE = "confusion.json"  # of models/confusion.py, in each data center's folder
_LIMIT = 50
_READABLE = 16  # classes, above which counts do not fit into their cells
_RIGHT, _WRONG = "#2380c4", "#d55e00"


def confusion_figure(run: RunFolder, prefix: str) -> Figure | None:
    """The matrix of the first data center that left one; None without one, or where it cannot be drawn.

    Args:
        run: the run.
        prefix: of the figure's name.
    """
    for name in run.center_names:
        path = run.path / "centers" / name / FILE
        try:
            content = parse_json(path.read_text())
            classes = [str(label) for label in content["classes"]]
            counts = [[_count(count) for count in row] for row in content["counts"]]
        except (FileNotFoundError, PermissionError):  # another organisation's folder may be closed to us
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            run.problems.append(f"{path}: no confusion matrix can be read ({error!r})")
            return None
        if not 2 <= len(classes) <= _LIMIT or [len(row) for row in counts] != [len(classes)] * len(classes):
            run.problems.append(f"{path}: {len(classes)} classes and a matrix of {len(counts)} rows do not fit")
            return None
        total, right = sum(map(sum, counts)), sum(counts[i][i] for i in range(len(classes)))
        caption = f"Confusion matrix, {right} of {total} right; rows are the true classes, columns the predicted ones."
        return _draw(f"{prefix}-confusion", classes, counts, caption)
    return None


def _count(value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise ValueError(f"{value!r:.40} is no count")
    return value


def _draw(name: str, classes: list[str], counts: list[list[int]], caption: str) -> Figure:
    """Each cell as strong as its share of the row: of the examples of its true class."""
    names = [label if len(label) <= 12 else f"{label[:11]}…" for label in classes]
    size, letters = len(classes), 10 if len(classes) <= _READABLE else 5
    shares = np.array([[count / max(1, sum(row)) for count in row] for row in counts])
    colors = np.empty((size, size, 4))
    colors[:] = matplotlib.colors.to_rgba(_WRONG)
    colors[np.eye(size, dtype=bool)] = matplotlib.colors.to_rgba(_RIGHT)
    colors[..., 3] = np.where(shares > 0, 0.25 + 0.75 * shares, 0)  # a single mistake can be seen too
    with canvas(height=4.9) as figure:
        axis = figure.subplots()
        axis.pcolormesh(colors, edgecolors="#8b949e80", linewidth=0.4)
        axis.set(aspect="equal", title="Confusion matrix", xlabel="predicted", ylabel="true", ylim=(size, 0))
        axis.grid(visible=False)
        axis.set_xticks(np.arange(size) + 0.5, names)
        axis.set_yticks(np.arange(size) + 0.5, names)
        axis.tick_params(length=0, labelsize=letters)
        if max(map(len, names)) > 2:
            axis.tick_params(axis="x", labelrotation=90)
        for i, row in enumerate(counts if size <= _READABLE else []):
            for j, count in enumerate(row):
                cell = axis.text(j + 0.5, i + 0.5, str(count) if count else "", ha="center", va="center")
                if shares[i, j] > 0.6:
                    cell.set_color("white")
        svg = picture(figure, name, "Confusion matrix")
        points: list[Point] = []
        for i, row in enumerate(counts):
            for j, count in enumerate(row):
                x, y = axis.transData.transform((j + 0.5, i + 0.5))
                text = f"true {classes[i]}, predicted {classes[j]}: {count}"
                points.append((round(float(x), 1), round(figure.bbox.height - float(y), 1), text))
    return Figure(name, svg, caption, points)
