"""``colearn-hpc fit``: LightningCLI, with data centers around it.

One configuration system: LightningCLI's YAML, plus ``name``, ``runs``, ``centers`` and the group
``colearning`` (the arguments of :class:`CoLearning`). This file decides what each rank of each data center
gets: devices, folders, loggers, bar; and how errors end a run: one message, every rank gone.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import sys
import warnings
from argparse import SUPPRESS
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError

import colearn_hpc.data
import colearn_hpc.models
import colearn_hpc.trainer.private_training
from colearn_hpc._lightning import (
    CSVLogger,
    LightningArgumentParser,
    LightningCLI,
    LightningModule,
    MisconfigurationException,
    TensorBoardLogger,
    Trainer,
)
from colearn_hpc.cli.method import arrange
from colearn_hpc.cli.options import OPTIONS, SET_BY_US
from colearn_hpc.cli.usage import UsageError, asks, check_config_files, in_one_line, who_left
from colearn_hpc.errors import CheckpointError, ColearnError, ConfigurationError, Interrupted, PeerError, text_of
from colearn_hpc.join import decline, read_membership
from colearn_hpc.mpi.startup import all_errors, launched_as, leave_together, told_by_all
from colearn_hpc.mpi.topology import CENTER_VARIABLE, CentersSpec
from colearn_hpc.protocol import pacing
from colearn_hpc.protocol.conversation import is_after_the_end, is_everywhere, mark_everywhere
from colearn_hpc.protocol.failures import is_lost_peer
from colearn_hpc.protocol.messages import Topic, TopicKind, describe_elsewhere, describe_error
from colearn_hpc.trainer import signals
from colearn_hpc.trainer.callback import CoLearning
from colearn_hpc.trainer.devices import trainer_devices, unused_gpus
from colearn_hpc.trainer.environment import DataCenterEnvironment
from colearn_hpc.trainer.inject import FaultInjector
from colearn_hpc.trainer.lightning_gaps import group_run
from colearn_hpc.trainer.local_model import LocalModel
from colearn_hpc.trainer.outputs import claim_folder
from colearn_hpc.trainer.place import Place
from colearn_hpc.trainer.progress import RunProgress
from colearn_hpc.trainer.resume_points import remove
from colearn_hpc.trainer.writing import private_folder, write_atomically

# Short names for `class_path`: LightningCLI resolves the subclasses that have been imported.
Classifier, MultilabelTask = colearn_hpc.models.Classifier, colearn_hpc.models.MultilabelTask
ShardDataModule = colearn_hpc.data.ShardDataModule
PrivateTraining = colearn_hpc.trainer.private_training.PrivateTraining


@dataclass
class Session:
    """What outlives the building of the CLI: how to reach the other ranks when it fails.

    Attributes:
        place: this process's; None before the data centers have joined.
        awaited: this rank builds its objects, and the next that the others do is to wait for it where the run begins.
    """

    place: Place | None = None
    awaited: bool = False


class _Trainer(Trainer):
    """A Trainer whose ``fit`` begins again when this data center fails."""

    colearning: CoLearning | None = None  # until it has taken charge

    def fit(self, model: LightningModule, *args: Any, **kwargs: Any) -> None:
        if self.colearning is None:
            return super().fit(model, *args, **kwargs)
        colearning, self.colearning = self.colearning, None
        colearning.fit(self, model, *args, **kwargs)


class ColearnCLI(LightningCLI):
    """LightningCLI that parses everywhere, joins the data centers, and only then builds anything."""

    def __init__(self, session: Session) -> None:
        self.session = session
        super().__init__(
            LightningModule,  # and any LightningDataModule, or none where the module brings its loaders
            trainer_class=_Trainer,
            subclass_mode_model=True,
            save_config_callback=None,  # K leaders would write the same file; see before_fit
            seed_everything_default=0,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"fit": LightningCLI.subcommands()["fit"]}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        # Errors are collected from all ranks and printed once, so the parser may not exit by itself.
        return super().init_parser(exit_on_error=False, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for option in OPTIONS:
            switch: dict[str, Any] = {"nargs": "?", "const": True} if option.is_switch else {}
            parser.add_argument(
                f"--{option.name}", type=option.type, default=option.default, help=option.help, **switch
            )
        # For rehearsals (docs/reliability.md); not of every day, so not in the help.
        parser.add_argument("--inject", type=list[str], default=[], help=SUPPRESS)
        self._example = parser
        parser.add_class_arguments(CoLearning, "colearning", skip=set(SET_BY_US))
        # What the command line knows itself goes in when it is built, so that all is checked together.
        parser.add_instantiator(self._make_colearning, CoLearning, subclasses=False)
        parser.set_defaults({"trainer.max_epochs": -1, "trainer.enable_checkpointing": False})

    def _make_colearning(self, kind: type[CoLearning], **arguments: Any) -> CoLearning:
        if self._setting("method") == "ensemble":
            arguments["combine"] = "predictions"
        return kind(**arguments, centers=self.center, run_dir=self.folder, federation=self.membership)

    def before_instantiate_classes(self) -> None:
        """Join the data centers, and check what was set. Collective over the world."""
        centers, self.notice = self._data_centers()
        self.membership = self._read_membership(centers) if self.subcommand == "fit" else None
        if self.membership is not None:  # all ranks of this world are one site's
            os.environ[CENTER_VARIABLE], centers = self.membership.name, None
        environment = DataCenterEnvironment(centers)
        self.center, self.environment = environment.center, environment
        # Of a federation's site: inside it alone. What is prepared here is its own.
        shares = self.subcommand == "fit" and bool(self._setting("colearning")["share_tracebacks"])
        self.session.place = self.place = Place.of(environment.center, share_tracebacks=shares)
        self.folder = Path(self._setting("runs")) / self._setting("name")
        self.center_folder = self.folder / "centers" / self.center.name
        self._check_name()
        self._check_devices()
        if self.subcommand == "fit":
            self._check_budget()
            self._prepare_folder()
            self.session.awaited = True

    def _data_centers(self) -> tuple[CentersSpec, str]:
        """What divides the ranks into data centers, and a line for people. Collective over the world."""
        return arrange(self.config[self.subcommand])

    def _read_membership(self, centers: Any) -> Any:
        """Of which site of which federation this world is; None: of none. Every rank reads by itself.

        Raises:
            ConfigurationError: what was set cannot be had in a federation, or a file cannot be read; on all ranks, if
                on one.
        """
        path, site, identity = (self._setting(name) for name in ("federation", "site", "identity"))
        found, error = None, ""
        try:
            if path is None and (site or identity):
                raise ConfigurationError("--site and --identity are of a federation; give its file by --federation")
            if path is not None and self._setting("method") != "colearning":
                raise ConfigurationError(
                    f"--method {self._setting('method')} is of one MPI world; leave out --federation"
                )
            if path is not None:
                found = read_membership(path, site, identity)
                sites = len(found.federation.names)
                if centers not in (None, 1, sites):
                    raise ConfigurationError(
                        f"this world is one data center of a federation of {sites}, and centers is {centers}; leave it "
                        "out"
                    )
        except ConfigurationError as wrong:
            error = str(wrong)
        if errors := all_errors(error):
            raise ConfigurationError("\n".join(errors)).on_all_ranks()
        return found

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        settings = self._get(self.config_init, "trainer")
        center = self.center
        if center.is_first and (idle := unused_gpus(settings["accelerator"])):
            print(f"colearn-hpc: {idle}", file=sys.stderr)
        kwargs |= {
            "plugins": [*_as_list(settings["plugins"]), self.environment],
            "num_nodes": center.nodes,
            **trainer_devices(center, settings["accelerator"]),
            "enable_model_summary": bool(settings["enable_model_summary"]) and center.is_first,
        }
        if settings["strategy"] == "auto" and center.size > 1:
            private = any(isinstance(one, PrivateTraining) for one in _as_list(settings["callbacks"]))
            kwargs["strategy"] = colearn_hpc.trainer.private_training.PrivateDDPStrategy() if private else "ddp"
        if settings["default_root_dir"] is None:
            kwargs["default_root_dir"] = str(self.center_folder)
        if settings["logger"] in (None, True) and self.subcommand == "fit":
            csv = CSVLogger(self.center_folder, name="logs")
            kwargs["logger"] = [csv, TensorBoardLogger(self.center_folder, name="logs", version=csv.version)]
        elif settings["logger"] is None:
            kwargs["logger"] = False
        if self.subcommand == "fit" and len(center.topology.centers) > 1:
            for logger in _as_list(kwargs.get("logger", settings["logger"])):
                group_run(logger, self.folder.name, center.name)
        callbacks = _as_list(settings["callbacks"])
        if self.subcommand == "fit":
            colearning = self._get(self.config_init, "colearning")
            if len(center.topology.centers) > 1 and colearning.settings.combine == "weights":
                callbacks.append(LocalModel(colearning.standing, center))
            callbacks.append(colearning)
            if self._setting("inject"):
                callbacks.append(FaultInjector(self._setting("inject"), colearning.standing))
            if settings["enable_progress_bar"] is not False:
                callbacks.append(RunProgress(colearning.standing))
            else:
                kwargs["enable_progress_bar"] = False
        elif not center.is_first:
            kwargs["enable_progress_bar"] = False
        try:
            trainer = super().instantiate_trainer(callbacks=callbacks, **kwargs)
        except (MisconfigurationException, TypeError, ValueError) as error:
            said = " ".join(text_of(error).split()) or type(error).__name__
            raise ConfigurationError(f"trainer: Lightning does not take these settings here: {said}") from error
        assert isinstance(trainer, _Trainer), "trainer_class"
        trainer.colearning = next((c for c in callbacks if isinstance(c, CoLearning)), None)
        return trainer

    def before_fit(self) -> None:
        """Choose the resume point and write ``config.yaml``. Collective over the world."""
        arguments = self.config_init[self.subcommand]
        if self.notice and self.center.is_first:
            print(f"colearn-hpc: {self.notice}", file=sys.stderr)
        if _resumes(self.config[self.subcommand]):
            path = self._get(self.config_init, "colearning").resume_path()
            arguments["ckpt_path"] = None if path is None else str(path)
            if path is None and self.center.is_first:
                print(f"colearn-hpc: nothing to resume in {self.folder}, starting anew", file=sys.stderr)
        if self.center.is_first:
            self._dump_config()
            config = yaml.safe_dump(without_secrets(self.config_dump), sort_keys=False)
            write_atomically(self.folder / "config.yaml", config, self.center.start)
        self.session.awaited = False  # from now on the callback hears of an error

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse on every rank, and go on only if all could. Collective over the world."""
        error, output = "", io.StringIO()
        try:
            with contextlib.redirect_stderr(output):
                check_config_files(sys.argv[1:])
                super().parse_arguments(parser, args)
        except UsageError as wrong:
            error = str(wrong)
        except (ArgumentError, SystemExit) as stop:
            if isinstance(stop, SystemExit) and not stop.code and asks(sys.argv[1:]):
                raise
            said = str(stop) if isinstance(stop, ArgumentError) else output.getvalue() if stop.code == 2 else ""
            error = in_one_line(said, list(self._example.get_defaults().keys())) if said else who_left(stop)
        if errors := all_errors(error):
            raise UsageError("\n".join(errors)).on_all_ranks()
        self._check_same_command()

    def _check_same_command(self) -> None:
        """What says which run this is, and what becomes of an old one, is compared before anything is done. Collective
        over the world.

        Raises:
            UsageError: on all ranks, where they were started with different ones.
        """
        command = self.config["subcommand"]
        settings = self.config[command]
        mine = {"command": command, "--name": str(settings["name"]), "--resume": str(_resumes(settings))}
        mine |= {f"--{key}": str(settings[key]) for key in ("overwrite", "method")}
        everyone = told_by_all(list(mine.values()))
        for option, found in zip(mine, zip(*everyone, strict=True), strict=True):
            if len(set(found)) > 1:
                ranks = "; ".join(f"{value} on rank {found.index(value)}" for value in dict.fromkeys(found))
                raise UsageError(
                    f"{option} differs between the ranks ({ranks}); start all data centers with the same command"
                ).on_all_ranks()

    def _setting(self, name: str) -> Any:
        return self.config[self.subcommand][name]

    def _check_name(self) -> None:
        name, checkpoint = self._setting("name"), self._setting("ckpt_path")
        parts = Path(name).parts  # none of "." and ""
        if not parts or Path(name).is_absolute() or ".." in parts or not name.isprintable():
            raise ConfigurationError(f"name {name!r} must be that of a folder in runs={self._setting('runs')}")
        if max(len(os.fsencode(part)) for part in parts) > 200:  # temporary names are longer, and 255 is the end
            raise ConfigurationError(f"name {name[:40]!r}... has {len(name)} characters; use 200 at most")
        special = ("last", "best", "hpc")
        if checkpoint and checkpoint not in special and "://" not in checkpoint and not Path(checkpoint).exists():
            raise ConfigurationError(
                f"ckpt_path={checkpoint}: there is no such file; a finished run's model is runs/NAME/shared.ckpt, "
                "and --resume continues an interrupted run"
            )

    def _check_devices(self) -> None:
        trainer, center = self._setting("trainer"), self.center
        for key, default, found in (("devices", "auto", center.local_size), ("num_nodes", 1, center.nodes)):
            if str(trainer[key]) not in (str(default), "-1", str(found)):
                raise ConfigurationError(
                    f"trainer.{key}={trainer[key]}, but data center {center.name} has {found} by the ranks that were "
                    f"started; leave trainer.{key} out, and start as many ranks as there are devices"
                )

    def _check_budget(self) -> None:
        trainer, rounds = self._setting("trainer"), self._setting("colearning")["rounds"]
        limits = (rounds, trainer["max_time"], trainer["max_epochs"], trainer["max_steps"])
        if all(limit in (None, -1) for limit in limits):
            raise ConfigurationError(
                "nothing ends this run: set colearning.rounds, trainer.max_epochs, trainer.max_steps or "
                "trainer.max_time"
            )

    def _other_ranks(self) -> str:
        """What is wrong if the run to be resumed was of other ranks: a resume point holds the generators of each."""
        try:
            summary = json.loads((self.folder / "summary.json").read_text())
            before = (list(summary["centers"]), int(summary["ranks"]))
        except (OSError, ValueError, KeyError, TypeError):
            return ""
        names = [center.name for center in self.center.topology.centers]
        if self.membership is not None:
            names = list(self.membership.federation.names)
        now = (names, self.center.world_size)
        if before == now:
            return ""
        found, here = (f"data centers {', '.join(names)} with {ranks} ranks" for names, ranks in (before, now))
        return (
            f"{self.folder} is a run of {found}, and this is {here}; resume it with the same, or choose another --name"
        )

    def _prepare_folder(self) -> None:
        """Refuse the folder of another run, and empty it where that is wanted. Collective over the world.

        Raises:
            ConfigurationError: the run is there already or is of other ranks, another start writes it, or it cannot be
                made.
        """
        if self._setting("resume") and self._setting("overwrite"):
            raise ConfigurationError("--resume and --overwrite exclude each other").on_all_ranks()
        claim_folder(self.folder, self.place)  # before anything is removed
        used = (self.folder / "summary.json").exists() or any(self.center_folder.glob("resume-*.ckpt"))
        # A rank's host may see another file system than its leader's.
        resumes = _resumes(self.config[self.subcommand])
        mine = self.place.site.gather((used, self._other_ranks() if resumes else ""))
        seen = [any(used for used, _ in mine), next((other for _, other in mine if other), "")] if mine else None
        contents = self.place.conversation.meet(Topic(TopicKind.FOLDER_IN_USE), seen).contents.values()
        if wrong := next((wrong for _, wrong in contents if wrong), ""):
            raise ConfigurationError(wrong).on_all_ranks()
        used_somewhere = any(used for used, _ in contents)
        if used_somewhere and not resumes and not self._setting("overwrite"):
            raise ConfigurationError(
                f"{self.folder} holds a run already; continue it with --resume, replace it with --overwrite, or "
                "choose another --name"
            ).on_all_ranks()
        if self._setting("overwrite") and self.center.is_leader:
            old = [*self.center_folder.glob("resume-*.ckpt"), self.center_folder / "faults.jsonl"]
            old += [self.center_folder / "local.ckpt"]
            old += [self.center_folder / "status.json", self.folder / "status" / f"{self.center.name}.json"]
            if self.center.is_first:
                of_run = "rounds.jsonl rounds.damaged.jsonl contract.json summary.json shared.ckpt cross_site.json"
                old += [self.folder / name for name in of_run.split()]
            for path in old:
                remove(path)
        try:
            if self.center.is_leader:
                private_folder(self.center_folder)  # before a logger makes it
        except OSError as error:
            raise ConfigurationError(
                f"runs={self._setting('runs')}: {self.center_folder} cannot be made ({error.strerror}); choose another "
                "--runs"
            ) from error


def _resumes(settings: Any) -> bool:
    """Whether an old run is continued; other checkpoints than the last may be each data center's own."""
    return bool(settings["resume"]) or settings["ckpt_path"] == "last"


_SECRET = re.compile(r"(^|_)(api_?key|access_?key|token|password|passwd|secret|credentials?)$", re.IGNORECASE)


def without_secrets(config: Any) -> Any:
    """The configuration as others may read it: what is named like a key, token or password is left out.

    A logger takes such a thing from the environment (``WANDB_API_KEY``, ``COMET_API_KEY``, ...), where it is not
    written down at all.
    """
    if isinstance(config, dict):
        hidden = "(left out: give it by the environment)"
        return {k: hidden if v and _SECRET.search(str(k)) else without_secrets(v) for k, v in config.items()}
    return [without_secrets(item) for item in config] if isinstance(config, list) else config


def _own(error: BaseException) -> BaseException:
    """The error of ours that another library has wrapped while it built an object, or the error itself."""
    if isinstance(error, RuntimeError) and text_of(error).startswith("Error(s) in loading state_dict"):
        said = " ".join(str(error).split())
        return CheckpointError(
            f"the checkpoint is of another model: {said}; take the configuration that made it, or another --name"
        )
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, ColearnError):
        inner = inner.__cause__ or inner.__context__
    return inner if inner is not None and isinstance(error, ValueError) else error


def main(argv: Sequence[str], cli: Callable[[Session], object] = ColearnCLI) -> int:
    """Run ``fit``, or another command of Lightning's; returns the exit code.

    Args:
        argv: the command and its arguments.
        cli: what runs it.
    """
    sys.argv = ["colearn-hpc", *argv]  # LightningCLI reads it
    rank, size = launched_as()
    session = Session()
    # K leaders believe they are rank zero; only one of them speaks, and of what concerns the run.
    for library in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.ERROR if rank else logging.WARNING)
    # Lightning 2.6 against a newer torch, and a hint to use srun where mpirun was meant: nothing to do for a user.
    warnings.filterwarnings("ignore", ".*(LeafSpec|`srun` command is available).*")
    if rank:
        warnings.simplefilter("ignore")
    try:
        with contextlib.redirect_stdout(None if rank else sys.stdout):
            cli(session)
        _leave(size)
        return 0
    except BaseException as raised:
        after_the_end = is_after_the_end(raised)
        if isinstance(raised, SystemExit) and not after_the_end and (session.place is None or is_everywhere(raised)):
            # --help, or interrupted by a signal on all ranks
            if isinstance(raised, Interrupted):
                _leave(size)
            return raised.code if isinstance(raised.code, int) else int(raised.code is not None)
        error = _own(raised)
        if session.place is not None:
            if session.awaited and not is_everywhere(error):
                _decline(session.place, error)
            session.place.conversation.fail(error)
        elif not is_everywhere(error):
            raise
        if rank == 0 or after_the_end:
            text = session.place.conversation.verdict if session.place is not None else ""
            print(f"colearn-hpc: error: {text or describe_error(error)}", file=sys.stderr, flush=True)
        if isinstance(error, PeerError) and isinstance(error.__cause__, SystemExit):
            error = error.__cause__  # of this rank
        if session.place is not None and _is_kept_here(error, session.place):
            center = session.place.center
            said = f"{center.name} ({center.host}), to be read here alone: {describe_error(error)}"
            print(f"colearn-hpc: {said}", file=sys.stderr, flush=True)
        _leave(size)
        return 2 if isinstance(error, UsageError) else 1


def _decline(place: Place, error: BaseException) -> None:
    """Tell those who wait where the run begins that this rank failed on its way there. Collective over the world."""
    own, name = describe_error(error), f"data center {place.center.name}"
    said = place.conversation.told(own, describe_elsewhere(error))
    try:
        decline(place.center, pacing.GRACE, f"{name}: {said}", f"{name} ({place.center.host}): {own}")
    except PeerError as heard:
        place.conversation.verdict = str(heard)
        mark_everywhere(error)


def _leave(size: int) -> None:
    """This rank's exit code is settled: no signal changes it any more, and all ranks leave together.

    srun and mpirun send TERM to the rest as soon as one rank has exited with an error. Who is still ending then, be it
    in MPI's own end, would seem to have died of it, and a batch script starts again after a death.
    """
    if size > 1:
        signals.ignore()
        leave_together()  # whoever has failed, if only after the run's end, has said so by then


def _is_kept_here(error: BaseException, place: Place) -> bool:
    """Whether the error is this rank's own, and others have not heard all of it."""
    ours = isinstance(error, ColearnError) or is_lost_peer(error)
    return not (ours or place.conversation.shares_tracebacks or is_after_the_end(error))


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
