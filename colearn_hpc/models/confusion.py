"""The confusion matrix as a file, for reports and for people."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from colearn_hpc._lightning import Callback, LightningModule, Trainer

FILE = "confusion.json"


class ConfusionMatrixFile(Callback):
    """Writes a file with the confusion matrix after each evaluation: add it to ``trainer.callbacks``.

    The file is ``confusion.json`` in the Trainer's ``default_root_dir``; with ``colearn-hpc fit`` that is
    RUN/centers/NAME. A later evaluation replaces it. So at the end of a run it is the shared model's, on this data
    center's evaluation data. It holds

    * ``stage``: ``val`` or ``test``;
    * ``classes``: their names, or their numbers if the data module has no names;
    * ``counts``: a row for each true class, a column for each predicted one.

    No file is written for a module without an attribute ``confusion_matrix``, such as one with several labels at once,
    nor if the attribute is None, as it is above 50 classes.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._write(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, pl_module, "test")

    def _write(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        counts: Any = getattr(pl_module, "confusion_matrix", None)
        if counts is None or not trainer.is_global_zero:
            return
        names = list(getattr(getattr(trainer, "datamodule", None), "classes", ()))
        classes = names if len(names) == len(counts) else [str(number) for number in range(len(counts))]
        path = Path(trainer.default_root_dir) / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps({"stage": stage, "classes": classes, "counts": counts}) + "\n")
        temporary.replace(path)
