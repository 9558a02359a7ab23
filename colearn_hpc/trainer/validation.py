"""When a run validates, and what those compare who monitor a metric.

    validation    the validation loop runs                        monitors are asked
    "round"       where the module is the shared model            there, once a round
    "epoch"       there, and after each local epoch between;      there, once a round
                  of the local model, as ``local/NAME``
    "lightning"   whenever the Trainer says                       whenever the Trainer says

Those who monitor are ModelCheckpoint, EarlyStopping and ReduceLROnPlateau. At a round's end all data centers agree on
one value for each metric: its mean over the data centers, weighted by the examples that it was measured on. They find
it under the metric's name until the next local epoch begins. So all stop together, keep the same round's model as the
best, and never let their rates drift apart.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import colearn_hpc._lightning as pl
from colearn_hpc._lightning import kinds
from colearn_hpc.errors import ConfigurationError
from colearn_hpc.protocol.messages import Topic, TopicKind
from colearn_hpc.protocol.settings import Settings
from colearn_hpc.trainer.lightning_gaps import (
    LOCAL,
    callbacks_of,
    fix_metrics,
    name_as_local,
    never_step,
    plateau_schedulers,
    release_metrics,
    save_where_validated,
    saves_by_step,
    step_scheduler,
    stop_at_epoch_end,
)
from colearn_hpc.trainer.place import Place

log = logging.getLogger("colearn_hpc")


class Validation:
    """Says when the validation loop runs, and brings monitors what they compare. One per ``fit``.

    Args:
        settings: of the run.
        place: this process's.
    """

    def __init__(self, settings: Settings, place: Place) -> None:
        self._mode, self._place, self._may_miss = settings.validation, place, settings.may_miss
        self._agrees_alone = settings.combine == "predictions"
        # With secure sums what is measured on private data stays home.
        self._tells_trained = not settings.secure or settings.share_metrics
        self._tells_validated = self._tells_trained or settings.public_validation
        self._examples: Counter[int] = Counter()  # of this rank's last validation, by loader
        self._agreed = -1  # the round whose metrics have been agreed on

    @property
    def by_rounds(self) -> bool:
        """Whether monitors are asked once a round, and not by Lightning's own rules."""
        return self._mode != "lightning"

    # --- checks -----------------------------------------------------------------------------------------

    def prepare(self, trainer: pl.Trainer) -> None:
        """Check the Trainer and its callbacks, and have monitors asked at rounds' ends. In ``setup``.

        Raises:
            ConfigurationError: something asks for a validation, or monitors a metric, that there is not.
        """
        if not self.by_rounds:
            return
        every, interval = trainer.check_val_every_n_epoch, trainer.val_check_interval
        for name, found, usual in (("check_val_every_n_epoch", every, 1), ("val_check_interval", interval, 1.0)):
            # An interval of 1 is every batch, one of 1.0 every epoch.
            if found != usual or type(found) is not type(usual):
                raise ConfigurationError(
                    f'Trainer({name}={found!r}): with validation="{self._mode}" it is rounds that say when the shared '
                    f'model is validated; leave {name} out, or pass CoLearning(validation="lightning") to validate '
                    "whichever model there is, by Lightning's own rules"
                )
        early, saving = kinds("callbacks", "EarlyStopping"), kinds("callbacks", "ModelCheckpoint")
        for callback in callbacks_of(trainer):
            if not isinstance(callback, early + saving) or getattr(callback, "monitor", None) is None:
                continue
            kind, monitor = type(callback).__name__, callback.monitor
            if monitor.startswith(LOCAL):
                raise ConfigurationError(
                    f"{kind}(monitor={monitor!r}): what is named {LOCAL}... is one data center's own, and no data "
                    f"center may decide by it; monitor {monitor.removeprefix(LOCAL)!r}, the shared model's"
                )
            if isinstance(callback, early):
                log.info("%s(%r): patience=%d counts rounds", kind, monitor, callback.patience)
            elif saves_by_step(callback):
                raise ConfigurationError(
                    f"{kind}(monitor={monitor!r}) with every_n_train_steps or train_time_interval: the metric is the "
                    "shared model's, and between two rounds' ends the model is one data center's own; leave those two "
                    'out (it is saved at rounds\' ends), or monitor, or pass CoLearning(validation="lightning")'
                )
            else:
                save_where_validated(callback)

    def prepare_schedulers(self, trainer: pl.Trainer) -> None:
        """The same for the schedulers that monitor a metric. In ``on_fit_start``."""
        for config in plateau_schedulers(trainer):
            what = f"{type(config.scheduler).__name__}(monitor={config.monitor!r})"
            if self._agrees_alone or (not self.by_rounds and self._place.alone):
                continue
            if not self._tells_validated:
                raise ConfigurationError(
                    f"{what} follows a metric, and with privacy: secure=True metrics on private data stay home. "
                    "Validate on public data and set privacy: public_validation=True, or set share_metrics=True, or "
                    "use a scheduler that monitors nothing"
                )
            if not self.by_rounds:
                raise ConfigurationError(
                    f'{what}: with validation="lightning" each data center would lower its own rate by its own metric, '
                    'and the rates would drift apart; use validation="round", where all decide alike'
                )
            if self._may_miss:
                raise ConfigurationError(
                    f'{what}: with on_failure="continue_without" a data center that is left out of a round would miss '
                    'its step; use on_failure="stop", or a scheduler that monitors nothing'
                )
            if (config.interval, config.frequency) != ("epoch", 1):
                raise ConfigurationError(
                    f"{what}: interval={config.interval!r}, frequency={config.frequency}; it is stepped once a round, "
                    "when the shared model is validated: leave both out"
                )
        if self.by_rounds:
            never_step(trainer)

    # --- the epoch, in the order in which it goes ---------------------------------------------------------

    def begin_epoch(self, trainer: pl.Trainer) -> None:
        """A local epoch begins, with metrics of its own."""
        if self.by_rounds:
            release_metrics(trainer)
            stop_at_epoch_end(trainer, True)
            self.shows(trainer, False)

    def shows(self, trainer: pl.Trainer, shared: bool) -> None:
        """What the module is at the epoch's end: the shared model or the local one."""
        if self.by_rounds:
            _validate(trainer, shared or self._mode == "epoch")

    def begins(self, trainer: pl.Trainer, shared: bool) -> None:
        """The validation loop begins."""
        self._examples.clear()
        if self.by_rounds and not trainer.sanity_checking:
            name_as_local(trainer, not shared)

    def count(self, examples: int, loader: int) -> None:
        """A batch was validated."""
        self._examples[loader] += examples

    def ends(self, trainer: pl.Trainer) -> None:
        """The validation loop has ended, and all callbacks have seen what it found."""
        name_as_local(trainer, False)

    def ask_monitors(self, trainer: pl.Trainer, shared: bool) -> None:
        """The epoch's end: those who monitor come next; they are passed over where the module is the local one."""
        if self.by_rounds:
            _validate(trainer, shared)
            stop_at_epoch_end(trainer, shared)

    def agree(
        self,
        trainer: pl.Trainer,
        round_index: int,
        validated: Mapping[str, float],
        trained: Mapping[str, float],
        examples: int,
    ) -> None:
        """Agree on the metrics of a round, once. Collective over the world.

        Args:
            trainer: its monitors will find them.
            round_index: i.
            validated: what this rank's validation found of the shared model, by name; empty where it did not validate.
            trained: its metrics from training.
            examples: that its data center trained on in the round; the leader's number counts.
        """
        if not self.by_rounds or round_index <= self._agreed:
            return
        self._agreed = round_index
        counted: Counter[int] = Counter()
        for one in self._place.site.gather(dict(self._examples)) or []:
            counted.update(one)
        mine: dict[str, Any] = {}
        if self._tells_trained:
            mine = {name: [value, examples] for name, value in trained.items() if not name.startswith(LOCAL)}
        if self._tells_validated:
            mine |= {name: [value, _of_loader(name, counted)] for name, value in validated.items()}
        said = self._place.conversation.meet(Topic(TopicKind.METRICS, round_index), mine)
        means = means_of(list(said.contents.values()))
        if not (validated or trained):
            return  # between two attempts, or the Trainer has ended: nobody is asked
        fix_metrics(trainer, means)
        for config in plateau_schedulers(trainer):
            if config.monitor in means:
                step_scheduler(trainer, config, means[config.monitor])
            elif config.strict:
                raise ConfigurationError(
                    f"{type(config.scheduler).__name__} monitors {config.monitor!r}, which no data center has; there "
                    f"are {', '.join(sorted(means)) or 'no metrics'}"
                )

    def end(self, trainer: pl.Trainer) -> None:
        """Leave the Trainer as it was found."""
        if self.by_rounds:
            _validate(trainer, True)


def means_of(contents: Sequence[Any]) -> dict[str, float]:
    """The mean of each metric over the data centers that have it.

    Args:
        contents: of each data center: name -> [value, examples].

    Raises:
        ValueError: one of them is not that.
    """
    found: dict[str, list[tuple[float, int]]] = {}
    for content in contents:
        if not isinstance(content, dict):
            raise ValueError(f"no metrics of a data center: {content!r:.200}")
        for name, said in content.items():
            match said:
                case [int() | float() as value, int(examples)] if isinstance(name, str) and examples >= 0:
                    found.setdefault(name, []).append((float(value), examples))
                case _:
                    raise ValueError(f"no metric of a data center: {name!r:.100}: {said!r:.200}")
    return {name: _mean(values) for name, values in found.items()}


def _mean(values: Sequence[tuple[float, int]]) -> float:
    first = values[0][0]
    if all(value == first for value, _ in values):
        return first  # to the bit, as with one evaluation set for all
    total = sum(examples for _, examples in values)
    if not total:  # no batch size could be read
        return sum(value for value, _ in values) / len(values)
    return sum(value * examples for value, examples in values) / total


def _of_loader(name: str, examples: Counter[int]) -> int:
    """How many examples a metric of the validation was measured on: of the loader that Lightning put into its name, or
    of all of them."""
    _, found, number = name.rpartition("/dataloader_idx_")
    return examples[int(number)] if found and number.isdecimal() else examples.total()


def _validate(trainer: pl.Trainer, wanted: bool) -> None:
    """Whether this epoch ends with the validation loop; after it, whether ModelCheckpoint saves at the epoch's end."""
    trainer.check_val_every_n_epoch = 1 if wanted else trainer.current_epoch + 2
