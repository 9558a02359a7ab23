"""Every data center's model on every data center's data, as tables; written by `validate --cross-site`."""

from __future__ import annotations

from typing import Any

from colearn_hpc.studies.blocks import Block, Details, Table
from colearn_hpc.studies.records import parse_json
from colearn_hpc.studies.run_folder import RunFolder, falls

FILE = "cross_site.json"  # of cli/cross_site.py


def cross_site_blocks(run: RunFolder) -> list[Block]:
    """The matrix of the main metric, and the others folded away; nothing where none was measured.

    A file that cannot be read is added to the run's problems.
    """
    path = run.path / FILE
    try:
        found = parse_json(path.read_text())
        models, centers = ([str(name) for name in found[key]] for key in ("models", "centers"))
        tables = {str(name): _table(str(name), models, centers, rows) for name, rows in found["metrics"].items()}
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        run.problems.append(f"{path}: no cross-site evaluation can be read ({error!r})")
        return []
    order = sorted(tables, key=lambda name: (name != next(iter(run.shared_metrics), ""), falls(name)))
    if not order:
        return []
    others = [tables[name] for name in order[1:]]
    return [tables[order[0]], *([Details("The same for the other metrics", others)] if others else [])]


def _table(metric: str, models: list[str], centers: list[str], rows: Any) -> Table:
    """A row per model, a column per data center, the best model of a column in bold.

    Raises:
        ValueError: rows and columns do not fit, or hold something else than numbers.
    """
    if len(rows) != len(models) or any(len(row) != len(centers) for row in rows):
        raise ValueError(f"{metric}: {len(models)} models and {len(centers)} data centers do not fit its rows")
    numbers = [[None if cell is None else float(cell) for cell in row] for row in rows]
    best = set()
    for column in range(len(centers)):
        measured = [row[column] for row in numbers]
        there = [value for value in measured if value is not None]
        if there:
            top = min(there) if falls(metric) else max(there)
            best |= {(i, column + 1) for i, value in enumerate(measured) if value == top}
    cells = [
        [model, *("—" if value is None else f"{value:.4f}" for value in row)]
        for model, row in zip(models, numbers, strict=True)
    ]
    caption = f"Cross-site evaluation, {metric}: each model (row) on the validation data of each data center (column)."
    return Table(["model", *centers], cells, caption, frozenset(best))
