"""The Classifier: its metrics against hand-made values, its checkpoints, and its metrics over unequal ranks."""

import json
import logging
import warnings

import pytest
import torch
from metric_rank import measure
from pytorch_lightning import Trainer, seed_everything
from torch import multiprocessing, nn
from torch.nn.functional import cross_entropy, one_hot
from torch.utils.data import DataLoader, TensorDataset

from colearn_hpc.errors import ConfigurationError
from colearn_hpc.models import registry
from colearn_hpc.models.confusion import ConfusionMatrixFile
from colearn_hpc.models.task import Classifier

# Logits of six examples over seven classes. The labels' places in the rows: 1st, 1st, 2nd, 5th, 6th, 7th.
LOGITS = torch.arange(7, 0, -1).float().repeat(6, 1)
LABELS = torch.tensor([0, 0, 1, 4, 5, 6])


@pytest.fixture(autouse=True)
def echo_network(monkeypatch):
    """A network that gives its input back: the test writes the logits."""
    registry.network_names()
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))

    @registry.register("echo")
    def echo(num_classes):
        return Echo()


class Echo(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * self.scale


def trainer(tmp_path, **settings):
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    settings = {"max_epochs": 1, "enable_checkpointing": False, "logger": False} | settings
    return Trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def loader(x=LOGITS, y=LABELS, batch_size=4):
    """Batches of 4 and 2: a mean of batch means would be wrong."""
    return DataLoader(TensorDataset(x, y), batch_size=batch_size)


@pytest.mark.parametrize("stage", ["val", "test"])
def test_metrics_are_those_counted_by_hand(tmp_path, stage):
    model = Classifier("echo", num_classes=7)
    run = trainer(tmp_path)
    (seen,) = (run.validate if stage == "val" else run.test)(model, loader(), verbose=False)
    assert set(seen) == {f"{stage}_{name}" for name in ("loss", "acc", "acc_top5")}
    assert seen[f"{stage}_acc"] == pytest.approx(2 / 6)
    assert seen[f"{stage}_acc_top5"] == pytest.approx(4 / 6)
    assert seen[f"{stage}_loss"] == pytest.approx(cross_entropy(LOGITS, LABELS).item())


def test_training_metrics_weigh_a_short_batch_by_its_length(tmp_path):
    model = Classifier("echo", num_classes=7, learning_rate=1e-30)
    run = trainer(tmp_path)
    run.fit(model, loader())
    assert run.callback_metrics["train_acc"].item() == pytest.approx(2 / 6)
    assert run.callback_metrics["train_loss"].item() == pytest.approx(cross_entropy(LOGITS, LABELS).item())


def test_metrics_start_anew_every_epoch(tmp_path):
    model = Classifier("echo", num_classes=7)
    run = trainer(tmp_path)
    run.validate(model, loader(LOGITS[:1], LABELS[:1]), verbose=False)
    (seen,) = run.validate(model, loader(), verbose=False)
    assert seen["val_acc"] == pytest.approx(2 / 6)


def test_top_k_at_the_number_of_classes_is_left_out():
    model = Classifier("echo", num_classes=5, top_k=[1, 3, 5, 9])
    assert sorted(model.val_metrics.keys()) == ["val_acc", "val_acc_top3"]


def test_label_smoothing_is_for_training_only(tmp_path):
    model = Classifier("echo", num_classes=7, label_smoothing=0.2, learning_rate=1e-30)
    run = trainer(tmp_path)
    run.fit(model, loader(), loader())
    smooth = cross_entropy(LOGITS, LABELS, label_smoothing=0.2).item()
    assert run.callback_metrics["train_loss"].item() == pytest.approx(smooth)
    assert run.callback_metrics["val_loss"].item() == pytest.approx(cross_entropy(LOGITS, LABELS).item())


def test_confusion_matrix_counts_true_by_predicted(tmp_path):
    model = Classifier("echo", num_classes=3)
    x = one_hot(torch.tensor([0, 0, 1, 2, 2, 2]), 3).float()
    y = torch.tensor([0, 1, 1, 0, 2, 2])
    for _ in range(2):  # the second run starts from zero
        trainer(tmp_path).test(model, loader(x, y), verbose=False)
        assert model.confusion_matrix == [[1, 0, 1], [1, 1, 0], [0, 0, 2]]


def test_confusion_matrix_as_a_file(tmp_path):
    model = Classifier("echo", num_classes=3)
    x = one_hot(torch.tensor([0, 0, 1, 2, 2, 2]), 3).float()
    y = torch.tensor([0, 1, 1, 0, 2, 2])
    one = trainer(tmp_path, callbacks=[ConfusionMatrixFile()])
    for stage in ("val", "test"):
        (one.validate if stage == "val" else one.test)(model, loader(x, y), verbose=False)
        content = json.loads((tmp_path / "confusion.json").read_text())
        assert content == {"stage": stage, "classes": ["0", "1", "2"], "counts": [[1, 0, 1], [1, 1, 0], [0, 0, 2]]}
    (tmp_path / "confusion.json").unlink()
    one.test(Classifier("echo", num_classes=51), loader(torch.zeros(4, 51), torch.arange(4)), verbose=False)
    assert not list(tmp_path.glob("*confusion*"))


def test_no_confusion_matrix_above_fifty_classes(tmp_path):
    model = Classifier("echo", num_classes=51)
    trainer(tmp_path).test(model, loader(torch.zeros(4, 51), torch.arange(4)), verbose=False)
    assert model.confusion_matrix is None


def test_predictions_are_probabilities(tmp_path):
    model = Classifier("echo", num_classes=7)
    batches = trainer(tmp_path).predict(model, loader())
    assert torch.allclose(torch.cat(batches), torch.softmax(LOGITS, 1))
    assert torch.equal(model.predict_step(LOGITS, 0), torch.softmax(LOGITS, 1))


def test_metrics_add_nothing_that_would_be_averaged_or_saved(tmp_path):
    model = Classifier("digits_cnn", num_classes=10)
    trainer(tmp_path).fit(model, *[loader(torch.randn(6, 1, 8, 8), LABELS)] * 2)
    assert {n for n, _ in model.named_parameters()} == {f"network.{n}" for n, _ in model.network.named_parameters()}
    assert {n for n, _ in model.named_buffers()} == {f"network.{n}" for n, _ in model.network.named_buffers()}
    assert set(model.state_dict()) == {f"network.{n}" for n in model.network.state_dict()}


def test_checkpoint_round_trip(tmp_path):
    seed_everything(0, verbose=False)
    data = loader(torch.randn(6, 1, 8, 8), LABELS)
    settings = {"network_args": {"in_channels": 1}, "num_classes": 7, "momentum": 0.9, "top_k": (1, 3)}
    model = Classifier("digits_cnn", **settings)
    run = trainer(tmp_path, enable_checkpointing=True)
    run.fit(model, data)
    path = tmp_path / "model.ckpt"
    run.save_checkpoint(path)
    assert torch.load(path, weights_only=True)["hyper_parameters"]["network"] == "digits_cnn"
    again = Classifier.load_from_checkpoint(path, weights_only=True)
    assert dict(again.hparams) == dict(model.hparams)
    assert again.hparams["top_k"] == [1, 3] and again.hparams["network_args"] == {"in_channels": 1}
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))


def test_optimizer_has_the_settings_and_leaves_frozen_weights_alone():
    model = Classifier("digits_cnn", num_classes=10, learning_rate=0.2, momentum=0.9, nesterov=True, weight_decay=1e-4)
    model.network.classifier.bias.requires_grad_(False)
    (group,) = model.configure_optimizers().param_groups
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (0.2, 0.9, True, 1e-4)
    assert len(group["params"]) == len(list(model.network.parameters())) - 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 1}, "num_classes=1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"nesterov": True}, "set momentum above 0"),
        ({"top_k": [0]}, r"top_k=\[0\]"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"network_args": {"width": 1}}, "width"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        Classifier("digits_cnn", **({"num_classes": 10} | settings))


def test_metrics_are_exact_over_ranks_with_unequal_counts(tmp_path):
    """Rank 0 sees five examples, rank 1 one: neither the mean of means nor one rank's value is right."""
    results = multiprocessing.get_context("spawn").SimpleQueue()
    shares = [(LOGITS[:5], LABELS[:5]), (LOGITS[5:], LABELS[5:])]
    multiprocessing.spawn(measure, args=(f"file://{tmp_path}/store", shares, results), nprocs=2)
    for _ in range(2):
        rank, loss, top5 = results.get()
        assert loss == pytest.approx(cross_entropy(LOGITS, LABELS).item(), rel=1e-6), rank
        assert top5 == pytest.approx(4 / 6), rank


def test_training_steps_hold_no_collective(tmp_path, monkeypatch):
    """Ranks of one data center may be seconds apart within an epoch; metrics must not make them wait."""
    from torchmetrics import Metric

    synced_at = []
    model = Classifier("echo", num_classes=7)
    monkeypatch.setattr(Metric, "sync", lambda self, *a, **k: synced_at.append(run.is_last_batch))
    run = trainer(tmp_path, max_epochs=1)
    for metric in model.modules():
        if isinstance(metric, Metric):
            metric.distributed_available_fn = lambda: True
            metric.sync_on_compute = True
    run.fit(model, loader(batch_size=1))
    assert synced_at and all(synced_at)
