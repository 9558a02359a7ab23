"""``colearn-hpc validate | test | predict RUN``: the model of a run folder, on the data that its configuration names.

Configuration and checkpoint come from the folder, so nothing else is needed; every option of ``fit`` can be given and
wins. One process evaluates as one data center of the run. Under ``launch``, mpirun or srun every data center evaluates
on its own data, with as many ranks as it is given.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colearn_hpc._lightning import LightningCLI, LightningDataModule, LightningModule, Trainer
from colearn_hpc.cli import cross_site, fit
from colearn_hpc.cli.predictions import PredictionFile
from colearn_hpc.errors import ConfigurationError
from colearn_hpc.mpi.pooling import declare, declared_names
from colearn_hpc.mpi.startup import launched_as
from colearn_hpc.mpi.topology import CentersSpec
from colearn_hpc.protocol.messages import Topic, TopicKind


@dataclass(frozen=True)
class Asked:
    """What the command line says beyond Lightning's own.

    Attributes:
        run: the run folder; None: the configuration and a checkpoint were named.
        out: where predictions go; empty: the default.
        cross_site: compare all models on all data.
        centers: ``--centers`` was given.
    """

    run: Path | None = None
    out: str = ""
    cross_site: bool = False
    centers: bool = False

    @property
    def names(self) -> list[str]:
        """The run's data centers; nothing where it is not known."""
        try:
            found = json.loads((self.run / "summary.json").read_text())["centers"] if self.run else []
        except (OSError, ValueError, KeyError, TypeError):
            return []
        return [str(name) for name in found]


class EvaluationCLI(fit.ColearnCLI):
    """The same configuration system, for what comes after ``fit``."""

    def __init__(self, session: fit.Session, asked: Asked) -> None:
        self.asked = asked
        self._writer: PredictionFile | None = None
        super().__init__(session)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name != "fit"}

    def _data_centers(self) -> tuple[CentersSpec, str]:
        """The run's data centers where their number fits the ranks; one process is one of them."""
        settings, asked = self.config[self.subcommand], self.asked
        self._check_checkpoint()
        centers = settings["centers"]
        ranks = len(declared_names(None)[0])
        names, here = declared_names(centers)
        if here:
            return (centers if asked.centers else None), ""
        # The folder of a federation's site: all ranks that are started here are that site's.
        names = [settings["site"]] if settings["site"] else asked.names or names
        rank, size = launched_as()
        if size == 1 or len(names) == 1:
            declare(names[0])
            others = f"; COLEARN_CENTER chooses another of {', '.join(names)}" if len(names) > 1 else ""
            return None, f"as data center {names[0]}{others}" if others and not asked.cross_site else ""
        fits = ranks == size and size % len(names) == 0 and not isinstance(centers, list)
        if asked.names and fits and (not asked.centers or centers == len(names)):
            declare(names[rank * len(names) // size])
            return None, ""
        return centers, ""

    def _check_checkpoint(self) -> None:
        """Raises ConfigurationError, on all ranks, where there is no model to evaluate."""
        command, path = self.subcommand, self._setting("ckpt_path")
        ensemble = self._setting("method") == "ensemble" and self.asked.cross_site
        if path is None:
            raise ConfigurationError(
                f"{command} needs a trained model, found none: name a run folder (colearn-hpc {command} runs/NAME), or "
                "a checkpoint (--ckpt_path FILE)"
            ).on_all_ranks()
        if self.asked.run is not None and Path(path) == self.asked.run / "shared.ckpt" and not Path(path).exists():
            if ensemble:
                return
            hint = "no round of it has ended yet"
            if self._setting("method") == "ensemble":
                hint = f"an ensemble has none; take a member: --ckpt_path {self.asked.run}/centers/NAME/member.ckpt"
            raise ConfigurationError(f"{self.asked.run} holds no shared.ckpt: {hint}").on_all_ranks()

    def _check_name(self) -> None:
        if not self.asked.cross_site:
            super()._check_name()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        if self.notice and self.center.is_first:
            print(f"colearn-hpc: {self.notice}", file=sys.stderr)
        trainer = super().instantiate_trainer(**kwargs)
        if self.subcommand == "predict":
            self._writer = PredictionFile(self._predictions_path(), self.center.name, self.place.site)
            trainer.callbacks.append(self._writer)  # type: ignore[attr-defined]
        return trainer

    def _predictions_path(self) -> Path:
        out = self.asked.out or str(self.center_folder / "predictions.h5")
        if self.asked.out and "{center}" not in out and len(self.center.topology.centers) > 1:
            raise ConfigurationError(
                f"--out {out}: every data center would write this one file; put {{center}} into its name, e.g. "
                f"{Path(out).stem}-{{center}}{Path(out).suffix}"
            ).on_all_ranks()
        return Path(out.replace("{center}", self.center.name))

    # --- what Lightning's CLI calls, by the name of the command --------------------------------------------

    def test(self, model: LightningModule, **kwargs: Any) -> None:
        self.trainer.test(model, **kwargs)
        self._compare()

    def validate(self, model: LightningModule, **kwargs: Any) -> None:
        if self.asked.cross_site:
            return self._cross_site(model, kwargs)
        self.trainer.validate(model, **kwargs)
        self._compare()

    def predict(self, model: LightningModule, **kwargs: Any) -> None:
        self.trainer.predict(model, **(kwargs | {"return_predictions": False}))
        assert self._writer is not None, "made with the Trainer"
        said = self.place.conversation.meet(Topic(TopicKind.EVALUATION, detail="predict"), self._writer.said)
        if self.center.is_first:
            for k, text in said.contents.items():
                print(f"{self.place.between.names[k]}: {text}")

    def _compare(self) -> None:
        """A line per data center. Collective over the world.

        Raises:
            ConfigurationError: nothing was evaluated.
        """
        command, metrics = str(self.subcommand), cross_site.measured(self.trainer)
        if not metrics:
            split = "test" if command == "test" else "val"
            raise ConfigurationError(
                f"{command} measured nothing: there are no {command} data, or the module logs nothing on them; set "
                f"data.{split}"
            )
        told = self.place.conversation.meet(Topic(TopicKind.EVALUATION, detail=command), metrics).contents
        if self.center.is_first and len(told) > 1:
            print(cross_site.by_center({self.place.between.names[k]: found for k, found in told.items()}))

    def _cross_site(self, model: LightningModule, kwargs: dict[str, Any]) -> None:
        folder, names = self.folder, self.asked.names or [one.name for one in self.center.topology.centers]
        options = {key: kwargs.get(key) for key in ("verbose", "weights_only")} | {"verbose": False}
        if self.center.world_size > 1:
            found = cross_site.among_all(self.trainer, model, kwargs.get("datamodule"), options, self.place, folder)
        else:
            found = cross_site.alone(self.trainer, self._data_of, options, names, folder)
        if self.center.is_first:
            cross_site.write(folder, found)
            print(cross_site.as_text(found))
            print(f"written to {folder / cross_site.FILE}; `colearn-hpc report {folder}` shows it")

    def _data_of(self, name: str) -> tuple[LightningModule, LightningDataModule | None]:
        """The model and the data as data center ``name`` builds them."""
        os.environ["COLEARN_CENTER"] = name
        made = self.parser.instantiate_classes(self.config)[self.subcommand]
        return made["model"], made.get("data")


def main(argv: Sequence[str]) -> int:
    """Run ``validate``, ``test`` or ``predict``; returns the exit code."""
    command, *rest = argv
    asked, rest = read(command, rest)
    if (problem := missing(asked)) and launched_as()[0] == 0:
        print(f"colearn-hpc: error: {problem}", file=sys.stderr)
    return 2 if problem else fit.main([command, *rest], lambda session: EvaluationCLI(session, asked))


def read(command: str, rest: Sequence[str]) -> tuple[Asked, list[str]]:
    """What is ours on the command line, and what Lightning is given: with a run folder, its configuration first."""
    run = Path(rest[0]) if rest and not rest[0].startswith("-") else None
    parser = argparse.ArgumentParser(prog=f"colearn-hpc {command}", add_help=False, allow_abbrev=False)
    parser.add_argument("--out", default="")
    parser.add_argument("--cross-site", "--cross_site", action="store_true")
    own, others = parser.parse_known_args(rest if run is None else rest[1:])
    if command != "predict" and own.out:
        others += ["--out", own.out]  # Lightning refuses it
    if command != "validate" and own.cross_site:
        others += ["--cross-site"]
    centers = any(option.partition("=")[0] == "--centers" for option in others)
    if run is not None:
        name = run.name or run.resolve().name
        folder = ["--runs", str(run.parent), "--name", name, "--resume", "false", "--overwrite", "false"]
        others = ["--config", str(run / "config.yaml"), *folder, "--ckpt_path", str(run / "shared.ckpt"), *others]
    return Asked(run, own.out, own.cross_site, centers), others


def missing(asked: Asked) -> str:
    """What is wrong with the run folder; empty where nothing is."""
    run = asked.run
    if run is None:
        return "--cross-site needs a run folder, found none: colearn-hpc validate RUN" if asked.cross_site else ""
    if not run.is_dir():
        return f"{run}: there is no such run folder"
    if not (run / "config.yaml").exists():
        return (
            f"{run} holds no config.yaml; the run of a script of your own is evaluated by it: "
            f'trainer.test(model, ckpt_path="{run}/shared.ckpt")'
        )
    return ""
