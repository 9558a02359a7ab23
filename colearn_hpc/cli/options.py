"""What ``fit`` takes beside the arguments of Trainer, model, data and CoLearning; its ``--help`` is made of it too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

METHODS = ("colearning", "vanilla", "ensemble", "single")
# Arguments of CoLearning that come from the options below.
SET_BY_US = ("centers", "run_dir", "federation", "site", "identity")


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: without the dashes.
        type: what jsonargparse makes of its value.
        value: how help calls the value.
        default: its value where it is left out.
        help: what it means, one sentence.
    """

    name: str
    type: Any
    value: str
    default: Any
    help: str

    @property
    def is_switch(self) -> bool:
        """``--name`` alone means true."""
        return self.type is bool


OPTIONS = (
    Option("name", str, "NAME", "run", "Name of the run; its folder is RUNS/NAME."),
    Option("runs", str, "RUNS", "runs", "Folder of run folders."),
    Option(
        "centers",
        int | list[int] | None,
        "K",
        None,
        "Number of equal data centers, or their sizes in ranks, as in [4,4,2]. Where it is left out, COLEARN_CENTER in "
        "each rank's environment names its data center; without that, every rank is one.",
    ),
    Option("resume", bool, "", False, "Continue RUNS/NAME where it stopped; harmless on a first start."),
    Option("overwrite", bool, "", False, "Start anew in an existing RUNS/NAME."),
    Option(
        "method",
        Literal[METHODS],
        "METHOD",
        "colearning",
        "colearning: data centers average their models; vanilla: one data center holds all shards; ensemble: models "
        "stay apart, their predictions are averaged; single: one data center trains on its own data alone.",
    ),
    Option(
        "federation",
        str | None,
        "FILE",
        None,
        "The federation.yaml of a run whose sites share no MPI world. The ranks that are started here are one site.",
    ),
    Option("site", str | None, "NAME", None, "Name of this site in the federation."),
    Option(
        "identity",
        str | None,
        "FOLDER",
        None,
        "Folder of the site's certificate and key. Where it is left out: a folder of its name beside federation.yaml.",
    ),
)

# What `validate`, `test` and `predict` take beside a run folder: command -> (option, what it means).
EVALUATION = {
    "validate": (
        (
            "--cross-site",
            "Every data center's own model and the shared one, on every data center's validation data, as a matrix. "
            "Models then travel to the other data centers.",
        ),
    ),
    "test": (),
    "predict": (
        (
            "--out FILE",
            "Where to write, .h5 or .csv; {center} becomes the data center's name. "
            "(default: RUN/centers/NAME/predictions.h5)",
        ),
    ),
}
