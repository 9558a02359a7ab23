"""Ensemble-learning, the paper's other baseline: data centers train alone, only their predictions meet.

Rounds are those of fixed local epochs, so that a run folder reads like any other; but nothing is exchanged until
the validation after a round's last epoch. There every data center's probabilities for the common evaluation set are
averaged over data centers, and the ensemble's metrics enter the round's line as those of the shared model. Each
member's own metrics stand beside them as local ones, its weights in ``centers/NAME/member.ckpt``.

All members start from the same w⁰, as in co-learning.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric

import colearn_hpc._lightning as pl
from colearn_hpc._lightning import LightningModule
from colearn_hpc.algorithm.shared_model import FlatModel, infinite_buffers
from colearn_hpc.between import Offer, Vector
from colearn_hpc.errors import ConfigurationError
from colearn_hpc.protocol.messages import Topic, TopicKind
from colearn_hpc.protocol.run import Decision
from colearn_hpc.protocol.settings import Settings
from colearn_hpc.trainer.averager import MeanResult
from colearn_hpc.trainer.place import Place
from colearn_hpc.trainer.round_end import RoundEnd, arrive


class EnsembleAverager:
    """An :class:`~colearn_hpc.trainer.averager.Averager` for data centers that never exchange weights.

    Args:
        place: this process's.
        settings: of the run.
    """

    shares_model = False

    def __init__(self, place: Place, settings: Settings) -> None:
        self._place, self._settings = place, settings
        self._round = 0
        self._constant: dict[str, Tensor] = {}
        self._probabilities: list[Tensor] = []
        self._targets: list[Tensor] = []

    def watch(self, module: LightningModule) -> None:
        self._constant = infinite_buffers(module)

    def begin_epoch(self, module: LightningModule) -> None:
        """Nothing travels."""

    def end_epoch(self, module: LightningModule) -> None:
        """Nothing travels."""

    def start_from(self, module: LightningModule) -> None:
        """There is no shared model."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Members hold nothing between rounds."""

    def show_local(self, module: LightningModule) -> None:
        """The module is the member's own throughout."""

    def show_result(self, module: LightningModule) -> None:
        """It is the result."""

    def checkpoint_path(self, run_folder: Path, center_folder: Path) -> Path:
        return center_folder / "member.ckpt"

    def take(self, end: RoundEnd) -> MeanResult:
        """Close a round without touching any weight or optimizer. Collective over the world.

        There is no shared model: its relative change and the members' divergence from it are NaN (null in files).

        Raises:
            ParticipantError: when this member's model is not finite.
        """
        model = FlatModel.of(end.module, self._constant)
        given, end = arrive(self._place, self._settings, model, None, end)
        self._round, self._probabilities, self._targets = given.place.round, [], []
        decision = self._place.conversation.decide(
            Topic(TopicKind.NO_MEAN, end.place.round), lambda: end.decide(math.nan, given)
        )
        self._place.conversation.settled()
        return MeanResult(replace(end.report, divergence=math.nan), Decision.from_plain(decision), given.place)

    @torch.no_grad()
    def predict(self, trainer: pl.Trainer, module: LightningModule, batch: Any, batch_index: int) -> None:
        """Take in this rank's share of the evaluation, batch by batch.

        The module's ``predict_step`` must return probabilities, (batch, …); the batch is ``(x, y)``.
        """
        with trainer.precision_plugin.forward_context():
            probabilities = module.predict_step(batch, batch_index)
        if not isinstance(probabilities, Tensor) or not isinstance(batch, list | tuple) or len(batch) < 2:
            raise ConfigurationError(
                f"ensemble-learning averages probabilities: {type(module).__name__}.predict_step must return them as "
                f"a tensor for batches (x, y); found {type(probabilities).__name__} for a {type(batch).__name__}"
            )
        self._probabilities.append(probabilities.float().cpu())
        self._targets.append(batch[1].cpu())

    def shared_metrics(self, trainer: pl.Trainer, module: LightningModule) -> dict[str, float] | None:
        """The ensemble's metrics from what :meth:`predict` took in. Collective over the world.

        Returns:
            On leaders the metrics, elsewhere nothing. Empty when no validation ran after this round.

        Raises:
            ConfigurationError: on all ranks, when the data centers evaluate on different examples.
        """
        site, conversation = self._place.site, self._place.conversation
        share = None
        if self._probabilities:
            probabilities, targets = torch.cat(self._probabilities).clone(), torch.cat(self._targets).clone()
            loaders = trainer.val_dataloaders
            loader = loaders[0] if isinstance(loaders, list | tuple) else loaders
            share = (evaluated_indices(loader, len(targets)), probabilities, targets)
        self._probabilities, self._targets = [], []
        shares = site.gather(share)
        whole = None
        if shares is not None and all(s is not None for s in shares):
            whole = in_order([s for s in shares if s is not None])
        digest = None if whole is None else _digest(whole[1])
        attendance = conversation.meet(Topic(TopicKind.EVALUATION, self._round), digest)
        digests = [attendance.contents.get(k) for k in range(len(attendance.brought))]
        if None in digests:
            return {}
        if len(set(digests)) > 1:
            names = ", ".join(self._place.between.names)
            raise ConfigurationError(
                "ensemble-learning averages predictions for one evaluation set, but the data centers evaluate on "
                f"different examples ({names}); give all of them the same validation data, unshuffled"
            ).on_all_ranks()
        if whole is None:
            return {}  # not a leader
        probabilities, targets = whole
        mean = probabilities.reshape(-1)
        offer = Offer(Vector(mean), mean, [1.0] * len(digests), len(mean))
        self._place.means.take(offer, attendance.present)  # leaders carry alone: the settings allow no more lanes
        return metrics_of(module, mean.view(probabilities.shape), targets)


def evaluated_indices(loader: Any, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Positions in a loader's data of the ``count`` examples that this rank evaluated, in its order."""
    sampler = getattr(loader, "batch_sampler", None) or getattr(loader, "sampler", None)
    if sampler is None or isinstance(getattr(loader, "dataset", None), torch.utils.data.IterableDataset):
        return np.arange(count)
    found: list[int] = []
    for item in sampler:
        found += map(int, item) if isinstance(item, Iterable) else [int(item)]
    return np.asarray(found[:count], dtype=np.int64)  # limit_val_batches evaluates only the first


def in_order(shares: Sequence[tuple[np.ndarray[Any, Any], Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """One data center's evaluation from its ranks' shares: (probabilities, targets), each example once, by position.

    Args:
        shares: per rank: positions (n,), probabilities (n, …), targets (n, …). Ranks may hold different
            numbers, and samplers that fill up the last batch evaluate some examples twice.
    """
    positions = np.concatenate([share[0] for share in shares])
    assert len(positions) == sum(len(share[1]) for share in shares)
    _, first = np.unique(positions, return_index=True)
    rows = torch.from_numpy(first)
    return torch.cat([share[1] for share in shares])[rows], torch.cat([share[2] for share in shares])[rows]


def metrics_of(module: nn.Module, probabilities: Tensor, targets: Tensor) -> dict[str, float]:
    """What averaged probabilities are worth, under the names that validation uses.

    The module's own ``val_metrics`` (torchmetrics, fed with probabilities and targets) are asked; without them, one
    label out of several gives the accuracy. For such labels ``val_loss`` is the cross-entropy.

    Args:
        module: the LightningModule.
        probabilities: (n, classes).
        targets: int64 (n,), or (n, classes) of several labels.

    Raises:
        ConfigurationError: several labels, and no ``val_metrics``.
    """
    one_label = targets.ndim == 1 and not targets.is_floating_point()
    result: dict[str, float] = {}
    if one_label:
        picked = probabilities.gather(1, targets[:, None]).squeeze(1)
        result["val_loss"] = float(-picked.double().clamp(min=1e-12).log().mean())
    metrics = getattr(module, "val_metrics", None)
    if isinstance(metrics, nn.Module):
        metrics = copy.deepcopy(metrics).cpu()
        for metric in metrics.modules():
            if isinstance(metric, Metric):
                metric.distributed_available_fn = lambda: False  # leaders alone are here: no collective
                metric.reset()
        metrics.update(probabilities, targets)  # type: ignore[operator]
        values = metrics.compute()  # type: ignore[operator]
        result |= {name if name.startswith("val_") else f"val_{name}": float(v) for name, v in values.items()}
    elif one_label:
        result["val_acc"] = float((probabilities.argmax(1) == targets).double().mean())
    else:
        raise ConfigurationError(
            f"{type(module).__name__} has no `val_metrics` (torchmetrics, fed with probabilities and targets), which "
            "ensemble-learning needs to judge averaged probabilities of several labels"
        )
    return result


def _digest(targets: Tensor) -> str:
    content = f"{tuple(targets.shape)} {targets.dtype}".encode() + targets.contiguous().numpy().tobytes()
    return hashlib.sha256(content).hexdigest()
