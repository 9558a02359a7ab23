"""The task of Tables 1–3 and 5: one label out of several, cross-entropy, top-k accuracy."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from colearn_hpc._lightning import LightningModule
from colearn_hpc.errors import ConfigurationError
from colearn_hpc.models.class_count import class_count
from colearn_hpc.models.optimizer import SGDSettings
from colearn_hpc.models.registry import build_network

CONFUSION_LIMIT = 50
"""Above this number of classes nobody reads a confusion matrix, and it costs classes² counters."""

Batch = tuple[Tensor, Tensor]


class Classifier(LightningModule):
    """Any network of the registry, trained to give one of ``num_classes`` labels.

    Shapes: a batch is ``x`` float (batch, …) as the network wants it, and ``y`` int64 (batch,) in
    [0, num_classes). The network returns logits (batch, num_classes).

    These are logged once per epoch: ``train_loss``, ``train_acc``, ``val_loss``, ``val_acc``, ``val_acc_top5`` (one for
    each further k), and the last three with ``test_``. They are exact over all ranks of the process group, also if the
    ranks have different numbers of examples. After an evaluation with at most 50 classes, :attr:`confusion_matrix`
    holds the counts.

    Args:
        network: Name in the registry, or dotted path of an ``nn.Module`` class.
        network_args: Keywords of the network.
        num_classes: Number of labels. ``None`` takes the number of the data module's classes; the network is then built
            in :meth:`setup`, when the data are known. A number above the data's is a warning, one below is an error.
        learning_rate: Rate of SGD, η. Under co-learning the schedule (equation 3) multiplies it by a factor.
        momentum: Momentum of SGD; the paper's plain SGD is 0.
        nesterov: Nesterov's form of momentum; needs a ``momentum`` above 0.
        weight_decay: L2 coefficient of SGD.
        top_k: The accuracies to log beside top-1. A k of ``num_classes`` or more is left out, because that accuracy is
            always 1.
        label_smoothing: Share of the target that is spread over all classes. It is for training only, so ``val_loss``
            stays comparable.

    Raises:
        ConfigurationError: A setting is out of its range, the network cannot be built, or the data have more classes.
    """

    def __init__(
        self,
        network: str,
        network_args: dict[str, Any] | None = None,
        num_classes: int | None = None,
        learning_rate: float = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        top_k: Sequence[int] = (1, 5),
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if any(k < 1 for k in top_k):
            raise ConfigurationError(f"top_k={list(top_k)}: every k must be 1 or more")
        if not 0.0 <= label_smoothing < 1.0:
            raise ConfigurationError(f"label_smoothing={label_smoothing}: must be in [0, 1)")
        network_args = dict(network_args or {})
        top_k = [int(k) for k in top_k]
        # Plain types only: the checkpoint must open with weights_only=True, without this package's classes.
        self.save_hyperparameters()
        self.sgd = SGDSettings(learning_rate, momentum, nesterov, weight_decay)
        self.label_smoothing = label_smoothing
        self.train_loss, self.val_loss, self.test_loss = MeanMetric(), MeanMetric(), MeanMetric()
        self.confusion_matrix: list[list[int]] | None = None
        """Counts of the last evaluation, a row for each true class; None before it and above 50 classes."""
        # Not from hparams: under LightningCLI they hold what the configuration says, None for what it leaves out.
        self._network, self._network_args, self._top_k = network, network_args, top_k
        self._num_classes = num_classes
        if num_classes is not None:
            self._build(num_classes)

    def _build(self, num_classes: int) -> None:
        if num_classes < 2:
            raise ConfigurationError(f"num_classes={num_classes}: a classifier needs 2 or more")
        self.network: nn.Module = build_network(self._network, num_classes, **self._network_args)
        further = sorted({k for k in self._top_k if 1 < k < num_classes})
        self.train_metrics = _metrics("train", num_classes, [])
        self.val_metrics = _metrics("val", num_classes, further)
        self.test_metrics = _metrics("test", num_classes, further)
        self._confusion: MulticlassConfusionMatrix | None = None
        if num_classes <= CONFUSION_LIMIT:
            self._confusion = MulticlassConfusionMatrix(num_classes, validate_args=False)

    def setup(self, stage: str) -> None:
        """Compare the number of classes with the data's, or take it from there; see ``num_classes``."""
        found = class_count(self._num_classes, self.trainer.datamodule, exact=False)  # type: ignore[attr-defined]
        if self._num_classes is None:
            self._build(found)
            # A checkpoint is loaded without the data.
            self._num_classes = self.hparams["num_classes"] = found

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, num_classes)."""
        return self.network(x)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, y = batch
        logits = self(x)
        loss = cross_entropy(logits, y, label_smoothing=self.label_smoothing)
        # update(), not forward(): no value per step is wanted, and forward() would compute one. The only collective
        # is at the end of the epoch, where Lightning computes the logged metric objects.
        self.train_loss.update(loss.detach(), weight=len(y))
        self.train_metrics.update(logits.detach(), y)
        self.log("train_loss", self.train_loss, on_step=False, on_epoch=True)
        self.log_dict(cast("dict[str, Metric]", dict(self.train_metrics)), on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("val", batch, self.val_loss, self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("test", batch, self.test_loss, self.test_metrics)

    def on_validation_epoch_start(self) -> None:
        if self._confusion is not None:
            self._confusion.reset()

    def on_validation_epoch_end(self) -> None:
        if self._confusion is not None:
            # Collective over the process group: compute() adds the ranks' counts. All ranks come here.
            self.confusion_matrix = self._confusion.compute().tolist()

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def on_test_epoch_end(self) -> None:
        self.on_validation_epoch_end()

    def predict_step(self, batch: Batch | Tensor, batch_idx: int) -> Tensor:
        """Class probabilities (batch, num_classes): what ensemble-learning averages over participants."""
        x = batch if isinstance(batch, Tensor) else batch[0]
        return torch.softmax(self(x), dim=-1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD over the parameters that are trained; LightningCLI's ``optimizer:`` takes its place where given."""
        return self.sgd.over(self)

    def _evaluate(self, stage: str, batch: Batch, loss: MeanMetric, metrics: MetricCollection) -> None:
        x, y = batch
        logits = self(x)
        loss.update(cross_entropy(logits, y), weight=len(y))
        metrics.update(logits, y)
        if self._confusion is not None:
            self._confusion.update(logits, y)
        self.log(f"{stage}_loss", loss, on_step=False, on_epoch=True)
        for name, metric in metrics.items():
            self.log(name, metric, on_step=False, on_epoch=True, prog_bar=name == "val_acc")


def _metrics(stage: str, num_classes: int, further: list[int]) -> MetricCollection:
    """Top-1 under ``<stage>_acc``, others under ``<stage>_acc_top<k>``; micro, i.e. correct / seen."""
    metrics: dict[str, Metric | MetricCollection] = {
        "acc" if k == 1 else f"acc_top{k}": MulticlassAccuracy(
            num_classes, top_k=k, average="micro", validate_args=False
        )
        for k in [1, *further]
    }
    # validate_args=False: its checks wait for the GPU at every step, and cross_entropy has refused bad labels before.
    # No compute groups: Lightning logs the members one by one, and top-1 and top-5 have different counts anyway.
    return MetricCollection(metrics, prefix=f"{stage}_", compute_groups=False)
