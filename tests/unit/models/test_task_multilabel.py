"""The MultilabelTask: losses with ignored labels, its metrics in a Trainer, checkpoints."""

import logging
import warnings

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn.functional import binary_cross_entropy, binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, TensorDataset

from colearn_hpc.errors import ConfigurationError
from colearn_hpc.models import registry
from colearn_hpc.models.task_multilabel import MultilabelTask, margin_loss

# Outputs of six examples for two labels; the last example is not scored, the fifth only in its first label.
X = torch.tensor([[0.9, 0.2], [0.4, 0.7], [0.8, 0.1], [0.3, 0.6], [0.5, 0.5], [0.1, 0.9]])
Y = torch.tensor([[1, 0], [0, 1], [0, 1], [1, 0], [1, -1], [-1, -1]], dtype=torch.int8)
SCORED = Y >= 0


class Echo(nn.Module):
    def __init__(self, output_kind):
        super().__init__()
        self.output_kind = output_kind
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * self.scale


@pytest.fixture(autouse=True)
def echo_networks(monkeypatch):
    registry.network_names()
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))
    registry.register("echo_logits")(lambda num_classes: Echo("logits"))
    registry.register("echo_probabilities")(lambda num_classes: Echo("probabilities"))


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


def loader(x=X, y=Y):
    return DataLoader(TensorDataset(x, y), batch_size=4)


def areas():
    return [roc_auc_score(Y[SCORED[:, c], c], X[SCORED[:, c], c]) for c in range(2)]


@pytest.mark.parametrize("stage", ["val", "test"])
@pytest.mark.parametrize(
    ("network", "entropy"),
    [("echo_logits", binary_cross_entropy_with_logits), ("echo_probabilities", binary_cross_entropy)],
)
def test_values_are_those_counted_by_hand(tmp_path, stage, network, entropy):
    """Batches of 4 and 2 examples with 8 and 1 scored labels: a mean over batches or examples would be wrong."""
    model = MultilabelTask(network, num_classes=2)
    run = trainer(tmp_path)
    (seen,) = (run.validate if stage == "val" else run.test)(model, loader(), verbose=False)
    assert set(seen) == {f"{stage}_{name}" for name in ("loss", "auc", "map", "dprime")}
    assert seen[f"{stage}_loss"] == pytest.approx(entropy(X[SCORED], Y[SCORED].float()).item())
    assert seen[f"{stage}_auc"] == pytest.approx(sum(areas()) / 2)


def test_metrics_start_anew(tmp_path):
    model = MultilabelTask("echo_logits", num_classes=2, metrics=["auc"])
    run = trainer(tmp_path)
    run.validate(model, loader(1 - X), verbose=False)
    (seen,) = run.validate(model, loader(), verbose=False)
    assert seen == {"val_loss": pytest.approx(seen["val_loss"]), "val_auc": pytest.approx(sum(areas()) / 2)}


def test_training_loss_ignores_what_is_not_scored(tmp_path):
    model = MultilabelTask("echo_logits", num_classes=2, learning_rate=1e-30)
    run = trainer(tmp_path)
    run.fit(model, loader(), loader())
    want = binary_cross_entropy_with_logits(X[SCORED], Y[SCORED].float()).item()
    assert run.callback_metrics["train_loss"].item() == pytest.approx(want)


def test_a_batch_without_any_scored_label_teaches_nothing():
    model = MultilabelTask("echo_logits", num_classes=2)
    loss, scored = model._loss(model(X), torch.full_like(Y, -1))
    loss.backward()
    assert (loss.item(), scored.item(), model.network.scale.grad.item()) == (0, 0, 0)


def test_predictions_are_probabilities(tmp_path):
    for network, wanted in (("echo_logits", torch.sigmoid(X)), ("echo_probabilities", X)):
        model = MultilabelTask(network, num_classes=2)
        assert torch.equal(torch.cat(trainer(tmp_path).predict(model, loader())), wanted)


def test_margin_loss_by_hand():
    lengths = torch.tensor([0.95, 0.5, 0.05, 0.6])
    target = torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert torch.allclose(margin_loss(lengths, target), torch.tensor([0, 0.16, 0, 0.125]))


@pytest.mark.parametrize("loss", ["bce", "margin"])
def test_capsules_learn_by_either_loss(loss):
    torch.manual_seed(0)
    args = {"vocabulary_size": 20, "embedding_dim": 16, "length": 12, "kernel_size": 3, "capsules": 4}
    model = MultilabelTask("text_capsule", args, num_classes=2, loss=loss, learning_rate=0.5)
    x = torch.randint(1, 20, (16, 12))
    y = torch.stack([x[:, 0] < 10, x[:, 0] >= 10], dim=1).to(torch.int8)
    optimizer = model.configure_optimizers()
    losses = []
    for _ in range(30):
        value, _ = model._loss(model(x), y)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.6 * losses[0]


def test_half_precision_trains(tmp_path):
    model = MultilabelTask("audioset_fc", {"hidden": 8}, num_classes=2)
    data = loader(torch.randn(6, 10, 128))
    run = trainer(tmp_path, precision="bf16-mixed")
    run.fit(model, data, data)
    assert run.callback_metrics["train_loss"].isfinite()


def test_checkpoint_round_trip_with_frozen_vectors(tmp_path):
    vectors = tmp_path / "vectors.npy"
    np.save(vectors, np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32))
    model = MultilabelTask("bigru", {"embedding": str(vectors), "hidden": 3}, num_classes=2, metrics=("map",))
    run = trainer(tmp_path, enable_checkpointing=True)
    run.fit(model, loader(torch.randint(1, 9, (6, 5))))
    run.save_checkpoint(tmp_path / "model.ckpt")
    again = MultilabelTask.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert dict(again.hparams) == dict(model.hparams)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
    # Elsewhere, where the vectors' file is not: they are in the checkpoint.
    vectors.unlink()
    with pytest.raises(ConfigurationError, match="no such file"):
        MultilabelTask.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    args = {"vocabulary_size": 9, "embedding_dim": 4, "hidden": 3}
    moved = MultilabelTask.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True, network_args=args)
    assert torch.equal(moved.network.embedding.weight, model.network.embedding.weight)


def test_frozen_vectors_are_not_in_the_optimizer():
    args = {"vocabulary_size": 9, "embedding_dim": 4, "train_embedding": False}
    model = MultilabelTask("bigru", args, num_classes=2)
    (group,) = model.configure_optimizers().param_groups
    assert all(p is not model.network.embedding.weight for p in group["params"])
    assert len(group["params"]) == len(list(model.parameters())) - 1


def test_only_the_network_is_in_the_state():
    model = MultilabelTask("echo_logits", num_classes=2)
    assert list(model.state_dict()) == ["network.scale"]
    assert not list(model.buffers())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "margin"}, "gives logits"),
        ({"loss": "mse"}, "loss='mse'"),
        ({"metrics": ["auc", "f1"]}, r"\['f1'\] unknown"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"nesterov": True}, "set momentum above 0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        MultilabelTask("echo_logits", num_classes=2, **settings)
