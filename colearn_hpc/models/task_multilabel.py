"""The task of Tables 4 and 6: any number of labels at once, and metrics of ranking."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy, binary_cross_entropy_with_logits
from torchmetrics import MeanMetric

from colearn_hpc._lightning import LightningModule
from colearn_hpc.errors import ConfigurationError
from colearn_hpc.models.class_count import class_count
from colearn_hpc.models.optimizer import SGDSettings
from colearn_hpc.models.ranking import IGNORED, RANKING_METRICS, RankingMetrics
from colearn_hpc.models.registry import build_network

Batch = tuple[Tensor, Tensor]


class MultilabelTask(LightningModule):
    """Any network of the registry, trained to say of each of ``num_classes`` labels whether it applies.

    Shapes: a batch is ``x`` (batch, …) as the network wants it, and ``y`` (batch, num_classes) of 0, 1 and −1, of any
    number type. A −1 means that the label is unknown: it enters neither the loss nor the metrics. The network returns
    logits (batch, num_classes). A network that returns probabilities says so by an attribute
    ``output_kind = "probabilities"``, as the capsule network and those of AudioSet do.

    These are logged once per epoch: ``train_loss``, ``val_loss``, ``val_auc``, ``val_map``, ``val_dprime``, and the
    last four with ``test_``. They are exact over all ranks of the process group.
    :class:`~colearn_hpc.models.ranking.RankingMetrics` explains them.

    Args:
        network: Name in the registry, or dotted path of an ``nn.Module`` class.
        network_args: Keywords of the network.
        num_classes: Number of labels; 6 for toxic comments, 527 for AudioSet. ``None`` takes the number of the data
            module's classes; the network is then built in :meth:`setup`, when the data are known. A number that is not
            the data's is an error.
        learning_rate: Rate of SGD, η. Under co-learning the schedule (equation 3) multiplies it by a factor.
        momentum: Momentum of SGD; the paper's plain SGD is 0.
        nesterov: Nesterov's form of momentum; needs a ``momentum`` above 0.
        weight_decay: L2 coefficient of SGD.
        loss: ``bce``, binary cross-entropy; or ``margin``, the capsule paper's, for networks with probabilities.
        metrics: Which of ``auc``, ``map`` and ``dprime`` to log; the first is in the progress bar.

    Raises:
        ConfigurationError: A setting is out of its range, the network cannot be built, or the data have another number
            of classes.
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
        loss: Literal["bce", "margin"] = "bce",
        metrics: Sequence[str] = ("auc", "map", "dprime"),
    ) -> None:
        super().__init__()
        unknown = [name for name in metrics if name not in RANKING_METRICS]
        if unknown:
            raise ConfigurationError(f"metrics={list(metrics)}: {unknown} unknown; choose of {list(RANKING_METRICS)}")
        if loss not in ("bce", "margin"):
            raise ConfigurationError(f"loss={loss!r} is not known; choose bce or margin")
        network_args = dict(network_args or {})
        metrics = [str(name) for name in metrics]
        self.save_hyperparameters()  # plain types only, so that checkpoints open with weights_only=True
        self.sgd = SGDSettings(learning_rate, momentum, nesterov, weight_decay)
        self.loss = loss
        self.train_loss, self.val_loss, self.test_loss = MeanMetric(), MeanMetric(), MeanMetric()
        self.metric_names = metrics
        # Not from hparams: under LightningCLI they hold what the configuration says, None for what it leaves out.
        self._network, self._network_args = network, network_args
        self._num_classes = num_classes
        if num_classes is not None:
            self._build(num_classes)

    def _build(self, num_classes: int) -> None:
        self.network: nn.Module = build_network(self._network, num_classes, **self._network_args)
        self.gives_probabilities = getattr(self.network, "output_kind", "logits") == "probabilities"
        if self.loss == "margin" and not self.gives_probabilities:
            raise ConfigurationError(
                f"loss=margin with network {self._network!r}, which gives logits; choose loss=bce, or a network whose "
                'output_kind is "probabilities", as text_capsule'
            )
        self.val_metrics, self.test_metrics = RankingMetrics(num_classes), RankingMetrics(num_classes)

    def setup(self, stage: str) -> None:
        """Compare the number of classes with the data's, or take it from there; see ``num_classes``."""
        found = class_count(self._num_classes, self.trainer.datamodule, exact=True)  # type: ignore[attr-defined]
        if self._num_classes is None:
            self._build(found)
            # A checkpoint is loaded without the data.
            self._num_classes = self.hparams["num_classes"] = found

    def forward(self, x: Tensor) -> Tensor:
        """What the network gives, (batch, num_classes): logits or probabilities."""
        return self.network(x)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, y = batch
        loss, scored = self._loss(self(x), y)
        self.train_loss.update(loss.detach(), weight=scored)
        self.log("train_loss", self.train_loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("val", batch, self.val_loss, self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("test", batch, self.test_loss, self.test_metrics)

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val", self.val_metrics)

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test", self.test_metrics)

    def predict_step(self, batch: Batch | Tensor, batch_idx: int) -> Tensor:
        """Probabilities (batch, num_classes): what ensemble-learning averages over participants."""
        return self._probabilities(self(batch if isinstance(batch, Tensor) else batch[0]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD over the parameters that are trained; LightningCLI's ``optimizer:`` takes its place where given."""
        return self.sgd.over(self)

    def _probabilities(self, output: Tensor) -> Tensor:
        return output.float() if self.gives_probabilities else torch.sigmoid(output.float())

    def _loss(self, output: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The mean over the scored entries, and their number."""
        mask = (y != IGNORED).float()
        target = y.float().clamp(min=0)
        # float32 whatever the precision of the network: autocast refuses cross-entropy of half probabilities.
        with torch.autocast(output.device.type, enabled=False):
            output = output.float()
            if self.loss == "margin":
                each = margin_loss(output, target)
            elif self.gives_probabilities:
                each = binary_cross_entropy(output, target, reduction="none")
            else:
                each = binary_cross_entropy_with_logits(output, target, reduction="none")
            # A batch in which nothing is scored has loss 0 and no gradient, rather than NaN.
            return (each * mask).sum() / mask.sum().clamp(min=1), mask.sum()

    def _evaluate(self, stage: str, batch: Batch, mean_loss: MeanMetric, metrics: RankingMetrics) -> None:
        x, y = batch
        output = self(x)
        loss, scored = self._loss(output, y)
        mean_loss.update(loss, weight=scored)
        metrics.update(self._probabilities(output), y)
        self.log(f"{stage}_loss", mean_loss, on_step=False, on_epoch=True)

    def _log_metrics(self, stage: str, metrics: RankingMetrics) -> None:
        # Collective over the process group: compute() gathers the ranks' scores. All ranks come here. The values are
        # then the same everywhere; sync_dist changes nothing and silences Lightning's advice to set it.
        nothing = torch.zeros(0, metrics.num_classes, device=self.device)
        metrics.update(nothing, nothing)  # a rank without a batch must still enter the exchange with the right shapes
        values = metrics.compute()
        metrics.reset()
        for place, name in enumerate(self.metric_names):
            self.log(f"{stage}_{name}", values[name], prog_bar=place == 0, sync_dist=True)


def margin_loss(lengths: Tensor, target: Tensor) -> Tensor:
    """T · max(0, 0.9 − l)² + 0.5 · (1 − T) · max(0, l − 0.1)² (Sabour et al. 2017, arXiv:1710.09829, eq. 4).

    Args:
        lengths: l, of class capsules, in [0, 1); any shape.
        target: T of 0 and 1, of the same shape.

    Returns:
        The loss of each entry.
    """
    present = target * (0.9 - lengths).clamp(min=0).square()
    absent = (1 - target) * (lengths - 0.1).clamp(min=0).square()
    return present + 0.5 * absent
